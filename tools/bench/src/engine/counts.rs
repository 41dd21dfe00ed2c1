//! What a core counts while clients work: flushes, ring calls, which way objects went.

use kiseki_server::executor::OpenCore;
use serde_json::{Map, Value, json};

/// Counters of a core, or of all of them, since the start or over the window.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Flushes of devices.
    pub device_flushes: u64,
    /// Writes that waited for them.
    pub device_flush_waiters: u64,
    /// Flushes of Raft journals, each metadata directory's by itself.
    pub journal_flushes: u64,
    /// System calls for the ring.
    pub ring_calls: u64,
    /// Objects stored beside their names.
    pub inline_writes: u64,
    /// Chunks stored.
    pub chunks_written: u64,
    /// Chunks that were there already.
    pub chunks_deduplicated: u64,
}

impl Counts {
    /// Those of a core since its start.
    pub fn read(open: &OpenCore) -> Counts {
        let (device_flushes, device_flush_waiters) = open.node.fragments().flushes();
        let core = open.node.engine().core();
        Counts {
            device_flushes,
            device_flush_waiters,
            journal_flushes: open.log_gates.iter().map(|gate| gate.flush_count()).sum(),
            ring_calls: kiseki_executor::stats().enters,
            inline_writes: core.inline.writes.get(),
            chunks_written: core.counters.chunks_written.get(),
            chunks_deduplicated: core.counters.chunks_deduplicated.get(),
        }
    }

    fn with(self, other: &Counts, join: fn(u64, u64) -> u64) -> Counts {
        Counts {
            device_flushes: join(self.device_flushes, other.device_flushes),
            device_flush_waiters: join(self.device_flush_waiters, other.device_flush_waiters),
            journal_flushes: join(self.journal_flushes, other.journal_flushes),
            ring_calls: join(self.ring_calls, other.ring_calls),
            inline_writes: join(self.inline_writes, other.inline_writes),
            chunks_written: join(self.chunks_written, other.chunks_written),
            chunks_deduplicated: join(self.chunks_deduplicated, other.chunks_deduplicated),
        }
    }

    /// What came since `earlier`.
    pub fn since(self, earlier: &Counts) -> Counts {
        self.with(earlier, u64::saturating_sub)
    }

    /// Both together.
    pub fn plus(self, other: &Counts) -> Counts {
        self.with(other, u64::wrapping_add)
    }

    /// Flushes of either kind.
    pub fn syncs(&self) -> u64 {
        self.device_flushes + self.journal_flushes
    }

    /// As the JSON output shows it.
    pub fn json(&self, ops: u64) -> Map<String, Value> {
        let Value::Object(map) = json!({
            "device_flushes": self.device_flushes,
            "device_flush_waiters": self.device_flush_waiters,
            "journal_flushes": self.journal_flushes,
            "syncs_per_op": per(self.syncs(), ops),
            "ring_calls": self.ring_calls,
            "ring_calls_per_op": per(self.ring_calls, ops),
            "inline_writes": self.inline_writes,
            "chunks_written": self.chunks_written,
            "chunks_deduplicated": self.chunks_deduplicated,
        }) else {
            return Map::new();
        };
        map
    }

    /// The same for people.
    pub fn lines(&self, ops: u64) -> Vec<String> {
        let per = |count: u64| per(count, ops);
        vec![
            format!(
                "syncs : {:.3}/op ({:.3} of devices, {:.3} of Raft journals), {:.2} ring calls/op",
                per(self.syncs()),
                per(self.device_flushes),
                per(self.journal_flushes),
                per(self.ring_calls),
            ),
            format!(
                "stored: {} objects beside their names, {} chunks, {} chunks that were there already",
                self.inline_writes, self.chunks_written, self.chunks_deduplicated
            ),
        ]
    }
}

fn per(count: u64, ops: u64) -> f64 {
    if ops == 0 { 0.0 } else { count as f64 / ops as f64 }
}
