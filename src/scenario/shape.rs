//! Checks a parsed file against the JSON Schema of the types in [`super::file`]: keys, types, ranges
//! and choices. A schema-guided walk sees every problem, where serde stops at the first.

use std::sync::LazyLock;

use schemars::generate::SchemaSettings;
use serde_json::Value as Json;
use toml::{Table, Value};

use super::budget::Budget;
use super::file::Scenario;
use super::problem::{At, Origins, Problem};
use crate::dispatch::{is_host_and_port, is_ip_and_port};

/// The JSON Schema (draft 7, without references) of scenario files.
#[must_use]
pub fn schema() -> Json {
    SCHEMA.clone()
}

/// Made once: a sweep checks thousands of scenarios.
static SCHEMA: LazyLock<Json> = LazyLock::new(|| {
    let settings = SchemaSettings::draft07().with(|settings| settings.inline_subschemas = true);
    settings.into_generator().into_root_schema_for::<Scenario>().to_value()
});

/// Every dotted key of a scenario, sections included, ascending.
pub(super) fn known_keys() -> &'static [String] {
    static KEYS: LazyLock<Vec<String>> = LazyLock::new(|| keys_of(&SCHEMA, ""));
    &KEYS
}

/// Whether a key takes whole numbers alone.
pub(super) fn takes_whole_numbers(key: &str) -> bool {
    schemas_at(&SCHEMA, key).iter().any(|schema| type_of(schema) == "integer")
}

/// Whether a key takes any number.
pub(super) fn is_number(key: &str) -> bool {
    schemas_at(&SCHEMA, key).iter().any(|schema| type_of(schema) == "number")
}

/// What is wrong with a value of `key` that stands at `path` of the file: nothing where any kind of its section takes it.
pub(super) fn value_problems(
    key: &str,
    value: &Value,
    path: &str,
    origins: &Origins,
) -> Vec<Problem> {
    let mut first = None;
    for schema in schemas_at(&SCHEMA, key) {
        let (bad, problems) = (Vec::new(), Vec::new());
        let mut walk = Walk { root: &SCHEMA, origins, bad, problems };
        walk.value(schema, value, path);
        if walk.problems.is_empty() {
            return Vec::new();
        }
        first.get_or_insert(walk.problems);
    }
    first.unwrap_or_default()
}

/// The schemas of a dotted key: one of each kind of its section that has it.
fn schemas_at<'s>(schema: &'s Json, key: &str) -> Vec<&'s Json> {
    let variants = schema["oneOf"].as_array().map_or(std::slice::from_ref(schema), Vec::as_slice);
    let (name, rest) = key.split_once('.').map_or((key, None), |(name, rest)| (name, Some(rest)));
    let found = variants.iter().filter_map(|variant| variant["properties"].get(name));
    match rest {
        None => found.collect(),
        Some(rest) => found.flat_map(|of_name| schemas_at(of_name, rest)).collect(),
    }
}

/// What the walk found.
pub(super) struct Walked {
    /// The file without its problems: unknown keys and bad values are gone, required keys that are
    /// missing or bad hold a placeholder, so that the rest can still be checked.
    pub(super) table: Table,
    /// Dotted keys whose value is missing or bad: what the table says of them means nothing.
    pub(super) bad: Vec<String>,
    /// The problems.
    pub(super) problems: Vec<Problem>,
}

/// Walks a parsed file.
pub(super) fn walk(table: &Table, origins: &Origins) -> Walked {
    let (bad, problems) = (Vec::new(), Vec::new());
    let mut walk = Walk { root: &SCHEMA, origins, bad, problems };
    let table = walk.section(&SCHEMA, table, "");
    Walked { table, bad: walk.bad, problems: walk.problems }
}

struct Walk<'a> {
    root: &'a Json,
    origins: &'a Origins,
    bad: Vec<String>,
    problems: Vec<Problem>,
}

