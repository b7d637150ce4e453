//! Replies: one or more pieces on the wire, one matrix of outputs in the core.

use super::{
    Ticket, WireError, check_crc32, check_finite, check_tensor, crc32_and_finite, float_bytes,
};
use agents::orders::NodeReply;
use proto::{ComputeFault, ComputeReply, ComputeRequest, Message as _};
use std::mem;

/// What a reply may have besides its outputs, in bytes.
pub const REPLY_HEADER_BYTES_MAX: usize = 4096;

/// Outputs of one piece of a reply, in bytes; a row that is wider is a piece of its own. Transports hold
/// whole messages, in buffers that double when they grow: in small pieces the outputs of a round are in
/// memory once.
pub const PIECE_BYTES: usize = 256 << 10;

/// Why a reply cannot be combined.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReplyError {
    /// The node answered with a fault, and others would too: its sentence.
    #[error("{0}")]
    Refused(String),
    /// The node got to the request after its deadline.
    #[error("the request expired")]
    Expired,
    /// The node has answered it before, or holds it for given up.
    #[error("the request was answered before")]
    Duplicate,
    /// The reply does not answer the request, or one of them arrived damaged.
    #[error("{0}")]
    Bad(String),
}

/// The reply with the checksum of its header.
#[must_use]
pub fn seal_reply(mut reply: ComputeReply) -> ComputeReply {
    reply.header_crc32 = reply_header_crc32(&mut reply);
    reply
}

fn reply_header_crc32(reply: &mut ComputeReply) -> u32 {
    let (outputs, sealed) = (mem::take(&mut reply.outputs), mem::take(&mut reply.header_crc32));
    let found = crc32fast::hash(&reply.encode_to_vec());
    (reply.outputs, reply.header_crc32) = (outputs, sealed);
    found
}

/// An empty reply with what ties it to its request, whatever else is wrong with the request.
#[must_use]
pub fn reply_to(request: &ComputeRequest) -> ComputeReply {
    ComputeReply {
        step: request.step,
        layer: request.layer,
        sequence: request.sequence,
        run: request.run,
        ..ComputeReply::default()
    }
}

/// The pieces that carry the outputs, f32 `[pairs, width]`, or sums, at least one: `reply` filled with whole
/// rows, of [`PIECE_BYTES`] at most.
///
/// # Errors
/// When an output is not finite.
pub fn encode_outputs(
    reply: ComputeReply,
    outputs: Vec<f32>,
    width: usize,
    compute_ns: u64,
) -> Result<Vec<ComputeReply>, WireError> {
    let all = float_bytes(outputs);
    let mut left = all.clone();
    let rows_max = (PIECE_BYTES / (width * 4)).max(1);
    let mut pieces = Vec::with_capacity(left.len() / (rows_max * width * 4) + 1);
    let mut first_row = 0;
    loop {
        let outputs = left.split_to(left.len().min(rows_max * width * 4));
        let rows = u32::try_from(outputs.len() / (width * 4)).expect("a piece is small");
        let more = !left.is_empty();
        let (outputs_crc32, finite) = crc32_and_finite(&outputs);
        if !finite {
            // Says where.
            check_finite("output", &all, width)?;
        }
        let piece =
            ComputeReply { outputs, outputs_crc32, compute_ns, first_row, more, ..reply.clone() };
        pieces.push(seal_reply(piece));
        first_row += rows;
        if !more {
            return Ok(pieces);
        }
    }
}

/// Fills `reply` with a fault.
#[must_use]
pub fn encode_fault(reply: ComputeReply, error: WireError) -> ComputeReply {
    let mut detail = error.detail;
    detail.truncate(detail.floor_char_boundary(REPLY_HEADER_BYTES_MAX / 2));
    seal_reply(ComputeReply { fault: error.fault.into(), detail, ..reply })
}

/// The outputs of a node for one order, as the pieces of its reply come in.
#[derive(Debug)]
pub struct Outputs {
    ticket: Ticket,
    rows: usize,
    width: usize,
    /// What they are sums of; 0 where they are none.
    summed_pairs: u32,
    /// Rows so far.
    outputs: Vec<f32>,
}

