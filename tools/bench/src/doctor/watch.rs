//! What else the machine does while nothing is measured: processor time of others and of other machines, pauses, the clock.

use super::not_measured;
use crate::cpus::{allowed, pin};
use crate::measure::{MachineCpu, processes};
use crate::plot::time;
use crate::stop::Stop;
use anyhow::{Context, Result};
use kiseki_server::doctor::{Finding, error, ok, warning};
use std::collections::BTreeMap;
use std::thread;
use std::time::{Duration, Instant};

/// Of the time of all processors. Above it the middle of a distribution moves.
const OTHERS_PERCENT_MAX: f64 = 5.0;
/// Of a machine at rest. Above it a percentile that one in a thousand decides is somebody else's.
const STEAL_AT_REST_PERCENT_MAX: f64 = 0.5;
/// A look at the clock that asks the processor takes some 25 ns.
const CLOCK_NS_MAX: u64 = 150;
/// A loop that never sleeps is interrupted for that long by a kernel that has to do, not by a scheduler.
const PAUSE_MAX: Duration = Duration::from_millis(2);
/// Between two looks whether it is over.
const LOOK_INTERVAL: Duration = Duration::from_millis(20);
/// How many of them are named.
const NAMED_MAX: usize = 3;

/// Watches for `for_time`.
pub fn examine(for_time: Duration, stop: &Stop) -> Result<Vec<Finding>> {
    let before = MachineCpu::now().context("can't read /proc/stat")?;
    let processes_before = processes();
    let until = Instant::now() + for_time;
    // Idle at first: a loop on each processor would keep others from it, and be all that is seen.
    let idle_until = until.checked_sub(for_time / 2).unwrap_or(until);
    while Instant::now() < idle_until && !stop.is_set() {
        thread::sleep(LOOK_INTERVAL.min(for_time));
    }
    if stop.is_set() {
        // A few ticks tell nothing.
        return Ok(vec![not_measured("other work"), not_measured("steal"), not_measured("pauses"), clock()]);
    }
    let idle = MachineCpu::now().context("can't read /proc/stat")?.since(&before);
    let named = busiest(&processes_before, &processes());
    let pauses = pauses(until, stop);
    let whole = MachineCpu::now().context("can't read /proc/stat")?.since(&before);
    Ok(vec![others(&idle, &named), steal(&whole), pause(&pauses), clock()])
}

fn busiest(before: &BTreeMap<u32, (String, u64)>, after: &BTreeMap<u32, (String, u64)>) -> Vec<String> {
    let own = std::process::id();
    let used = |(pid, (name, ticks)): (&u32, &(String, u64))| {
        let earlier = before.get(pid).map_or(0, |(_, ticks)| *ticks);
        (ticks.saturating_sub(earlier), format!("{name} ({pid})"))
    };
    let mut used: Vec<_> =
        after.iter().filter(|(pid, _)| **pid != own).map(used).filter(|(ticks, _)| *ticks > 0).collect();
    used.sort_by(|one, other| other.cmp(one));
    used.truncate(NAMED_MAX);
    used.into_iter().map(|(_, name)| name).collect()
}

fn others(idle: &MachineCpu, named: &[String]) -> Finding {
    let percent = idle.percent(idle.busy);
    let most = if named.is_empty() { String::new() } else { format!("; most by {}", named.join(", ")) };
    match percent > OTHERS_PERCENT_MAX {
        true => {
            error("other work", format!("{percent:.1} % of all processors{most}"), "end it, or wait until it is done")
        }
        false => ok("other work", format!("{percent:.1} % of all processors{most}")),
    }
}

fn steal(whole: &MachineCpu) -> Finding {
    let percent = whole.percent(whole.steal);
    match percent > STEAL_AT_REST_PERCENT_MAX {
        true => error(
            "steal",
            format!("other machines had {percent:.1} % of the processors' time when this one wanted it"),
            "measure at another time, or on processors of your own; results warn of steal while they ran",
        ),
        false => ok("steal", format!("{percent:.1} % of the processors' time")),
    }
}

