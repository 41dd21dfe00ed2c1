//! What shards say to each other, and to the control shard, about splits. Byte layout: `docs/formats/engine-messages.md`.

use crate::composition::{Entry, FileEntry, Page, PageReference, PartEntry, UploadEntry};
use crate::control_rows::NAME_LEN_BYTES_MAX;
use crate::delta::{ChunkName, REFERENCES_PER_DELTA_MAX};
use crate::key_ranges::{KeyRange, decode_end, encode_end};
use crate::message::NodeState;
use crate::nodes::NodeBoard;
use kiseki_types::codec::{CodecError, Reader, Writer};
use kiseki_types::ids::{
    DirId, Generation, Locator, NamespaceId, NodeId, PageId, PinEpoch, ShardId, TenantId, UploadId,
};
use kiseki_types::limits::{COMMAND_LEN_BYTES_MAX, KEY_LEN_BYTES_MAX};

/// Version of these messages.
const FORMAT: u8 = 1;

/// Things that one call moves.
pub const ITEMS_MAX: usize = 16_384;

/// Ranges that one answer names, shards that a list names.
const LIST_MAX: usize = 100_000;

/// Longest text for people.
const TEXT_LEN_BYTES_MAX: usize = 2048;

/// Numbers the calls that hand keys over: the term of the giving leader, then a count. A later one is never overtaken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Attempt {
    /// The term that the giving shard's leader leads in.
    pub term: u64,
    /// Counts within it.
    pub count: u64,
}

/// Which keys are to move where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SplitOrder {
    /// Who gets them.
    pub child: ShardId,
    /// The namespace.
    pub namespace: NamespaceId,
    /// Its root directory.
    pub root: DirId,
    /// The first of the keys.
    pub start: String,
    /// The first key that the giver does not hold any more; `None`: it holds all that follow. It knows itself what it gave
    /// away, and not how far what it was given once goes.
    pub until: Option<String>,
}

/// One thing that changes hands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MovedItem {
    /// An object.
    File {
        /// Its key.
        key: String,
        /// What it is.
        file: FileEntry,
    },
    /// An upload in progress.
    Upload {
        /// The key that it will become.
        key: String,
        /// Which.
        upload: UploadId,
        /// What is known of it.
        entry: UploadEntry,
    },
    /// A part of an upload.
    Part {
        /// Of which.
        upload: UploadId,
        /// Its number.
        part: u16,
        /// What it is.
        entry: PartEntry,
    },
}

impl MovedItem {
    /// The pages that it is made of.
    #[must_use]
    pub fn pages(&self) -> &[PageReference] {
        match self {
            MovedItem::File { file, .. } => &file.pages,
            MovedItem::Upload { .. } => &[],
            MovedItem::Part { entry, .. } => &entry.pages,
        }
    }

    /// The same, to be given other pages.
    pub fn pages_mut(&mut self) -> &mut [PageReference] {
        match self {
            MovedItem::File { file, .. } => &mut file.pages,
            MovedItem::Upload { .. } => &mut [],
            MovedItem::Part { entry, .. } => &mut entry.pages,
        }
    }
}

/// Keys that are handed over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Handover {
    /// The namespace.
    pub namespace: NamespaceId,
    /// Its root directory.
    pub root: DirId,
    /// The first key.
    pub start: String,
    /// The first key behind them.
    pub end: Option<String>,
    /// Which call this is.
    pub attempt: Attempt,
    /// The call of the same handover before this one; `None`: this is its first, and whatever the child has of these keys is of
    /// one that failed.
    pub follows: Option<Attempt>,
    /// What is there. Their pages are committed in the child already, and loose.
    pub items: Vec<MovedItem>,
}

