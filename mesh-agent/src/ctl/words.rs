//! Numbers and names as people read them.

/// Seconds in the units of [`span`], from the longest.
const UNITS: [(u64, &str); 4] = [(86_400, "d"), (3_600, "h"), (60, "m"), (1, "s")];

/// A time in at most two units, such as `2h10m`. What is below nothing is nothing.
pub fn span(seconds: f64) -> String {
    // A float that does not fit becomes the nearest that does.
    let seconds = seconds.max(0.0) as u64;
    let Some(first) = UNITS.iter().position(|(unit, _)| seconds >= *unit) else { return "0s".into() };
    let mut rest = seconds;
    let mut text = String::new();
    for (unit, word) in UNITS.iter().skip(first).take(2) {
        if rest >= *unit {
            text.push_str(&format!("{}{word}", rest / unit));
        }
        rest %= unit;
    }
    text
}

/// Bytes in the largest unit of which there is one, such as `1.5Mi`.
pub fn bytes(count: u64) -> String {
    let mut amount = count as f64;
    let mut unit = "";
    for larger in ["Ki", "Mi", "Gi", "Ti"] {
        if amount < 1024.0 {
            break;
        }
        amount /= 1024.0;
        unit = larger;
    }
    if unit.is_empty() { count.to_string() } else { format!("{amount:.1}{unit}") }
}

/// A SPIFFE identity without its trust domain, `ns/shop/sa/web`; anything else as it is.
pub fn identity(id: &str) -> &str {
    id.strip_prefix("spiffe://").and_then(|rest| rest.split_once('/')).map_or(id, |(_, path)| path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_people_read_them() {
        let spans = [
            (-5.0, "0s"),
            (0.4, "0s"),
            (59.9, "59s"),
            (60.0, "1m"),
            (3_661.0, "1h1m"),
            (7_200.0, "2h"),
            (90_061.0, "1d1h"),
            (f64::NAN, "0s"),
        ];
        for (seconds, text) in spans {
            assert_eq!(span(seconds), text, "{seconds}");
        }
        for (count, text) in
            [(0, "0"), (1_023, "1023"), (1_536, "1.5Ki"), (3 << 30, "3.0Gi"), (u64::MAX, "16777216.0Ti")]
        {
            assert_eq!(bytes(count), text, "{count}");
        }
        for (id, text) in [("spiffe://cluster.local/ns/shop/sa/web", "ns/shop/sa/web"), ("other", "other"), ("", "")] {
            assert_eq!(identity(id), text);
        }
    }
}
