//! The figures of a run.

use super::encode::{Families, Labels, by, one, seconds};
use super::page::Page;
use super::{ExportError, MetricsAddress};
use crate::measure::Buckets;
use crate::results::{FaultFigures, LayerSnapshot, NodeSnapshot, NodeState, PaceState, Snapshot};
use crate::run::Progress;
use crate::run::timeline::{STAGES, Took, What};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;
use prometheus_client::registry::Unit;
use std::fmt;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

/// Experts of a layer, and figures of all layers together, up to which each expert's load is told.
const EXPERTS_MAX: usize = 256;
const EXPERT_FIGURES_MAX: usize = 4_096;

/// Layers whose figures are told.
const LAYERS_MAX: usize = 256;

/// Bounds of the times of stages, orders and computing, ns: from 10 µs to 10 s.
const STAGE_BOUNDS_NS: [u64; 13] = crate::worker::COMPUTE_BOUNDS_NS;

/// Bounds of what requests waited, ns: from 1 ms to 60 s.
const LATENCY_BOUNDS_NS: [u64; 14] = [
    1_000_000,
    2_500_000,
    5_000_000,
    10_000_000,
    25_000_000,
    50_000_000,
    100_000_000,
    250_000_000,
    500_000_000,
    1_000_000_000,
    2_500_000_000,
    5_000_000_000,
    15_000_000_000,
    60_000_000_000,
];

/// The figures of a run that tells this of its progress, served until this is dropped.
#[derive(Debug)]
pub struct RunPage {
    page: Page,
    figures: Arc<RunFigures>,
}

impl RunPage {
    /// Serves them from now on.
    ///
    /// # Errors
    /// The address cannot be listened on.
    pub fn serve(address: MetricsAddress) -> Result<Self, ExportError> {
        let figures = Arc::<RunFigures>::default();
        Ok(Self { page: Page::serve(address, OfRun(Arc::clone(&figures)))?, figures })
    }

    /// Where they are served.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.page.address()
    }

    /// How long who scrapes them may take to do it once more; nothing where nobody has.
    #[must_use]
    pub fn awaited_for(&self) -> Option<Duration> {
        self.page.awaited_for()
    }

    /// The run is over: serves its last figures until they have been scraped, or for this time.
    pub async fn end_when_read(self, within: Duration) {
        self.phase("over");
        self.page.end_when_read(within).await;
    }
}

/// What is kept of a run between two looks at the page.
#[derive(Debug)]
struct RunFigures {
    latest: Mutex<Snapshot>,
    stages: [Buckets; STAGES.len()],
    orders: Buckets,
    computing: Buckets,
    requests: Buckets,
    first_tokens: Buckets,
    tokens: Buckets,
}

impl Default for RunFigures {
    fn default() -> Self {
        let [stages, orders, computing] = [(); 3].map(|()| || Buckets::new(&STAGE_BOUNDS_NS));
        let latency = || Buckets::new(&LATENCY_BOUNDS_NS);
        let phase = "starting".to_owned();
        Self {
            latest: Mutex::new(Snapshot { phase, ..Snapshot::default() }),
            stages: std::array::from_fn(|_| stages()),
            orders: orders(),
            computing: computing(),
            requests: latency(),
            first_tokens: latency(),
            tokens: latency(),
        }
    }
}

impl RunFigures {
    fn latest(&self) -> MutexGuard<'_, Snapshot> {
        self.latest.lock().expect("no holder of this lock can panic")
    }
}

impl Progress for RunPage {
    fn phase(&self, name: &str) {
        name.clone_into(&mut self.figures.latest().phase);
    }

    fn answered(&self, _answered: u64, _requests: u64) {}

    fn wants_snapshots(&self) -> bool {
        true
    }

    fn snapshot(&self, snapshot: &Snapshot) {
        let mut latest = self.figures.latest();
        let phase = std::mem::take(&mut latest.phase);
        *latest = Snapshot { phase, ..snapshot.clone() };
    }

    fn wants_times(&self) -> bool {
        true
    }

    fn took(&self, took: &Took) {
        let figures = &*self.figures;
        let ns = took.to_ns.saturating_sub(took.from_ns);
        match took.what {
            What::Stage { name, .. } => {
                if let Some(at) = STAGES.iter().position(|stage| *stage == name) {
                    figures.stages[at].count(ns);
                }
            }
            What::Order { .. } => figures.orders.count(ns),
            What::Computing { .. } => figures.computing.count(ns),
            What::Request { decoded, .. } => {
                figures.requests.count(ns);
                if let Some(decoded) = decoded {
                    let first_ns = decoded.first_token_ns;
                    figures.first_tokens.count(first_ns.saturating_sub(took.from_ns));
                    let further = u64::from(decoded.tokens.saturating_sub(1));
                    let took_ns = took.to_ns.saturating_sub(first_ns);
                    took_ns
                        .checked_div(further)
                        .into_iter()
                        .for_each(|ns| figures.tokens.count(ns));
                }
            }
            What::Batch { .. } | What::Step { .. } => {}
        }
    }
}

