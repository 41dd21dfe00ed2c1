//! Compositions: what an entry, an upload, a part and a page of a chunk list hold. Byte layouts:
//! `docs/formats/composition.md`. All of it lives in sealed tables.

use crate::api::{Attributes, ObjectInfo, PartInfo, UploadInfo};
use crate::delta::ChunkName;
use crate::inline::{INLINE_LEN_BYTES_MAX, InlineContent};
use crate::keys::WrappedDek;
use kiseki_types::codec::{CodecError, Reader, Writer};
use kiseki_types::ids::{ChunkId, CompositionId, DirId, Generation, Locator, PageId, ShardId, UploadId};
use kiseki_types::limits::{CHUNK_LEN_BYTES_MAX, COMMAND_LEN_BYTES_MAX, KEY_LEN_BYTES_MAX};

/// Version of the layouts in this file.
const FORMAT: u8 = 1;

/// Version of the layout of a page that holds its content.
const INLINE_FORMAT: u8 = 2;

/// Chunk references in one page.
pub const PAGE_REFERENCES_MAX: usize = 256;

/// Pages of one composition: 5 TiB in chunks of 1 MiB are 20,480 pages, and up to 10,000 parts end in a short one.
pub const PAGES_MAX: usize = 40_000;

/// Bytes of plaintext in one page.
pub(crate) const PAGE_LEN_BYTES_MAX: u64 = (PAGE_REFERENCES_MAX * CHUNK_LEN_BYTES_MAX) as u64;

/// Bytes of one composition, far below what makes a sum of parts or pages overflow.
const LEN_BYTES_MAX: u64 = PAGES_MAX as u64 * PAGE_LEN_BYTES_MAX;

/// Attributes of one object, and bytes of one name or value. S3 allows 2 KiB of user metadata.
pub(crate) const ATTRIBUTES_MAX: usize = 256;
pub(crate) const ATTRIBUTE_LEN_BYTES_MAX: usize = 16 * 1024;

/// Bytes of all names and values of one object.
pub(crate) const ATTRIBUTES_LEN_BYTES_MAX: usize = COMMAND_LEN_BYTES_MAX / 16;

/// Parts of one upload, as in AWS.
pub const PARTS_MAX: usize = 10_000;

/// One chunk of a composition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChunkReference {
    /// The chunk's name by content (I-K10: only here, in a sealed page).
    pub chunk: ChunkId,
    /// Its keyed name.
    pub locator: Locator,
    /// Which sealing of it.
    pub generation: Generation,
    /// Bytes of plaintext.
    pub len_bytes: u32,
    /// Its DEK, wrapped by the tenant's KEK for this reference.
    pub wrapped_dek: WrappedDek,
}

impl ChunkReference {
    /// The generation that this reference counts.
    #[must_use]
    pub fn name(&self) -> ChunkName {
        ChunkName { locator: self.locator, generation: self.generation }
    }
}

/// A page of a chunk list: consecutive chunks of one composition, or some of its content itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page {
    /// Whose page it is; the wrapping key is bound to it.
    pub composition: CompositionId,
    /// 128 random bits of the write attempt; the wrapping key is made with them.
    pub wrap_salt: [u8; 16],
    /// Epoch of the KEK that wraps the DEKs.
    pub kek_epoch: u32,
    /// The chunks; none where the page holds content.
    pub references: Vec<ChunkReference>,
    /// The content, where it is in no chunk.
    pub inline: Option<Box<InlineContent>>,
}

impl Page {
    /// Bytes of plaintext that the page, or its chunks, hold.
    #[must_use]
    pub fn len_bytes(&self) -> u64 {
        if let Some(inline) = &self.inline {
            return inline.len_bytes();
        }
        self.references.iter().map(|reference| u64::from(reference.len_bytes)).sum()
    }

