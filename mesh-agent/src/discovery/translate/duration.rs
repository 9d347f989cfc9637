//! Durations of the Gateway API, GEP-2257: one to four numbers of up to five digits, each with h, m, s or ms; their sum.

use std::time::Duration;

use super::{FieldPath, Problem};

/// Parts of a duration.
const PARTS: std::ops::RangeInclusive<usize> = 1..=4;
/// Digits of a part.
const DIGITS: std::ops::RangeInclusive<usize> = 1..=5;

/// Reads a duration. Zero is one.
pub(super) fn duration(text: &str, path: &FieldPath) -> Result<Duration, Problem> {
    let wrong = || Problem::new(path.clone(), format!("{text:?} is not a duration such as 1h30m, 10s or 500ms"));
    parse(text).ok_or_else(wrong)
}

/// The same, where zero means none.
pub(super) fn timeout(text: Option<&str>, path: &FieldPath) -> Result<Option<Duration>, Problem> {
    let duration = text.map(|text| duration(text, path)).transpose()?;
    Ok(duration.filter(|duration| !duration.is_zero()))
}

fn parse(text: &str) -> Option<Duration> {
    let (mut rest, mut total, mut parts) = (text, Duration::ZERO, 0);
    while !rest.is_empty() {
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        let (number, unit) = rest.split_at_checked(digits)?;
        let letters = unit.bytes().take_while(u8::is_ascii_alphabetic).count();
        let (unit, behind) = unit.split_at_checked(letters)?;
        let number: u64 = number.parse().ok().filter(|_| DIGITS.contains(&digits))?;
        let part = match unit {
            "h" => Duration::from_secs(number.checked_mul(3600)?),
            "m" => Duration::from_secs(number.checked_mul(60)?),
            "s" => Duration::from_secs(number),
            "ms" => Duration::from_millis(number),
            _ => return None,
        };
        total = total.checked_add(part)?;
        parts += 1;
        rest = behind;
    }
    PARTS.contains(&parts).then_some(total)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// GEP-2257's own vectors, and what its grammar leaves out.
    #[test]
    fn durations() {
        let table = [
            ("0h", Some(0)),
            ("0s", Some(0)),
            ("0h0m0s", Some(0)),
            ("1h", Some(3_600_000)),
            ("30m", Some(1_800_000)),
            ("10s", Some(10_000)),
            ("500ms", Some(500)),
            ("2h30m", Some(9_000_000)),
            ("150m", Some(9_000_000)),
            ("7230s", Some(7_230_000)),
            ("1h30m10s", Some(5_410_000)),
            ("10s30m1h", Some(5_410_000)),
            ("100ms200ms300ms", Some(600)),
            ("00060m", Some(3_600_000)),
            ("99999h", Some(359_996_400_000)),
            ("", None),
            ("1", None),
            ("1m1", None),
            ("0", None),
            ("1d", None),
            ("1w", None),
            ("1us", None),
            ("1ns", None),
            ("1.5h", None),
            ("-15m", None),
            ("+1s", None),
            ("1h30m10s20ms50h", None),
            ("999999h", None),
            ("h", None),
            ("1 s", None),
            ("1S", None),
            ("١s", None),
        ];
        for (text, expected) in table {
            assert_eq!(parse(text).map(|duration| duration.as_millis()), expected, "{text:?}");
        }
    }
}