/// Encodes it when it is asked for.
#[derive(Debug)]
struct OfRun(Arc<RunFigures>);

impl Collector for OfRun {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let snapshot = self.0.latest().clone();
        let mut families = Families(encoder);
        progress(&mut families, &snapshot)?;
        play(&mut families, &snapshot)?;
        times(&mut families, &self.0)?;
        nodes(&mut families, &snapshot)?;
        of_nodes(&mut families, &snapshot.nodes)
    }
}

fn progress(families: &mut Families<'_>, snapshot: &Snapshot) -> fmt::Result {
    let Snapshot { scenario, router, seed, phase, .. } = snapshot;
    let run: Labels = vec![
        ("scenario", scenario.clone()),
        ("router", router.clone()),
        ("seed", seed.to_string()),
    ];
    families.gauge(("run_info", None), "What is run; always 1", [(run, 1_u64)])?;
    families.gauge(("run_phase", None), "1 for what it does now", [(by("phase", phase), 1_u64)])?;
    let is_paused = snapshot.pace == PaceState::Paused;
    families.gauge(("paused", None), "1 while the run stands still", one(u64::from(is_paused)))?;
    families.gauge(
        ("serving", Some(Unit::Seconds)),
        "Time since the start of serving, without pauses",
        one(seconds(snapshot.elapsed_ns)),
    )?;
    families.gauge(("run_requests", None), "Requests of the run", one(snapshot.requests))?;
    families.counter(
        ("requests", None),
        "Requests that ended, by outcome",
        snapshot.outcomes.rows().map(|(outcome, count)| (by("outcome", outcome), count)),
    )?;
    families.gauge(("run_steps", None), "Batches or steps of the run", one(snapshot.steps))?;
    families.counter(
        ("steps", None),
        "Batches, or steps of decoding, that were played",
        one(snapshot.steps_done),
    )?;
    families.counter(
        ("rounds", None),
        "Layers that were played, over all batches",
        one(snapshot.rounds),
    )?;
    families.counter(
        ("tokens", None),
        "Tokens that were played, of requests under way too",
        one(snapshot.tokens_played),
    )?;
    families.counter(
        ("tokens_answered", None),
        "Tokens of requests with their whole answer",
        one(snapshot.tokens_answered),
    )
}

fn play(families: &mut Families<'_>, snapshot: &Snapshot) -> fmt::Result {
    let only = |figure: Option<f64>| figure.map(|figure| (Labels::new(), figure));
    families.gauge(
        ("epsilon_nash_worst", None),
        "Largest epsilon of all rounds, score units",
        only(snapshot.epsilon_nash_worst),
    )?;
    families.gauge(
        ("relative_gap_worst", None),
        "Largest gap to the optimum of all rounds, a share",
        only(snapshot.relative_gap_worst),
    )?;
    let played = snapshot.layers.iter().filter(|layer| layer.tokens > 0).take(LAYERS_MAX);
    let layers = |figure: fn(&LayerSnapshot) -> Option<f64>| {
        let of = move |layer: &LayerSnapshot| Some((by("layer", layer.layer), figure(layer)?));
        played.clone().filter_map(of)
    };
    families.gauge(
        ("epsilon_nash", None),
        "The most any token of a layer's latest round gains by changing its experts, score units",
        layers(|layer| layer.epsilon_nash),
    )?;
    families.gauge(
        ("relative_gap", None),
        "Gap to the optimum of a layer's latest round, a share",
        layers(|layer| layer.relative_gap),
    )?;
    families.gauge(
        ("score_loss", None),
        "Share of the scores that balance cost a layer's latest round",
        layers(|layer| Some(layer.score_loss)),
    )?;
    families.gauge(
        ("max_over_mean", None),
        "Largest load of an expert over the fair share in a layer's latest round",
        layers(|layer| Some(layer.max_over_mean)),
    )?;
    families.gauge(
        ("max_over_mean_top_k", None),
        "The same had each token taken its plain top k: the control",
        layers(|layer| Some(layer.max_over_mean_top_k)),
    )?;
    families.gauge(
        ("fair_share_tokens", None),
        "Tokens that each expert has in an even layer, in its latest round",
        layers(|layer| Some(layer.fair_share)),
    )?;
    families.gauge(
        ("expert_tokens", None),
        "Tokens of an expert in its layer's latest round; not told of more than 256 experts",
        expert_loads(&snapshot.layers),
    )
}

/// The load of each expert, where these are not too many series.
fn expert_loads(layers: &[LayerSnapshot]) -> Vec<(Labels, u32)> {
    let figures: usize = layers.iter().map(|layer| layer.loads.len()).sum();
    let most = layers.iter().map(|layer| layer.loads.len()).max().unwrap_or(0);
    if most > EXPERTS_MAX || figures > EXPERT_FIGURES_MAX {
        return Vec::new();
    }
    let of_layer = |layer: &LayerSnapshot| {
        let place = layer.layer.to_string();
        let of = move |(expert, load): (usize, &u32)| {
            (vec![("layer", place.clone()), ("expert", expert.to_string())], *load)
        };
        layer.loads.iter().enumerate().map(of).collect::<Vec<_>>()
    };
    layers.iter().flat_map(of_layer).collect()
}