    /// The bytes of a row.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut writer = Writer::new();
        let format = if self.inline.is_some() { INLINE_FORMAT } else { FORMAT };
        writer.u8(format).raw(&self.composition.0).raw(&self.wrap_salt).u32(self.kek_epoch);
        if let Some(inline) = &self.inline {
            writer.raw(&inline.wrapped_dek.0).bytes(&inline.sealed);
            return writer.finish();
        }
        writer.u32(self.references.len() as u32);
        for reference in &self.references {
            writer.raw(&reference.chunk.0).raw(&reference.locator.0).u64(reference.generation.0);
            writer.u32(reference.len_bytes).raw(&reference.wrapped_dek.0);
        }
        writer.finish()
    }

    /// Back from a row.
    pub fn decode(bytes: &[u8]) -> Result<Page, CodecError> {
        let mut reader = Reader::new("page", bytes);
        let format = reader.u8()?;
        if format != FORMAT && format != INLINE_FORMAT {
            return Err(reader.unknown(u64::from(format)));
        }
        let composition = CompositionId(reader.array()?);
        let wrap_salt = reader.array()?;
        let kek_epoch = reader.u32()?;
        if format == INLINE_FORMAT {
            let inline = Some(Box::new(decode_inline(&mut reader)?));
            reader.end()?;
            return Ok(Page { composition, wrap_salt, kek_epoch, references: Vec::new(), inline });
        }
        let count = reader.count(PAGE_REFERENCES_MAX)?;
        let mut references = Vec::with_capacity(count);
        for _ in 0..count {
            references.push(ChunkReference {
                chunk: ChunkId(reader.array()?),
                locator: Locator(reader.array()?),
                generation: Generation(reader.u64()?),
                len_bytes: decode_chunk_len(&mut reader)?,
                wrapped_dek: WrappedDek(reader.array()?),
            });
        }
        reader.end()?;
        Ok(Page { composition, wrap_salt, kek_epoch, references, inline: None })
    }
}

fn decode_inline(reader: &mut Reader<'_>) -> Result<InlineContent, CodecError> {
    let wrapped_dek = WrappedDek(reader.array()?);
    let sealed = reader.bytes(INLINE_LEN_BYTES_MAX + InlineContent::OVERHEAD_BYTES)?.to_vec();
    match sealed.len() > InlineContent::OVERHEAD_BYTES {
        true => Ok(InlineContent { wrapped_dek, sealed }),
        false => Err(reader.unknown(sealed.len() as u64)),
    }
}

/// A page as its composition lists it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageReference {
    /// Which page.
    pub page: PageId,
    /// Bytes of plaintext that it covers.
    pub len_bytes: u64,
}

/// A file's content and properties.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileEntry {
    /// Bytes of content.
    pub len_bytes: u64,
    /// When it was stored, milliseconds since 1970.
    pub modified_unix_ms: u64,
    /// ETag without quotes.
    pub etag: String,
    /// The gateway's properties.
    pub attributes: Attributes,
    /// Lengths of the parts of a multipart object.
    pub part_lens_bytes: Vec<u64>,
    /// Its pages, in order.
    pub pages: Vec<PageReference>,
}

/// What an entry of a directory is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Entry {
    /// A file or object.
    File(FileEntry),
    /// A directory, perhaps in another shard.
    Directory {
        /// Its id.
        id: DirId,
        /// The shard that holds its entries.
        shard: ShardId,
    },
}

impl Entry {
    /// The bytes of a row.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        match self {
            Entry::File(file) => file.encode(),
            Entry::Directory { id, shard } => {
                let mut writer = Writer::new();
                writer.u8(FORMAT).u8(2).raw(&id.0).u64(shard.0);
                writer.finish()
            }
        }
    }

    /// Back from a row.
    pub fn decode(bytes: &[u8]) -> Result<Entry, CodecError> {
        let mut reader = versioned("entry", bytes)?;
        let entry = match reader.u8()? {
            1 => {
                let len_bytes = decode_len(&mut reader, LEN_BYTES_MAX)?;
                let modified_unix_ms = reader.u64()?;
                let etag = reader.str(ATTRIBUTE_LEN_BYTES_MAX)?.to_owned();
                let attributes = decode_attributes(&mut reader)?;
                let parts = reader.count(PARTS_MAX)?;
                let part_lens_bytes: Vec<u64> =
                    (0..parts).map(|_| decode_len(&mut reader, LEN_BYTES_MAX)).collect::<Result<_, _>>()?;
                // A read of one part asks for its bytes of the whole.
                if parts > 0 && part_lens_bytes.iter().sum::<u64>() != len_bytes {
                    return Err(reader.unknown(len_bytes));
                }
                let pages = decode_pages(&mut reader)?;
                Entry::File(FileEntry { len_bytes, modified_unix_ms, etag, attributes, part_lens_bytes, pages })
            }
            2 => Entry::Directory { id: DirId(reader.array()?), shard: ShardId(reader.u64()?) },
            other => return Err(reader.unknown(u64::from(other))),
        };
        reader.end()?;
        Ok(entry)
    }
}

