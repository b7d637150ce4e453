//! Bad input: exit code 2, one message that says where and what to do, and nothing is created.

use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};

use crate::binary::{Ended, Folder, SYNTHETIC};

/// What is wrong, the arguments by blanks, and parts of the message.
type Row = (&'static str, &'static str, &'static [&'static str]);

#[test]
fn a_bad_scenario_starts_nothing() {
    #[rustfmt::skip]
    let rows: &[Row] = &[
        ("no file", "run nosuch.toml", &["nosuch.toml: cannot read the scenario", "help: give the path"]),
        ("not UTF-8", "run latin.txt", &["latin.txt: line 1 is not UTF-8 (byte 2)", "help: save the file as UTF-8"]),
        ("unknown key in the file", "run unknown.toml", &["unknown.toml:12:1", "unknown key `rooter` in [game]", "help: did you mean `router`?"]),
        ("unknown key, checked", "check unknown.toml", &["unknown.toml:12:1", "did you mean `router`?"]),
        ("unknown key", "run scenario.toml --set game.rooter=top_k", &["--set game.rooter=top_k", "unknown key", "did you mean `router`?"]),
        ("wrong type", "run scenario.toml --set game.top_k=many", &["--set game.top_k=many", "must be a whole number", "help:"]),
        ("no value", "run scenario.toml --set game.top_k", &["--set game.top_k", "has no `=`", "--set section.key=value"]),
        ("k > E", "run scenario.toml --set game.top_k=13", &["`game.top_k` is 13 but `source.experts` is 12", "from 1 to 12"]),
        ("T = 0", "run scenario.toml --set load.tokens_per_request=0", &["load.tokens_per_request", "from 1 to 1048576, not 0"]),
        ("unknown router", "run scenario.toml --set game.router=equilibrum", &["no router \"equilibrum\"", "did you mean \"equilibrium\"?"]),
        ("unknown cost", "run scenario.toml --set game.cost=quotta", &["no congestion cost \"quotta\"", "did you mean \"quota\"?"]),
        ("service times", "run scenario.toml --set game.cost=latency --set game.service_ms=[1,1] --set game.window_ms=99", &["2 service times for 12 experts", "list 12 times, or one"]),
        ("window", "run scenario.toml --set game.cost=latency --set game.service_ms=[1] --set game.window_ms=8", &["84 places for the 192 token-expert pairs of 64 tokens", "longer window_ms"]),
        ("no window", "run scenario.toml --set game.cost=latency --set game.service_ms=[1]", &["`game.window_ms` is missing", "add `window_ms = …`"]),
        ("age of prices", "run scenario.toml --set game.information.kind=stale --set game.information.batches=24", &["is 24 but 24 requests make at most 24 batches", "fewer batches"]),
        ("dispatchers", "run scenario.toml --set game.information.kind=partial --set game.information.dispatchers=65", &["is 65 but a batch has at most 64 tokens", "fewer dispatchers"]),
        ("no trace", "run scenario.toml --set load.arrival=trace", &["`load.trace` is missing", "add `trace = …` under [load]"]),
        ("trace unused", "run scenario.toml --set load.trace=scenario.toml", &["`load.trace` is given but `load.arrival` is another"]),
        ("trace file", "run scenario.toml --set load.arrival=trace --set load.trace=none.csv", &["there is no text file", "none.csv"]),
        ("trace times", "run scenario.toml --set load.arrival=trace --set load.trace=scenario.toml", &["load.trace", "has no column of times", "timestamp"]),
        ("variation", "run scenario.toml --set load.arrival=gamma --set load.variation=0", &["load.variation", "from 0.01 to 100, not 0"]),
        ("neighbours", "run scenario.toml --set flock.neighbours=12", &["`flock.neighbours` is 12 but `source.experts` is 12", "fewer neighbours"]),
        ("stored, synthetic", "run scenario.toml --set precision.budget=stored", &["precision.budget", "a synthetic source stores no experts"]),
        ("budget in bits", "run scenario.toml --set precision.budget=1.9bpw", &["precision.budget", "below the smallest of `precision.widths`, 2", "above 2bpw"]),
        ("budget in percent", "run scenario.toml --set precision.budget=99%", &["precision.budget", "0.32 bits a weight", "above 2bpw"]),
        ("budget in bytes", "run scenario.toml --set precision.budget=3kB", &["precision.budget 3000B", "too small", "smallest feasible size is 27648 bytes"]),
        ("budget, new out", "run scenario.toml --set precision.budget=3kB --out new/er/est", &["precision.budget 3000B"]),
        ("budget, empty out", "run scenario.toml --set precision.budget=3kB --out empty", &["precision.budget 3000B"]),
        ("uniform over the budget", "run scenario.toml --set precision.allocator=uniform:8", &["precision.budget 4.5bpw, allocator uniform:8", "all at 8 bits take", "choose fewer bits"]),
        ("unknown allocator", "run scenario.toml --set precision.allocator=floc", &["no allocator \"floc\"", "did you mean \"flock\"?"]),
        ("pruned below k", "run scenario.toml --set precision.prune=0.9 --set flock.enabled=false", &["`game.top_k` is 3 but `precision.prune` 0.9 leaves 2 of 12 experts", "prune less"]),
        ("times of pruned experts", "run scenario.toml --set precision.prune=0.5 --set flock.enabled=false --set game.cost=latency --set game.service_ms=[1,1] --set game.window_ms=999", &["`game.service_ms` lists 2 times but `precision.prune` is 0.5", "one time for all"]),
        ("no nodes", "run scenario.toml --nodes local:0", &["--nodes", "local:N takes 1 to 256 workers, not \"0\""]),
        ("virtual nodes", "run scenario.toml --nodes virtual:0", &["--nodes", "virtual:N takes 1 to 1000000 nodes, not \"0\"", "the forms are in-process, local:N"]),
        ("replicas", "run scenario.toml --nodes local:2 --set nodes.replicas=3", &["`nodes.replicas` is 3 but `nodes.count` is 2", "fewer replicas or more nodes"]),
        ("replica slots", "run scenario.toml --nodes local:2 --set nodes.placement=planned --set nodes.replica_slots=13", &["`nodes.replica_slots` is 13 but 12 experts on 2 nodes can have 12 further copies", "at most 12, or more nodes"]),
        ("EPLB divides", "run scenario.toml --nodes local:5 --set nodes.placement=eplb", &["12 experts and 0 replica_slots) do not divide over 5 nodes", "write replica_slots = 3, or placement = \"planned\""]),
        ("unknown placement", "run scenario.toml --set nodes.placement=planed", &["`nodes.placement` must be one of", "did you mean \"planned\"?"]),
        ("slots of round robin", "check scenario.toml --set nodes.replica_slots=1", &["`nodes.replica_slots` is 1 but `nodes.placement` is \"round_robin\"", "nodes.replicas"]),
        ("peers", "run scenario.toml --nodes peers:127.0.0.1", &["\"127.0.0.1\" is not HOST:PORT"]),
        ("seed", "run scenario.toml --seed many", &["--seed", "invalid digit"]),
        ("out is not empty", "run scenario.toml --out full", &["full exists and is not empty", "choose another --out"]),
        ("out is a file", "run scenario.toml --out text.txt", &["text.txt exists and is not a directory", "choose another --out"]),
        ("out is below a file", "run scenario.toml --out text.txt/out", &["cannot write to text.txt/out", "choose another --out"]),
        ("out is not writable", "run scenario.toml --out /proc/out", &["cannot write to /proc/out", "choose another --out"]),
        ("no run directory", "report full", &["cannot read full/manifest.json", "is this a run directory?"]),
        ("no command", "fly", &["unrecognized subcommand 'fly'"]),
    ];
    refuses(&Files::new(), rows);
}

