//! `nashflock eval --task`: choices after prompts, beside another library's likelihoods.

use std::fs;
use std::path::{Path, PathBuf};

use agents::expert::BitWidth;
use nashflock::model::checkpoint::Checkpoint;
use nashflock::model::choice::{Template, read_examples, score_choices};
use nashflock::model::eval::Scored;
use nashflock::model::experts::LocalExperts;
use nashflock::model::tokenizer::Tokenizer;

use crate::binary::{Folder, SYNTHETIC};

const MODEL: &str = "scenarios/models/books-dense";

fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

fn doors() -> Template {
    Template { prompt: "{sentence}".into(), choices: vec![" door".into(), " went".into()] }
}

#[test]
fn likelihoods_of_choices_are_those_of_another_library_and_all_are_right() {
    let oracle = fs::read(repository("tests/oracles/choice-task.json")).expect("committed");
    let oracle: Vec<Vec<f64>> = serde_json::from_slice(&oracle).expect("rows of sums");
    let file = repository("tests/oracles/choice-task.tsv");
    let examples = read_examples(&file, &doors()).expect("a table");
    let checkpoint = Checkpoint::open(&repository(MODEL)).expect("a checkpoint");
    let experts = LocalExperts::load(&checkpoint, BitWidth::Full, 32).expect("it loads");
    let trunk = checkpoint.trunk().expect("it loads");
    let tokenizer = Tokenizer::open(&repository(MODEL)).expect("a tokenizer");
    let mut moe = |layer: usize, x: &[f32], logits: &[f32]| experts.forward(layer, x, logits);
    let scored = Scored { trunk: &trunk, moe: &mut moe };
    let scores = score_choices(scored, &tokenizer, &doors(), &examples, |_| {}).expect("scored");
    assert_eq!(scores.log_likelihoods.len(), oracle.len());
    for (ours, theirs) in scores.log_likelihoods.iter().flatten().zip(oracle.iter().flatten()) {
        assert!((ours - theirs).abs() < 2e-3, "{ours} and {theirs}");
    }
    // Labels were set by hand: a door after an article, a verb after a pronoun.
    assert_eq!((scores.examples, scores.accuracy), (8, 1.0));
    // (1/40)^(1/8): the exact bound where none of eight fails.
    let [low, high] = scores.accuracy_interval_95;
    assert!((low - 0.025_f64.powf(0.125)).abs() < 1e-9 && high >= 1.0, "{low} to {high}");
    assert_eq!((scores.majority_share, scores.truncated), (0.5, 0));
    assert!(scores.margin_mean > 1.0, "{}", scores.margin_mean);
}

#[test]
fn a_wrong_label_costs_what_it_is_worth_and_quotes_are_text() {
    let folder = Folder::with(SYNTHETIC);
    let text = fs::read_to_string(repository("tests/oracles/choice-task.tsv")).expect("committed");
    let text = text.replace("knock at the\t0", "knock at the\t1");
    fs::write(folder.path("task.tsv"), text).expect("writable");
    let model = repository(MODEL);
    let mut args = vec!["eval", model.to_str().expect("plain"), "--task", "task.tsv", "--json"];
    args.extend(["--prompt", "{sentence}", "--choice", " door", "--choice", " went"]);
    let ended = folder.nashflock(&args);
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    let said: serde_json::Value = serde_json::from_str(&ended.stdout).expect("one JSON object");
    assert_eq!(said["examples"], 8);
    // "There was a knock at the" is followed by " went" according to this file.
    assert_eq!((&said["accuracy"], &said["majority_share"]), (&0.875.into(), &0.625.into()));
    assert_eq!(said["chosen"], serde_json::json!([0.5, 0.5]));
}

#[test]
fn everything_that_is_wrong_with_a_task_is_said_at_once() {
    let folder = Folder::with(SYNTHETIC);
    let model = repository(MODEL);
    let refused = |text: &str, more: &[&str], words: &[&str]| {
        fs::write(folder.path("task.tsv"), text).expect("writable");
        let args = ["eval", model.to_str().expect("plain"), "--task", "task.tsv"];
        let ended = folder.nashflock(&[&args, more].concat());
        assert_eq!(ended.code, Some(2), "{}", ended.stderr);
        words.iter().for_each(|said| assert!(ended.stderr.contains(said), "{}", ended.stderr));
    };
    refused(
        "text\tgold\nx\t1\n",
        &[],
        &["no column `sentence`", "no column `label`", "text, gold"],
    );
    let labels = "sentence\tlabel\na\t2\nb\t1\nc\tx\n";
    refused(labels, &[], &["line 2: label `2` is none of the 2", "line 4: label `x`"]);
    refused("sentence\tlabel\n", &[], &["there is no row after the header"]);
    let blank = ["--prompt", "{sentence}"];
    refused("sentence\tlabel\n\t1\n", &blank, &["line 2: choice 0 cannot be scored"]);
    refused("sentence\tlabel\na\t0\n", &["--choice", " yes"], &["give --choice twice or more"]);
}