impl FileEntry {
    /// The bytes of the row of its entry.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut writer = Writer::new();
        writer.u8(FORMAT).u8(1).u64(self.len_bytes).u64(self.modified_unix_ms).str(&self.etag);
        encode_attributes(&mut writer, &self.attributes);
        writer.u32(self.part_lens_bytes.len() as u32);
        for len in &self.part_lens_bytes {
            writer.u64(*len);
        }
        encode_pages(&mut writer, &self.pages);
        writer.finish()
    }

    /// Whether its first page holds all content by itself: a reader that has that needs nothing more.
    #[must_use]
    pub fn is_all_of(&self, first: Option<&Page>) -> bool {
        self.pages.len() == 1 && first.is_some_and(|page| page.inline.is_some())
    }

    /// As gateways see it.
    #[must_use]
    pub fn info(&self, key: String) -> ObjectInfo {
        ObjectInfo {
            key,
            len_bytes: self.len_bytes,
            modified_unix_ms: self.modified_unix_ms,
            etag: self.etag.clone(),
            attributes: self.attributes.clone(),
            part_lens_bytes: self.part_lens_bytes.clone(),
        }
    }
}

/// An upload in progress.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UploadEntry {
    /// When it was begun, milliseconds since 1970.
    pub initiated_unix_ms: u64,
    /// The gateway's properties for the object.
    pub attributes: Attributes,
}

impl UploadEntry {
    /// The bytes of a row.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut writer = Writer::new();
        writer.u8(FORMAT).u64(self.initiated_unix_ms);
        encode_attributes(&mut writer, &self.attributes);
        writer.finish()
    }

    /// Back from a row.
    pub fn decode(bytes: &[u8]) -> Result<UploadEntry, CodecError> {
        let mut reader = versioned("upload", bytes)?;
        let initiated_unix_ms = reader.u64()?;
        let attributes = decode_attributes(&mut reader)?;
        reader.end()?;
        Ok(UploadEntry { initiated_unix_ms, attributes })
    }

    /// As gateways see it.
    #[must_use]
    pub fn info(self, upload: UploadId, key: String) -> UploadInfo {
        UploadInfo { upload, key, initiated_unix_ms: self.initiated_unix_ms, attributes: self.attributes }
    }
}

/// A part of an upload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PartEntry {
    /// Bytes of content.
    pub len_bytes: u64,
    /// When it was stored, milliseconds since 1970.
    pub modified_unix_ms: u64,
    /// ETag without quotes.
    pub etag: String,
    /// The gateway's properties.
    pub attributes: Attributes,
    /// Its pages, in order.
    pub pages: Vec<PageReference>,
}

impl PartEntry {
    /// The bytes of a row.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut writer = Writer::new();
        writer.u8(FORMAT).u64(self.len_bytes).u64(self.modified_unix_ms).str(&self.etag);
        encode_attributes(&mut writer, &self.attributes);
        encode_pages(&mut writer, &self.pages);
        writer.finish()
    }

    /// Back from a row.
    pub fn decode(bytes: &[u8]) -> Result<PartEntry, CodecError> {
        let mut reader = versioned("part", bytes)?;
        let len_bytes = decode_len(&mut reader, LEN_BYTES_MAX)?;
        let modified_unix_ms = reader.u64()?;
        let etag = reader.str(ATTRIBUTE_LEN_BYTES_MAX)?.to_owned();
        let attributes = decode_attributes(&mut reader)?;
        let pages = decode_pages(&mut reader)?;
        reader.end()?;
        Ok(PartEntry { len_bytes, modified_unix_ms, etag, attributes, pages })
    }

    /// As gateways see it.
    #[must_use]
    pub fn info(self, part: u16) -> PartInfo {
        PartInfo {
            part,
            len_bytes: self.len_bytes,
            modified_unix_ms: self.modified_unix_ms,
            etag: self.etag,
            attributes: self.attributes,
        }
    }
}