impl Outputs {
    /// None yet, of an order of `pairs` rows of `width` values.
    #[must_use]
    pub fn new(ticket: Ticket, pairs: usize, width: usize) -> Self {
        Self { ticket, rows: pairs, width, summed_pairs: 0, outputs: Vec::new() }
    }

    /// None yet of the sums of an order of so many `pairs` of so many distinct `tokens`.
    #[must_use]
    pub fn sums(ticket: Ticket, (tokens, pairs): (usize, usize), width: usize) -> Self {
        let summed_pairs = u32::try_from(pairs).unwrap_or(u32::MAX);
        Self { rows: tokens, summed_pairs, ..Self::new(ticket, pairs, width) }
    }

    /// Takes the next piece, and gives the reply when it is the last.
    ///
    /// # Errors
    /// When the node answered with a fault, or with anything but the next rows of finite outputs of
    /// this shape for this ticket, or with sums of another number of pairs. The rows before are of no use then.
    pub fn take(&mut self, mut piece: ComputeReply) -> Result<Option<NodeReply>, ReplyError> {
        let bad = |detail| Err(ReplyError::Bad(detail));
        let damaged = |error: WireError| ReplyError::Bad(error.detail);
        let found = reply_header_crc32(&mut piece);
        check_crc32("header", found, piece.header_crc32).map_err(damaged)?;
        let Ticket { run, step, layer, sequence, .. } = self.ticket;
        if piece.run != run {
            return bad("it answers an order of another run".into());
        }
        let named = (piece.step, piece.layer, piece.sequence);
        if named != (step.0.into(), layer.0, sequence) {
            return bad(format!(
                "it names step {}, layer {}, sequence {}, expected {step}, {layer}, {sequence}",
                piece.step, piece.layer, piece.sequence
            ));
        }
        match ComputeFault::try_from(piece.fault) {
            Ok(ComputeFault::None) => {}
            Ok(ComputeFault::Expired) => return Err(ReplyError::Expired),
            Ok(ComputeFault::Duplicate) => return Err(ReplyError::Duplicate),
            // The way to this node damages what it carries.
            Ok(ComputeFault::Corrupt) => return bad(piece.detail),
            Ok(_) => return Err(ReplyError::Refused(piece.detail)),
            Err(unknown) => return bad(format!("unknown fault: {unknown}")),
        }
        if piece.summed_pairs != self.summed_pairs {
            let (summed, ordered) = (piece.summed_pairs, self.summed_pairs);
            return bad(format!("it sums {summed} pairs where {ordered} were ordered"));
        }
        if piece.first_row == 0 {
            // A node that is asked again because its stream broke begins anew.
            self.outputs.clear();
        }
        let (row_bytes, bytes) = (self.width * 4, piece.outputs.len());
        let (before, all) = (self.outputs.len() * 4, self.rows * row_bytes);
        let in_place = piece.first_row as usize * row_bytes == before;
        let fits = if piece.more {
            bytes > 0 && bytes.is_multiple_of(row_bytes) && bytes < all - before
        } else {
            bytes == all - before
        };
        if !in_place || !fits {
            return bad(format!(
                "{bytes} bytes of outputs from row {} on{}, expected {} rows of {} f32 from row {} on",
                piece.first_row,
                if piece.more { " and more" } else { "" },
                (all - before) / row_bytes,
                self.width,
                before / row_bytes
            ));
        }
        check_tensor("output", &piece.outputs, piece.outputs_crc32, self.width).map_err(damaged)?;
        self.outputs.reserve_exact(all / 4 - self.outputs.len());
        self.outputs.resize((before + bytes) / 4, 0.0);
        bytemuck::cast_slice_mut::<f32, u8>(&mut self.outputs)[before..]
            .copy_from_slice(&piece.outputs);
        Ok((!piece.more).then(|| NodeReply {
            node: self.ticket.node,
            outputs: mem::take(&mut self.outputs),
            compute_ns: piece.compute_ns,
        }))
    }
}
