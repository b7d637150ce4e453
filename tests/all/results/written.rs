//! What the tests write: every file and every figure of a run.

use nashflock::measure::latency::Interval;
use nashflock::measure::{Clock, Latency};
use nashflock::results::{
    Convergence, FlockComparison, Goal, LayerFigures, Layers, Manifest, ManifestNode, Memory,
    NodeFigures, Outcomes, Pairs, PlacementFigures, PrecisionFigures, PruningFigures, Quality,
    RequestRow, RoundRow, RunDir, RunStart, ServedNodeLoads, SocialFigures, Summary, Throughput,
};
use std::collections::BTreeMap;
use std::time::SystemTime;

pub(super) fn run_dir() -> (tempfile::TempDir, RunDir) {
    let temporary = tempfile::tempdir().expect("a temporary directory");
    let dir = RunDir::create(&temporary.path().join("run")).expect("a new directory");
    (temporary, dir)
}

/// A directory with everything in it: two layers over `steps` steps.
pub(super) fn written_run(steps: u64) -> (tempfile::TempDir, RunDir) {
    let (temporary, dir) = run_dir();
    dir.write_manifest(&manifest()).expect("can be written");
    let mut table = dir.table().expect("can be made");
    (0..2 * steps).for_each(|at| table.push(settling(at, steps)).expect("can be written"));
    table.finish().expect("can be ended");
    let interval = Interval {
        start_ns: 0,
        duration_ns: 60_000_000_000,
        tag: String::new(),
        latency: request_latency(),
    };
    dir.write_hlog("requests", SystemTime::UNIX_EPOCH, &[interval]).expect("can be written");
    dir.write_layers(&layers()).expect("can be written");
    dir.write_summary(&full_summary()).expect("can be written");
    dir.write_report().expect("can be written");
    (temporary, dir)
}

pub(super) fn manifest() -> Manifest {
    let command = ["nashflock", "run", "scenarios/demo.toml", "--set", "name=a b", "--seed", "7"];
    let mut manifest = Manifest::start(
        RunStart {
            command: command.map(str::to_owned).to_vec(),
            scenario: "demo",
            scenario_toml: "seed = 7",
            seed: 7,
            threads: 8,
            nodes: (0..4)
                .map(|node| ManifestNode { node, address: format!("n{node}:1") })
                .collect(),
        },
        &Clock::start(),
    );
    manifest.end(&Clock::start(), 0);
    manifest
}

pub(super) fn full_summary() -> Summary {
    let widths = BTreeMap::from([(2, 70), (3, 16), (4, 38), (8, 4)]);
    let mut summary = Summary::new("demo", 7, Memory::new(2_765_952, 7_356_416, widths));
    summary.memory.saving = Some(0.906);
    summary.state_hash = "9f2c5a1be0d34786".repeat(4);
    summary.convergence = Convergence {
        router: "auction".to_owned(),
        rounds: 20_000,
        iterations: 312_345,
        passes: 61_002,
        route_ns: 8_123_456_789,
        epsilon_nash: Some(0.0),
        relative_gap: Some(0.000_213),
        max_over_mean: Some(1.004),
        max_over_mean_top_k: Some(2.418),
        score_loss: Some(0.0312),
        converged: true,
        max_over_mean_worst: Some(1.018),
        kept_share_min: Some(0.61),
        dropped_pairs: 0,
        extra_pairs: 0,
        social: Some(SocialFigures {
            cost: Some(81.5),
            optimum: Some(64.25),
            optimum_bound: Some(64.25),
            price_of_anarchy: Some(1.2685),
        }),
    };
    summary.flock = Some(FlockComparison {
        epsilon_nash: Some(0.041),
        relative_gap: Some(0.062),
        max_over_mean_first: Some(2.21),
        max_over_mean_last: Some(1.32),
    });
    summary.throughput = Throughput {
        goodput_tokens_per_s: Some(3_000.0),
        tokens_per_s: Some(48_210.0),
        token_experts_per_s: Some(771_360.0),
        bytes_per_s: Some(1.91e8),
        elapsed_ns: 61_000_000_000,
        offered_tokens_per_s: Some(2_560.0),
    };
    summary.latency_ns = request_latency().quantiles();
    summary.outcomes =
        Outcomes { ok: 19_402, late: 401, timeout: 12, shed: 180, error: 0, partial: 5 };
    summary.pairs = Some(Pairs { dispatched: 1_000, combined: 990, missing: 8, shed: 2 });
    summary.quality = Some(Quality {
        loss: Some(2.9301),
        loss_f32: Some(2.9176),
        loss_uniform: Some(1000_f64.ln()),
        loss_top_k: Some(2.9244),
        loss_top_k_uniform_bits: Some(2.9361),
        loss_widths_kept: Some(2.9333),
        output_error: Some(0.031),
        output_error_widths_kept: Some(0.044),
        loss_f32_routed: Some(2.9201),
        loss_f32_pruned: Some(2.9188),
        loss_f32_pruned_by_frequency: Some(2.9351),
        tokens: 65_536,
    });
    summary.precision = Some(PrecisionFigures {
        budget_bytes: 2_765_952,
        allocator: "flock".to_owned(),
        sensitivity: "output".to_owned(),
        unit: "expert".to_owned(),
        cost: 0.0312,
        bytes: Some(2_764_800),
        exact_cost: Some(0.03),
        gap_to_exact: Some(0.04),
        dual_bound: 0.0299,
        exact: true,
        uniform_cost: Some(0.0551),
        uniform_bytes: Some(2_700_000),
    });
    summary.pruning = Some(PruningFigures {
        by: "reap".to_owned(),
        share: 0.25,
        experts: 128,
        pruned: 32,
        unlike_frequency: Some(25),
    });
    let served = ServedNodeLoads {
        max_over_mean: Some(1.041),
        dispatch_lower_bound: Some(1.041),
        lower_bound: Some(1.017),
        max_over_mean_even_split: Some(1.183),
        max_over_mean_round_robin: Some(1.724),
    };
    let name = "planned".to_owned();
    summary.placement = Some(PlacementFigures { name, replica_slots: 8, expected: None, served });
    summary.nodes = (0..4).map(|at| node(at, at != 2)).collect();
    summary.goals = vec![
        Goal { name: "p99_ms".to_owned(), limit: 50.0, measured: Some(31.2), met: true },
        Goal { name: "saving".to_owned(), limit: 0.91, measured: Some(0.906), met: false },
    ];
    summary
}