fn versioned<'a>(what: &'static str, bytes: &'a [u8]) -> Result<Reader<'a>, CodecError> {
    let mut reader = Reader::new(what, bytes);
    match reader.u8()? {
        FORMAT => Ok(reader),
        other => Err(reader.unknown(u64::from(other))),
    }
}

pub(crate) fn encode_attributes(writer: &mut Writer, attributes: &Attributes) {
    writer.u32(attributes.len() as u32);
    for (name, value) in attributes {
        writer.str(name).str(value);
    }
}

pub(crate) fn decode_attributes(reader: &mut Reader<'_>) -> Result<Attributes, CodecError> {
    let count = reader.count(ATTRIBUTES_MAX)?;
    let mut attributes = Attributes::new();
    for _ in 0..count {
        let name = reader.str(ATTRIBUTE_LEN_BYTES_MAX)?.to_owned();
        attributes.insert(name, reader.str(ATTRIBUTE_LEN_BYTES_MAX)?.to_owned());
    }
    Ok(attributes)
}

/// Whether the attributes fit the format; what does not fit is refused before it is proposed.
#[must_use]
pub fn attributes_fit(attributes: &Attributes) -> bool {
    attributes.len() <= ATTRIBUTES_MAX
        && attributes.iter().all(|(name, value)| name.len().max(value.len()) <= ATTRIBUTE_LEN_BYTES_MAX)
        && attributes.iter().map(|(name, value)| name.len() + value.len()).sum::<usize>() <= ATTRIBUTES_LEN_BYTES_MAX
}

fn encode_pages(writer: &mut Writer, pages: &[PageReference]) {
    writer.u32(pages.len() as u32);
    for page in pages {
        writer.raw(&page.page.0).u64(page.len_bytes);
    }
}

fn decode_pages(reader: &mut Reader<'_>) -> Result<Vec<PageReference>, CodecError> {
    let count = reader.count(PAGES_MAX)?;
    let page = |reader: &mut Reader<'_>| {
        Ok(PageReference { page: PageId(reader.array()?), len_bytes: decode_len(reader, PAGE_LEN_BYTES_MAX)? })
    };
    (0..count).map(|_| page(reader)).collect()
}

/// Bytes of a chunk's plaintext: what an envelope is made for.
fn decode_chunk_len(reader: &mut Reader<'_>) -> Result<u32, CodecError> {
    match reader.u32()? {
        len if (1..=CHUNK_LEN_BYTES_MAX).contains(&(len as usize)) => Ok(len),
        len => Err(reader.unknown(u64::from(len))),
    }
}

/// Bytes of a page, a part or a whole.
fn decode_len(reader: &mut Reader<'_>, limit: u64) -> Result<u64, CodecError> {
    match reader.u64()? {
        len if len <= limit => Ok(len),
        len => Err(reader.unknown(len)),
    }
}

