//! What repair and scrub need of a home: its generations one after the other, a guard that keeps one of them from being
//! collected while it is repaired, and how far scrub has come.

use super::{FORMAT, GENERATIONS, GenerationRecord, GenerationState, HomeService, STATE};
use crate::api::StoreError;
use crate::delta::{ChunkName, RowChange};
use crate::evacuation::{EvacuationAnswer, MoveOutlook};
use crate::leader::{Draft, row_damaged};
use crate::machine::ROWS_FILE;
use crate::repair::StripeRecord;
use kiseki_types::codec::{CodecError, Reader, Writer};
use kiseki_types::fragment::FragmentError;
use kiseki_types::ids::{ShardId, Term};
use kiseki_types::table::{Direction, Scan};
use std::collections::BTreeSet;
use std::ops::Bound;
use std::rc::Rc;

const SCRUB_KEY: &[u8] = b"scrub";

/// A generation that writers rely on or may soon.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeldGeneration {
    /// Its name.
    pub name: ChunkName,
    /// What its stripe looks like.
    pub stripe: StripeRecord,
    /// Whether a committed delta names it; otherwise its writer may still be writing, or it is condemned and may be named
    /// where nobody answers.
    pub is_complete: bool,
}

/// Part of a home's generations.
pub struct GenerationBatch {
    /// Those that are not being freed.
    pub held: Vec<HeldGeneration>,
    /// Where the next batch starts; `None` at the end.
    pub next: Option<ChunkName>,
}

/// Whether a stripe may be repaired now.
pub enum RepairPermit {
    /// Yes, for as long as the guard lives.
    Granted(RepairGuard, StripeRecord),
    /// Its writer is not done, or it is being freed: ask again later.
    NotYet,
    /// The home does not know it any more.
    Gone,
}

/// Keeps a generation from being collected (I-C2): without it a repair could write fragments of a generation that has
/// just been freed, and nobody would ever free those.
pub struct RepairGuard {
    home: Rc<HomeService>,
    name: ChunkName,
    /// The term in which the home let it be repaired.
    term: Term,
    is_condemned: bool,
}

impl RepairGuard {
    /// Whether it was being collected when it was let be repaired: then it may have been given up half written.
    #[must_use]
    pub fn is_condemned(&self) -> bool {
        self.is_condemned
    }

    /// Asked right before a fragment is freed: errors unless this node still leads the home in the same term. Another leader
    /// may have let another repair have the stripe.
    pub async fn check(&self) -> Result<(), FragmentError> {
        let unknown = |reason: String| FragmentError::Unknown { reason };
        match self.home.leader.barrier().await {
            Ok(term) if term == self.term => Ok(()),
            Ok(term) => Err(unknown(format!("the home is led in {term} now, its repair began in {}", self.term))),
            Err(error) => Err(unknown(error.to_string())),
        }
    }
}

impl Drop for RepairGuard {
    fn drop(&mut self) {
        self.home.repairing.borrow_mut().remove(&self.name);
    }
}

/// How far scrub has come in a home. Times are of the wall clock: a jump makes a pass come early or late, no more.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ScrubMark {
    /// When the pass began; 0 when none ever did.
    pub started_unix_ms: u64,
    /// When the last whole pass ended; 0 when none has.
    pub finished_unix_ms: u64,
    /// The last generation that was checked; `None` between passes.
    pub after: Option<ChunkName>,
}

impl ScrubMark {
    fn encode(&self) -> Vec<u8> {
        let mut writer = Writer::new();
        writer.u8(FORMAT).u64(self.started_unix_ms).u64(self.finished_unix_ms);
        writer.u8(u8::from(self.after.is_some()));
        if let Some(name) = self.after {
            writer.raw(&name.to_key());
        }
        writer.finish()
    }

    fn decode(bytes: &[u8]) -> Result<ScrubMark, CodecError> {
        let mut reader = Reader::new("scrub mark", bytes);
        let format = reader.u8()?;
        if format != FORMAT {
            return Err(reader.unknown(u64::from(format)));
        }
        let (started_unix_ms, finished_unix_ms) = (reader.u64()?, reader.u64()?);
        let after = match reader.u8()? {
            0 => None,
            _ => Some(ChunkName::from_key(&reader.array::<40>()?)?),
        };
        reader.end()?;
        Ok(ScrubMark { started_unix_ms, finished_unix_ms, after })
    }
}

impl GenerationRecord {
    fn stripe(&self) -> StripeRecord {
        StripeRecord { pool: self.pool, shape: self.shape, envelope_len_bytes: self.envelope_len_bytes }
    }
}

/// Generations that repairs have.
pub(super) type Repairing = BTreeSet<ChunkName>;

impl HomeService {
    /// Which home this is.
    #[must_use]
    pub fn shard(&self) -> ShardId {
        self.leader.shard()
    }

    /// Generations behind `after`, in the order of their names.
    ///
    /// - `limit`: rows that are looked at; fewer generations are returned when some are being freed.
    pub async fn generations_after(
        &self,
        after: Option<ChunkName>,
        limit: usize,
    ) -> Result<GenerationBatch, StoreError> {
        self.leader.barrier().await?;
        let scan = Scan {
            file: ROWS_FILE,
            table: GENERATIONS,
            from: after.map_or(Bound::Unbounded, |name| Bound::Excluded(name.to_key())),
            to: Bound::Unbounded,
            limit,
            direction: Direction::Forward,
        };
        let rows = self.leader.scan(scan).await?;
        let (mut held, mut last) = (Vec::new(), None);
        for (key, value) in &rows {
            let name = ChunkName::from_key(key).map_err(row_damaged)?;
            last = Some(name);
            let record = GenerationRecord::decode(value).map_err(row_damaged)?;
            let is_complete = record.state == GenerationState::Complete;
            if record.state.is_kept() || record.state == GenerationState::Intent {
                held.push(HeldGeneration { name, stripe: record.stripe(), is_complete });
            }
        }
        Ok(GenerationBatch { held, next: last.filter(|_| rows.len() == limit) })
    }

