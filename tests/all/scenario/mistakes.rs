//! What is said about files that cannot be read.

use super::{GOOD, known, read, refused};
use agents::game::{CostError, CostParameters, CostRegistry, CostSettings, GameShape};
use nashflock::scenario::{Known, load};
use std::fs;
use tempfile::TempDir;

#[test]
fn every_kind_of_mistake_is_located_and_comes_with_a_remedy() {
    type Row = (&'static str, &'static str, usize, usize, &'static str, &'static str, &'static str);
    // What is replaced in GOOD by what; then line, column, key, and parts of message and help.
    #[rustfmt::skip]
    let rows: &[Row] = &[
        ("router =", "rooter =", 9, 1, "game.rooter", "unknown key `rooter` in [game]", "did you mean `router`?"),
        ("[nodes]", "[nods]", 13, 2, "nods", "unknown key `nods` at the top", "did you mean `nodes`?"),
        ("count = 2", "qqq = 2", 14, 1, "nodes.qqq", "unknown key `qqq`", "the keys in [nodes] are `choice`"),
        ("top_k = 2", "top_k = 2\ndeadline_ms = 5", 11, 1, "game.deadline_ms", "unknown key `deadline_ms`", "did you mean `load.deadline_ms`?"),
        ("experts = 16", "experts = 16\ntext = []", 8, 1, "source.text", "unknown key `text`", "another `source.kind`"),
        ("width = 64", "width = 0", 6, 9, "source.width", "from 1 to 65536, not 0", "Length of a token's hidden state"),
        ("width = 64", "width = -1", 6, 9, "source.width", "not -1", "Length of a token's hidden state"),
        ("width = 64", "width = 99999999999999999999", 6, 9, "source.width", "not 100000000000000000000", "Length of a token's hidden state"),
        ("width = 64", "width = \"64\"", 6, 9, "source.width", "must be a whole number", "take the quotes away"),
        ("width = 64", "width = 64.5", 6, 9, "source.width", "must be a whole number", "Length of a token's hidden state"),
        ("name = \"table\"", "name = 7", 3, 8, "name", "`name` must be 1 to 64 letters", "put it in quotes: \"7\""),
        ("name = \"table\"", "name = \"../up\"", 3, 8, "name", "`name` must be 1 to 64 letters", "letters, digits"),
        ("name = \"table\"\n", "", 1, 1, "name", "`name` is missing", "add `name = …`"),
        ("schema_version = 1", "schema_version = 2", 2, 18, "schema_version", "must be 1, not 2", "the only one so far"),
        ("requests = 10", "", 15, 2, "load.requests", "`load.requests` is missing", "Requests in the run"),
        ("[load]\nrate_per_s = 40.0\nrequests = 10\n", "", 1, 1, "load", "section [load] is missing", "with `rate_per_s`, `requests`"),
        ("[nodes]", "[[nodes]]", 13, 1, "nodes", "`nodes` must be a section", "under a [section] header"),
        ("rate_per_s = 40.0", "rate_per_s = nan", 16, 14, "load.rate_per_s", "not nan", "Requests that arrive in a second"),
        ("rate_per_s = 40.0", "rate_per_s = 0", 16, 14, "load.rate_per_s", "from 0.001 to", "Requests that arrive in a second"),
        ("[load]", "[load]\narrival = \"poison\"", 16, 11, "load.arrival", "must be one of `poisson`, `constant`", "did you mean \"poisson\"?"),
        ("kind = \"synthetic\"", "kind = \"sintetic\"", 5, 8, "source.kind", "one of `checkpoint`, `synthetic`", "did you mean \"synthetic\"?"),
        ("kind = \"synthetic\"\n", "", 4, 2, "source.kind", "`source.kind` is missing", "write one of `checkpoint`, `synthetic`"),
        ("\"equilibrium\"", "\"equilibrum\"", 9, 10, "game.router", "no router \"equilibrum\"", "did you mean \"equilibrium\"?"),
        ("\"equilibrium\"", "\"zzz\"", 9, 10, "game.router", "no router \"zzz\"", "write one of `equilibrium`, `top_k`"),
        ("top_k = 2", "top_k = 17", 10, 9, "game.top_k", "is 17 but `source.experts` is 16", "from 1 to 16"),
        ("top_k = 2", "", 8, 2, "game.top_k", "no model to take it from", "add `top_k = …`"),
        ("top_k = 2", "top_k = 2\ncapacity_factor = 0.5", 11, 19, "game.capacity_factor", "from 1 to 65536, not 0.5", "fair shares"),
        ("top_k = 2", "top_k = 2\ncost = \"liner\"", 11, 8, "game.cost", "no congestion cost \"liner\"", "did you mean \"linear\"?"),
        ("top_k = 2", "top_k = 2\ncost = \"zzz\"", 11, 8, "game.cost", "no congestion cost \"zzz\"", "write one of `latency`, `linear`, `polynomial`, `quota`"),
        ("top_k = 2", "top_k = 2\ncost = 4", 11, 8, "game.cost", "a string that is not empty", "put it in quotes: \"4\""),
        ("top_k = 2", "top_k = 2\ndegree = 65", 11, 10, "game.degree", "from 0 to 64, not 65", "Power of the load in fair shares"),
        ("top_k = 2", "top_k = 2\ndegree = nan", 11, 10, "game.degree", "from 0 to 64, not nan", "Power of the load in fair shares"),
        ("top_k = 2", "top_k = 2\nprice_per_fair_share = -1", 11, 24, "game.price_per_fair_share", "from 0 to 1000000, not -1", "used by costs `linear` and `polynomial`"),
        ("top_k = 2", "top_k = 2\nservice_ms = [1, -1]", 11, 18, "game.service_ms[1]", "from 0 to 1000000, not -1", "write a number from 0"),
        ("top_k = 2", "top_k = 2\nservice_ms = 1.5", 11, 14, "game.service_ms", "must be a list, each entry a number", "put it in brackets: [1.5]"),
        ("top_k = 2", "top_k = 2\nwindow_ms = 0", 11, 13, "game.window_ms", "from 0.001 to 1000000, not 0", "cost `latency` needs it"),
        ("top_k = 2", "top_k = 2\nvariation = -0.5", 11, 13, "game.variation", "from 0 to 1000, not -0.5", "Standard deviation of service times"),
        ("top_k = 2", "top_k = 2\nprice_per_ms = inf", 11, 16, "game.price_per_ms", "from 0 to 1000000, not inf", "Price of a ms of waiting"),
        ("top_k = 2", "top_k = 2\nsocial_optimum = 1", 11, 18, "game.social_optimum", "true or false, not 1", "the price of anarchy"),
        ("top_k = 2", "top_k = 2\ncost = \"latency\"\nwindow_ms = 9", 11, 8, "game.service_ms", "`game.service_ms` is missing", "add `service_ms = […]`"),
        ("top_k = 2", "top_k = 2\ncost = \"latency\"\nservice_ms = [1]", 11, 8, "game.window_ms", "`game.window_ms` is missing", "add `window_ms = …`"),
        ("top_k = 2", "top_k = 2\ncost = \"latency\"\nservice_ms = [1, 2]\nwindow_ms = 9000", 12, 14, "game.service_ms", "2 service times for 16 experts", "list 16 times, or one"),
        // 1024 tokens of 2 experts each want 2048 places; an expert has 100 before its queue never ends.
        ("top_k = 2", "top_k = 2\ncost = \"latency\"\nservice_ms = [1]\nwindow_ms = 101", 13, 13, "game.window_ms", "1600 places for the 2048 token-expert pairs of 1024 tokens", "write a longer window_ms"),
        ("top_k = 2", "top_k = 2\ninformation = \"stale\"", 11, 15, "game.information", "must be a section", "under a [section] header"),
        ("[precision]", "[game.information]\nbatches = 2\n[precision]", 11, 7, "game.information.kind", "`game.information.kind` is missing", "write one of `in-batch`, `stale`, `partial`"),
        ("[precision]", "[game.information]\nkind = \"in_batch\"\n[precision]", 12, 8, "game.information.kind", "one of `in-batch`, `stale`, `partial`, not \"in_batch\"", "did you mean \"in-batch\"?"),
        ("[precision]", "[game.information]\nkind = \"in-batch\"\nbatches = 2\n[precision]", 13, 1, "game.information.batches", "unknown key `batches` in [game.information]", "another `game.information.kind`"),
        ("[precision]", "[game.information]\nkind = \"stale\"\nbatches = 0\n[precision]", 13, 11, "game.information.batches", "from 1 to 65536, not 0", "Age of the prices in batches"),
        ("[precision]", "[game.information]\nkind = \"stale\"\nbatches = 10\n[precision]", 13, 11, "game.information.batches", "is 10 but 10 requests make at most 10 batches", "fewer batches, or more requests"),
        ("[precision]", "[game.information]\nkind = \"partial\"\n[precision]", 11, 7, "game.information.dispatchers", "`game.information.dispatchers` is missing", "add `dispatchers = …`"),
        ("[precision]", "[game.information]\nkind = \"partial\"\ndispatchers = 1025\n[precision]", 13, 15, "game.information.dispatchers", "is 1025 but a batch has at most 1024 tokens", "fewer dispatchers"),
        ("experts = 16", "experts = 7", 7, 11, "flock.neighbours", "`flock.neighbours` is 7 but", "fewer neighbours"),
        ("\"4bpw\"", "\"4bits\"", 12, 10, "precision.budget", "a size such as", "scales included"),
        ("\"4bpw\"", "\"100%\"", 12, 10, "precision.budget", "below 100%", "scales included"),
        ("\"4bpw\"", "\"1.5bpw\"", 12, 10, "precision.budget", "below the smallest of `precision.widths`, 2", "above 2bpw"),
        ("\"4bpw\"", "\"95%\"", 12, 10, "precision.budget", "is 1.60 bits a weight", "above 2bpw"),
        ("[nodes]", "widths = [2,\n 3, 4]\n[nodes]", 14, 2, "precision.widths[1]", "one of 2, 4, 8, not 3", "write one of 2, 4, 8"),
        ("[nodes]", "widths = [4, 4]\n[nodes]", 13, 14, "precision.widths[1]", "lists 4 twice", "once"),
        ("[nodes]", "widths = []\n[nodes]", 13, 10, "precision.widths", "at least one entry", "Bits of a weight code"),
        ("[nodes]", "widths = 4\n[nodes]", 13, 10, "precision.widths", "a list of at least one entry", "put it in brackets: [4]"),
        ("[nodes]", "group = 48\n[nodes]", 13, 9, "precision.group", "one of 32, 64, not 48", "32 or 64"),
        ("[nodes]", "calibration_text = \"ünknown.txt\"\n[nodes]", 13, 20, "precision.calibration_text", "no text file /", "relative to the scenario file"),
        ("count = 2", "count = 2\nreplicas = 3", 15, 12, "nodes.replicas", "is 3 but `nodes.count` is 2", "fewer replicas or more nodes"),
        ("count = 2", "count = 2\nplacement = \"eplp\"", 15, 13, "nodes.placement", "one of `round_robin`, `eplb`, `planned`", "did you mean \"eplb\"?"),
        ("count = 2", "count = 2\nreplica_slots = 2", 15, 17, "nodes.replica_slots", "is 2 but `nodes.placement` is \"round_robin\"", "write placement = \"eplb\""),
        ("count = 2", "count = 2\nreplica_slots = -1", 15, 17, "nodes.replica_slots", "from 0 to 1048576, not -1", "beyond one an expert"),
        ("count = 2", "count = 2\nplacement = \"planned\"\nreplicas = 2", 16, 12, "nodes.replicas", "is 2 but `nodes.placement` is \"planned\"", "with `nodes.replica_slots`"),
        ("count = 2", "count = 2\nplacement = \"planned\"\nreplica_slots = 17", 16, 17, "nodes.replica_slots", "is 17 but 16 experts on 2 nodes can have 16 further copies", "write at most 16"),
        ("count = 2", "count = 2\nplacement = \"eplb\"\nreplica_slots = 3", 16, 17, "nodes.replica_slots", "19 (16 experts and 3 replica_slots) do not divide over 2 nodes", "write replica_slots = 4"),
        ("count = 2", "count = 3\nplacement = \"eplb\"", 15, 13, "nodes.replica_slots", "16 (16 experts and 0 replica_slots) do not divide over 3 nodes", "write replica_slots = 2"),
        ("count = 2", "count = 2\nreplicas = 2\nspot_check_share = 0.5\ncombine = \"at_worker\"", 16, 20, "nodes.spot_check_share", "`nodes.combine` is \"at_worker\"", "write combine = \"exact\""),
        ("count = 2", "count = 2\nchoice = \"two_choices\"", 15, 10, "nodes.choice", "no expert has a second node", "write replicas = 2"),
        ("count = 2", "count = 2\nreplicas = 2\nchoice = \"random\"\ncombine = \"at_worker\"", 16, 10, "nodes.choice", "`nodes.combine` is \"at_worker\"", "or choice = \"planned\""),
        ("count = 2", "count = 2\ncombine = \"here\"", 15, 11, "nodes.combine", "one of `exact`, `at_worker`", "write one of"),
        ("count = 2", "count = 2\nengine = \"peers\"\npeers = [\"[::1]:1\"]", 16, 9, "nodes.peers", "lists 1 addresses but `nodes.count` is 2", "one host:port a node"),
        ("count = 2", "count = 2\npeers = [\"[::1]:1\"]", 15, 9, "nodes.peers", "`nodes.engine` is not \"peers\"", "take the peers out"),
        ("count = 2", "count = 2\nengine = \"peers\"\npeers = [\"[::1]:1\", \"b\"]", 16, 21, "nodes.peers[1]", "\"host:port\", not \"b\"", "write \"host:port\""),
        ("count = 2", "count = 2\nengine = \"peers\"\npeers = [\"[::1]:1\", \"[::1]:1\"]", 16, 21, "nodes.peers[1]", "lists [::1]:1 twice", "once"),
        ("count = 2", "count = 2\nengine = \"peers\"\npeers = [\"localhost:1\", \"a:1\"]", 16, 25, "nodes.peers[1]", "has a:1, another machine, and traffic is plain text", "add [nodes.tls], or write insecure_non_loopback = true"),
        ("# Question: does it read?", "seed = 9223372036854775808", 1, 8, "seed", "`seed` must be a whole number", "Seed of every random stream"),
        ("budget = \"4bpw\"", "budget = \"4bpw\"\nallocator = \"hul\"", 13, 13, "precision.allocator", "there is no allocator \"hul\"", "did you mean \"hull\"?"),
        ("budget = \"4bpw\"", "budget = \"4bpw\"\nallocator = \"uniform\"", 13, 13, "precision.allocator", "there is no allocator \"uniform\"", "uniform:N"),
        ("budget = \"4bpw\"", "budget = \"4bpw\"\nallocator = \"uniform:3\"", 13, 13, "precision.allocator", "\"uniform:3\" but `precision.widths` is [2, 4, 8]", "name one of the widths"),
        ("budget = \"4bpw\"", "allocator = \"hull\"", 12, 13, "precision.allocator", "`precision.budget` is f32", "write a budget such as 4bpw"),
        ("budget = \"4bpw\"", "budget = \"4bpw\"\nprune = 1", 13, 9, "precision.prune", "from 0 to 0.99, not 1", "Share of each layer"),
        ("budget = \"4bpw\"", "budget = \"4bpw\"\nprune_by = \"size\"", 13, 12, "precision.prune_by", "must be one of `reap`, `frequency`", "write one of"),
        ("budget = \"4bpw\"", "budget = \"4bpw\"\nprune = 0.9", 13, 9, "flock.neighbours", "is 7 but `precision.prune` 0.9 leaves 2 of 16 experts", "prune less"),
        ("budget = \"4bpw\"", "budget = \"4bpw\"\nprune = 0.95\n[flock]\nenabled = false", 10, 9, "game.top_k", "is 2 but `precision.prune` 0.95 leaves 1 of 16 experts", "from 1 to 1, or prune less"),
        ("[load]", "[goals]\nmax_over_mean_max = 0.9\n[load]", 16, 21, "goals.max_over_mean_max", "from 1 to", "in fair shares"),
        ("count = 2", "count = ", 14, 9, "", "must be quoted", "correct the TOML"),
        ("count = 2", "count = 2\ncount = 3", 15, 1, "", "duplicate key", "correct the TOML"),
    ];
    for (index, (from, to, line, column, key, message, help)) in rows.iter().enumerate() {
        assert!(GOOD.contains(from), "row {index}: {from}");
        let problems = refused(GOOD.replacen(from, to, 1), &[]);
        let all = problems.to_string();
        assert_eq!(problems.0.len(), 1, "row {index}: {all}");
        let problem = &problems.0[0];
        assert_eq!(
            (problem.line, problem.column),
            (Some(*line), Some(*column)),
            "row {index}: {all}"
        );
        assert_eq!(problem.key, *key, "row {index}: {all}");
        assert!(problem.message.contains(message), "row {index}: {all}");
        assert!(problem.help.contains(help), "row {index}: {all}");
    }
}

#[test]
fn five_problems_in_one_file_are_reported_together_in_the_order_of_the_file() {
    let text = GOOD
        .replace("width = 64", "width = \"many\"")
        .replace("router =", "rooter =")
        .replace("count = 2", "count = 2\nreplicas = 3")
        .replace("top_k = 2", "top_k = 0")
        .replace("40.0", "-1.0");
    let problems = refused(text, &[]);
    let found: Vec<(Option<usize>, &str)> =
        problems.0.iter().map(|problem| (problem.line, problem.key.as_str())).collect();
    let expected = [
        (Some(6), "source.width"),
        (Some(9), "game.rooter"),
        (Some(10), "game.top_k"),
        (Some(15), "nodes.replicas"),
        (Some(17), "load.rate_per_s"),
    ];
    assert_eq!(found, expected, "{problems}");
}

#[test]
fn all_syntax_errors_are_reported_together() {
    let text = GOOD.replace("count = 2", "count = ").replace("top_k = 2", "top_k = two");
    let problems = refused(text, &[]);
    let lines: Vec<Option<usize>> = problems.0.iter().map(|problem| problem.line).collect();
    assert_eq!(lines, [Some(10), Some(14)], "{problems}");
}

#[test]
fn a_key_that_is_bad_already_is_not_reported_again_by_the_checks_that_read_it() {
    let text = GOOD.replace("experts = 16", "experts = \"few\"").replace("top_k = 2", "top_k = 40");
    let problems = refused(text, &[]);
    assert_eq!(problems.0.len(), 1, "{problems}");
    let kind = refused(GOOD.replace("\"synthetic\"", "\"other\""), &[]);
    assert_eq!(kind.0.len(), 1, "{kind}");
}

#[test]
fn an_own_cost_is_named_like_the_others_and_what_it_refuses_is_a_problem_of_its_key() {
    let mut costs = CostRegistry::standard();
    let build = |parameters: &CostParameters, shape: GameShape| {
        if parameters.degree > 2.0 {
            let (cost, parameter) = ("mine".into(), "degree".into());
            return Err(CostError::Range { cost, parameter, value: parameters.degree, least: 0.0 });
        }
        let free = CostSettings::Linear { price_per_fair_share: 0.0 };
        Ok(free.build(shape.tokens, shape.experts, shape.top_k))
    };
    costs.insert("mine", "costs nothing", Box::new(build)).expect("a new name");
    let known = Known { costs: &costs, ..known() };
    let folder = TempDir::new().expect("a temporary folder");
    let file = folder.path().join("scenario.toml");
    let text = GOOD.replace("top_k = 2", "top_k = 2\ncost = \"mine\"\ndegree = 2");
    fs::write(&file, text).expect("the file is written");
    let scenario = load(&file, &[], &known).unwrap_or_else(|problems| panic!("{problems}"));
    assert_eq!(scenario.game.cost, "mine");
    let problems = load(&file, &["game.degree=3".into()], &known).expect_err("refused");
    assert_eq!((problems.0.len(), problems.0[0].key.as_str()), (1, "game.degree"), "{problems}");
    assert!(problems.to_string().contains("cost 'mine': degree is 3"), "{problems}");
}

proptest::proptest! {
    #[test]
    fn no_text_makes_the_reader_panic(at in 0..GOOD.len(), cut in 0..12_usize, put in "[ -~\\n\\té€]{0,8}") {
        let mut text = GOOD.to_owned();
        text.replace_range(at..(at + cut).min(GOOD.len()), &put);
        if let Err(problems) = read(&text, &[]) {
            proptest::prop_assert!(!problems.0.is_empty());
            proptest::prop_assert!(!problems.draw(miette::GraphicalTheme::unicode()).is_empty());
            proptest::prop_assert!(problems.to_string().contains("help: "));
        }
    }
}

#[test]
fn files_that_cannot_be_read_are_one_problem_without_a_line() {
    let folder = TempDir::new().expect("a temporary folder");
    let missing = load(&folder.path().join("none.toml"), &[], &known()).expect_err("no file");
    assert_eq!((missing.0.len(), missing.0[0].line), (1, None));
    assert!(missing.to_string().contains("none.toml: cannot read the scenario"), "{missing}");
    let directory = load(folder.path(), &[], &known()).expect_err("a folder");
    assert!(directory.to_string().contains("cannot read the scenario"), "{directory}");
    let binary = refused(b"a = 1\nb = \"\xff\"\n", &[]);
    assert!(binary.to_string().contains("line 2 is not UTF-8 (byte 11)"), "{binary}");
    let large = refused(" ".repeat(2 << 20), &[]);
    assert!(large.to_string().contains("larger than 1048576 bytes"), "{large}");
}

#[test]
fn problems_print_as_plain_lines_as_snippets_and_as_json() {
    let problems = refused(GOOD.replace("router =", "\trooter ="), &["seed=-1"]);
    let plain = problems.to_string();
    let expected = "scenario.toml:9:2: unknown key `rooter` in [game]\n    9 | \trooter = \"equilibrium\"\n      | \t^^^^^^\n  help: did you mean `router`?\n--set seed=-1: `seed` must be a whole number from 0 to 9223372036854775807, not -1\n";
    assert!(plain.contains(expected), "{plain}");
    let drawn = problems.draw(miette::GraphicalTheme::unicode_nocolor());
    for part in [
        "unknown key `rooter` in [game]",
        "scenario.toml:9:2",
        "rooter = \"equilibrium\"",
        "did you mean `router`?",
        "seed=-1",
    ] {
        assert!(drawn.contains(part), "{drawn}");
    }
    let json = problems.to_json();
    assert_eq!((&json[0]["line"], &json[0]["column"]), (&9.into(), &2.into()));
    assert_eq!(
        (&json[0]["key"], &json[0]["help"]),
        (&"game.rooter".into(), &"did you mean `router`?".into())
    );
    assert_eq!(
        (&json[1]["line"], &json[1]["source"]),
        (&serde_json::Value::Null, &"--set seed=-1".into())
    );
    assert_eq!(json.as_array().map(Vec::len), Some(2));
}
