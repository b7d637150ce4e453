//! Arrive: the tokens of the batch take their seats in the pool.

use crate::components::{Seat, Token};
use crate::world::Batch;
use bevy_ecs::prelude::{Query, Res};

/// Gives pooled token entities the requests of the batch and frees the rest.
pub(super) fn seat_tokens(batch: Res<'_, Batch>, mut tokens: Query<'_, '_, (&Token, &mut Seat)>) {
    let tables = tokens.contiguous_iter_mut().expect("tokens live in dense tables");
    for (tokens, mut seats) in tables {
        for (token, seat) in tokens.iter().zip(seats.bypass_change_detection()) {
            seat.0 = batch.requests.get(token.row.index()).copied();
        }
    }
}
