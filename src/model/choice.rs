//! Choice tasks: which of some continuations a model finds most likely after a prompt.
//!
//! Scored as the LM Evaluation Harness does (Gao et al., `loglikelihood` requests of multiple choice): the prompt and
//! the continuation are tokenized together, what follows the prompt's own tokens is the continuation, and its
//! logarithmic likelihoods are summed.

use super::eval::{Scored, run_layers};
use super::tokenizer::{TextError, Tokenizer};
use super::trunk::TokensError;
use crate::measure::share::ShareBounds;
use csv::{ReaderBuilder, StringRecord};
use serde::Serialize;
use std::path::{Path, PathBuf};

/// Examples of a task, at most.
pub const EXAMPLES_MAX: usize = 1_000_000;
/// Problems of a file that are listed.
const PROBLEMS_MAX: usize = 20;
/// The column that says which choice is right.
const LABEL: &str = "label";

/// How a row becomes a prompt, and what may follow it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Template {
    /// Text in which `{column}` stands for that column of the row.
    pub prompt: String,
    /// What may follow, in the order of the labels 0, 1, ….
    pub choices: Vec<String>,
}

impl Default for Template {
    /// SST-2 of GLUE, as the LM Evaluation Harness asks it.
    fn default() -> Self {
        Self {
            prompt: "{sentence}\nQuestion: Is this sentence positive or negative?\nAnswer:".into(),
            choices: vec![" negative".into(), " positive".into()],
        }
    }
}

/// A prompt, and which choice is right.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Example {
    /// Its line in the file, from 1.
    pub line: u64,
    /// The filled template.
    pub prompt: String,
    /// The right choice.
    pub label: usize,
}

/// Why a task cannot be scored.
#[derive(Debug, thiserror::Error)]
pub enum ChoiceError {
    /// The file cannot be read as a table.
    #[error("{}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: csv::Error,
    },
    /// Template or rows are wrong: one line a problem.
    #[error("{}:\n{}", path.display(), problems.join("\n"))]
    Rows {
        /// The file.
        path: PathBuf,
        /// What is wrong, with place and remedy.
        problems: Vec<String>,
    },
    /// The tokenizer refuses a text.
    #[error("line {line}: {source}")]
    Text {
        /// Of the file.
        line: u64,
        /// Why.
        source: TextError,
    },
    /// A choice has no token of its own after the prompt, or a prompt none at all.
    #[error("line {line}: choice {choice} cannot be scored: prompt and choice need a token each")]
    NoToken {
        /// Of the file.
        line: u64,
        /// The choice.
        choice: usize,
    },
    /// A choice is longer than the model reads.
    #[error("line {line}: choice {choice} has {tokens} tokens; the model reads {positions}")]
    TooLong {
        /// Of the file.
        line: u64,
        /// The choice.
        choice: usize,
        /// Of the choice.
        tokens: usize,
        /// Of the model.
        positions: usize,
    },
    /// The tokens do not fit the model.
    #[error(transparent)]
    Tokens(#[from] TokensError),
}

