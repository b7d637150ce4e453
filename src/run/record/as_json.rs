//! Figures as JSON text within another format.

use serde::de::{DeserializeOwned, Error as _};
use serde::ser::Error as _;
use serde::{Deserialize as _, Deserializer, Serialize, Serializer};

pub(super) fn serialize<T, S>(of: &T, to: S) -> Result<S::Ok, S::Error>
where
    T: Serialize,
    S: Serializer,
{
    serde_json::to_string(of).map_err(S::Error::custom)?.serialize(to)
}

pub(super) fn deserialize<'de, T, D>(from: D) -> Result<T, D::Error>
where
    T: DeserializeOwned,
    D: Deserializer<'de>,
{
    serde_json::from_str(&String::deserialize(from)?).map_err(D::Error::custom)
}
