//! Notes what the binary is built from: commit, compiler and profile. Without git or outside a
//! checkout the commit reads "unknown".

use std::env;
use std::path::Path;
use std::process::Command;

fn main() {
    for path in ["build.rs", "Cargo.toml", "Cargo.lock", "src", "agents/src", "proto/src"] {
        println!("cargo::rerun-if-changed={path}");
    }
    // Grows with every commit and checkout. The index is left out: it changes with every `git status`.
    if let Some(log) = output("git", &["rev-parse", "--git-path", "logs/HEAD"])
        && Path::new(&log).exists()
    {
        println!("cargo::rerun-if-changed={log}");
    }
    let commit = output("git", &["rev-parse", "HEAD"]);
    let dirty = commit.as_ref().and_then(|_| {
        output("git", &["status", "--porcelain", "--untracked-files=no"])
            .map(|changes| (!changes.is_empty()).to_string())
    });
    let rustc = env::var("RUSTC").ok().and_then(|rustc| output(&rustc, &["--version"]));
    let mut features: Vec<String> = env::vars()
        .filter_map(|(key, _)| key.strip_prefix("CARGO_FEATURE_").map(str::to_lowercase))
        .collect();
    features.sort();
    for (key, value) in [
        ("COMMIT", commit),
        ("DIRTY", dirty),
        ("RUSTC", rustc),
        ("FEATURES", Some(features.join(","))),
        ("TARGET", env::var("TARGET").ok()),
        ("PROFILE", env::var("PROFILE").ok()),
    ] {
        println!("cargo::rustc-env=NASHFLOCK_{key}={}", value.as_deref().unwrap_or("unknown"));
    }
}

/// The first output of a command that succeeds, trimmed.
fn output(program: &str, arguments: &[&str]) -> Option<String> {
    let output = Command::new(program).args(arguments).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    output.status.success().then(|| text.trim().to_owned())
}
