//! Writes docs/virtual.md: how fast clusters are simulated, and what is seen in them.
//!
//! `cargo bench --bench virtual_scale > docs/virtual.md`
#![allow(clippy::print_stdout, reason = "the page is the output")]

mod shared;

use nashflock::results::{BlockFigures, JointPlayFigures, Summary};
use shared::runs::{self, Running};
use shared::{Failure, Sections};
use std::path::Path;
use std::thread;
use std::time::Duration;

/// Seconds and memory that the largest run may take, and how much more a token may cost with more nodes.
const MINUTES_LIMIT: f64 = 10.0;
const MEMORY_LIMIT: f64 = 8e9;
const GROWTH_LIMIT: f64 = 1.3;

fn main() -> Result<(), Failure> {
    let folder = tempfile::tempdir()?;
    let bench = Bench { folder: folder.path() };
    let sections = Sections::asked();
    if sections.has("growth") {
        print!("{}", include_str!("virtual_scale.md"));
        bench.growth()?;
    }
    if sections.has("front-ends") {
        bench.front_ends()?;
    }
    if sections.has("rack-loss") {
        bench.rack_loss()?;
    }
    if sections.has("rack-uplinks") {
        bench.rack_uplinks()?;
    }
    if sections.has("azure-code") {
        bench.azure_code()?;
    }
    Ok(())
}

struct Bench<'a> {
    folder: &'a Path,
}

/// A run: its summary, that of its blocks, and the most memory that the process had.
struct Ran {
    summary: Summary,
    peak_bytes: f64,
}

impl Ran {
    fn blocks(&self) -> &BlockFigures {
        let virtual_time = self.summary.virtual_time.as_ref().expect("a run of virtual nodes");
        virtual_time.blocks.as_ref().expect("a run of blocks")
    }

    /// The worst of the certified periods by gap.
    fn worst(
        &self,
        of: impl Fn(&nashflock::results::JointFigures) -> JointPlayFigures,
    ) -> JointPlayFigures {
        let plays = self.blocks().joint.iter().map(of);
        plays.max_by(|a, b| a.relative_gap.total_cmp(&b.relative_gap)).unwrap_or_default()
    }
}

