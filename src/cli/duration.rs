//! Durations as people type and read them: 30s, 10m, 12h, 7d, 5y.

use std::time::Duration;

/// Longest duration taken: a thousand years. Dates stay far from the end of 64 bits.
const MAX_SECONDS: u64 = 1000 * YEAR;

const DAY: u64 = 86400;
const YEAR: u64 = 365 * DAY;

/// Reads a whole number and a unit.
pub(super) fn parse(text: &str) -> Result<Duration, String> {
    let wrong = || format!("`{text}` is not a duration like 30s, 10m, 12h, 7d, 2w or 5y");
    let unit = text.chars().next_back().ok_or_else(wrong)?;
    let scale = match unit {
        's' => 1,
        'm' => 60,
        'h' => 3600,
        'd' => DAY,
        'w' => 7 * DAY,
        'y' => YEAR,
        _ => return Err(wrong()),
    };
    let digits = &text[..text.len() - 1];
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(wrong());
    }
    let seconds = digits.parse::<u64>().ok().and_then(|count| count.checked_mul(scale)).unwrap_or(u64::MAX);
    match seconds {
        0 => Err("a duration must be longer than nothing".to_owned()),
        1..=MAX_SECONDS => Ok(Duration::from_secs(seconds)),
        _ => Err("a duration is at most 1000y".to_owned()),
    }
}

/// The two largest units of a number of seconds, as in `3d 4h`.
pub(super) fn human(seconds: u64) -> String {
    let units = [("y", YEAR), ("d", DAY), ("h", 3600), ("m", 60), ("s", 1)];
    let first = units.iter().position(|(_, scale)| seconds >= *scale).unwrap_or(units.len() - 1);
    let (unit, scale) = units[first];
    let whole = format!("{}{unit}", seconds / scale);
    match units.get(first + 1).map(|(unit, below)| (unit, seconds % scale / below)) {
        Some((unit, rest @ 1..)) => format!("{whole} {rest}{unit}"),
        _ => whole,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_duration_is_a_number_and_a_unit() {
        for (text, seconds) in [("5s", 5), ("10m", 600), ("12h", 43200), ("7d", 604_800), ("2w", 1_209_600)] {
            assert_eq!(parse(text), Ok(Duration::from_secs(seconds)), "{text}");
        }
        assert_eq!(parse("5y"), Ok(Duration::from_secs(5 * 365 * 86400)));
    }

    #[test]
    fn everything_else_is_refused() {
        for text in ["", "s", "5", "5 s", "-5s", "+5s", "5.5d", "5sec", "0s", "99999999999999999999y", "1001y", "5µ"] {
            assert!(parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn two_units_say_enough() {
        for (seconds, text) in
            [(0, "0s"), (59, "59s"), (60, "1m"), (61, "1m 1s"), (7200, "2h"), (90061, "1d 1h"), (31_536_000, "1y")]
        {
            assert_eq!(human(seconds), text);
        }
    }

    proptest! {
        #[test]
        fn no_text_panics(text in ".{0,20}") {
            let _ = parse(&text);
        }

        #[test]
        fn no_number_panics(seconds: u64) {
            let _ = human(seconds);
        }
    }
}
