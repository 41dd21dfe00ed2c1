//! Little-endian fields of a page that a drive filled.

use thiserror::Error;

/// Why a page is not believed.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum PageError {
    /// Fewer bytes than the page has.
    #[error("the {page} page has {len_bytes} bytes instead of {needed_bytes}")]
    Truncated {
        /// Which page.
        page: &'static str,
        /// Bytes that are there.
        len_bytes: usize,
        /// Bytes that it has.
        needed_bytes: usize,
    },
    /// The namespace does not exist, or is not attached: its page is all zero.
    #[error("there is no such namespace, or it is not attached to this controller")]
    NoNamespace,
    /// The block format in use is none that the drive lists, or none that makes sense.
    #[error("the drive says that it uses block format {index}, which is none of its {count} usable ones")]
    FormatInUse {
        /// Index of the format.
        index: u8,
        /// Formats that the page lists.
        count: usize,
    },
    /// More bytes than a device can have.
    #[error("the namespace says to have {block_count} blocks of {block_len_bytes} bytes: that is no drive")]
    Size {
        /// Blocks.
        block_count: u64,
        /// Bytes of one.
        block_len_bytes: u32,
    },
}

/// A page of a fixed length, read field by field.
pub(super) struct Page<'a>(&'a [u8]);

impl<'a> Page<'a> {
    /// The first `needed_bytes` of `bytes`.
    pub fn new(page: &'static str, bytes: &'a [u8], needed_bytes: usize) -> Result<Page<'a>, PageError> {
        match bytes.get(..needed_bytes) {
            Some(bytes) => Ok(Page(bytes)),
            None => Err(PageError::Truncated { page, len_bytes: bytes.len(), needed_bytes }),
        }
    }

    pub fn array<const N: usize>(&self, offset: usize) -> [u8; N] {
        self.0[offset..offset + N].try_into().expect("a slice of that length")
    }

    pub fn u8(&self, offset: usize) -> u8 {
        self.0[offset]
    }

    pub fn u16(&self, offset: usize) -> u16 {
        u16::from_le_bytes(self.array(offset))
    }

    pub fn u32(&self, offset: usize) -> u32 {
        u32::from_le_bytes(self.array(offset))
    }

    pub fn u64(&self, offset: usize) -> u64 {
        u64::from_le_bytes(self.array(offset))
    }

    /// A counter of 128 bits; what goes beyond 64 stays at the highest value.
    pub fn counter(&self, offset: usize) -> u64 {
        u64::try_from(u128::from_le_bytes(self.array(offset))).unwrap_or(u64::MAX)
    }

    /// ASCII that is padded with spaces. What could move a terminal's cursor is shown as `?`.
    pub fn text(&self, offset: usize, len_bytes: usize) -> String {
        let raw = &self.0[offset..offset + len_bytes];
        let shown = |byte: &u8| if (b' '..=b'~').contains(byte) { char::from(*byte) } else { '?' };
        let end = raw.iter().rposition(|byte| *byte != 0 && *byte != b' ').map_or(0, |last| last + 1);
        raw[..end].iter().map(shown).collect::<String>().trim_start().to_owned()
    }
}

/// Whether bit `index` is set.
pub(super) fn bit(value: u32, index: u32) -> bool {
    value >> index & 1 == 1
}
