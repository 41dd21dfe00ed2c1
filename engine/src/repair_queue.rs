//! Stripes of this core's homes that are to be repaired: each once, the most endangered first, and never more than
//! memory is set aside for. What does not fit is found again by the next walk ([`crate::repairer`]).

use crate::delta::ChunkName;
use crate::without::MARGINS;
use futures::channel::oneshot;
use kiseki_types::runtime::Instant;
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};

/// Stripes that wait for their turn, and of each kind those that can't have one now (I-O5).
pub const REPAIR_QUEUE_MAX: usize = 65_536;

/// How many more fragments a stripe may lose before data is lost; negative when it is.
pub type Margin = i16;

/// Stripes that wait to be moved off a device that is to be emptied: who offers them finds them again (I-O5).
pub const MOVES_MAX: usize = 256;

/// The margin that a stripe has in the queue which is whole and only to be moved: behind every one that is not whole.
pub const MOVE_MARGIN: Margin = Margin::MAX;

/// The margin of a stripe that found no room: behind all others that are to be repaired.
pub const NO_ROOM_MARGIN: Margin = Margin::MAX - 1;

const _: () = assert!(NO_ROOM_MARGIN as usize > kiseki_types::limits::STRIPE_WIDTH_MAX);

/// Why a stripe is offered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RepairCause {
    /// Fragments are not there, or their device is not used.
    Missing,
    /// A fragment's bytes failed their check.
    Unreadable,
}

#[derive(Clone, Copy)]
struct Entry {
    margin: Margin,
    not_before: Instant,
    /// No delta names it yet, and perhaps none ever will: its writer is at work, or gone.
    is_unfinished: bool,
}

struct Running {
    margin: Margin,
    /// The margin when it was offered again meanwhile.
    again: Option<Margin>,
}

#[derive(Default)]
struct State {
    entries: BTreeMap<ChunkName, Entry>,
    /// Those whose time has come.
    order: BTreeSet<(Margin, ChunkName)>,
    /// The others.
    early: BTreeSet<(Instant, ChunkName)>,
    /// Being repaired or moved.
    running: BTreeMap<ChunkName, Running>,
    /// Entries that are only to be moved.
    moves: usize,
    /// Entries that no delta names yet.
    unfinished: usize,
    /// Cannot reach full width with the devices that are usable now.
    waiting: BTreeSet<ChunkName>,
    lost: BTreeSet<ChunkName>,
    listeners: Vec<oneshot::Sender<()>>,
}

/// The queue of one core.
#[derive(Default)]
pub struct RepairQueue {
    state: RefCell<State>,
    overflowed: Cell<bool>,
    /// Whether the last stripe that was moved found no room.
    no_room: Cell<bool>,
    /// Until when no further one is taken in.
    no_moves_until: Cell<Instant>,
    /// The time of the last look for work.
    now: Cell<Instant>,
    /// Stripes that readers and writers had something to say of, so far.
    reports: Cell<u64>,
}

impl RepairQueue {
    /// A reader or a writer says that something is wrong with a stripe.
    pub fn report(&self, name: ChunkName, margin: Margin, cause: RepairCause) {
        self.reports.set(self.reports.get() + 1);
        self.offer(name, margin, cause);
    }

    /// How many times that was.
    #[must_use]
    pub fn reports(&self) -> u64 {
        self.reports.get()
    }

    /// Takes a stripe in, or lets it come earlier when it is in already.
    pub fn offer(&self, name: ChunkName, margin: Margin, cause: RepairCause) {
        self.offer_later(name, margin, cause, Instant(0));
    }

    /// Takes a stripe in that has to wait until `not_before`.
    pub fn offer_later(&self, name: ChunkName, margin: Margin, cause: RepairCause, not_before: Instant) {
        self.take_in(name, cause, Entry { margin, not_before, is_unfinished: false });
    }

    /// The same with a stripe that is missing fragments while no delta names it: it lacks nothing that anybody stored.
    pub fn offer_unfinished(&self, name: ChunkName, margin: Margin, not_before: Instant) {
        // What was only to be moved is found by the next sweep, whatever it is by then.
        if margin != MOVE_MARGIN {
            self.take_in(name, RepairCause::Missing, Entry { margin, not_before, is_unfinished: true });
        }
    }

