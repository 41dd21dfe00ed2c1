//! How fast one core repairs and moves fragments: one rate for all of it, and a quarter while clients are served.

use crate::core::DataCounters;
use crate::pace::Pace;
use kiseki_types::Ports;
use kiseki_types::runtime::Instant;
use std::cell::Cell;
use std::time::Duration;

/// Share of the rate that is left while clients are served.
const BUSY_DIVISOR: u64 = 4;

/// A client that moved bytes counts as being served for so long.
const BUSY_FOR: Duration = Duration::from_secs(1);

/// Whether work may wait for clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Urgency {
    /// A stripe can't afford another loss.
    NoMargin,
    /// Everything else.
    CanWait,
}

/// The pace of one core's upkeep.
pub struct UpkeepPace {
    ports: Ports,
    pace: Pace,
    bytes_per_second_max: u64,
    /// What clients had moved at the last look, and until when they count as being served.
    foreground: Cell<(u64, Instant)>,
}

impl UpkeepPace {
    /// Nothing owed yet.
    #[must_use]
    pub fn new(ports: Ports, bytes_per_second_max: u64) -> UpkeepPace {
        UpkeepPace { pace: Pace::new(ports.clone()), ports, bytes_per_second_max, foreground: Cell::default() }
    }

    /// Waits until what was moved before is paid for.
    pub async fn ready(&self) {
        self.pace.ready().await;
    }

    /// Owes for bytes that were read and written.
    pub fn pay(&self, bytes: u64, urgency: Urgency, clients: &DataCounters) {
        let is_slow = self.serves(clients) && urgency == Urgency::CanWait;
        let rate = if is_slow { self.bytes_per_second_max / BUSY_DIVISOR } else { self.bytes_per_second_max };
        self.pace.pay(bytes, rate);
    }

    /// Whether clients have moved bytes on this core a moment ago.
    pub fn serves(&self, clients: &DataCounters) -> bool {
        let bytes =
            clients.bytes_read.get() + clients.chunk_bytes_written.get() + clients.chunk_bytes_deduplicated.get();
        let (now, (before, mut until)) = (self.ports.now(), self.foreground.get());
        if bytes != before {
            until = now + BUSY_FOR;
            self.foreground.set((bytes, until));
        }
        now < until
    }
}