/// What a shard is asked about splits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SplitRequest {
    /// How are you, and what do you hold?
    Standing,
    /// Where would you be split?
    Choose {
        /// In which namespace; `None`: the one that has most to do.
        namespace: Option<NamespaceId>,
    },
    /// Give these keys away, and say how far that is.
    Begin(SplitOrder),
    /// Commits pages that no name reaches yet.
    TakePages {
        /// The namespace.
        namespace: NamespaceId,
        /// The epoch in which their chunks were adopted.
        pin_epoch: PinEpoch,
        /// The pages.
        pages: Vec<(PageId, Page)>,
    },
    /// Holds keys from now on, as soon as the giver says so.
    Take(Handover),
    /// How often are these named? Changes nothing.
    CountOf(Vec<ChunkName>),
    /// Refuses further objects if there is none of these keys, and names the ranges that it has given away.
    Close {
        /// The namespace.
        namespace: NamespaceId,
        /// Its root.
        root: DirId,
        /// The first of the keys that it is asked about.
        from: String,
        /// The first behind them.
        until: Option<String>,
        /// Whoever closed it last may open it again.
        token: [u8; 16],
    },
    /// Takes objects again, if this token closed it last.
    Open {
        /// The namespace.
        namespace: NamespaceId,
        /// Its root.
        root: DirId,
        /// Who closed it.
        token: [u8; 16],
    },
    /// Everything of the namespace is closed and empty: what is left of it goes.
    Purge {
        /// The namespace.
        namespace: NamespaceId,
        /// Its root.
        root: DirId,
    },
}

/// How far a split is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SplitState {
    /// It has not begun.
    Waiting {
        /// Why.
        reason: String,
    },
    /// It goes on.
    Moving {
        /// Keys below this one have moved.
        at: String,
        /// What became of the last attempt, if it failed.
        problem: Option<String>,
    },
    /// All keys have moved.
    Done(KeyRange),
    /// The bucket is being deleted.
    Stopped,
}

/// How a shard is, and what it holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ShardStanding {
    /// Who leads it.
    pub leader: NodeId,
    /// Who votes.
    pub voters: Vec<NodeId>,
    /// Whether those are as many as it should have.
    pub is_complete: bool,
    /// Objects, as far as they are counted.
    pub keys: u64,
    /// Bytes of those.
    pub bytes: u64,
    /// Whether the count has been through once.
    pub is_counted: bool,
    /// Changes of names in a minute.
    pub writes_per_minute: u64,
    /// Reads in a minute.
    pub reads_per_minute: u64,
    /// Ranges given away.
    pub given: u64,
    /// How far its split is, while it is split.
    pub split: Option<SplitState>,
}

/// What a shard answers about splits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SplitAnswer {
    /// Done.
    Done,
    /// To `Standing`.
    Standing(Box<ShardStanding>),
    /// To `Choose`: where; `None` when there is nothing to be parted.
    Point(Option<(NamespaceId, String)>),
    /// To `Begin`.
    State(SplitState),
    /// To `Close`.
    Given(Vec<KeyRange>),
    /// To `CountOf`, in order.
    Counts(Vec<u64>),
}

/// What the control shard is asked about shards.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ShardMapRequest {
    /// All tenants' shards.
    List,
    /// Splits one.
    Split {
        /// Which.
        shard: ShardId,
        /// In which bucket; `None`: the one that has most to do.
        bucket: Option<String>,
        /// From which key on; `None`: in the middle of what is asked for.
        at: Option<String>,
    },
}

/// A tenant's shard as the control shard knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShardEntry {
    /// Its number.
    pub shard: ShardId,
    /// Whose.
    pub tenant: TenantId,
    /// Whether it has been made.
    pub is_active: bool,
    /// The shard that its keys come from while it is filled.
    pub split_of: Option<ShardId>,
}

/// What the control shard answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ShardMapAnswer {
    /// To `List`.
    Shards(Vec<ShardEntry>),
    /// To `Split`: it goes on by itself from here.
    Begun(SplitOrder),
}

/// When a shard has itself split; 0: never for this.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SplitCeilings {
    /// Objects.
    pub keys: u64,
    /// Bytes of those.
    pub bytes: u64,
    /// Changes of names in a minute.
    pub writes_per_minute: u64,
}

