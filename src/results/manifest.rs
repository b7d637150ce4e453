//! `manifest.json`: what ran, built from what, on which machine, when, and how it ended.

use std::process;
use std::thread;

use serde::{Deserialize, Serialize};

use super::checkpoint::RunIdentity;
use super::{FileRecord, Resumption, SCHEMA_VERSION};
use crate::measure::Clock;
use crate::measure::clock::rfc3339_utc;

/// Written when a run starts and again when it ends.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct Manifest {
    /// Version of this layout.
    pub schema_version: u32,
    /// Differs between any two runs: 16 hex digits.
    pub run_id: String,
    /// The command line, word by word.
    pub command: Vec<String>,
    /// Name of the scenario.
    pub scenario: String,
    /// BLAKE3 of the resolved `scenario.toml`, hex.
    pub scenario_blake3: String,
    /// Seed of every random stream.
    pub seed: u64,
    /// What the binary was built from.
    pub source: Source,
    /// Where the coordinator ran.
    pub machine: Machine,
    /// Threads of the coordinator's pool.
    pub threads: u32,
    /// The nodes at the start.
    pub nodes: Vec<ManifestNode>,
    /// What the run read: checkpoint, tokenizer, texts and trace. Empty where it was killed before they were
    /// hashed.
    #[serde(default)]
    pub inputs: Vec<FileRecord>,
    /// What it wrote, this file apart; empty until it ends.
    #[serde(default)]
    pub outputs: Vec<FileRecord>,
    /// RFC 3339, UTC.
    pub started_at: String,
    /// RFC 3339, UTC; null until the run ends.
    pub ended_at: Option<String>,
    /// Times that the run was cut and went on.
    #[serde(default)]
    pub resumes: Vec<Resumption>,
    /// Exit code; null until the run ends, and for good where it was killed.
    pub exit_code: Option<u8>,
}

/// What the binary was built from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct Source {
    /// Version of the package.
    pub version: String,
    /// Commit, or "unknown" where the source was no git checkout.
    pub git_commit: String,
    /// Whether tracked files differed from the commit; null where that is unknown.
    pub git_dirty: Option<bool>,
    /// BLAKE3 of `Cargo.lock`, hex.
    pub cargo_lock_blake3: String,
    /// Version line of the compiler.
    pub rustc: String,
    /// Cargo features.
    pub features: Vec<String>,
    /// Target triple.
    pub target: String,
    /// Cargo profile.
    pub profile: String,
}

/// The coordinator's machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct Machine {
    /// Model of the processor, or "unknown".
    pub cpu: String,
    /// Instruction sets found that a kernel may use. Results repeat bit for bit on equal lists.
    pub cpu_features: Vec<String>,
    /// Processors this process may use.
    pub logical_cpus: u32,
    /// Operating system.
    pub os: String,
}

/// One node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct ManifestNode {
    /// Its id.
    pub node: u32,
    /// Where it listens, or how it is reached.
    pub address: String,
}

/// What the caller knows when a run starts.
#[derive(Clone, Debug)]
pub struct RunStart<'a> {
    /// The command line, word by word.
    pub command: Vec<String>,
    /// Name of the scenario.
    pub scenario: &'a str,
    /// The resolved scenario, as it is written to `scenario.toml`.
    pub scenario_toml: &'a str,
    /// Seed.
    pub seed: u64,
    /// Threads of the pool.
    pub threads: u32,
    /// The nodes.
    pub nodes: Vec<ManifestNode>,
}

impl Manifest {
    /// The manifest of a run that starts.
    #[must_use]
    pub fn start(run: RunStart<'_>, clock: &Clock) -> Self {
        let started_at = rfc3339_utc(clock.started_at());
        let scenario_blake3 = blake3::hash(run.scenario_toml.as_bytes()).to_hex().to_string();
        // The nanoseconds and the process id tell apart runs that start in one millisecond.
        let identity =
            format!("{scenario_blake3} {} {:?} {}", run.seed, clock.started_at(), process::id());
        Self {
            schema_version: SCHEMA_VERSION,
            run_id: blake3::hash(identity.as_bytes()).to_hex()[..16].to_owned(),
            command: run.command,
            scenario: run.scenario.to_owned(),
            scenario_blake3,
            seed: run.seed,
            source: Source::of_this_build(),
            machine: Machine::detect(),
            threads: run.threads,
            nodes: run.nodes,
            inputs: Vec::new(),
            outputs: Vec::new(),
            started_at,
            ended_at: None,
            resumes: Vec::new(),
            exit_code: None,
        }
    }

    /// Whether the run came to its end, with its goals or without.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        matches!(self.exit_code, Some(0 | 3))
    }

    /// Build and machine where they are not those of this process: what may make other bits.
    #[must_use]
    pub fn unlike_this_process(&self) -> Vec<String> {
        let (source, machine) = (Source::of_this_build(), Machine::detect());
        let mut notes = Vec::new();
        if source.git_commit != self.source.git_commit {
            let (then, now) = (&self.source.git_commit, &source.git_commit);
            notes.push(format!("the run was played by commit {then}, this binary is of {now}"));
        }
        if source.cargo_lock_blake3 != self.source.cargo_lock_blake3 {
            notes.push("this binary was built with other versions of its libraries".to_owned());
        }
        if machine.cpu_features != self.machine.cpu_features {
            notes.push(
                "this processor has other instruction sets: equal bits are promised on equal ones"
                    .to_owned(),
            );
        }
        notes
    }

    /// Which run its checkpoints are of.
    #[must_use]
    pub fn identity(&self) -> RunIdentity {
        let (run_id, scenario_blake3) = (self.run_id.clone(), self.scenario_blake3.clone());
        RunIdentity { run_id, scenario_blake3 }
    }

    /// Notes that the run goes on.
    pub fn resume(&mut self, resumption: Resumption) {
        self.resumes.push(resumption);
        (self.ended_at, self.exit_code) = (None, None);
    }

    /// Notes the end.
    pub fn end(&mut self, clock: &Clock, exit_code: u8) {
        self.ended_at = Some(rfc3339_utc(clock.wall_now()));
        self.exit_code = Some(exit_code);
    }

    /// The command line as one would type it in a POSIX shell.
    #[must_use]
    pub fn command_line(&self) -> String {
        shell_line(self.command.iter())
    }
}