#[test]
fn a_bad_checkpoint_or_text_starts_nothing() {
    #[rustfmt::skip]
    let rows: &[Row] = &[
        ("no checkpoint", "run book.toml --set source.checkpoint=nosuch", &["there is no checkpoint", "nosuch", "help: correct the path"]),
        ("no checkpoint, eval", "eval nosuch --text text.txt", &["nosuch/config.json", "No such file"]),
        ("truncated", "run book.toml --set source.checkpoint=cut", &["cut/model-00002-of-00002.safetensors is damaged", "fetch it again"]),
        ("truncated, eval", "eval cut --text text.txt", &["cut/model-00002-of-00002.safetensors is damaged", "fetch it again"]),
        ("dense", "run book.toml --set source.checkpoint=dense", &["source.checkpoint: the checkpoint is dense", "needs a Mixture-of-Experts model"]),
        ("k > E", "run book.toml --set game.top_k=65", &["game.top_k is 65 but the checkpoint has 64 experts", "lower it"]),
        ("pruned below k", "run book.toml --set precision.prune=0.9", &["game.top_k is 8 but precision.prune 0.9 leaves 7 of the checkpoint's 64 experts a layer", "lower game.top_k, or prune less"]),
        ("pruned neighbours", "run book.toml --set precision.prune=0.9 --set game.top_k=2", &["flock.neighbours is 7 but precision.prune 0.9 leaves 7 of the checkpoint's 64", "prune less"]),
        ("neighbours", "run book.toml --set flock.neighbours=64", &["flock.neighbours is 64 but the checkpoint has 64 experts", "lower it"]),
        ("replica slots", "run book.toml --nodes local:2 --set nodes.placement=planned --set nodes.replica_slots=65", &["`nodes.replica_slots` is 65 but 64 experts on 2 nodes can have 64 further copies", "at most 64, or more nodes"]),
        ("EPLB divides", "run book.toml --nodes local:3 --set nodes.placement=eplb", &["64 experts and 0 replica_slots) do not divide over 3 nodes", "write replica_slots = 2, or placement = \"planned\""]),
        ("service times", "run book.toml --set game.cost=latency --set game.service_ms=[1,1] --set game.window_ms=99", &["game.cost: cost 'latency' has 2 service times for 64 experts", "give one each, or one"]),
        ("window", "run book.toml --set game.cost=latency --set game.service_ms=[1] --set game.window_ms=2", &["game.cost: cost 'latency' has 64 places for the 512 token-expert pairs of 64 tokens", "allow higher loads"]),
        ("not UTF-8", "run book.toml --set source.text=[\"latin.txt\"]", &["latin.txt is not UTF-8 text", "offset 2"]),
        ("not UTF-8, eval", "eval dense --text latin.txt", &["latin.txt is not UTF-8 text", "offset 2"]),
        ("no text", "run book.toml --set source.text=[\"nosuch.txt\"]", &["there is no text file", "nosuch.txt", "help: correct the path"]),
        ("short text", "run book.toml --set source.text=[\"short.txt\"]", &["source.text: the text has", "but a request takes 16", "give more text or lower load.tokens_per_request"]),
        ("short text, eval", "eval dense --text short.txt", &["tokens; scoring needs at least"]),
        ("short calibration", "run book.toml --set precision.calibration_tokens=3", &["precision.calibration_text: the text has 4 tokens", "give more text"]),
        ("long requests", "run book.toml --set load.tokens_per_request=1025", &["load.tokens_per_request: a request of 1025 tokens exceeds the 1024 positions", "lower load.tokens_per_request"]),
        ("budget in bytes", "run book.toml --set precision.budget=10kB", &["precision.budget 10000B", "too small", "smallest feasible size is"]),
    ];
    refuses(&Files::new(), rows);
}

