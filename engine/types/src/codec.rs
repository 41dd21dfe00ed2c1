//! The byte codec of every format: little-endian integers, byte strings with a length in front.
//!
//! Formats are written by hand so that `docs/formats/` can state each byte. Reading is input: it returns errors, has
//! limits, and never panics.

use crate::limits::COUNTER_MAX;
use thiserror::Error;

/// What is wrong with bytes that were to be decoded.
#[derive(Debug, Error, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum CodecError {
    /// The bytes end before the value does.
    #[error("{what} ends early: {needed} bytes needed at offset {offset}, {left} left")]
    Short {
        /// What was being read.
        what: &'static str,
        /// Where in the input.
        offset: usize,
        /// Bytes that the value needs.
        needed: usize,
        /// Bytes that are there.
        left: usize,
    },
    /// A length is over its limit.
    #[error("{what}: length {len} is over the limit of {limit}")]
    TooLong {
        /// What was being read.
        what: &'static str,
        /// The length found.
        len: u64,
        /// The limit.
        limit: usize,
    },
    /// A value that the format does not know.
    #[error("{what}: unknown value {value}")]
    Unknown {
        /// What was being read.
        what: &'static str,
        /// The value found.
        value: u64,
    },
    /// Bytes are left after the last value.
    #[error("{what}: {left} bytes left over")]
    Trailing {
        /// What was being read.
        what: &'static str,
        /// How many.
        left: usize,
    },
    /// A checksum does not match.
    #[error("{what}: checksum does not match")]
    Checksum {
        /// What was being read.
        what: &'static str,
    },
}

/// Appends values to a byte vector.
#[derive(Default, Clone)]
pub struct Writer {
    out: Vec<u8>,
}

impl Writer {
    /// An empty writer.
    #[must_use]
    pub fn new() -> Writer {
        Writer::default()
    }
    /// An empty writer that takes so many bytes without growing: what grows leaves copies behind.
    #[must_use]
    pub fn with_capacity(len_bytes: usize) -> Writer {
        Writer { out: Vec::with_capacity(len_bytes) }
    }
    /// One byte.
    pub fn u8(&mut self, value: u8) -> &mut Self {
        self.out.push(value);
        self
    }
    /// Two bytes.
    pub fn u16(&mut self, value: u16) -> &mut Self {
        self.raw(&value.to_le_bytes())
    }
    /// Four bytes.
    pub fn u32(&mut self, value: u32) -> &mut Self {
        self.raw(&value.to_le_bytes())
    }
    /// Eight bytes.
    pub fn u64(&mut self, value: u64) -> &mut Self {
        self.raw(&value.to_le_bytes())
    }
    /// Bytes as they are, for fields of fixed length.
    pub fn raw(&mut self, bytes: &[u8]) -> &mut Self {
        self.out.extend_from_slice(bytes);
        self
    }
    /// A byte string: u32 length, then the bytes.
    pub fn bytes(&mut self, bytes: &[u8]) -> &mut Self {
        self.u32(u32::try_from(bytes.len()).expect("byte strings are far below 4 GiB"));
        self.raw(bytes)
    }
    /// A string as UTF-8 bytes.
    pub fn str(&mut self, text: &str) -> &mut Self {
        self.bytes(text.as_bytes())
    }
    /// What is written so far.
    #[must_use]
    pub fn as_slice(&self) -> &[u8] {
        &self.out
    }
    /// Bytes written so far.
    #[must_use]
    pub fn len(&self) -> usize {
        self.out.len()
    }
    /// Whether nothing is written yet.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.out.is_empty()
    }
    /// The result.
    #[must_use]
    pub fn finish(self) -> Vec<u8> {
        self.out
    }
}

/// Takes values off the front of a byte slice.
#[derive(Clone)]
pub struct Reader<'a> {
    what: &'static str,
    bytes: &'a [u8],
    offset: usize,
}

