//! Bit widths of weight codes.

use std::fmt;

/// Bits a weight code has; `Full` keeps f32.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize,
)]
pub enum BitWidth {
    /// 2-bit codes.
    Two,
    /// 3-bit codes.
    Three,
    /// 4-bit codes.
    Four,
    /// 8-bit codes.
    Eight,
    /// f32, not quantized.
    Full,
}

/// A name that is no bit width.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no bit width: write 2, 3, 4, 8 or f32")]
pub struct UnknownBitWidth(pub String);

impl BitWidth {
    /// Every width, from the smallest to the largest.
    pub const ALL: [Self; 5] = [Self::Two, Self::Three, Self::Four, Self::Eight, Self::Full];

    /// The widths that store codes, from the smallest to the largest.
    pub const QUANTIZED: [Self; 4] = [Self::Two, Self::Three, Self::Four, Self::Eight];

    /// Bits of one stored weight, without scales: 2, 3, 4, 8 or 32.
    #[must_use]
    pub fn code_bits(self) -> u32 {
        match self {
            Self::Two => 2,
            Self::Three => 3,
            Self::Four => 4,
            Self::Eight => 8,
            Self::Full => 32,
        }
    }

    /// The width with these [`Self::code_bits`].
    #[must_use]
    pub fn from_code_bits(bits: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|width| width.code_bits() == bits)
    }

    /// The name in scenarios, on the command line and in results: `2`, `3`, `4`, `8` or `f32`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Two => "2",
            Self::Three => "3",
            Self::Four => "4",
            Self::Eight => "8",
            Self::Full => "f32",
        }
    }

    /// The width of a [`Self::name`].
    ///
    /// # Errors
    /// When no width has that name.
    pub fn parse(name: &str) -> Result<Self, UnknownBitWidth> {
        Self::ALL
            .into_iter()
            .find(|width| width.name() == name)
            .ok_or_else(|| UnknownBitWidth(name.to_owned()))
    }
}

impl fmt::Display for BitWidth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
