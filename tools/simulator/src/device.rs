//! The device port on a simulated medium: latencies from the seed, faults on request.

use crate::cut::{CutSwitch, Power};
use crate::disk::{Blocks, CutMode};
use crate::executor::{Sim, SimHandle};
use crate::recording::{MediumIndex, Recorder};
use crate::seed::SeededRng;
use futures::channel::oneshot;
use kiseki_types::buf::{IoBuf, IoBytes};
use kiseki_types::device::{Device, DeviceGeometry};
use kiseki_types::limits::DEVICE_BLOCK_BYTES_MAX;
use kiseki_types::meta::MetaFile;
use kiseki_types::runtime::LocalBoxFuture;
use kiseki_types::units::{BlockCount, BlockIndex};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt;
use std::future::pending;
use std::io;
use std::ops::Range;
use std::rc::Rc;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// One operation of so many takes much longer than the others.
const SLOW_ONE_IN: u64 = 64;

/// How much longer.
const SLOW_FACTOR: u64 = 30;

/// Shape and name of a simulated disk.
#[derive(Clone, Debug)]
pub struct DiskOptions {
    /// For messages.
    pub name: String,
    /// 512 or 4096.
    pub block_len_bytes: u32,
    /// Blocks in all; only those written take memory.
    pub block_count: u64,
}

impl DiskOptions {
    /// A disk of `len_bytes` with blocks of 4096 bytes.
    #[must_use]
    pub fn of_len(name: &str, len_bytes: u64) -> DiskOptions {
        DiskOptions { name: name.to_owned(), block_len_bytes: 4096, block_count: len_bytes / 4096 }
    }
}

/// Latencies before the occasional slow one, in nanoseconds.
const READ_NS: Range<u64> = 20_000..150_000;
const WRITE_NS: Range<u64> = 20_000..400_000;
const FLUSH_NS: Range<u64> = 100_000..3_000_000;

/// Faults that are planned; counts run down to the operation that is hit, 1 is the next one.
#[derive(Clone, Copy, Debug, Default)]
struct Faults {
    fail_read: Option<u64>,
    fail_write: Option<u64>,
    fail_flush: Option<u64>,
    misdirect_write: Option<(u64, u64)>,
    misdirect_read: Option<(u64, u64)>,
    flush_is_a_lie: bool,
    is_gone: bool,
}

impl Faults {
    /// Blocks by which the operation that is submitted now misses its place.
    fn next_misdirection(planned: &mut Option<(u64, u64)>) -> u64 {
        match planned {
            Some((1, blocks_off)) => {
                let blocks_off = *blocks_off;
                *planned = None;
                blocks_off
            }
            Some((left, _)) => {
                *left -= 1;
                0
            }
            None => 0,
        }
    }
}

fn count_down(left: &mut Option<u64>) -> bool {
    match left {
        Some(1) => left.take().is_some(),
        Some(left) => {
            *left -= 1;
            false
        }
        None => false,
    }
}

/// Operations that a disk has taken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DiskCounts {
    /// Reads.
    pub reads: u64,
    /// Writes.
    pub writes: u64,
    /// Flushes.
    pub flushes: u64,
    /// Discards.
    pub discards: u64,
}

struct Medium {
    options: DiskOptions,
    blocks: Blocks,
    faults: Faults,
    counts: DiskCounts,
    /// Grows at every power cut; operations of an earlier one never complete.
    incarnation: u64,
    next_operation: u64,
    rng: SeededRng,
    /// Blocks of noise by the byte that they are full of.
    noises: BTreeMap<u8, Arc<[u8]>>,
    recorder: Option<(Recorder, MediumIndex)>,
}

/// What an operation puts on the medium.
enum Content {
    /// A write's bytes.
    Written(Vec<IoBytes>),
    /// One block of noise. Its bytes are shared: a node that opens discards all the room that is free.
    Noise(Arc<[u8]>),
}

impl Content {
    fn bytes(&self) -> Arc<[u8]> {
        match self {
            Content::Written(parts) => parts.iter().flat_map(|part| part.iter().copied()).collect(),
            Content::Noise(bytes) => bytes.clone(),
        }
    }
}

