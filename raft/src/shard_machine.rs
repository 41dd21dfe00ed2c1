//! openraft's state machine on a shard's tables: committed commands go through the shard's own logic into its table
//! files, in order, each with the position that it makes durable.
//!
//! A table set's *position* is the index of the last applied entry plus one, so that 0 is "nothing".

use crate::error::RaftError;
use crate::log_store::GroupLogStore;
use crate::log_store::record::{decode_applied, encode_applied, encode_membership};
use crate::release::Release;
use crate::snapshot::SnapshotData;
use crate::table_set::TableSet;
use crate::times::{RaftStep, RaftTimes};
use crate::type_config::{Entry, LogId, Response, SnapshotMeta, StoredMembership, TypeConfig, term_of};
use futures::StreamExt;
use kiseki_types::group::{LogPosition, StateMachine};
use kiseki_types::runtime::Ports;
use kiseki_types::{ShardId, Term};
use openraft::storage::{EntryResponder, RaftSnapshotBuilder, RaftStateMachine};
use openraft::{EntryPayload, OptionalSend, Snapshot};
use std::cell::{Cell, RefCell};
use std::io;
use std::rc::Rc;

/// Key of the meta row that holds the last applied entry and the membership.
pub const META_APPLIED: &[u8] = b"raft";

/// Bytes in the overlay at which applying waits for a checkpoint.
const OVERLAY_LEN_BYTES_MAX: usize = 32 * 1024 * 1024;

/// Rows in the overlay at which applying waits for a checkpoint.
const OVERLAY_ROWS_MAX: usize = 128 * 1024;

/// Entries applied before other tasks of the core get a turn.
const ENTRIES_PER_TURN: usize = 32;

/// What a shard's state machine needs.
#[derive(Clone)]
pub(crate) struct MachineParts {
    /// The shard.
    pub shard: ShardId,
    /// Ports of the core.
    pub ports: Ports,
    /// Its tables.
    pub tables: TableSet,
    /// Its logic.
    pub machine: Rc<dyn StateMachine>,
    /// Counts snapshots of others that took the place of the tables.
    pub snapshots_installed: Rc<Cell<u64>>,
    /// Has the log let go of what is applied, where there are no peers.
    pub release: Rc<Release>,
    /// See [`crate::group::GroupSettings`].
    pub kept_alone_len_bytes: u64,
    /// How long entries took.
    pub times: Rc<RaftTimes>,
}

struct Shared {
    parts: MachineParts,
    log: GroupLogStore,
    /// False once the group is rebuilt: an older instance must not touch the tables any more.
    alive: Rc<Cell<bool>>,
    applied: RefCell<Option<LogId>>,
    membership: RefCell<StoredMembership>,
    /// The membership as the meta row has it.
    membership_bytes: RefCell<Vec<u8>>,
    /// Whether there are other members.
    has_peers: Cell<bool>,
    snapshot: RefCell<Option<SnapshotMeta>>,
}

/// openraft's view of a shard's tables. A clone is another handle.
#[derive(Clone)]
pub struct ShardMachine {
    shared: Rc<Shared>,
}

/// The last applied entry and the membership, as the tables tell.
pub fn applied_in(tables: &TableSet) -> Result<(Option<LogId>, StoredMembership), RaftError> {
    match tables.meta(META_APPLIED) {
        None => Ok((None, StoredMembership::default())),
        Some(row) => {
            let (applied, membership) = decode_applied(&row)?;
            Ok((Some(applied), membership))
        }
    }
}