impl Walk<'_> {
    fn section(&mut self, schema: &Json, table: &Table, path: &str) -> Table {
        let Some(schema) = self.variant(schema, table, path) else {
            return match placeholder(schema) {
                Value::Table(table) => table,
                _ => Table::new(),
            };
        };
        let (mut checked, mut meant) = (Table::new(), Vec::new());
        for (key, value) in table {
            let path = join(path, key);
            match schema["properties"].get(key) {
                None => meant.extend(self.unknown(schema, key, &path)),
                Some(of_key) => {
                    if let Some(value) = self.value(of_key, value, &path) {
                        checked.insert(key.clone(), value);
                    }
                }
            }
        }
        for key in required(schema) {
            let of_key = &schema["properties"][key];
            if meant.iter().any(|meant| meant == key) {
                // A misspelt key is one problem, not two.
                self.bad.push(join(path, key));
            } else if !table.contains_key(key) {
                self.missing(of_key, path, key);
            }
            checked.entry(key).or_insert_with(|| placeholder(of_key));
        }
        checked
    }

    /// The schema of a section; for a tagged choice the variant that its `kind` picks.
    fn variant<'s>(&mut self, schema: &'s Json, table: &Table, section: &str) -> Option<&'s Json> {
        let Some(variants) = schema["oneOf"].as_array() else { return Some(schema) };
        let kind_of = |variant: &'s Json| variant["properties"]["kind"]["const"].as_str();
        let path = join(section, "kind");
        let Some(kind) = table.get("kind") else {
            let kinds = quoted(variants.iter().filter_map(kind_of));
            let (message, help) = (format!("`{path}` is missing"), format!("write one of {kinds}"));
            self.absent(section, &path, message, help);
            self.bad.push(section.into());
            return None;
        };
        let found = variants.iter().find(|variant| kind_of(variant) == kind.as_str());
        if found.is_none() {
            let kinds: Vec<&str> = variants.iter().filter_map(kind_of).collect();
            self.choice(&path, kind, &kinds);
            self.bad.push(section.into());
        }
        found
    }

    /// The value, if it is good.
    fn value(&mut self, schema: &Json, value: &Value, path: &str) -> Option<Value> {
        if *schema == Json::Bool(true) {
            return Some(value.clone());
        }
        if let Some(section) = section_beside_words(schema) {
            return match value {
                Value::Table(table) => Some(Value::Table(self.section(section, table, path))),
                _ => {
                    let words: Vec<&str> = words(schema).collect();
                    let found = value.as_str().is_some_and(|value| words.contains(&value));
                    if found { Some(value.clone()) } else { self.choice(path, value, &words) }
                }
            };
        }
        if let Some(choices) = choices(schema) {
            let found = value.as_str().is_some_and(|value| choices.contains(&value));
            return if found { Some(value.clone()) } else { self.choice(path, value, &choices) };
        }
        let good = match (type_of(schema), value) {
            ("object", Value::Table(table)) => {
                return Some(Value::Table(self.section(schema, table, path)));
            }
            ("array", Value::Array(items)) if holds_count(schema, items.len()) => {
                let check =
                    |(index, item)| self.value(&schema["items"], item, &format!("{path}[{index}]"));
                // All items are checked before a bad one drops the list.
                let items: Vec<Option<Value>> = items.iter().enumerate().map(check).collect();
                return items.into_iter().collect::<Option<Vec<_>>>().map(Value::Array);
            }
            ("string", Value::String(text)) => has_format(schema, text),
            ("boolean", Value::Boolean(_)) => true,
            ("integer" | "number", Value::Integer(number)) => holds(schema, *number as f64),
            ("number", Value::Float(number)) => holds(schema, *number),
            _ => false,
        };
        if !good {
            let message = format!("`{path}` must be {}, not {}", expected(schema), shown(value));
            self.report(path, At::Value, message, remedy(schema, value));
        }
        good.then(|| value.clone())
    }

    fn choice(&mut self, path: &str, value: &Value, choices: &[&str]) -> Option<Value> {
        let all = quoted(choices.iter().copied());
        let message = format!("`{path}` must be one of {all}, not {}", shown(value));
        let help = match value.as_str().and_then(|text| closest(text, choices.iter().copied())) {
            Some(choice) => format!("did you mean \"{choice}\"?"),
            None => format!("write one of {all}"),
        };
        self.report(path, At::Value, message, help);
        None
    }

    fn missing(&mut self, schema: &Json, section: &str, key: &str) {
        let path = join(section, key);
        let (message, help) = if type_of(schema) == "object" {
            let keys = quoted(required(schema));
            let keys = if keys.is_empty() { "`kind`".to_owned() } else { keys };
            (format!("section [{path}] is missing"), format!("add [{path}] with {keys}"))
        } else {
            (format!("`{path}` is missing"), format!("add `{key} = …`: {}", description(schema)))
        };
        self.absent(section, &path, message, help);
    }

    /// Reports a key that is not there at the section that lacks it.
    fn absent(&mut self, section: &str, path: &str, message: String, help: String) {
        let mut problem = self.origins.problem(section, At::Key, message, help);
        problem.key = path.into();
        self.problems.push(problem);
        self.bad.push(path.into());
    }

    /// Reports an unknown key; returns the key of the same section that was probably meant.
    fn unknown(&mut self, schema: &Json, key: &str, path: &str) -> Option<String> {
        let here: Vec<String> = keys_of(schema, "");
        let section = path.strip_suffix(key).unwrap_or_default().trim_end_matches('.');
        let place = if section.is_empty() { "at the top" } else { &format!("in [{section}]") };
        let all = keys_of(self.root, "");
        let elsewhere = all.iter().filter(|known| known.rsplit('.').next() == Some(key));
        let elsewhere: Vec<&str> = elsewhere.map(String::as_str).collect();
        let own = || here.iter().map(String::as_str).filter(|key| !key.contains('.'));
        let meant = closest(key, own());
        let help = if let Some(known) = meant {
            format!("did you mean `{known}`?")
        } else if elsewhere.contains(&path) {
            format!("`{key}` belongs to another `{section}.kind`: take it out or change the kind")
        } else if let [known, ..] = elsewhere[..] {
            format!("did you mean `{known}`?")
        } else {
            format!("take it out; the keys {place} are {}", quoted(own()))
        };
        // An unknown key says nothing about the known ones: it is not added to `bad`.
        let message = format!("unknown key `{key}` {place}");
        self.problems.push(self.origins.problem(path, At::Key, message, help));
        meant.map(str::to_owned)
    }

    fn report(&mut self, path: &str, at: At, message: String, help: String) {
        self.problems.push(self.origins.problem(path, at, message, help));
        self.bad.push(path.into());
    }
}