    fn take_in(&self, name: ChunkName, cause: RepairCause, offered: Entry) {
        let margin = offered.margin;
        let mut state = self.state.borrow_mut();
        if let Some(running) = state.running.get_mut(&name) {
            // Whoever repairs it may have looked already.
            running.again = Some(running.again.map_or(margin, |other| other.min(margin)));
            return;
        }
        // A missing fragment of a stripe that waits for devices is known; a rotten one can be repaired where it lies.
        if cause == RepairCause::Missing && state.waiting.contains(&name) {
            return;
        }
        if let Some(entry) = state.remove(name) {
            let (margin, not_before) = (entry.margin.min(margin), entry.not_before.min(offered.not_before));
            let is_unfinished = entry.is_unfinished && offered.is_unfinished;
            state.put(name, Entry { margin, not_before, is_unfinished });
        } else {
            if state.entries.len() >= REPAIR_QUEUE_MAX {
                self.overflowed.set(true);
                let Some(last) = state.order.last().copied().filter(|last| *last > (margin, name)) else { return };
                state.remove(last.1);
            }
            state.put(name, offered);
        }
        for listener in std::mem::take(&mut state.listeners) {
            let _gone = listener.send(());
        }
    }

    /// Takes a whole stripe in that is to be moved; false when there are enough of those for now.
    pub fn offer_move(&self, name: ChunkName) -> bool {
        {
            let state = self.state.borrow();
            if state.running.contains_key(&name) || state.entries.contains_key(&name) || state.waiting.contains(&name) {
                return true; // what becomes of it is seen by the next sweep
            }
            if state.moves >= MOVES_MAX || self.now.get() < self.no_moves_until.get() {
                return false;
            }
        }
        self.offer(name, MOVE_MARGIN, RepairCause::Unreadable);
        true
    }

    /// Notes whether a stripe that was moved found room; after one that did not, none is taken in until `until`.
    pub fn note_room(&self, has_room: bool, until: Instant) {
        self.no_room.set(!has_room);
        if !has_room {
            self.no_moves_until.set(until);
        }
    }

    /// Whether the last stripe that was to be moved found no room.
    #[must_use]
    pub fn has_no_room(&self) -> bool {
        self.no_room.get()
    }

    /// The most endangered stripe whose time has come, of those with at most `margin_max`. It runs until
    /// [`RepairQueue::done`].
    pub fn take(&self, now: Instant, margin_max: Margin) -> Option<(ChunkName, Margin)> {
        self.now.set(now);
        let mut state = self.state.borrow_mut();
        while let Some((_, name)) = state.early.first().copied().filter(|(at, _)| *at <= now) {
            let entry = state.remove(name).expect("what is early is in the queue");
            state.put(name, Entry { not_before: Instant(0), ..entry });
        }
        let (margin, name) = state.order.first().copied().filter(|(margin, _)| *margin <= margin_max)?;
        state.remove(name);
        state.running.insert(name, Running { margin, again: None });
        Some((name, margin))
    }

    /// A repair has ended. A stripe that was offered meanwhile is looked at once more.
    pub fn done(&self, name: ChunkName) {
        let again = self.state.borrow_mut().running.remove(&name).and_then(|running| running.again);
        if let Some(margin) = again {
            self.offer(name, margin, RepairCause::Unreadable);
        }
    }

    /// Ends when something is offered.
    pub fn offered(&self) -> oneshot::Receiver<()> {
        let (sender, receiver) = oneshot::channel();
        let mut state = self.state.borrow_mut();
        state.listeners.retain(|listener| !listener.is_canceled());
        state.listeners.push(sender);
        receiver
    }

    /// Notes that a stripe can't reach full width with the devices that are usable now.
    pub fn wait_for_devices(&self, name: ChunkName) {
        let mut state = self.state.borrow_mut();
        if state.waiting.len() < REPAIR_QUEUE_MAX {
            state.waiting.insert(name);
        } else {
            self.overflowed.set(true);
        }
    }

    /// A walk begins: it finds anew which stripes wait.
    pub fn forget_waiting(&self) {
        self.state.borrow_mut().waiting.clear();
    }

    /// Whether it is known that the stripe waits for devices.
    pub fn is_waiting(&self, name: &ChunkName) -> bool {
        self.state.borrow().waiting.contains(name)
    }

    /// Notes that too few fragments of a stripe are good; true when that is news.
    pub fn note_lost(&self, name: ChunkName) -> bool {
        let mut state = self.state.borrow_mut();
        state.lost.len() < REPAIR_QUEUE_MAX && state.lost.insert(name)
    }

    /// A stripe is not lost (any more), or gone.
    pub fn forget_lost(&self, name: &ChunkName) {
        self.state.borrow_mut().lost.remove(name);
    }

    /// Stripes that count as lost: each walk has them looked at again.
    pub fn lost(&self) -> Vec<ChunkName> {
        self.state.borrow().lost.iter().copied().collect()
    }

    /// Whether stripes did not fit since the last call.
    pub fn take_overflow(&self) -> bool {
        self.overflowed.replace(false)
    }

