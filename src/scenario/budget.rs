//! How large the experts may be, as scenarios and the command line write it.

use std::fmt;
use std::str::FromStr;

use agents::precision;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

/// Size of all experts, scales included. Written as `f32`, `stored`, `90.6%`, `2.5bpw` or `3MB`.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize, Serialize)]
#[serde(try_from = "String", into = "String")]
pub enum Budget {
    /// f32, not quantized.
    Full,
    /// The codes that a quantized checkpoint holds, as they are.
    Stored,
    /// Quantized into so much.
    Limited(precision::Budget),
}

impl FromStr for Budget {
    type Err = precision::BudgetError;

    fn from_str(text: &str) -> Result<Self, precision::BudgetError> {
        match text {
            "f32" => Ok(Self::Full),
            "stored" => Ok(Self::Stored),
            _ => precision::Budget::parse(text).map(Self::Limited),
        }
    }
}

impl TryFrom<String> for Budget {
    type Error = precision::BudgetError;

    fn try_from(text: String) -> Result<Self, precision::BudgetError> {
        text.parse()
    }
}

impl From<Budget> for String {
    fn from(budget: Budget) -> Self {
        budget.to_string()
    }
}

impl fmt::Display for Budget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Full => f.write_str("f32"),
            Self::Stored => f.write_str("stored"),
            Self::Limited(budget) => budget.fmt(f),
        }
    }
}

impl JsonSchema for Budget {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Budget".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string",
            "format": "budget",
            "pattern": r"^(f32|stored|\d+(\.\d*)? *(%|bpw|B|kB|MB|GB|KiB|MiB|GiB))$",
        })
    }
}