fn times(families: &mut Families<'_>, figures: &RunFigures) -> fmt::Result {
    families.seconds(
        "request",
        "From a request's intended arrival to its whole answer",
        one(figures.requests.now()),
    )?;
    families.seconds(
        "first_token",
        "From a request's intended arrival to its first token, where answers are decoded",
        one(figures.first_tokens.now()),
    )?;
    families.seconds(
        "token",
        "Of each further token, a request's mean, where answers are decoded",
        one(figures.tokens.now()),
    )?;
    let stage = |(name, times): (&&str, &Buckets)| (by("stage", name), times.now());
    families.seconds(
        "stage",
        "Time that a stage of a round took",
        STAGES.iter().zip(&figures.stages).map(stage),
    )?;
    families.seconds(
        "order",
        "From when an order went out to its answer",
        one(figures.orders.now()),
    )?;
    families.seconds("order_compute", "Of it, the node's computing", one(figures.computing.now()))
}

fn nodes(families: &mut Families<'_>, snapshot: &Snapshot) -> fmt::Result {
    families.gauge(("nodes", None), "Nodes of the run", one(snapshot.nodes_total))?;
    families.gauge(("nodes_up", None), "Nodes that get work", one(snapshot.nodes_up))?;
    families.counter(
        ("sent", Some(Unit::Bytes)),
        "Bytes of the messages to nodes, without what carries them",
        one(snapshot.sent_bytes),
    )?;
    families.counter(
        ("received", Some(Unit::Bytes)),
        "Bytes of the messages of nodes, in the same way",
        one(snapshot.received_bytes),
    )?;
    families.counter(
        ("faults", None),
        "Faults that were survived, and what was done about them",
        snapshot.faults.iter().flat_map(faults),
    )
}

fn faults(faults: &FaultFigures) -> [(Labels, u64); 12] {
    [
        ("lost_node", faults.lost_nodes),
        ("set_aside", faults.set_aside),
        ("quarantined_node", faults.quarantined_nodes),
        ("spot_check", faults.spot_checks),
        ("spot_check_skipped", faults.spot_checks_skipped),
        ("stale_reply", faults.stale_replies),
        ("late_reply", faults.late_replies),
        ("duplicate_reply", faults.duplicate_replies),
        ("redelivered_order", faults.redelivered_orders),
        ("rerouted_pair", faults.rerouted_pairs),
        ("hedge", faults.hedges),
        ("hedge_won", faults.hedges_won),
    ]
    .map(|(kind, count)| (by("kind", kind), count))
}

fn of_nodes(families: &mut Families<'_>, nodes: &[NodeSnapshot]) -> fmt::Result {
    let states = [("up", NodeState::Up), ("aside", NodeState::Aside), ("lost", NodeState::Lost)];
    let standing = nodes.iter().flat_map(|node| {
        states.map(|(name, state)| {
            let labels = vec![("node", node.node.to_string()), ("state", name.to_owned())];
            (labels, u64::from(node.state == state))
        })
    });
    families.gauge(("node_state", None), "1 for the state that a node is in", standing)?;
    fn each<'a, N>(
        nodes: &'a [NodeSnapshot],
        figure: impl Fn(&NodeSnapshot) -> N + 'a,
    ) -> impl Iterator<Item = (Labels, N)> + 'a {
        nodes.iter().map(move |node| (by("node", node.node), figure(node)))
    }
    families.gauge(
        ("node_experts", None),
        "Experts that a node holds",
        each(nodes, |node| node.experts),
    )?;
    families.gauge(
        ("node_shards", Some(Unit::Bytes)),
        "Their encoded bytes",
        each(nodes, |node| node.shard_bytes),
    )?;
    families.gauge(
        ("node_pending_pairs", None),
        "Pairs that a node was asked for and has not answered",
        each(nodes, |node| node.pending_pairs),
    )?;
    families.counter(
        ("node_orders", None),
        "Orders that a node answered",
        each(nodes, |node| node.orders),
    )?;
    families.counter(
        ("node_token_experts", None),
        "Pairs of token and expert that a node answered",
        each(nodes, |node| node.token_experts),
    )?;
    families.counter(
        ("node_compute", Some(Unit::Seconds)),
        "Time that a node spent computing them",
        each(nodes, |node| seconds(node.compute_ns)),
    )?;
    families.counter(
        ("node_sent", Some(Unit::Bytes)),
        "Bytes of the messages to a node",
        each(nodes, |node| node.sent_bytes),
    )?;
    families.counter(
        ("node_received", Some(Unit::Bytes)),
        "Bytes of a node's messages",
        each(nodes, |node| node.received_bytes),
    )
}
