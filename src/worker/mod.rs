//! One node: stores shards and computes on them.
