//! Scenario files: what is read, and what is said about files that cannot be.

mod good;
mod mistakes;
mod sets;

use agents::flock::migration::MigrationRegistry;
use agents::flock::motion::MotionRegistry;
use agents::game::CostRegistry;
use agents::precision::AllocatorRegistry;
use nashflock::scenario::{Known, Problems, Scenario, load, schema};
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;
use tempfile::TempDir;

const GOOD: &str = r#"# Question: does it read?
schema_version = 1
name = "table"
[source]
kind = "synthetic"
width = 64
experts = 16
[game]
router = "equilibrium"
top_k = 2
[precision]
budget = "4bpw"
[nodes]
count = 2
[load]
rate_per_s = 40.0
requests = 10
"#;

fn known() -> Known<'static> {
    static COSTS: LazyLock<CostRegistry> = LazyLock::new(CostRegistry::standard);
    static ALLOCATORS: LazyLock<AllocatorRegistry> = LazyLock::new(AllocatorRegistry::standard);
    static MOTIONS: LazyLock<MotionRegistry> = LazyLock::new(MotionRegistry::standard);
    static MIGRATIONS: LazyLock<MigrationRegistry> = LazyLock::new(MigrationRegistry::standard);
    Known {
        motions: &MOTIONS,
        migrations: &MIGRATIONS,
        allocators: &ALLOCATORS,
        routers: ["equilibrium", "top_k", "smooth_stale", "flock", "flock_late", "flock_near"]
            .map(str::to_owned)
            .into(),
        costs: &COSTS,
    }
}

/// Reads a text as a scenario file in a folder of its own.
fn read(text: impl AsRef<[u8]>, sets: &[&str]) -> Result<Scenario, Problems> {
    let folder = TempDir::new().expect("a temporary folder");
    let file = folder.path().join("scenario.toml");
    fs::write(&file, text).expect("the file is written");
    let sets: Vec<String> = sets.iter().map(|set| (*set).to_owned()).collect();
    load(&file, &sets, &known())
}

fn refused(text: impl AsRef<[u8]>, sets: &[&str]) -> Problems {
    read(text, sets).expect_err("the scenario has problems")
}

/// A copy of `scenarios/` with stand-ins for the texts and the checkpoints that the files name.
fn shipped() -> (TempDir, Vec<PathBuf>) {
    let folder = TempDir::new().expect("a temporary folder");
    for sub in ["text", "models/books-moe-64e8k", "models/books-moe-8e2k"] {
        fs::create_dir_all(folder.path().join(sub)).expect("a folder");
    }
    for text in ["text/murmuration.txt", "text/calibration.txt", "text/source-code.txt"] {
        fs::write(folder.path().join(text), "birds").expect("a text");
    }
    let shipped = Path::new(env!("CARGO_MANIFEST_DIR")).join("scenarios");
    let mut files = Vec::new();
    for entry in fs::read_dir(shipped).expect("the scenarios folder") {
        let path = entry.expect("an entry").path();
        if path.extension().is_some_and(|extension| extension == "toml") {
            let copy = folder.path().join(path.file_name().expect("files have names"));
            fs::copy(&path, &copy).expect("a copy");
            files.push(copy);
        }
    }
    assert!(files.len() >= 3, "{files:?}");
    files.sort();
    (folder, files)
}

/// The dotted keys of every single value in the schema.
fn schema_keys() -> BTreeSet<String> {
    fn collect(schema: &serde_json::Value, path: &str, keys: &mut BTreeSet<String>) {
        let variants = schema["oneOf"].as_array().into_iter().flatten().chain([schema]);
        let sections: Vec<_> = variants.filter_map(|v| v["properties"].as_object()).collect();
        if sections.is_empty() {
            keys.insert(path.into());
        }
        for (key, part) in sections.into_iter().flatten() {
            let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
            collect(part, &path, keys);
        }
    }
    let mut keys = BTreeSet::new();
    collect(&schema(), "", &mut keys);
    keys
}
