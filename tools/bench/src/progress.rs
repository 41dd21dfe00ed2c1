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
    latency_ns: AtomicU64,
}

/// Sums of a [`Tally`] at some time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Operations acknowledged.
    pub ops: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Operations failed.
    pub errors: u64,
    /// Latencies of the acknowledged ones, where those who count them say so.
    pub latency_ns: u64,
}

impl Tally {
    /// Counts an operation.
    pub fn done(&self, bytes: u64) {
        self.ops.fetch_add(1, Ordering::Relaxed);
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Counts an operation with its latency.
    pub fn done_in(&self, bytes: u64, latency_ns: u64) {
        self.done(bytes);
        self.latency_ns.fetch_add(latency_ns, Ordering::Relaxed);
    }

    /// Counts a failure.
    pub fn failed(&self) {
        self.errors.fetch_add(1, Ordering::Relaxed);
    }

    /// The sums now.
    #[must_use]
    pub fn read(&self) -> Totals {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let (ops, bytes, errors) = (load(&self.ops), load(&self.bytes), load(&self.errors));
        Totals { ops, bytes, errors, latency_ns: load(&self.latency_ns) }
    }
}

/// The line. It disappears when dropped.
pub struct Progress {
    bar: ProgressBar,
    last: Totals,
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
        Progress { bar, last: Totals::default(), shown: Instant::now() }
    }

    /// A line for work that only takes time: it says what is done and for how long.
    #[must_use]
    pub fn waiting(what: &str) -> Progress {
        let progress = Progress::start(what, None);
        let style =
            ProgressStyle::with_template("{prefix}, {elapsed}").unwrap_or_else(|_| ProgressStyle::default_bar());
        progress.bar.set_style(style);
        progress.bar.enable_steady_tick(TICK);
        progress
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
        let (ops, bytes) = (per_second(now.ops, self.last.ops), per_second(now.bytes, self.last.bytes));
        let errors = if now.errors > 0 { format!(", {} errors", now.errors) } else { String::new() };
        self.last = now;
        self.bar.set_position(position);
        self.bar.set_message(format!("{} IOPS, {}/s{errors}", count(ops), binary(bytes)));
    }

    /// Shows files and bytes, of as many as are known to come.
    pub fn show_files(&mut self, tally: &Tally, files: u64, len_bytes: u64) {
        if self.shown.elapsed() < TICK {
            return;
        }
        let passed_s = self.shown.elapsed().as_secs_f64();
        let now = tally.read();
        let rate = now.bytes.saturating_sub(self.last.bytes) as f64 / passed_s;
        let errors = if now.errors > 0 { format!(", {} errors", now.errors) } else { String::new() };
        (self.shown, self.last) = (Instant::now(), now);
        self.bar.set_position(now.bytes);
        self.bar.set_message(format!(
            "{}/{files} files, {} of {}, {}/s{errors}",
            now.ops,
            binary(now.bytes as f64),
            binary(len_bytes as f64),
            binary(rate)
        ));
    }

    /// Shows the operations done, for phases that end after a number of them.
    pub fn show_count(&mut self, tally: &Tally) {
        self.show(tally.read().ops, tally);
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
