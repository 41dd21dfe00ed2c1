//! Opening a lane: rows of the log file first, the journal's records over them, then a flush.

use super::acks::Acks;
use super::group_log::GroupLog;
use super::record::{Change, GroupRow, LaneRow, Record, decode_lane_row};
use super::{FOLD_FILL, GROUPS_PER_LANE_MAX, Lane, LaneLog, PROPOSED_LEN_BYTES_MAX, TABLE_GROUPS, TABLE_LANE, fold};
use crate::error::RaftError;
use crate::times::RaftTimes;
use kiseki_types::journal::{Journal, ReplayedRecord, Sequence};
use kiseki_types::runtime::Ports;
use kiseki_types::table::{Scan, TableStore};
use kiseki_types::{LaneId, ShardId};
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use tokio::sync::Notify;
use tracing::error;

type Groups = BTreeMap<ShardId, GroupLog>;

/// See [`LaneLog::open`].
pub async fn open(
    ports: Ports,
    lane: LaneId,
    journal: Rc<dyn Journal>,
    replayed: Vec<ReplayedRecord>,
    table: Rc<dyn TableStore>,
) -> Result<LaneLog, RaftError> {
    let mut groups = read_groups(&table, lane).await?;
    let LaneRow { folded: folded_sequence, reached } = match table.get(0, TABLE_LANE, &[]).await? {
        Some(row) => decode_lane_row(&row)?,
        None if groups.is_empty() => {
            check_whole(lane, replayed.first())?;
            LaneRow::default()
        }
        None => LaneRow::default(),
    };
    // Another journal stands where the old one was: all that lived is lost. Its numbers say little: they may be higher, since
    // each start of a journal leaves some out.
    let has_reached = reached <= folded_sequence || replayed.iter().any(|found| found.sequence == reached);
    let is_another = journal.last() < reached || !has_reached;
    let start = journal.last();
    // What another journal holds is nobody's here.
    let known: &[ReplayedRecord] = if is_another { &[] } else { &replayed };
    let replay = replay(&mut groups, known, folded_sequence, is_another, lane)?;
    let times = Rc::<RaftTimes>::default();
    let lane_log = Rc::new(Lane {
        lane,
        acks: Acks::start(&ports, times.clone()),
        times,
        ports: ports.clone(),
        journal,
        table,
        groups: RefCell::new(groups),
        last: Cell::new(if is_another { start } else { replay.last }),
        folded_sequence: Cell::new(folded_sequence),
        unfolded: RefCell::default(),
        fold_wanted: Rc::new(Notify::new()),
        proposed: tokio::sync::Semaphore::new(PROPOSED_LEN_BYTES_MAX),
        folding: tokio::sync::Mutex::new(()),
    });
    // I-L2: what was replayed may be unflushed, or on one mirror only; this flush is behind all of it.
    let record = Record { shard: ShardId(0), previous: lane_log.last.get(), change: Change::Opened };
    let opened = match lane_log.journal.append(&record.encode()) {
        Ok(sequence) => {
            lane_log.last.set(sequence);
            sequence
        }
        Err(kiseki_types::journal::JournalError::Full { .. }) => lane_log.last.get(),
        Err(error) => return Err(error.into()),
    };
    lane_log.journal.flushed(opened).await?;
    lane_log.acks.note_synced(opened);
    for (shard, reason) in replay.lost {
        error!(lane = %lane, %shard, reason, "vote or log lost; the replica must rejoin as a new learner");
        lane_log.mark_lost(shard, &reason).await?;
    }
    if is_another {
        // No later start may take its records for folded. What lived is marked as lost by now.
        lane_log.restart_sequences(start, opened).await?;
    } else if folded_sequence > 0 {
        // A crash may have come between the fold and its trim, and no later fold of a full journal would make up for it.
        lane_log.journal.trim(folded_sequence);
    }
    let background = fold::run(Rc::downgrade(&lane_log), lane_log.fold_wanted.clone());
    ports.spawn("raft-fold", Box::pin(background));
    if lane_log.journal.fill() > FOLD_FILL {
        lane_log.fold_wanted.notify_one();
    }
    Ok(LaneLog { inner: lane_log })
}

