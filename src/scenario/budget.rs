//! How large the experts may be: the budgets of scenarios and of the command line.

use std::fmt;
use std::str::FromStr;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

/// Size of all experts, scales included. Written as in a scenario: `f32`, `90.6%`, `2.5bpw`, `3MB`.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize, Serialize)]
#[serde(try_from = "String", into = "String")]
pub enum Budget {
    /// f32, not quantized.
    Full,
    /// Saving against f32, above 0 and below 100.
    SavingPercent(f64),
    /// Bits a weight, above 0 and at most 32.
    BitsPerWeight(f64),
    /// Bytes of all experts, in MB of 1000000 bytes, above 0.
    Megabytes(f64),
}

/// The text is not a budget.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a size budget")]
pub struct BudgetError(String);

impl FromStr for Budget {
    type Err = BudgetError;

    fn from_str(text: &str) -> Result<Self, BudgetError> {
        type Unit = (&'static str, fn(f64) -> Budget, f64);
        let units: [Unit; 3] = [
            ("%", Self::SavingPercent, 100.0_f64.next_down()),
            ("bpw", Self::BitsPerWeight, 32.0),
            ("MB", Self::Megabytes, f64::MAX),
        ];
        if text == "f32" {
            return Ok(Self::Full);
        }
        if !text.starts_with(|c: char| c.is_ascii_digit()) {
            return Err(BudgetError(text.into()));
        }
        units
            .iter()
            .find_map(|(unit, budget, max)| {
                let value: f64 = text.strip_suffix(unit)?.trim_end().parse().ok()?;
                (value > 0.0 && value <= *max).then(|| budget(value))
            })
            .ok_or_else(|| BudgetError(text.into()))
    }
}

impl TryFrom<String> for Budget {
    type Error = BudgetError;

    fn try_from(text: String) -> Result<Self, BudgetError> {
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
            Self::SavingPercent(percent) => write!(f, "{percent}%"),
            Self::BitsPerWeight(bits) => write!(f, "{bits}bpw"),
            Self::Megabytes(megabytes) => write!(f, "{megabytes}MB"),
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
            "pattern": r"^(f32|\d+(\.\d*)?([eE][+-]?\d+)? *(%|bpw|MB))$",
        })
    }
}
