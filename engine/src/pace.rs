//! Holds background work to a rate: whoever has moved bytes waits for as long as they take at that rate.

use kiseki_types::Ports;
use kiseki_types::runtime::Instant;
use std::cell::Cell;
use std::time::Duration;

/// Longest wait for one piece of work, whatever the rate: rates change, and a stop or a new rate must not find
/// somebody who waits for hours.
const WAIT_MAX: Duration = Duration::from_secs(60);

/// A rate kept over time, by one worker or several.
pub struct Pace {
    ports: Ports,
    free_at: Cell<Instant>,
}

impl Pace {
    /// Nothing owed yet.
    #[must_use]
    pub fn new(ports: Ports) -> Pace {
        Pace { ports, free_at: Cell::new(Instant(0)) }
    }

    /// Waits until what was moved before is paid for.
    pub async fn ready(&self) {
        while self.free_at.get() > self.ports.now() {
            self.ports.sleep_until(self.free_at.get()).await;
        }
    }

    /// Owes for `bytes` at `bytes_per_second`.
    pub fn pay(&self, bytes: u64, bytes_per_second: u64) {
        let nanoseconds = u128::from(bytes) * 1_000_000_000 / u128::from(bytes_per_second.max(1));
        let span = Duration::from_nanos(u64::try_from(nanoseconds).unwrap_or(u64::MAX)).min(WAIT_MAX);
        self.free_at.set(self.free_at.get().max(self.ports.now()) + span);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kiseki_simulator::{NodeId, Sim};
    use kiseki_types::runtime::RuntimeExt;

    #[test]
    fn bytes_take_their_time_and_no_more() {
        let sim = Sim::new(1);
        let ports = sim.ports(NodeId(0));
        let pace = Pace::new(ports.clone());
        let seconds = sim.block_on(NodeId(0), async move {
            let start = ports.now();
            for _ in 0..10 {
                pace.ready().await;
                pace.pay(50, 100);
            }
            pace.ready().await;
            let worked = ports.now().since(start).as_secs();
            ports.sleep(Duration::from_secs(100)).await;
            pace.pay(100, 100); // nothing was saved up meanwhile, and nothing is owed
            pace.ready().await;
            (worked, ports.now().since(start).as_secs())
        });
        assert_eq!(seconds, (5, 106));
    }
}