impl ShardMachine {
    /// The machine, going on where the tables stand.
    ///
    /// Errors: the tables' meta row is damaged, or does not belong to the tables' position.
    pub(crate) fn new(
        parts: MachineParts,
        log: GroupLogStore,
        alive: Rc<Cell<bool>>,
    ) -> Result<ShardMachine, RaftError> {
        let (applied, membership) = applied_in(&parts.tables)?;
        let position = applied.map_or(0, |id| id.index + 1);
        if position != parts.tables.applied_position() {
            let reason =
                format!("the tables stand at {}, their meta row at {position}", parts.tables.applied_position());
            return Err(RaftError::Lost { shard: parts.shard, reason });
        }
        let snapshot = durable_meta(&parts.tables, applied, &membership);
        let shared = Shared {
            parts,
            log,
            alive,
            applied: RefCell::new(applied),
            membership: RefCell::default(),
            membership_bytes: RefCell::default(),
            has_peers: Cell::new(false),
            snapshot: RefCell::new(snapshot),
        };
        shared.set_membership(membership);
        Ok(ShardMachine { shared: Rc::new(shared) })
    }

    async fn apply_one(&self, entry: Entry) -> Result<Response, io::Error> {
        let shared = &self.shared;
        let tables = &shared.parts.tables;
        let position = entry.log_id.index + 1;
        if position <= tables.applied_position() {
            return Ok(Response::default()); // a replay of what the tables hold already
        }
        shared.log.entry_flushed(entry.log_id.index).await?;
        let applied = match entry.payload {
            EntryPayload::Blank => kiseki_types::group::Applied::default(),
            EntryPayload::Membership(membership) => {
                shared.set_membership(StoredMembership::new(Some(entry.log_id), membership));
                kiseki_types::group::Applied::default()
            }
            EntryPayload::Normal(command) => {
                if !shared.has_peers.get() {
                    shared.parts.release.applied(command.0.len(), shared.parts.kept_alone_len_bytes);
                }
                let at = LogPosition { term: Term(term_of(&entry.log_id)), index: entry.log_id.index };
                let since = shared.parts.ports.now();
                let applied = shared.parts.machine.apply(at, &command.0, tables).await.map_err(io::Error::other)?;
                shared.parts.times.ended(RaftStep::Apply, since, &shared.parts.ports);
                applied
            }
        };
        if !shared.alive.get() {
            return Err(self.stopped());
        }
        let meta = encode_applied(entry.log_id, &shared.membership_bytes.borrow());
        tables.apply(position, applied.writes, vec![(META_APPLIED.to_vec(), meta)]);
        if let Some(failure) = tables.failure() {
            return Err(io::Error::other(failure)); // a fenced set takes no writes: nothing was applied
        }
        shared.applied.replace(Some(entry.log_id));
        Ok(Response(applied.response))
    }

    fn stopped(&self) -> io::Error {
        let reason = "the group was rebuilt".to_owned();
        RaftError::Stopped { shard: self.shared.parts.shard, reason }.into()
    }

    /// Waits while the tables hold too much in memory.
    async fn keep_overlay_small(&self) -> Result<(), io::Error> {
        let tables = &self.shared.parts.tables;
        if tables.overlay_bytes() > OVERLAY_LEN_BYTES_MAX || tables.overlay_rows() > OVERLAY_ROWS_MAX {
            tables.checkpoint().await.map_err(io::Error::other)?;
        }
        Ok(())
    }

    fn meta_now(&self) -> SnapshotMeta {
        SnapshotMeta {
            last_log_id: *self.shared.applied.borrow(),
            last_membership: self.shared.membership.borrow().clone(),
        }
    }
}

impl Shared {
    fn set_membership(&self, membership: StoredMembership) {
        self.membership_bytes.replace(encode_membership(&membership));
        self.has_peers.set(membership.membership().nodes().nth(1).is_some());
        self.membership.replace(membership);
    }
}

/// The tables' durable state as a snapshot; nothing before the first checkpoint.
fn durable_meta(tables: &TableSet, applied: Option<LogId>, membership: &StoredMembership) -> Option<SnapshotMeta> {
    let applied = applied.filter(|id| id.index < tables.durable_position())?;
    Some(SnapshotMeta { last_log_id: Some(applied), last_membership: membership.clone() })
}

