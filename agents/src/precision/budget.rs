//! Byte budgets as people write them.

use std::fmt;

/// How many bytes a set of weights may take.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Budget {
    /// Percent saved against f32, above 0 and below 100: `90.6%`.
    SavedPercent(f64),
    /// Bits per weight, scales included, above 0 and at most 32: `2.5bpw`.
    BitsPerWeight(f64),
    /// Bytes, from `700kB`, `3MB`, `3MiB`.
    Bytes(u64),
}

/// Why a text is no budget.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BudgetError {
    /// No known form.
    #[error(
        "`{0}` is no budget: write a share saved against f32 as `90.6%`, bits per weight as `2.5bpw`, \
         or bytes as `700kB`, `3MB` or `3MiB` (B, kB, MB, GB, KiB, MiB, GiB)"
    )]
    Form(String),
    /// A number outside its range.
    #[error("the budget `{text}` is out of range: {allowed}")]
    Range {
        /// The budget as written.
        text: String,
        /// What is allowed.
        allowed: &'static str,
    },
}

const BYTE_UNITS: [(&str, u64); 7] = [
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
    ("kB", 1_000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
    ("B", 1),
];

impl Budget {
    /// Reads `90.6%`, `2.5bpw`, `700kB`, `3MB`, `3MiB`; a blank before the unit is allowed.
    ///
    /// # Errors
    /// When the text has no such form, or its number is out of range.
    pub fn parse(text: &str) -> Result<Self, BudgetError> {
        let form = || BudgetError::Form(text.to_owned());
        let range = |allowed| BudgetError::Range { text: text.to_owned(), allowed };
        let trimmed = text.trim();
        if let Some(percent) = trimmed.strip_suffix('%') {
            let percent = decimal(percent).ok_or_else(form)?;
            return if percent > 0.0 && percent < 100.0 {
                Ok(Self::SavedPercent(percent))
            } else {
                Err(range("a share saved lies above 0% and below 100%"))
            };
        }
        if let Some(bits) = trimmed.strip_suffix("bpw") {
            let bits = decimal(bits).ok_or_else(form)?;
            return if bits > 0.0 && bits <= 32.0 {
                Ok(Self::BitsPerWeight(bits))
            } else {
                Err(range("bits per weight lie above 0 and go up to 32"))
            };
        }
        let (number, unit) = BYTE_UNITS
            .into_iter()
            .find_map(|(name, unit)| Some((trimmed.strip_suffix(name)?, unit)))
            .ok_or_else(form)?;
        let bytes = decimal(number).ok_or_else(form)? * unit as f64;
        // 2^53: below it, f64 holds every whole number.
        if (1.0..=9_007_199_254_740_992.0).contains(&bytes) {
            Ok(Self::Bytes(floor(bytes)))
        } else {
            Err(range("bytes go from 1 to 2^53"))
        }
    }

    /// The bytes that `total_weights` weights may take, rounded down.
    #[must_use]
    pub fn bytes(self, total_weights: u64) -> u64 {
        let weights = total_weights as f64;
        match self {
            Self::SavedPercent(percent) => floor(weights * 4.0 * (100.0 - percent) / 100.0),
            Self::BitsPerWeight(bits) => floor(weights * bits / 8.0),
            Self::Bytes(bytes) => bytes,
        }
    }
}

impl std::str::FromStr for Budget {
    type Err = BudgetError;

    fn from_str(text: &str) -> Result<Self, BudgetError> {
        Self::parse(text)
    }
}

impl fmt::Display for Budget {
    /// In a form that [`Budget::parse`] reads back.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::SavedPercent(percent) => write!(f, "{percent}%"),
            Self::BitsPerWeight(bits) => write!(f, "{bits}bpw"),
            Self::Bytes(bytes) => write!(f, "{bytes}B"),
        }
    }
}

/// A plain decimal number: digits with at most one point, so neither a sign nor `nan` nor `1e9`.
fn decimal(text: &str) -> Option<f64> {
    let text = text.trim_end();
    let plain = text.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
    plain.then(|| text.parse().ok()).flatten()
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "rounding down is meant, and sizes are not negative"
)]
fn floor(bytes: f64) -> u64 {
    // A product of decimals that is whole on paper may end just below: a millionth of a byte is forgiven.
    (bytes + 1e-6) as u64
}
