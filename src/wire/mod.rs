//! The only module that names both wire types and core types.
//!
//! Every length, range and order is checked here, in both directions and before anything is
//! allocated for it, so that neither side computes on what a faulty peer sent.

mod reply;
mod sums;

pub use reply::{
    Outputs, PIECE_BYTES, REPLY_HEADER_BYTES_MAX, ReplyError, encode_fault, encode_outputs,
    reply_to, seal_reply,
};
pub use sums::encode_order_for_sums;

use agents::{
    expert::Expert,
    ids::{ExpertId, LayerId, NodeId, StepId, TokenId},
    membership::{Epoch, Pass},
    orders::{ExpertGroup, NodeOrder},
};
use bytes::Bytes;
use proto::{
    ComputeFault, ComputeRequest, JoinReply, Message as _, RenewRequest, ShardChunk, ShardHeader,
};
use std::mem;
use std::time::Duration;

/// Widest hidden state that is accepted, in values.
pub const WIDTH_MAX: usize = 1 << 16;

/// Payload of one chunk of a shard upload, in bytes.
pub const CHUNK_BYTES_MAX: usize = 1 << 20;

/// Encoded bytes of a shard up to which its checksum and its code take less than a change of threads does,
/// some tens of microseconds.
pub const SMALL_SHARD_BYTES: usize = 1 << 15;

const _: () = assert!(cfg!(target_endian = "little"), "tensors travel as little-endian f32");

/// Why a message is not accepted: the fault to answer with, and a sentence.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{detail}")]
pub struct WireError {
    /// What a node answers.
    pub fault: ComputeFault,
    /// What is wrong, where, and the limit it breaks.
    pub detail: String,
}

impl WireError {
    /// A fault with its sentence.
    pub fn new(fault: ComputeFault, detail: impl Into<String>) -> Self {
        Self { fault, detail: detail.into() }
    }
}

/// The identity of an order, which ties a reply to its request: one attempt at one node's share of one
/// block of tokens. Of a run, `sequence` alone names the message.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ticket {
    /// The coordinator's run; 0 for an order that nodes compute each time that it comes.
    pub run: u64,
    /// Since when the node has its seat; 0 where nodes are fixed.
    pub epoch: Epoch,
    /// The batch.
    pub step: StepId,
    /// The layer.
    pub layer: LayerId,
    /// Sendings of layers so far: tells apart two of one layer of one step.
    pub round: u64,
    /// The seat of the addressee.
    pub node: NodeId,
    /// The attempt: ascending over all messages of a run.
    pub sequence: u64,
    /// Earlier attempts of the run are not awaited any more, whichever this one is.
    pub awaited_from: u64,
}

/// A decoded request: what a node computes.
#[derive(Clone, Debug, PartialEq)]
pub struct NodeWork {
    /// Echoed in the reply.
    pub ticket: Ticket,
    /// Time left when it was sent.
    pub deadline: Duration,
    /// Columns of `hidden`.
    pub width: usize,
    /// f32 `[rows, width]`, little-endian, all finite.
    pub hidden: Bytes,
    /// Non-empty, in ascending order of expert; tokens are rows of `hidden`, ascending.
    pub groups: Vec<ExpertGroup>,
    /// Where sums are asked for: the gate of each token, by group.
    pub gates: Option<Vec<Vec<f32>>>,
    /// Token–expert pairs: rows of the outputs, or what sums combine.
    pub pairs: usize,
}

/// The request for one node, with the distinct rows of `hidden` (f32 `[T, width]`) that it needs.
///
/// # Errors
/// When the order breaks its contract, a value is not finite, or the request or its reply would
/// exceed `message_bytes_max`.
pub fn encode_order(
    ticket: Ticket,
    order: &NodeOrder,
    hidden: &[f32],
    width: usize,
    deadline: Duration,
    message_bytes_max: usize,
) -> Result<ComputeRequest, WireError> {
    let request = unsealed_order(ticket, order, hidden, width, deadline, message_bytes_max)?;
    Ok(seal_request(request))
}

