//! The frame of a message: from a draft to bytes of exactly its length, and from bytes to a reader with limits.

use super::{MESSAGE_VERSION, WireError};
use capnp::Word;
use capnp::message::{Builder, Reader, ReaderOptions, ScratchSpaceHeapAllocator};
use capnp::serialize::NoAllocSliceSegments;
use kiseki_types::peer::MESSAGE_LEN_BYTES_MAX;
use zeroize::Zeroize;

/// Words of the stack that a draft starts in: all but messages with lists and pages fit, and so does whatever holds a key.
const SCRATCH_WORDS: usize = 256;

/// Words of the segment behind it: a full page fits.
const SECOND_SEGMENT_WORDS: u32 = 5 * 1024;

/// Words that a reader may visit beyond those that the message has: each is visited once, and roots and tags are few.
const TRAVERSED_WORDS_MORE: usize = 256;

/// Deepest nesting of what we send, and some more.
const NESTING_MAX: i32 = 12;

const BYTES_PER_WORD: usize = 8;

impl From<capnp::Error> for WireError {
    fn from(error: capnp::Error) -> WireError {
        WireError::Malformed(error.to_string())
    }
}

impl From<capnp::NotInSchema> for WireError {
    fn from(error: capnp::NotInSchema) -> WireError {
        WireError::Malformed(format!("{error}; a newer release may have sent it"))
    }
}

/// An error for bytes that make no sense.
pub(super) fn malformed(reason: impl Into<String>) -> WireError {
    WireError::Malformed(reason.into())
}

/// Whether what is to be sent is within a limit.
pub(super) fn fits(what: &'static str, found: usize, limit: usize) -> Result<(), WireError> {
    if found <= limit { Ok(()) } else { Err(WireError::TooLarge { what, found: found as u64, limit: limit as u64 }) }
}

/// Whether what came is within a limit.
pub(super) fn within(what: &'static str, found: u64, limit: u64) -> Result<u64, WireError> {
    if found <= limit { Ok(found) } else { Err(WireError::OverLimit { what, found, limit }) }
}

/// Length of a list that was found to be within its limit.
pub(super) fn count(len: usize) -> u32 {
    u32::try_from(len).expect("lists of a message are bounded")
}

/// A message being written.
pub(super) struct Draft<'a> {
    /// The message.
    pub message: Builder<ScratchSpaceHeapAllocator<'a>>,
    /// Whether it holds a key, so that the memory it is drafted in is to be wiped.
    pub is_secret: bool,
}

/// Writes a message and gives its bytes: from the draft they are copied once.
pub(super) fn encode(fill: impl FnOnce(&mut Draft<'_>) -> Result<(), WireError>) -> Result<Vec<u8>, WireError> {
    let mut scratch = [const { capnp::word(0, 0, 0, 0, 0, 0, 0, 0) }; SCRATCH_WORDS];
    let space = Word::words_to_bytes_mut(&mut scratch);
    let allocator = ScratchSpaceHeapAllocator::new(space).second_segment_words(SECOND_SEGMENT_WORDS);
    let mut draft = Draft { message: Builder::new(allocator), is_secret: false };
    let filled = fill(&mut draft);
    let bytes = filled.and_then(|()| flatten(&draft.message.get_segments_for_output()));
    let is_secret = draft.is_secret;
    drop(draft);
    if is_secret {
        Word::words_to_bytes_mut(&mut scratch).zeroize();
    }
    bytes
}

/// The segments behind their table. (capnp's own function reserves too little and copies again while it grows.)
fn flatten(segments: &[&[u8]]) -> Result<Vec<u8>, WireError> {
    let head_len = (4 + 4 * segments.len()).next_multiple_of(BYTES_PER_WORD);
    let len = head_len + segments.iter().map(|segment| segment.len()).sum::<usize>();
    fits("bytes", len, MESSAGE_LEN_BYTES_MAX)?;
    let mut bytes = Vec::with_capacity(len);
    bytes.extend_from_slice(&(count(segments.len()) - 1).to_le_bytes());
    for segment in segments {
        bytes.extend_from_slice(&count(segment.len() / BYTES_PER_WORD).to_le_bytes());
    }
    bytes.resize(head_len, 0);
    segments.iter().for_each(|segment| bytes.extend_from_slice(segment));
    Ok(bytes)
}

/// Reads a message: where it lies when it lies on a word, as a buffer of the allocator does, and from a copy otherwise.
pub(super) fn decode<T>(
    bytes: &[u8],
    take: impl FnOnce(&Reader<NoAllocSliceSegments<'_>>) -> Result<T, WireError>,
) -> Result<T, WireError> {
    within("bytes", bytes.len() as u64, MESSAGE_LEN_BYTES_MAX as u64)?;
    if declared_len_bytes(bytes) != Some(bytes.len() as u64) {
        return Err(malformed("its length is not what its head says"));
    }
    if bytes.as_ptr().align_offset(BYTES_PER_WORD) == 0 {
        return take(&open(bytes)?);
    }
    let mut words = Word::allocate_zeroed_vec(bytes.len().div_ceil(BYTES_PER_WORD));
    let copy = &mut Word::words_to_bytes_mut(&mut words)[..bytes.len()];
    copy.copy_from_slice(bytes);
    let taken = open(copy).and_then(|reader| take(&reader));
    copy.zeroize(); // it may hold a key
    taken
}

fn open(mut bytes: &[u8]) -> Result<Reader<NoAllocSliceSegments<'_>>, WireError> {
    let mut options = ReaderOptions::new();
    let words = bytes.len() / BYTES_PER_WORD + TRAVERSED_WORDS_MORE;
    options.traversal_limit_in_words(Some(words)).nesting_limit(NESTING_MAX);
    Ok(capnp::serialize::read_message_from_flat_slice_no_alloc(&mut bytes, options)?)
}

/// Bytes of a message by its head: the number of its segments less one, the words of each, padded to whole words.
fn declared_len_bytes(bytes: &[u8]) -> Option<u64> {
    let numbers = bytes.as_chunks::<4>().0;
    let segments = u64::from(u32::from_le_bytes(*numbers.first()?)) + 1;
    let words = numbers.get(1..)?.get(..usize::try_from(segments).ok()?)?;
    let head = (4 + 4 * segments).next_multiple_of(BYTES_PER_WORD as u64);
    Some(head + words.iter().map(|words| 8 * u64::from(u32::from_le_bytes(*words))).sum::<u64>())
}

/// Whether this release understands a message of that version.
pub(super) fn check_version(version: u16) -> Result<(), WireError> {
    match version {
        0 => Err(malformed("it has no version")),
        _ if version > MESSAGE_VERSION => Err(WireError::TooNew { version }),
        _ => Ok(()),
    }
}