    /// Whether stripes did not fit since the last [`RepairQueue::take_overflow`].
    #[must_use]
    pub fn has_overflowed(&self) -> bool {
        self.overflowed.get()
    }

    /// Stripes that wait for their turn to be repaired, or are being so.
    #[must_use]
    pub fn backlog(&self) -> usize {
        let state = self.state.borrow();
        let running = state.running.values().filter(|running| running.margin != MOVE_MARGIN).count();
        state.entries.len() - state.moves - state.unfinished + running
    }

    /// Stripes that are looked at again when a delta names them.
    #[must_use]
    pub fn unfinished(&self) -> usize {
        self.state.borrow().unfinished
    }

    /// Stripes that wait for their turn to be moved, or are being so.
    #[must_use]
    pub fn moving(&self) -> usize {
        let state = self.state.borrow();
        state.moves + state.running.values().filter(|running| running.margin == MOVE_MARGIN).count()
    }

    /// Stripes that wait for their turn to be repaired, or are being so, by the number of fragments that they can lose. Of one
    /// that found no room that is not known, so it counts as one that can lose none.
    #[must_use]
    pub fn endangered(&self) -> Vec<u64> {
        let state = self.state.borrow();
        let waiting = state.entries.values().filter(|entry| !entry.is_unfinished).map(|entry| entry.margin);
        let running = state.running.values().map(|running| running.margin);
        let mut by_margin = Vec::new();
        for margin in waiting.chain(running).filter(|margin| *margin >= 0 && *margin != MOVE_MARGIN) {
            let at = if margin == NO_ROOM_MARGIN { 0 } else { usize::from(margin.unsigned_abs()).min(MARGINS - 1) };
            by_margin.resize(by_margin.len().max(at + 1), 0);
            by_margin[at] += 1;
        }
        by_margin
    }

    /// Stripes that wait for devices.
    #[must_use]
    pub fn waiting_count(&self) -> usize {
        self.state.borrow().waiting.len()
    }

    /// Stripes that count as lost.
    #[must_use]
    pub fn lost_count(&self) -> usize {
        self.state.borrow().lost.len()
    }
}

impl State {
    fn put(&mut self, name: ChunkName, entry: Entry) {
        self.moves += usize::from(entry.margin == MOVE_MARGIN);
        self.unfinished += usize::from(entry.is_unfinished);
        self.entries.insert(name, entry);
        if entry.not_before == Instant(0) {
            self.order.insert((entry.margin, name));
        } else {
            self.early.insert((entry.not_before, name));
        }
    }

