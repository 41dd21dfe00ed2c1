//! The moment the power fails: a switch that all media of a machine share and that counts their writes.

use std::sync::atomic::{AtomicU64, Ordering};

/// No cut is planned.
const UNARMED: u64 = u64::MAX;

/// What an operation on a medium may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Power {
    /// Go on.
    On,
    /// This very write meets the cut: it may arrive, not arrive, or arrive in part.
    CutNow,
    /// Nothing reaches the medium any more.
    Off,
}

/// Fires at the Nth write counted over everything that shares it (devices, metadata files, directory changes).
///
/// After it fired, device operations never complete and metadata files answer with errors, until
/// [`CutSwitch::restore`]. Whoever runs the simulation looks at [`CutSwitch::is_cut`] after each poll
/// ([`crate::Sim::block_on_or_cut`]), kills the node, lets every medium forget what it must, and restores the power.
#[derive(Debug)]
pub struct CutSwitch {
    /// Writes that still pass; 0 means that the power is off.
    left: AtomicU64,
    /// Writes that passed since the switch was made.
    writes: AtomicU64,
}

impl Default for CutSwitch {
    fn default() -> CutSwitch {
        CutSwitch { left: AtomicU64::new(UNARMED), writes: AtomicU64::new(0) }
    }
}

impl CutSwitch {
    /// Plans the cut for the `write`th write from now; 1 is the next one.
    pub fn arm(&self, write: u64) {
        assert!(write > 0, "the write that is cut is counted from 1");
        self.left.store(write, Ordering::Relaxed);
    }

    /// Cuts the power now, between two operations.
    pub fn cut_now(&self) {
        self.left.store(0, Ordering::Relaxed);
    }

    /// Turns the power on again, with no cut planned.
    pub fn restore(&self) {
        self.left.store(UNARMED, Ordering::Relaxed);
    }

    /// Whether the power is off.
    #[must_use]
    pub fn is_cut(&self) -> bool {
        self.left.load(Ordering::Relaxed) == 0
    }

    /// Writes that passed so far, over all cuts: for choosing where to cut.
    #[must_use]
    pub fn writes(&self) -> u64 {
        self.writes.load(Ordering::Relaxed)
    }

    /// Counts a write.
    pub fn count_write(&self) -> Power {
        match self.left.load(Ordering::Relaxed) {
            0 => return Power::Off,
            UNARMED => {}
            left => self.left.store(left - 1, Ordering::Relaxed),
        }
        self.writes.fetch_add(1, Ordering::Relaxed);
        if self.is_cut() { Power::CutNow } else { Power::On }
    }

    /// For operations that are not writes.
    #[must_use]
    pub fn power(&self) -> Power {
        if self.is_cut() { Power::Off } else { Power::On }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_switch_fires_at_exactly_the_nth_write() {
        let switch = CutSwitch::default();
        assert_eq!(switch.count_write(), Power::On);
        switch.arm(3);
        let seen: Vec<Power> = (0..5).map(|_| switch.count_write()).collect();
        assert_eq!(seen, [Power::On, Power::On, Power::CutNow, Power::Off, Power::Off]);
        assert!(switch.is_cut());
        assert_eq!(switch.writes(), 4);
        switch.restore();
        assert_eq!((switch.power(), switch.count_write()), (Power::On, Power::On));
    }
}
