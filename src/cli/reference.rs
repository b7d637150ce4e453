//! `nashflock reference`, `completions` and `man`: what the code itself knows of keys, commands and results.

use super::{Cli, Failure, Outcome, print};
use crate::results::{Column, ObservedRow, RequestRow, RoundRow, Row, Snapshot, Summary};
use crate::scenario;
use clap::{Args, CommandFactory as _, ValueEnum};
use clap_complete::Shell;
use schemars::JsonSchema;
use schemars::generate::SchemaSettings;
use serde_json::Value;
use std::fmt::Write as _;
use std::fs;
use std::path::PathBuf;

#[derive(Args)]
pub(super) struct ReferenceArgs {
    /// Of what
    #[arg(value_enum)]
    of: Reference,
}

#[derive(Clone, Copy, ValueEnum)]
enum Reference {
    /// Every key of a scenario file
    Scenario,
    /// Every command and its flags
    Commands,
    /// Every column of the tables and every key of summary.json
    Results,
}

#[derive(Args)]
pub(super) struct CompletionsArgs {
    /// The shell
    #[arg(value_enum)]
    shell: Shell,
}

#[derive(Args)]
pub(super) struct ManArgs {
    /// Folder for the pages, `nashflock.1` and one a command
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
}

pub(super) fn reference(args: &ReferenceArgs) -> Outcome {
    let page = match args.of {
        Reference::Scenario => of_scenarios(),
        Reference::Commands => of_commands(),
        Reference::Results => of_results(),
    };
    print(page.trim_end())
}

pub(super) fn completions(args: &CompletionsArgs) -> Outcome {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "nashflock", &mut script);
    print(String::from_utf8_lossy(&script).trim_end())
}

pub(super) fn man(args: &ManArgs) -> Outcome {
    let failed = |error: std::io::Error| {
        Failure::Dependency(format!("cannot write to {}: {error}", args.out.display()))
    };
    fs::create_dir_all(&args.out).map_err(failed)?;
    clap_mangen::generate_to(Cli::command(), &args.out).map_err(failed)?;
    print(&format!("manual pages in {}", args.out.display()))
}

fn of_scenarios() -> String {
    let mut page = "# Scenario keys\n\n\
        Printed by `nashflock reference scenario`. A scenario is a TOML file; `--set section.key=value` overrides a key, and\n\
        `nashflock check FILE` says everything that is wrong with one. Keys without a default have to be given.\n"
        .to_owned();
    let schema = scenario::schema();
    let (sections, plain): (Vec<_>, Vec<_>) =
        properties(&schema).into_iter().partition(|(_, of)| is_section(of));
    page += "\n## At the top\n";
    table(&mut page, &plain, "");
    for (name, of) in sections {
        section(&mut page, &name, of);
    }
    page
}

/// A section's own keys, then those of the sections within.
fn section(page: &mut String, name: &str, of: &Value) {
    let _ = write!(page, "\n## `[{name}]`\n\n{}\n", says(of));
    for variant in variants(of) {
        let kind = &variant["properties"]["kind"]["const"];
        let _ = write!(page, "\n`kind = {kind}`: {}\n", says(variant));
        let keys: Vec<_> =
            properties(variant).into_iter().filter(|(key, _)| key != "kind").collect();
        table(page, &keys, "");
    }
    let (within, keys): (Vec<_>, Vec<_>) =
        properties(of).into_iter().partition(|(_, of)| is_section(of));
    table(page, &keys, "");
    for (key, of) in within {
        section(page, &format!("{name}.{key}"), of);
    }
}

fn of_commands() -> String {
    let mut page =
        "# Commands\n\nPrinted by `nashflock reference commands`; `nashflock help COMMAND` says the same. Exit codes: 0 done,\n\
         2 bad input (nothing was started), 3 a stated goal was missed or a run does not verify, 4 a node or dependency failed for\n\
         good, 130 interrupted, 1 a bug.\n"
            .to_owned();
    let mut all = Cli::command().term_width(100).max_term_width(100);
    all.build();
    for command in all.get_subcommands_mut().filter(|command| command.get_name() != "help") {
        let help = command.clone().term_width(100).render_long_help();
        let _ = write!(page, "\n## `{}`\n\n```text\n{help}```\n", command.get_name());
    }
    page
}

