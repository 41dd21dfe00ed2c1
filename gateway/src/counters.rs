//! What the gateway of one core has done, as plain numbers for whoever exports them.

use crate::phases::{PHASES, PhaseTimes};
use std::collections::BTreeMap;
use std::time::Duration;

/// Buckets of a latency histogram: bucket `i` counts requests that took less than `2^i` microseconds and not less
/// than half of that; the last one counts everything longer (over 67 s).
pub const LATENCY_BUCKETS: usize = 28;

/// Requests of one operation.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OperationCounters {
    /// Answers by status class: index 0 is 1xx, 4 is 5xx.
    pub answers_by_class: [u64; 5],
    /// Answers that the client did not take to the end.
    pub aborted: u64,
    /// From the request's head to the last byte of the answer handed to the connection.
    pub latency_us_buckets: [u64; LATENCY_BUCKETS],
    /// Sum of all latencies.
    pub latency_us_sum: u64,
    /// What those that were answered well spent it on.
    pub phases: PhaseTimes,
}

/// Everything the gateway of one core counts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GatewayCounters {
    /// By S3's name of the operation; requests that were refused before they were routed are `Unknown`.
    pub operations: BTreeMap<&'static str, OperationCounters>,
    /// GETs that were answered past `s3s`; they are in `operations` too.
    pub plain_reads: u64,
    /// Bytes of object content received, decoded.
    pub bytes_in: u64,
    /// Bytes of answers' bodies handed to connections.
    pub bytes_out: u64,
    /// Connections open now.
    pub connections: u64,
    /// Connections taken over since the start.
    pub connections_total: u64,
}

/// One answered request.
pub(crate) struct Answered {
    pub(crate) operation: &'static str,
    pub(crate) status: u16,
    pub(crate) bytes_in: u64,
    pub(crate) bytes_out: u64,
    pub(crate) latency: Duration,
    pub(crate) spent_ns: [u64; PHASES],
    pub(crate) aborted: bool,
}

impl GatewayCounters {
    pub(crate) fn count(&mut self, answered: &Answered) {
        let operation = self.operations.entry(answered.operation).or_default();
        let class = usize::from((answered.status / 100).clamp(1, 5)) - 1;
        operation.answers_by_class[class] += 1;
        operation.aborted += u64::from(answered.aborted);
        let latency_us = u64::try_from(answered.latency.as_micros()).unwrap_or(u64::MAX);
        operation.latency_us_buckets[latency_bucket(latency_us)] += 1;
        operation.latency_us_sum = operation.latency_us_sum.saturating_add(latency_us);
        if answered.status < 300 && !answered.aborted {
            operation.phases.count(answered.latency, &answered.spent_ns);
        }
        self.bytes_in += answered.bytes_in;
        self.bytes_out += answered.bytes_out;
    }

    /// Adds the counters of another core.
    pub fn add(&mut self, other: &GatewayCounters) {
        for (name, theirs) in &other.operations {
            let ours = self.operations.entry(name).or_default();
            ours.answers_by_class.iter_mut().zip(theirs.answers_by_class).for_each(|(a, b)| *a += b);
            ours.latency_us_buckets.iter_mut().zip(theirs.latency_us_buckets).for_each(|(a, b)| *a += b);
            ours.aborted += theirs.aborted;
            ours.phases.add(&theirs.phases);
            ours.latency_us_sum = ours.latency_us_sum.saturating_add(theirs.latency_us_sum);
        }
        self.plain_reads += other.plain_reads;
        self.bytes_in += other.bytes_in;
        self.bytes_out += other.bytes_out;
        self.connections += other.connections;
        self.connections_total += other.connections_total;
    }
}

fn latency_bucket(latency_us: u64) -> usize {
    let bits = (u64::BITS - latency_us.leading_zeros()) as usize;
    bits.min(LATENCY_BUCKETS - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_holds_what_is_below_its_power_of_two() {
        for (latency_us, bucket) in [(0, 0), (1, 1), (2, 2), (3, 2), (4, 3), (1023, 10), (1024, 11), (u64::MAX, 27)] {
            assert_eq!(latency_bucket(latency_us), bucket, "{latency_us} us");
        }
    }

    #[test]
    fn answers_are_counted_by_operation_and_class() {
        let mut counters = GatewayCounters::default();
        for (status, aborted) in [(200, false), (206, true), (404, false), (503, false)] {
            counters.count(&Answered {
                operation: "GetObject",
                status,
                bytes_in: 1,
                bytes_out: 10,
                latency: Duration::from_micros(100),
                spent_ns: [100; PHASES],
                aborted,
            });
        }
        let mut sum = counters.clone();
        sum.add(&counters);
        let get = &sum.operations["GetObject"];
        assert_eq!(get.answers_by_class, [0, 4, 0, 2, 2]);
        assert_eq!((get.aborted, get.latency_us_sum, get.latency_us_buckets[7]), (2, 800, 8));
        assert_eq!((sum.bytes_in, sum.bytes_out), (8, 80));
        let phases: Vec<_> = get.phases.filled().map(|(_, sums)| (sums.requests, sums.spent_ns[0])).collect();
        assert_eq!(
            phases,
            [(2, 200)],
            "of answers that were refused or not taken nobody learns what good ones wait for"
        );
    }
}