impl Bench<'_> {
    fn run(&self, scenario: &str, sets: &[String]) -> Result<Ran, Failure> {
        let scenario = Path::new(env!("CARGO_MANIFEST_DIR")).join("scenarios").join(scenario);
        let out = self.folder.join("out");
        runs::clear(&out)?;
        let mut child = Running::start(&mut runs::run(&scenario, &out, sets))?;
        let mut peak_bytes = 0;
        let status = loop {
            peak_bytes = peak_bytes.max(child.memory_bytes("VmHWM").unwrap_or(0));
            if let Some(status) = child.try_wait()? {
                break status;
            }
            thread::sleep(Duration::from_millis(20));
        };
        let (_, summary) =
            runs::ended(status, &out).map_err(|error| format!("{sets:?}: {error}"))?;
        Ok(Ran { summary, peak_bytes: peak_bytes as f64 })
    }

    /// The same load a node, the same number of tokens, and ever more nodes.
    fn growth(&self) -> Result<(), Failure> {
        println!("## Growth\n");
        println!(
            "`scenarios/hundred-thousand-nodes.toml`: 4096 experts, 8 a token, 256 front ends, two threads. With \
             fewer nodes requests come more slowly and periods are longer, so that each node and each period has \
             the same load; 3.2·10^7 tokens each, and 10^8 and 10^9 in the last rows. Memory is the most that the \
             process had.\n"
        );
        println!(
            "| nodes | tokens | events | time | events/s | time a token | memory | gap of the joint play |"
        );
        println!("|---:|---:|---:|---:|---:|---:|---:|---:|");
        let mut per_token = Vec::new();
        let mut rows = Vec::new();
        for (nodes, requests) in [
            (1_000_u32, 500_000),
            (10_000, 500_000),
            (100_000, 500_000),
            (100_000, 1_562_500),
            (100_000, 15_625_000),
        ] {
            let slower = 100_000.0 / f64::from(nodes);
            let sets = [
                format!("nodes.count={nodes}"),
                format!("load.requests={requests}"),
                format!("load.rate_per_s={}", 1e6 / slower),
                format!("virtual.blocks.period_ms={}", 20.0 * slower),
                format!("virtual.blocks.delay_ms={}", 5.0 * slower),
                format!("virtual.blocks.stretch_ms={}", 100.0 * slower),
            ];
            let ran = self.run("hundred-thousand-nodes.toml", &sets)?;
            let blocks = ran.blocks();
            let seconds = blocks.machine_ns as f64 / 1e9;
            let tokens = blocks.tokens.arrived as f64;
            per_token.push(blocks.machine_ns as f64 / tokens);
            println!(
                "| {nodes} | {tokens:.2e} | {:.2e} | {seconds:.1} s | {:.2e} | {:.0} ns | {:.2} GB | {:.2} % |",
                blocks.events as f64,
                blocks.events as f64 / seconds,
                blocks.machine_ns as f64 / tokens,
                ran.peak_bytes / 1e9,
                ran.worst(|joint| joint.played).relative_gap * 100.0
            );
            rows.push(ran);
        }
        let growth = per_token[2] / per_token[0];
        let minutes = |ran: &Ran| ran.blocks().machine_ns as f64 / 6e10;
        let [.., part, whole] = &rows[..] else { unreachable!("there are five rows") };
        println!(
            "\nA token costs {growth:.2} times as much with 10^5 nodes as with 10^3 (limit {GROWTH_LIMIT}); 10^8 tokens \
             take {:.2} minutes and {:.2} GB, 10^9 {:.2} minutes and {:.2} GB (limits for 10^8: {MINUTES_LIMIT} minutes and \
             {:.0} GB).\n",
            minutes(part),
            part.peak_bytes / 1e9,
            minutes(whole),
            whole.peak_bytes / 1e9,
            MEMORY_LIMIT / 1e9
        );
        let worst = whole.worst(|joint| joint.played);
        let [plain, informed] =
            [whole.worst(|joint| joint.plain), whole.worst(|joint| joint.informed)];
        println!("The last row's joint play, at the worst of its certified periods:\n");
        println!("| play | gap to the bound | largest regret | mean regret | max over mean |");
        println!("|---|---:|---:|---:|---:|");
        for (name, play) in
            [("as played", worst), ("plain top-k", plain), ("who knows all", informed)]
        {
            play_row(name, &play);
        }
        limits(whole);
        Ok(())
    }

    /// Front ends against the age and the share of what they hear.
    fn front_ends(&self) -> Result<(), Failure> {
        println!("## Front ends\n");
        println!(
            "`scenarios/front-ends.toml`: 64 experts, 4 a token, 16-token requests at 10^5 a second. Each front end \
             hears, a delay after each period of 10 ms, the loads of `fan-out` others and takes what it does not \
             hear to be alike; it goes 0.3 of the way to the price of the loads heard. The gap is that of all \
             front ends' tokens of a period together, the worst of the last eight; plain top-k and the play of \
             who knows all are the controls.\n"
        );
        println!(
            "| front ends | fan-out | delay | gap | largest regret | mean regret | max over mean |"
        );
        println!("|---:|---:|---:|---:|---:|---:|---:|");
        let mut controls = None;
        for front_ends in [1, 4, 16, 64, 256] {
            for fan_out in [u32::MAX, 4, 1] {
                if fan_out != u32::MAX && fan_out + 1 >= front_ends {
                    continue;
                }
                for delay_ms in [1.0, 10.0, 40.0] {
                    let heard = fan_out.min(65_535);
                    let sets = [
                        format!("virtual.blocks.front_ends={front_ends}"),
                        format!("virtual.blocks.fan_out={heard}"),
                        format!("virtual.blocks.delay_ms={delay_ms}"),
                    ];
                    let ran = self.run("front-ends.toml", &sets)?;
                    let play = ran.worst(|joint| joint.played);
                    let fan_out =
                        if fan_out == u32::MAX { "all".to_owned() } else { fan_out.to_string() };
                    println!(
                        "| {front_ends} | {fan_out} | {delay_ms} ms | {:.3} % | {:.3} | {:.4} | {:.3} |",
                        play.relative_gap * 100.0,
                        play.epsilon_nash,
                        play.regret_mean,
                        play.max_over_mean
                    );
                    controls = Some((ran.worst(|j| j.plain), ran.worst(|j| j.informed)));
                }
            }
        }
        let (plain, informed) = controls.expect("runs");
        println!(
            "\nControls, of the last row's requests: plain top-k has a gap of {:.2} % and a largest load of {:.2}, who \
             knows all {:.4} % and {:.2}.\n",
            plain.relative_gap * 100.0,
            plain.max_over_mean,
            informed.relative_gap * 100.0,
            informed.max_over_mean
        );
        Ok(())
    }

    fn rack_loss(&self) -> Result<(), Failure> {
        let ran = self.run("rack-loss.toml", &[])?;
        let blocks = ran.blocks();
        println!("## A rack is lost\n");
        println!(
            "`scenarios/rack-loss.toml`: 200 of 10^4 nodes are down from 600 ms to 1100 ms. Tokens are told by when \
             they arrived: in time (10 ms), late, lost since a second host broke off too, shed. The control is the \
             time before.\n"
        );
        println!("| from | tokens | in time | late | lost | shed | mean latency | longest |");
        println!("|---:|---:|---:|---:|---:|---:|---:|---:|");
        for of in &blocks.stretches {
            println!(
                "| {} ms | {} | {} | {} | {} | {} | {:.2} ms | {:.2} ms |",
                of.from_ns / 1_000_000,
                of.tokens.arrived,
                of.tokens.ok,
                of.tokens.late,
                of.tokens.lost,
                of.tokens.shed,
                of.latency_mean_ns.unwrap_or(0.0) / 1e6,
                of.latency_max_ns as f64 / 1e6
            );
        }
        let all = &blocks.tokens;
        let sum = all.ok + all.late + all.lost + all.shed;
        assert_eq!(all.arrived, sum, "each token has one outcome");
        println!(
            "\nOf {} tokens {} are in time, {} late, {} lost and {} shed, which adds up exactly. {} connections broke, {} \
             messages were asked anew of another node, {} answers came too late.\n",
            all.arrived,
            all.ok,
            all.late,
            all.lost,
            all.shed,
            blocks.broken,
            blocks.asked_again,
            blocks.late_answers
        );
        Ok(())
    }

    /// Uplinks of ever less bandwidth, and what keeps to few racks.
    fn rack_uplinks(&self) -> Result<(), Failure> {
        println!("## Uplinks of racks\n");
        println!(
            "`scenarios/rack-uplinks.toml`: 1024 nodes in racks of 32, 256 front ends, 40-token requests at 10^6 a \
             second; ports of 400 Gbit/s. A rack sends to others what its 32 ports could over the ratio; without a ratio \
             nothing is shared, the control. Requests may ask anybody, hosts of their own rack first, or the experts of \
             so many racks, their own first. Bytes are those that leave racks for each token; gap and score loss are those \
             of the joint play, who keeps to few racks gives up affinity for \
             it: displaced are the requests that did.\n"
        );
        println!(
            "| ratio | experts | bytes | links busy | busiest | wait at a link | p50 | p99 | displaced | gap | score loss |"
        );
        println!("|---:|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|");
        for (ratio, gbit_per_s) in
            [("none", 0), ("2 to 1", 6400), ("3 to 1", 4267), ("4 to 1", 3200)]
        {
            for (name, own_rack, racks_max) in [
                ("anywhere", false, 0),
                ("own rack first", true, 0),
                ("4 racks", true, 4),
                ("2 racks", true, 2),
                ("own rack alone", true, 1),
            ] {
                let sets = [
                    format!("virtual.rack_gbit_per_s={gbit_per_s}"),
                    format!("virtual.blocks.own_rack={own_rack}"),
                    format!("virtual.blocks.racks_max={racks_max}"),
                ];
                let ran = self.run("rack-uplinks.toml", &sets)?;
                uplinks_row(ratio, name, &ran);
            }
        }
        println!();
        Ok(())
    }

    /// Only where the trace is at hand.
    fn azure_code(&self) -> Result<(), Failure> {
        let trace =
            Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/data/azure-llm-2023/code.csv");
        println!("## Bursts\n");
        if !trace.is_file() {
            println!("Not measured: the trace is not at hand.\n");
            return Ok(());
        }
        println!(
            "`scenarios/azure-code.toml`: the arrivals of the Azure LLM inference trace 2023 (code, 8819 requests, \
             CC-BY 4.0) at the same mean rate as Poisson arrivals, the control; 1000 nodes, 64 tokens a request.\n"
        );
        println!("| arrivals | p50 | p99 | p99.9 | longest | mean wait at a node |");
        println!("|---|---:|---:|---:|---:|---:|");
        let trace = format!("load.trace=\"{}\"", trace.display());
        for (name, sets) in [
            ("recorded", vec!["load.arrival=trace".to_owned(), trace]),
            ("gamma, the same variation", Vec::new()),
            ("Poisson", vec!["load.arrival=poisson".to_owned()]),
        ] {
            let ran = self.run("azure-code.toml", &sets)?;
            let latency = &ran.summary.latency_ns;
            let ms = |ns: Option<u64>| ns.unwrap_or(0) as f64 / 1e6;
            let wait = ran.blocks().limits[0].measured.unwrap_or(0.0) / 1e6;
            println!(
                "| {name} | {:.2} ms | {:.2} ms | {:.2} ms | {:.2} ms | {wait:.3} ms |",
                ms(latency.p50),
                ms(latency.p99),
                ms(latency.p999),
                ms(latency.max)
            );
        }
        println!();
        Ok(())
    }
}