/// How many nodes may hold replicas.
#[must_use]
pub fn active_nodes(nodes: &NodeBoard) -> usize {
    let entries = nodes.entries();
    let is_recorded = entries.iter().any(|entry| entry.node == nodes.own());
    entries.iter().filter(|entry| entry.state == NodeState::Active).count() + usize::from(!is_recorded)
}

impl SplitOrder {
    /// Appends it.
    pub fn encode(&self, writer: &mut Writer) {
        writer.u64(self.child.0).u64(self.namespace.0).raw(&self.root.0).str(&self.start);
        encode_end(writer, self.until.as_deref());
    }

    /// Reads it.
    pub fn decode(reader: &mut Reader<'_>) -> Result<SplitOrder, CodecError> {
        Ok(SplitOrder {
            child: ShardId(reader.u64()?),
            namespace: NamespaceId(reader.u64()?),
            root: DirId(reader.array()?),
            start: key(reader)?,
            until: decode_end(reader)?,
        })
    }
}

fn key(reader: &mut Reader<'_>) -> Result<String, CodecError> {
    Ok(reader.str(KEY_LEN_BYTES_MAX)?.to_owned())
}

fn text(reader: &mut Reader<'_>) -> Result<String, CodecError> {
    Ok(reader.str(TEXT_LEN_BYTES_MAX)?.to_owned())
}

/// A text for people, cut where a character ends.
fn put_text(writer: &mut Writer, text: &str) {
    writer.str(&text[..text.floor_char_boundary(TEXT_LEN_BYTES_MAX)]);
}

fn put_attempt(writer: &mut Writer, attempt: Attempt) {
    writer.u64(attempt.term).u64(attempt.count);
}

fn take_attempt(reader: &mut Reader<'_>) -> Result<Attempt, CodecError> {
    Ok(Attempt { term: reader.u64()?, count: reader.u64()? })
}

fn put_names(writer: &mut Writer, names: &[ChunkName]) {
    writer.u32(names.len() as u32);
    for name in names {
        writer.raw(&name.locator.0).u64(name.generation.0);
    }
}