/// Writes that were submitted and have not completed, by number: first block, and content.
type InFlight = BTreeMap<u64, (u64, Content)>;

/// A medium: it survives its node. [`SimDisk::open`] is what a core holds of it.
#[derive(Clone)]
pub struct SimDisk {
    /// Behind a mutex only because [`SimDisk::file`] must be usable in jobs of side threads.
    medium: Arc<Mutex<Medium>>,
    in_flight: Rc<RefCell<InFlight>>,
    sim: SimHandle,
    switch: Arc<CutSwitch>,
}

impl SimDisk {
    /// A disk full of zeros, under the power of `switch`.
    #[must_use]
    pub fn new(sim: &Sim, options: DiskOptions, switch: &Arc<CutSwitch>) -> SimDisk {
        let blocks = Blocks::new(options.block_len_bytes as usize);
        SimDisk::with_image(sim, options, switch, blocks)
    }

    /// A disk that holds what `blocks` say, such as an image of a recorded run.
    #[must_use]
    pub fn with_image(sim: &Sim, options: DiskOptions, switch: &Arc<CutSwitch>, blocks: Blocks) -> SimDisk {
        assert!([512, 4096].contains(&options.block_len_bytes), "blocks of {} bytes", options.block_len_bytes);
        let sim = sim.handle();
        let medium = Medium {
            blocks,
            recorder: None,
            rng: SeededRng::new(sim.world.chance.next_u64()),
            options,
            faults: Faults::default(),
            counts: DiskCounts::default(),
            incarnation: 0,
            next_operation: 0,
            noises: BTreeMap::new(),
        };
        SimDisk { medium: Arc::new(Mutex::new(medium)), in_flight: Rc::default(), sim, switch: switch.clone() }
    }

    /// From now on `recorder` hears of everything that the disk is told.
    pub fn record(&self, recorder: &Recorder) {
        let mut medium = lock(&self.medium);
        let index = recorder.add_medium(&medium.blocks);
        medium.recorder = Some((recorder.clone(), index));
    }

    /// A queue of this disk for one core. It ends with the next power cut: open another one then.
    #[must_use]
    pub fn open(&self) -> Rc<dyn Device> {
        let medium = lock(&self.medium);
        let geometry = DeviceGeometry {
            block_len_bytes: medium.options.block_len_bytes,
            block_count: BlockCount(medium.options.block_count),
        };
        Rc::new(SimDevice {
            disk: self.clone(),
            name: medium.options.name.clone(),
            geometry,
            incarnation: medium.incarnation,
        })
    }

    /// The whole disk as a file for blocking access, as superblocks are written. It ends with the next power cut.
    #[must_use]
    pub fn file(&self) -> Arc<dyn MetaFile> {
        let medium = lock(&self.medium);
        Arc::new(DiskFile {
            medium: self.medium.clone(),
            switch: self.switch.clone(),
            name: medium.options.name.clone(),
            incarnation: medium.incarnation,
        })
    }

    /// The power fails: every block of an unflushed or unfinished write becomes old, new or torn, from `seed`.
    pub fn power_cut(&self, seed: u64) {
        let rng = SeededRng::new(seed);
        let mode = CutMode::draw(&rng);
        self.power_cut_in_mode(mode, &rng);
    }

    /// [`SimDisk::power_cut`] with a chosen tendency.
    pub fn power_cut_in_mode(&self, mode: CutMode, rng: &SeededRng) {
        let lost = {
            let mut medium = lock(&self.medium);
            medium.incarnation += 1;
            let lost = self.in_flight.take();
            for (start, content) in lost.values() {
                match content {
                    Content::Written(_) => medium.blocks.write(*start, &content.bytes()),
                    Content::Noise(bytes) => medium.blocks.write_shared(*start, bytes),
                }
            }
            medium.blocks.power_cut(mode, rng);
            lost
        };
        drop(lost); // outside of the borrow: buffers go home to their pools
    }

    /// The `read`th read from now fails.
    pub fn fail_read(&self, read: u64) {
        lock(&self.medium).faults.fail_read = Some(read);
    }

    /// The `write`th write from now fails; what of it arrives is open.
    pub fn fail_write(&self, write: u64) {
        lock(&self.medium).faults.fail_write = Some(write);
    }