/// Makes a durable snapshot: a checkpoint of the tables.
pub struct ShardSnapshotBuilder {
    machine: ShardMachine,
}

impl RaftSnapshotBuilder<TypeConfig> for ShardSnapshotBuilder {
    type SnapshotData = SnapshotData;

    async fn build_snapshot(&mut self) -> Result<SmSnapshot, io::Error> {
        let shared = &self.machine.shared;
        let meta = self.machine.meta_now();
        shared.parts.tables.checkpoint().await.map_err(io::Error::other)?;
        if !shared.alive.get() {
            return Err(self.machine.stopped());
        }
        let position = meta.last_log_id.map_or(0, |id| id.index + 1);
        let durable = shared.parts.tables.durable_position();
        assert!(durable >= position, "I-L4: snapshot at {position}, tables durable to {durable}");
        shared.snapshot.replace(Some(meta.clone()));
        Ok(Snapshot { meta, snapshot: SnapshotData::Local(shared.parts.tables.clone()) })
    }
}

/// A snapshot with its meta.
pub type SmSnapshot = openraft::alias::SnapshotOf<TypeConfig, SnapshotData>;

impl RaftStateMachine<TypeConfig> for ShardMachine {
    type SnapshotData = SnapshotData;
    type SnapshotBuilder = ShardSnapshotBuilder;

    async fn applied_state(&mut self) -> Result<(Option<LogId>, StoredMembership), io::Error> {
        Ok((*self.shared.applied.borrow(), self.shared.membership.borrow().clone()))
    }

    async fn apply<Strm>(&mut self, mut entries: Strm) -> Result<(), io::Error>
    where
        Strm: futures::Stream<Item = Result<EntryResponder<TypeConfig>, io::Error>> + Unpin + OptionalSend,
    {
        let mut applied_in_turn = 0;
        while let Some(next) = entries.next().await {
            let (entry, responder) = next?;
            if !self.shared.alive.get() {
                return Err(self.stopped());
            }
            let response = self.apply_one(entry).await?;
            if let Some(responder) = responder {
                responder.send(response);
            }
            applied_in_turn += 1;
            if applied_in_turn % ENTRIES_PER_TURN == 0 {
                self.shared.parts.ports.yield_now().await;
            }
            self.keep_overlay_small().await?;
        }
        Ok(())
    }

    async fn get_snapshot_builder(&mut self) -> ShardSnapshotBuilder {
        ShardSnapshotBuilder { machine: self.clone() }
    }

    async fn install_snapshot(&mut self, meta: &SnapshotMeta, snapshot: SnapshotData) -> Result<(), io::Error> {
        let shared = &self.shared;
        let (SnapshotData::Received(import), Some(last)) = (snapshot, meta.last_log_id) else {
            return Err(io::Error::other("a durable snapshot is the tables themselves; it is never installed"));
        };
        if !shared.alive.get() {
            return Err(self.stopped());
        }
        // I-L10: without this note a crash behind the swap would look like a lost log.
        shared.log.announce_snapshot(last).await?;
        shared.parts.tables.idle().await;
        // The group may have been rebuilt meanwhile, and its next instance reads the tables and receives snapshots by itself.
        // From here on nothing is waited for until the installation counts as under way.
        if !shared.alive.get() {
            return Err(self.stopped());
        }
        shared.parts.tables.install(*import).await.map_err(io::Error::other)?;
        let installed = &shared.parts.snapshots_installed;
        installed.set(installed.get() + 1);
        shared.applied.replace(Some(last));
        shared.set_membership(meta.last_membership.clone());
        shared.snapshot.replace(Some(meta.clone()));
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<SmSnapshot>, io::Error> {
        let meta = self.shared.snapshot.borrow().clone();
        Ok(meta.map(|meta| Snapshot { meta, snapshot: SnapshotData::Local(self.shared.parts.tables.clone()) }))
    }
}
