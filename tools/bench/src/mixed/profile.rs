//! The profiles: what each stores first, which phases a round has, and what one step of a phase does.

use super::order::{Zipf, length_between, shuffled, shuffled_in_window};
use super::run::Recorder;
use super::{MixedArgs, ProfileName};
use crate::noise::{Noise, mix};
use crate::s3::content::{Content, ContentId};
use crate::s3::session::{Session, Wanted};
use anyhow::{Result, bail};
use clap::ValueEnum;
use std::sync::Arc;

/// A sample of the image segmentation workload that this profile is shaped after.
const EPOCH_OBJECT_LEN_BYTES: u64 = 146_000_000;
const SHARD_LEN_BYTES: u64 = 256_000_000;
/// Records lie end to end; the last of a shard takes what is left.
const RECORD_LEN_BYTES: (u64, u64) = (100_000, 200_000);
const CHECKPOINT_LEN_BYTES: u64 = 1 << 30;
const PAGES: u64 = 10_000;
const PAGE_LEN_BYTES: (u64, u64) = (64 << 10, 2 << 20);
const FILES: u64 = 100_000;
const FILE_LEN_BYTES: (u64, u64) = (1 << 10, 64 << 10);

/// What the operations of a phase are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// PUTs
    Write,
    /// GETs
    Read,
    /// Listings of directories
    List,
    /// HEADs
    Stat,
    /// DELETEs
    Delete,
}

/// A part of a round that all clients go through together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Phase {
    /// What is done.
    pub kind: Kind,
    /// How often.
    pub steps: u64,
}

/// One step.
#[derive(Clone, Copy, Debug)]
pub struct Step {
    /// Counted from 0.
    pub round: u64,
    /// Of the round.
    pub kind: Kind,
    /// Among the steps of the phase.
    pub index: u64,
}

/// Sizes of one profile.
enum Work {
    Epochs { objects: u32, len_bytes: u64, read_len_bytes: u64 },
    RecordShards { shards: u32, len_bytes: u64, records: Vec<(u64, u64)>, window: usize },
    Checkpoint { len_bytes: u64 },
    KvPages { zipf: Zipf },
    SmallFiles { files: u64, per_directory: u64 },
}

/// A profile, made ready.
pub struct Profile {
    /// As it is typed.
    pub name: String,
    /// Clients of its own.
    pub clients: usize,
    /// Rounds, unless a time is given.
    pub rounds: u64,
    /// Objects that are stored before anything is measured.
    pub prepared: u64,
    /// A round.
    pub phases: Vec<Phase>,
    /// Longest object.
    pub len_bytes_max: u64,
    /// Whether every byte of GETs is checked.
    pub verify: bool,
    /// Sizes in words.
    pub about: String,
    work: Work,
    prefix: String,
    content: Arc<Content>,
    seed: u64,
}

