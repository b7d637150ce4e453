//! Reports as a browser shows them: Chromium without a window. It takes their pictures from files that the tests
//! leave nowhere.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::BufReader;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

use crate::binary::{Folder, SYNTHETIC, skipped};

/// The browser of this machine, if it has one that shows an empty page.
fn browser() -> Option<&'static str> {
    let names = ["chromium", "chromium-browser", "google-chrome"];
    let folder = TempDir::new().expect("a temporary folder");
    let shows = |name: &&str| {
        let shown = start(name, folder.path()).args(["--dump-dom", "about:blank"]).output();
        shown.is_ok_and(|shown| shown.status.success() && !shown.stdout.is_empty())
    };
    let found = names.into_iter().find(shows);
    if found.is_none() {
        skipped("there is no Chromium that shows an empty page");
    }
    found
}

fn start(browser: &str, folder: &Path) -> Command {
    // Whatever keeps it from starting here must not keep the tests.
    let mut command = Command::new("timeout");
    command.args([
        "60",
        browser,
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
    ]);
    command.args([
        "--hide-scrollbars",
        "--force-prefers-reduced-motion",
        "--enable-logging=stderr",
    ]);
    command.arg("--window-size=900,9000");
    command.arg(format!("--user-data-dir={}", folder.join("browser").display()));
    command
}

/// What a browser came to with a page.
struct Shown {
    /// The document after it was laid out.
    dom: String,
    /// Errors and whatever scripts said.
    console: Vec<String>,
    /// Rows of pixels, each three bytes.
    pixels: Vec<u8>,
}

impl Shown {
    /// How many pixels have a colour.
    fn count(&self, [red, green, blue]: [u8; 3]) -> usize {
        self.pixels.chunks_exact(3).filter(|pixel| *pixel == [red, green, blue]).count()
    }
}

fn show(browser: &str, page: &Path, folder: &Path) -> Shown {
    let picture = folder.join("page.png");
    let run = |what: String| {
        let mut command = start(browser, folder);
        command.arg(what).arg(format!("file://{}", page.display()));
        let ended = command.output().expect("it starts");
        assert!(ended.status.success(), "{}", String::from_utf8_lossy(&ended.stderr));
        ended
    };
    run(format!("--screenshot={}", picture.display()));
    let ended = run("--dump-dom".to_owned());
    let said = String::from_utf8_lossy(&ended.stderr);
    let console = said.lines().filter(|line| line.contains("CONSOLE")).map(str::to_owned).collect();
    Shown {
        dom: String::from_utf8(ended.stdout).expect("a document is UTF-8"),
        console,
        pixels: pixels(&picture),
    }
}

fn pixels(picture: &Path) -> Vec<u8> {
    let file = BufReader::new(File::open(picture).expect("the browser took a picture"));
    let mut reader = png::Decoder::new(file).read_info().expect("a PNG");
    let mut bytes = vec![0; reader.output_buffer_size().expect("a size")];
    let frame = reader.next_frame(&mut bytes).expect("a frame");
    bytes.truncate(frame.buffer_size());
    match frame.color_type {
        png::ColorType::Rgb => bytes,
        png::ColorType::Rgba => {
            bytes.chunks_exact(4).flat_map(|pixel| [pixel[0], pixel[1], pixel[2]]).collect()
        }
        other => panic!("a picture of {other:?}"),
    }
}

/// Leaves the picture for somebody who asks for it by `NASHFLOCK_PICTURES`, a folder.
fn keep(folder: &Path, name: &str) {
    if let Some(pictures) = std::env::var_os("NASHFLOCK_PICTURES") {
        let to = PathBuf::from(pictures).join(name);
        fs::copy(folder.join("page.png"), to).expect("the folder is there");
    }
}

fn ids(dom: &str) -> BTreeSet<&str> {
    dom.split("<section id=\"").skip(1).filter_map(|rest| rest.split('"').next()).collect()
}

