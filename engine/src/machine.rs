//! The state machine of every shard: counts references exactly, refuses what it must, applies row changes.
//!
//! Pure: from a command and the shard's tables to writes. The leader has decided *what* changes, under a latch, having
//! applied all earlier terms; here every replica checks that the decision still stands.

use crate::delta::{ChunkName, Command, Delta, Outcome, Payload, decode_rows};
use crate::keys::MetaSealer;
use futures::future::try_join_all;
use kiseki_types::LocalBoxFuture;
use kiseki_types::codec::Reader;
use kiseki_types::group::{Applied, ApplyError, LogPosition, StateMachine};
use kiseki_types::ids::PinEpoch;
use kiseki_types::table::{Scan, TableError, TableReader, TableWrite};
use std::rc::Rc;

/// File of a shard that holds its rows (names in a tenant's shard).
pub const ROWS_FILE: u8 = 0;

/// File of a tenant's shard that holds what needs no key: counts, fences, epochs.
pub const COUNTS_FILE: u8 = 1;

/// Table of [`COUNTS_FILE`]: chunk name -> how often this shard names it, never 0.
pub const COUNTS: u8 = 1;
/// Table of [`COUNTS_FILE`]: chunk name -> pin epoch that writers were given when the fence was set.
pub const FENCES: u8 = 2;
/// Table of [`COUNTS_FILE`]: chunk name -> nothing; the count fell to 0 and the home has to be told.
pub const CANDIDATES: u8 = 3;
/// Table of [`COUNTS_FILE`]: [`OPEN_EPOCH_KEY`] -> lowest pin epoch that is not closed.
pub const EPOCHS: u8 = 4;
/// Key in [`EPOCHS`].
pub const OPEN_EPOCH_KEY: &[u8] = b"open";

/// Fences that one epoch close forgets; the leader proposes it again for the rest.
pub const FENCES_FORGOTTEN_MAX: usize = 4096;

/// Fences that one epoch close looks at: those of the two latest epochs stay, so more than it forgets.
const FENCES_SCANNED_MAX: usize = 65_536;

/// The machine of one shard.
pub struct Machine {
    sealer: Option<Rc<MetaSealer>>,
    counts: bool,
}

impl Machine {
    /// For a tenant's shard: sealed payloads, counted references.
    #[must_use]
    pub fn of_tenant_shard(sealer: Rc<MetaSealer>) -> Machine {
        Machine { sealer: Some(sealer), counts: true }
    }
    /// For the control shard: sealed payloads, no references.
    #[must_use]
    pub fn of_control_shard(sealer: Rc<MetaSealer>) -> Machine {
        Machine { sealer: Some(sealer), counts: false }
    }
    /// For a home: clear payloads, no references.
    #[must_use]
    pub fn of_home() -> Machine {
        Machine { sealer: None, counts: false }
    }

    async fn decide(&self, at: LogPosition, command: &[u8], tables: &dyn TableReader) -> Result<Applied, ApplyError> {
        let command = Command::decode(command).map_err(|error| damaged(at, &error))?;
        match command {
            Command::Delta(delta) => self.delta(at, delta, tables).await,
            Command::Fence(name) => fence(name, tables).await,
            Command::Unfence(name) => Ok(done(0, vec![remove(FENCES, name.to_key())])),
            Command::ForgetCandidate(name) => Ok(done(0, vec![remove(CANDIDATES, name.to_key())])),
            Command::ClosePinEpochs(epoch) => close_epochs(epoch, tables).await,
        }
    }

    async fn delta(&self, at: LogPosition, delta: Delta, tables: &dyn TableReader) -> Result<Applied, ApplyError> {
        // Before any count is touched: a decision made in another term may rest on rows that have changed since.
        if delta.term != at.term {
            return Ok(refused(&Outcome::RefusedTerm));
        }
        let mut writes = Vec::new();
        if self.counts {
            // I-C2: the fences of closed epochs are forgotten, so what they would have refused is refused here. A delta
            // that names nothing meets no fence.
            if !delta.added.is_empty() && delta.pin_epoch < open_epoch(tables).await? {
                return Ok(refused(&Outcome::RefusedEpoch));
            }
            if let Some(name) = first_fenced(&delta.added, tables).await? {
                return Ok(refused(&Outcome::RefusedFenced(name))); // I-C2
            }
            writes = count_changes(at, &delta, tables).await?;
        }
        let rows = match (&delta.payload, &self.sealer) {
            (Payload::Clear(bytes), None) => decode_rows(bytes),
            (Payload::Sealed(bytes), Some(sealer)) => {
                let binding = Delta::binding(delta.namespace, delta.request);
                let opened = sealer.open(&binding, bytes).map_err(|error| damaged(at, &error))?;
                decode_rows(&opened)
            }
            _ => return Err(damaged(at, &"payload is clear where it must be sealed, or the reverse")),
        };
        for row in rows.map_err(|error| damaged(at, &error))? {
            writes.push(TableWrite { file: ROWS_FILE, table: row.table, key: row.key, value: row.value });
        }
        Ok(done(0, writes))
    }
}

impl StateMachine for Machine {
    fn apply<'a>(
        &'a self,
        at: LogPosition,
        command: &'a [u8],
        tables: &'a dyn TableReader,
    ) -> LocalBoxFuture<'a, Result<Applied, ApplyError>> {
        Box::pin(self.decide(at, command, tables))
    }
}

fn damaged(at: LogPosition, reason: &dyn std::fmt::Display) -> ApplyError {
    ApplyError::Damaged { index: at.index, reason: reason.to_string() }
}