/// `Some` behind a 1, `None` as a 0.
fn optional<T>(
    reader: &mut Reader<'_>,
    take: impl FnOnce(&mut Reader<'_>) -> Result<T, CodecError>,
) -> Result<Option<T>, CodecError> {
    reader.flag()?.then(|| take(reader)).transpose()
}

fn put_item(writer: &mut Writer, item: &MovedItem) {
    match item {
        MovedItem::File { key, file } => writer.u8(0).str(key).bytes(&file.encode()),
        MovedItem::Upload { key, upload, entry } => writer.u8(1).str(key).raw(&upload.0).bytes(&entry.encode()),
        MovedItem::Part { upload, part, entry } => writer.u8(2).raw(&upload.0).u16(*part).bytes(&entry.encode()),
    };
}

fn take_item(reader: &mut Reader<'_>) -> Result<MovedItem, CodecError> {
    Ok(match reader.u8()? {
        0 => {
            let key = key(reader)?;
            match Entry::decode(reader.bytes(COMMAND_LEN_BYTES_MAX)?)? {
                Entry::File(file) => MovedItem::File { key, file },
                Entry::Directory { .. } => return Err(reader.unknown(0)),
            }
        }
        1 => {
            let (key, upload) = (key(reader)?, UploadId(reader.array()?));
            let entry = UploadEntry::decode(reader.bytes(COMMAND_LEN_BYTES_MAX)?)?;
            MovedItem::Upload { key, upload, entry }
        }
        2 => {
            let (upload, part) = (UploadId(reader.array()?), reader.u16()?);
            MovedItem::Part { upload, part, entry: PartEntry::decode(reader.bytes(COMMAND_LEN_BYTES_MAX)?)? }
        }
        other => return Err(reader.unknown(u64::from(other))),
    })
}

impl SplitRequest {
    /// The bytes of a message.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut writer = Writer::new();
        writer.u8(FORMAT);
        match self {
            SplitRequest::Standing => drop(writer.u8(0)),
            SplitRequest::Choose { namespace } => {
                writer.u8(1).u8(u8::from(namespace.is_some()));
                if let Some(namespace) = namespace {
                    writer.u64(namespace.0);
                }
            }
            SplitRequest::Begin(order) => order.encode(writer.u8(2)),
            SplitRequest::TakePages { namespace, pin_epoch, pages } => {
                writer.u8(3).u64(namespace.0).u64(pin_epoch.0).u32(pages.len() as u32);
                for (id, page) in pages {
                    writer.raw(&id.0).bytes(&page.encode());
                }
            }
            SplitRequest::Take(handover) => {
                writer.u8(4).u64(handover.namespace.0).raw(&handover.root.0).str(&handover.start);
                encode_end(&mut writer, handover.end.as_deref());
                put_attempt(&mut writer, handover.attempt);
                writer.u8(u8::from(handover.follows.is_some()));
                handover.follows.iter().for_each(|before| put_attempt(&mut writer, *before));
                writer.u32(handover.items.len() as u32);
                handover.items.iter().for_each(|item| put_item(&mut writer, item));
            }
            SplitRequest::CountOf(names) => put_names(writer.u8(5), names),
            SplitRequest::Close { namespace, root, from, until, token } => {
                writer.u8(6).u64(namespace.0).raw(&root.0).str(from);
                encode_end(&mut writer, until.as_deref());
                writer.raw(token);
            }
            SplitRequest::Open { namespace, root, token } => {
                writer.u8(7).u64(namespace.0).raw(&root.0).raw(token);
            }
            SplitRequest::Purge { namespace, root } => drop(writer.u8(8).u64(namespace.0).raw(&root.0)),
        }
        writer.finish()
    }

    /// Back from a message.
    pub fn decode(bytes: &[u8]) -> Result<SplitRequest, CodecError> {
        let mut reader = versioned("request about a split", bytes)?;
        let request = match reader.u8()? {
            0 => SplitRequest::Standing,
            1 => SplitRequest::Choose { namespace: optional(&mut reader, |reader| reader.u64().map(NamespaceId))? },
            2 => SplitRequest::Begin(SplitOrder::decode(&mut reader)?),
            3 => {
                let (namespace, pin_epoch) = (NamespaceId(reader.u64()?), PinEpoch(reader.u64()?));
                let count = reader.count(ITEMS_MAX)?;
                let mut page = || {
                    let id = PageId(reader.array()?);
                    Ok((id, Page::decode(reader.bytes(COMMAND_LEN_BYTES_MAX)?)?))
                };
                let pages = (0..count).map(|_| page()).collect::<Result<_, CodecError>>()?;
                SplitRequest::TakePages { namespace, pin_epoch, pages }
            }
            4 => SplitRequest::Take(take_handover(&mut reader)?),
            5 => {
                let count = reader.count(REFERENCES_PER_DELTA_MAX)?;
                let mut name =
                    || Ok(ChunkName { locator: Locator(reader.array()?), generation: Generation(reader.u64()?) });
                SplitRequest::CountOf((0..count).map(|_| name()).collect::<Result<_, CodecError>>()?)
            }
            6 => SplitRequest::Close {
                namespace: NamespaceId(reader.u64()?),
                root: DirId(reader.array()?),
                from: key(&mut reader)?,
                until: decode_end(&mut reader)?,
                token: reader.array()?,
            },
            7 => SplitRequest::Open {
                namespace: NamespaceId(reader.u64()?),
                root: DirId(reader.array()?),
                token: reader.array()?,
            },
            8 => SplitRequest::Purge { namespace: NamespaceId(reader.u64()?), root: DirId(reader.array()?) },
            other => return Err(reader.unknown(u64::from(other))),
        };
        reader.end()?;
        Ok(request)
    }
}

fn take_handover(reader: &mut Reader<'_>) -> Result<Handover, CodecError> {
    let (namespace, root) = (NamespaceId(reader.u64()?), DirId(reader.array()?));
    let (start, end) = (key(reader)?, decode_end(reader)?);
    let attempt = take_attempt(reader)?;
    let follows = optional(reader, take_attempt)?;
    let count = reader.count(ITEMS_MAX)?;
    let items = (0..count).map(|_| take_item(reader)).collect::<Result<_, CodecError>>()?;
    Ok(Handover { namespace, root, start, end, attempt, follows, items })
}

