//! Which node computes an expert's tokens where two hold it: steps on four workers, all healthy or one slow.

use crate::peers::{Process, worker};
use crate::shared::Failure;
use crate::shared::figures::median;
use agents::expert::{BitWidth, Expert, ExpertShape};
use agents::ids::{ExpertId, LayerId, NodeId, StepId, TokenId};
use agents::orders::{ExpertGroup, NodeOrder, NodeReply, Orders};
use agents::placement::{Placement, ReplicaChoice, choose_copies, dispatch_tokens, pairs_by_node};
use agents::rng::stream;
use nashflock::dispatch::placement::RoundRobin;
use nashflock::dispatch::{Dispatch as _, Remote, RemoteSettings, ShardAssignment, endpoint};
use nashflock::measure::Clock;
use nashflock::wire;
use proto::expert_service_client::ExpertServiceClient;
use rand::RngExt as _;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, LazyLock};
use std::thread;
use std::time::Duration;
use tokio::task::JoinSet;
use tonic::transport::Channel;

const ROUNDS: usize = 3;
const STEPS: usize = 350;
/// Steps at the start that do not count: every rule begins without knowing the nodes.
const WARM_UP: usize = 100;
const PERIOD: Duration = Duration::from_millis(10);

const NODES: usize = 4;
const EXPERTS: usize = 64;
const TOKENS: usize = 64;
const TOP_K: usize = 4;
const WIDTH: usize = 256;
const LAYER: LayerId = LayerId(0);
const DEADLINE: Duration = Duration::from_secs(10);

/// What sends the steps.
#[derive(Clone, Copy, PartialEq)]
enum Sender {
    /// A balanced channel of tonic for each pair of nodes that hold the same experts.
    Tonic,
    /// The dispatcher of this project, with so much of the pairs for hedges.
    Own(ReplicaChoice, f64),
}

const SENDERS: [(&str, Sender); 7] = [
    ("tonic's balanced channels", Sender::Tonic),
    ("round robin", Sender::Own(ReplicaChoice::RoundRobin, 0.0)),
    ("random", Sender::Own(ReplicaChoice::Random, 0.0)),
    ("planned", Sender::Own(ReplicaChoice::Planned, 0.0)),
    ("two choices", Sender::Own(ReplicaChoice::TwoChoices, 0.0)),
    ("planned, hedged", Sender::Own(ReplicaChoice::Planned, 0.05)),
    ("two choices, hedged", Sender::Own(ReplicaChoice::TwoChoices, 0.05)),
];

/// What a run of steps came to.
struct Run {
    p50_ms: f64,
    p99_ms: f64,
    /// Of all outputs.
    hash: blake3::Hash,
    /// Pairs that the slow node was ordered, over all.
    share: f64,
}

/// Prints the table.
pub(crate) fn choice(
    runtime: fn() -> Result<tokio::runtime::Runtime, Failure>,
) -> Result<(), Failure> {
    println!("## Choice between replicas\n");
    println!(
        "| who chooses | healthy p50, ms | p99 | one slowed: p50, ms | p99 | of the pairs, to the slow one | same outputs |"
    );
    println!("|---|---|---|---|---|---|---|");
    let runtime = runtime()?;
    let mut runs: BTreeMap<(usize, bool), Vec<Run>> = BTreeMap::new();
    for _ in 0..ROUNDS {
        for (at, (_, sender)) in SENDERS.iter().enumerate() {
            for slowed in [false, true] {
                let run = runtime.block_on(run(*sender, slowed))?;
                runs.entry((at, slowed)).or_default().push(run);
            }
        }
    }
    let expected = runs[&(0, false)][0].hash;
    for (at, (name, _)) in SENDERS.iter().enumerate() {
        let of = |slowed, part: fn(&Run) -> f64| median(runs[&(at, slowed)].iter().map(part));
        let same = [false, true].iter().flat_map(|slowed| &runs[&(at, *slowed)]);
        println!(
            "| {name} | {:.2} | {:.2} | {:.2} | {:.2} | {} | {} |",
            of(false, |run| run.p50_ms),
            of(false, |run| run.p99_ms),
            of(true, |run| run.p50_ms),
            of(true, |run| run.p99_ms),
            match SENDERS[at].1 {
                Sender::Tonic => "not known".into(),
                Sender::Own(..) => format!("{:.1} %", 100.0 * of(true, |run| run.share)),
            },
            same.into_iter().all(|run| run.hash == expected),
        );
    }
    Ok(())
}

