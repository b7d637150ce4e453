//! Answers decoded token by token: the same bits as without the cache, the same state on any machine.

use agents::continuous::{RequestLength, StepLimits, Steps};
use agents::expert::BitWidth;
use agents::ids::LayerId;
use agents::transformer::argmax;
use nashflock::model::checkpoint::Checkpoint;
use nashflock::model::experts::LocalExperts;
use nashflock::model::trunk::{Pass, Trunk};
use nashflock::results::{RequestRow, RunDir};
use nashflock::source::{CheckpointSource, Generate as _, GeneratingSource, ScoreSource as _};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::binary::{Folder, SYNTHETIC};

fn root(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// Checkpoints of every family, those with latent attention too, and a trained one.
const CHECKPOINTS: [(&str, u32); 8] = [
    ("tests/oracles/tiny/llama", 12),
    ("tests/oracles/tiny/olmoe", 12),
    ("tests/oracles/tiny/mixtral", 12),
    ("tests/oracles/tiny/qwen2_moe", 12),
    ("tests/oracles/tiny/qwen3_moe", 12),
    ("tests/oracles/tiny/deepseek_v2", 12),
    ("tests/oracles/tiny/deepseek_v3", 12),
    ("scenarios/models/books-moe-64e8k", 75),
];

struct Model {
    trunk: Trunk,
    experts: LocalExperts,
}

impl Model {
    fn open(path: &str) -> (Checkpoint, Self) {
        let checkpoint = Checkpoint::open(&root(path)).unwrap_or_else(|error| panic!("{error}"));
        let trunk = checkpoint.trunk().expect("finite weights");
        let experts = LocalExperts::load(&checkpoint, BitWidth::Full, 32).expect("finite weights");
        (checkpoint, Self { trunk, experts })
    }

    fn run(&self, pass: &mut Pass<'_>) {
        for layer in 0..self.trunk.layers.len() {
            let Some(input) = pass.up_to_router(layer) else { continue };
            let output = self.experts.forward(layer, input.hidden, input.router_logits).output;
            pass.add_moe(layer, &output);
        }
    }

    fn whole(&self, ids: &[u32]) -> Vec<f32> {
        let mut pass = self.trunk.begin(ids, ids.len()).expect("ids of this model");
        self.run(&mut pass);
        pass.logits()
    }

    /// Logits of a window in pieces, beside another sequence that grows by one token each time.
    fn in_pieces(&self, ids: &[u32], pieces: &[usize]) -> Vec<f32> {
        let rotary = Arc::new(self.trunk.rotary(ids.len()));
        let mut caches = vec![self.trunk.empty_cache(), self.trunk.empty_cache()];
        let (mut logits, mut at) = (Vec::new(), 0);
        for rows in pieces {
            let beside = ids[(7 * at) % ids.len()];
            let next = [&[beside][..], &ids[at..at + rows]].concat();
            let mut pass = self
                .trunk
                .begin_next(&next, &rotary, caches, &[1, *rows])
                .expect("ids of this model");
            self.run(&mut pass);
            logits.extend(pass.logits_of(&(1..=*rows).collect::<Vec<_>>()));
            caches = pass.into_caches();
            at += rows;
        }
        assert!(caches[1].positions() == ids.len() && caches[1].bytes() > 0);
        logits
    }
}

#[test]
fn logits_with_the_cache_are_those_of_the_whole_window_bit_by_bit() {
    for (path, window) in CHECKPOINTS {
        let (_, model) = Model::open(path);
        let vocab = model.trunk.config.vocab;
        let vocab = u32::try_from(vocab).expect("a few symbols");
        let ids: Vec<u32> = (0..window).map(|i| (i * i + 3 * i) % vocab).collect();
        let window = ids.len();
        let whole = model.whole(&ids);
        let prompt = window * 2 / 3;
        let token_by_token = vec![1; window];
        let prompt_first = [vec![prompt], vec![1; window - prompt]].concat();
        let chunks = [vec![5; window / 5], vec![window % 5]].concat();
        for pieces in [token_by_token, prompt_first, chunks] {
            let pieces: Vec<usize> = pieces.into_iter().filter(|rows| *rows > 0).collect();
            let got = model.in_pieces(&ids, &pieces);
            let differ = got.iter().zip(&whole).filter(|(a, b)| a.to_bits() != b.to_bits()).count();
            assert!(differ == 0 && got.len() == whole.len(), "{path} {pieces:?}: {differ} differ");
        }
    }
}

#[test]
fn answers_are_those_of_a_model_that_reads_everything_anew_for_each_token() {
    let (checkpoint, model) = Model::open("scenarios/models/books-moe-8e2k");
    let ids: Vec<u32> = (0..400_u32).map(|i| (i * 37 + i * i % 11) % 1000).collect();
    let lengths = [(9, 6), (40, 3), (1, 8), (20, 1)]
        .map(|(prompt, generated)| RequestLength { prompt, generated });
    let base = CheckpointSource::new(&checkpoint, &model.trunk, &ids, 16).expect("they fit");
    let mut source =
        GeneratingSource::new(base, &model.trunk, &ids, (&lengths, 64)).expect("they fit");
    let limits = StepLimits { tokens_max: 12, running_max: 3, step_ns: 10, token_ns: 1 };
    let mut answers = vec![Vec::new(); lengths.len()];
    for step in Steps::new(&[0, 5, 20, 400], &lengths, limits) {
        source.begin_step(&step.parts);
        for layer in 0..source.shape().layers {
            let input = source.perceive(LayerId::from_index(layer));
            let output = model.experts.forward(layer, &input.hidden, &input.logits).output;
            source.absorb(LayerId::from_index(layer), &output);
        }
        let tokens = source.end_step();
        let emitting = step.parts.iter().filter(|part| part.emits);
        assert_eq!(tokens.len(), emitting.clone().count());
        for (part, token) in emitting.zip(tokens) {
            answers[part.request.index()].push(token);
        }
    }
    assert_eq!(source.cache_bytes(), 0, "nothing is held for requests that have ended");
    for (request, length) in lengths.iter().enumerate() {
        let mut text = ids[request * 16..][..length.prompt as usize].to_vec();
        for (place, token) in answers[request].iter().enumerate() {
            let logits = model.whole(&text);
            let last = &logits[(text.len() - 1) * model.trunk.config.vocab..];
            assert_eq!(*token as usize, argmax(last), "request {request}, token {place}");
            text.push(*token);
        }
        assert_eq!(answers[request].len(), length.generated as usize);
    }
}

const GENERATION: [&str; 10] = [
    "--set",
    "load.generation.lengths=fixed",
    "--set",
    "load.generation.prompt_tokens=21",
    "--set",
    "load.generation.generated_tokens=5",
    "--set",
    "load.generation.step_tokens_max=24",
    "--set",
    "load.generation.running_max=3",
];

fn of(summary: &Value, path: &str) -> u64 {
    summary.pointer(path).and_then(Value::as_u64).unwrap_or_else(|| panic!("{path}: {summary}"))
}

#[test]
fn steps_and_state_are_the_same_at_any_thread_and_node_count() {
    let folder = Folder::with_checkpoint();
    let run = |out: &str, more: &[&str]| folder.summary(out, &[&GENERATION[..], more].concat());
    let first = run("first", &[]);
    for (out, more) in [
        ("threads", &["--set", "compute.threads=1"][..]),
        ("nodes", &["--nodes", "local:3", "--set", "nodes.replicas=2"]),
    ] {
        let other = run(out, more);
        assert_eq!(other["state_hash"], first["state_hash"], "{out}");
        assert_eq!(of(&other, "/generation/steps"), of(&first, "/generation/steps"), "{out}");
    }
    let fast = ["--set", "load.generation.step_us=1", "--set", "load.generation.token_us=0"];
    let faster = run("faster", &fast);
    assert_ne!(faster["state_hash"], first["state_hash"], "the virtual clock makes up steps");

    assert_eq!(of(&first, "/outcomes/ok"), 6);
    assert_eq!(of(&first, "/generation/prompt_tokens"), 6 * 21);
    assert_eq!(of(&first, "/generation/generated_tokens"), 6 * 5);
    assert_eq!(of(&first, "/generation/cut_requests"), 0);
    assert!(of(&first, "/generation/cache_bytes_max") > 0);
    assert_eq!(first["e2e_ns"], first["latency_ns"]);
    for key in ["/ttft_ns/count", "/tpot_ns/count", "/e2e_ns/count"] {
        assert_eq!(of(&first, key), 6, "{key}");
    }
    let dir = RunDir::open(&folder.path("first")).expect("a run directory");
    for row in dir.read_table::<RequestRow>().expect("a table") {
        let first_token_ns = row.first_token_ns.expect("it was answered");
        assert!(row.intended_ns <= first_token_ns && first_token_ns < row.finished_ns, "{row:?}");
        assert_eq!((row.tokens, row.generated), (26, Some(5)));
    }
    for name in ["ttft", "tpot", "requests"] {
        assert!(folder.path(&format!("first/hist/{name}.hlog")).is_file(), "{name}");
    }
}

#[test]
fn recorded_lengths_are_cut_to_the_context_and_the_summary_says_so() {
    let folder = Folder::with_checkpoint();
    let trace = "TIMESTAMP,ContextTokens,GeneratedTokens\n0,10,4\n1,900,4\n2,3,900\n3,900,900\n4,5,2\n5,1,1\n";
    std::fs::write(folder.path("trace.csv"), trace).expect("a trace is written");
    let summary = folder.summary(
        "out",
        &[
            "--set",
            "load.arrival=trace",
            "--set",
            "load.trace=trace.csv",
            "--set",
            "load.generation.lengths=trace",
            "--set",
            "load.generation.context_max=40",
        ],
    );
    assert_eq!(of(&summary, "/generation/cut_requests"), 3);
    assert_eq!(of(&summary, "/generation/prompt_tokens"), 10 + 36 + 3 + 20 + 5 + 1);
    assert_eq!(of(&summary, "/generation/generated_tokens"), 4 + 4 + 37 + 20 + 2 + 1);
    assert_eq!(of(&summary, "/tpot_ns/count"), 5, "one answer has a single token");
}

#[test]
fn what_cannot_be_generated_is_refused_before_anything_starts() {
    let synthetic = Folder::with(SYNTHETIC);
    let checkpoint = Folder::with_checkpoint();
    for (folder, sets, words) in [
        (&synthetic, &["load.generation.lengths=fixed"][..], "`source.kind` is \"synthetic\""),
        (&checkpoint, &["load.generation.lengths=trace"], "`load.trace` is missing"),
        (
            &checkpoint,
            &["load.generation.lengths=fixed", "load.generation.running_max=999"],
            "a step takes 256 tokens",
        ),
        (
            &checkpoint,
            &["load.generation.lengths=fixed", "load.admission=deadline"],
            "`load.generation` serves all",
        ),
        (&checkpoint, &["load.generation.lengths=long"], "must be one of"),
    ] {
        let sets: Vec<&str> = sets.iter().flat_map(|set| ["--set", set]).collect();
        let ended =
            folder.nashflock(&[&["run", "scenario.toml", "--out", "out"], &sets[..]].concat());
        assert_eq!(ended.code, Some(2), "{sets:?}: {}", ended.stderr);
        assert!(ended.stderr.contains(words), "{sets:?}: {}", ended.stderr);
        assert!(!folder.path("out").exists());
    }
}