fn of_results() -> String {
    let mut page = format!(
        "# Results\n\nPrinted by `nashflock reference results`. Version {} of the layout: readers refuse newer ones, and find columns by\n\
         name. Names end in the unit; what has none is a count or a share. [Reading results](reading-results.md) shows how.\n",
        crate::results::SCHEMA_VERSION
    );
    columns::<RoundRow>(&mut page);
    columns::<RequestRow>(&mut page);
    columns::<ObservedRow>(&mut page);
    page += "\n## `summary.json`\n\nA figure that was not measured is null or absent, and `null_reasons` says why.\n";
    keys_of::<Summary>(&mut page);
    page += "\n## Snapshots\n\nWhat `run --serve` tells while a run goes, and what `--live` draws; see [watching](watching.md).\n";
    keys_of::<Snapshot>(&mut page);
    page
}

/// Every key of a JSON object.
fn keys_of<T: JsonSchema>(page: &mut String) {
    let settings = SchemaSettings::draft2020_12().with(|of| of.inline_subschemas = true);
    let schema = settings.into_generator().into_root_schema_for::<T>().to_value();
    let mut keys = Vec::new();
    flatten(&mut keys, "", &schema);
    *page += "\n| key | what |\n|---|---|\n";
    for (key, says) in keys {
        let _ = writeln!(page, "| `{key}` | {says} |");
    }
}

fn columns<R: Row>(page: &mut String) {
    let _ = write!(page, "\n## `{}.parquet`\n\n| column | type | what |\n|---|---|---|\n", R::NAME);
    for Column { name, kind, says } in R::columns() {
        let _ = writeln!(page, "| `{name}` | {kind} | {} |", cell(&says));
    }
}

/// Every key below a schema by its path; lists are written as `key[]`.
fn flatten(keys: &mut Vec<(String, String)>, path: &str, of: &Value) {
    for (key, of) in properties(of) {
        let path = if path.is_empty() { key } else { format!("{path}.{key}") };
        keys.push((path.clone(), says(of)));
        for of in variants(of).chain([of]) {
            flatten(keys, &path, of);
            flatten(keys, &format!("{path}[]"), &of["items"]);
        }
    }
}

fn table(page: &mut String, keys: &[(String, &Value)], prefix: &str) {
    if keys.is_empty() {
        return;
    }
    *page += "\n| key | type | what |\n|---|---|---|\n";
    for (key, of) in keys {
        let _ = writeln!(page, "| `{prefix}{key}` | {} | {} |", kind(of), says(of));
        for variant in variants(of).filter(|of| of["properties"].is_object()) {
            let kind = &variant["properties"]["kind"]["const"];
            let own = properties(variant).into_iter().filter(|(key, _)| key != "kind");
            let own: Vec<String> = own.map(|(key, of)| format!("`{key}`: {}", says(of))).collect();
            let kind = if kind.is_null() { "…".to_owned() } else { format!("kind = {kind}") };
            let _ = writeln!(page, "| | `{{ {kind} }}` | {} {} |", says(variant), own.join(" "));
        }
        for (key, of) in properties(&of["items"]) {
            let _ = writeln!(page, "| | its `{key}`: {} | {} |", kind(of), says(of));
        }
    }
}

fn properties(of: &Value) -> Vec<(String, &Value)> {
    let all = of["properties"].as_object().into_iter().flatten();
    all.map(|(key, of)| (key.clone(), of)).collect()
}

fn variants(of: &Value) -> impl Iterator<Item = &Value> {
    ["oneOf", "anyOf"].into_iter().filter_map(|key| of[key].as_array()).flatten()
}

/// Whether a key is a table of its own: an object, or one of several kinds of objects that must be chosen.
fn is_section(of: &Value) -> bool {
    of["properties"].is_object()
        || (of["default"].is_null() && variants(of).any(|of| of["properties"].is_object()))
}

/// The type of a value in a word or two.
fn kind(of: &Value) -> String {
    let names: Vec<String> = variants(of)
        .chain([of])
        .filter_map(|of| of.get("const").or(of.get("enum")))
        .flat_map(|of| of.as_array().cloned().unwrap_or_else(|| vec![of.clone()]))
        .map(|name| format!("`{name}`"))
        .collect();
    if !names.is_empty() {
        return names.join(", ");
    }
    let own = of["type"].as_str().map(str::to_owned);
    let own = own.or_else(|| {
        let types = of["type"].as_array()?.iter().filter_map(Value::as_str);
        Some(types.filter(|name| *name != "null").collect::<Vec<_>>().join(" or "))
    });
    match own.as_deref() {
        Some("array") => format!("list of {}", kind(&of["items"])),
        Some(name) => name.to_owned(),
        None => "value".to_owned(),
    }
}

fn says(of: &Value) -> String {
    cell(of["description"].as_str().unwrap_or_default())
}

/// A text within a cell of a table.
fn cell(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ").replace('|', "\\|")
}
