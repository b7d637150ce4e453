//! Reads the keys of a JSON object and keeps what is wrong with them.

use serde_json::Value;

/// Sizes above this are refused: it bounds what a hostile file can make us enumerate.
const MAX_SIZE: u64 = 1 << 24;

/// An object and what was wrong with the keys read so far.
pub(super) struct Keys<'a> {
    pub json: &'a Value,
    /// One sentence a key.
    pub problems: Vec<String>,
}

impl<'a> Keys<'a> {
    /// The value of a key that is there and not null.
    pub(super) fn present(&self, key: &str) -> Option<&'a Value> {
        self.json.get(key).filter(|value| !value.is_null())
    }

    pub(super) fn size(&mut self, key: &str) -> usize {
        self.optional_size(key).unwrap_or_else(|| {
            if self.present(key).is_none() {
                self.problems.push(format!("`{key}` is missing"));
            }
            0
        })
    }

    pub(super) fn optional_size(&mut self, key: &str) -> Option<usize> {
        let value = self.present(key)?;
        match value.as_u64() {
            Some(size @ 1..=MAX_SIZE) => usize::try_from(size).ok(),
            _ => {
                self.problems.push(format!("`{key}` is {value}; it must be 1 to {MAX_SIZE}"));
                None
            }
        }
    }

    /// A count of which 0 means none.
    pub(super) fn count(&mut self, key: &str) -> usize {
        match self.present(key).and_then(Value::as_u64) {
            Some(0) => 0,
            _ => self.optional_size(key).unwrap_or(0),
        }
    }

    pub(super) fn flag(&mut self, key: &str, default: bool) -> bool {
        let Some(value) = self.present(key) else { return default };
        value.as_bool().unwrap_or_else(|| {
            self.problems.push(format!("`{key}` is {value}; it must be true or false"));
            default
        })
    }

    pub(super) fn positive(&mut self, key: &str, default: Option<f64>) -> f64 {
        match (self.present(key), default) {
            (None, Some(default)) => default,
            (value, _) => match value.and_then(Value::as_f64) {
                Some(number) if number > 0.0 && number.is_finite() => number,
                _ => {
                    self.problems.push(format!("`{key}` must be a positive number"));
                    1.0
                }
            },
        }
    }
}
