//! Checkpoints in the Hugging Face layout and in GGUF files, tokenizers and the f32 forward pass
//! around the experts.

pub mod architecture;
mod blocks;
pub mod checkpoint;
pub mod choice;
pub mod config;
pub mod context;
pub mod eval;
mod expected;
pub mod experts;
mod gguf;
mod gguf_config;
mod gguf_tokenizer;
mod keys;
pub mod latent;
mod layers;
mod mapping;
pub mod names;
mod pass;
pub mod quantize;
pub mod tokenizer;
pub mod trunk;
mod weights;
