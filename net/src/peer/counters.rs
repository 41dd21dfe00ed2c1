//! What links count: nothing of it is shared between cores.

use std::cell::Cell;
use std::time::Duration;

/// Upper ends of the classes of call times, in microseconds; behind the last one comes a class for the rest.
pub const LATENCY_US: [u64; 12] =
    [50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000, 50_000, 200_000, 1_000_000, 10_000_000];

/// What a connection, or the connections of one link one after the other, count.
#[derive(Default)]
pub struct LinkCounters {
    /// Calls that were made or taken.
    pub calls: Cell<u64>,
    /// Calls without an answer yet.
    pub in_flight: Cell<u64>,
    /// Bytes of frames received.
    pub bytes_in: Cell<u64>,
    /// Bytes of frames sent.
    pub bytes_out: Cell<u64>,
    /// Connections made.
    pub connects: Cell<u64>,
    /// Attempts to connect that failed.
    pub connect_failures: Cell<u64>,
    /// Calls that were refused.
    pub refused: Cell<u64>,
    /// Answered calls by time, see [`LATENCY_US`].
    pub latency: [Cell<u64>; LATENCY_US.len() + 1],
    /// Sum of those times in microseconds.
    pub latency_sum_us: Cell<u64>,
}

impl LinkCounters {
    /// An answer came after `time`.
    pub fn answered(&self, time: Duration) {
        let us = u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        let class = LATENCY_US.iter().position(|end| us <= *end).unwrap_or(LATENCY_US.len());
        add(&self.latency[class], 1);
        add(&self.latency_sum_us, us);
    }

    /// The figures now.
    #[must_use]
    pub fn snapshot(&self) -> LinkFigures {
        LinkFigures {
            calls: self.calls.get(),
            in_flight: self.in_flight.get(),
            bytes_in: self.bytes_in.get(),
            bytes_out: self.bytes_out.get(),
            connects: self.connects.get(),
            connect_failures: self.connect_failures.get(),
            refused: self.refused.get(),
            latency: self.latency.iter().map(Cell::get).collect(),
            latency_sum_us: self.latency_sum_us.get(),
        }
    }
}

/// [`LinkCounters`] as plain numbers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LinkFigures {
    /// Calls that were made or taken.
    pub calls: u64,
    /// Calls without an answer yet.
    pub in_flight: u64,
    /// Bytes of frames received.
    pub bytes_in: u64,
    /// Bytes of frames sent.
    pub bytes_out: u64,
    /// Connections made.
    pub connects: u64,
    /// Attempts to connect that failed.
    pub connect_failures: u64,
    /// Calls that were refused.
    pub refused: u64,
    /// Answered calls by time, see [`LATENCY_US`].
    pub latency: Vec<u64>,
    /// Sum of those times in microseconds.
    pub latency_sum_us: u64,
}

pub(crate) fn add(cell: &Cell<u64>, more: u64) {
    cell.set(cell.get().saturating_add(more));
}

pub(crate) fn take(cell: &Cell<u64>, less: u64) {
    cell.set(cell.get().saturating_sub(less));
}
