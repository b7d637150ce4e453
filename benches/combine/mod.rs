//! Outputs summed in the run beside outputs summed at the workers.

use crate::peers::{LAYER, WIDTH, small_expert, worker};
use crate::shared::Failure;
use crate::shared::figures::median;
use agents::game::Choices;
use agents::ids::{ExpertId, NodeId, StepId, TokenId};
use agents::orders::{ExpertGroup, NodeOrder, Orders, PairGates, Replies};
use agents::rng::stream;
use nashflock::dispatch::{Dispatch, Remote, RemoteSettings, ShardAssignment};
use nashflock::measure::Clock;
use rand::RngExt as _;
use std::path::Path;
use std::sync::Arc;
use tokio::runtime::Runtime;

const TOKENS: usize = 256;
const EXPERTS: usize = 64;
const TOP_K: usize = 8;
const ROUNDS: usize = 5;
const WARM_UP: usize = 20;
const STEPS: usize = 100;

/// Prints the table: workers on Unix sockets, experts dealt to them in turn.
pub(crate) fn combine(
    folder: &Path,
    runtime: impl Fn() -> Result<Runtime, Failure>,
) -> Result<(), Failure> {
    println!("\n## Sums in the run and at the workers\n");
    println!(
        "| nodes | sent, KiB: exact | at worker | received, KiB: exact | at worker | step, µs: exact | at worker | ratio |"
    );
    println!("|---|---|---|---|---|---|---|---|");
    for nodes in [1, 2, 4] {
        let (orders, gates) = round(nodes);
        let hidden: Vec<f32> = (0..TOKENS * WIDTH).map(|i| (i % 11) as f32 * 0.1 - 0.5).collect();
        let workers = (0..nodes)
            .map(|node| {
                let path = folder.join(format!("combine-{nodes}-{node}"));
                worker(&format!("unix:{}", path.display()), None)
            })
            .collect::<Result<Vec<_>, _>>()?;
        let addresses: Vec<_> = workers.iter().map(|worker| worker.address.clone()).collect();
        let (mut times, mut bytes) = ([const { Vec::new() }; 2], [(0, 0); 2]);
        runtime()?.block_on(async {
            for _ in 0..ROUNDS {
                for (way, gates_sent) in [None, Some(&gates)].into_iter().enumerate() {
                    let settings =
                        RemoteSettings { hedge_budget: 0.0, ..RemoteSettings::default() };
                    let mut remote = Remote::connect(&addresses, settings).await?;
                    remote.load(shards(nodes)).await?;
                    let clock = Clock::start();
                    let mut taken = Vec::with_capacity(STEPS);
                    for step in 0..WARM_UP + STEPS {
                        let start_ns = clock.now_ns();
                        let replies = remote.deliver(&orders, gates_sent, &hidden, WIDTH).await?;
                        let sums = total(&orders, &replies, &gates, gates_sent.is_some());
                        assert!(sums.iter().all(|sum| sum.is_finite()));
                        if step >= WARM_UP {
                            taken.push((clock.now_ns() - start_ns) as f64 / 1e3);
                        }
                    }
                    times[way].push(median(&taken));
                    let steps = (WARM_UP + STEPS) as u64;
                    let served = remote.close().await;
                    let sent: u64 = served.nodes.iter().map(|node| node.sent_bytes).sum();
                    let received: u64 = served.nodes.iter().map(|node| node.received_bytes).sum();
                    bytes[way] = (sent / steps, received / steps);
                }
            }
            Ok::<_, Failure>(())
        })?;
        let ratio = median(times[0].iter().zip(&times[1]).map(|(exact, sums)| sums / exact));
        let [exact, sums] = times.map(median);
        let kib = |bytes: u64| bytes as f64 / 1024.0;
        let [(sent, received), (sent_sums, received_sums)] = bytes;
        println!(
            "| {nodes} | {:.0} | {:.0} | {:.0} | {:.0} | {exact:.0} | {sums:.0} | {ratio:.2} |",
            kib(sent),
            kib(sent_sums),
            kib(received),
            kib(received_sums)
        );
    }
    Ok(())
}

fn shards(nodes: usize) -> Vec<ShardAssignment> {
    let expert_weights = Arc::new(small_expert());
    let shard = |expert| ShardAssignment {
        node: NodeId::from_index(expert % nodes),
        layer: LAYER,
        expert: ExpertId::from_index(expert),
        expert_weights: expert_weights.clone(),
    };
    (0..EXPERTS).map(shard).collect()
}

/// Each token's experts drawn without favour, equal gates.
fn round(nodes: usize) -> (Orders, PairGates) {
    let mut rng = stream(1, "combine");
    let mut rows = Vec::with_capacity(TOKENS);
    let mut tokens_of = vec![Vec::new(); EXPERTS];
    for token in (0..TOKENS).map(TokenId::from_index) {
        let mut row: Vec<usize> = (0..EXPERTS).collect();
        for place in 0..TOP_K {
            row.swap(place, rng.random_range(place..EXPERTS));
        }
        row.truncate(TOP_K);
        row.sort_unstable();
        row.iter().for_each(|expert| tokens_of[*expert].push(token));
        rows.push(row.into_iter().map(ExpertId::from_index).collect());
    }
    let mut orders = Orders { step: StepId(0), layer: LAYER, nodes: Vec::new() };
    for node in 0..nodes {
        let mine = tokens_of.iter().enumerate().skip(node).step_by(nodes);
        let group = |(expert, tokens): (usize, &Vec<TokenId>)| ExpertGroup {
            expert: ExpertId::from_index(expert),
            tokens: tokens.clone(),
        };
        let groups = mine.filter(|(_, tokens)| !tokens.is_empty()).map(group).collect();
        orders.nodes.push(NodeOrder { node: NodeId::from_index(node), groups });
    }
    let gates = vec![1.0 / TOP_K as f32; TOKENS * TOP_K];
    (orders, PairGates::new(Choices::ragged(&rows), gates))
}

/// The layer's output, as the run sums it.
fn total(orders: &Orders, replies: &Replies, gates: &PairGates, are_sums: bool) -> Vec<f32> {
    let mut out = vec![0.0; TOKENS * WIDTH];
    let mut add = |token: TokenId, gate: f32, row: &[f32]| {
        let sum = &mut out[token.index() * WIDTH..][..WIDTH];
        sum.iter_mut().zip(row).for_each(|(sum, value)| *sum += gate * value);
    };
    for (order, reply) in orders.nodes.iter().zip(&replies.nodes) {
        let mut rows = reply.outputs.chunks_exact(WIDTH);
        if are_sums {
            order.tokens().into_iter().zip(rows).for_each(|(token, row)| add(token, 1.0, row));
            continue;
        }
        for group in &order.groups {
            for (token, row) in group.tokens.iter().zip(&mut rows) {
                add(*token, gates.of(*token, group.expert).expect("it chose it"), row);
            }
        }
    }
    out
}