#[test]
fn a_bad_score_matrix_or_flag_of_route_starts_nothing() {
    #[rustfmt::skip]
    let rows: &[Row] = &[
        ("no file", "--scores nosuch.npy", &["cannot read nosuch.npy"]),
        ("another format", "--scores text.txt", &["text.txt", "give a .npy or a .safetensors file"]),
        ("junk", "--scores junk.npy", &["junk.npy: not an .npy file"]),
        ("junk", "--scores junk.safetensors", &["junk.safetensors: not a safetensors file"]),
        ("truncated", "--scores cut.npy", &["cut.npy: is truncated", "[6, 4]"]),
        ("too large", "--scores huge.npy", &["huge.npy: is truncated"]),
        ("no tokens", "--scores no-tokens.npy", &["no-tokens.npy: has shape [0, 4]", "at least one token and one expert"]),
        ("no experts", "--scores no-experts.npy", &["no-experts.npy: has shape [6, 0]", "at least one token and one expert"]),
        ("a vector", "--scores vector.npy", &["vector.npy: has shape [24] but [T, E] is needed"]),
        ("three axes", "--scores cube.npy", &["cube.npy: has shape [1, 6, 4] but [T, E] is needed"]),
        ("big-endian", "--scores big-endian.npy", &["big-endian.npy: holds '>f4' in C order", "little-endian f32 in C order", "numpy.ascontiguousarray"]),
        ("f64", "--scores f64.npy", &["f64.npy: holds '<f8' in C order", "little-endian f32", "numpy.ascontiguousarray"]),
        ("Fortran order", "--scores fortran.npy", &["fortran.npy: holds '<f4' in Fortran order", "C order", "numpy.ascontiguousarray"]),
        ("NaN", "--scores nan.npy", &["nan.npy: score NaN at row 4, column 3", "must be finite"]),
        ("infinity", "--scores infinite.npy", &["infinite.npy: score inf at row 4, column 3", "must be finite"]),
        ("k > E", "--scores good.npy --top-k 5", &["good.npy: top_k is 5 but there are 4 experts", "choose 1 to 4"]),
        ("k = 0", "--scores good.npy --top-k 0", &["good.npy: top_k is 0", "choose 1 to 4"]),
        ("unknown router", "--scores good.npy --router nearest", &["--router nearest", "known are", "equilibrium", "top_k"]),
        ("two routers twice", "--scores good.npy --router top_k,hash,top_k", &["--router lists top_k twice", "name it once"]),
        ("one of two", "--scores good.npy --router top_k,nearest", &["--router nearest", "known are"]),
        ("several assignments", "--scores good.npy --router top_k,hash", &["--assignments takes those of one router, not of 2", "name one with --router"]),
        ("all and one", "--scores good.npy --router top_k --all", &["--router", "cannot be used with", "--all"]),
        ("unknown cost", "--scores good.npy --cost free", &["no congestion cost is called 'free'", "latency, linear, polynomial, quota"]),
        ("degree", "--scores good.npy --cost polynomial --degree inf", &["degree is inf", "at least 0"]),
        ("no service times", "--scores good.npy --cost latency --window-ms 9", &["required arguments", "--service-ms"]),
        ("no window", "--scores good.npy --cost latency --service-ms 1", &["required arguments", "--window-ms"]),
        ("window", "--scores good.npy --cost latency --service-ms 1 --window-ms 0", &["window_ms is 0", "choose a finite number"]),
        ("service times", "--scores good.npy --cost latency --service-ms 1,2 --window-ms 9", &["2 service times for 4 experts", "give one each, or one"]),
        ("too short a window", "--scores good.npy --cost latency --service-ms 1 --window-ms 3", &["8 places for the 12 token-expert pairs of 6 tokens", "allow higher loads"]),
        ("variation", "--scores good.npy --cost latency --service-ms 1 --window-ms 9 --variation NaN", &["variation is NaN", "at least 0"]),
        ("price of waiting", "--scores good.npy --cost latency --service-ms 1 --window-ms 9 --price-per-ms=-1", &["price_per_ms is -1", "at least 0"]),
        ("information", "--scores good.npy --information all", &["--information", "possible values: in-batch, stale, partial"]),
        ("one batch alone", "--scores good.npy --information stale", &["--batches is 1 but 6 tokens make 1 whole batches of 6", "--batch-tokens"]),
        ("too few batches", "--scores good.npy --information stale --batches 3 --batch-tokens 2", &["--batches is 3 but 6 tokens make 3 whole batches of 2"]),
        ("age 0", "--scores good.npy --information stale --batches 0", &["--batches", "0 is not in 1..=65536"]),
        ("dispatchers", "--scores good.npy --information partial --dispatchers 7", &["--dispatchers is 7 but a batch has 6 tokens", "choose 1 to 6"]),
        ("batch", "--scores good.npy --batch-tokens 7", &["--batch-tokens is 7 but there are 6 tokens", "choose 1 to 6"]),
        ("empty batches", "--scores good.npy --batch-tokens 0", &["--batch-tokens", "0 is not in"]),
        ("capacity", "--scores good.npy --capacity-factor 0.5", &["capacity_factor is 0.5", "at least 1"]),
        ("price", "--scores good.npy --cost linear --price-per-fair-share NaN", &["price_per_fair_share is NaN", "at least 0"]),
        ("repeats", "--scores good.npy --repeat 0", &["--repeat", "0 is not in 1..=1000000"]),
        ("no threads", "--scores good.npy --threads 0", &["--threads", "0 is not in 1..=1024"]),
        ("threads", "--scores good.npy --threads 100000", &["--threads", "100000 is not in 1..=1024"]),
    ];
    let files = Files::new();
    for (what, args, says) in rows {
        let default = |flag: &str, value: &str| {
            if args.contains(flag) { String::new() } else { format!(" {flag} {value}") }
        };
        let (router, top_k) = (default("--router", "equilibrium"), default("--top-k", "2"));
        let line = format!("route {args}{router}{top_k} --assignments out.npy");
        files.refuses(what, &line.split(' ').collect::<Vec<_>>(), says);
    }
}

