//! Bytes of experts of several widths, and who has which.

use super::whole_ns;
use crate::ids::ExpertId;

/// Encoded bytes of each expert's weights.
#[derive(Clone, Debug, PartialEq)]
pub enum ExpertBytes {
    /// All have so many.
    All(u64),
    /// By expert, in units: so that a message can say in two bytes what its experts come to.
    Each {
        /// Units of each, 1 to 1023.
        units: Vec<u16>,
        /// Bytes of a unit, above 0.
        unit_bytes: f64,
    },
}

impl ExpertBytes {
    /// Of one expert.
    #[must_use]
    pub fn of(&self, expert: ExpertId) -> u64 {
        self.of_message(1, self.units(expert))
    }

    /// Of so many experts that come to so many units.
    #[must_use]
    pub fn of_message(&self, experts: u32, units: u16) -> u64 {
        match self {
            Self::All(bytes) => u64::from(experts) * bytes,
            Self::Each { unit_bytes, .. } => whole_ns(f64::from(units) * unit_bytes),
        }
    }

    /// Of an expert; 0 where all are alike.
    #[must_use]
    pub fn units(&self, expert: ExpertId) -> u16 {
        match self {
            Self::All(_) => 0,
            Self::Each { units, .. } => units[expert.index()],
        }
    }

    /// Of the experts of a block whose places have a bit; 0 where all are alike.
    pub(super) fn units_of(&self, experts: &[ExpertId], places: u64) -> u16 {
        match self {
            Self::All(_) => 0,
            Self::Each { units, .. } => {
                let asked = experts.iter().zip(0..).filter(|(_, place)| places >> place & 1 == 1);
                asked.map(|(expert, _)| units[expert.index()]).sum()
            }
        }
    }

    pub(super) fn check(&self, experts: usize) {
        if let Self::Each { units, unit_bytes } = self {
            assert_eq!(units.len(), experts, "each expert has a width");
            assert!(units.iter().all(|units| (1..1024).contains(units)), "64 of them fit 16 bits");
            assert!(*unit_bytes > 0.0, "bytes");
        }
    }
}

/// Which experts have the wide ones of several widths.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum WidthsTo {
    /// Those that are wanted most.
    #[default]
    Popular,
    /// Those that are wanted least: what is asked often is quick.
    Rare,
    /// All widths are dealt over the experts as evenly as can be, whoever is wanted.
    Even,
}

/// Which width each expert has, of widths from narrow to wide of which experts have a share in proportion to
/// `weights`, each above 0: counts by largest remainders, in order of popularity or by number.
#[must_use]
pub fn dealt(popularity: &[f64], weights: &[f64], to: WidthsTo) -> Vec<usize> {
    let experts = popularity.len();
    let mut left = counts(weights, experts);
    if to == WidthsTo::Even {
        let sum: f64 = weights.iter().sum();
        let mut given = vec![0.0; weights.len()];
        let next = |at: usize| {
            let owed = |width: &usize| weights[*width] / sum * (at + 1) as f64 - given[*width];
            let open = (0..weights.len()).filter(|width| left[*width] > 0);
            let width = open.max_by(|a, b| owed(a).total_cmp(&owed(b)).then(b.cmp(a)));
            let width = width.expect("as many widths as experts");
            given[width] += 1.0;
            left[width] -= 1;
            width
        };
        return (0..experts).map(next).collect();
    }
    let mut order: Vec<usize> = (0..experts).collect();
    order.sort_by(|a, b| {
        let by_popularity = popularity[*a].total_cmp(&popularity[*b]);
        let narrow_first =
            if to == WidthsTo::Rare { by_popularity.reverse() } else { by_popularity };
        narrow_first.then(b.cmp(a))
    });
    let mut widths = vec![0; experts];
    let narrow_first = (0..).zip(left).flat_map(|(width, count)| std::iter::repeat_n(width, count));
    order.into_iter().zip(narrow_first).for_each(|(expert, width)| widths[expert] = width);
    widths
}

/// Experts of each width.
fn counts(weights: &[f64], experts: usize) -> Vec<usize> {
    let sum: f64 = weights.iter().sum();
    let wanted = |width: usize| weights[width] / sum * experts as f64;
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "at most the experts"
    )]
    let mut counts: Vec<usize> = (0..weights.len()).map(|width| wanted(width) as usize).collect();
    let mut by_remainder: Vec<usize> = (0..weights.len()).collect();
    let remainder = |width: usize| wanted(width).fract();
    by_remainder.sort_by(|a, b| remainder(*b).total_cmp(&remainder(*a)).then(a.cmp(b)));
    let left = experts - counts.iter().sum::<usize>().min(experts);
    by_remainder.iter().cycle().take(left).for_each(|width| counts[*width] += 1);
    counts
}

#[cfg(test)]
mod tests {
    use super::{ExpertBytes, WidthsTo, dealt};
    use crate::ids::ExpertId;

    #[test]
    fn widths_go_to_whom_they_are_meant_for_and_each_to_its_share() {
        let popularity = [0.1, 0.4, 0.05, 0.3, 0.05, 0.1];
        let weights = [3.0, 2.0, 1.0];
        // The hottest has the widest; of those that are alike the first ones have the wider.
        assert_eq!(dealt(&popularity, &weights, WidthsTo::Popular), [1, 2, 0, 1, 0, 0]);
        assert_eq!(dealt(&popularity, &weights, WidthsTo::Rare), [1, 0, 2, 0, 1, 0]);
        assert_eq!(dealt(&popularity, &weights, WidthsTo::Even), [0, 1, 0, 2, 1, 0]);
        for to in [WidthsTo::Popular, WidthsTo::Rare, WidthsTo::Even] {
            for experts in [1, 7, 64, 1000] {
                let popularity: Vec<f64> = (0..experts).map(|e| 1.0 / f64::from(e + 1)).collect();
                let widths = dealt(&popularity, &[0.5, 0.3, 0.2], to);
                let count = |width| widths.iter().filter(|of| **of == width).count() as f64;
                for (width, share) in [0.5, 0.3, 0.2].into_iter().enumerate() {
                    let off = (count(width) - share * f64::from(experts)).abs();
                    assert!(off < 1.0, "{to:?} {experts}: {off}");
                }
            }
        }
    }

    #[test]
    fn a_message_has_the_bytes_of_its_experts() {
        let each = ExpertBytes::Each { units: vec![32, 64, 128], unit_bytes: 1.5 };
        let experts = [2, 0, 1].map(ExpertId);
        assert_eq!(experts.map(|expert| each.of(expert)), [192, 48, 96]);
        let units = each.units_of(&experts, 0b101);
        assert_eq!((units, each.of_message(2, units)), (192, 288));
        let all = ExpertBytes::All(70);
        assert_eq!((all.units_of(&experts, 0b111), all.of_message(3, 0)), (0, 210));
        assert_eq!(all.of(ExpertId(1)), 70);
    }
}
