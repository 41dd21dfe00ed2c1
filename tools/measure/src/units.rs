//! Sizes and times as they are typed and printed.

use std::time::Duration;

/// Parses a number of bytes as fio does: `4096`, `4k`, `1m`, `64MiB`, `2g`; a prefix counts in powers of 1024.
pub fn parse_bytes(text: &str) -> Result<u64, String> {
    let wrong = || format!("{text:?} is no size; write bytes or a number with k, m, g or t, such as 64k");
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let shift = match text[digits.len()..].to_ascii_lowercase().as_str() {
        "" | "b" => 0,
        "k" | "kb" | "kib" => 10,
        "m" | "mb" | "mib" => 20,
        "g" | "gb" | "gib" => 30,
        "t" | "tb" | "tib" => 40,
        _ => return Err(wrong()),
    };
    let number: u64 = digits.trim().parse().map_err(|_| wrong())?;
    match number.checked_mul(1 << shift) {
        None | Some(0) => Err(wrong()),
        Some(bytes) => Ok(bytes),
    }
}

/// Parses a time: `10` and `10s` are seconds; `500ms`, `2m` and `1h` are known too.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("{text:?} is no time; write seconds or a number with ms, s, m or h, such as 30s");
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit_s = match &text[digits.len()..] {
        "ms" => 0.001,
        "" | "s" => 1.0,
        "m" => 60.0,
        "h" => 3600.0,
        _ => return Err(wrong()),
    };
    let number: f64 = digits.trim().parse().map_err(|_| wrong())?;
    Duration::try_from_secs_f64(number * unit_s).map_err(|_| wrong())
}

/// A duration in nanoseconds.
#[must_use]
pub fn ns(span: Duration) -> u64 {
    u64::try_from(span.as_nanos()).unwrap_or(u64::MAX)
}

/// `1536` as `1.50KiB`: three digits, powers of 1024.
#[must_use]
pub fn binary(bytes: f64) -> String {
    scaled(bytes, 1024.0, &["B", "KiB", "MiB", "GiB", "TiB", "PiB"])
}

/// `1536` as `1.54kB`: three digits, powers of 1000.
#[must_use]
pub fn decimal(bytes: f64) -> String {
    scaled(bytes, 1000.0, &["B", "kB", "MB", "GB", "TB", "PB"])
}

/// A count as fio prints IOPS: `65.2k`.
#[must_use]
pub fn count(value: f64) -> String {
    match value {
        value if value < 1000.0 => three_digits(value),
        _ => scaled(value, 1000.0, &["", "k", "M", "G", "T"]),
    }
}

fn scaled(mut value: f64, step: f64, names: &[&str]) -> String {
    let mut at = 0;
    while value >= step && at + 1 < names.len() {
        value /= step;
        at += 1;
    }
    format!("{}{}", three_digits(value), names[at])
}

/// As few decimals as leave three digits.
#[must_use]
pub fn three_digits(value: f64) -> String {
    match value {
        value if value >= 100.0 || value == 0.0 => format!("{value:.0}"),
        value if value >= 10.0 => format!("{value:.1}"),
        value => format!("{value:.2}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_as_fio_reads_them() {
        for (text, bytes) in
            [("4096", 4096), ("4k", 4096), ("4K", 4096), ("1m", 1 << 20), ("64MiB", 64 << 20), ("2g", 2 << 30)]
        {
            assert_eq!(parse_bytes(text), Ok(bytes), "{text}");
        }
        for text in ["", "k", "0", "4q", "-1", "1.5m", "99999999999999t", "4 k k"] {
            assert!(parse_bytes(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn times_have_units() {
        for (text, ms) in [("10", 10_000), ("0.5", 500), ("250ms", 250), ("2m", 120_000), ("0", 0)] {
            assert_eq!(parse_duration(text), Ok(Duration::from_millis(ms)), "{text}");
        }
        for text in ["", "s", "-1", "5d", "nan"] {
            assert!(parse_duration(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn figures_have_three_digits() {
        assert_eq!([binary(1536.0), decimal(1536.0), binary(0.0)], ["1.50KiB", "1.54kB", "0B"]);
        assert_eq!([count(999.0), count(65_200.0)], ["999", "65.2k"]);
    }
}
