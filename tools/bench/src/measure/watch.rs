//! The main thread during a measurement: shows progress, decides when the measured part begins, looks at processor times
//! when it begins and ends.

use super::course::{Course, Plan};
use super::steady::{SteadySearch, SteadyState};
use super::{CpuTime, ProcessCpu, Spent, Window};
use crate::output::ServerCpu;
use crate::progress::{Progress, TICK};
use crate::units::ns;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::Duration;

/// From the decision that the measured part begins until it does: by then every worker has heard of it.
const NOTICE_NS: u64 = 20_000_000;

/// An end of the measured part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Edge {
    /// It begins; said at the start as well, for who is interrupted before.
    Begin,
    /// It is over.
    End,
}

/// What was seen.
pub struct Watched {
    /// Processor time in the measured part.
    pub spent: Spent,
    /// That of servers.
    pub servers: Vec<ServerCpu>,
    /// When the measured part ended.
    pub end_ns: u64,
    /// What a search for a steady state found.
    pub steady: Option<SteadyState>,
}

/// Watches until the time is over, Ctrl-C, or all workers have ended, which drops the other end of `ended`. `at` is called at
/// both ends of the measured part; at the last one it may take its time.
pub fn watch(
    plan: &Plan,
    course: &Course,
    servers: &[(u32, ProcessCpu)],
    ended: &Receiver<()>,
    at: &mut dyn FnMut(Edge),
) -> Watched {
    let read_all = || {
        let servers: Vec<Option<CpuTime>> = servers.iter().map(|(_, process)| process.read()).collect();
        (Spent::now(), servers)
    };
    let mut search = plan.steady.map(|steady| SteadySearch::new(steady, ns(plan.warmup)));
    let mut steady = None;
    let planned_ms = ns(plan.warmup + plan.runtime) / 1_000_000;
    let (phase, len) = match (&search, plan.count) {
        (Some(_), _) => ("waiting for a steady state", None),
        (None, Some(count)) => ("measuring", Some(count)),
        (None, None) => ("measuring", Some(planned_ms)),
    };
    let mut progress = Progress::start(phase, len);
    at(Edge::Begin);
    let mut begin = read_all();
    let (mut is_warm, mut all_ended) = (false, false);
    loop {
        let now_ns = course.now_ns();
        if let Some(found) = search.as_mut().and_then(|search| search.look(now_ns, course.tally.read())) {
            (steady, search) = (Some(found), None);
            let start_ns = now_ns + NOTICE_NS;
            course.decide(Window { start_ns, end_ns: start_ns + ns(plan.runtime) });
            progress = Progress::start("measuring", Some((start_ns + ns(plan.runtime)) / 1_000_000));
        }
        let window = course.window();
        if !is_warm && now_ns >= window.start_ns {
            is_warm = true;
            begin = read_all();
            at(Edge::Begin);
        }
        if all_ended || now_ns >= window.end_ns || course.stop.is_set() {
            let end = read_all();
            at(Edge::End);
            let servers = servers.iter().zip(begin.1.iter().zip(&end.1));
            let servers = servers.map(|((pid, _), (begin, end))| {
                let used = begin.as_ref().zip(end.as_ref()).map(|(begin, end)| end.since(begin));
                ServerCpu { pid: *pid, used }
            });
            return Watched { spent: end.0.since(&begin.0), servers: servers.collect(), end_ns: now_ns, steady };
        }
        let next_ns = match &search {
            Some(search) => search.next_ns,
            None if is_warm => window.end_ns,
            None => window.start_ns,
        };
        let wait = Duration::from_nanos(next_ns.saturating_sub(now_ns)).min(TICK);
        all_ended = ended.recv_timeout(wait) == Err(RecvTimeoutError::Disconnected);
        match plan.count {
            Some(_) => progress.show_count(&course.tally),
            None => progress.show(now_ns / 1_000_000, &course.tally),
        }
    }
}