fn done(count: u64, writes: Vec<TableWrite>) -> Applied {
    Applied { response: Outcome::Done { count }.encode(), writes }
}

fn refused(outcome: &Outcome) -> Applied {
    Applied { response: outcome.encode(), writes: Vec::new() }
}

fn put(table: u8, key: Vec<u8>, value: Vec<u8>) -> TableWrite {
    TableWrite { file: COUNTS_FILE, table, key, value: Some(value) }
}

fn remove(table: u8, key: Vec<u8>) -> TableWrite {
    TableWrite { file: COUNTS_FILE, table, key, value: None }
}

/// Lowest pin epoch that the shard has not closed.
pub async fn open_epoch(tables: &dyn TableReader) -> Result<PinEpoch, TableError> {
    let row = tables.get(COUNTS_FILE, EPOCHS, OPEN_EPOCH_KEY).await?;
    row.as_deref().map_or(Ok(0), read_u64).map(PinEpoch)
}

/// The pin epoch that a write starting now states: the one above the lowest open one, so that closing an epoch leaves the
/// writers of the latest one alone.
pub async fn current_epoch(tables: &dyn TableReader) -> Result<PinEpoch, TableError> {
    Ok(PinEpoch(open_epoch(tables).await?.0 + 1))
}

/// How often the shard names a generation.
pub async fn count_of(name: ChunkName, tables: &dyn TableReader) -> Result<u64, TableError> {
    tables.get(COUNTS_FILE, COUNTS, &name.to_key()).await?.as_deref().map_or(Ok(0), read_u64)
}

/// A count or an epoch. No row is 0; a row that holds no number is damage: read as 0 it would free what is named.
fn read_u64(bytes: &[u8]) -> Result<u64, TableError> {
    let damaged = || {
        let reason = format!("a count or an epoch is damaged: {} bytes", bytes.len());
        TableError::File { file: "counts".to_owned(), reason }
    };
    let number = Reader::new("number", bytes.get(..8).filter(|_| bytes.len() == 8).ok_or_else(damaged)?).counter();
    number.map_err(|_| damaged())
}

async fn first_fenced(added: &[(ChunkName, u32)], tables: &dyn TableReader) -> Result<Option<ChunkName>, TableError> {
    let fences = added.iter().map(|(name, _)| tables.get(COUNTS_FILE, FENCES, &name.to_key()));
    let found = try_join_all(fences).await?;
    Ok(added.iter().zip(found).find(|(_, fence)| fence.is_some()).map(|((name, _), _)| *name))
}

async fn count_changes(
    at: LogPosition,
    delta: &Delta,
    tables: &dyn TableReader,
) -> Result<Vec<TableWrite>, ApplyError> {
    let mut changes = std::collections::BTreeMap::<ChunkName, i64>::new();
    for (name, count) in &delta.added {
        *changes.entry(*name).or_default() += i64::from(*count);
    }
    for (name, count) in &delta.dropped {
        *changes.entry(*name).or_default() -= i64::from(*count);
    }
    let counts = try_join_all(changes.keys().map(|name| count_of(*name, tables))).await?;
    let mut writes = Vec::with_capacity(changes.len() * 2);
    for ((name, change), before) in changes.into_iter().zip(counts) {
        let after = before
            .checked_add_signed(change)
            .ok_or_else(|| damaged(at, &format!("I-C2: {name:?} is named {before} times, changed by {change}")))?;
        if after == 0 {
            writes.push(remove(COUNTS, name.to_key()));
            writes.push(put(CANDIDATES, name.to_key(), Vec::new()));
        } else {
            writes.push(put(COUNTS, name.to_key(), after.to_le_bytes().to_vec()));
            if before == 0 {
                writes.push(remove(CANDIDATES, name.to_key()));
            }
        }
    }
    Ok(writes)
}

async fn fence(name: ChunkName, tables: &dyn TableReader) -> Result<Applied, ApplyError> {
    // Whoever pinned the generation did so before the fence, so the epoch that it states is at most this one.
    let epoch = current_epoch(tables).await?;
    let count = count_of(name, tables).await?;
    Ok(done(count, vec![put(FENCES, name.to_key(), epoch.0.to_le_bytes().to_vec())]))
}

async fn close_epochs(epoch: PinEpoch, tables: &dyn TableReader) -> Result<Applied, ApplyError> {
    let open = open_epoch(tables).await?;
    // Only the epoch that is given out can become the lowest open one, so that a command that comes late closes nothing.
    if epoch.0 != open.0 && epoch.0 != open.0 + 1 {
        return Ok(done(0, Vec::new()));
    }
    // A delta that could meet one of these fences states a closed epoch and is refused for that (DESIGN, collection).
    let fences = tables.scan(Scan::prefix(COUNTS_FILE, FENCES, &[], FENCES_SCANNED_MAX)).await?;
    let mut writes = Vec::new();
    for (key, set_in) in fences {
        if read_u64(&set_in)? < epoch.0 && writes.len() < FENCES_FORGOTTEN_MAX {
            writes.push(remove(FENCES, key));
        }
    }
    let forgotten = writes.len() as u64;
    if epoch != open {
        writes.push(put(EPOCHS, OPEN_EPOCH_KEY.to_vec(), epoch.0.to_le_bytes().to_vec()));
    }
    Ok(done(forgotten, writes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn i_c2_a_damaged_count_is_an_error_and_never_0() {
        assert_eq!(read_u64(&7u64.to_le_bytes()).ok(), Some(7));
        for bytes in [&[][..], &[1; 7], &[1; 9], &u64::MAX.to_le_bytes()] {
            assert!(read_u64(bytes).is_err(), "{bytes:?}");
        }
    }
}