async fn read_groups(table: &Rc<dyn TableStore>, lane: LaneId) -> Result<Groups, RaftError> {
    let rows = table.scan(Scan::prefix(0, TABLE_GROUPS, &[], GROUPS_PER_LANE_MAX + 1)).await?;
    if rows.len() > GROUPS_PER_LANE_MAX {
        return Err(RaftError::TooManyGroups { lane, limit: GROUPS_PER_LANE_MAX });
    }
    let mut groups = Groups::new();
    for (key, value) in rows {
        let shard = ShardId(u64::from_be_bytes(key.try_into().map_err(|_| damaged(lane, "a group's key"))?));
        groups.insert(shard, GroupLog::from_row(shard, GroupRow::decode(&value)?));
    }
    Ok(groups)
}

/// I-L10: a log file that holds nothing belongs to a journal that was never trimmed. Behind a trim there was one, and groups
/// that only it named would seem new, and vote again under the number of a voter that has promised.
fn check_whole(lane: LaneId, first: Option<&ReplayedRecord>) -> Result<(), RaftError> {
    let Some(first) = first else { return Ok(()) };
    let record = Record::decode(&first.bytes).map_err(|error| damaged(lane, error.to_string()))?;
    match record.previous {
        0 => Ok(()),
        _ => Err(damaged(
            lane,
            "its log file is gone or another one; restore the metadata directory that held it, or have the cluster let \
             this node go (kiseki node remove --lost) and join as a new one",
        )),
    }
}

fn damaged(lane: LaneId, reason: impl Into<String>) -> RaftError {
    RaftError::LogDamaged { lane, reason: reason.into() }
}

struct Replay {
    last: Sequence,
    /// Groups found lost now, with the reason.
    lost: Vec<(ShardId, String)>,
}

fn replay(
    groups: &mut Groups,
    replayed: &[ReplayedRecord],
    folded_sequence: Sequence,
    is_another: bool,
    lane: LaneId,
) -> Result<Replay, RaftError> {
    let mut last = folded_sequence;
    let mut broken_chain = None;
    let mut misfits: BTreeMap<ShardId, String> = BTreeMap::new();
    for found in replayed.iter().filter(|found| found.sequence > folded_sequence) {
        let record = Record::decode(&found.bytes).map_err(|error| damaged(lane, error.to_string()))?;
        // The first record behind the fold may name any record up to it, each later one names the one before.
        let follows = record.previous == last || (last == folded_sequence && record.previous < folded_sequence);
        if !follows && broken_chain.is_none() {
            broken_chain = Some(format!("record {} follows {last}, not {}", found.sequence, record.previous));
        }
        last = found.sequence;
        if record.change == Change::Opened {
            continue;
        }
        match groups.get_mut(&record.shard) {
            // A record of a group without a row: the log file is not the one that belongs to this journal.
            None => {
                let reason = "its row is gone from the log file".to_owned();
                let mut group = GroupLog::from_row(record.shard, GroupRow::default());
                group.lost = Some(reason.clone());
                groups.insert(record.shard, group);
                misfits.insert(record.shard, reason);
            }
            Some(group) if matches!(record.change, Change::Begun(_)) => {
                misfits.remove(&record.shard);
                if let Err(misfit) = group.replay(record.change, found.sequence) {
                    misfits.insert(record.shard, misfit.0);
                }
            }
            Some(group) if group.lost.is_none() => {
                if let Err(misfit) = group.replay(record.change, found.sequence) {
                    misfits.entry(record.shard).or_insert(misfit.0);
                }
            }
            Some(_) => {}
        }
    }
    if is_another {
        broken_chain = Some("the journal does not hold the last record that was flushed there".to_owned());
    }
    let lost = groups
        .values()
        .filter(|group| group.lost.is_none() || misfits.contains_key(&group.shard))
        .filter_map(|group| {
            let reason = misfits.get(&group.shard).cloned().or_else(|| why_lost(group, broken_chain.as_deref()));
            reason.map(|reason| (group.shard, reason))
        })
        .collect();
    Ok(Replay { last, lost })
}

/// I-L10: a group that acknowledged anything must still have a vote or a log, and an unbroken journal behind it.
fn why_lost(group: &GroupLog, broken_chain: Option<&str>) -> Option<String> {
    if !group.row.live {
        return None;
    }
    if let Some(reason) = broken_chain {
        return Some(reason.to_owned());
    }
    if let Some(missing) = group.missing() {
        return Some(missing);
    }
    (group.vote.is_none() && group.last.is_none()).then(|| "neither a vote nor an entry is left".to_owned())
}
