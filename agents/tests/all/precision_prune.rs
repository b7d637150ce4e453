//! Pruning: scores against their formulas, and which experts go.

use agents::expert::{BitWidth, Expert, ExpertShape, reference};
use agents::precision::{PruneCriterion, prune_lowest, prune_score, pruned_count};
use agents::rng::stream;
use rand::RngExt as _;

const SHAPE: ExpertShape = ExpertShape { width: 64, hidden: 32 };

fn random(purpose: &str, len: usize) -> Vec<f32> {
    let mut rng = stream(8, purpose);
    (0..len).map(|_| rng.random::<f32>() - 0.5).collect()
}

#[test]
fn reap_is_the_mean_of_gate_times_output_norm_and_frequency_the_share_of_tokens() {
    let part = |purpose| random(purpose, SHAPE.weights() / 3);
    let (gate, up, down) = (part("gate"), part("up"), part("down"));
    let expert = Expert::quantize(SHAPE, &gate, &up, &down, BitWidth::Full, 32);
    let (x, gates) = (random("x", 5 * 64), [0.5, 0.25, 0.0, 0.125, 1.0]);
    let score = |criterion, gates: &[f32]| prune_score(criterion, &expert, &x, gates, 20);
    let outputs = reference::forward(&expert, &x);
    let norms = outputs.chunks(64).map(|row| row.iter().map(|v| v * v).sum::<f64>().sqrt());
    let expected = norms.zip(gates).map(|(norm, gate)| f64::from(gate) * norm).sum::<f64>() / 5.0;
    let reap = score(PruneCriterion::Reap, &gates);
    assert!((reap - expected).abs() < 1e-5 * expected, "{reap} against {expected}");
    // A mean: the same tokens twice score the same.
    let (twice, both) = ([x.as_slice(), &x].concat(), [gates, gates].concat());
    let again = prune_score(PruneCriterion::Reap, &expert, &twice, &both, 40);
    assert!((reap - again).abs() < 1e-12 * reap);
    let frequency = score(PruneCriterion::Frequency, &gates);
    assert_eq!(frequency.to_bits(), 0.25_f64.to_bits());
    for criterion in [PruneCriterion::Reap, PruneCriterion::Frequency] {
        let unseen = prune_score(criterion, &expert, &[], &[], 20);
        assert_eq!(unseen.to_bits(), 0.0_f64.to_bits(), "an expert without a token goes first");
    }
}

#[test]
fn the_lowest_scores_go_and_ties_take_the_higher_id() {
    let scores = [0.5, 0.1, 0.3, 0.1, 0.9, 0.1, 0.7, 0.2];
    assert_eq!(prune_lowest(&scores, 0.0), [0, 1, 2, 3, 4, 5, 6, 7]);
    assert_eq!(prune_lowest(&scores, 0.25), [0, 1, 2, 4, 6, 7]);
    assert_eq!(prune_lowest(&scores, 0.5), [0, 2, 4, 6]);
    assert_eq!(prune_lowest(&scores, 0.99), [4], "someone stays");
}

#[test]
fn a_share_of_a_layer_is_rounded_down_but_for_what_decimals_lose() {
    for (share, experts, pruned) in
        [(0.25, 8, 2), (0.25, 7, 1), (0.3, 10, 3), (0.7, 10, 7), (0.99, 64, 63), (0.5, 1, 0)]
    {
        assert_eq!(pruned_count(share, experts), pruned, "{share} of {experts}");
    }
}
