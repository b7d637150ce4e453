//! Orders whose nodes sum the outputs of a token's experts.

use super::{RowRanks, Ticket, WireError, check_bytes, seal_request, unsealed_order};
use agents::orders::{ExpertGroup, NodeOrder, PairGates};
use proto::{ComputeFault, ComputeRequest, Message as _};
use std::time::Duration;

/// The request for sums of one node, as [`super::encode_order`]. `gates` has one for each pair of the order.
///
/// # Errors
/// As there, and when a pair has no gate or one that is not finite.
pub fn encode_order_for_sums(
    ticket: Ticket,
    order: &NodeOrder,
    gates: &PairGates,
    (hidden, width): (&[f32], usize),
    deadline: Duration,
    message_bytes_max: usize,
) -> Result<ComputeRequest, WireError> {
    let mut request = unsealed_order(ticket, order, hidden, width, deadline, message_bytes_max)?;
    request.sums = true;
    for (sent, group) in request.groups.iter_mut().zip(&order.groups) {
        let expert = group.expert;
        let gate = |token: &_| {
            gates.of(*token, expert).ok_or_else(|| {
                let detail = format!("token {token} of expert {expert} has no gate");
                WireError::new(ComputeFault::BadShape, detail)
            })
        };
        sent.gates = group.tokens.iter().map(gate).collect::<Result<_, _>>()?;
        check_gates(group, &sent.gates)?;
    }
    check_bytes("request", request.encoded_len(), message_bytes_max)?;
    Ok(seal_request(request))
}

/// The gates of a request, by group; none where it asks for outputs. `rows` are those of its hidden states.
///
/// # Errors
/// When gates and groups do not fit, a gate is not finite, or sums are asked for of a row that no group names.
pub(super) fn decode_gates(
    is_for_sums: bool,
    groups: &[ExpertGroup],
    gates: Vec<Vec<f32>>,
    rows: usize,
) -> Result<Option<Vec<Vec<f32>>>, WireError> {
    if !is_for_sums {
        return match gates.iter().zip(groups).find(|(gates, _)| !gates.is_empty()) {
            None => Ok(None),
            Some((_, group)) => {
                let detail = format!("expert {} has gates but no sums are asked for", group.expert);
                Err(WireError::new(ComputeFault::BadShape, detail))
            }
        };
    }
    for (group, gates) in groups.iter().zip(&gates) {
        check_gates(group, gates)?;
    }
    let named = RowRanks::new(groups, rows).rows();
    if named != rows {
        let detail = format!("sums of {rows} rows are asked for but groups name {named}");
        return Err(WireError::new(ComputeFault::BadShape, detail));
    }
    Ok(Some(gates))
}

fn check_gates(group: &ExpertGroup, gates: &[f32]) -> Result<(), WireError> {
    let expert = group.expert;
    if gates.len() != group.tokens.len() {
        let (gates, rows) = (gates.len(), group.tokens.len());
        let detail = format!("expert {expert} has {gates} gates for {rows} rows");
        return Err(WireError::new(ComputeFault::BadShape, detail));
    }
    if let Some(place) = gates.iter().position(|gate| !gate.is_finite()) {
        let detail = format!("gate {place} of expert {expert} is not finite");
        return Err(WireError::new(ComputeFault::NotFinite, detail));
    }
    Ok(())
}
