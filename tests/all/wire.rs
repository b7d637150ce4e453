//! Orders on the wire.

use crate::nodes::{PATIENCE, numbers};
use agents::{
    ids::{ExpertId, LayerId, NodeId, StepId, TokenId},
    membership::Epoch,
    orders::{ExpertGroup, NodeOrder},
    rng::stream,
};
use nashflock::wire;
use proptest::prelude::*;
use proto::{ComputeFault, ComputeReply, ComputeRequest, Message};

fn any_order() -> impl Strategy<Value = (usize, usize, Vec<ExpertGroup>)> {
    (1_usize..200, 1_usize..20).prop_flat_map(|(tokens, width)| {
        let rows = prop::collection::btree_set(0..tokens, 1..=tokens.min(40));
        let groups = prop::collection::btree_map(0_u32..64, rows, 1..8);
        groups.prop_map(move |groups| {
            let group = |(expert, rows): (u32, std::collections::BTreeSet<usize>)| ExpertGroup {
                expert: ExpertId(expert),
                tokens: rows.into_iter().map(TokenId::from_index).collect(),
            };
            (tokens, width, groups.into_iter().map(group).collect())
        })
    })
}

proptest! {
    #[test]
    fn an_order_survives_the_wire_and_any_flipped_bit_of_its_tensors_is_noticed(
        (tokens, width, groups) in any_order(),
        seed in any::<u64>(),
        flip in any::<prop::sample::Index>(),
    ) {
        let hidden = numbers(seed, tokens * width);
        let ticket = wire::Ticket {
            run: u64::MAX,
            epoch: Epoch(7),
            step: StepId(3),
            layer: LayerId(2),
            round: 12,
            node: NodeId(4),
            sequence: 9,
            awaited_from: 8,
        };
        let order = NodeOrder { node: NodeId(4), groups };
        let sent = wire::encode_order(ticket, &order, &hidden, width, PATIENCE, 1 << 20)
            .expect("it is valid");
        let distinct: std::collections::BTreeSet<_> =
            order.groups.iter().flat_map(|group| &group.tokens).collect();
        prop_assert_eq!(sent.hidden.len(), distinct.len() * width * 4, "each row once");

        let work = wire::decode_order(sent.clone(), 1 << 20).expect("it was encoded");
        prop_assert_eq!((work.ticket, work.width, work.pairs), (ticket, width, order.pairs()));
        prop_assert_eq!(work.deadline, PATIENCE);
        let values: Vec<f32> = bytemuck::allocation::pod_collect_to_vec(&work.hidden);
        let mut outputs = Vec::new();
        for (original, arrived) in order.groups.iter().zip(&work.groups) {
            prop_assert_eq!(original.expert, arrived.expert);
            prop_assert_eq!(original.tokens.len(), arrived.tokens.len());
            for (token, row) in original.tokens.iter().zip(&arrived.tokens) {
                let row = &values[row.index() * width..][..width];
                prop_assert_eq!(&hidden[token.index() * width..][..width], row);
                outputs.extend_from_slice(row);
            }
        }

        let mut pieces = wire::encode_outputs(wire::reply_to(&sent), outputs.clone(), width, 5)
            .expect("finite");
        prop_assert_eq!(pieces.len(), 1, "it is small");
        let reply = pieces.remove(0);
        let decode = |reply: &ComputeReply| {
            wire::Outputs::new(ticket, work.pairs, width).take(reply.clone())
        };
        let decoded = decode(&reply).expect("it was encoded").expect("it is whole");
        prop_assert_eq!(decoded.outputs, outputs);
        prop_assert_eq!((decoded.node, decoded.compute_ns), (order.node, 5));

        let flipped = |bytes: &[u8]| {
            let mut bytes = bytes.to_vec();
            let bit = flip.index(bytes.len() * 8);
            bytes[bit / 8] ^= 1 << (bit % 8);
            bytes.into()
        };
        let damaged = ComputeRequest { hidden: flipped(&sent.hidden), ..sent };
        prop_assert_eq!(
            wire::decode_order(damaged, 1 << 20).expect_err("a bit flipped").fault,
            ComputeFault::Corrupt
        );
        let damaged = ComputeReply { outputs: flipped(&reply.outputs), ..reply.clone() };
        prop_assert!(matches!(decode(&damaged), Err(wire::ReplyError::Bad(_))));
        for other in [
            ComputeReply { sequence: 8, ..reply.clone() },
            ComputeReply { step: 4, ..reply.clone() },
            ComputeReply { layer: 3, ..reply.clone() },
            ComputeReply { outputs: reply.outputs.slice(4..), ..reply.clone() },
            ComputeReply { fault: 77, ..reply.clone() },
            ComputeReply { first_row: 1, ..reply.clone() },
            ComputeReply { more: true, ..reply.clone() },
        ] {
            prop_assert!(matches!(decode(&other), Err(wire::ReplyError::Bad(_))));
            let sealed = decode(&wire::seal_reply(other));
            prop_assert!(matches!(sealed, Err(wire::ReplyError::Bad(_))));
        }
    }
}

