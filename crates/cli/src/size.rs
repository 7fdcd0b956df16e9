//! Sizes and numbers as people type them.

/// Parses a number of bytes: decimal, `0x` hexadecimal or leading-zero octal, with an optional
/// suffix k, m, g, t (powers of 1024; `KiB` and the like work as well).
///
/// # Errors
/// A sentence that says what is wrong.
pub(crate) fn parse(text: &str) -> Result<u64, String> {
    let lower = text.trim().to_ascii_lowercase();
    let (digits, suffix) = split(&lower);
    let shift = match suffix {
        "" => 0,
        "k" | "kb" | "kib" => 10,
        "m" | "mb" | "mib" => 20,
        "g" | "gb" | "gib" => 30,
        "t" | "tb" | "tib" => 40,
        "b" => {
            return Err(format!(
                "'{text}': in xfs_io, b is a block of 4096 bytes: write bytes without a unit, or use k"
            ));
        }
        other => return Err(format!("'{text}': unknown unit '{other}' (use k, m, g or t)")),
    };
    let value = integer(digits).ok_or_else(|| format!("'{text}' is not a number of bytes"))?;
    value.checked_mul(1 << shift).ok_or_else(|| format!("'{text}' is more than 2^64 bytes"))
}

fn split(text: &str) -> (&str, &str) {
    // In a hexadecimal number, b is a digit: only k, m, g, t can begin a unit there.
    let hex = text.starts_with("0x");
    let unit = |c: char| if hex { "kmgt".contains(c) } else { !c.is_ascii_digit() };
    let at = text.char_indices().find(|(i, c)| (*i > 1 || !hex) && unit(*c)).map(|(i, _)| i);
    text.split_at(at.unwrap_or(text.len()))
}

fn integer(digits: &str) -> Option<u64> {
    if let Some(hex) = digits.strip_prefix("0x") {
        // `from_str_radix` takes a sign; we do not.
        return if hex.starts_with('+') { None } else { u64::from_str_radix(hex, 16).ok() };
    }
    match digits.strip_prefix('0') {
        Some(octal) if !octal.is_empty() => u64::from_str_radix(octal, 8).ok(),
        _ => digits.parse().ok(),
    }
}

/// Parses a byte value, 0 to 255, decimal, hexadecimal or octal.
///
/// # Errors
/// A sentence that says what is wrong.
pub(crate) fn byte(text: &str) -> Result<u8, String> {
    let value = integer(&text.to_ascii_lowercase());
    let byte = value.and_then(|v| u8::try_from(v).ok());
    byte.ok_or_else(|| format!("'{text}' is not a byte from 0 to 255"))
}

/// Parses a time in seconds.
///
/// # Errors
/// A sentence that says what is wrong.
pub(crate) fn seconds(text: &str) -> Result<f64, String> {
    let seconds = text.parse().ok().filter(|s: &f64| (0.0..=1e9).contains(s));
    seconds.ok_or_else(|| format!("'{text}' is not a time in seconds, from 0 to 1000000000"))
}

/// Parses a time between looks, in seconds.
///
/// # Errors
/// A sentence that says what is wrong.
pub(crate) fn interval(text: &str) -> Result<f64, String> {
    let seconds = seconds(text).ok().filter(|s| *s >= 0.01);
    seconds.ok_or_else(|| format!("'{text}' is not a time in seconds from 0.01"))
}

/// Bytes for people.
pub(crate) fn human(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{bytes} B") } else { format!("{value:.1} {}", UNITS[unit]) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn sizes() {
        for (text, bytes) in [
            ("0", 0),
            ("4096", 4096),
            ("4k", 4096),
            ("2M", 2 << 20),
            ("3g", 3 << 30),
            ("1TiB", 1 << 40),
            ("64KiB", 65536),
            ("0x10", 16),
            ("0xb", 11),
            ("0x1k", 1024),
            ("010", 8),
        ] {
            assert_eq!(parse(text), Ok(bytes), "{text}");
        }
        for text in [
            "",
            "k",
            "-1",
            "+1",
            "1.5k",
            "4x",
            "0x",
            "0x+1",
            "99999999999999999999",
            "17179869184g",
            "09",
            "4b",
        ] {
            assert!(parse(text).is_err(), "{text}");
        }
        assert_eq!((byte("0xff"), byte("255"), byte("0377")), (Ok(255), Ok(255), Ok(255)));
        assert!(byte("256").is_err() && byte("-1").is_err() && byte("").is_err());
        assert_eq!(seconds("0.5"), Ok(0.5));
        assert!(["nan", "inf", "-1", "", "1e10"].iter().all(|t| seconds(t).is_err()));
        assert_eq!((interval("0.5"), interval("0").is_err()), (Ok(0.5), true));
    }

    proptest! {
        #[test]
        fn any_text_is_a_size_or_an_error(text in ".*") {
            let _ = parse(&text);
            let _ = byte(&text);
        }

        #[test]
        fn numbers_come_back(n in any::<u64>()) {
            prop_assert_eq!(parse(&n.to_string()), Ok(n));
            prop_assert_eq!(parse(&format!("{n:#x}")), Ok(n));
        }
    }
}