    /// The `flush`th flush from now fails. What it should have saved is saved or lost, block by block, and no later
    /// flush saves what was lost (I-D6).
    pub fn fail_flush(&self, flush: u64) {
        lock(&self.medium).faults.fail_flush = Some(flush);
    }

    /// The `write`th write from now lands `blocks_off` blocks further on, and reports success.
    pub fn misdirect_write(&self, write: u64, blocks_off: u64) {
        lock(&self.medium).faults.misdirect_write = Some((write, blocks_off));
    }

    /// The `read`th read from now comes from `blocks_off` blocks further on, and reports success.
    pub fn misdirect_read(&self, read: u64, blocks_off: u64) {
        lock(&self.medium).faults.misdirect_read = Some((read, blocks_off));
    }

    /// From now on flushes answer Ok and save nothing: the control that must be caught.
    pub fn set_flush_is_a_lie(&self, is_a_lie: bool) {
        lock(&self.medium).faults.flush_is_a_lie = is_a_lie;
    }

    /// Takes the disk away (every operation fails) or brings it back.
    pub fn set_gone(&self, is_gone: bool) {
        lock(&self.medium).faults.is_gone = is_gone;
    }

    /// Rots `count` blocks among those that hold something; returns them.
    pub fn rot(&self, count: usize) -> Vec<BlockIndex> {
        let mut medium = lock(&self.medium);
        let Medium { blocks, rng, .. } = &mut *medium;
        let used = blocks.used();
        if used.is_empty() {
            return Vec::new();
        }
        let hit: Vec<u64> = (0..count).map(|_| *rng.pick(&used)).collect();
        hit.iter().for_each(|index| blocks.rot(*index, rng));
        hit.into_iter().map(BlockIndex).collect()
    }

    /// Rots one block.
    pub fn rot_block(&self, block: BlockIndex) {
        let mut medium = lock(&self.medium);
        let Medium { blocks, rng, .. } = &mut *medium;
        blocks.rot(block.0, rng);
    }

    /// Bytes as a read would give them now, without time passing: for looking at what lies on the medium.
    #[must_use]
    pub fn peek(&self, start: BlockIndex, count: BlockCount) -> Vec<u8> {
        let medium = lock(&self.medium);
        let mut out = vec![0; (count.0 * u64::from(medium.options.block_len_bytes)) as usize];
        medium.blocks.read(start.0, &mut out);
        out
    }

    /// Blocks that hold something other than zeros, in order.
    #[must_use]
    pub fn used_blocks(&self) -> Vec<BlockIndex> {
        lock(&self.medium).blocks.used().into_iter().map(BlockIndex).collect()
    }

    /// Blocks that a power cut could change now, writes in flight not counted.
    #[must_use]
    pub fn unflushed_blocks(&self) -> usize {
        lock(&self.medium).blocks.unflushed_count()
    }

    /// Operations taken so far.
    #[must_use]
    pub fn counts(&self) -> DiskCounts {
        lock(&self.medium).counts
    }

    /// Name, as messages show it.
    #[must_use]
    pub fn name(&self) -> String {
        lock(&self.medium).options.name.clone()
    }

    fn latency(&self, usual_ns: Range<u64>) -> Duration {
        let chance = &self.sim.world.chance;
        let usual = chance.between(usual_ns);
        Duration::from_nanos(if chance.chance(1, SLOW_ONE_IN) { usual * SLOW_FACTOR } else { usual })
    }

    /// A block becomes noise, some time.
    fn submit_noise(&self, medium: &mut Medium, index: u64) -> u64 {
        let (value, len) = (medium.rng.below(256) as u8, medium.options.block_len_bytes as usize);
        let content = Content::Noise(medium.noises.entry(value).or_insert_with(|| vec![value; len].into()).clone());
        let operation = medium.next_operation;
        medium.next_operation += 1;
        medium.record_submitted(operation, index, &content);
        self.in_flight.borrow_mut().insert(operation, (index, content));
        operation
    }

