//! The rows of `rounds.parquet` and `requests.parquet`. A field is a column of the same name.

use super::parquet::row;

row! {
    /// One layer of one step: the certificate of the game played there, and what it cost.
    RoundRow in "rounds" {
        /// The batch.
        step: u64,
        /// The layer.
        layer: u32,
        /// Tokens routed.
        tokens: u64,
        /// Name of the router.
        router: String,
        /// Steps of the router's own kind.
        iterations: u64,
        /// Passes over the T × E scores.
        passes: u64,
        /// Largest regret of a token, in units of affinity.
        epsilon_nash: f64,
        /// (D − Φ)/|D|; absent without a dual bound.
        relative_gap: Option<f64>,
        /// Φ of the assignment, in units of affinity.
        potential: f64,
        /// D(p) ≥ the largest Φ.
        dual_bound: Option<f64>,
        /// Largest load over the fair share T·k/E.
        max_over_mean: f64,
        /// The same under plain top-k on the same scores: the control.
        max_over_mean_top_k: Option<f64>,
        /// 1 − Σ a·x over the same sum under plain top-k.
        score_loss: Option<f64>,
        /// Largest load over the fair share, as the flock rules alone would route.
        flock_max_over_mean: Option<f64>,
        /// Largest regret under the flock rules alone.
        flock_epsilon_nash: Option<f64>,
        /// Relative gap under the flock rules alone.
        flock_relative_gap: Option<f64>,
        /// Time of the router alone, without certificate and control, ns.
        route_ns: u64,
        /// Time from the first order sent to the last reply combined, ns.
        dispatch_ns: u64,
        /// Payload sent to nodes, bytes: the hidden rows, each once a node, without ids and framing.
        bytes_sent: u64,
        /// Payload received from nodes, bytes: an output row a pair, without framing.
        bytes_received: u64,
    }
}

row! {
    /// One request, from its intended start.
    RequestRow in "requests" {
        /// Requests in order of intended arrival.
        request: u64,
        /// The batch that carried it; absent where it was shed before.
        step: Option<u64>,
        /// Tokens asked for.
        tokens: u64,
        /// When it was meant to start, ns from the start of the run, as the times below.
        intended_ns: u64,
        /// When it started; absent where it never did.
        started_ns: Option<u64>,
        /// When it ended, however it ended.
        finished_ns: u64,
        /// `finished_ns − intended_ns`. The histogram holds answered requests alone.
        latency_ns: u64,
        /// One of the keys of `outcomes` in the summary: ok, late, timeout, shed, error, partial.
        outcome: String,
        /// Σ of the negative log-likelihood of its scored tokens, nats; absent where none was scored.
        loss_sum: Option<f64>,
        /// When its first token was there; absent where nothing was generated.
        first_token_ns: Option<u64>,
        /// Tokens of its answer, likewise.
        generated: Option<u64>,
    }
}
