//! What an order asks of a node, in the terms of `agents::cluster`.

use agents::cluster::Work;
use agents::expert::passes;
use agents::ids::ExpertId;
use agents::orders::NodeOrder;

/// Bytes of a message beside its rows.
const HEADER_BYTES: u64 = 128;

/// Of an order on rows of so many columns; `bytes` are those of an expert's weights. Where nodes sum, an answer has a
/// row for each token instead of each pair.
pub(crate) fn work_of(
    order: &NodeOrder,
    width: usize,
    sums: bool,
    bytes: impl Fn(ExpertId) -> u64,
) -> Work {
    let row_bytes = (width * size_of::<f32>()) as u64;
    let (pairs, rows) = (order.pairs(), order.tokens().len() as u64);
    let mut work = Work {
        pairs: u32::try_from(pairs).expect("pairs of a round fit 32 bits"),
        request_bytes: HEADER_BYTES + rows * row_bytes,
        reply_bytes: HEADER_BYTES + row_bytes * if sums { rows } else { pairs as u64 },
        ..Work::default()
    };
    for group in &order.groups {
        let bytes = bytes(group.expert);
        work.weight_bytes += bytes;
        work.pass_bytes += bytes * passes(group.tokens.len()) as u64;
    }
    work
}
