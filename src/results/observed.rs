//! The rows of `observed.parquet`: what `nashflock fit` learns from.

use super::parquet::row;

row! {
    /// One order of one round and its answer; written where a run is observed. Orders that were hedged or asked again
    /// are left out.
    ObservedRow in "observed" {
        /// The batch or step.
        step: u64,
        /// The layer.
        layer: u32,
        /// The node.
        node: u32,
        /// Orders of the round.
        orders: u32,
        /// Tokens of the round.
        tokens: u64,
        /// Token–expert pairs of the order.
        pairs: u32,
        /// Experts that it touches.
        experts: u32,
        /// Encoded bytes of their weights.
        weight_bytes: u64,
        /// The same as often as kernels read them: once for each panel of 8, 4, 2 or 1 tokens of an expert.
        pass_bytes: u64,
        /// Bytes of the order: its hidden rows and a header.
        request_bytes: u64,
        /// Bytes of the answer: an output row a pair, or a token where nodes sum, and a header.
        reply_bytes: u64,
        /// Time that the node computed, as it says, ns.
        compute_ns: u64,
        /// From the start of sending the round's orders until this answer was whole, ns.
        leg_ns: u64,
        /// Time of the round in which no order was out, from the end of the round before or the step's start, ns;
        /// in a step's first layer with what came after its last round.
        coordinator_ns: u64,
    }
}
