//! Numbers as people type them, on the command line and in sequences.

/// Parses a number: decimal or `0x` hexadecimal, decimal ones with an optional suffix k, m or g.
///
/// # Errors
/// A sentence that says what is wrong.
pub(crate) fn parse(text: &str) -> Result<u64, String> {
    let wrong = || format!("'{text}' is not a number (decimal or 0x hexadecimal, with k, m or g)");
    if let Some(hex) = text.strip_prefix("0x") {
        let all_digits = hex.bytes().all(|b| b.is_ascii_hexdigit());
        return u64::from_str_radix(hex, 16).ok().filter(|_| all_digits).ok_or_else(wrong);
    }
    let (digits, shift) = match text.as_bytes().last() {
        Some(b'k' | b'K') => (&text[..text.len() - 1], 10),
        Some(b'm' | b'M') => (&text[..text.len() - 1], 20),
        Some(b'g' | b'G') => (&text[..text.len() - 1], 30),
        _ => (text, 0),
    };
    // `parse` takes a sign; we do not.
    if !digits.bytes().all(|b| b.is_ascii_digit()) {
        return Err(wrong());
    }
    digits.parse::<u64>().ok().and_then(|n| n.checked_mul(1 << shift)).ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn numbers() {
        for (text, n) in [("0", 0), ("17", 17), ("64k", 65536), ("1m", 1 << 20), ("0x1f", 31)] {
            assert_eq!(parse(text), Ok(n));
        }
        for text in ["", "k", "-1", "+1", "0x", "0x+1", "1.5k", "4x", "99999999999999999999"] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