/// The steps of a run: the same for everybody.
async fn run(sender: Sender, slowed: bool) -> Result<Run, Failure> {
    // A balanced channel of tonic takes TCP addresses alone.
    let workers =
        (0..NODES).map(|_| worker("127.0.0.1:0", None)).collect::<Result<Vec<Process>, _>>()?;
    let addresses: Vec<String> = workers.iter().map(|worker| worker.address.clone()).collect();
    let hedge_budget = if let Sender::Own(_, budget) = sender { budget } else { 0.0 };
    let settings = RemoteSettings { hedge_budget, ..RemoteSettings::default() };
    let mut remote = Remote::connect(&addresses, settings).await?;
    let deal = RoundRobin::deal(EXPERTS, NODES, 2)?;
    remote.load(shards(deal)).await?;
    let balanced = balanced(&addresses)?;
    let _slow = slowed.then(|| Slowed::start(workers[1].id()));

    let mut rng = stream(7, "steps of the choice between replicas");
    let hidden: Vec<f32> = (0..TOKENS * WIDTH).map(|_| rng.random::<f32>() - 0.5).collect();
    let mut hash = blake3::Hasher::new();
    let mut times = Vec::with_capacity(STEPS - WARM_UP);
    let (mut pairs, mut to_slow) = (0, 0);
    let clock = Clock::start();
    for step in 0..STEPS {
        let tokens_of = tokens_of(&mut rng);
        let intended_ns = u64::try_from(PERIOD.as_nanos())? * step as u64;
        thread::sleep(Duration::from_nanos(intended_ns.saturating_sub(clock.now_ns())));
        let answers = match sender {
            Sender::Tonic => through_tonic(&balanced, deal, &tokens_of, &hidden).await?,
            Sender::Own(choice, _) => {
                let orders = chosen(&remote, choice, deal, &tokens_of, step)?;
                let on = orders.nodes.iter().map(|order| (order.node, order.pairs()));
                for (node, count) in on.filter(|_| step >= WARM_UP) {
                    pairs += count;
                    to_slow += if node == NodeId(1) { count } else { 0 };
                }
                let replies = remote.send(&orders, &hidden, WIDTH).await?;
                orders.nodes.into_iter().zip(replies.nodes).collect()
            }
        };
        let took_ns = clock.now_ns() - intended_ns;
        if step >= WARM_UP {
            times.push(took_ns);
        }
        for row in in_order(&answers) {
            hash.update(bytemuck::cast_slice(row));
        }
    }
    times.sort_unstable();
    let ms = |percent: usize| times[times.len() * percent / 100] as f64 / 1e6;
    let share = if pairs == 0 { 0.0 } else { to_slow as f64 / pairs as f64 };
    Ok(Run { p50_ms: ms(50), p99_ms: ms(99), hash: hash.finalize(), share })
}

/// Quantized once.
static WEIGHTS: LazyLock<Vec<Arc<Expert>>> = LazyLock::new(|| {
    let shape = ExpertShape { width: WIDTH, hidden: 512 };
    let weights = |e: usize| {
        let mut rng = stream(e as u64, "weights of the choice between replicas");
        let mut part = || (0..WIDTH * 512).map(|_| rng.random::<f32>() - 0.5).collect::<Vec<_>>();
        Arc::new(Expert::quantize(shape, &part(), &part(), &part(), BitWidth::Four, 32))
    };
    (0..EXPERTS).map(weights).collect()
});

fn shards(deal: RoundRobin) -> Vec<ShardAssignment> {
    let on = |e: usize| {
        let (expert, expert_weights) = (ExpertId::from_index(e), WEIGHTS[e].clone());
        deal.hosts(LAYER, expert).map(move |node| ShardAssignment {
            node,
            layer: LAYER,
            expert,
            expert_weights: expert_weights.clone(),
        })
    };
    (0..EXPERTS).flat_map(on).collect()
}

/// Each token's experts, a few of which are asked for more often.
fn tokens_of(rng: &mut impl rand::Rng) -> Vec<Vec<TokenId>> {
    let mut tokens_of = vec![Vec::new(); EXPERTS];
    for token in (0..TOKENS).map(TokenId::from_index) {
        let mut left = TOP_K;
        while left > 0 {
            let most = if rng.random_bool(0.25) { EXPERTS / 8 } else { EXPERTS };
            let tokens = &mut tokens_of[rng.random_range(0..most)];
            if tokens.last() != Some(&token) {
                tokens.push(token);
                left -= 1;
            }
        }
    }
    tokens_of
}