impl Profile {
    /// As the arguments say; `prefix` is the run's directory.
    pub fn new(name: ProfileName, args: &MixedArgs, prefix: &str, content: &Arc<Content>, seed: u64) -> Profile {
        let scaled = |amount: u64| ((amount as f64 * args.scale) as u64).max(1);
        let phase = |kind, steps| Phase { kind, steps };
        let word = name.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned());
        let mut clients = usize::from(args.clients);
        let (work, rounds, prepared, phases, len_bytes_max, sizes) = match name {
            ProfileName::Epochs => {
                let len_bytes = args.epoch_object_size.unwrap_or_else(|| scaled(EPOCH_OBJECT_LEN_BYTES));
                let read_len_bytes = args.epoch_read_size.unwrap_or(len_bytes).min(len_bytes);
                let objects = args.epoch_objects;
                let phases = vec![phase(Kind::Read, u64::from(objects))];
                let sizes = format!("objects={objects}, bs={}, read={}", show(len_bytes), show(read_len_bytes));
                let work = Work::Epochs { objects, len_bytes, read_len_bytes };
                (work, args.epochs, u64::from(objects), phases, len_bytes, sizes)
            }
            ProfileName::RecordShards => {
                let len_bytes = args.shard_size.unwrap_or_else(|| scaled(SHARD_LEN_BYTES));
                let (shards, window) = (args.shards, args.shuffle_window as usize);
                let records = records(len_bytes, seed);
                let phases = vec![phase(Kind::Read, u64::from(shards) * records.len() as u64)];
                let sizes =
                    format!("shards={shards}, bs={}, records={}, window={window}", show(len_bytes), records.len());
                let work = Work::RecordShards { shards, len_bytes, records, window };
                (work, args.epochs, u64::from(shards), phases, len_bytes, sizes)
            }
            ProfileName::Checkpoint => {
                let len_bytes = args.checkpoint_size.unwrap_or_else(|| scaled(CHECKPOINT_LEN_BYTES));
                let writers = u64::from(args.checkpoint_writers);
                clients = usize::from(args.checkpoint_writers);
                let phases = [Kind::Write, Kind::Read, Kind::Delete].map(|kind| phase(kind, writers)).to_vec();
                let sizes = format!("writers={writers}, bs={}", show(len_bytes));
                (Work::Checkpoint { len_bytes }, args.checkpoints, 0, phases, len_bytes, sizes)
            }
            ProfileName::KvPages => {
                let pages = args.kv_pages.unwrap_or_else(|| scaled(PAGES));
                let reads = pages * args.kv_reads;
                let phases = vec![phase(Kind::Write, pages), phase(Kind::Read, reads), phase(Kind::Delete, pages)];
                let sizes = format!("pages={pages}, bs=64KiB-2MiB, reads={reads}, zipf={}", args.zipf);
                let work = Work::KvPages { zipf: Zipf::new(pages, args.zipf) };
                (work, 1, 0, phases, PAGE_LEN_BYTES.1, sizes)
            }
            ProfileName::SmallFiles => {
                let files = args.files.unwrap_or_else(|| scaled(FILES));
                let per_directory = args.files_per_directory;
                let directories = files.div_ceil(per_directory);
                let of_files = |kind| phase(kind, files);
                let mut phases = [Kind::Write, Kind::Stat, Kind::Read, Kind::Delete].map(of_files).to_vec();
                phases.insert(1, phase(Kind::List, directories));
                let sizes = format!("files={files}, bs=1KiB-64KiB, directories={directories}");
                (Work::SmallFiles { files, per_directory }, 1, 0, phases, FILE_LEN_BYTES.1, sizes)
            }
        };
        Profile {
            about: format!("{sizes}, clients={clients}"),
            prefix: format!("{prefix}{word}/"),
            name: word,
            clients,
            rounds,
            prepared,
            phases,
            len_bytes_max,
            verify: args.verify || matches!(name, ProfileName::Checkpoint),
            work,
            content: content.clone(),
            seed: mix(seed ^ name as u64),
        }
    }

    /// Key, content and length of an object. Rounds that store anew have contents of their own.
    fn object(&self, round: u64, index: u64) -> (String, ContentId, u64) {
        let prefix = &self.prefix;
        let draw = self.seed.wrapping_add(index);
        let (key, len_bytes) = match &self.work {
            Work::Epochs { len_bytes, .. } => (format!("{prefix}{index:06}"), *len_bytes),
            Work::RecordShards { len_bytes, .. } => (format!("{prefix}shard-{index:06}.tar"), *len_bytes),
            Work::Checkpoint { len_bytes, .. } => (format!("{prefix}{round:06}/rank-{index:05}"), *len_bytes),
            Work::KvPages { .. } => {
                (format!("{prefix}{:016x}", mix(draw)), length_between(PAGE_LEN_BYTES.0, PAGE_LEN_BYTES.1, draw))
            }
            Work::SmallFiles { per_directory, .. } => {
                let key = format!("{}{:08}", self.directory(index / per_directory), index);
                (key, length_between(FILE_LEN_BYTES.0, FILE_LEN_BYTES.1, draw))
            }
        };
        (key, self.content.id([self.seed, index, round], 0.0), len_bytes)
    }

    fn directory(&self, number: u64) -> String {
        format!("{}{:03}/{:06}/", self.prefix, number % 1000, number)
    }

    /// Stores an object before anything is measured. Returns its bytes.
    pub async fn prepare(&self, session: &mut Session<'_>, index: u64) -> Result<u64> {
        let (key, content, len_bytes) = self.object(0, index);
        let put = session.prepare_put(&key, content, len_bytes);
        session.put(put).await.map(|()| len_bytes)
    }

    /// The order of a round's reads; empty where it does not matter.
    pub fn order(&self, round: u64) -> Vec<u64> {
        let mut noise = Noise::new(mix(self.seed ^ round.wrapping_add(1)));
        match &self.work {
            Work::Epochs { objects, .. } => shuffled(*objects, &mut noise).into_iter().map(u64::from).collect(),
            Work::RecordShards { shards, records, window, .. } => {
                let each = records.len() as u64;
                let shards = shuffled(*shards, &mut noise);
                let numbers =
                    shards.into_iter().flat_map(|shard| (0..each).map(move |at| u64::from(shard) * each + at));
                shuffled_in_window(numbers, *window, &mut noise)
            }
            _ => Vec::new(),
        }
    }

    /// Does one step; what it does is recorded operation by operation. Errors are those that end the step.
    pub async fn step(
        &self,
        step: Step,
        order: &[u64],
        session: &mut Session<'_>,
        recorder: &mut Recorder<'_>,
    ) -> Result<()> {
        let index = order.get(step.index as usize).copied().unwrap_or(step.index);
        match (step.kind, &self.work) {
            (Kind::Read, Work::Epochs { len_bytes, read_len_bytes, .. }) => {
                let (key, content, _) = self.object(0, index);
                let is_range = read_len_bytes < len_bytes;
                let mut start = 0;
                while start < *len_bytes {
                    let end = (start + read_len_bytes).min(*len_bytes);
                    read(session, recorder, &key, Wanted { content, start, end, is_range }).await?;
                    start = end;
                }
                Ok(())
            }
            (Kind::Read, Work::RecordShards { records, .. }) => {
                let (shard, record) = (index / records.len() as u64, index % records.len() as u64);
                let (key, content, _) = self.object(0, shard);
                let (start, end) = records[record as usize];
                read(session, recorder, &key, Wanted { content, start, end, is_range: true }).await
            }
            (Kind::Read, Work::KvPages { zipf, .. }) => {
                // The first pages are the hot ones; their keys have no order.
                let draw = mix(self.seed ^ mix(step.round.wrapping_mul(0x9e37_79b9).wrapping_add(step.index)));
                self.read_whole(session, recorder, step.round, zipf.number(draw)).await
            }
            (Kind::Read, _) => self.read_whole(session, recorder, step.round, index).await,
            (Kind::Write, _) => {
                let (key, content, len_bytes) = self.object(step.round, index);
                let put = session.prepare_put(&key, content, len_bytes);
                let begin = recorder.now_ns();
                session.put(put).await?;
                recorder.done(begin, len_bytes, None);
                Ok(())
            }
            (Kind::Stat, _) => {
                let (key, _, len_bytes) = self.object(step.round, index);
                let begin = recorder.now_ns();
                session.head(&key, len_bytes).await?;
                recorder.done(begin, 0, None);
                Ok(())
            }
            (Kind::Delete, Work::Checkpoint { .. }) if step.round == 0 => Ok(()),
            (Kind::Delete, work) => {
                // The newest checkpoint stays: who deletes it before the next is complete may have none.
                let round = step.round - u64::from(matches!(work, Work::Checkpoint { .. }));
                let (key, ..) = self.object(round, index);
                let begin = recorder.now_ns();
                session.delete(&key).await?;
                recorder.done(begin, 0, None);
                Ok(())
            }
            (Kind::List, _) => self.list(session, recorder, index).await,
        }
    }

    async fn read_whole(
        &self,
        session: &mut Session<'_>,
        recorder: &mut Recorder<'_>,
        round: u64,
        index: u64,
    ) -> Result<()> {
        let (key, content, end) = self.object(round, index);
        read(session, recorder, &key, Wanted { content, start: 0, end, is_range: false }).await
    }

    /// Lists a directory to its end; a page is an operation.
    async fn list(&self, session: &mut Session<'_>, recorder: &mut Recorder<'_>, directory: u64) -> Result<()> {
        let Work::SmallFiles { files, per_directory } = &self.work else { return Ok(()) };
        let prefix = self.directory(directory);
        let (mut found, mut next) = (0, None::<String>);
        loop {
            let begin = recorder.now_ns();
            let page = session.list_page(&prefix, next.as_deref()).await?;
            recorder.done(begin, 0, None);
            found += page.keys.len() as u64;
            next = page.next;
            if next.is_none() {
                break;
            }
        }
        let wanted = (*per_directory).min(files - directory * per_directory);
        match found == wanted || !self.verify {
            true => Ok(()),
            false => bail!("LIST: {found} files in a directory of {wanted}"),
        }
    }

    /// Whether times between phases are what the profile is about.
    pub fn is_checkpoint(&self) -> bool {
        matches!(self.work, Work::Checkpoint { .. })
    }
}