    /// Runs `complete` after a latency, unless the power fails first; the future ends with its result or never.
    fn start<T: 'static>(
        &self,
        usual_ns: Range<u64>,
        trace: u64,
        complete: impl FnOnce(&mut Medium) -> io::Result<T> + 'static,
    ) -> LocalBoxFuture<'static, io::Result<T>> {
        let latency = self.latency(usual_ns);
        self.sim.world.mix(trace ^ latency.as_nanos() as u64);
        let (sender, receiver) = oneshot::channel();
        let (disk, incarnation) = (self.clone(), lock(&self.medium).incarnation);
        self.sim.world.run_at(self.sim.now() + latency, move || {
            if disk.switch.is_cut() || lock(&disk.medium).incarnation != incarnation {
                return;
            }
            let result = complete(&mut lock(&disk.medium));
            drop(sender.send(result)); // the caller may have lost interest: that cancels nothing
        });
        Box::pin(async move {
            match receiver.await {
                Ok(result) => result,
                Err(oneshot::Canceled) => pending().await,
            }
        })
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn failed(what: &str) -> io::Error {
    io::Error::other(format!("simulated {what} failure"))
}

fn gone() -> io::Error {
    io::Error::new(io::ErrorKind::NotFound, "simulated device is gone")
}

impl Medium {
    fn record_submitted(&self, operation: u64, start: u64, content: &Content) {
        if let Some((recorder, medium)) = &self.recorder {
            recorder.submitted(*medium, operation, start, content.bytes());
        }
    }

    fn record_completed(&self, operation: u64) {
        if let Some((recorder, medium)) = &self.recorder {
            recorder.completed(*medium, operation);
        }
    }

    fn record_flush(&self) -> u64 {
        self.recorder.as_ref().map_or(0, |(recorder, medium)| recorder.flush_submitted(*medium))
    }

    fn record_flushed(&self, flush: u64) {
        if let Some((recorder, medium)) = &self.recorder {
            recorder.flush_completed(*medium, flush);
        }
    }

    fn check_reachable(&self) -> io::Result<()> {
        if self.faults.is_gone { Err(gone()) } else { Ok(()) }
    }

    fn complete_write(&mut self, start: u64, content: &Content, fails: bool) -> io::Result<()> {
        self.check_reachable()?;
        let parts = match content {
            Content::Written(parts) => parts,
            Content::Noise(bytes) => {
                if start < self.options.block_count {
                    self.blocks.write_shared(start, bytes);
                }
                return Ok(());
            }
        };
        let mut at = start;
        for part in parts {
            for block in part.chunks(self.options.block_len_bytes as usize) {
                // A failed write may have reached the medium in part.
                if at < self.options.block_count && !(fails && self.rng.chance(1, 2)) {
                    self.blocks.write(at, block);
                }
                at += 1;
            }
        }
        if fails { Err(failed("write")) } else { Ok(()) }
    }
}

/// A disk as one core sees it.
struct SimDevice {
    disk: SimDisk,
    name: String,
    geometry: DeviceGeometry,
    incarnation: u64,
}

impl SimDevice {
    fn is_current(&self) -> bool {
        lock(&self.disk.medium).incarnation == self.incarnation
    }

    fn check_range(&self, start: BlockIndex, len_bytes: usize) -> io::Result<()> {
        let block_len = self.geometry.block_len_bytes as usize;
        assert!(len_bytes.is_multiple_of(block_len), "I-C7: {len_bytes} bytes on {}", self.name);
        let end = start.0.checked_add((len_bytes / block_len) as u64);
        match end {
            Some(end) if end <= self.geometry.block_count.0 => Ok(()),
            _ => Err(io::Error::new(io::ErrorKind::InvalidInput, "behind the end of the device")),
        }
    }
}

fn assert_aligned(bytes: &[u8]) {
    let off = bytes.as_ptr().align_offset(DEVICE_BLOCK_BYTES_MAX);
    assert!(bytes.is_empty() || off == 0, "I-C7: a buffer is {off} bytes short of its alignment");
}

fn ready<T: 'static>(result: io::Result<T>) -> LocalBoxFuture<'static, io::Result<T>> {
    Box::pin(std::future::ready(result))
}

impl Device for SimDevice {
    fn name(&self) -> &str {
        &self.name
    }