fn unsealed_order(
    ticket: Ticket,
    order: &NodeOrder,
    hidden: &[f32],
    width: usize,
    deadline: Duration,
    message_bytes_max: usize,
) -> Result<ComputeRequest, WireError> {
    check_order(&order.groups, hidden.len(), width, message_bytes_max)?;
    let ranks = RowRanks::new(&order.groups, hidden.len() / width);
    check_bytes("request", ranks.rows() * width * 4, message_bytes_max)?;
    let mut rows = Vec::with_capacity(ranks.rows() * width);
    let mut crc32 = crc32fast::Hasher::new();
    for row in ranks.ascending() {
        let row = finite_row(hidden, row, width)?;
        rows.extend_from_slice(row);
        crc32.update(bytemuck::cast_slice(row));
    }
    let hidden = float_bytes(rows);
    let group = |group: &ExpertGroup| proto::ExpertGroup {
        expert: group.expert.0,
        rows: group.tokens.iter().map(|token| ranks.rank(*token)).collect(),
        gates: Vec::new(),
    };
    let request = ComputeRequest {
        step: ticket.step.0.into(),
        layer: ticket.layer.0,
        sequence: ticket.sequence,
        deadline_ms: u32::try_from(deadline.as_millis()).unwrap_or(u32::MAX),
        width: u32::try_from(width).expect("checked against WIDTH_MAX"),
        hidden_crc32: crc32.finalize(),
        hidden,
        groups: order.groups.iter().map(group).collect(),
        header_crc32: 0,
        run: ticket.run,
        epoch: ticket.epoch.0,
        round: ticket.round,
        node: ticket.node.0,
        awaited_from: ticket.awaited_from.min(ticket.sequence),
        sums: false,
    };
    check_bytes("request", request.encoded_len(), message_bytes_max)?;
    Ok(request)
}

/// The request with the checksum of its header. Tensor and header are checked apart, so that the
/// tensor is passed over once and not copied for it.
#[must_use]
pub fn seal_request(mut request: ComputeRequest) -> ComputeRequest {
    request.header_crc32 = request_header_crc32(&mut request);
    request
}

fn request_header_crc32(request: &mut ComputeRequest) -> u32 {
    let (hidden, sealed) = (mem::take(&mut request.hidden), mem::take(&mut request.header_crc32));
    let found = crc32fast::hash(&request.encode_to_vec());
    (request.hidden, request.header_crc32) = (hidden, sealed);
    found
}

/// What a node shall compute.
///
/// # Errors
/// The fault to answer with, when the request breaks the contract or its reply would exceed
/// `message_bytes_max`.
pub fn decode_order(
    mut request: ComputeRequest,
    message_bytes_max: usize,
) -> Result<NodeWork, WireError> {
    check_header(&mut request)?;
    decode_checked_order(request, message_bytes_max)
}

/// Checks the checksum of a request's header: what it says is what was sent.
///
/// # Errors
/// When it arrived damaged.
pub fn check_header(request: &mut ComputeRequest) -> Result<(), WireError> {
    let found = request_header_crc32(request);
    check_crc32("header", found, request.header_crc32)
}

/// What a node shall compute, of a request that passed [`check_header`].
///
/// # Errors
/// As [`decode_order`].
pub fn decode_checked_order(
    request: ComputeRequest,
    message_bytes_max: usize,
) -> Result<NodeWork, WireError> {
    let bad = |detail| WireError::new(ComputeFault::BadShape, detail);
    let step = u32::try_from(request.step)
        .map_err(|_| bad(format!("step {} does not fit 32 bits", request.step)))?;
    let width = request.width as usize;
    if !request.hidden.len().is_multiple_of(4) {
        return Err(bad(format!(
            "{} bytes of hidden state are not whole f32",
            request.hidden.len()
        )));
    }
    let decode = |group: proto::ExpertGroup| {
        let tokens = group.rows.into_iter().map(TokenId).collect();
        (ExpertGroup { expert: ExpertId(group.expert), tokens }, group.gates)
    };
    let (groups, gates): (Vec<_>, Vec<_>) = request.groups.into_iter().map(decode).unzip();
    let values = request.hidden.len() / 4;
    let pairs = check_order(&groups, values, width, message_bytes_max)?;
    let gates = sums::decode_gates(request.sums, &groups, gates, values / width)?;
    check_tensor("hidden state", &request.hidden, request.hidden_crc32, width)?;
    Ok(NodeWork {
        ticket: Ticket {
            run: request.run,
            epoch: Epoch(request.epoch),
            step: StepId(step),
            layer: LayerId(request.layer),
            round: request.round,
            node: NodeId(request.node),
            sequence: request.sequence,
            awaited_from: request.awaited_from,
        },
        deadline: Duration::from_millis(request.deadline_ms.into()),
        width,
        hidden: request.hidden,
        groups,
        gates,
        pairs,
    })
}

/// The name of a member's stay and its lease, as the coordinator tells it.
#[must_use]
pub fn encode_pass(pass: Pass, lease: Duration) -> JoinReply {
    JoinReply {
        node: pass.node.0,
        since_epoch: pass.since.0,
        lease_ms: u32::try_from(lease.as_millis()).unwrap_or(u32::MAX),
    }
}

/// The stay that a member says is its own.
#[must_use]
pub fn decode_pass(request: &RenewRequest) -> Pass {
    Pass { node: NodeId(request.node), since: Epoch(request.since_epoch) }
}

