//! Layout rules that no compiler checks.

use std::fs;
use std::path::{Path, PathBuf};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).expect("sources are UTF-8 text")
}

fn sources(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).expect("the folder is there");
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.expect("readable").path()).collect();
    paths.sort();
    let (folders, files): (Vec<_>, Vec<_>) = paths.into_iter().partition(|path| path.is_dir());
    let is_rust = |path: &PathBuf| path.extension().is_some_and(|extension| extension == "rs");
    files.into_iter().filter(is_rust).chain(folders.iter().flat_map(|f| sources(f))).collect()
}

#[test]
fn each_module_of_the_shell_imports_only_modules_above_it() {
    let lib = read(&root().join("src/lib.rs"));
    let order: Vec<&str> =
        lib.lines().filter_map(|line| line.strip_prefix("pub mod ")?.strip_suffix(';')).collect();
    assert!(order.len() > 5, "the modules are listed in lib.rs");
    let mut wrong = Vec::new();
    for (place, module) in order.iter().enumerate() {
        let folder = root().join("src").join(module);
        let file = root().join("src").join(format!("{module}.rs"));
        let files = if folder.is_dir() { sources(&folder) } else { vec![file] };
        for path in files {
            for below in &order[place + 1..] {
                if read(&path).contains(&format!("crate::{below}")) {
                    wrong.push(format!("{} imports {below}, which stands below", path.display()));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn the_core_names_no_clock_file_or_environment() {
    let banned = ["std::time", "std::fs", "std::env", "std::net", "std::process", "std::io"];
    for path in sources(&root().join("agents/src")) {
        let text = read(&path);
        for name in banned {
            assert!(!text.contains(name), "{} names {name}", path.display());
        }
    }
}

#[test]
fn unsafe_code_stands_in_few_files_and_each_block_gives_its_reason() {
    let folders = ["src", "agents/src", "proto/src"];
    for path in folders.iter().flat_map(|folder| sources(&root().join(folder))) {
        let text = read(&path);
        let blocks = text.matches("unsafe {").count();
        let reasons = text.matches("// SAFETY:").count();
        assert!(blocks <= reasons, "{}: {blocks} blocks, {reasons} reasons", path.display());
    }
}

#[test]
fn every_scenario_opens_with_the_question_it_answers() {
    let mut seen = 0;
    for entry in fs::read_dir(root().join("scenarios")).expect("the scenarios are there") {
        let path = entry.expect("readable").path();
        if path.extension().is_some_and(|extension| extension == "toml") {
            assert!(read(&path).starts_with("# Question:"), "{}", path.display());
            let name = path.file_name().expect("a file").to_string_lossy().into_owned();
            let index = read(&root().join("scenarios/README.md"));
            assert!(index.contains(&name), "scenarios/README.md does not list {name}");
            seen += 1;
        }
    }
    assert!(seen >= 3);
}

/// The documentation and attributes right before `pub struct NAME`.
fn docs_of<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    let before = &text[..text.find(&format!("pub struct {name}"))?];
    Some(&before[before.rfind("\n\n").unwrap_or(0)..])
}

/// Of the product's own two rules MODEL.md section 3 says what is causal.
#[test]
fn every_router_states_its_guarantee_its_causality_and_its_label() {
    let game = root().join("agents/src/game");
    let mut seen = 0;
    for path in sources(&game) {
        let text = read(&path);
        for name in text.lines().filter_map(|line| line.strip_prefix("impl Router for ")) {
            let name = name.trim_end_matches([' ', '{']);
            let docs = docs_of(&text, name).unwrap_or_else(|| panic!("{name} is public"));
            let docs = docs.replace("\n///", "");
            let label = ["Label: tested.", "Label: lightly tested.", "Label: experimental."];
            assert!(label.iter().any(|label| docs.contains(label)), "{name} has no label");
            assert!(docs.contains("Guaranteed"), "{name} does not say what is guaranteed");
            let of_the_field = path.parent().is_some_and(|folder| folder.ends_with("routers"));
            let says = docs.contains("ausal") || !of_the_field;
            assert!(says, "{name} does not say whether it is causal");
            seen += 1;
        }
    }
    assert!(seen >= 16, "{seen} routers");
}