/// Reads a table of tab-separated columns with a header, as GLUE has them: quotes mean nothing, `label` counts the
/// choices from 0.
///
/// # Errors
/// Every row and column that does not fit the template, up to 20.
pub fn read_examples(path: &Path, template: &Template) -> Result<Vec<Example>, ChoiceError> {
    let failed = |source| ChoiceError::Read { path: path.into(), source };
    let mut reader = ReaderBuilder::new();
    let mut reader = reader.delimiter(b'\t').quoting(false).from_path(path).map_err(failed)?;
    let header = reader.headers().map_err(failed)?.clone();
    let rows = |problems| ChoiceError::Rows { path: path.into(), problems };
    let column = |name: &str| header.iter().position(|column| column.trim() == name);
    let mut problems = Vec::new();
    let (parts, used) = parts(&template.prompt);
    let columns = header.iter().collect::<Vec<_>>().join(", ");
    for name in used.iter().map(String::as_str).chain([LABEL]) {
        if column(name).is_none() {
            problems.push(format!(
                "there is no column `{name}`; the header has: {columns}\nhelp: name a column of the file in \
                 --prompt, and have the right choice's number, from 0, in `{LABEL}`"
            ));
        }
    }
    if template.choices.len() < 2 {
        problems.push("one choice is none\nhelp: give --choice twice or more".to_owned());
    }
    let Some(label) = column(LABEL).filter(|_| problems.is_empty()) else {
        return Err(rows(problems));
    };
    let mut examples = Vec::new();
    for record in reader.records().take(EXAMPLES_MAX) {
        let record: StringRecord = record.map_err(failed)?;
        let line = record.position().map_or(0, csv::Position::line);
        let text = record[label].trim();
        match text.parse::<usize>().ok().filter(|label| *label < template.choices.len()) {
            Some(label) => {
                let fill = |part: &Part| match part {
                    Part::Text(text) => text.clone(),
                    Part::Column(name) => record[column(name).expect("it was found")].to_owned(),
                };
                let prompt = parts.iter().map(fill).collect();
                examples.push(Example { line, prompt, label });
            }
            None if problems.len() < PROBLEMS_MAX => problems.push(format!(
                "line {line}: label `{text}` is none of the {} choices, which are counted from 0",
                template.choices.len()
            )),
            None => {}
        }
    }
    if examples.is_empty() && problems.is_empty() {
        problems.push("there is no row after the header".to_owned());
    }
    if problems.is_empty() { Ok(examples) } else { Err(rows(problems)) }
}

enum Part {
    Text(String),
    Column(String),
}

/// A template's parts, and the columns it names. A brace that closes nothing is text.
fn parts(prompt: &str) -> (Vec<Part>, Vec<String>) {
    let (mut parts, mut used) = (Vec::new(), Vec::new());
    let mut rest = prompt;
    while let Some((before, name, after)) = rest
        .split_once('{')
        .and_then(|(before, of)| of.split_once('}').map(|(name, after)| (before, name, after)))
    {
        parts.push(Part::Text(before.to_owned()));
        parts.push(Part::Column(name.to_owned()));
        used.push(name.to_owned());
        rest = after;
    }
    parts.push(Part::Text(rest.to_owned()));
    (parts, used)
}

/// What a model chose. Shares are 0 to 1.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ChoiceScores {
    /// Examples.
    pub examples: u64,
    /// Share of examples whose right choice is the most likely one.
    pub accuracy: f64,
    /// Its exact 95 % interval (Clopper and Pearson 1934).
    pub accuracy_interval_95: [f64; 2],
    /// The same with each likelihood's logarithm divided by the choice's bytes, for choices of unlike length.
    pub accuracy_by_byte: f64,
    /// Share of the most frequent label: what is reached without reading the prompts. The control.
    pub majority_share: f64,
    /// Share of each choice among the answers: one that is 1 says that prompts are not minded.
    pub chosen: Vec<f64>,
    /// Mean of what the right choice has over the best of the others, nats; below 0 it is mostly less likely.
    pub margin_mean: f64,
    /// Prompts whose beginning was left out because the model reads fewer tokens.
    pub truncated: u64,
    /// Of each example, each choice's logarithmic likelihood, nats.
    #[serde(skip)]
    pub log_likelihoods: Vec<Vec<f64>>,
}

