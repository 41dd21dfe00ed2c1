//! How many rows a table file has, and how many bytes they are: what is left of the file is room that a compaction
//! gives back.
//!
//! Every commit of rows carries the count on by what it replaced, so it is exact and never costs a walk. A release
//! that does not know it leaves it as it was; hence it is stored with the position and the number of rows it stands
//! for, and does not count when either differs from what the file says of itself.

/// Rows of one file's tables; what redb and the file's own tables take is not in it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct LiveCount {
    /// Number of rows.
    pub rows: u64,
    /// Bytes of their keys and values.
    pub bytes: u64,
}

/// Encoded: position, rows, bytes.
const ENCODED_LEN: usize = 24;

impl LiveCount {
    /// A row of `key_len` is put with a value of `new_len` or removed; before, its value had `old_len`, if it was there.
    pub fn change(&mut self, key_len: usize, new_len: Option<usize>, old_len: Option<usize>) {
        // Saturating: a count that an earlier release made wrong must not end the process.
        if let Some(old) = old_len {
            self.rows = self.rows.saturating_sub(1);
            self.bytes = self.bytes.saturating_sub((key_len + old) as u64);
        }
        if let Some(new) = new_len {
            self.rows += 1;
            self.bytes += (key_len + new) as u64;
        }
    }

    /// As it is stored with a commit that stands for `position`.
    pub fn encode(self, position: u64) -> [u8; ENCODED_LEN] {
        let mut encoded = [0; ENCODED_LEN];
        encoded[..8].copy_from_slice(&position.to_le_bytes());
        encoded[8..16].copy_from_slice(&self.rows.to_le_bytes());
        encoded[16..].copy_from_slice(&self.bytes.to_le_bytes());
        encoded
    }

    /// The position and the count that were stored; `None` for anything else.
    pub fn decode(encoded: &[u8]) -> Option<(u64, LiveCount)> {
        let encoded: &[u8; ENCODED_LEN] = encoded.try_into().ok()?;
        let number = |at: usize| u64::from_le_bytes(*encoded[at..].first_chunk().expect("three numbers of 8 bytes"));
        Some((number(0), LiveCount { rows: number(8), bytes: number(16) }))
    }
}

#[cfg(test)]
mod tests {
    use super::LiveCount;

    #[test]
    fn a_change_counts_what_it_replaces() {
        let mut live = LiveCount::default();
        for (new, old, expected) in [
            (Some(5), None, (1, 8)),
            (Some(2), Some(5), (1, 5)),
            (None, None, (1, 5)),
            (None, Some(2), (0, 0)),
            (None, Some(9), (0, 0)),
        ] {
            live.change(3, new, old);
            assert_eq!((live.rows, live.bytes), expected, "{new:?} for {old:?}");
        }
    }

    #[test]
    fn what_is_stored_is_read_again_and_nothing_else_is() {
        let live = LiveCount { rows: 3, bytes: 1 << 40 };
        let encoded = live.encode(77);
        assert_eq!(LiveCount::decode(&encoded), Some((77, live)));
        assert_eq!(LiveCount::decode(&encoded[1..]), None);
        assert_eq!(LiveCount::decode(&[&encoded[..], &[0]].concat()), None);
    }
}