    /// Lets one repair at a time have a generation, and collection wait for it.
    ///
    /// The latch of the chunk is held only while this decides: collection holds it from its first look to its last
    /// step, so it either sees the guard or has ended: freed it, or left it condemned. Writers never wait for a repair.
    pub async fn permit_repair(self: &Rc<Self>, name: ChunkName) -> Result<RepairPermit, StoreError> {
        let _guards = self.latch([name.locator].into_iter()).await;
        let term = self.leader.barrier().await?;
        let Some(record) = self.record(name).await? else { return Ok(RepairPermit::Gone) };
        if !record.state.is_kept() || !self.repairing.borrow_mut().insert(name) {
            return Ok(RepairPermit::NotYet);
        }
        let is_condemned = record.state == GenerationState::Condemned;
        Ok(RepairPermit::Granted(RepairGuard { home: self.clone(), name, term, is_condemned }, record.stripe()))
    }

    /// Queues stripes that have a fragment on a device that is to be emptied.
    ///
    /// What is being written, or freed, is passed over: the next sweep finds it in another state.
    pub(super) async fn evacuate(&self, names: &[ChunkName]) -> Result<EvacuationAnswer, StoreError> {
        self.leader.barrier().await?;
        let mut answer = EvacuationAnswer { no_room: self.repairs.has_no_room(), ..EvacuationAnswer::default() };
        for name in names {
            match self.record(*name).await? {
                Some(record) if record.state.is_kept() => {
                    self.evacuate_one(*name, &record.stripe(), &mut answer).await?;
                }
                Some(_) => {}
                None if self.is_unknown(*name).await? => answer.unknown.push(*name),
                None => {}
            }
        }
        Ok(answer)
    }

    async fn evacuate_one(
        &self,
        name: ChunkName,
        stripe: &StripeRecord,
        answer: &mut EvacuationAnswer,
    ) -> Result<(), StoreError> {
        let located = self.fragments.locate(name.locator, name.generation).await;
        let located = located.map_err(|error| StoreError::Unavailable { reason: error.to_string() })?;
        let outlook = MoveOutlook::at(&self.devices, name, stripe, &located.found);
        if !located.is_all() && located.found.len() < stripe.shape.width() {
            answer.waiting += 1; // a node that does not answer may have the rest: whether it is whole is not known
            return Ok(());
        }
        if outlook.to_move > outlook.free {
            answer.waiting += 1;
            answer.devices_wanted = answer.devices_wanted.max(outlook.to_move - outlook.free);
        }
        if outlook.to_move.min(outlook.free) > 0 && !self.repairs.offer_move(name) {
            answer.refused.push(name);
        }
        Ok(())
    }

    /// Which of these generations the home does not know, so that no delta can name them: their writers never got as far as
    /// a committed intent, or what they left came late, when all else was freed.
    pub(super) async fn unknown(&self, names: &[ChunkName]) -> Result<Vec<ChunkName>, StoreError> {
        self.leader.barrier().await?;
        let mut unknown = Vec::new();
        for name in names {
            if self.record(*name).await?.is_none() && self.is_unknown(*name).await? {
                unknown.push(*name);
            }
        }
        Ok(unknown)
    }

    /// Whether no delta can ever name the generation. A number that is given out is committed or refused while the
    /// chunk's latch is held, so under the latch no record means that there will be none (I-C2).
    async fn is_unknown(&self, name: ChunkName) -> Result<bool, StoreError> {
        let _guards = self.latch([name.locator].into_iter()).await;
        self.leader.barrier().await?;
        Ok(self.has_numbered(name.generation) && self.record(name).await?.is_none())
    }

    /// Whether a repair has the generation now: then it is not collected (I-C2).
    pub(super) fn is_being_repaired(&self, name: &ChunkName) -> bool {
        self.repairing.borrow().contains(name)
    }

    /// How far scrub has come.
    pub async fn scrub_mark(&self) -> Result<ScrubMark, StoreError> {
        let row = self.leader.row(STATE, SCRUB_KEY).await?;
        row.map_or(Ok(ScrubMark::default()), |bytes| ScrubMark::decode(&bytes).map_err(row_damaged))
    }

    /// Remembers how far scrub has come.
    pub async fn keep_scrub_mark(&self, mark: ScrubMark) -> Result<(), StoreError> {
        self.decide(async |term| {
            let row = RowChange::put(STATE, SCRUB_KEY.to_vec(), mark.encode());
            self.leader.commit(term, Draft { rows: vec![row], ..Draft::default() }).await
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kiseki_types::ids::{Generation, Locator};

    #[test]
    fn a_scrub_mark_comes_back_and_damage_is_refused() {
        let name = ChunkName { locator: Locator([7; 32]), generation: Generation(9) };
        for after in [None, Some(name)] {
            let mark = ScrubMark { started_unix_ms: 5, finished_unix_ms: 4, after };
            assert_eq!(ScrubMark::decode(&mark.encode()).unwrap(), mark);
        }
        let good = ScrubMark { after: Some(name), ..ScrubMark::default() }.encode();
        for len in 0..good.len() {
            assert!(ScrubMark::decode(&good[..len]).is_err(), "{len} bytes");
        }
        assert!(ScrubMark::decode(&[&[9], &good[1..]].concat()).is_err(), "another format");
    }
}
