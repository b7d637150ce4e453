//! What is wrong with a scenario, where, and what to do about it.

use std::collections::BTreeMap;
use std::fmt;
use std::io::IsTerminal;
use std::ops::Range;
use std::sync::Arc;

use miette::{GraphicalReportHandler, GraphicalTheme, LabeledSpan, NamedSource};

/// One problem. Lines and columns count from 1; columns count characters.
#[derive(Clone, Debug)]
pub struct Problem {
    /// Line in the scenario file; none for a `--set` and for a file that cannot be read.
    pub line: Option<usize>,
    /// Column in the scenario file, as for `line`.
    pub column: Option<usize>,
    /// Dotted key, such as `nodes.count`; empty where no key is concerned.
    pub key: String,
    /// What is wrong.
    pub message: String,
    /// What to do.
    pub help: String,
    text: NamedSource<Arc<str>>,
    span: Option<Range<usize>>,
}

/// Every problem of a scenario, in the order of the file, those of `--set` last. Never empty.
#[derive(Clone, Debug)]
pub struct Problems(pub Vec<Problem>);

impl Problems {
    /// The text for standard error: drawn snippets on a terminal (in colour unless `NO_COLOR` is
    /// set), else the plain lines of `Display`.
    #[must_use]
    pub fn render(&self) -> String {
        if !std::io::stderr().is_terminal() {
            return self.to_string();
        }
        let colour = std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        self.draw(if colour {
            GraphicalTheme::unicode()
        } else {
            GraphicalTheme::unicode_nocolor()
        })
    }

    /// Snippets in a theme of `miette`.
    #[must_use]
    pub fn draw(&self, theme: GraphicalTheme) -> String {
        let handler = GraphicalReportHandler::new_themed(theme);
        let mut text = String::new();
        for (index, problem) in self.0.iter().enumerate() {
            text.push_str(if index == 0 { "" } else { "\n" });
            handler.render_report(&mut text, problem).expect("writing to a string cannot fail");
        }
        text
    }

    /// A list of `{line, column, key, message, help, source}`; `source` is the file or the `--set`.
    #[must_use]
    pub fn to_json(&self) -> serde_json::Value {
        let entry = |problem: &Problem| {
            serde_json::json!({
                "line": problem.line,
                "column": problem.column,
                "key": problem.key,
                "message": problem.message,
                "help": problem.help,
                "source": problem.text.name(),
            })
        };
        self.0.iter().map(entry).collect()
    }
}

impl std::error::Error for Problems {}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.0.iter().enumerate() {
            let Problem { message, help, .. } = problem;
            f.write_str(if index == 0 { "" } else { "\n" })?;
            f.write_str(problem.text.name())?;
            if let (Some(line), Some(column), Some(span)) =
                (problem.line, problem.column, &problem.span)
            {
                let text = problem.text.inner();
                let source_line = text.lines().nth(line - 1).unwrap_or_default();
                let before: String = source_line.chars().take(column - 1).map(blank).collect();
                let marked = text[span.clone()].lines().next().unwrap_or_default().chars().count();
                writeln!(f, ":{line}:{column}: {message}")?;
                writeln!(f, "{line:>5} | {source_line}")?;
                writeln!(f, "      | {before}{}", "^".repeat(marked.max(1)))?;
            } else {
                writeln!(f, ": {message}")?;
            }
            write!(f, "  help: {help}")?;
        }
        Ok(())
    }
}

/// Keeps tabs, so that the mark below a line stays under its text.
fn blank(c: char) -> char {
    if c == '\t' { '\t' } else { ' ' }
}

impl std::error::Error for Problem {}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl miette::Diagnostic for Problem {
    fn help<'a>(&'a self) -> Option<Box<dyn fmt::Display + 'a>> {
        Some(Box::new(&self.help))
    }

    fn source_code(&self) -> Option<&dyn miette::SourceCode> {
        self.span.is_some().then_some(&self.text as &dyn miette::SourceCode)
    }

    fn labels(&self) -> Option<Box<dyn Iterator<Item = LabeledSpan> + '_>> {
        let span = self.span.clone()?;
        Some(Box::new(std::iter::once(LabeledSpan::new_with_span(None, span))))
    }
}

