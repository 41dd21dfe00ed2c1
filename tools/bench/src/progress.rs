//! The progress line on stderr, shown on a terminal only, and the counters behind it.

use crate::units::{binary, count};
use indicatif::{ProgressBar, ProgressStyle};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// How often the line changes.
pub const TICK: Duration = Duration::from_millis(200);

/// What all threads have done so far. Relaxed additions: nothing is decided by them.
#[derive(Debug, Default)]
pub struct Tally {
    ops: AtomicU64,
    bytes: AtomicU64,
    errors: AtomicU64,
}

impl Tally {
    /// Counts an operation.
    pub fn done(&self, bytes: u64) {
        self.ops.fetch_add(1, Ordering::Relaxed);
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Counts a failure.
    pub fn failed(&self) {
        self.errors.fetch_add(1, Ordering::Relaxed);
    }

    fn read(&self) -> (u64, u64, u64) {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        (load(&self.ops), load(&self.bytes), load(&self.errors))
    }
}

/// The line. It disappears when dropped.
pub struct Progress {
    bar: ProgressBar,
    last: (u64, u64, u64),
    shown: Instant,
}

impl Progress {
    /// A line for a phase of known length (in ms, or operations), `None` for one without.
    #[must_use]
    pub fn start(phase: &str, len: Option<u64>) -> Progress {
        let bar = match len {
            Some(len) => ProgressBar::new(len),
            None => ProgressBar::new_spinner(),
        };
        let template = if len.is_some() { "{prefix} [{bar:30}] {percent:>3}% {msg}" } else { "{prefix} {msg}" };
        let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
        bar.set_style(style.progress_chars("=> "));
        bar.set_prefix(phase.to_owned());
        Progress { bar, last: (0, 0, 0), shown: Instant::now() }
    }

    /// Shows where we are and what was done since it was last shown; not more often than every [`TICK`].
    pub fn show(&mut self, position: u64, tally: &Tally) {
        let passed_s = self.shown.elapsed().as_secs_f64();
        if passed_s < TICK.as_secs_f64() {
            return;
        }
        self.shown = Instant::now();
        let now = tally.read();
        let per_second = |now: u64, last: u64| now.saturating_sub(last) as f64 / passed_s;
        let (ops, bytes) = (per_second(now.0, self.last.0), per_second(now.1, self.last.1));
        let errors = if now.2 > 0 { format!(", {} errors", now.2) } else { String::new() };
        self.last = now;
        self.bar.set_position(position);
        self.bar.set_message(format!("{} IOPS, {}/s{errors}", count(ops), binary(bytes)));
    }

    /// Shows the operations done, for phases that end after a number of them.
    pub fn show_count(&mut self, tally: &Tally) {
        self.show(tally.read().0, tally);
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
