//! What every shard's leader does: wait until reads are linearizable, decide under latches, propose a delta.

use crate::api::StoreError;
use crate::delta::{ChunkName, Command, Delta, Outcome, Payload, ROWS_PER_DELTA_MAX, RowChange, encode_rows};
use crate::keys::MetaSealer;
use crate::latch::Latches;
use crate::machine::ROWS_FILE;
use crate::request_log::RequestLog;
use kiseki_types::Ports;
use kiseki_types::group::{ProposeError, RaftGroup, node_of};
use kiseki_types::ids::{NamespaceId, NodeId, PinEpoch, RequestId, ShardId, Term};
use kiseki_types::runtime::RuntimeExt;
use kiseki_types::table::{Row, Scan, TableError, TableReader};
use std::collections::BTreeSet;
use std::rc::Rc;

/// Times that a decision is made again because the term changed under it.
pub const DECISIONS_MAX: usize = 4;

/// A change as a leader decides it, before it is sealed.
#[derive(Default)]
pub struct Draft {
    /// Bound into the sealed payload.
    pub namespace: NamespaceId,
    /// Oldest pin epoch relied upon.
    pub pin_epoch: PinEpoch,
    /// References added.
    pub added: Vec<(ChunkName, u32)>,
    /// References dropped.
    pub dropped: Vec<(ChunkName, u32)>,
    /// Bytes that become visible.
    pub added_bytes: u64,
    /// Bytes that vanish.
    pub dropped_bytes: u64,
    /// Row changes.
    pub rows: Vec<RowChange>,
    /// The request that this carries out, where it may be asked again.
    pub request: Option<RequestId>,
    /// What is remembered with it, to be answered then.
    pub answer: Vec<u8>,
}

/// Why a draft was not applied.
#[derive(Debug)]
pub enum CommitError {
    /// The term changed: decide again.
    Again,
    /// A generation that the draft names is fenced.
    Fenced(ChunkName),
    /// The pins are of a closed epoch.
    EpochClosed,
    /// Anything else.
    Store(StoreError),
}

impl From<StoreError> for CommitError {
    fn from(error: StoreError) -> CommitError {
        CommitError::Store(error)
    }
}

/// The leader's side of one shard, on the core that holds it.
#[derive(Clone)]
pub struct Leader {
    ports: Ports,
    group: Rc<dyn RaftGroup>,
    sealer: Option<Rc<MetaSealer>>,
    /// The term that this leader leads in; nothing of it outlives that.
    term: Term,
    /// Latches of this shard.
    pub latches: Latches,
    /// Requests that were carried out.
    pub requests: RequestLog,
}

impl Leader {
    /// - `sealer` seals payloads; `None` for a home.
    /// - `term`: everything that was committed in earlier ones is applied.
    #[must_use]
    pub fn new(ports: Ports, group: Rc<dyn RaftGroup>, sealer: Option<Rc<MetaSealer>>, term: Term) -> Leader {
        Leader { ports, group, sealer, term, latches: Latches::default(), requests: RequestLog::default() }
    }

    /// The ports of this core.
    #[must_use]
    pub fn ports(&self) -> &Ports {
        &self.ports
    }

    /// Which shard.
    #[must_use]
    pub fn shard(&self) -> ShardId {
        self.group.shard()
    }

    /// The term that it leads in.
    #[must_use]
    pub fn term(&self) -> Term {
        self.term
    }

    /// The nodes that vote, as far as this replica knows.
    #[must_use]
    pub fn voters(&self) -> BTreeSet<NodeId> {
        self.group.voters().into_iter().map(node_of).collect()
    }

    /// Waits until reads are linearizable; the term that decisions rest on. Latches and everything else that is
    /// remembered beside the tables are of one term: in another one this leader decides nothing any more.
    pub async fn barrier(&self) -> Result<Term, StoreError> {
        let term = self.group.read_barrier().await.map_err(unavailable)?;
        match term == self.term {
            true => Ok(term),
            false => Err(StoreError::Unsettled {
                reason: format!("shard {} has changed its leader; try again", self.group.shard()),
            }),
        }
    }

