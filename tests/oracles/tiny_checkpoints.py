"""Writes tiny random checkpoints of every family that can be loaded, and what another library computes with them.

    python tests/oracles/tiny_checkpoints.py tests/oracles

Made with python 3.11, torch 2.15.0, transformers 5.23.0, gguf 0.19.0, numpy 2.4.6, safetensors 0.8.0.

For each family, `tiny/NAME/` holds `config.json` and `model.safetensors` (f16) as the library saves them, and
`oracle.safetensors`: `input_ids` (2 windows of 12 tokens), `logits`, and for each routed layer the MoE block's
input (`layers.L.moe_in`), router logits and output, computed in f64 from the stored weights (norms and softmax
run in f32 there). `tiny/*-fused.safetensors` holds a model under the names that the library uses in memory, and
`tiny/*.gguf` the same models as GGUF files. `gguf-blocks.safetensors` holds seeded blocks of every quantized
GGUF type and their values. `tiny/tokenizer.gguf` holds the tokenizer of the shipped models.
"""

import copy
import json
import pathlib
import sys

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType as Type
from safetensors.numpy import save_file
from transformers import AutoConfig, AutoModelForCausalLM

WINDOWS, LENGTH = 2, 12
BASE = dict(
    vocab_size=64, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
    intermediate_size=48, max_position_embeddings=32, rope_parameters={"rope_type": "default", "rope_theta": 1000.0},
)
MLA = dict(
    num_key_value_heads=4, kv_lora_rank=16, qk_rope_head_dim=4, qk_nope_head_dim=8, v_head_dim=6,
    n_routed_experts=8, num_experts_per_tok=3, moe_intermediate_size=16, n_group=4, topk_group=2,
    first_k_dense_replace=1,
)
FAMILIES = {
    "llama": dict(attention_bias=True, tie_word_embeddings=True),
    "olmoe": dict(intermediate_size=16, num_experts=6, num_experts_per_tok=2, clip_qkv=1.5),
    "mixtral": dict(intermediate_size=24, num_local_experts=4),
    "qwen2_moe": dict(
        num_hidden_layers=3, mlp_only_layers=[2], num_experts=6, num_experts_per_tok=2, moe_intermediate_size=16,
        shared_expert_intermediate_size=24,
    ),
    "qwen3_moe": dict(num_experts=6, num_experts_per_tok=3, moe_intermediate_size=32, head_dim=16, norm_topk_prob=True),
    "deepseek_v2": dict(
        MLA, q_lora_rank=None, topk_method="group_limited_greedy", n_shared_experts=2, routed_scaling_factor=1.5,
    ),
    "deepseek_v3": dict(
        MLA, q_lora_rank=12, n_shared_experts=1, routed_scaling_factor=2.5, qk_rope_head_dim=8, qk_nope_head_dim=4,
        v_head_dim=14, rope_parameters={
            "rope_type": "yarn", "rope_theta": 1000.0, "factor": 4.0, "original_max_position_embeddings": 8,
            "beta_fast": 4.0, "beta_slow": 0.25, "mscale": 1.0, "mscale_all_dim": 0.7,
        },
    ),
}


def draw(name, tensor, generator):
    noise = torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
    if name.endswith("norm.weight"):
        return 1.0 + 0.2 * noise
    if name.endswith("bias"):
        return 0.3 * noise
    if name.endswith("embed_tokens.weight"):
        return noise
    return 1.5 * noise / tensor.shape[-1] ** 0.5


def make(name, seed):
    """An f32 model whose weights are f16 numbers; as `model.half()` it would round its rotary angles too."""
    config = AutoConfig.for_model(name, **{**BASE, **FAMILIES[name]})
    config._attn_implementation = "eager"
    model = AutoModelForCausalLM.from_config(config, experts_implementation="eager").eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for key, tensor in sorted(model.state_dict().items()):
            if key != "lm_head.weight" or not config.tie_word_embeddings:
                tensor.copy_(draw(key, tensor, generator).half())
    return model


def oracle(model, seed):
    model = model.double()
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(model.config.vocab_size, (WINDOWS, LENGTH), generator=generator)
    seen = {"input_ids": ids}

    def watch(layer):
        def hook(block, inputs, output):
            hidden = inputs[0]
            seen[f"layers.{layer}.moe_in"] = hidden
            seen[f"layers.{layer}.moe_out"] = output[0] if isinstance(output, tuple) else output
            seen[f"layers.{layer}.router_logits"] = hidden @ block.gate.weight.to(hidden.dtype).T
        return hook

    for layer, block in enumerate(model.model.layers):
        if hasattr(block.mlp, "experts"):
            block.mlp.register_forward_hook(watch(layer))
    with torch.no_grad():
        seen["logits"] = model(ids).logits
    whole = {"input_ids": np.int32}
    return {key: np.ascontiguousarray(value.numpy().astype(whole.get(key, np.float32))) for key, value in seen.items()}