/// Words as one would type them in a POSIX shell.
#[must_use]
pub fn shell_line(words: impl IntoIterator<Item = impl AsRef<str>>) -> String {
    words.into_iter().map(|word| shell_word(word.as_ref())).collect::<Vec<_>>().join(" ")
}

impl Source {
    /// What `build.rs` noted.
    #[must_use]
    pub fn of_this_build() -> Self {
        Self {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            git_commit: env!("NASHFLOCK_COMMIT").to_owned(),
            git_dirty: env!("NASHFLOCK_DIRTY").parse().ok(),
            cargo_lock_blake3: blake3::hash(include_bytes!("../../Cargo.lock"))
                .to_hex()
                .to_string(),
            rustc: env!("NASHFLOCK_RUSTC").to_owned(),
            features: env!("NASHFLOCK_FEATURES")
                .split(',')
                .filter(|feature| !feature.is_empty())
                .map(str::to_owned)
                .collect(),
            target: env!("NASHFLOCK_TARGET").to_owned(),
            profile: env!("NASHFLOCK_PROFILE").to_owned(),
        }
    }
}

impl Machine {
    /// This machine.
    #[must_use]
    pub fn detect() -> Self {
        Self {
            cpu: cpu_model(),
            cpu_features: cpu_features().into_iter().map(str::to_owned).collect(),
            logical_cpus: thread::available_parallelism()
                .map_or(1, |count| u32::try_from(count.get()).unwrap_or(u32::MAX)),
            os: std::env::consts::OS.to_owned(),
        }
    }
}

/// Linux names the model in /proc/cpuinfo on x86; elsewhere it is not worth a system call crate.
fn cpu_model() -> String {
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    text.lines()
        .filter_map(|line| line.split_once(':'))
        .find(|(key, _)| key.trim() == "model name")
        .map_or_else(|| "unknown".to_owned(), |(_, model)| model.trim().to_owned())
}

#[cfg(target_arch = "x86_64")]
fn cpu_features() -> Vec<&'static str> {
    [
        ("avx2", is_x86_feature_detected!("avx2")),
        ("fma", is_x86_feature_detected!("fma")),
        ("f16c", is_x86_feature_detected!("f16c")),
        ("avxvnni", is_x86_feature_detected!("avxvnni")),
        ("avx512f", is_x86_feature_detected!("avx512f")),
        ("avx512bw", is_x86_feature_detected!("avx512bw")),
        ("avx512vl", is_x86_feature_detected!("avx512vl")),
        ("avx512vbmi", is_x86_feature_detected!("avx512vbmi")),
        ("avx512vnni", is_x86_feature_detected!("avx512vnni")),
    ]
    .into_iter()
    .filter_map(|(name, found)| found.then_some(name))
    .collect()
}

#[cfg(target_arch = "aarch64")]
fn cpu_features() -> Vec<&'static str> {
    use std::arch::is_aarch64_feature_detected;
    [
        ("neon", is_aarch64_feature_detected!("neon")),
        ("dotprod", is_aarch64_feature_detected!("dotprod")),
        ("i8mm", is_aarch64_feature_detected!("i8mm")),
        ("sve", is_aarch64_feature_detected!("sve")),
    ]
    .into_iter()
    .filter_map(|(name, found)| found.then_some(name))
    .collect()
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn cpu_features() -> Vec<&'static str> {
    Vec::new()
}

/// A word that the shell takes as it is, quoted where it must be.
fn shell_word(word: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_./:=,@%+".contains(&byte);
    if !word.is_empty() && word.bytes().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_survives_a_shell() {
        for (word, expected) in [
            ("game.top_k=2", "game.top_k=2"),
            ("", "''"),
            ("a b", "'a b'"),
            ("it's", r"'it'\''s'"),
            ("$HOME;x", "'$HOME;x'"),
        ] {
            assert_eq!(shell_word(word), expected);
            let echoed = process::Command::new("sh")
                .arg("-c")
                .arg(format!("printf %s {}", shell_word(word)))
                .output();
            match echoed {
                Ok(output) => assert_eq!(output.stdout, word.as_bytes()),
                Err(error) => eprintln!("skipped: no shell: {error}"),
            }
        }
    }

    #[test]
    fn the_build_notes_its_compiler_and_lock_file() {
        let source = Source::of_this_build();
        assert!(source.rustc.starts_with("rustc 1."), "{}", source.rustc);
        assert_eq!(source.cargo_lock_blake3.len(), 64);
        assert!(source.git_commit == "unknown" || source.git_commit.len() == 40);
        assert_eq!(source.git_commit == "unknown", source.git_dirty.is_none());
    }
}
