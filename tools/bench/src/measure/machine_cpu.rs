//! Processor time of the whole machine: what others used, and what other machines took.

use std::collections::BTreeMap;
use std::fs::{read_dir, read_to_string};

/// Times of all processors in ticks, from `/proc/stat`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MachineCpu {
    /// All of it, idle too.
    pub total: u64,
    /// Used here, by whomever.
    pub busy: u64,
    /// Wanted here and given to another machine.
    pub steal: u64,
}

impl MachineCpu {
    /// Until now; `None` where the kernel does not say.
    #[must_use]
    pub fn now() -> Option<MachineCpu> {
        MachineCpu::parse(&read_to_string("/proc/stat").ok()?)
    }

    fn parse(text: &str) -> Option<MachineCpu> {
        let line = text.lines().find_map(|line| line.strip_prefix("cpu "))?;
        let ticks: Option<Vec<u64>> = line.split_whitespace().map(|word| word.parse().ok()).collect();
        // user nice system idle iowait irq softirq steal; guests' time behind them is in user and nice.
        let ticks: [u64; 8] = ticks?.get(..8)?.try_into().ok()?;
        let [user, nice, system, idle, iowait, irq, softirq, steal] = ticks;
        let busy = user + nice + system + irq + softirq;
        Some(MachineCpu { total: busy + idle + iowait + steal, busy, steal })
    }

    /// What came since `earlier`.
    #[must_use]
    pub fn since(&self, earlier: &MachineCpu) -> MachineCpu {
        MachineCpu {
            total: self.total.saturating_sub(earlier.total),
            busy: self.busy.saturating_sub(earlier.busy),
            steal: self.steal.saturating_sub(earlier.steal),
        }
    }

    /// How much of all time `ticks` are.
    #[must_use]
    pub fn percent(&self, ticks: u64) -> f64 {
        ticks as f64 * 100.0 / self.total.max(1) as f64
    }
}

/// Names and ticks of all processes, by number.
#[must_use]
pub fn processes() -> BTreeMap<u32, (String, u64)> {
    let entries = read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    pids.filter_map(|pid| Some((pid, process(&read_to_string(format!("/proc/{pid}/stat")).ok()?)?))).collect()
}

fn process(stat: &str) -> Option<(String, u64)> {
    // A name stands in brackets and may hold any bytes, brackets too.
    let (head, rest) = stat.rsplit_once(") ")?;
    let (_, name) = head.split_once(" (")?;
    let ticks: Vec<u64> = rest.split_whitespace().skip(11).take(2).filter_map(|word| word.parse().ok()).collect();
    (ticks.len() == 2).then(|| (name.to_owned(), ticks.iter().sum()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_as_the_kernel_writes_them() {
        let machine = MachineCpu::parse("cpu  100 20 30 800 40 5 5 10 7 0\ncpu0 1 1 1 1 1 1 1 1 1 1\n").unwrap();
        assert_eq!(machine, MachineCpu { total: 1010, busy: 160, steal: 10 });
        assert_eq!(MachineCpu::parse("cpu  1 2 3\n"), None);
        let later = MachineCpu { total: 2010, busy: 160, steal: 60 };
        assert!((later.since(&machine).percent(later.since(&machine).steal) - 5.0).abs() < 1e-9);
        let line = "7 (a) b) S 1 7 7 0 -1 4194560 1 2 3 4 11 22 0 0 20 0 1 0 5 6 7";
        assert_eq!(process(line), Some(("a) b".to_owned(), 33)));
        assert!(processes().contains_key(&std::process::id()));
    }
}