pub(super) fn node(node: u32, alive: bool) -> NodeFigures {
    NodeFigures {
        node,
        address: format!("10.0.0.{node}:7070"),
        experts: 32 + u64::from(node),
        bytes: 691_488,
        tokens: 192_000 - u64::from(node) * 1_111,
        busy_share: Some(0.71 - f64::from(node) * 0.05),
        alive,
    }
}

pub(super) fn layers() -> Layers {
    let figures = |layer: u32| LayerFigures {
        layer,
        loads_top_k: (0..64).map(|e| 240_000 / (e + 2 + u64::from(layer)) + 3_000).collect(),
        loads: (0..64).map(|e: u64| 10_000 + e * 37 % 97).collect(),
        bits: (0..64)
            .map(|e: u32| [2, 2, 3, 4, 2, 4, 2, 8][(e * (layer + 5) % 8) as usize])
            .collect(),
        bits_end: Vec::new(),
        places: Vec::new(),
        steps: Vec::new(),
    };
    Layers::new(vec![figures(0), figures(1)])
}

pub(super) fn latencies(samples: impl Iterator<Item = u64>) -> Latency {
    let mut latency = Latency::new();
    samples.for_each(|sample| latency.record(sample));
    latency
}

pub(super) fn request_latency() -> Latency {
    latencies((1..20_000_u64).map(|i| 4_000_000 + 60_000_000_000 / (i * 7 % 20_011 + 3)))
}

/// Rounds of two layers that converge: ε falls to zero, loads even out.
pub(super) fn settling(at: u64, steps: u64) -> RoundRow {
    let step = at / 2;
    let t = step as f64 / steps as f64;
    let noise = (at * 7_919 % 101) as f64 / 101.0;
    RoundRow {
        step,
        layer: (at % 2) as u32,
        epsilon_nash: if t > 0.7 { 0.0 } else { 0.3 * (-12.0 * t).exp() * (0.5 + noise) },
        relative_gap: Some(2e-4 + 0.05 * (-9.0 * t).exp() * (0.5 + noise)),
        max_over_mean: 1.0 + 0.02 * noise + 0.6 * (-10.0 * t).exp(),
        max_over_mean_top_k: Some(2.3 + 0.3 * noise),
        flock_max_over_mean: Some(1.3 + 0.1 * noise + 0.9 * (-6.0 * t).exp()),
        flock_epsilon_nash: Some(0.03 + 0.3 * (-5.0 * t).exp() * (0.6 + noise)),
        flock_relative_gap: Some(0.04 + 0.2 * (-5.0 * t).exp() * (0.6 + noise)),
        ..round(at)
    }
}

pub(super) fn round(at: u64) -> RoundRow {
    let fraction = at as f64 / 7.0;
    RoundRow {
        step: at,
        layer: (at % 3) as u32,
        tokens: 256 + at % 5,
        router: ["auction", "top-k", "größer ✓"][(at % 3) as usize].to_owned(),
        iterations: at * 3,
        passes: 1 + at % 4,
        epsilon_nash: fraction,
        relative_gap: (!at.is_multiple_of(4)).then_some(fraction * 1e-9),
        potential: -fraction,
        dual_bound: (!at.is_multiple_of(4)).then_some(fraction),
        max_over_mean: 1.0 + fraction,
        max_over_mean_top_k: (at < 30_000).then_some(2.0),
        score_loss: None,
        flock_max_over_mean: (at > 35_000).then_some(1.5),
        flock_epsilon_nash: Some(0.1),
        flock_relative_gap: (at.is_multiple_of(2)).then_some(0.2),
        route_ns: u64::MAX - at,
        dispatch_ns: at << 40,
        bytes_sent: at * 1_024,
        bytes_received: 0,
    }
}

pub(super) fn request(at: u64) -> RequestRow {
    RequestRow {
        request: at,
        step: (!at.is_multiple_of(11)).then_some(at / 8),
        tokens: 32,
        intended_ns: at * 1_000,
        started_ns: (!at.is_multiple_of(11)).then_some(at * 1_000 + 5),
        finished_ns: at * 1_000 + 900,
        latency_ns: 900,
        outcome: if at.is_multiple_of(11) { "shed" } else { "ok" }.to_owned(),
        loss_sum: (at.is_multiple_of(2)).then_some(at as f64 * 0.1),
        first_token_ns: None,
        generated: None,
    }
}