#[test]
fn a_worker_refuses_addresses_and_sizes_that_it_cannot_serve() {
    let taken = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = taken.local_addr().expect("bound").to_string();
    let in_use = format!("cannot listen on {address}: Address already in use");
    let files = Files::new();
    let says = [in_use.as_str(), "choose another address with --listen"];
    files.refuses("a port in use", &["worker", "--listen", &address], &says);
    #[rustfmt::skip]
    let rows: &[Row] = &[
        ("open to others", "worker --listen 0.0.0.0:0", &["refusing to listen on 0.0.0.0:0", "--insecure-non-loopback"]),
        ("not of this machine", "worker --listen 192.0.2.1:5001 --insecure-non-loopback", &["cannot listen on 192.0.2.1:5001", "choose another address"]),
        ("no address", "worker --listen here", &["--listen", "\"here\" is neither IP:PORT nor unix:PATH"]),
        ("no file", "worker --listen unix:", &["--listen", "write unix:PATH"]),
        ("no threads", "worker --listen 127.0.0.1:0 --threads 0", &["0 compute threads: choose 1 to 1024"]),
    ];
    refuses(&files, rows);
}

#[test]
fn problems_of_a_scenario_are_data_with_json_and_come_all_at_once() {
    let files = Files::new();
    let sets = ["--set", "game.top_k=0", "--set", "load.requests=0", "--set", "nodes.cuont=2"];
    for command in ["check", "run"] {
        let ended = files.0.nashflock(&[&[command, "scenario.toml", "--json"], &sets[..]].concat());
        assert_eq!(ended.code, Some(2), "{command}: {}", ended.stderr);
        let printed = ended.json();
        assert_eq!(printed["ok"], false, "{command}");
        let problems = printed["problems"].as_array().expect("a list");
        let keys: Vec<_> = problems.iter().map(|problem| problem["key"].clone()).collect();
        assert_eq!(keys.len(), 3, "{command}: {printed}");
        for key in ["game.top_k", "load.requests", "nodes.cuont"] {
            assert!(keys.iter().any(|found| found == key), "{command}, {key}: {printed}");
        }
    }
    assert_eq!(files.listing(), Files::new().listing());
}

