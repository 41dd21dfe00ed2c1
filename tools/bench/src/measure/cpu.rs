//! Processor time: of this process, of one of its threads, of a server on the same machine.

use super::MachineCpu;
use crate::usage::usage;
use anyhow::Result;
use rustix::time::{ClockId, clock_gettime};

/// Nanoseconds of one tick in /proc/PID/stat: USER_HZ is 100 on every Linux that this runs on.
const TICK_NS: u64 = 10_000_000;

/// Processor time used so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CpuTime {
    /// In user mode.
    pub user_ns: u64,
    /// In the kernel.
    pub system_ns: u64,
}

impl CpuTime {
    /// Both.
    #[must_use]
    pub fn total_ns(&self) -> u64 {
        self.user_ns + self.system_ns
    }

    /// What was used since `earlier`.
    #[must_use]
    pub fn since(&self, earlier: &CpuTime) -> CpuTime {
        CpuTime {
            user_ns: self.user_ns.saturating_sub(earlier.user_ns),
            system_ns: self.system_ns.saturating_sub(earlier.system_ns),
        }
    }
}

/// What this process has used of the machine's processors, and what others took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Spent {
    /// Used by this process.
    pub own: CpuTime,
    /// Of the whole machine; all zero where the kernel does not say.
    pub machine: MachineCpu,
}

impl Spent {
    /// Until now.
    #[must_use]
    pub fn now() -> Spent {
        let own = ProcessCpu::own().read().unwrap_or_default();
        Spent { own, machine: MachineCpu::now().unwrap_or_default() }
    }

    /// What was spent since `earlier`.
    #[must_use]
    pub fn since(&self, earlier: &Spent) -> Spent {
        Spent { own: self.own.since(&earlier.own), machine: self.machine.since(&earlier.machine) }
    }
}

/// A process whose processor time can be read.
#[derive(Clone, Debug)]
pub struct ProcessCpu {
    path: String,
}

impl ProcessCpu {
    /// This process.
    #[must_use]
    pub fn own() -> ProcessCpu {
        ProcessCpu { path: "/proc/self/stat".to_owned() }
    }

    /// A process of this machine. Errors when there is none.
    pub fn of(pid: u32) -> Result<ProcessCpu> {
        let process = ProcessCpu { path: format!("/proc/{pid}/stat") };
        match process.read() {
            Some(_) => Ok(process),
            None => Err(usage(format!("--server-pid {pid}: there is no such process on this machine"))),
        }
    }

    /// Time used by all its threads, also those that ended; `None` when the process is gone.
    #[must_use]
    pub fn read(&self) -> Option<CpuTime> {
        parse_stat(&std::fs::read_to_string(&self.path).ok()?)
    }
}

/// Fields 14 and 15 of /proc/PID/stat. The second field is a name in parentheses that may hold anything.
fn parse_stat(text: &str) -> Option<CpuTime> {
    let mut fields = text[text.rfind(')')? + 1..].split_whitespace().skip(11);
    let mut ticks = || fields.next()?.parse::<u64>().ok();
    Some(CpuTime { user_ns: ticks()? * TICK_NS, system_ns: ticks()? * TICK_NS })
}

/// Processor time of the calling thread.
#[must_use]
pub fn thread_cpu_ns() -> u64 {
    let now = clock_gettime(ClockId::ThreadCPUTime);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stat_is_read_behind_a_hostile_name() {
        let text = "77 (a ) b (c) S 1 77 77 0 -1 4194560 1 2 3 4 250 31 0 0 20 0 5 0 99 1 2";
        assert_eq!(parse_stat(text), Some(CpuTime { user_ns: 2_500_000_000, system_ns: 310_000_000 }));
        assert_eq!(parse_stat("77 (x) S 1"), None);
        assert!(ProcessCpu::own().read().is_some() && ProcessCpu::of(u32::MAX).is_err());
    }
}