/// A message with some bits flipped, as a peer decodes it; none where it is no message any more.
fn flip<M: Message + Default>(message: &M, rng: &mut impl rand::RngExt) -> Option<M> {
    let mut bytes = message.encode_to_vec();
    for _ in 0..rng.random_range(1..=3) {
        let bit = rng.random_range(0..bytes.len() * 8);
        bytes[bit / 8] ^= 1 << (bit % 8);
    }
    M::decode(bytes.as_slice()).ok()
}

#[test]
fn all_of_a_hundred_thousand_random_flips_of_orders_and_replies_are_found() {
    const WIDTH: usize = 16;
    let mut rng = stream(5, "flips");
    let hidden = numbers(1, 8 * WIDTH);
    let ticket = wire::Ticket {
        run: 3,
        step: StepId(300),
        layer: LayerId(2),
        sequence: 70_000,
        ..wire::Ticket::default()
    };
    let group = |expert, tokens: &[u32]| ExpertGroup {
        expert: ExpertId(expert),
        tokens: tokens.iter().copied().map(TokenId).collect(),
    };
    let groups = vec![group(1, &[0, 3, 5]), group(130, &[1, 2, 3, 7])];
    let order = NodeOrder { node: NodeId(0), groups };
    let sent = wire::encode_order(ticket, &order, &hidden, WIDTH, PATIENCE, 1 << 20);
    let sent = sent.expect("it is valid");
    let work = wire::decode_order(sent.clone(), 1 << 20).expect("it was encoded");
    let outputs = numbers(2, work.pairs * WIDTH);
    let pieces = wire::encode_outputs(wire::reply_to(&sent), outputs, WIDTH, 5).expect("finite");
    let reply = pieces[0].clone();
    let decode = |reply: ComputeReply| wire::Outputs::new(ticket, work.pairs, WIDTH).take(reply);
    let (mut decoded, mut same) = (0, 0);
    for _ in 0..50_000 {
        // Flips that undo each other, or that no decoder sees, leave the message as it was.
        if let Some(damaged) = flip(&sent, &mut rng) {
            decoded += 1;
            same += u32::from(damaged == sent);
            assert!(damaged == sent || wire::decode_order(damaged, 1 << 20).is_err());
        }
        if let Some(damaged) = flip(&reply, &mut rng) {
            decoded += 1;
            same += u32::from(damaged == reply);
            assert!(damaged == reply || decode(damaged).is_err());
        }
    }
    assert!(decoded > 50_000, "most flips are left to the checksums: {decoded}");
    assert!(same < 100, "{same}");
}

#[test]
fn a_large_reply_is_whole_again_when_its_pieces_come_in_their_order_and_in_no_other() {
    const WIDTH: usize = 100;
    let ticket =
        wire::Ticket { step: StepId(1), node: NodeId(2), sequence: 4, ..wire::Ticket::default() };
    let reply = ComputeReply { step: 1, sequence: 4, ..ComputeReply::default() };
    let rows = 3 * wire::PIECE_BYTES / (WIDTH * 4) + 2;
    let outputs = numbers(3, rows * WIDTH);
    let pieces = wire::encode_outputs(reply, outputs.clone(), WIDTH, 5).expect("finite");
    assert_eq!(pieces.len(), 4);
    assert!(pieces.iter().all(|piece| piece.outputs.len() <= wire::PIECE_BYTES));
    let mut whole = wire::Outputs::new(ticket, rows, WIDTH);
    for piece in &pieces[..3] {
        assert_eq!(whole.take(piece.clone()), Ok(None));
    }
    let decoded = whole.take(pieces[3].clone()).expect("good").expect("the last");
    assert_eq!((decoded.outputs, decoded.node, decoded.compute_ns), (outputs, NodeId(2), 5));

    let mut begun = wire::Outputs::new(ticket, rows, WIDTH);
    assert!(begun.take(pieces[3].clone()).is_err(), "rows before it are missing");
    for piece in [&pieces[..2], &pieces[..]].concat() {
        // The first one again begins anew, as after a stream that broke.
        begun.take(piece).expect("in their order");
    }
    for wrong in [[0, 2], [0, 3], [1, 2]] {
        let mut whole = wire::Outputs::new(ticket, rows, WIDTH);
        let taken = wrong.map(|at| whole.take(pieces[at].clone()));
        assert!(taken.iter().any(Result::is_err), "{wrong:?}");
    }
}