def of_pairs(rows, heads):
    """The order of rows in which llama.cpp wants queries and keys of its first family."""
    return rows.reshape(heads, 2, rows.shape[0] // heads // 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def gguf_tensors(model, each_expert=False):
    config, state = model.config, {key: value.float().numpy() for key, value in model.state_dict().items()}
    llama = config.model_type in ("llama", "mixtral")
    yield "token_embd.weight", state["model.embed_tokens.weight"]
    yield "output_norm.weight", state["model.norm.weight"]
    if not config.tie_word_embeddings:
        yield "output.weight", state["lm_head.weight"]
    names = {
        "input_layernorm.weight": "attn_norm.weight", "post_attention_layernorm.weight": "ffn_norm.weight",
        "self_attn.q_norm.weight": "attn_q_norm.weight", "self_attn.k_norm.weight": "attn_k_norm.weight",
        "mlp.gate_proj.weight": "ffn_gate.weight", "mlp.up_proj.weight": "ffn_up.weight",
        "mlp.down_proj.weight": "ffn_down.weight", "mlp.gate.weight": "ffn_gate_inp.weight",
        "mlp.shared_expert.gate_proj.weight": "ffn_gate_shexp.weight",
        "mlp.shared_expert.up_proj.weight": "ffn_up_shexp.weight",
        "mlp.shared_expert.down_proj.weight": "ffn_down_shexp.weight",
    }
    for part in ("q", "k", "v", "o"):
        for kind in ("weight", "bias"):
            names[f"self_attn.{part}_proj.{kind}"] = f"attn_{'output' if part == 'o' else part}.{kind}"
    for key, value in state.items():
        if not key.startswith("model.layers."):
            continue
        layer, rest = key.removeprefix("model.layers.").split(".", 1)
        if rest == "mlp.shared_expert_gate.weight":
            yield f"blk.{layer}.ffn_gate_inp_shexp.weight", value[0]
        elif rest == "mlp.experts.down_proj":
            yield from experts(layer, "down", value, each_expert)
        elif rest == "mlp.experts.gate_up_proj":
            gate, up = np.split(value, 2, axis=1)
            yield from experts(layer, "gate", gate, each_expert)
            yield from experts(layer, "up", up, each_expert)
        else:
            if llama and "q_proj" in rest:
                value = of_pairs(value, config.num_attention_heads)
            if llama and "k_proj" in rest:
                value = of_pairs(value, config.num_key_value_heads)
            yield f"blk.{layer}.{names[rest]}", value


def experts(layer, part, value, each_expert):
    if each_expert:
        for expert, matrix in enumerate(value):
            yield f"blk.{layer}.ffn_{part}.{expert}.weight", matrix
    else:
        yield f"blk.{layer}.ffn_{part}_exps.weight", value


def write_gguf(path, model, kinds=None, each_expert=False):
    """`kinds` gives the type of a tensor by its name; F32 else, as for all vectors."""
    config = model.config
    arch = {"mixtral": "llama", "qwen2_moe": "qwen2moe", "qwen3_moe": "qwen3moe"}.get(config.model_type, config.model_type)
    writer = gguf.GGUFWriter(path, arch)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    if getattr(config, "head_dim", None):
        writer.add_key_length(config.head_dim)
        writer.add_value_length(config.head_dim)
    if getattr(config, "clip_qkv", None):
        writer.add_clamp_kqv(config.clip_qkv)
    if config.model_type != "llama":
        writer.add_expert_count(getattr(config, "num_experts", None) or config.num_local_experts)
        writer.add_expert_used_count(config.num_experts_per_tok)
    if getattr(config, "moe_intermediate_size", None):
        writer.add_expert_feed_forward_length(config.moe_intermediate_size)
    if getattr(config, "shared_expert_intermediate_size", None):
        writer.add_expert_shared_feed_forward_length(config.shared_expert_intermediate_size)
    for name, value in gguf_tensors(model, each_expert):
        kind = kinds(name) if kinds and value.ndim > 1 else Type.F32
        value = np.ascontiguousarray(value)
        if kind in (Type.F32, Type.F16):
            writer.add_tensor(name, value.astype(np.float16 if kind == Type.F16 else np.float32))
        else:
            writer.add_tensor(name, gguf.quants.quantize(value, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def mixed(name):
    """A type for each kind of tensor of the quantized file."""
    for part, kind in [("down_exps", Type.Q4_0), ("_exps", Type.Q8_0), ("attn_q", Type.BF16), ("attn_", Type.F16)]:
        if part in name:
            return kind
    return Type.F32


def quantize_in_place(model):
    """What the weights of the quantized file are worth."""
    state = model.state_dict()

    def rounded(value, kind):
        if kind == Type.F32:
            return value
        data = gguf.quants.quantize(value.numpy(), kind)
        return torch.from_numpy(np.array(gguf.quants.dequantize(data, kind)).astype(np.float32).reshape(value.shape))

    for key, value in state.items():
        if key.endswith("experts.gate_up_proj"):
            value.copy_(rounded(value.clone(), mixed("gate_exps")))
        elif key.endswith("experts.down_proj"):
            value.copy_(rounded(value.clone(), mixed("down_exps")))
        elif "self_attn" in key and value.ndim > 1:
            value.copy_(rounded(value.clone(), mixed("attn_q" if "q_proj" in key else "attn_")))


def write_blocks(path, blocks=6):
    """Random codes; f16 scales that are finite, some of them subnormal."""
    random, tensors = np.random.default_rng(3), {}
    scales = {
        Type.Q4_0: [0], Type.Q4_1: [0, 2], Type.Q5_0: [0], Type.Q5_1: [0, 2], Type.Q8_0: [0], Type.Q2_K: [80, 82],
        Type.Q3_K: [108], Type.Q4_K: [0, 2], Type.Q5_K: [0, 2], Type.Q6_K: [208],
    }
    for kind, places in scales.items():
        size = gguf.GGML_QUANT_SIZES[kind][1]
        data = random.integers(0, 256, (blocks, size), dtype=np.uint8)
        for place in places:
            values = random.standard_normal(blocks) * 10.0 ** random.integers(-7, 1, blocks)
            data[:, place : place + 2] = values.astype("<f2").view(np.uint8).reshape(blocks, 2)
        tensors[f"{kind.name}.blocks"] = data
        tensors[f"{kind.name}.values"] = np.ascontiguousarray(gguf.quants.dequantize(data, kind).astype(np.float32))
    halves = random.integers(0, 0x7F80, (1, 64), dtype=np.uint16).view(np.uint8)
    tensors["BF16.blocks"] = halves
    tensors["BF16.values"] = gguf.quants.dequantize(halves, Type.BF16).astype(np.float32)
    save_file(tensors, path)


def write_tokenizer(path, tokenizer):
    """A GGUF file with nothing but a byte-level BPE tokenizer and one control token more."""
    model = json.loads(tokenizer.read_text())["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].get)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([*tokens, "<|end|>"])
    writer.add_token_types([gguf.TokenType.NORMAL] * len(tokens) + [gguf.TokenType.CONTROL])
    writer.add_token_merges([" ".join(pair) for pair in model["merges"]])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def main(folder):
    tiny = folder / "tiny"
    for seed, name in enumerate(FAMILIES):
        model, home = make(name, seed), tiny / name
        copy.deepcopy(model).half().save_pretrained(home)
        (home / "generation_config.json").unlink(missing_ok=True)
        if name == "mixtral":
            state = {key: value.half().numpy() for key, value in model.state_dict().items()}
            save_file(state, tiny / f"{name}-fused.safetensors")
        if not name.startswith("deepseek"):
            write_gguf(tiny / f"{name}.gguf", model, lambda _: Type.F16)
        if name == "mixtral":
            write_gguf(tiny / "mixtral-each.gguf", model, lambda _: Type.F16, each_expert=True)
        save_file(oracle(model, 100 + seed), home / "oracle.safetensors")
        if name == "qwen3_moe":
            model = make(name, seed)
            write_gguf(tiny / "qwen3_moe-mixed.gguf", model, mixed)
            quantize_in_place(model)
            save_file(oracle(model, 100 + seed), tiny / "qwen3_moe-mixed-oracle.safetensors")
    write_blocks(folder / "gguf-blocks.safetensors")
    write_tokenizer(tiny / "tokenizer.gguf", folder / "../../scenarios/models/books-dense/tokenizer.json")


main(pathlib.Path(sys.argv[1]))
