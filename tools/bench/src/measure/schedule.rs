//! When operations are due in an open loop: evenly spaced, whether or not the server keeps up.

/// The share of one thread in the schedule of all.
#[derive(Clone, Debug)]
pub struct Schedule {
    rate: f64,
    next: u64,
    step: u64,
}

impl Schedule {
    /// Operations `thread`, `thread + threads`, ... of a schedule of `rate` operations a second.
    #[must_use]
    pub fn share(rate: f64, thread: usize, threads: usize) -> Schedule {
        Schedule { rate, next: thread as u64, step: threads.max(1) as u64 }
    }

    /// When the next operation is due. It does not depend on when the earlier ones ended.
    #[must_use]
    pub fn due_ns(&self) -> u64 {
        (self.next as f64 * 1e9 / self.rate) as u64
    }

    /// Number of the next operation among those of all threads.
    #[must_use]
    pub fn number(&self) -> u64 {
        self.next
    }

    /// Goes on to the one after it.
    pub fn advance(&mut self) {
        self.next += self.step;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_share_one_even_schedule() {
        let mut due = Vec::new();
        for thread in 0..3 {
            let mut schedule = Schedule::share(1000.0, thread, 3);
            for _ in 0..100 {
                due.push(schedule.due_ns());
                schedule.advance();
            }
        }
        due.sort_unstable();
        assert_eq!(due, (0..300).map(|number| number * 1_000_000).collect::<Vec<_>>());
    }
}
