//! Commands of a shard's log and the rows of its tables.

use crate::target::{Seed, Target, Verdict, accepted, bytes_settle, bytes_survive, value_survives};
use futures::FutureExt;
use kiseki_engine::api::{Attributes, BucketInfo, EtagMode};
use kiseki_engine::chunker::{ChunkFormat, Chunker};
use kiseki_engine::composition::{ChunkReference, Entry, FileEntry, Page, PageReference, PartEntry, UploadEntry};
use kiseki_engine::control_rows::{AccessKeyRow, BucketRow, ShardRow, TenantRow, decode_pool, encode_pool};
use kiseki_engine::delta::{ChunkName, Command, Delta, Outcome, Payload, RowChange, decode_rows, encode_rows};
use kiseki_engine::device_record::{DeviceActor, DevicePlace, DeviceRecord, DeviceUpdate, WearCause};
use kiseki_engine::envelope::envelope_len;
use kiseki_engine::fuzzing;
use kiseki_engine::inline::InlineContent;
use kiseki_engine::keys::{MetaSealer, WRAPPED_DEK_LEN_BYTES, WrappedDek};
use kiseki_engine::machine::Machine;
use kiseki_engine::message::Dedup;
use kiseki_engine::stripe::{check_shape, fragment_payload_len, shape_for};
use kiseki_types::LocalBoxFuture;
use kiseki_types::codec::{Reader, Writer};
use kiseki_types::fragment::StripeShape;
use kiseki_types::group::{LogPosition, StateMachine};
use kiseki_types::ids::{
    ChunkId, CompositionId, DeviceId, DirId, Generation, Locator, NamespaceId, PageId, PinEpoch, PoolId, RequestId,
    ShardId, TenantId, Term,
};
use kiseki_types::runtime::Rng;
use kiseki_types::secret::SecretKey;
use kiseki_types::table::{Row, Scan, TableError, TableId, TableReader};
use std::rc::Rc;

/// A command as it stands in the log.
pub const COMMAND: Target = Target::new("command", command, command_seeds);
/// The same, applied to a shard whose counts all read as the row in front.
pub const COMMAND_APPLIED: Target =
    Target::new("command_applied", command_applied, command_applied_seeds).allowed(96 * 1024, 64);
/// Row changes of a payload.
pub const DELTA_ROWS: Target = Target::new("delta_rows", delta_rows, delta_rows_seeds);
/// What a replica answers.
pub const OUTCOME: Target = Target::new("outcome", outcome, outcome_seeds);
/// A sealed payload.
pub const SEALED_PAYLOAD: Target = Target::new("sealed_payload", sealed_payload, sealed_payload_seeds);
/// A page of chunk references.
pub const PAGE: Target = Target::new("page", page, page_seeds);
/// An entry of a directory.
pub const ENTRY: Target = Target::new("entry", entry, entry_seeds);
/// An upload.
pub const UPLOAD: Target = Target::new("upload", upload, upload_seeds);
/// A part of an upload.
pub const PART: Target = Target::new("part", part, part_seeds);
/// A tenant.
pub const TENANT_ROW: Target = Target::new("tenant_row", tenant_row, tenant_row_seeds);
/// An access key.
pub const ACCESS_KEY_ROW: Target = Target::new("access_key_row", access_key_row, access_key_row_seeds);
/// A bucket.
pub const BUCKET_ROW: Target = Target::new("bucket_row", bucket_row, bucket_row_seeds);
/// A tenant's shard.
pub const SHARD_ROW: Target = Target::new("shard_row", shard_row, shard_row_seeds);
/// A pool.
pub const POOL_ROW: Target = Target::new("pool_row", pool_row, pool_row_seeds);
/// What is recorded of a device.
pub const DEVICE_RECORD: Target = Target::new("device_record", device_record, device_record_seeds);
/// A home's record of a generation.
pub const GENERATION_RECORD: Target =
    Target::new("generation_record", generation_record, || vec![("complete", fuzzing::generation_record_seed())]);
/// How a namespace cuts its chunks. The tables of a chunker are far larger than a format.
pub const CHUNK_FORMAT: Target = Target::new("chunk_format", chunk_format, chunk_format_seeds).allowed(1024 * 1024, 16);

fn name(byte: u8) -> ChunkName {
    ChunkName { locator: Locator([byte; 32]), generation: Generation(u64::from(byte)) }
}

fn rows() -> Vec<RowChange> {
    vec![RowChange::put(1, b"key".to_vec(), b"value".to_vec()), RowChange::remove(2, b"gone".to_vec())]
}

fn command(bytes: &[u8]) -> Verdict {
    bytes_survive(bytes, |bytes| Command::decode(bytes).ok().map(|command| command.encode()))
}