    /// The shard's tables.
    #[must_use]
    pub fn tables(&self) -> Rc<dyn TableReader> {
        self.group.tables()
    }

    /// A row of the rows file.
    pub async fn row(&self, table: u8, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        self.tables().get(ROWS_FILE, table, key).await.map_err(table_failed)
    }

    /// Rows of the rows file by prefix.
    pub async fn rows(&self, table: u8, prefix: &[u8], limit: usize) -> Result<Vec<Row>, StoreError> {
        self.scan(Scan::prefix(ROWS_FILE, table, prefix, limit)).await
    }

    /// Rows of any file.
    pub async fn scan(&self, scan: Scan) -> Result<Vec<Row>, StoreError> {
        self.tables().scan(scan).await.map_err(table_failed)
    }

    /// Seals, proposes and waits for the result.
    pub async fn commit(&self, term: Term, mut draft: Draft) -> Result<(), CommitError> {
        let noted = draft.request.map(|id| {
            let (number, row) = self.requests.note(id, std::mem::take(&mut draft.answer));
            draft.rows.push(row);
            number
        });
        assert!(draft.rows.len() <= ROWS_PER_DELTA_MAX, "a draft has {} rows", draft.rows.len());
        let request = draft.request.unwrap_or_else(|| RequestId(self.ports.random()));
        let rows = encode_rows(&draft.rows);
        let payload = match &self.sealer {
            Some(sealer) => Payload::Sealed(sealer.seal(&Delta::binding(draft.namespace, request), &rows)),
            None => Payload::Clear(rows),
        };
        let delta = Delta {
            term,
            pin_epoch: draft.pin_epoch,
            request,
            namespace: draft.namespace,
            added: draft.added,
            dropped: draft.dropped,
            added_bytes: draft.added_bytes,
            dropped_bytes: draft.dropped_bytes,
            payload,
        };
        let proposed = self.group.propose(Command::Delta(delta).encode()).await;
        if let (Some(number), Err(ProposeError::NotLeader { .. } | ProposeError::TooLong { .. })) = (noted, &proposed) {
            self.requests.refused(number); // nothing happened; of another error that is not known
        }
        let outcome = outcome_of(&proposed.map_err(unavailable)?)?;
        match (noted, &outcome) {
            (Some(number), Outcome::Done { .. }) => self.requests.done(number),
            (Some(number), _) => self.requests.refused(number),
            (None, _) => {}
        }
        match outcome {
            Outcome::Done { .. } => Ok(()),
            Outcome::RefusedTerm => Err(CommitError::Again),
            Outcome::RefusedEpoch => Err(CommitError::EpochClosed),
            Outcome::RefusedFenced(name) => Err(CommitError::Fenced(name)),
        }
    }

    /// Proposes a command and waits for its outcome.
    pub async fn propose(&self, command: &Command) -> Result<Outcome, StoreError> {
        outcome_of(&self.group.propose(command.encode()).await.map_err(unavailable)?)
    }
}

fn outcome_of(response: &[u8]) -> Result<Outcome, StoreError> {
    Outcome::decode(response).map_err(|error| StoreError::Damaged { reason: error.to_string() })
}

/// A group's refusal in the engine's terms.
#[must_use]
pub fn unavailable(error: ProposeError) -> StoreError {
    match error {
        ProposeError::TooLong { .. } => StoreError::Unavailable { reason: error.to_string() },
        // Another replica leads, or soon will.
        error => StoreError::Unsettled { reason: error.to_string() },
    }
}

/// A table's failure in the engine's terms.
#[must_use]
pub fn table_failed(error: TableError) -> StoreError {
    StoreError::Unavailable { reason: error.to_string() }
}

/// A row that can't be decoded, in the engine's terms.
#[must_use]
pub fn row_damaged(error: kiseki_types::codec::CodecError) -> StoreError {
    StoreError::Damaged { reason: error.to_string() }
}