/// The part of a key that a problem points at.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum At {
    Key,
    Value,
}

/// Where the keys of a scenario were written: in the file, or in a `--set`.
pub(super) struct Origins {
    /// The file's name as given.
    file: String,
    /// The file's text.
    text: Arc<str>,
    /// Spans of key and value by dotted key; elements of lists have keys such as `source.text[0]`.
    pub(super) spans: BTreeMap<String, (Range<usize>, Range<usize>)>,
    /// Dotted key and text of each `--set`, in order.
    pub(super) sets: Vec<(String, String)>,
}

impl Origins {
    pub(super) fn new(file: &str, text: &str) -> Self {
        let text = text.trim_start_matches('\u{feff}').into();
        Self { file: file.into(), text, spans: BTreeMap::new(), sets: Vec::new() }
    }

    pub(super) fn text(&self) -> Arc<str> {
        Arc::clone(&self.text)
    }

    /// Whether a key stands in the file or in a `--set`.
    pub(super) fn is_written(&self, key: &str) -> bool {
        self.spans.contains_key(key) || self.sets.iter().any(|(set, _)| within(key, set))
    }

    /// A problem with a key: shown where the key was written, or where its section was.
    pub(super) fn problem(&self, key: &str, at: At, message: String, help: String) -> Problem {
        let mut place = key;
        let last_set = |matches: &dyn Fn(&str) -> bool| {
            self.sets.iter().rev().find(|(set, _)| matches(set)).map(|(_, text)| text)
        };
        loop {
            let set = last_set(&|set| within(place, set));
            if let Some(text) = set {
                return self.of_set(text, at, key, message, help);
            }
            if let Some((key_span, value_span)) = self.spans.get(place) {
                let span = if at == At::Value && place == key { value_span } else { key_span };
                return self.at_span(span.clone(), key, message, help);
            }
            if let Some(text) = last_set(&|set| within(set, place)).filter(|_| !place.is_empty()) {
                return self.of_set(text, at, key, message, help);
            }
            match place.rfind(['.', '[']) {
                Some(end) => place = &place[..end],
                None if place.is_empty() => return self.at_span(0..0, key, message, help),
                None => place = "",
            }
        }
    }

    /// A problem with a span of the file.
    pub(super) fn at_span(
        &self,
        span: Range<usize>,
        key: &str,
        message: String,
        help: String,
    ) -> Problem {
        // The parser may point past the last character.
        let (mut start, mut end) = (span.start.min(self.text.len()), span.end.min(self.text.len()));
        while !self.text.is_char_boundary(start) {
            start -= 1;
        }
        while !self.text.is_char_boundary(end) {
            end += 1;
        }
        let end = end.max(start);
        let before = &self.text[..start];
        let line_start = before.rfind('\n').map_or(0, |at| at + 1);
        Problem {
            line: Some(before.matches('\n').count() + 1),
            column: Some(before[line_start..].chars().count() + 1),
            key: key.into(),
            message,
            help,
            text: NamedSource::new(&self.file, self.text()),
            span: Some(start..end),
        }
    }

    /// A problem with the file as a whole.
    pub(super) fn of_file(&self, message: String, help: String) -> Problem {
        let text = NamedSource::new(&self.file, self.text());
        let key = String::new();
        Problem { line: None, column: None, key, message, help, text, span: None }
    }

    /// A problem with a `--set`, given by its text.
    pub(super) fn of_set(
        &self,
        set: &str,
        at: At,
        key: &str,
        message: String,
        help: String,
    ) -> Problem {
        let equals = set.find('=').unwrap_or(set.len());
        let span = match at {
            At::Value if equals < set.len() => equals + 1..set.len(),
            _ => 0..equals,
        };
        let text = NamedSource::new(format!("--set {set}"), Arc::from(set));
        Problem { line: None, column: None, key: key.into(), message, help, text, span: Some(span) }
    }
}

/// Whether `key` is `section` itself or stands below it.
pub(super) fn within(key: &str, section: &str) -> bool {
    key.strip_prefix(section).is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
}