fn delta(payload: Payload) -> Command {
    Command::Delta(Delta {
        term: Term(3),
        pin_epoch: PinEpoch(4),
        request: RequestId([5; 16]),
        namespace: NamespaceId(6),
        added: vec![(name(7), 1)],
        dropped: vec![(name(8), 2)],
        added_bytes: 10,
        dropped_bytes: 11,
        payload,
    })
}

fn commands() -> Vec<(&'static str, Command)> {
    let binding = Delta::binding(NamespaceId(6), RequestId([5; 16]));
    let sealed = sealer().seal(&binding, &encode_rows(&rows()));
    vec![
        ("delta-clear", delta(Payload::Clear(encode_rows(&rows())))),
        ("delta-sealed", delta(Payload::Sealed(sealed))),
        ("fence", Command::Fence(name(1))),
        ("unfence", Command::Unfence(name(2))),
        ("close", Command::ClosePinEpochs(PinEpoch(9))),
        ("forget", Command::ForgetCandidate(name(3))),
    ]
}

fn command_seeds() -> Vec<Seed> {
    commands().into_iter().map(|(name, command)| (name, command.encode())).collect()
}

/// Tables in which every row that is asked for holds the same.
struct SameRows(Option<Vec<u8>>);

impl TableReader for SameRows {
    fn get(
        &self,
        _file: u8,
        _table: TableId,
        _key: &[u8],
    ) -> LocalBoxFuture<'static, Result<Option<Vec<u8>>, TableError>> {
        let row = self.0.clone();
        Box::pin(async move { Ok(row) })
    }
    fn scan(&self, _scan: Scan) -> LocalBoxFuture<'static, Result<Vec<Row>, TableError>> {
        let rows = self.0.iter().map(|value| (b"key".to_vec(), value.clone())).collect();
        Box::pin(async move { Ok(rows) })
    }
}

/// Bytes of a count, a fence and an epoch.
const NUMBER_BYTES: usize = 8;

fn command_applied(bytes: &[u8]) -> Verdict {
    let Some((row_len, rest)) = bytes.split_first() else { return Verdict::Refused };
    let row = rest.get(..usize::from(*row_len % 16)).unwrap_or(rest);
    let command = &rest[row.len()..];
    let tables = SameRows((*row_len != 0).then(|| row.to_vec()));
    let at = LogPosition { term: Term(3), index: 7 };
    let _home = Machine::of_home().apply(at, command, &tables).now_or_never().expect("no table makes it wait");
    let machine = Machine::of_tenant_shard(Rc::new(sealer()));
    let applied = machine.apply(at, command, &tables).now_or_never().expect("no table makes it wait");
    let counts = matches!(Command::decode(command), Ok(Command::Fence(_) | Command::ClosePinEpochs(_)));
    let whole = tables.0.as_ref().is_none_or(|row| row.len() == NUMBER_BYTES);
    assert!(whole || !counts || applied.is_err(), "a number of another length is damage, never 0");
    accepted(applied.ok())
}

fn command_applied_seeds() -> Vec<Seed> {
    let number = |value: u64, command: &Command| [&[8][..], &value.to_le_bytes(), &command.encode()].concat();
    let mut seeds: Vec<Seed> =
        commands().into_iter().skip(1).map(|(name, command)| (name, [&[0][..], &command.encode()].concat())).collect();
    seeds.remove(0); // it drops what no row counts
    seeds.push(("fence-counted", number(3, &Command::Fence(name(1)))));
    seeds.push(("close-open", number(9, &Command::ClosePinEpochs(PinEpoch(10)))));
    seeds
}

fn delta_rows(bytes: &[u8]) -> Verdict {
    bytes_survive(bytes, |bytes| decode_rows(bytes).ok().map(|rows| encode_rows(&rows)))
}

fn delta_rows_seeds() -> Vec<Seed> {
    vec![("two", encode_rows(&rows())), ("none", encode_rows(&[]))]
}

fn outcome(bytes: &[u8]) -> Verdict {
    bytes_survive(bytes, |bytes| Outcome::decode(bytes).ok().map(|outcome| outcome.encode()))
}

fn outcome_seeds() -> Vec<Seed> {
    vec![
        ("done", Outcome::Done { count: 3 }.encode()),
        ("term", Outcome::RefusedTerm.encode()),
        ("epoch", Outcome::RefusedEpoch.encode()),
        ("fenced", Outcome::RefusedFenced(name(4)).encode()),
    ]
}

/// A salt like any other: the keys here guard nothing.
struct FixedRng;

impl Rng for FixedRng {
    fn fill_random(&self, out: &mut [u8]) {
        out.fill(0x5a);
    }
}

fn sealer() -> MetaSealer {
    MetaSealer::new(SecretKey::take(&mut [3; 32]), &FixedRng)
}

const BINDING: &[u8] = b"binding";