/// The closest of some names, if one is close.
pub(super) fn closest<'a>(name: &str, names: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    const CLOSE: f64 = 0.84;
    names
        .map(|known| (strsim::jaro_winkler(name, known), known))
        .filter(|(likeness, _)| *likeness >= CLOSE)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, known)| known)
}

/// `` `a`, `b` ``.
pub(super) fn quoted<'a>(names: impl IntoIterator<Item = &'a str>) -> String {
    names.into_iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ")
}

/// Every dotted key that a schema knows, sections included, ascending.
pub(super) fn keys_of(schema: &Json, path: &str) -> Vec<String> {
    let mut keys = Vec::new();
    let variants = schema["oneOf"].as_array().map_or(std::slice::from_ref(schema), Vec::as_slice);
    for (key, of_key) in variants.iter().filter_map(|v| v["properties"].as_object()).flatten() {
        let path = join(path, key);
        keys.extend(keys_of(of_key, &path));
        keys.push(path);
    }
    keys.sort();
    keys.dedup();
    keys
}

/// A dotted key.
pub(super) fn join(section: &str, key: &str) -> String {
    if section.is_empty() { key.into() } else { format!("{section}.{key}") }
}

fn required(schema: &Json) -> impl Iterator<Item = &str> {
    schema["required"].as_array().into_iter().flatten().filter_map(Json::as_str)
}

/// The strings of an `enum`, of a `oneOf` of constants, or of one constant.
fn choices(schema: &Json) -> Option<Vec<&str>> {
    if let Some(only) = schema["const"].as_str() {
        return Some(vec![only]);
    }
    schema["oneOf"].as_array()?.iter().map(|choice| choice["const"].as_str()).collect()
}

/// The words of a `oneOf` of constants and one section, as `"continue"` or `{ retry = 2 }`.
fn words(schema: &Json) -> impl Iterator<Item = &str> {
    schema["oneOf"].as_array().into_iter().flatten().filter_map(|of| of["const"].as_str())
}

/// The section of such a `oneOf`.
fn section_beside_words(schema: &Json) -> Option<&Json> {
    let section = schema["oneOf"].as_array()?.iter().find(|of| of["properties"].is_object())?;
    words(schema).next().map(|_| section)
}

fn type_of(schema: &Json) -> &str {
    match &schema["type"] {
        Json::String(name) => name,
        // An optional key: TOML has no null.
        Json::Array(names) => names.iter().filter_map(Json::as_str).next().unwrap_or_default(),
        _ => "object",
    }
}

fn holds(schema: &Json, number: f64) -> bool {
    let limit = |name: &str| schema[name].as_f64();
    let listed = schema["enum"].as_array();
    number.is_finite()
        && limit("minimum").is_none_or(|min| number >= min)
        && limit("maximum").is_none_or(|max| number <= max)
        && listed.is_none_or(|list| list.iter().any(|known| known.as_f64() == Some(number)))
}

