//! Numbers as people read them, the same in the terminal table and in the report.

/// What stands for a figure that was not measured.
pub(super) const ABSENT: &str = "n/a";

/// Four significant digits; powers of ten where a plain number would be long.
pub(super) fn number(value: Option<f64>) -> String {
    let Some(value) = value.filter(|value| value.is_finite()) else { return ABSENT.to_owned() };
    match value.abs() {
        0.0 => "0".to_owned(),
        size if !(1e-3..1e6).contains(&size) => format!("{value:.2e}"),
        size if size < 1.0 => format!("{value:.4}"),
        size if size < 10.0 => format!("{value:.3}"),
        size if size < 100.0 => format!("{value:.2}"),
        size if size < 1_000.0 => format!("{value:.1}"),
        _ => grouped(&format!("{value:.0}")),
    }
}

/// A share as percent.
pub(super) fn percent(share: Option<f64>) -> String {
    let Some(share) = share.filter(|share| share.is_finite()) else { return ABSENT.to_owned() };
    let percent = 100.0 * share;
    match percent.abs() {
        0.0 => "0 %".to_owned(),
        size if size < 0.01 => format!("{percent:.1e} %"),
        size if size < 10.0 => format!("{percent:.2} %"),
        _ => format!("{percent:.1} %"),
    }
}

/// A loss in nats: always four decimals, so that losses compare digit by digit.
pub(super) fn nats(loss: Option<f64>) -> String {
    loss.filter(|loss| loss.is_finite())
        .map_or_else(|| ABSENT.to_owned(), |loss| format!("{loss:.4}"))
}

/// A count with its thousands apart.
pub(super) fn count(value: u64) -> String {
    grouped(&value.to_string())
}

/// Bytes in decimal units.
pub(super) fn bytes(value: u64) -> String {
    scaled(value, &[(1_000_000_000, "GB"), (1_000_000, "MB"), (1_000, "kB")], "B")
}

/// Bytes a second.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "the cast saturates, and the rate is not negative"
)]
pub(super) fn bytes_per_s(rate: Option<f64>) -> String {
    rate.filter(|rate| rate.is_finite())
        .map_or_else(|| ABSENT.to_owned(), |rate| format!("{}/s", bytes(rate.round() as u64)))
}

/// A mean duration in ns, rounded to one.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "the cast saturates")]
pub(super) fn mean_duration(ns: Option<f64>) -> String {
    duration(ns.filter(|ns| ns.is_finite()).map(|ns| ns.round() as u64))
}

/// A duration given in ns.
pub(super) fn duration(ns: Option<u64>) -> String {
    ns.map_or_else(
        || ABSENT.to_owned(),
        |ns| scaled(ns, &[(1_000_000_000, "s"), (1_000_000, "ms"), (1_000, "µs")], "ns"),
    )
}

#[expect(clippy::cast_precision_loss, reason = "three digits of it are shown")]
fn scaled(value: u64, units: &[(u64, &str)], smallest: &str) -> String {
    match units.iter().find(|(size, _)| value >= *size) {
        None => format!("{value} {smallest}"),
        Some((size, unit)) => match value as f64 / *size as f64 {
            scaled if scaled < 10.0 => format!("{scaled:.2} {unit}"),
            scaled if scaled < 100.0 => format!("{scaled:.1} {unit}"),
            scaled => format!("{scaled:.0} {unit}"),
        },
    }
}

/// Digits in groups of three.
fn grouped(digits: &str) -> String {
    let (sign, digits) = digits.strip_prefix('-').map_or(("", digits), |rest| ("-", rest));
    let mut text = sign.to_owned();
    for (at, digit) in digits.char_indices() {
        if at > 0 && (digits.len() - at) % 3 == 0 {
            text.push(' ');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_keep_about_four_digits() {
        for (value, expected) in [
            (0.0, "0"),
            (0.000_012_34, "1.23e-5"),
            (0.012_34, "0.0123"),
            (2.9176, "2.918"),
            (-17.256, "-17.26"),
            (12_345.6, "12 346"),
            (7_654_321.0, "7.65e6"),
        ] {
            assert_eq!(number(Some(value)), expected);
        }
        assert_eq!(number(None), "n/a");
        assert_eq!(number(Some(f64::NAN)), "n/a");
        assert_eq!(percent(Some(0.906)), "90.6 %");
        assert_eq!(nats(Some(2.9)), "2.9000");
        assert_eq!(count(1_234_567), "1 234 567");
        assert_eq!(bytes(999), "999 B");
        assert_eq!(bytes(34_050_000), "34.0 MB");
        assert_eq!(duration(Some(1_390_000_000)), "1.39 s");
        assert_eq!(duration(Some(2_820_000)), "2.82 ms");
    }
}