fn sealed_payload(bytes: &[u8]) -> Verdict {
    let Ok(plain) = sealer().open(BINDING, bytes) else { return Verdict::Refused };
    assert_eq!(plain, encode_rows(&rows()), "I-K1: only what was sealed opens");
    Verdict::Accepted
}

fn sealed_payload_seeds() -> Vec<Seed> {
    vec![("rows", sealer().seal(BINDING, &encode_rows(&rows())))]
}

fn page(bytes: &[u8]) -> Verdict {
    if let Ok(page) = Page::decode(bytes) {
        let _covered = page.len_bytes();
        for reference in &page.references {
            let sealed = envelope_len(reference.len_bytes);
            let shape = shape_for(StripeShape { data: 4, parity: 2 }, sealed);
            assert!(fragment_payload_len(sealed, shape) > 0, "a chunk that a read can be planned for");
        }
    }
    value_survives(bytes, Page::decode, Page::encode)
}

fn page_seeds() -> Vec<Seed> {
    let reference = |byte: u8| ChunkReference {
        chunk: ChunkId([byte; 32]),
        locator: Locator([6; 32]),
        generation: Generation(7),
        len_bytes: 1 << 20,
        wrapped_dek: WrappedDek([9; WRAPPED_DEK_LEN_BYTES]),
    };
    let page = Page {
        composition: CompositionId([1; 16]),
        wrap_salt: [2; 16],
        kek_epoch: 3,
        references: vec![reference(1), reference(2)],
        inline: None,
    };
    let sealed = InlineContent { wrapped_dek: WrappedDek([9; WRAPPED_DEK_LEN_BYTES]), sealed: vec![8; 40] };
    let inline = Page { references: Vec::new(), inline: Some(Box::new(sealed)), ..page.clone() };
    vec![("two-chunks", page.encode()), ("inline", inline.encode())]
}

fn attributes() -> Attributes {
    Attributes::from([("h.content-type", "text/plain"), ("sum-type", "FULL_OBJECT")].map(|(a, b)| (a.into(), b.into())))
}

fn pages() -> Vec<PageReference> {
    vec![PageReference { page: PageId([1; 16]), len_bytes: 3 }]
}

/// What reads of an object rely on: sums that fit, parts inside.
fn check_file(file: &FileEntry) {
    let covered = file.pages.iter().try_fold(0u64, |sum, page| sum.checked_add(page.len_bytes));
    assert!(covered.is_some(), "the pages of an object add up");
    for number in 1..=file.part_lens_bytes.len().min(64) {
        let range = kiseki_gateway::fuzzing::part_range(number as i32, file.len_bytes, &file.part_lens_bytes);
        assert!(range.is_some_and(|range| range.end <= file.len_bytes), "part {number} lies in its object");
    }
}

fn entry(bytes: &[u8]) -> Verdict {
    if let Ok(Entry::File(file)) = Entry::decode(bytes) {
        check_file(&file);
    }
    value_survives(bytes, Entry::decode, Entry::encode)
}

fn entry_seeds() -> Vec<Seed> {
    let file = |part_lens_bytes: Vec<u64>| {
        Entry::File(FileEntry {
            len_bytes: 3,
            modified_unix_ms: 2,
            etag: "e".to_owned(),
            attributes: attributes(),
            part_lens_bytes,
            pages: pages(),
        })
    };
    let directory = Entry::Directory { id: DirId([3; 16]), shard: ShardId(1024) };
    vec![
        ("file", file(Vec::new()).encode()),
        ("file-of-parts", file(vec![1, 2]).encode()),
        ("directory", directory.encode()),
    ]
}

fn upload(bytes: &[u8]) -> Verdict {
    value_survives(bytes, UploadEntry::decode, UploadEntry::encode)
}

fn upload_seeds() -> Vec<Seed> {
    vec![("upload", UploadEntry { initiated_unix_ms: 5, attributes: attributes() }.encode())]
}

/// Parts that one object may be assembled of.
const PARTS: u64 = 10_000;

fn part(bytes: &[u8]) -> Verdict {
    if let Ok(part) = PartEntry::decode(bytes) {
        assert!(part.len_bytes.checked_mul(PARTS).is_some(), "the lengths of all parts of an upload add up");
    }
    value_survives(bytes, PartEntry::decode, PartEntry::encode)
}

fn part_seeds() -> Vec<Seed> {
    let part =
        PartEntry { len_bytes: 3, modified_unix_ms: 7, etag: "p".to_owned(), attributes: attributes(), pages: pages() };
    vec![("part", part.encode())]
}

fn tenant_row(bytes: &[u8]) -> Verdict {
    bytes_survive(bytes, |bytes| TenantRow::decode(bytes).ok().map(|row| row.encode()))
}

