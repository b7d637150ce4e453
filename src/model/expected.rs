//! The tensors that a configuration asks for.

use super::architecture::{Architecture, QueryKeyNorm};
use super::config::{ModelConfig, MoeConfig};
use super::names::{self, ExpertNames, Projections, TensorNames};

/// A tensor's name and shape.
pub(super) type Named = (String, Vec<usize>);

/// Names and shapes of every tensor of a model, trunk before experts within a layer.
pub(super) fn expected_tensors<'a>(
    config: &'a ModelConfig,
    family: &'static Architecture,
    names: &'a TensorNames,
) -> impl Iterator<Item = Named> + 'a {
    let ModelConfig { width, vocab, .. } = *config;
    let mut outer = vec![
        (names.embedding.to_owned(), vec![vocab, width]),
        (names.final_norm.to_owned(), vec![width]),
    ];
    if !config.tied_head {
        outer.push((names.head.to_owned(), vec![vocab, width]));
    }
    outer.into_iter().chain((0..config.layers).flat_map(move |layer| {
        let attention = match &config.latent {
            Some(latent) => latent.expected_tensors(config, names, layer),
            None => attention(config, family, names, layer),
        };
        attention.into_iter().chain(match config.moe {
            Some(moe) if config.routed_layers.binary_search(&layer).is_ok() => {
                routed(config, moe, family, names, layer)
            }
            _ => network(names.dense, (width, config.hidden), layer, 0),
        })
    }))
}

fn attention(
    config: &ModelConfig,
    family: &Architecture,
    names: &TensorNames,
    layer: usize,
) -> Vec<Named> {
    let ModelConfig { width, head_dim, .. } = *config;
    let (q, kv) = (config.heads * head_dim, config.kv_heads * head_dim);
    let mut tensors = vec![
        (names.attention_norm.to_owned(), vec![width]),
        (names.query.to_owned(), vec![q, width]),
        (names.key.to_owned(), vec![kv, width]),
        (names.value.to_owned(), vec![kv, width]),
        (names.attention_out.to_owned(), vec![width, q]),
        (names.feed_forward_norm.to_owned(), vec![width]),
    ];
    if config.attention_bias {
        let biases = [(names.query, q), (names.key, kv), (names.value, kv)];
        tensors.extend(biases.map(|(name, length)| (names::bias(name), vec![length])));
        if family.attention_bias.output {
            tensors.push((names::bias(names.attention_out), vec![width]));
        }
    }
    let norms = match family.query_key_norm {
        QueryKeyNorm::Absent => None,
        QueryKeyNorm::AllHeads => Some((q, kv)),
        QueryKeyNorm::EachHead => Some((head_dim, head_dim)),
    };
    if let Some((q, kv)) = norms {
        tensors.push((names.query_norm.to_owned(), vec![q]));
        tensors.push((names.key_norm.to_owned(), vec![kv]));
    }
    tensors.into_iter().map(|(name, shape)| (names::layer_tensor(&name, layer), shape)).collect()
}

fn routed(
    config: &ModelConfig,
    moe: MoeConfig,
    family: &Architecture,
    names: &TensorNames,
    layer: usize,
) -> Vec<Named> {
    let (width, experts, hidden) = (config.width, moe.experts, moe.hidden);
    let at = |pattern: &str, shape| (names::layer_tensor(pattern, layer), shape);
    let mut tensors = vec![at(names.router, vec![experts, width])];
    if family.moe.as_ref().is_some_and(|moe| moe.selection_bias) {
        tensors.push(at(names.selection_bias, vec![experts]));
    }
    if let Some(shared) = moe.shared_hidden {
        tensors.extend(network(names.shared, (width, shared), layer, 0));
        if family.has_shared_gate() {
            tensors.push(at(names.shared_gate, vec![1, width]));
        }
    }
    match names.experts {
        ExpertNames::Each(parts) => tensors
            .extend((0..experts).flat_map(|expert| network(parts, (width, hidden), layer, expert))),
        ExpertNames::Stacked(parts) => tensors.extend(
            network(parts, (width, hidden), layer, 0)
                .into_iter()
                .map(|(name, shape)| (name, [&[experts], &shape[..]].concat())),
        ),
        ExpertNames::Fused { gate_up, down } => tensors.extend([
            at(gate_up, vec![experts, 2 * hidden, width]),
            at(down, vec![experts, width, hidden]),
        ]),
    }
    tensors
}

fn network(
    parts: Projections,
    (width, hidden): (usize, usize),
    layer: usize,
    expert: usize,
) -> Vec<Named> {
    let shapes = [
        (parts.gate, vec![hidden, width]),
        (parts.up, vec![hidden, width]),
        (parts.down, vec![width, hidden]),
    ];
    shapes.map(|(name, shape)| (names::expert_tensor(name, layer, expert), shape)).into()
}