fn put_state(writer: &mut Writer, state: &SplitState) {
    match state {
        SplitState::Waiting { reason } => put_text(writer.u8(0), reason),
        SplitState::Moving { at, problem } => {
            writer.u8(1).str(at).u8(u8::from(problem.is_some()));
            problem.iter().for_each(|problem| put_text(writer, problem));
        }
        SplitState::Done(range) => range.encode(writer.u8(2)),
        SplitState::Stopped => drop(writer.u8(3)),
    }
}

fn take_state(reader: &mut Reader<'_>) -> Result<SplitState, CodecError> {
    Ok(match reader.u8()? {
        0 => SplitState::Waiting { reason: text(reader)? },
        1 => SplitState::Moving { at: key(reader)?, problem: optional(reader, text)? },
        2 => SplitState::Done(KeyRange::decode(reader)?),
        3 => SplitState::Stopped,
        other => return Err(reader.unknown(u64::from(other))),
    })
}

impl SplitAnswer {
    /// The bytes of a message.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut writer = Writer::new();
        writer.u8(FORMAT);
        match self {
            SplitAnswer::Done => drop(writer.u8(0)),
            SplitAnswer::Standing(standing) => {
                writer.u8(1).u64(standing.leader.0).u32(standing.voters.len() as u32);
                for voter in &standing.voters {
                    writer.u64(voter.0);
                }
                writer.u8(u8::from(standing.is_complete)).u64(standing.keys).u64(standing.bytes);
                writer.u8(u8::from(standing.is_counted)).u64(standing.writes_per_minute);
                writer.u64(standing.reads_per_minute).u64(standing.given).u8(u8::from(standing.split.is_some()));
                standing.split.iter().for_each(|state| put_state(&mut writer, state));
            }
            SplitAnswer::Point(point) => {
                writer.u8(2).u8(u8::from(point.is_some()));
                if let Some((namespace, key)) = point {
                    writer.u64(namespace.0).str(key);
                }
            }
            SplitAnswer::State(state) => put_state(writer.u8(3), state),
            SplitAnswer::Given(ranges) => {
                writer.u8(4).u32(ranges.len() as u32);
                ranges.iter().for_each(|range| range.encode(&mut writer));
            }
            SplitAnswer::Counts(counts) => {
                writer.u8(5).u32(counts.len() as u32);
                for count in counts {
                    writer.u64(*count);
                }
            }
        }
        writer.finish()
    }

    /// Back from a message.
    pub fn decode(bytes: &[u8]) -> Result<SplitAnswer, CodecError> {
        let mut reader = versioned("answer about a split", bytes)?;
        let answer = match reader.u8()? {
            0 => SplitAnswer::Done,
            1 => SplitAnswer::Standing(Box::new(take_standing(&mut reader)?)),
            2 => SplitAnswer::Point(optional(&mut reader, |reader| Ok((NamespaceId(reader.u64()?), key(reader)?)))?),
            3 => SplitAnswer::State(take_state(&mut reader)?),
            4 => {
                let count = reader.count(LIST_MAX)?;
                let ranges = (0..count).map(|_| KeyRange::decode(&mut reader));
                SplitAnswer::Given(ranges.collect::<Result<_, CodecError>>()?)
            }
            5 => {
                let count = reader.count(REFERENCES_PER_DELTA_MAX)?;
                SplitAnswer::Counts((0..count).map(|_| reader.u64()).collect::<Result<_, CodecError>>()?)
            }
            other => return Err(reader.unknown(u64::from(other))),
        };
        reader.end()?;
        Ok(answer)
    }
}