/// Orders under a rule, as the core writes them.
fn chosen(
    remote: &Remote,
    choice: ReplicaChoice,
    deal: RoundRobin,
    tokens_of: &[Vec<TokenId>],
    step: usize,
) -> Result<Orders, Failure> {
    let hosts = |e| {
        let all: Vec<NodeId> = deal.hosts(LAYER, ExpertId::from_index(e)).collect();
        let available: Vec<NodeId> =
            all.iter().copied().filter(|node| remote.is_available(*node)).collect();
        if available.is_empty() { all } else { available }
    };
    let hosts: Vec<Vec<NodeId>> = (0..EXPERTS).map(hosts).collect();
    let placement = Placement::new(NODES, &hosts)?;
    let loads: Vec<u32> =
        tokens_of.iter().map(|tokens| u32::try_from(tokens.len())).collect::<Result<_, _>>()?;
    let shares = if choice == ReplicaChoice::Planned {
        dispatch_tokens(&placement, &loads)?.shares
    } else {
        let known: Vec<_> =
            (0..NODES).map(|node| remote.node_load(NodeId::from_index(node))).collect();
        let mut rng = stream(7, &format!("replica choice {step}"));
        choose_copies(choice, &placement, &loads, &known, step, &mut rng)
    };
    let mut groups_of = vec![Vec::new(); NODES];
    for (expert, tokens) in (0..).map(ExpertId).zip(tokens_of) {
        let mut rest = tokens.as_slice();
        for (host, share) in
            placement.hosts(expert).iter().zip(&shares[placement.copies_of(expert)])
        {
            let (tokens, after) = rest.split_at(*share as usize);
            rest = after;
            if !tokens.is_empty() {
                groups_of[host.index()].push(ExpertGroup { expert, tokens: tokens.to_vec() });
            }
        }
    }
    assert_eq!(pairs_by_node(&placement, &shares).iter().sum::<u64>(), (TOKENS * TOP_K) as u64);
    let nodes = groups_of.into_iter().enumerate().filter(|(_, groups)| !groups.is_empty());
    let nodes =
        nodes.map(|(n, groups)| NodeOrder { node: NodeId::from_index(n), groups }).collect();
    Ok(Orders { step: StepId(u32::try_from(step)?), layer: LAYER, nodes })
}

/// By first host, which has the experts in common with the next.
fn balanced(addresses: &[String]) -> Result<Vec<Channel>, Failure> {
    let pair = |first: usize| {
        let both = [first, (first + 1) % NODES].map(|node| endpoint(&addresses[node]));
        let both = both.into_iter().collect::<Result<Vec<_>, _>>()?;
        Ok(Channel::balance_list(both.into_iter()))
    };
    (0..NODES).map(pair).collect()
}

/// One call for each pair of nodes, to whichever of them tonic takes.
async fn through_tonic(
    balanced: &[Channel],
    deal: RoundRobin,
    tokens_of: &[Vec<TokenId>],
    hidden: &[f32],
) -> Result<Vec<(NodeOrder, NodeReply)>, Failure> {
    let mut calls = JoinSet::new();
    for (first, channel) in balanced.iter().enumerate() {
        let node = NodeId::from_index(first);
        let experts = (0..).map(ExpertId).zip(tokens_of);
        let groups: Vec<ExpertGroup> = experts
            .filter(|(expert, tokens)| {
                deal.first_host(LAYER, *expert) == node && !tokens.is_empty()
            })
            .map(|(expert, tokens)| ExpertGroup { expert, tokens: tokens.clone() })
            .collect();
        let order = NodeOrder { node, groups };
        let ticket = wire::Ticket { layer: LAYER, node, sequence: 1, ..wire::Ticket::default() };
        let request = wire::encode_order(ticket, &order, hidden, WIDTH, DEADLINE, 64 << 20)?;
        let mut client = ExpertServiceClient::new(channel.clone());
        calls.spawn(async move {
            let mut replies = client.compute(tokio_stream::iter([request])).await?.into_inner();
            let mut outputs = wire::Outputs::new(ticket, order.pairs(), WIDTH);
            while let Some(piece) = replies.message().await? {
                if let Some(reply) = outputs.take(piece)? {
                    return Ok::<_, Failure>((order, reply));
                }
            }
            Err("the stream ended".into())
        });
    }
    let mut answers = Vec::with_capacity(NODES);
    while let Some(answer) = calls.join_next().await {
        answers.push(answer??);
    }
    Ok(answers)
}

/// The outputs by expert and token, whoever computed them.
fn in_order(answers: &[(NodeOrder, NodeReply)]) -> Vec<&[f32]> {
    let mut rows = BTreeMap::new();
    for (order, reply) in answers {
        let pairs = order.groups.iter().flat_map(|g| g.tokens.iter().map(|t| (g.expert, *t)));
        rows.extend(pairs.zip(reply.outputs.chunks_exact(WIDTH)));
    }
    rows.into_values().collect()
}

/// A process that is stopped for 90 ms of every 100 ms until this is dropped.
struct Slowed {
    over: Arc<AtomicBool>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Slowed {
    fn start(pid: u32) -> Self {
        let over = Arc::new(AtomicBool::new(false));
        let until = Arc::clone(&over);
        let thread = thread::spawn(move || {
            while !until.load(Relaxed) {
                let sent = crate::signal("STOP", pid);
                thread::sleep(Duration::from_millis(90));
                if sent.and_then(|()| crate::signal("CONT", pid)).is_err() {
                    break;
                }
                thread::sleep(Duration::from_millis(10));
            }
        });
        Self { over, thread: Some(thread) }
    }
}

impl Drop for Slowed {
    fn drop(&mut self) {
        self.over.store(true, Relaxed);
        // It cannot panic.
        let _ = self.thread.take().map(thread::JoinHandle::join);
    }
}
