//! Which requests a shard has carried out, so that one that is asked again gets the first answer instead of being done twice, or
//! of failing on what its own first time left behind.
//!
//! The row that remembers a request travels in the delta that carries it out, so both are committed or neither is, every replica
//! has it, and snapshots carry it. A shard remembers the last [`REMEMBERED`] requests in as many slots, the next one over the
//! oldest. No clock decides: a caller says how far the shard had counted before it asked for the first time ([`Mark`]),
//! and where more has been counted since than is remembered, whether the request was done is not known any more, so it
//! is not done again.
//!
//! The second asking never runs while the first may still be committed:
//! - at the same leader it waits until the first has ended; a proposal whose end is not known keeps its number, and as
//!   long as its row is not applied nobody is told anything but "not known yet";
//! - at another leader, what the first leader proposed is either applied by now, since a leader takes requests only when it
//!   has applied everything of earlier terms, or it never will be: what it did not find in its log no majority holds,
//!   and a delta that commits in another term than it was decided in is refused by every replica.

use crate::api::StoreError;
use crate::delta::RowChange;
use crate::leader::{row_damaged, table_failed};
use crate::machine::ROWS_FILE;
use futures::FutureExt;
use futures::channel::oneshot;
use futures::future::Shared;
use kiseki_types::codec::{CodecError, Reader, Writer};
use kiseki_types::ids::RequestId;
use kiseki_types::table::{Scan, TableReader};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

/// Table of the sealed rows of a shard: slot -> the request that was carried out under a number of that slot.
pub const REQUESTS: u8 = 64;

/// Requests that a shard remembers: some seconds of the busiest, which is longer than an election takes.
pub const REMEMBERED: u64 = 8192;

/// Longest answer that is remembered, in bytes.
pub const ANSWER_LEN_BYTES_MAX: usize = 16 * 1024;

/// Version of the rows.
const FORMAT: u8 = 1;

/// How far a shard has counted its requests: whatever is asked after this was heard gets a number that is not below it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Mark(pub u64);

/// What makes one request out of several askings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RequestStamp {
    /// The request.
    pub id: RequestId,
    /// How far the shard had counted before it was asked for the first time.
    pub seen: Mark,
}

/// What becomes of a request that arrives.
pub(crate) enum Entered {
    /// Nothing of it happened: carry it out, and keep this until it has ended.
    First(Running),
    /// It was done; the answer that was remembered with it.
    Done(Vec<u8>),
}

/// A request that is being carried out. When it is dropped, whoever asked the same meanwhile goes on.
pub(crate) struct Running {
    log: RequestLog,
    id: RequestId,
    _ended: oneshot::Sender<()>,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.log.known.borrow_mut().running.remove(&self.id);
    }
}

/// The requests of one shard, as its leader knows them.
#[derive(Clone, Default)]
pub struct RequestLog {
    known: Rc<RefCell<Known>>,
}

#[derive(Default)]
struct Known {
    /// The next number.
    next: u64,
    /// Behind the highest number that is committed.
    mark: u64,
    numbers: BTreeMap<RequestId, u64>,
    ids: BTreeMap<u64, RequestId>,
    running: BTreeMap<RequestId, Shared<oneshot::Receiver<()>>>,
}

impl Known {
    fn insert(&mut self, number: u64, id: RequestId) {
        self.numbers.insert(id, number);
        self.ids.insert(number, id);
        while let Some(oldest) = self.ids.first_entry().filter(|oldest| *oldest.key() + REMEMBERED <= number) {
            let (number, id) = oldest.remove_entry();
            if self.numbers.get(&id) == Some(&number) {
                self.numbers.remove(&id);
            }
        }
    }
}

impl RequestLog {
    /// Takes up what the shard remembers. What a leader does before it takes requests, with everything of earlier terms applied.
    pub(crate) async fn load(&self, tables: &dyn TableReader) -> Result<(), StoreError> {
        let rows = tables.scan(Scan::prefix(ROWS_FILE, REQUESTS, &[], REMEMBERED as usize)).await;
        let mut known = Known::default();
        let mut remembered = BTreeMap::new();
        for (_, value) in rows.map_err(table_failed)? {
            let row = Remembered::decode(&value).map_err(row_damaged)?;
            remembered.insert(row.number, row.id);
        }
        known.next = remembered.last_key_value().map_or(0, |(number, _)| number + 1);
        known.mark = known.next;
        remembered.into_iter().for_each(|(number, id)| known.insert(number, id));
        self.known.replace(known);
        Ok(())
    }

    /// How far the shard has counted. Only what is committed counts: a later leader numbers on from there.
    pub(crate) fn mark(&self) -> Mark {
        Mark(self.known.borrow().mark)
    }

