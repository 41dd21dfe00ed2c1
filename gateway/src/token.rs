//! Continuation tokens and the url encoding of listings.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

/// First byte of a token: its format, so that an old one is refused and not misread.
const FORMAT: u8 = 1;

/// Longest token read: the longest key and the format byte, in base64.
const TOKEN_LEN_BYTES_MAX: usize = (crate::config::KEY_LEN_BYTES_MAX + 1).div_ceil(3) * 4;

/// A token that goes on behind `last`, a key or a common prefix. It names no shard and no node, so any core answers it
/// and a split doesn't invalidate it.
pub(crate) fn encode(last: &str) -> String {
    let mut bytes = Vec::with_capacity(last.len() + 1);
    bytes.push(FORMAT);
    bytes.extend_from_slice(last.as_bytes());
    URL_SAFE_NO_PAD.encode(bytes)
}

/// What a token goes on behind; `None` when it is none of ours.
pub(crate) fn decode(token: &str) -> Option<String> {
    if token.len() > TOKEN_LEN_BYTES_MAX {
        return None;
    }
    let bytes = URL_SAFE_NO_PAD.decode(token).ok()?;
    let (format, last) = bytes.split_first()?;
    (*format == FORMAT).then(|| String::from_utf8(last.to_vec()).ok()).flatten()
}

/// Percent-encodes what a listing names, as `encoding-type=url` asks: XML 1.0 can't carry every character.
pub(crate) fn url_encode(text: &str) -> String {
    const HEX: &[u8; 16] = b"0123456789ABCDEF";
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' | b'/' | b'*' => {
                encoded.push(char::from(byte));
            }
            _ => {
                encoded.push('%');
                encoded.push(char::from(HEX[usize::from(byte >> 4)]));
                encoded.push(char::from(HEX[usize::from(byte & 15)]));
            }
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_round_trip() {
        let longest = "é".repeat(512);
        for last in ["", "a", "a/b//", "\u{1}\n", "日本/", longest.as_str()] {
            assert_eq!(decode(&encode(last)).as_deref(), Some(last));
        }
    }

    #[test]
    fn foreign_tokens_are_refused() {
        let other_format = URL_SAFE_NO_PAD.encode([2, b'a']);
        let not_text = URL_SAFE_NO_PAD.encode([FORMAT, 0xff]);
        let too_long = encode(&"a".repeat(5000));
        for token in ["", "!!", "a", &other_format, &not_text, &too_long] {
            assert_eq!(decode(token), None, "{token:.20}");
        }
    }

    #[test]
    fn listings_are_url_encoded_but_for_slashes() {
        assert_eq!(url_encode("a/b c+é\n%"), "a/b%20c%2B%C3%A9%0A%25");
    }
}
