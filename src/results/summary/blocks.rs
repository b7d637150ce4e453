//! What a summary says of token blocks at many front ends.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Blocks that chose experts, were served and waited, in virtual time; no expert was computed.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct BlockFigures {
    /// Front ends.
    pub front_ends: u64,
    /// Events that happened.
    pub events: u64,
    /// Of all events, 32 hex digits: the same for the same seed, whatever the threads.
    pub trace_hash: String,
    /// What simulating took on the machine's own clock, without certificates, ns: the only figure here that it enters.
    pub machine_ns: u64,
    /// Bytes of nodes, copies, front ends and events.
    pub bytes: u64,
    /// Tokens by what became of them.
    pub tokens: TokenFigures,
    /// Messages to nodes.
    pub questions: u64,
    /// Of these, to another rack.
    pub between_racks: u64,
    /// Asked anew of another node.
    pub asked_again: u64,
    /// Answers that came after they had been given up.
    pub late_answers: u64,
    /// Connections seen to break.
    pub broken: u64,
    /// Requests for which an expert that was not drawn might have been wanted more.
    pub uncertain: u64,
    /// Requests that took other experts than they wanted, to stay within few racks.
    pub displaced: u64,
    /// Experts by the bits of their weights, where these differ.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub widths: Vec<BlockWidthFigures>,
    /// Measured figures beside what theory says.
    pub limits: Vec<LimitFigure>,
    /// Joint plays of all front ends.
    pub joint: Vec<JointFigures>,
    /// What became of the tokens by when they arrived.
    pub stretches: Vec<StretchFigures>,
}

/// Experts of one width.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct BlockWidthFigures {
    /// Bits of a weight.
    pub bits: f64,
    /// Experts.
    pub experts: u64,
    /// Their copies on nodes.
    pub copies: u64,
    /// Bytes of these.
    pub resident_bytes: u64,
    /// Share of the tokens that want one of these experts most.
    pub popularity: f64,
    /// What a message for one of them takes of a node that is as fast as the mean, without noise, ns.
    pub service_ns: f64,
}

/// Tokens: each that arrived is in one of the others.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct TokenFigures {
    /// All.
    pub arrived: u64,
    /// All experts answered in time.
    pub ok: u64,
    /// All answered, too late.
    pub late: u64,
    /// An expert was not to be had.
    pub lost: u64,
    /// Not begun.
    pub shed: u64,
}

/// A measured figure and its bound.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct LimitFigure {
    /// What it is of.
    pub name: String,
    /// As measured.
    pub measured: Option<f64>,
    /// What theory says; none where it says nothing.
    pub limit: Option<f64>,
    /// In what, and which way the limit lies.
    pub says: String,
}

/// What all front ends played together in a period, against the equilibrium of all their tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct JointFigures {
    /// The period, from 0.
    pub period: u64,
    /// Its tokens.
    pub tokens: u64,
    /// The least dual bound on the potential.
    pub dual_bound: f64,
    /// As played.
    pub played: JointPlayFigures,
    /// The control: plain top-k of the same requests.
    pub plain: JointPlayFigures,
    /// The best play that was found by who knows all.
    pub informed: JointPlayFigures,
}

/// How far a joint play is from equilibrium.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct JointPlayFigures {
    /// Largest gain of a token.
    pub epsilon_nash: f64,
    /// Mean gain of a token.
    pub regret_mean: f64,
    /// (D − Φ)/|D|.
    pub relative_gap: f64,
    /// Largest load over the fair share.
    pub max_over_mean: f64,
    /// Affinity given up against plain top-k, over |D|.
    pub score_loss: f64,
}

/// What became of the tokens that arrived in one stretch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct StretchFigures {
    /// When it began, ns.
    pub from_ns: u64,
    /// Tokens.
    pub tokens: TokenFigures,
    /// Mean latency of its answered requests, ns.
    pub latency_mean_ns: Option<f64>,
    /// The longest, ns.
    pub latency_max_ns: u64,
}
