//! The list of revoked certificates: a text file, a line for each.

use std::collections::BTreeSet;
use std::fmt;
use thiserror::Error;

/// Most certificates in a list (I-O5): each costs every node some bytes of memory.
pub const REVOKED_MAX: usize = 100_000;

/// Longest list.
pub const REVOKED_FILE_LEN_BYTES_MAX: u64 = 16 << 20;

/// Longest serial number (RFC 5280, 4.1.2.2).
const SERIAL_LEN_BYTES_MAX: usize = 20;

/// A certificate's serial number, without zeros in front.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Serial(Vec<u8>);

impl Serial {
    /// From the bytes of the number.
    #[must_use]
    pub fn new(bytes: &[u8]) -> Serial {
        Serial(bytes[bytes.iter().position(|byte| *byte != 0).unwrap_or(bytes.len())..].to_vec())
    }

    /// From hexadecimal digits, two a byte.
    #[must_use]
    pub fn parse(text: &str) -> Option<Serial> {
        let digits = text.as_bytes();
        if digits.is_empty() || !digits.len().is_multiple_of(2) || digits.len() > 2 * SERIAL_LEN_BYTES_MAX {
            return None;
        }
        let byte = |pair: &[u8]| {
            let all_digits = pair.iter().all(u8::is_ascii_hexdigit);
            std::str::from_utf8(pair).ok().filter(|_| all_digits).and_then(|pair| u8::from_str_radix(pair, 16).ok())
        };
        digits.chunks_exact(2).map(byte).collect::<Option<Vec<u8>>>().map(|bytes| Serial::new(&bytes))
    }
}

impl fmt::Display for Serial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Serial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Why a list is not believed.
#[derive(Debug, Error, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum RevokedError {
    /// A line means nothing.
    #[error("line {line}: not a serial number in hexadecimal digits")]
    Line {
        /// Its number.
        line: usize,
    },
    /// There are too many.
    #[error("more than {REVOKED_MAX} certificates")]
    TooMany,
}

/// Reads a list. A line begins with a serial number; what follows it is for people, as are lines that begin with `#`.
/// A line that means nothing makes the whole list void: it could have been the one that matters.
pub fn parse(text: &str) -> Result<BTreeSet<Serial>, RevokedError> {
    let mut serials = BTreeSet::new();
    for (index, line) in text.lines().enumerate() {
        let Some(word) = line.split_whitespace().next().filter(|word| !word.starts_with('#')) else { continue };
        serials.insert(Serial::parse(word).ok_or(RevokedError::Line { line: index + 1 })?);
        if serials.len() > REVOKED_MAX {
            return Err(RevokedError::TooMany);
        }
    }
    Ok(serials)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_is_believed_whole_or_not_at_all() {
        let list = "# revoked\n\n00ab12 admin/alice lost laptop\nff\n";
        let serials = parse(list).unwrap();
        assert!(serials.contains(&Serial::new(&[0xab, 0x12])) && serials.contains(&Serial::new(&[0, 0xff])));
        assert_eq!(parse("ff\nab1\n"), Err(RevokedError::Line { line: 2 }));
        assert_eq!(parse("+f\n"), Err(RevokedError::Line { line: 1 }));
        assert_eq!(parse("é\n"), Err(RevokedError::Line { line: 1 }));
    }
}