fn refuses(files: &Files, rows: &[Row]) {
    for (what, line, says) in rows {
        files.refuses(what, &line.split(' ').collect::<Vec<_>>(), says);
    }
}

/// A folder with good and bad inputs.
struct Files(Folder);

impl Files {
    fn new() -> Self {
        let folder = Folder::with(SYNTHETIC);
        let book = Folder::with_checkpoint();
        let write = |name: &str, bytes: &[u8]| {
            fs::write(folder.path(name), bytes).expect("the file is written");
        };
        for (from, to) in [
            ("scenario.toml", "book.toml"),
            ("text.txt", "text.txt"),
            ("calibration.txt", "calibration.txt"),
        ] {
            write(to, &fs::read(book.path(from)).expect("readable"));
        }
        write("unknown.toml", SYNTHETIC.replace("router", "rooter").as_bytes());
        write("latin.txt", b"ab\xff\xfe");
        write("short.txt", b"The flock.");
        fs::create_dir(folder.path("full")).expect("a folder is made");
        fs::create_dir(folder.path("empty")).expect("a folder is made");
        write("full/kept.txt", b"kept");
        write_matrices(write);
        copy_folder(&model("books-dense"), &folder.path("dense"));
        let cut = folder.path("cut");
        copy_folder(&model("books-moe-64e8k"), &cut);
        let shard = cut.join("model-00002-of-00002.safetensors");
        let shard = fs::File::options().write(true).open(shard).expect("writable");
        shard.set_len(5_000_000).expect("it can be cut");
        Self(folder)
    }