    /// A request arrives.
    ///
    /// Errors: `Unsettled` while nobody knows whether its first time will be committed; `Unavailable` when it is too long ago for
    /// the shard to know.
    pub(crate) async fn enter(&self, stamp: RequestStamp, tables: &dyn TableReader) -> Result<Entered, StoreError> {
        let running = self.register(stamp.id).await;
        let (number, next) = {
            let known = self.known.borrow();
            (known.numbers.get(&stamp.id).copied(), known.next)
        };
        let Some(number) = number else {
            // Whoever asks for the first time may be one whose message was long on its way, and who has asked again meanwhile.
            if stamp.seen.0.saturating_add(REMEMBERED) < next {
                let reason = format!(
                    "whether the change was made is not known any more: it was first asked for more than {REMEMBERED} requests \
                     ago; look, and ask anew"
                );
                return Err(StoreError::Unavailable { reason });
            }
            return Ok(Entered::First(running));
        };
        let row = tables.get(ROWS_FILE, REQUESTS, &slot(number)).await.map_err(table_failed)?;
        let row = row.map(|bytes| Remembered::decode(&bytes).map_err(row_damaged)).transpose()?;
        match row.filter(|row| row.id == stamp.id) {
            Some(row) => Ok(Entered::Done(row.answer)),
            None => Err(StoreError::Unsettled { reason: "the change may still be made".to_owned() }),
        }
    }

    /// Waits until nobody carries the request out, and takes it.
    async fn register(&self, id: RequestId) -> Running {
        loop {
            let other = self.known.borrow().running.get(&id).cloned();
            match other {
                Some(ended) => drop(ended.await),
                None => break,
            }
        }
        let (sender, receiver) = oneshot::channel();
        self.known.borrow_mut().running.insert(id, receiver.shared());
        Running { log: self.clone(), id, _ended: sender }
    }

    /// Gives a request that is about to be proposed its number, and the row that remembers it.
    pub(crate) fn note(&self, id: RequestId, answer: Vec<u8>) -> (u64, RowChange) {
        debug_assert!(answer.len() <= ANSWER_LEN_BYTES_MAX);
        let mut known = self.known.borrow_mut();
        let number = known.next;
        known.next += 1;
        known.insert(number, id);
        (number, RowChange::put(REQUESTS, slot(number), Remembered { number, id, answer }.encode()))
    }

    /// It is committed and applied.
    pub(crate) fn done(&self, number: u64) {
        let mut known = self.known.borrow_mut();
        known.mark = known.mark.max(number + 1);
    }

    /// It is not committed and never will be.
    pub(crate) fn refused(&self, number: u64) {
        let mut known = self.known.borrow_mut();
        if let Some(id) = known.ids.remove(&number)
            && known.numbers.get(&id) == Some(&number)
        {
            known.numbers.remove(&id);
        }
    }
}

fn slot(number: u64) -> Vec<u8> {
    ((number % REMEMBERED) as u16).to_be_bytes().to_vec()
}

const _: () = assert!(REMEMBERED <= 1 << 16);

/// A row of [`REQUESTS`]. Byte layout: `docs/formats/delta.md`.
#[derive(Debug, PartialEq, Eq)]
struct Remembered {
    number: u64,
    id: RequestId,
    answer: Vec<u8>,
}

impl Remembered {
    fn encode(&self) -> Vec<u8> {
        let mut writer = Writer::new();
        writer.u8(FORMAT).u64(self.number).raw(&self.id.0).bytes(&self.answer);
        writer.finish()
    }

    fn decode(bytes: &[u8]) -> Result<Remembered, CodecError> {
        let mut reader = Reader::new("remembered request", bytes);
        let format = reader.u8()?;
        if format != FORMAT {
            return Err(reader.unknown(u64::from(format)));
        }
        let number = reader.counter()?;
        let id = RequestId(reader.array()?);
        let answer = reader.bytes(ANSWER_LEN_BYTES_MAX)?.to_vec();
        reader.end()?;
        Ok(Remembered { number, id, answer })
    }
}

/// A row decoded and encoded again, for `crate::fuzzing`.
pub(crate) fn fuzz_remembered(bytes: &[u8]) -> Option<Vec<u8>> {
    Remembered::decode(bytes).ok().map(|row| row.encode())
}

/// Such a row, for `crate::fuzzing`.
pub(crate) fn fuzz_remembered_seed() -> Vec<u8> {
    Remembered { number: 7, id: RequestId([3; 16]), answer: vec![1, 2, 3] }.encode()
}

#[cfg(test)]
mod tests;