fn take_standing(reader: &mut Reader<'_>) -> Result<ShardStanding, CodecError> {
    let leader = NodeId(reader.u64()?);
    let count = reader.count(LIST_MAX)?;
    let voters = (0..count).map(|_| reader.u64().map(NodeId)).collect::<Result<_, CodecError>>()?;
    Ok(ShardStanding {
        leader,
        voters,
        is_complete: reader.flag()?,
        keys: reader.u64()?,
        bytes: reader.u64()?,
        is_counted: reader.flag()?,
        writes_per_minute: reader.u64()?,
        reads_per_minute: reader.u64()?,
        given: reader.u64()?,
        split: optional(reader, take_state)?,
    })
}

impl ShardMapRequest {
    /// The bytes of a message.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut writer = Writer::new();
        writer.u8(FORMAT);
        match self {
            ShardMapRequest::List => drop(writer.u8(0)),
            ShardMapRequest::Split { shard, bucket, at } => {
                writer.u8(1).u64(shard.0);
                for name in [bucket, at] {
                    writer.u8(u8::from(name.is_some()));
                    if let Some(name) = name {
                        writer.str(name);
                    }
                }
            }
        }
        writer.finish()
    }

    /// Back from a message.
    pub fn decode(bytes: &[u8]) -> Result<ShardMapRequest, CodecError> {
        let mut reader = versioned("request about shards", bytes)?;
        let name = |reader: &mut Reader<'_>| Ok(reader.str(NAME_LEN_BYTES_MAX)?.to_owned());
        let request = match reader.u8()? {
            0 => ShardMapRequest::List,
            1 => ShardMapRequest::Split {
                shard: ShardId(reader.u64()?),
                bucket: optional(&mut reader, name)?,
                at: optional(&mut reader, name)?,
            },
            other => return Err(reader.unknown(u64::from(other))),
        };
        reader.end()?;
        Ok(request)
    }
}

impl ShardMapAnswer {
    /// The bytes of a message.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut writer = Writer::new();
        writer.u8(FORMAT);
        match self {
            ShardMapAnswer::Shards(shards) => {
                writer.u8(0).u32(shards.len() as u32);
                for entry in shards {
                    writer.u64(entry.shard.0).u64(entry.tenant.0).u8(u8::from(entry.is_active));
                    writer.u64(entry.split_of.map_or(0, |shard| shard.0));
                }
            }
            ShardMapAnswer::Begun(order) => order.encode(writer.u8(1)),
        }
        writer.finish()
    }

    /// Back from a message.
    pub fn decode(bytes: &[u8]) -> Result<ShardMapAnswer, CodecError> {
        let mut reader = versioned("answer about shards", bytes)?;
        let answer = match reader.u8()? {
            0 => {
                let count = reader.count(LIST_MAX)?;
                let mut entry = || {
                    let (shard, tenant) = (ShardId(reader.u64()?), TenantId(reader.u64()?));
                    let is_active = reader.flag()?;
                    let split_of = Some(ShardId(reader.u64()?)).filter(|shard| shard.0 > 0);
                    Ok(ShardEntry { shard, tenant, is_active, split_of })
                };
                ShardMapAnswer::Shards((0..count).map(|_| entry()).collect::<Result<_, CodecError>>()?)
            }
            1 => ShardMapAnswer::Begun(SplitOrder::decode(&mut reader)?),
            other => return Err(reader.unknown(u64::from(other))),
        };
        reader.end()?;
        Ok(answer)
    }
}

