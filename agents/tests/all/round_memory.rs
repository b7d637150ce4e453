//! A world that recalls another's memory goes on as that one does.

use agents::flock::motion::{LayerMotion, MotionRegistry, MotionSettings};
use agents::game::{Information, RouterRegistry};
use agents::ids::{LayerId, RequestId, StepId};
use agents::rng::stream;
use agents::round::{Arena, ForeignMemory, Perception};
use agents::routing::Routing;
use rand::RngExt as _;

use crate::round::{arena_knowing, play};

/// Everything that is told of a round.
fn told(arena: &mut Arena, step: u32) -> (Vec<u8>, Vec<u32>, (u64, u64)) {
    let (_, combined) = play(arena, step);
    let mut bytes = Vec::new();
    arena.fingerprint(|part| bytes.extend_from_slice(part));
    (bytes, combined.into_iter().map(f32::to_bits).collect(), arena.pairs())
}

#[test]
fn under_every_router_a_world_that_recalls_plays_on_with_the_same_bits() {
    let registry = RouterRegistry::standard();
    let (mut routers, mut differ_without) = (0, 0);
    for router in registry.names() {
        for information in [
            Information::InBatch,
            Information::Stale { batches: 3 },
            Information::Partial { dispatchers: 4 },
        ] {
            let mut whole = arena_knowing(router, 2, 1, information);
            (0..4).for_each(|step| drop(play(&mut whole, step)));
            let memory = whole.memory();
            let mut resumed = arena_knowing(router, 2, 1, information);
            resumed.recall(memory.clone()).expect("a world of the same shape");
            assert_eq!(resumed.memory(), memory, "{router}");
            let mut forgetful = arena_knowing(router, 2, 1, information);
            for step in 4..9 {
                let expected = told(&mut whole, step);
                assert_eq!(told(&mut resumed, step), expected, "{router} {information:?} {step}");
                differ_without += u32::from(told(&mut forgetful, step).0 != expected.0);
            }
            assert_eq!(resumed.memory(), whole.memory(), "{router} {information:?}");
        }
        routers += 1;
    }
    assert!(routers >= 16, "{routers}");
    assert!(differ_without > 200, "a world that forgets plays otherwise: {differ_without}");
}

#[test]
fn the_memory_of_a_world_of_another_shape_is_refused() {
    let memory = arena_knowing("equilibrium", 3, 1, Information::InBatch).memory();
    let mut other = arena_knowing("equilibrium", 2, 1, Information::InBatch);
    let before = other.memory();
    assert_eq!(other.recall(memory), Err(ForeignMemory));
    assert_eq!(other.memory(), before);
}

const WIDTH: usize = 3;

/// A world whose rows move by a rule.
fn moving(rule: &str) -> Arena {
    let mut arena = arena_knowing("equilibrium", 2, 1, Information::InBatch);
    let settings = MotionSettings { turn_max: 0.2, score_loss_max: 0.3, ..Default::default() };
    let layer = |seed: u64| {
        let rule = MotionRegistry::standard().build(rule, seed).expect("a standard rule");
        let rows = random(seed, 6 * WIDTH);
        LayerMotion::new(&rows, WIDTH, (Routing::softmax(false), 2), settings, rule)
    };
    arena.set_motion(vec![layer(5), layer(6)]);
    arena
}

fn random(seed: u64, len: usize) -> Vec<f32> {
    let mut rng = stream(seed, "round memory");
    (0..len).map(|_| rng.random::<f32>() * 4.0 - 2.0).collect()
}

/// The rows of both layers after a batch.
fn fly(arena: &mut Arena, step: u32) -> Vec<u32> {
    let requests = [RequestId(0); 40];
    for layer in 0..2 {
        let hidden = random(u64::from(100 + 2 * step + layer), 40 * WIDTH);
        let (step, layer) = (StepId(step), LayerId(layer));
        let perception =
            Perception { step, layer, requests: &requests, logits: &[0.0; 240], hidden: &hidden };
        arena.decide(&perception).expect("finite logits");
    }
    let layers = arena.motion().expect("rows move");
    layers.iter().flat_map(LayerMotion::router).map(f32::to_bits).collect()
}

#[test]
fn rows_in_motion_go_on_where_they_were_under_every_rule() {
    for (rule, _) in MotionRegistry::standard().summaries() {
        for batches in [0, 1, 4] {
            let mut whole = moving(rule);
            (0..batches).for_each(|step| drop(fly(&mut whole, step)));
            let mut resumed = moving(rule);
            resumed.recall(whole.memory()).expect("a world of the same shape");
            // Enough of them for steps at random too, which are kept only where they help.
            let mut seen = Vec::new();
            for step in batches..batches + 16 {
                seen.push(fly(&mut whole, step));
                assert_eq!(fly(&mut resumed, step), seen[seen.len() - 1], "{rule} {step}");
            }
            assert_eq!(resumed.memory(), whole.memory(), "{rule}");
            assert!(seen.windows(2).any(|pair| pair[0] != pair[1]), "{rule}: nothing moves");
        }
    }
    let still = arena_knowing("equilibrium", 2, 1, Information::InBatch).memory();
    assert_eq!(moving("boids").recall(still), Err(ForeignMemory));
}
