//! The commands of the pages are commands of the binary.

use std::fs;
use std::path::Path;

use crate::binary::{Ended, Folder};

/// How a line that calls the binary may begin.
const PREFIXES: [&str; 4] = [
    "cargo run --release -- ",
    "cargo run --release --bin nashflock -- ",
    "./target/release/nashflock ",
    "nashflock ",
];

#[test]
fn every_command_of_the_pages_is_understood() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut commands = Vec::new();
    for page in [
        "README.md",
        "scenarios/README.md",
        "docs/tutorial.md",
        "docs/reading-results.md",
        "docs/runs.md",
        "docs/sweeps.md",
        "docs/quantization.md",
    ] {
        let text = fs::read_to_string(root.join(page)).expect("the page is in the repository");
        let before = commands.len();
        commands.extend(self::commands(&text));
        assert!(commands.len() > before, "{page} shows how to call the binary");
    }
    let folder = Folder::with("");
    fs::write(folder.path("mine.toml"), crate::book::of_the_tutorial()).expect("writable");
    for link in ["scenarios", "tests", "README.md"] {
        let made = std::os::unix::fs::symlink(root.join(link), folder.path(link));
        made.expect("a link is made");
    }
    for command in &commands {
        understood(&folder, command);
    }
}

/// Runs what is cheap, checks the scenario of what would run one, and has the command line of the
/// rest parsed.
fn understood(folder: &Folder, command: &[String]) {
    let words: Vec<&str> = command.iter().map(String::as_str).collect();
    let ended = match words[..] {
        ["check" | "schema" | "help", ..] => ran(folder, &words),
        ["run", scenario, ..] => {
            ran(folder, &[&["check", scenario][..], &sets(&words)].concat());
            parsed(folder, &words)
        }
        _ if words.contains(&"--help") || words.contains(&"--version") => ran(folder, &words),
        _ => parsed(folder, &words),
    };
    assert_eq!(ended.code, Some(0), "{words:?}: {}", ended.stderr);
}

fn ran(folder: &Folder, words: &[&str]) -> Ended {
    eprintln!("ran: nashflock {}", words.join(" "));
    let ended = folder.nashflock(words);
    assert_eq!(ended.code, Some(0), "{words:?}: {}", ended.stderr);
    ended
}

/// With `--help` last, clap checks every flag and value that stands before it and then prints the
/// help, whatever is missing.
fn parsed(folder: &Folder, words: &[&str]) -> Ended {
    eprintln!("parsed: nashflock {}", words.join(" "));
    folder.nashflock(&[words, &["--help"]].concat())
}

/// The overrides of a run, which `check` takes too.
fn sets<'a>(words: &[&'a str]) -> Vec<&'a str> {
    let pairs = words.windows(2).filter(|pair| pair[0] == "--set");
    pairs.flat_map(|pair| [pair[0], pair[1]]).collect()
}

/// The arguments of every call of the binary in the ```` ```sh ```` blocks of a page.
fn commands(page: &str) -> Vec<Vec<String>> {
    let mut found = Vec::new();
    let mut shell = false;
    let page = page.replace("\\\n", " ");
    for line in page.lines().map(str::trim) {
        if let Some(language) = line.strip_prefix("```") {
            shell = !shell && matches!(language.trim(), "sh" | "bash" | "console" | "shell");
            continue;
        }
        let line = line.strip_prefix("$ ").unwrap_or(line);
        let call = PREFIXES.iter().find_map(|prefix| line.strip_prefix(prefix));
        if let (true, Some(call)) = (shell, call) {
            found.push(words(call));
        }
    }
    found
}

/// Splits at blanks outside quotes, up to a comment, a pipe, a redirection or a next command.
fn words(call: &str) -> Vec<String> {
    let (mut words, mut word, mut quote) = (Vec::new(), String::new(), None);
    for c in call.chars() {
        match (quote, c) {
            (Some(open), c) if c == open => quote = None,
            (None, '"' | '\'') => quote = Some(c),
            (None, '|' | '>' | '&' | ';') => break,
            (None, '#') if word.is_empty() => break,
            (None, c) if c.is_whitespace() => {
                if !word.is_empty() {
                    words.push(std::mem::take(&mut word));
                }
            }
            (_, c) => word.push(c),
        }
    }
    if !word.is_empty() {
        words.push(word);
    }
    words
}

#[test]
fn flags_and_values_before_help_are_checked() {
    let folder = Folder::with("");
    for (line, code) in [
        ("run a.toml --nodes local:2", 0),
        ("run a.toml --nodes local:0", 2),
        ("run a.toml --nods local:2", 2),
        ("rn a.toml", 2),
    ] {
        let words: Vec<&str> = line.split(' ').collect();
        assert_eq!(parsed(&folder, &words).code, Some(code), "{line}");
    }
}

#[test]
fn calls_are_found_in_shell_blocks_only() {
    let page = "nashflock no\n```sh\n$ nashflock run a.toml --set 'x=[1, 2]' | head # all\n\
                cargo run --release -- check \\\n  b.toml && ls\ncargo test\n```\n\
                ```toml\nnashflock no\n```\n```sh\nnashflock schema > s.json\n```\n";
    let expected: [&[&str]; 3] =
        [&["run", "a.toml", "--set", "x=[1, 2]"], &["check", "b.toml"], &["schema"]];
    assert_eq!(commands(page), expected);
}