/// Lines and marks of the charts, and the ink of their names.
const BLUE: [u8; 3] = [0x1f, 0x5f, 0xbf];
const ORANGE: [u8; 3] = [0xc2, 0x57, 0x0c];
const FAULT: [u8; 3] = [0xb3, 0x42, 0x0c];

#[test]
fn a_report_of_a_run_on_nodes_is_drawn_whole_and_says_nothing_to_the_console() {
    let Some(browser) = browser() else { return };
    let folder = Folder::with(&SYNTHETIC.replace("requests = 24", "requests = 600"));
    let crash = "{ kind = \"crash\", node = 1, at_ms = 40, for_ms = 30 }";
    let faults = format!("virtual.faults=[{crash}]");
    let sets =
        ["--set", "nodes.count=3", "--set", "nodes.engine=virtual", "--set", "nodes.replicas=2"];
    let args = [&["--set", faults.as_str()], &sets[..]].concat();
    let summary = folder.summary("out", &args);
    assert_eq!(summary["status"], "complete");
    let shown = show(browser, &folder.path("out/report.html"), &folder.path("."));
    keep(&folder.path("."), "run.png");
    assert_eq!(shown.console, Vec::<String>::new());
    let wanted = [
        "goals",
        "convergence",
        "certificate",
        "flock",
        "load",
        "quality",
        "latency",
        "theory",
        "outcomes",
        "nodes",
        "precision",
        "again",
    ];
    assert_eq!(ids(&shown.dom), BTreeSet::from(wanted));
    // Curves two pixels wide, through charts that are some 600 wide.
    assert!(shown.count(BLUE) > 3_000, "{} blue", shown.count(BLUE));
    assert!(shown.count(ORANGE) > 300, "{} orange", shown.count(ORANGE));
    assert!(shown.count(FAULT) > 20, "{} where a node was down", shown.count(FAULT));
    assert!(shown.dom.contains("nashflock replay ."));
}

#[test]
fn a_report_of_token_blocks_shows_what_became_of_them_in_time() {
    let Some(browser) = browser() else { return };
    let folder = Folder::with("");
    let scenario = Path::new(env!("CARGO_MANIFEST_DIR")).join("scenarios/rack-loss.toml");
    let scenario = scenario.to_str().expect("a path in UTF-8");
    let ended =
        folder.nashflock(&["run", scenario, "--set", "load.requests=300000", "--out", "out"]);
    assert!(matches!(ended.code, Some(0 | 3)), "{}", ended.stderr);
    let shown = show(browser, &folder.path("out/report.html"), &folder.path("."));
    keep(&folder.path("."), "blocks.png");
    assert_eq!(shown.console, Vec::<String>::new());
    let wanted = ["goals", "time", "joint", "theory", "outcomes", "again"];
    assert_eq!(ids(&shown.dom), BTreeSet::from(wanted));
    assert!(shown.count(BLUE) > 1_000, "{} blue", shown.count(BLUE));
}

#[test]
fn a_report_of_a_sweep_is_drawn_whole_and_says_nothing_to_the_console() {
    let Some(browser) = browser() else { return };
    let sweep = "[sweep]\nseeds = 3\nfigures = [\"convergence.max_over_mean\", \"convergence.score_loss\"]\n\
                 [[sweep.axis]]\nkey = \"game.router\"\nvalues = [\"top_k\", \"equilibrium\"]\n\
                 [[sweep.axis]]\nkey = \"source.skew\"\nvalues = [0.5, 1.0, 1.5]\n";
    let folder = Folder::with(&format!("{SYNTHETIC}{sweep}"));
    let ended = folder.nashflock(&["sweep", "scenario.toml", "--out", "out"]);
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    let shown = show(browser, &folder.path("out/report.html"), &folder.path("."));
    keep(&folder.path("."), "sweep.png");
    assert_eq!(shown.console, Vec::<String>::new());
    assert!(shown.count(BLUE) > 300, "{} blue", shown.count(BLUE));
    assert!(shown.dom.contains("source.skew"));
}