    fn geometry(&self) -> DeviceGeometry {
        self.geometry
    }

    fn read(&self, start: BlockIndex, buf: IoBuf) -> LocalBoxFuture<'static, io::Result<IoBuf>> {
        assert_aligned(&buf);
        if let Err(error) = self.check_range(start, buf.len()) {
            return ready(Err(error));
        }
        if !self.is_current() || self.disk.switch.power() == Power::Off {
            return Box::pin(pending());
        }
        let (fails, off) = {
            let mut medium = lock(&self.disk.medium);
            medium.counts.reads += 1;
            let fails = count_down(&mut medium.faults.fail_read);
            (fails, Faults::next_misdirection(&mut medium.faults.misdirect_read))
        };
        self.disk.start(READ_NS, start.0 << 8 | 1, move |medium| {
            medium.check_reachable()?;
            if fails {
                return Err(failed("read"));
            }
            let mut buf = buf;
            medium.blocks.read(start.0 + off, &mut buf);
            Ok(buf)
        })
    }

    fn write(&self, start: BlockIndex, parts: Vec<IoBytes>) -> LocalBoxFuture<'static, io::Result<()>> {
        parts.iter().for_each(|part| {
            assert_aligned(part);
            let block_len = self.geometry.block_len_bytes as usize;
            assert!(part.len().is_multiple_of(block_len), "I-C7: a part of {} bytes", part.len());
        });
        if let Err(error) = self.check_range(start, parts.iter().map(|part| part.len()).sum()) {
            return ready(Err(error));
        }
        if !self.is_current() {
            return Box::pin(pending());
        }
        // The write that meets the cut is in flight like any other, and its completion finds the power off.
        if self.disk.switch.count_write() == Power::Off {
            return Box::pin(pending());
        }
        let (operation, fails) = {
            let mut medium = lock(&self.disk.medium);
            medium.counts.writes += 1;
            let operation = medium.next_operation;
            medium.next_operation += 1;
            let fails = count_down(&mut medium.faults.fail_write);
            let off = Faults::next_misdirection(&mut medium.faults.misdirect_write);
            let content = Content::Written(parts);
            medium.record_submitted(operation, start.0 + off, &content);
            self.disk.in_flight.borrow_mut().insert(operation, (start.0 + off, content));
            (operation, fails)
        };
        let in_flight = self.disk.in_flight.clone();
        self.disk.start(WRITE_NS, start.0 << 8 | 2, move |medium| {
            let (start, content) = in_flight.borrow_mut().remove(&operation).expect("a write completes once");
            medium.complete_write(start, &content, fails)?;
            medium.record_completed(operation);
            Ok(())
        })
    }

    fn flush(&self) -> LocalBoxFuture<'static, io::Result<()>> {
        if !self.is_current() || self.disk.switch.power() == Power::Off {
            return Box::pin(pending());
        }
        let (mark, fails, recorded) = {
            let mut medium = lock(&self.disk.medium);
            medium.counts.flushes += 1;
            (medium.blocks.flush_mark(), count_down(&mut medium.faults.fail_flush), medium.record_flush())
        };
        self.disk.start(FLUSH_NS, 3, move |medium| {
            medium.check_reachable()?;
            let Medium { blocks, rng, faults, .. } = medium;
            if fails {
                blocks.fail_flush(mark, rng);
                return Err(failed("flush"));
            }
            if !faults.flush_is_a_lie {
                blocks.flush(mark);
                medium.record_flushed(recorded);
            }
            Ok(())
        })
    }

    fn discard(&self, start: BlockIndex, len: BlockCount) -> LocalBoxFuture<'static, io::Result<()>> {
        if let Err(error) = self.check_range(start, (len.0 * u64::from(self.geometry.block_len_bytes)) as usize) {
            return ready(Err(error));
        }
        if !self.is_current() || self.disk.switch.power() == Power::Off {
            return Box::pin(pending());
        }
        // What discarded blocks read as is undefined: some stay, some become noise. Like writes they are in flight until
        // then, so a write to the same blocks meanwhile may be overtaken.
        let noises: Vec<u64> = {
            let mut medium = lock(&self.disk.medium);
            medium.counts.discards += 1;
            let hit: Vec<u64> = (start.0..start.0 + len.0).filter(|_| medium.rng.chance(1, 2)).collect();
            hit.into_iter().map(|index| self.disk.submit_noise(&mut medium, index)).collect()
        };
        let in_flight = self.disk.in_flight.clone();
        self.disk.start(WRITE_NS, start.0 << 8 | 4, move |medium| {
            for operation in noises {
                let (start, content) = in_flight.borrow_mut().remove(&operation).expect("a discard completes once");
                medium.complete_write(start, &content, false)?;
                medium.record_completed(operation);
            }
            Ok(())
        })
    }
}