/// A shard as the chunks of an upload, and its BLAKE3.
#[must_use]
pub fn encode_shard(layer: LayerId, expert: ExpertId, shard: &Expert) -> (Vec<ShardChunk>, Bytes) {
    let mut payload = Bytes::from(shard.to_bytes());
    let blake3 = Bytes::copy_from_slice(blake3::hash(&payload).as_bytes());
    let mut header = Some(ShardHeader {
        layer: layer.0,
        expert: expert.0,
        total_bytes: payload.len() as u64,
        blake3: blake3.clone(),
    });
    let mut chunks = Vec::with_capacity(payload.len() / CHUNK_BYTES_MAX + 1);
    while header.is_some() || !payload.is_empty() {
        let piece = payload.split_to(payload.len().min(CHUNK_BYTES_MAX));
        chunks.push(ShardChunk { header: header.take(), payload: piece });
    }
    (chunks, blake3)
}

/// Where a shard belongs and its length in bytes.
///
/// # Errors
/// When the checksum is not one, or the length does not fit this machine.
pub fn decode_shard_header(header: &ShardHeader) -> Result<(LayerId, ExpertId, usize), WireError> {
    let bad = |detail| WireError::new(ComputeFault::BadShape, detail);
    if header.blake3.len() != 32 {
        return Err(bad(format!("a BLAKE3 has 32 bytes, not {}", header.blake3.len())));
    }
    let total_bytes = usize::try_from(header.total_bytes)
        .map_err(|_| bad(format!("{} bytes exceed the address space", header.total_bytes)))?;
    Ok((LayerId(header.layer), ExpertId(header.expert), total_bytes))
}

/// The expert that a complete upload encodes.
///
/// # Errors
/// When the bytes are not an expert.
pub fn decode_shard(bytes: &[u8]) -> Result<Expert, WireError> {
    let expert = Expert::from_bytes(bytes)
        .map_err(|error| WireError::new(ComputeFault::BadShape, error.to_string()))?;
    check_width(&expert, expert.shape().width.clamp(1, WIDTH_MAX))?;
    Ok(expert)
}

/// Checks that an expert takes rows of `width` values.
///
/// # Errors
/// When it has another width.
pub fn check_width(expert: &Expert, width: usize) -> Result<(), WireError> {
    let has = expert.shape().width;
    if has == width {
        return Ok(());
    }
    let detail = format!("the hidden states have {width} values but the expert has width {has}");
    Err(WireError::new(ComputeFault::BadShape, detail))
}

/// Checks the groups of one node against a hidden matrix of `values` f32 in rows of `width`, and
/// the size of the reply. Returns the pairs.
///
/// # Errors
/// The first rule that is broken.
pub fn check_order(
    groups: &[ExpertGroup],
    values: usize,
    width: usize,
    message_bytes_max: usize,
) -> Result<usize, WireError> {
    let bad = |detail| Err(WireError::new(ComputeFault::BadShape, detail));
    if width == 0 || width > WIDTH_MAX {
        return bad(format!("width {width} is outside 1 to {WIDTH_MAX}"));
    }
    if !values.is_multiple_of(width) {
        return bad(format!("{values} hidden values are not whole rows of width {width}"));
    }
    let rows = values / width;
    if groups.is_empty() {
        return bad("an order needs at least one group".into());
    }
    if let Some(pair) = groups.windows(2).find(|pair| pair[0].expert >= pair[1].expert) {
        let (a, b) = (pair[0].expert, pair[1].expert);
        return bad(format!("expert {b} follows expert {a}: groups must ascend"));
    }
    let mut pairs = 0;
    for ExpertGroup { expert, tokens } in groups {
        let Some(last) = tokens.last() else {
            return bad(format!("the group of expert {expert} is empty"));
        };
        if !tokens.is_sorted_by(|a, b| a < b) {
            return bad(format!("the rows of expert {expert} do not ascend"));
        }
        if last.index() >= rows {
            return bad(format!("expert {expert} asks for row {last} of {rows}"));
        }
        pairs += tokens.len();
    }
    check_bytes("reply", pairs.saturating_mul(width * 4), message_bytes_max)?;
    Ok(pairs)
}

/// One row of `hidden`, f32 `[T, width]`.
///
/// # Errors
/// The first value of it that is not finite.
pub fn finite_row(hidden: &[f32], row: usize, width: usize) -> Result<&[f32], WireError> {
    let values = &hidden[row * width..(row + 1) * width];
    if are_finite(bytemuck::cast_slice(values)) {
        return Ok(values);
    }
    match values.iter().position(|value| !value.is_finite()) {
        None => Ok(values),
        Some(column) => Err(not_finite("hidden state", row, column)),
    }
}