impl<'a> Reader<'a> {
    /// `what` names the format in errors.
    #[must_use]
    pub fn new(what: &'static str, bytes: &'a [u8]) -> Reader<'a> {
        Reader { what, bytes, offset: 0 }
    }
    /// Bytes not read yet.
    #[must_use]
    pub fn left(&self) -> usize {
        self.bytes.len() - self.offset
    }
    /// Bytes read so far.
    #[must_use]
    pub fn offset(&self) -> usize {
        self.offset
    }
    /// `len` bytes as they are.
    pub fn raw(&mut self, len: usize) -> Result<&'a [u8], CodecError> {
        if self.left() < len {
            return Err(CodecError::Short { what: self.what, offset: self.offset, needed: len, left: self.left() });
        }
        let bytes = &self.bytes[self.offset..self.offset + len];
        self.offset += len;
        Ok(bytes)
    }
    /// A field of fixed length.
    pub fn array<const N: usize>(&mut self) -> Result<[u8; N], CodecError> {
        Ok(self.raw(N)?.try_into().expect("raw returned N bytes"))
    }
    /// One byte.
    pub fn u8(&mut self) -> Result<u8, CodecError> {
        Ok(self.array::<1>()?[0])
    }
    /// A byte that says yes (1) or no (0).
    pub fn flag(&mut self) -> Result<bool, CodecError> {
        match self.u8()? {
            0 => Ok(false),
            1 => Ok(true),
            other => Err(self.unknown(u64::from(other))),
        }
    }
    /// Two bytes.
    pub fn u16(&mut self) -> Result<u16, CodecError> {
        self.array().map(u16::from_le_bytes)
    }
    /// Four bytes.
    pub fn u32(&mut self) -> Result<u32, CodecError> {
        self.array().map(u32::from_le_bytes)
    }
    /// Eight bytes.
    pub fn u64(&mut self) -> Result<u64, CodecError> {
        self.array().map(u64::from_le_bytes)
    }
    /// A number that is raised by one each time, at most [`COUNTER_MAX`].
    pub fn counter(&mut self) -> Result<u64, CodecError> {
        match self.u64()? {
            value if value <= COUNTER_MAX => Ok(value),
            value => Err(self.unknown(value)),
        }
    }
    /// A byte string of at most `limit` bytes.
    pub fn bytes(&mut self, limit: usize) -> Result<&'a [u8], CodecError> {
        let len = self.count(limit)?;
        self.raw(len)
    }
    /// A u32 count or length of at most `limit`.
    pub fn count(&mut self, limit: usize) -> Result<usize, CodecError> {
        let len = self.u32()? as usize;
        if len > limit {
            return Err(CodecError::TooLong { what: self.what, len: len as u64, limit });
        }
        Ok(len)
    }
    /// A UTF-8 string of at most `limit` bytes.
    pub fn str(&mut self, limit: usize) -> Result<&'a str, CodecError> {
        let bytes = self.bytes(limit)?;
        std::str::from_utf8(bytes).map_err(|_| CodecError::Unknown { what: self.what, value: 0 })
    }
    /// An error for a value that the format does not know.
    #[must_use]
    pub fn unknown(&self, value: u64) -> CodecError {
        CodecError::Unknown { what: self.what, value }
    }
    /// Must be called last: nothing may be left over.
    pub fn end(self) -> Result<(), CodecError> {
        match self.left() {
            0 => Ok(()),
            left => Err(CodecError::Trailing { what: self.what, left }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_reads_back_and_every_truncation_is_an_error() {
        let mut writer = Writer::new();
        writer.u8(1).u16(2).u32(3).u64(4).bytes(b"five").str("six");
        let bytes = writer.finish();
        let read = |bytes: &[u8]| -> Result<(), CodecError> {
            let mut reader = Reader::new("test", bytes);
            assert_eq!(reader.u8()?, 1);
            assert_eq!(reader.u16()?, 2);
            assert_eq!(reader.u32()?, 3);
            assert_eq!(reader.u64()?, 4);
            assert_eq!(reader.bytes(4)?, b"five");
            assert_eq!(reader.str(16)?, "six");
            reader.end()
        };
        read(&bytes).unwrap();
        for len in 0..bytes.len() {
            assert!(read(&bytes[..len]).is_err(), "truncated to {len}");
        }
        assert!(matches!(Reader::new("test", &[9, 0, 0, 0]).bytes(8), Err(CodecError::TooLong { len: 9, .. })));
        assert_eq!(Reader::new("test", &COUNTER_MAX.to_le_bytes()).counter(), Ok(COUNTER_MAX));
        assert!(Reader::new("test", &(COUNTER_MAX + 1).to_le_bytes()).counter().is_err(), "it could not be raised");
        assert_eq!((Reader::new("test", &[0]).flag(), Reader::new("test", &[1]).flag()), (Ok(false), Ok(true)));
        assert!(Reader::new("test", &[2]).flag().is_err(), "neither yes nor no");
        assert!(matches!(Reader::new("test", &[9]).end(), Err(CodecError::Trailing { left: 1, .. })));
    }
}