/// A disk for blocking access: each call is done when it returns.
struct DiskFile {
    medium: Arc<Mutex<Medium>>,
    switch: Arc<CutSwitch>,
    name: String,
    incarnation: u64,
}

impl DiskFile {
    fn reach(&self) -> io::Result<MutexGuard<'_, Medium>> {
        let medium = lock(&self.medium);
        if medium.incarnation != self.incarnation || self.switch.power() == Power::Off {
            return Err(io::Error::other("the simulated power is cut"));
        }
        medium.check_reachable()?;
        Ok(medium)
    }
}

impl fmt::Debug for DiskFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SimDisk({})", self.name)
    }
}

impl Medium {
    /// The blocks around `len` bytes at `offset`: first block, and where the bytes lie in them.
    fn around(&self, offset: u64, len: usize) -> io::Result<(u64, Vec<u8>, Range<usize>)> {
        let block_len = u64::from(self.options.block_len_bytes);
        let end = offset.checked_add(len as u64).filter(|end| *end <= block_len * self.options.block_count);
        let end = end.ok_or_else(|| io::Error::from(io::ErrorKind::UnexpectedEof))?;
        let first = offset / block_len;
        let mut bytes = vec![0; ((end.div_ceil(block_len) - first) * block_len) as usize];
        self.blocks.read(first, &mut bytes);
        let skip = (offset - first * block_len) as usize;
        Ok((first, bytes, skip..skip + len))
    }
}

impl MetaFile for DiskFile {
    fn len(&self) -> io::Result<u64> {
        let medium = self.reach()?;
        Ok(medium.options.block_count * u64::from(medium.options.block_len_bytes))
    }

    fn set_len(&self, _len_bytes: u64) -> io::Result<()> {
        Err(io::Error::new(io::ErrorKind::Unsupported, "a device keeps its length"))
    }

    fn read_at(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let mut medium = self.reach()?;
        medium.counts.reads += 1;
        if count_down(&mut medium.faults.fail_read) {
            return Err(failed("read"));
        }
        let (_, bytes, range) = medium.around(offset, out.len())?;
        out.copy_from_slice(&bytes[range]);
        Ok(())
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let mut medium = self.reach()?;
        let power = self.switch.count_write();
        medium.counts.writes += 1;
        let fails = count_down(&mut medium.faults.fail_write);
        let (first, mut whole, range) = medium.around(offset, bytes.len())?;
        whole[range].copy_from_slice(bytes);
        let operation = medium.next_operation;
        medium.next_operation += 1;
        if let Some((recorder, index)) = &medium.recorder {
            recorder.submitted(*index, operation, first, whole.as_slice().into());
        }
        if !(fails && medium.rng.chance(1, 2)) {
            medium.blocks.write(first, &whole);
        }
        if !fails {
            medium.record_completed(operation);
        }
        match power {
            Power::On if !fails => Ok(()),
            Power::On => Err(failed("write")),
            Power::CutNow | Power::Off => Err(io::Error::other("the simulated power is cut")),
        }
    }

    fn sync(&self) -> io::Result<()> {
        let mut medium = self.reach()?;
        medium.counts.flushes += 1;
        let fails = count_down(&mut medium.faults.fail_flush);
        let recorded = medium.record_flush();
        let Medium { blocks, rng, faults, .. } = &mut *medium;
        let mark = blocks.flush_mark();
        if fails {
            blocks.fail_flush(mark, rng);
            return Err(failed("flush"));
        }
        if !faults.flush_is_a_lie {
            blocks.flush(mark);
            medium.record_flushed(recorded);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