fn holds_count(schema: &Json, count: usize) -> bool {
    let count = count as u64;
    schema["minItems"].as_u64().is_none_or(|min| count >= min)
        && schema["maxItems"].as_u64().is_none_or(|max| count <= max)
}

fn has_format(schema: &Json, text: &str) -> bool {
    match schema["format"].as_str() {
        Some("budget") => text.parse::<Budget>().is_ok(),
        Some("host-port") => is_host_and_port(text),
        Some("ip-port") => is_ip_and_port(text),
        Some("name") => {
            (1..=64).contains(&text.len())
                && !text.starts_with('.')
                && text.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
        }
        _ => !text.is_empty(),
    }
}

/// What a schema asks for, in words.
fn expected(schema: &Json) -> String {
    if let Some(list) = schema["enum"].as_array() {
        let list: Vec<String> = list.iter().map(Json::to_string).collect();
        return if list.len() == 1 { list.concat() } else { format!("one of {}", list.join(", ")) };
    }
    let range = match (&schema["minimum"], &schema["maximum"]) {
        (Json::Null, Json::Null) => String::new(),
        (min, Json::Null) => format!(" of at least {min}"),
        (Json::Null, max) => format!(" of at most {max}"),
        (min, max) => format!(" from {min} to {max}"),
    };
    match (type_of(schema), schema["format"].as_str()) {
        ("integer", _) => format!("a whole number{range}"),
        ("number", _) => format!("a number{range}"),
        ("boolean", _) => "true or false".into(),
        ("array", _) if schema["minItems"].is_u64() => {
            format!("a list of at least one entry, each {}", expected(&schema["items"]))
        }
        ("array", _) => format!("a list, each entry {}", expected(&schema["items"])),
        ("string", Some("budget")) => {
            "a size such as \"90.6%\" (below 100%), \"2.5bpw\" (at most 32), \"3MB\", \"f32\" or \"stored\""
                .into()
        }
        ("string", Some("host-port")) => "\"host:port\"".into(),
        ("string", Some("ip-port")) => "\"IP:PORT\"".into(),
        ("string", Some("name")) => "1 to 64 letters, digits, `-`, `_` or `.`".into(),
        ("string", _) => "a string that is not empty".into(),
        _ => "a section".into(),
    }
}

fn description(schema: &Json) -> &str {
    schema["description"].as_str().unwrap_or_default()
}

fn shown(value: &Value) -> String {
    const LONG: usize = 60;
    match value {
        Value::Table(_) => "a section".into(),
        Value::Array(items) if items.is_empty() => "an empty list".into(),
        value => {
            let text = value.to_string();
            let short: String = text.chars().take(LONG).collect();
            if short.len() < text.len() { format!("{short}…") } else { text }
        }
    }
}

/// What to do about a value of the wrong type or out of range.
fn remedy(schema: &Json, value: &Value) -> String {
    let unquoted = value.as_str().and_then(|text| text.parse::<Value>().ok());
    match (type_of(schema), value) {
        ("integer" | "number" | "boolean", Value::String(_))
            if unquoted.as_ref().is_some_and(|value| !value.is_str()) =>
        {
            "take the quotes away".into()
        }
        (
            "string",
            Value::Integer(_) | Value::Float(_) | Value::Boolean(_) | Value::Datetime(_),
        ) => {
            format!("put it in quotes: \"{value}\"")
        }
        ("array", Value::Integer(_) | Value::Float(_) | Value::String(_)) => {
            format!("put it in brackets: [{value}]")
        }
        ("object", _) => "write its keys under a [section] header".into(),
        _ if description(schema).is_empty() => format!("write {}", expected(schema)),
        _ => description(schema).into(),
    }
}

/// A value that stands in for a required one, so that the rest can be read.
fn placeholder(schema: &Json) -> Value {
    if let Some(choices) = choices(schema) {
        return choices[0].into();
    }
    match type_of(schema) {
        "object" => {
            let schema = schema["oneOf"].get(0).unwrap_or(schema);
            let entry = |key: &str| (key.to_owned(), placeholder(&schema["properties"][key]));
            Value::Table(required(schema).map(entry).collect())
        }
        "array" => Value::Array(Vec::new()),
        "integer" => schema["minimum"].as_i64().unwrap_or(1).into(),
        "number" => schema["minimum"].as_f64().unwrap_or(1.0).into(),
        "boolean" => false.into(),
        _ => "placeholder".into(),
    }
}
