//! Checkpoints in the Hugging Face layout, tokenizers and the f32 forward pass around the experts.