fn tenant_row_seeds() -> Vec<Seed> {
    let row = TenantRow {
        name: "team-1".to_owned(),
        dedup: Dedup::Private,
        created_unix_ms: 4,
        kek_epoch: 1,
        sealed_secrets: vec![7; 104],
    };
    vec![("private", row.encode())]
}

fn access_key_row(bytes: &[u8]) -> Verdict {
    bytes_survive(bytes, |bytes| AccessKeyRow::decode(bytes).ok().map(|row| row.encode()))
}

fn access_key_row_seeds() -> Vec<Seed> {
    let row = AccessKeyRow { tenant: TenantId(1), created_unix_ms: 4, sealed_secret: vec![7; 80] };
    vec![("key", row.encode())]
}

fn bucket_row(bytes: &[u8]) -> Verdict {
    bytes_survive(bytes, |bytes| BucketRow::decode(bytes).ok().map(|row| row.encode()))
}

fn bucket_row_seeds() -> Vec<Seed> {
    let info = BucketInfo {
        namespace: NamespaceId(2),
        name: "photos".to_owned(),
        created_unix_ms: 4,
        etag_mode: EtagMode::Opaque,
    };
    let row = BucketRow {
        tenant: TenantId(1),
        info,
        shard: ShardId(1024),
        ranges: Default::default(),
        root: DirId([5; 16]),
        pool: PoolId(1),
        chunks: ChunkFormat::default(),
    };
    vec![("bucket", row.encode())]
}

fn shard_row(bytes: &[u8]) -> Verdict {
    bytes_survive(bytes, |bytes| ShardRow::decode(bytes).ok().map(|row| row.encode()))
}

fn shard_row_seeds() -> Vec<Seed> {
    vec![(
        "active",
        ShardRow {
            tenant: TenantId(1),
            active: true,
            founder: kiseki_types::ids::NodeId(1),
            wrapped_metadata_key: vec![7; 72],
        }
        .encode(),
    )]
}

fn pool_row(bytes: &[u8]) -> Verdict {
    if let Ok(shape) = decode_pool(bytes) {
        assert!(check_shape(shape).is_ok(), "a pool of {shape:?} stores nothing");
    }
    bytes_survive(bytes, |bytes| decode_pool(bytes).ok().map(encode_pool))
}

fn pool_row_seeds() -> Vec<Seed> {
    vec![("4+2", encode_pool(StripeShape { data: 4, parity: 2 }))]
}

fn device_record(bytes: &[u8]) -> Verdict {
    bytes_survive(bytes, |bytes| DeviceRecord::decode(DeviceId([1; 16]), bytes).ok().map(|record| record.encode()))
}

fn device_record_seeds() -> Vec<Seed> {
    let device = DeviceId([1; 16]);
    let place = DevicePlace { path: "/dev/nvme0n1".to_owned(), pool: PoolId(0), class: "nvme".to_owned() };
    let updates = [
        DeviceUpdate::Opened { place, actor: DeviceActor::Node, reason: "opened and checked".to_owned() },
        DeviceUpdate::Evacuate {
            actor: DeviceActor::Wear,
            reason: "91 % used".to_owned(),
            cause: Some(WearCause::Used),
        },
        DeviceUpdate::CancelEvacuation { reason: "it stays".to_owned() },
        DeviceUpdate::Evacuate { actor: DeviceActor::Operator, reason: "drain".to_owned(), cause: None },
    ];
    let mut record: Option<DeviceRecord> = None;
    for update in updates {
        record = DeviceRecord::after(record.as_ref(), device, update, 5).expect("the updates follow each other");
    }
    vec![("evacuating", record.expect("the last update changed something").encode())]
}

fn generation_record(bytes: &[u8]) -> Verdict {
    bytes_settle(bytes, fuzzing::generation_record)
}

fn chunk_format(bytes: &[u8]) -> Verdict {
    let decode = |bytes: &[u8]| {
        let mut reader = Reader::new("chunk format", bytes);
        ChunkFormat::decode(&mut reader).and_then(|format| reader.end().map(|()| format))
    };
    if let Ok(format) = decode(bytes)
        && let Ok(chunker) = Chunker::open(format)
    {
        assert_eq!(chunker.cut(&[0; 64]), None, "zeros are no hit");
    }
    value_survives(bytes, decode, |format| {
        let mut writer = Writer::new();
        format.encode(&mut writer);
        writer.finish()
    })
}

fn chunk_format_seeds() -> Vec<Seed> {
    let seed = |format: ChunkFormat| {
        let mut writer = Writer::new();
        format.encode(&mut writer);
        writer.finish()
    };
    let small = ChunkFormat::with_lengths(64, 256, 1024).expect("a format that can be made");
    vec![("usual", seed(ChunkFormat::default())), ("small", seed(small))]
}
