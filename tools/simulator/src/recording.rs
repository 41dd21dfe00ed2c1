//! What media were told, in order, so that a power cut can be tried behind every single event of a run.
//!
//! A run is recorded once. Behind event n, [`Replay`] knows for every medium what is durable, what was written and not
//! flushed, and what is in flight; from that it makes as many images as wanted, each with another fate of what was not
//! durable. Failed operations are not recorded as done: what became of them is open, as at a cut.

use crate::disk::{Blocks, CutMode};
use crate::seed::SeededRng;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Which of the recorded media: the order in which they were [added](crate::SimDisk::record).
pub type MediumIndex = usize;

#[derive(Clone)]
enum Event {
    Submitted { medium: MediumIndex, operation: u64, start: u64, bytes: Arc<[u8]> },
    Completed { medium: MediumIndex, operation: u64 },
    FlushSubmitted { medium: MediumIndex, flush: u64 },
    FlushCompleted { medium: MediumIndex, flush: u64 },
}

#[derive(Default)]
struct Log {
    media: Vec<Blocks>,
    events: Vec<Event>,
    flushes: u64,
}

/// The events of one run, on all its media. Clones share everything.
#[derive(Clone, Default)]
pub struct Recorder {
    log: Arc<Mutex<Log>>,
}

impl Recorder {
    fn lock(&self) -> MutexGuard<'_, Log> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn add_medium(&self, now: &Blocks) -> MediumIndex {
        let mut log = self.lock();
        assert!(log.events.is_empty(), "media are added before the first event");
        log.media.push(now.clone());
        log.media.len() - 1
    }

    pub(crate) fn submitted(&self, medium: MediumIndex, operation: u64, start: u64, bytes: Arc<[u8]>) {
        self.lock().events.push(Event::Submitted { medium, operation, start, bytes });
    }

    pub(crate) fn completed(&self, medium: MediumIndex, operation: u64) {
        self.lock().events.push(Event::Completed { medium, operation });
    }

    pub(crate) fn flush_submitted(&self, medium: MediumIndex) -> u64 {
        let mut log = self.lock();
        log.flushes += 1;
        let flush = log.flushes;
        log.events.push(Event::FlushSubmitted { medium, flush });
        flush
    }

    pub(crate) fn flush_completed(&self, medium: MediumIndex, flush: u64) {
        self.lock().events.push(Event::FlushCompleted { medium, flush });
    }

    /// Events so far: what happens outside of media is put in order by it.
    #[must_use]
    pub fn len(&self) -> usize {
        self.lock().events.len()
    }

    /// Whether nothing happened yet.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The media as they were before the first event.
    #[must_use]
    pub fn replay(&self) -> Replay {
        let log = self.lock();
        let media = log.media.iter().map(|blocks| MediumState::new(blocks.clone())).collect();
        Replay { recorder: self.clone(), position: 0, media }
    }
}

struct MediumState {
    blocks: Blocks,
    in_flight: BTreeMap<u64, (u64, Arc<[u8]>)>,
    /// What a flush that is under way covers.
    marks: BTreeMap<u64, u64>,
}

impl MediumState {
    fn new(blocks: Blocks) -> MediumState {
        MediumState { blocks, in_flight: BTreeMap::new(), marks: BTreeMap::new() }
    }
}

/// The media of a recorded run behind one of its events.
pub struct Replay {
    recorder: Recorder,
    position: usize,
    media: Vec<MediumState>,
}

impl Replay {
    /// Goes on to where `events` events have happened.
    pub fn advance_to(&mut self, events: usize) {
        assert!(events >= self.position, "a replay goes forward only");
        let log = self.recorder.lock();
        for event in &log.events[self.position..events] {
            match event.clone() {
                Event::Submitted { medium, operation, start, bytes } => {
                    self.media[medium].in_flight.insert(operation, (start, bytes));
                }
                Event::Completed { medium, operation } => {
                    let medium = &mut self.media[medium];
                    let (start, bytes) = medium.in_flight.remove(&operation).expect("a write completes once");
                    medium.blocks.write(start, &bytes);
                }
                Event::FlushSubmitted { medium, flush } => {
                    let mark = self.media[medium].blocks.flush_mark();
                    self.media[medium].marks.insert(flush, mark);
                }
                Event::FlushCompleted { medium, flush } => {
                    let medium = &mut self.media[medium];
                    let mark = medium.marks.remove(&flush).expect("a flush completes once");
                    medium.blocks.flush(mark);
                }
            }
        }
        self.position = events;
    }

    /// What the media may hold when the power fails here.
    #[must_use]
    pub fn images(&self, mode: CutMode, rng: &SeededRng) -> Vec<Blocks> {
        let cut = |medium: &MediumState| {
            let mut blocks = medium.blocks.clone();
            for (start, bytes) in medium.in_flight.values() {
                blocks.write(*start, bytes);
            }
            blocks.power_cut(mode, rng);
            blocks
        };
        self.media.iter().map(cut).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn behind_each_event_the_media_are_as_they_were_then() {
        let recorder = Recorder::default();
        let mut before = Blocks::new(4096);
        before.write(9, &[9; 4096]);
        before.flush(before.flush_mark());
        let medium = recorder.add_medium(&before);
        recorder.submitted(medium, 1, 0, [1; 4096].into());
        recorder.completed(medium, 1);
        let flush = recorder.flush_submitted(medium);
        recorder.submitted(medium, 2, 1, [2; 4096].into());
        recorder.completed(medium, 2);
        recorder.flush_completed(medium, flush);
        let mut replay = recorder.replay();
        let first_bytes = |replay: &Replay, mode| {
            let image = replay.images(mode, &SeededRng::new(1)).remove(0);
            [0, 1, 9].map(|index| {
                let mut out = [0; 4096];
                image.read(index, &mut out);
                out[0]
            })
        };
        for (events, dropped, kept) in [
            (0, [0, 0, 9], [0, 0, 9]),
            (1, [0, 0, 9], [1, 0, 9]),
            (2, [0, 0, 9], [1, 0, 9]),
            (5, [0, 0, 9], [1, 2, 9]),
            (6, [1, 0, 9], [1, 2, 9]),
        ] {
            replay.advance_to(events);
            assert_eq!(first_bytes(&replay, CutMode::DropAll), dropped, "behind {events}");
            assert_eq!(first_bytes(&replay, CutMode::KeepAll), kept, "behind {events}");
        }
        assert_eq!(recorder.len(), 6);
    }
}
