//! The keys of `[load.generation]`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Requests as prompts whose answers are decoded token by token, in steps of continuous batching. Batches
/// have no window then, and no size but these.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Generation {
    /// Where the lengths of prompts and answers come from. Default `none`: nothing is generated.
    pub lengths: Lengths,
    /// Tokens of a prompt, 1 to 1048576, used by lengths `fixed`. Default 64.
    #[schemars(range(min = 1, max = 1_048_576))]
    pub prompt_tokens: u32,
    /// Tokens of an answer, 1 to 1048576, used by lengths `fixed`. Default 16.
    #[schemars(range(min = 1, max = 1_048_576))]
    pub generated_tokens: u32,
    /// What recorded lengths are multiplied by, 0.0001 to 1, rounded up; used by lengths `trace`. Default 1.
    #[schemars(range(min = 0.0001, max = 1))]
    pub length_scale: f64,
    /// Tokens of a prompt and its answer, 2 to 1048576; longer ones are cut. Default: the model's positions.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 2, max = 1_048_576))]
    pub context_max: Option<u32>,
    /// Tokens of a step, 1 to 1048576, at least `running_max`. Default 256.
    #[schemars(range(min = 1, max = 1_048_576))]
    pub step_tokens_max: u32,
    /// Requests that have begun and not ended, 1 to 65536: each holds keys and values. Default 32.
    #[schemars(range(min = 1, max = 65_536))]
    pub running_max: u32,
    /// Time of a step on the virtual clock by which requests join steps, in µs, 1 to 60000000. Default 2000.
    #[schemars(range(min = 1, max = 60_000_000))]
    pub step_us: u32,
    /// Time on that clock of each token of a step, in µs, 0 to 60000000. Default 50.
    #[schemars(range(max = 60_000_000))]
    pub token_us: u32,
}

impl Default for Generation {
    fn default() -> Self {
        Self {
            lengths: Lengths::None,
            prompt_tokens: 64,
            generated_tokens: 16,
            length_scale: 1.0,
            context_max: None,
            step_tokens_max: 256,
            running_max: 32,
            step_us: 2000,
            token_us: 50,
        }
    }
}

impl Generation {
    /// Whether requests are windows of text, and nothing is generated.
    #[must_use]
    pub fn is_off(&self) -> bool {
        self.lengths == Lengths::None
    }
}

/// Where the lengths of prompts and answers come from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Lengths {
    /// Nothing is generated.
    #[default]
    None,
    /// `prompt_tokens` and `generated_tokens`.
    Fixed,
    /// Columns `ContextTokens` and `GeneratedTokens` of `load.trace`.
    Trace,
}