const _: () = assert!(LEN_BYTES_MAX.checked_mul(PARTS_MAX as u64).is_some());
const _: () = assert!(KEY_LEN_BYTES_MAX < ATTRIBUTE_LEN_BYTES_MAX);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::WRAPPED_DEK_LEN_BYTES;

    fn attributes() -> Attributes {
        Attributes::from([("content-type".to_owned(), "text/plain".to_owned())])
    }

    #[test]
    fn rows_survive_the_round_trip_and_truncation_is_an_error() {
        let page = Page {
            composition: CompositionId([1; 16]),
            wrap_salt: [2; 16],
            kek_epoch: 3,
            references: vec![ChunkReference {
                chunk: ChunkId([5; 32]),
                locator: Locator([6; 32]),
                generation: Generation(7),
                len_bytes: 8,
                wrapped_dek: WrappedDek([9; WRAPPED_DEK_LEN_BYTES]),
            }],
            inline: None,
        };
        let sealed = vec![7; 20];
        let content = InlineContent { wrapped_dek: WrappedDek([9; WRAPPED_DEK_LEN_BYTES]), sealed };
        let inline = Page { references: Vec::new(), inline: Some(Box::new(content)), ..page.clone() };
        assert_eq!((page.len_bytes(), inline.len_bytes()), (8, 4));
        let pages = vec![PageReference { page: PageId([1; 16]), len_bytes: 8 }];
        let file = Entry::File(FileEntry {
            len_bytes: 3,
            modified_unix_ms: 2,
            etag: "e".to_owned(),
            attributes: attributes(),
            part_lens_bytes: vec![1, 2],
            pages: pages.clone(),
        });
        let directory = Entry::Directory { id: DirId([3; 16]), shard: ShardId(1024) };
        let upload = UploadEntry { initiated_unix_ms: 5, attributes: attributes() };
        let part =
            PartEntry { len_bytes: 6, modified_unix_ms: 7, etag: "p".to_owned(), attributes: attributes(), pages };
        assert_eq!(Entry::decode(&file.encode()).unwrap(), file);
        assert_eq!(Entry::decode(&directory.encode()).unwrap(), directory);
        assert_eq!(UploadEntry::decode(&upload.encode()).unwrap(), upload);
        assert_eq!(PartEntry::decode(&part.encode()).unwrap(), part);
        for page in [page, inline] {
            assert_eq!(Page::decode(&page.encode()).unwrap(), page);
            for len in 0..page.encode().len() {
                assert!(Page::decode(&page.encode()[..len]).is_err());
            }
        }
        for len in 0..file.encode().len() {
            assert!(Entry::decode(&file.encode()[..len]).is_err());
        }
    }
    #[test]
    fn i_o5_lengths_that_no_chunk_page_or_part_has_are_refused() {
        let page = |len_bytes| Page {
            composition: CompositionId([1; 16]),
            wrap_salt: [2; 16],
            kek_epoch: 3,
            references: vec![ChunkReference {
                chunk: ChunkId([5; 32]),
                locator: Locator([6; 32]),
                generation: Generation(7),
                len_bytes,
                wrapped_dek: WrappedDek([9; WRAPPED_DEK_LEN_BYTES]),
            }],
            inline: None,
        };
        let inline = |len| Page {
            references: Vec::new(),
            inline: Some(Box::new(InlineContent {
                wrapped_dek: WrappedDek([9; WRAPPED_DEK_LEN_BYTES]),
                sealed: vec![7; len],
            })),
            ..page(1)
        };
        let most = INLINE_LEN_BYTES_MAX + InlineContent::OVERHEAD_BYTES;
        for (len, fits) in [(0, false), (16, false), (17, true), (most, true), (most + 1, false)] {
            assert_eq!(Page::decode(&inline(len).encode()).is_ok(), fits, "{len} sealed bytes");
        }
        let longest = CHUNK_LEN_BYTES_MAX as u32;
        for (len_bytes, fits) in [(0, false), (1, true), (longest, true), (longest + 1, false), (u32::MAX, false)] {
            assert_eq!(Page::decode(&page(len_bytes).encode()).is_ok(), fits, "a chunk of {len_bytes} bytes");
        }
        let file = |len_bytes, part_lens_bytes, page_len_bytes| {
            let pages = vec![PageReference { page: PageId([1; 16]), len_bytes: page_len_bytes }];
            let (etag, attributes, modified_unix_ms) = (String::new(), Attributes::new(), 0);
            Entry::File(FileEntry { len_bytes, modified_unix_ms, etag, attributes, part_lens_bytes, pages })
        };
        for (entry, fits) in [
            (file(3, vec![1, 2], 3), true),
            (file(3, vec![1, 3], 3), false),
            (file(3, vec![u64::MAX, 4], 3), false),
            (file(3, Vec::new(), u64::MAX), false),
            (file(u64::MAX, Vec::new(), 3), false),
        ] {
            assert_eq!(Entry::decode(&entry.encode()).is_ok(), fits, "{entry:?}");
        }
    }
}