    fn remove(&mut self, name: ChunkName) -> Option<Entry> {
        let entry = self.entries.remove(&name)?;
        self.moves -= usize::from(entry.margin == MOVE_MARGIN);
        self.unfinished -= usize::from(entry.is_unfinished);
        self.order.remove(&(entry.margin, name));
        self.early.remove(&(entry.not_before, name));
        Some(entry)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kiseki_types::ids::{Generation, Locator};

    fn name(number: u32) -> ChunkName {
        let mut locator = [0; 32];
        locator[..4].copy_from_slice(&number.to_be_bytes());
        ChunkName { locator: Locator(locator), generation: Generation(1) }
    }

    #[test]
    fn the_most_endangered_comes_first_and_each_once() {
        let queue = RepairQueue::default();
        for (number, margin) in [(1, 1), (2, 0), (3, 1), (1, 1), (3, 0)] {
            queue.offer(name(number), margin, RepairCause::Missing);
        }
        assert_eq!(queue.backlog(), 3);
        let now = Instant(5);
        assert_eq!(queue.take(now, 0), Some((name(2), 0)));
        assert_eq!(queue.take(now, 0), Some((name(3), 0)), "offered again as more endangered");
        assert_eq!(queue.take(now, 0), None, "the rest has to wait for the end of the walk");
        assert_eq!(queue.take(now, Margin::MAX), Some((name(1), 1)));
        assert_eq!(queue.backlog(), 3, "running ones count");
        queue.offer(name(4), NO_ROOM_MARGIN, RepairCause::Missing);
        assert_eq!(queue.endangered(), [3, 1], "and so does one that found no room");
    }

    #[test]
    fn what_is_offered_while_it_is_repaired_is_looked_at_again() {
        let queue = RepairQueue::default();
        queue.offer(name(1), 1, RepairCause::Missing);
        let taken = queue.take(Instant(0), Margin::MAX).unwrap().0;
        queue.offer(taken, 0, RepairCause::Missing);
        assert_eq!(queue.take(Instant(0), Margin::MAX), None, "never twice at once");
        queue.done(taken);
        assert_eq!(queue.take(Instant(0), Margin::MAX), Some((taken, 0)));
        queue.done(taken);
        assert_eq!(queue.backlog(), 0);
    }

    #[test]
    fn i_o5_a_full_queue_keeps_the_most_endangered_and_says_that_it_overflowed() {
        let queue = RepairQueue::default();
        for number in 0..REPAIR_QUEUE_MAX as u32 {
            queue.offer(name(number), 1, RepairCause::Missing);
        }
        assert!(!queue.take_overflow());
        queue.offer(name(1 << 20), 1, RepairCause::Missing);
        queue.offer(name(2 << 20), 0, RepairCause::Missing);
        assert_eq!(queue.backlog(), REPAIR_QUEUE_MAX, "I-O5");
        assert!(queue.take_overflow() && !queue.take_overflow());
        assert_eq!(queue.take(Instant(0), Margin::MAX), Some((name(2 << 20), 0)));
    }

    #[test]
    fn what_no_delta_names_is_no_backlog_until_somebody_misses_it() {
        let queue = RepairQueue::default();
        queue.offer_unfinished(name(1), 1, Instant(9));
        queue.offer_unfinished(name(1), 1, Instant(9));
        assert_eq!((queue.backlog(), queue.unfinished()), (0, 1));
        assert_eq!(queue.take(Instant(8), Margin::MAX), None);
        assert_eq!(queue.take(Instant(9), Margin::MAX), Some((name(1), 1)), "it is looked at again");
        assert_eq!((queue.backlog(), queue.unfinished()), (1, 0));
        queue.done(name(1));
        queue.offer_unfinished(name(1), 1, Instant(20));
        queue.offer(name(1), 0, RepairCause::Missing);
        assert_eq!((queue.backlog(), queue.unfinished()), (1, 0), "its writer reports it");
        assert_eq!(queue.take(Instant(10), 0), Some((name(1), 0)));
    }

    #[test]
    fn moves_come_behind_every_repair_are_bounded_and_are_no_backlog() {
        let queue = RepairQueue::default();
        for number in 0..MOVES_MAX as u32 {
            assert!(queue.offer_move(name(number)));
        }
        assert!(!queue.offer_move(name(1 << 20)), "I-O5");
        assert!(queue.offer_move(name(0)), "it is in");
        queue.offer(name(2 << 20), NO_ROOM_MARGIN, RepairCause::Unreadable);
        queue.offer(name(0), 2, RepairCause::Missing);
        assert_eq!((queue.backlog(), queue.moving()), (2, MOVES_MAX - 1));
        let now = Instant(5);
        assert_eq!(queue.take(now, Margin::MAX), Some((name(0), 2)), "it lost a fragment meanwhile");
        assert_eq!(queue.take(now, Margin::MAX), Some((name(2 << 20), NO_ROOM_MARGIN)));
        assert_eq!(queue.take(now, Margin::MAX), Some((name(1), MOVE_MARGIN)));
        assert_eq!((queue.backlog(), queue.moving()), (2, MOVES_MAX - 1), "running ones count");
        queue.done(name(1));
        queue.note_room(false, Instant(9));
        assert!(!queue.offer_move(name(1)) && queue.has_no_room());
        assert_eq!(queue.take(Instant(9), 0), None);
        assert!(queue.offer_move(name(1)), "its pause is over");
    }

    #[test]
    fn a_move_that_has_to_wait_for_somebody_else_is_not_counted_twice() {
        let queue = RepairQueue::default();
        assert!(queue.offer_move(name(1)));
        assert_eq!(queue.take(Instant(1), Margin::MAX), Some((name(1), MOVE_MARGIN)));
        queue.done(name(1));
        queue.offer_unfinished(name(1), MOVE_MARGIN, Instant(9));
        assert_eq!((queue.backlog(), queue.moving(), queue.unfinished()), (0, 0, 0));
    }

    #[test]
    fn what_is_early_or_waits_for_devices_has_no_turn() {
        let queue = RepairQueue::default();
        queue.offer_later(name(1), 0, RepairCause::Missing, Instant(7));
        assert_eq!(queue.take(Instant(6), Margin::MAX), None);
        assert!(queue.take(Instant(7), Margin::MAX).is_some());
        queue.done(name(1));
        queue.wait_for_devices(name(1));
        queue.offer(name(1), 0, RepairCause::Missing);
        assert_eq!(queue.backlog(), 0);
        queue.offer(name(1), 0, RepairCause::Unreadable);
        assert_eq!((queue.backlog(), queue.waiting_count()), (1, 1), "rot can be repaired in place");
    }
}