fn uplinks_row(ratio: &str, name: &str, ran: &Ran) {
    let (blocks, play) = (ran.blocks(), ran.worst(|joint| joint.played));
    let virtual_time = ran.summary.virtual_time.as_ref().expect("a run of virtual nodes");
    let latency = &ran.summary.latency_ns;
    let ms = |ns: Option<u64>| ns.unwrap_or(0) as f64 / 1e6;
    let links = virtual_time.uplinks.first().map_or_else(
        || "| – | – | – | – ".to_owned(),
        |of| {
            format!(
                "| {:.0} | {:.1} % | {:.1} % | {:.1} µs ",
                of.bytes as f64 / blocks.tokens.arrived as f64,
                of.busy_mean * 100.0,
                of.busy_max * 100.0,
                of.wait_mean_ns.unwrap_or(0.0) / 1e3
            )
        },
    );
    println!(
        "| {ratio} | {name} {links}| {:.3} ms | {:.3} ms | {:.1} % | {:.2} % | {:.2} % |",
        ms(latency.p50),
        ms(latency.p99),
        100.0 * blocks.displaced as f64 / ran.summary.outcomes.total().max(1) as f64,
        play.relative_gap * 100.0,
        play.score_loss * 100.0
    );
}

fn play_row(name: &str, play: &JointPlayFigures) {
    println!(
        "| {name} | {:.3} % | {:.3} | {:.4} | {:.3} |",
        play.relative_gap * 100.0,
        play.epsilon_nash,
        play.regret_mean,
        play.max_over_mean
    );
}

fn limits(ran: &Ran) {
    println!("\nMeasured beside what theory says of it:\n");
    println!("| figure | measured | limit | which is |");
    println!("|---|---:|---:|---|");
    for of in &ran.blocks().limits {
        println!(
            "| {} | {:.4e} | {:.4e} | {} |",
            of.name,
            of.measured.unwrap_or(f64::NAN),
            of.limit.unwrap_or(f64::NAN),
            of.says
        );
    }
    println!();
}
