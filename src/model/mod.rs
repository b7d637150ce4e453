//! Checkpoints in the Hugging Face layout, tokenizers and the f32 forward pass around the experts.

pub mod architecture;
pub mod checkpoint;
pub mod config;
pub mod eval;
pub mod experts;
mod mapping;
pub mod quantize;
pub mod tokenizer;
pub mod trunk;
mod weights;