/// Checks that every f32 is finite.
///
/// # Errors
/// The first that is not, by its row and column.
pub fn check_finite(what: &str, bytes: &[u8], width: usize) -> Result<(), WireError> {
    if are_finite(bytes) {
        return Ok(());
    }
    let finite =
        |value: &[u8]| f32::from_le_bytes([value[0], value[1], value[2], value[3]]).is_finite();
    let at = bytes.chunks_exact(4).position(|value| !finite(value)).expect("one was found above");
    Err(not_finite(what, at / width, at % width))
}

/// Whether every f32 is finite. Without an early exit, and with operations that any vector unit has, the loop
/// vectorizes: a magnitude carries into the sign bit when it is that of an infinity or a NaN.
fn are_finite(bytes: &[u8]) -> bool {
    const SIGN: u32 = 1 << 31;
    let carry = |value: &[u8]| {
        let bits = u32::from_le_bytes([value[0], value[1], value[2], value[3]]);
        (bits & !SIGN).wrapping_add(1 << 23)
    };
    bytes.chunks_exact(4).fold(0, |all, value| all | carry(value)) & SIGN == 0
}

/// Bytes that are passed over twice while they are near.
const BLOCK_BYTES: usize = 32 << 10;

/// The CRC-32 of a tensor, and whether every f32 of it is finite.
fn crc32_and_finite(bytes: &[u8]) -> (u32, bool) {
    let (mut crc32, mut finite) = (crc32fast::Hasher::new(), true);
    for block in bytes.chunks(BLOCK_BYTES) {
        crc32.update(block);
        finite &= are_finite(block);
    }
    (crc32.finalize(), finite)
}

/// Checks what came against its checksum, and that every f32 is finite.
fn check_tensor(what: &str, bytes: &[u8], crc32: u32, width: usize) -> Result<(), WireError> {
    let (found, finite) = crc32_and_finite(bytes);
    check_crc32(what, found, crc32)?;
    if finite { Ok(()) } else { check_finite(what, bytes, width) }
}

fn not_finite(what: &str, row: usize, column: usize) -> WireError {
    let detail = format!("{what} at row {row}, column {column} is not finite");
    WireError::new(ComputeFault::NotFinite, detail)
}

fn check_bytes(what: &str, bytes: usize, bytes_max: usize) -> Result<(), WireError> {
    if bytes <= bytes_max {
        return Ok(());
    }
    let detail = format!(
        "the {what} would have {bytes} bytes, over the limit of {bytes_max}: \
         send fewer tokens, use more nodes or raise the limit of the workers"
    );
    Err(WireError::new(ComputeFault::OverLimit, detail))
}

fn check_crc32(what: &str, found: u32, expected: u32) -> Result<(), WireError> {
    if found == expected {
        return Ok(());
    }
    let detail = format!("the {what} arrived damaged: CRC-32 {found:08x}, expected {expected:08x}");
    Err(WireError::new(ComputeFault::Corrupt, detail))
}

/// Hands a vector of f32 to the transport without copying it.
fn float_bytes(values: Vec<f32>) -> Bytes {
    struct Floats(Vec<f32>);
    impl AsRef<[u8]> for Floats {
        fn as_ref(&self) -> &[u8] {
            bytemuck::cast_slice(&self.0)
        }
    }
    Bytes::from_owner(Floats(values))
}

/// The set of rows that some group names, as a bitmap that counts: linear in rows and pairs, where
/// sorting the pairs of a large batch would not be.
struct RowRanks {
    words: Vec<u64>,
    /// Rows set in the words before each, and in all.
    before: Vec<u32>,
}

impl RowRanks {
    fn new(groups: &[ExpertGroup], rows: usize) -> Self {
        let mut words = vec![0_u64; rows.div_ceil(64)];
        for token in groups.iter().flat_map(|group| &group.tokens) {
            words[token.index() / 64] |= 1 << (token.0 % 64);
        }
        let mut before = vec![0];
        before.extend(words.iter().scan(0, |sum, word| {
            *sum += word.count_ones();
            Some(*sum)
        }));
        Self { words, before }
    }

    fn rows(&self) -> usize {
        self.before[self.words.len()] as usize
    }

    fn rank(&self, token: TokenId) -> u32 {
        let (word, bit) = (token.index() / 64, token.0 % 64);
        self.before[word] + (self.words[word] & ((1 << bit) - 1)).count_ones()
    }

    fn ascending(&self) -> impl Iterator<Item = usize> + '_ {
        self.words.iter().enumerate().flat_map(|(at, word)| {
            (0..64).filter(move |bit| word >> bit & 1 == 1).map(move |bit| at * 64 + bit)
        })
    }
}