/// The longest pause of a loop that never sleeps, of each processor.
fn pauses(until: Instant, stop: &Stop) -> Vec<(usize, Duration)> {
    let watch = |cpu: usize| {
        let _pinned = pin(cpu);
        let (mut last, mut longest) = (Instant::now(), Duration::ZERO);
        while last < until && !stop.is_set() {
            let now = Instant::now();
            longest = longest.max(now - last);
            last = now;
        }
        (cpu, longest)
    };
    thread::scope(|scope| {
        let threads: Vec<_> = allowed().into_iter().map(|cpu| scope.spawn(move || watch(cpu))).collect();
        threads.into_iter().map(|thread| thread.join().expect("a loop does not panic")).collect()
    })
}

fn pause(pauses: &[(usize, Duration)]) -> Finding {
    let longest = pauses.iter().max_by_key(|(_, longest)| *longest).copied();
    let Some((cpu, longest)) = longest.filter(|(_, longest)| !longest.is_zero()) else {
        return not_measured("pauses");
    };
    let seen = format!(
        "a loop that never sleeps was interrupted for {} at most, on processor {cpu}",
        time(longest.as_nanos() as f64)
    );
    match longest > PAUSE_MAX {
        true => warning(
            "pauses",
            format!("{seen}: the slowest operations of a run may be that"),
            "isolate processors (isolcpus=, cpusets), move interrupts away from them, and watch for longer (--runtime 1m)",
        ),
        false => ok("pauses", seen),
    }
}

fn clock() -> Finding {
    const LOOKS: u32 = 100_000;
    let began = Instant::now();
    for _ in 0..LOOKS {
        std::hint::black_box(Instant::now());
    }
    let each = began.elapsed() / LOOKS;
    match each.as_nanos() > u128::from(CLOCK_NS_MAX) {
        true => error(
            "clock",
            format!("a look at it takes {} ns", each.as_nanos()),
            "look at what is said of the clock source",
        ),
        false => ok("clock", format!("a look at it takes {} ns", each.as_nanos())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kiseki_server::doctor::Severity;

    #[test]
    fn others_are_told_with_the_names_of_the_busiest() {
        let row = |name: &str, ticks| (name.to_owned(), ticks);
        let before = BTreeMap::from([(1, row("init", 50)), (2, row("rustc", 100))]);
        let after = BTreeMap::from([
            (1, row("init", 50)),
            (2, row("rustc", 190)),
            (3, row("dd", 10)),
            (std::process::id(), row("own", 999)),
        ]);
        let named = busiest(&before, &after);
        assert_eq!(named, ["rustc (2)", "dd (3)"]);
        let found = others(&MachineCpu { total: 1000, busy: 100, steal: 0 }, &named);
        assert_eq!((found.severity, found.message.contains("10.0 %")), (Severity::Error, true), "{}", found.message);
        assert!(found.message.contains("rustc (2)"), "{}", found.message);
        assert_eq!(others(&MachineCpu { total: 1000, busy: 10, steal: 0 }, &[]).severity, Severity::Ok);
    }

    #[test]
    fn time_that_other_machines_took_spoils_figures() {
        assert_eq!(steal(&MachineCpu { total: 1000, busy: 0, steal: 6 }).severity, Severity::Error);
        assert_eq!(steal(&MachineCpu { total: 1000, busy: 0, steal: 5 }).severity, Severity::Ok);
    }

    #[test]
    fn the_longest_pause_of_any_processor_is_told() {
        let of = |ms| pause(&[(0, Duration::from_micros(5)), (1, Duration::from_millis(ms))]);
        assert_eq!((of(3).severity, of(1).severity), (Severity::Warning, Severity::Ok));
        assert!(of(3).message.contains("processor 1"));
        assert_eq!(pause(&[(0, Duration::ZERO)]).severity, Severity::Warning, "no loop ran");
    }

    #[test]
    fn an_interruption_says_that_nothing_was_measured() {
        let stop = Stop::default();
        stop.set();
        let findings = examine(Duration::from_secs(600), &stop).unwrap();
        for check in ["other work", "steal", "pauses"] {
            let found = findings.iter().find(|finding| finding.check == check).unwrap();
            assert!(found.message.contains("nothing was measured"), "{check}: {}", found.message);
        }
    }
}