/// Scores a model on a task: examples in their order, sums in f64, so that figures do not depend on the number of
/// threads.
///
/// # Errors
/// A text without tokens, one that the model cannot read, ids outside its vocabulary.
///
/// # Panics
/// When there is no example.
pub fn score_choices(
    mut model: Scored<'_>,
    tokenizer: &Tokenizer,
    template: &Template,
    examples: &[Example],
    mut progress: impl FnMut(usize),
) -> Result<ChoiceScores, ChoiceError> {
    assert!(!examples.is_empty(), "a task has an example");
    let choices = template.choices.len();
    let mut chosen = vec![0_u64; choices];
    let (mut labels, mut right, mut right_by_byte) = (vec![0_u64; choices], 0_u64, 0_u64);
    let (mut truncated, mut margins) = (0, 0.0);
    let mut all = Vec::with_capacity(examples.len());
    for (done, example) in examples.iter().enumerate() {
        let mut likelihoods = Vec::with_capacity(choices);
        let mut was_cut = false;
        for choice in 0..choices {
            let asked = Asked::of(tokenizer, template, example, choice)?;
            let (likelihood, cut) = asked.log_likelihood(&mut model)?;
            was_cut |= cut;
            likelihoods.push(likelihood);
        }
        let by_byte = likelihoods.iter().zip(&template.choices);
        let by_byte: Vec<f64> = by_byte.map(|(sum, choice)| sum / choice.len() as f64).collect();
        let best = largest(&likelihoods);
        chosen[best] += 1;
        labels[example.label] += 1;
        right += u64::from(best == example.label);
        right_by_byte += u64::from(largest(&by_byte) == example.label);
        truncated += u64::from(was_cut);
        let others = likelihoods.iter().enumerate().filter(|(at, _)| *at != example.label);
        let best_other = others.map(|(_, of)| *of).fold(f64::NEG_INFINITY, f64::max);
        margins += likelihoods[example.label] - best_other;
        all.push(likelihoods);
        progress(done + 1);
    }
    let count = examples.len() as u64;
    let share = |of: u64| of as f64 / count as f64;
    let ShareBounds { lower, upper } = ShareBounds::of(right, count, 0.025);
    Ok(ChoiceScores {
        examples: count,
        accuracy: share(right),
        accuracy_interval_95: [lower, upper],
        accuracy_by_byte: share(right_by_byte),
        majority_share: share(labels.into_iter().max().expect("there are choices")),
        chosen: chosen.into_iter().map(share).collect(),
        margin_mean: margins / count as f64,
        truncated,
        log_likelihoods: all,
    })
}

/// The first of the largest.
fn largest(values: &[f64]) -> usize {
    let mut best = 0;
    for (at, value) in values.iter().enumerate() {
        if *value > values[best] {
            best = at;
        }
    }
    best
}

/// A prompt with a choice, as tokens.
struct Asked {
    line: u64,
    choice: usize,
    ids: Vec<u32>,
    /// Tokens of the choice, the last ones.
    answer: usize,
}

impl Asked {
    fn of(
        tokenizer: &Tokenizer,
        template: &Template,
        example: &Example,
        choice: usize,
    ) -> Result<Self, ChoiceError> {
        let Example { line, prompt, .. } = example;
        // A blank at the end of the prompt belongs to the first word after it.
        let before = prompt.trim_end();
        let whole = format!("{prompt}{}", template.choices[choice]);
        let encode = |text: &str| {
            let document = tokenizer.encode_document(text);
            document.map_err(|source| ChoiceError::Text { line: *line, source })
        };
        let ids = encode(&whole)?.ids;
        let prompt_tokens = encode(before)?.ids.len();
        if prompt_tokens == 0 || prompt_tokens >= ids.len() {
            return Err(ChoiceError::NoToken { line: *line, choice });
        }
        Ok(Self { line: *line, choice, answer: ids.len() - prompt_tokens, ids })
    }

    /// `Σ ln p` of the choice's tokens, nats, and whether the prompt was cut.
    fn log_likelihood(&self, model: &mut Scored<'_>) -> Result<(f64, bool), ChoiceError> {
        let Self { line, choice, ids, answer } = self;
        let positions = model.trunk.config.max_positions;
        if *answer > positions {
            let (line, choice, tokens) = (*line, *choice, *answer);
            return Err(ChoiceError::TooLong { line, choice, tokens, positions });
        }
        // The last token is predicted and not read.
        let from = (ids.len() - 1).saturating_sub(positions);
        let (inputs, targets) = (&ids[from..ids.len() - 1], &ids[from + 1..]);
        let pass = run_layers(model, inputs, inputs.len(), |_, _| {})?;
        let losses = pass.losses(targets);
        let of_choice = &losses[losses.len() - answer..];
        Ok((-of_choice.iter().sum::<f64>(), from > 0))
    }
}