    /// Every path below the folder, two levels deep.
    fn listing(&self) -> Vec<String> {
        let mut names = self.0.names();
        for name in names.clone() {
            if let Ok(entries) = fs::read_dir(self.0.path(&name)) {
                let below = entries.map(|entry| entry.expect("readable").file_name());
                names.extend(below.map(|below| format!("{name}/{}", below.to_string_lossy())));
            }
        }
        names.sort();
        names
    }

    /// Runs the binary, and checks that it refuses with one message that has these parts.
    fn refuses(&self, what: &str, args: &[&str], says: &[&str]) {
        let before = self.listing();
        let ended = self.0.nashflock(args);
        let Ended { code, stdout, stderr } = &ended;
        assert_eq!(*code, Some(2), "{what}: {args:?}: {stdout}{stderr}");
        assert_eq!(stdout, "", "{what}: {args:?}");
        for part in says {
            assert!(stderr.contains(part), "{what}: {args:?}\n{part}\nis not in\n{stderr}");
        }
        assert_eq!(messages(stderr), 1, "{what}: {args:?}\n{stderr}");
        assert_eq!(self.listing(), before, "{what}: {args:?} leaves the folder as it was");
    }
}

/// Messages on standard error: each is one line, and indented lines with the place in the file and
/// with help may follow. Those about the command line itself are clap's and start with `error: `.
fn messages(stderr: &str) -> usize {
    if stderr.starts_with("error: ") {
        return stderr.lines().filter(|line| line.starts_with("error: ")).count();
    }
    stderr.lines().filter(|line| !line.starts_with(' ') && !line.is_empty()).count()
}

fn write_matrices(write: impl Fn(&str, &[u8])) {
    let values: Vec<f32> = (0..24).map(|at| at as f32 / 24.0).collect();
    let bytes = |values: &[f32]| values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>();
    let good = npy("<f4", false, "(6, 4)", &bytes(&values));
    let with = |bad: f32| {
        let mut values = values.clone();
        values[4 * 4 + 3] = bad;
        npy("<f4", false, "(6, 4)", &bytes(&values))
    };
    let big_endian: Vec<u8> = values.iter().flat_map(|v| v.to_be_bytes()).collect();
    let f64s: Vec<u8> = values.iter().flat_map(|v| f64::from(*v).to_le_bytes()).collect();
    let bytes = bytes(&values);
    write("good.npy", &good);
    write("cut.npy", &good[..good.len() - 5]);
    write("huge.npy", &npy("<f4", false, "(1152921504606846976, 4)", &bytes));
    write("no-tokens.npy", &npy("<f4", false, "(0, 4)", &[]));
    write("no-experts.npy", &npy("<f4", false, "(6, 0)", &[]));
    write("vector.npy", &npy("<f4", false, "(24,)", &bytes));
    write("cube.npy", &npy("<f4", false, "(1, 6, 4)", &bytes));
    write("big-endian.npy", &npy(">f4", false, "(6, 4)", &big_endian));
    write("f64.npy", &npy("<f8", false, "(6, 4)", &f64s));
    write("fortran.npy", &npy("<f4", true, "(6, 4)", &bytes));
    write("nan.npy", &with(f32::NAN));
    write("infinite.npy", &with(f32::INFINITY));
    write("junk.npy", b"junk");
    write("junk.safetensors", b"this is no header of a tensor file");
}

/// An `.npy` file of version 1.0, as its format page describes it.
fn npy(descr: &str, fortran: bool, shape: &str, data: &[u8]) -> Vec<u8> {
    let fortran = if fortran { "True" } else { "False" };
    let mut header =
        format!("{{'descr': '{descr}', 'fortran_order': {fortran}, 'shape': {shape}, }}");
    while (10 + header.len() + 1) % 64 != 0 {
        header.push(' ');
    }
    header.push('\n');
    let length = u16::try_from(header.len()).expect("a short header").to_le_bytes();
    [b"\x93NUMPY\x01\x00", &length[..], header.as_bytes(), data].concat()
}

fn model(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("scenarios/models").join(name)
}

fn copy_folder(from: &Path, to: &Path) {
    fs::create_dir(to).expect("a folder is made");
    for entry in fs::read_dir(from).expect("readable") {
        let entry = entry.expect("readable");
        fs::copy(entry.path(), to.join(entry.file_name())).expect("the file is copied");
    }
}