async fn read(session: &mut Session<'_>, recorder: &mut Recorder<'_>, key: &str, wanted: Wanted) -> Result<()> {
    let begin = recorder.now_ns();
    let first_byte = session.get(key, wanted).await?;
    recorder.done(begin, wanted.end - wanted.start, Some(first_byte));
    Ok(())
}

/// Where records lie in a shard.
fn records(len_bytes: u64, seed: u64) -> Vec<(u64, u64)> {
    let (shortest, longest) = RECORD_LEN_BYTES;
    let (mut noise, mut records, mut start) = (Noise::new(mix(seed)), Vec::new(), 0);
    while start < len_bytes {
        let end = start + shortest + noise.below(longest - shortest + 1);
        let end = if end + shortest > len_bytes { len_bytes } else { end };
        records.push((start, end));
        start = end;
    }
    records
}

fn show(len_bytes: u64) -> String {
    crate::units::binary(len_bytes as f64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn records_fill_a_shard() {
        for len_bytes in [1, 99_999, 100_000, 2_560_000, SHARD_LEN_BYTES] {
            let records = records(len_bytes, 7);
            assert_eq!((records[0].0, records.last().unwrap().1), (0, len_bytes));
            assert!(records.windows(2).all(|pair| pair[0].1 == pair[1].0), "end to end");
            assert!(records.iter().all(|(start, end)| end - start < 300_000), "{len_bytes}");
        }
        assert!(records(SHARD_LEN_BYTES, 1).len() > 1500);
    }

    #[test]
    fn no_two_profiles_rounds_or_objects_share_a_content() {
        use clap::Parser;
        #[derive(Parser)]
        struct Line {
            #[command(flatten)]
            args: MixedArgs,
        }
        let args = Line::try_parse_from(["mixed", "epochs", "--scale", "0.001"]).unwrap().args;
        let content = Arc::new(Content::new(1));
        let (mut contents, mut keys) = (BTreeSet::new(), BTreeSet::new());
        for name in ProfileName::value_variants() {
            let profile = Profile::new(*name, &args, "run/", &content, 1);
            for round in 0..2 {
                for index in 0..10 {
                    let (key, id, len_bytes) = profile.object(round, index);
                    assert!(contents.insert(id.0) && len_bytes > 0 && len_bytes <= profile.len_bytes_max);
                    assert!(key.starts_with("run/"));
                    keys.insert(key);
                }
            }
        }
        assert_eq!(keys.len(), 5 * 10 + 10, "only checkpoints have new keys in every round");
    }
}