fn versioned<'a>(what: &'static str, bytes: &'a [u8]) -> Result<Reader<'a>, CodecError> {
    let mut reader = Reader::new(what, bytes);
    match reader.u8()? {
        FORMAT => Ok(reader),
        other => Err(reader.unknown(u64::from(other))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;
    use std::fmt::Debug;

    fn both<T: Debug + PartialEq>(value: &T, bytes: &[u8], decode: impl Fn(&[u8]) -> Result<T, CodecError>) {
        assert_eq!(decode(bytes).as_ref().ok(), Some(value));
        for len in 0..bytes.len() {
            assert!(decode(&bytes[..len]).is_err(), "{value:?} cut to {len} of {}", bytes.len());
        }
        assert!(decode(&[bytes, &[0]].concat()).is_err(), "a byte follows {value:?}");
    }

    #[test]
    fn messages_survive_the_round_trip_and_truncation_is_an_error() {
        let (namespace, root) = (NamespaceId(3), DirId([4; 16]));
        let pages = vec![PageReference { page: PageId([5; 16]), len_bytes: 6 }];
        let attributes = BTreeMap::from([("a".to_owned(), "b".to_owned())]);
        let file = FileEntry {
            len_bytes: 6,
            modified_unix_ms: 7,
            etag: "e".to_owned(),
            attributes: attributes.clone(),
            part_lens_bytes: vec![6],
            pages: pages.clone(),
        };
        let part = PartEntry {
            len_bytes: 6,
            modified_unix_ms: 7,
            etag: "e".to_owned(),
            attributes: attributes.clone(),
            pages,
        };
        let upload = UploadId([9; 16]);
        let items = vec![
            MovedItem::File { key: "k".to_owned(), file },
            MovedItem::Upload { key: "k".to_owned(), upload, entry: UploadEntry { initiated_unix_ms: 1, attributes } },
            MovedItem::Part { upload, part: 2, entry: part },
        ];
        let (start, until) = ("m".to_owned(), Some("t".to_owned()));
        let order = SplitOrder { child: ShardId(2000), namespace, root, start, until };
        let name = ChunkName { locator: Locator([1; 32]), generation: Generation(2) };
        let page = Page {
            composition: Default::default(),
            wrap_salt: Default::default(),
            kek_epoch: 1,
            references: vec![],
            inline: None,
        };
        let (attempt, token) = (Attempt { term: 5, count: 6 }, [7; 16]);
        let handover = Handover {
            namespace,
            root,
            start: "a".to_owned(),
            end: Some("b".to_owned()),
            attempt,
            follows: Some(Attempt { term: 5, count: 5 }),
            items,
        };
        let (from, until) = ("a".to_owned(), None);
        for request in [
            SplitRequest::Standing,
            SplitRequest::Choose { namespace: None },
            SplitRequest::Choose { namespace: Some(namespace) },
            SplitRequest::Begin(order.clone()),
            SplitRequest::TakePages { namespace, pin_epoch: PinEpoch(2), pages: vec![(PageId([1; 16]), page)] },
            SplitRequest::Take(handover),
            SplitRequest::CountOf(vec![name]),
            SplitRequest::Close { namespace, root, from, until, token },
            SplitRequest::Open { namespace, root, token },
            SplitRequest::Purge { namespace, root },
        ] {
            both(&request, &request.encode(), SplitRequest::decode);
        }
        let range = KeyRange { namespace, start: "a".to_owned(), end: Some("b".to_owned()), shard: ShardId(2000) };
        let state = SplitState::Moving { at: "c".to_owned(), problem: Some("p".to_owned()) };
        let standing = ShardStanding { voters: vec![NodeId(1), NodeId(2)], split: Some(state), ..Default::default() };
        for answer in [
            SplitAnswer::Done,
            SplitAnswer::Standing(Box::new(standing)),
            SplitAnswer::Point(Some((namespace, "k".to_owned()))),
            SplitAnswer::Point(None),
            SplitAnswer::State(SplitState::Waiting { reason: "r".to_owned() }),
            SplitAnswer::State(SplitState::Done(range.clone())),
            SplitAnswer::State(SplitState::Stopped),
            SplitAnswer::Given(vec![range]),
            SplitAnswer::Counts(vec![1, 2]),
        ] {
            both(&answer, &answer.encode(), SplitAnswer::decode);
        }
        let split =
            ShardMapRequest::Split { shard: ShardId(1024), bucket: Some("b".to_owned()), at: Some("k".to_owned()) };
        for request in [ShardMapRequest::List, split] {
            both(&request, &request.encode(), ShardMapRequest::decode);
        }
        let entry = ShardEntry { shard: ShardId(1), tenant: TenantId(2), is_active: true, split_of: None };
        for answer in [ShardMapAnswer::Shards(vec![entry]), ShardMapAnswer::Begun(order)] {
            both(&answer, &answer.encode(), ShardMapAnswer::decode);
        }
    }
}
