//! What the kernel says of the machine: clocks, processors, limits, memory.

use crate::cpus::allowed;
use kiseki_server::doctor::{Finding, error, io_uring, memlock, ok, warning};
use std::fs::{read_dir, read_to_string};
use std::path::PathBuf;

/// Of memory that has to be there without taking it from somebody.
const MEMORY_AVAILABLE_PERCENT_MIN: u64 = 10;

/// Where `/proc` and `/sys` lie.
pub struct Root(PathBuf);

impl Default for Root {
    fn default() -> Root {
        Root(PathBuf::from("/"))
    }
}

impl Root {
    /// Somewhere else, with files that a test made.
    #[cfg(test)]
    pub fn at(path: PathBuf) -> Root {
        Root(path)
    }

    /// The content of a file without the line's end; `None` when it is not there.
    pub fn read(&self, path: &str) -> Option<String> {
        Some(read_to_string(self.0.join(path)).ok()?.trim().to_owned())
    }

    /// What lies in a directory.
    pub fn names(&self, path: &str) -> Vec<String> {
        let entries = read_dir(self.0.join(path)).into_iter().flatten().flatten();
        let mut names: Vec<String> = entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        names
    }
}

/// Looks at everything.
pub fn examine(root: &Root) -> Vec<Finding> {
    let mut findings = vec![build(), processor(root), virtual_machine(root), governor(root), clock_source(root)];
    findings.extend([boost(root), siblings(root), quota(root)].into_iter().flatten());
    // As many executors as there may be, with a node's buffers each.
    findings.extend([io_uring(), memlock(u16::try_from(allowed().len()).unwrap_or(u16::MAX))]);
    findings.extend([huge_pages(root), memory(root), swap(root), numa(root)].into_iter().flatten());
    findings
}

fn build() -> Finding {
    match cfg!(debug_assertions) {
        true => error("build", "this is a debug build: it measures itself", "cargo build --release -p kiseki-bench"),
        false => ok("build", "optimized"),
    }
}

/// Without these the kernels that cut, hash, seal and encode are slower ones.
fn processor(root: &Root) -> Finding {
    let flags = cpu_flags(root);
    let wanted = ["aes", "sha_ni", "avx2", "avx512bw", "avx512vbmi", "vaes", "vpclmulqdq", "gfni"];
    let missing: Vec<&str> = wanted.into_iter().filter(|name| !flags.iter().any(|flag| flag == name)).collect();
    match missing.is_empty() {
        true => ok("processor", "has all instruction sets that kernels choose by"),
        false => warning(
            "processor",
            format!("lacks {}: kernels that go without them are slower", missing.join(", ")),
            "compare with machines of the same kind only (manifest: kernels); a virtual machine may be given more",
        ),
    }
}

fn cpu_flags(root: &Root) -> Vec<String> {
    let text = root.read("proc/cpuinfo").unwrap_or_default();
    let line = text.lines().find(|line| line.starts_with("flags")).and_then(|line| line.split_once(':'));
    line.map_or_else(Vec::new, |(_, flags)| flags.split_whitespace().map(str::to_owned).collect())
}

fn virtual_machine(root: &Root) -> Finding {
    match cpu_flags(root).iter().any(|flag| flag == "hypervisor") {
        true => warning(
            "virtual machine",
            "others may use the same processors and disks; what they take is seen as steal and stalls, or not at all",
            "measure in turns (A B A B) and compare medians, or measure on the hardware itself",
        ),
        false => ok("virtual machine", "none"),
    }
}

fn governor(root: &Root) -> Finding {
    let of = |cpu: &String| root.read(&format!("sys/devices/system/cpu/{cpu}/cpufreq/scaling_governor"));
    let mut governors: Vec<String> = root.names("sys/devices/system/cpu").iter().filter_map(of).collect();
    governors.sort();
    governors.dedup();
    match governors.as_slice() {
        [] => ok("governor", "not shown here: somebody else sets frequencies"),
        [one] if one == "performance" => ok("governor", "performance"),
        others => error(
            "governor",
            format!("{}: processors slow down when little is to do, and latencies tell of that", others.join(", ")),
            "cpupower frequency-set -g performance",
        ),
    }
}

fn clock_source(root: &Root) -> Finding {
    let current = root.read("sys/devices/system/clocksource/clocksource0/current_clocksource");
    match current.as_deref() {
        Some(name @ ("tsc" | "arch_sys_counter" | "kvm-clock")) => ok("clock source", name),
        None => ok("clock source", "not shown here"),
        Some(other) => error(
            "clock source",
            format!("{other}: each look at the clock is a system call, and every operation looks twice"),
            "boot with tsc=reliable, or give the virtual machine an invariant TSC",
        ),
    }
}

fn boost(root: &Root) -> Option<Finding> {
    let no_turbo = root.read("sys/devices/system/cpu/intel_pstate/no_turbo").map(|text| text == "0");
    let is_on = no_turbo.or_else(|| root.read("sys/devices/system/cpu/cpufreq/boost").map(|text| text == "1"))?;
    Some(match is_on {
        true => warning(
            "boost clock",
            "is on: figures depend on temperature and on how many cores work",
            "echo 1 > /sys/devices/system/cpu/intel_pstate/no_turbo   (AMD: echo 0 > /sys/devices/system/cpu/cpufreq/boost)",
        ),
        false => ok("boost clock", "off"),
    })
}

fn siblings(root: &Root) -> Option<Finding> {
    let is_active = root.read("sys/devices/system/cpu/smt/active")? == "1";
    Some(match is_active {
        true => warning(
            "hardware threads",
            "two share a core: figures per processor are those of half a core when both work",
            "pin to one of each core (taskset, --cpu), or echo off > /sys/devices/system/cpu/smt/control",
        ),
        false => ok("hardware threads", "one a core"),
    })
}

/// A container's limit of processor time stops all threads for the rest of each period.
fn quota(root: &Root) -> Option<Finding> {
    let group = root.read("proc/self/cgroup")?;
    let path = group.lines().find_map(|line| line.strip_prefix("0::"))?.trim_matches('/').to_owned();
    let mut above = Some(path.as_str());
    while let Some(group) = above {
        let text = root.read(&format!("sys/fs/cgroup/{group}/cpu.max")).unwrap_or_default();
        if let Some((limit, period)) = text.split_once(' ')
            && limit != "max"
        {
            return Some(error(
                "processor quota",
                format!("this control group stops after {limit} of each {period} us: that is seen as latency"),
                "run it without a limit (docker run without --cpus; systemd: CPUQuota=)",
            ));
        }
        above = match group.rsplit_once('/') {
            Some((group, _)) => Some(group),
            None if group.is_empty() => None,
            None => Some(""),
        };
    }
    Some(ok("processor quota", "none"))
}

fn huge_pages(root: &Root) -> Option<Finding> {
    let setting = root.read("sys/kernel/mm/transparent_hugepage/enabled")?;
    Some(match setting.contains("[never]") {
        true => warning(
            "huge pages",
            "transparent ones are off: kernels that go over much memory wait for page tables",
            "echo madvise > /sys/kernel/mm/transparent_hugepage/enabled",
        ),
        false => ok("huge pages", setting),
    })
}

/// A line of `/proc/meminfo`, in KiB.
fn meminfo(root: &Root, name: &str) -> Option<u64> {
    let text = root.read("proc/meminfo")?;
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    line.split_whitespace().next()?.parse().ok()
}

fn memory(root: &Root) -> Option<Finding> {
    let (total, available) = (meminfo(root, "MemTotal")?, meminfo(root, "MemAvailable")?);
    let percent = available * 100 / total.max(1);
    Some(match percent < MEMORY_AVAILABLE_PERCENT_MIN {
        true => error(
            "memory",
            format!("{percent} % of {} MiB are left: the kernel takes pages back while it is measured", total >> 10),
            "end what holds it",
        ),
        false => ok("memory", format!("{percent} % of {} MiB are left", total >> 10)),
    })
}

fn swap(root: &Root) -> Option<Finding> {
    let used = meminfo(root, "SwapTotal")?.saturating_sub(meminfo(root, "SwapFree")?);
    Some(match used > 0 {
        true => warning(
            "swap",
            format!("{} MiB lie on a disk and may be wanted back", used >> 10),
            "swapoff -a && swapon -a",
        ),
        false => ok("swap", "nothing is swapped out"),
    })
}

fn numa(root: &Root) -> Option<Finding> {
    let names = root.names("sys/devices/system/node");
    let count =
        names.iter().filter(|name| name.strip_prefix("node").is_some_and(|rest| rest.parse::<u32>().is_ok())).count();
    (count > 1).then(|| {
        warning(
            "memory nodes",
            format!("{count}: memory and drives of another one are farther away"),
            "numactl --cpunodebind=N --membind=N, with the node of the drives (/sys/block/*/device/numa_node)",
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use kiseki_server::doctor::Severity;
    use std::fs::{create_dir_all, write};

    fn machine(files: &[(&str, &str)]) -> (tempfile::TempDir, Root) {
        let dir = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = dir.path().join(path);
            create_dir_all(path.parent().unwrap()).unwrap();
            write(path, text).unwrap();
        }
        let root = Root::at(dir.path().to_owned());
        (dir, root)
    }

    fn severity(findings: &[Finding], check: &str) -> Option<Severity> {
        findings.iter().find(|finding| finding.check == check).map(|finding| finding.severity)
    }

    #[test]
    fn what_spoils_figures_is_named_with_what_mends_it() {
        let (_dir, root) = machine(&[
            ("proc/cpuinfo", "processor\t: 0\nflags\t\t: fpu aes avx2 hypervisor\n"),
            ("proc/meminfo", "MemTotal: 1000000 kB\nMemAvailable: 90000 kB\nSwapTotal: 2048 kB\nSwapFree: 0 kB\n"),
            ("proc/self/cgroup", "0::/slice/box\n"),
            ("sys/fs/cgroup/slice/cpu.max", "150000 100000\n"),
            ("sys/fs/cgroup/slice/box/cpu.max", "max 100000\n"),
            ("sys/devices/system/cpu/cpu0/cpufreq/scaling_governor", "performance\n"),
            ("sys/devices/system/cpu/cpu1/cpufreq/scaling_governor", "powersave\n"),
            ("sys/devices/system/cpu/intel_pstate/no_turbo", "0\n"),
            ("sys/devices/system/cpu/smt/active", "1\n"),
            ("sys/devices/system/clocksource/clocksource0/current_clocksource", "hpet\n"),
            ("sys/devices/system/node/node0/cpulist", "0\n"),
            ("sys/devices/system/node/node1/cpulist", "1\n"),
            ("sys/kernel/mm/transparent_hugepage/enabled", "always madvise [never]\n"),
        ]);
        let findings = examine(&root);
        for check in ["governor", "clock source", "processor quota", "memory"] {
            assert_eq!(severity(&findings, check), Some(Severity::Error), "{check}");
        }
        for check in
            ["processor", "virtual machine", "boost clock", "hardware threads", "huge pages", "swap", "memory nodes"]
        {
            assert_eq!(severity(&findings, check), Some(Severity::Warning), "{check}");
        }
        assert!(findings.iter().all(|finding| (finding.severity == Severity::Ok) == finding.remedy.is_empty()));
        let quota = findings.iter().find(|finding| finding.check == "processor quota").unwrap();
        assert!(quota.message.contains("150000"), "that of a group above counts too: {}", quota.message);
    }

    #[test]
    fn a_machine_that_is_set_up_well_has_no_finding() {
        let (_dir, root) = machine(&[
            ("proc/cpuinfo", "flags : aes sha_ni avx2 avx512bw avx512vbmi vaes vpclmulqdq gfni\n"),
            ("proc/meminfo", "MemTotal: 1000000 kB\nMemAvailable: 900000 kB\nSwapTotal: 0 kB\nSwapFree: 0 kB\n"),
            ("proc/self/cgroup", "0::/\n"),
            ("sys/fs/cgroup/cpu.max", "max 100000\n"),
            ("sys/devices/system/cpu/cpu0/cpufreq/scaling_governor", "performance\n"),
            ("sys/devices/system/cpu/smt/active", "0\n"),
            ("sys/devices/system/cpu/cpufreq/boost", "0\n"),
            ("sys/devices/system/clocksource/clocksource0/current_clocksource", "tsc\n"),
            ("sys/devices/system/node/node0/cpulist", "0\n"),
            ("sys/kernel/mm/transparent_hugepage/enabled", "always [madvise] never\n"),
        ]);
        // What depends on the machine that the test runs on: what it allows, and how it was built.
        let own = ["build", "io_uring", "locked memory"];
        let bad = |finding: &&Finding| finding.severity != Severity::Ok && !own.contains(&finding.check);
        assert_eq!(examine(&root).iter().find(bad).map(|finding| &finding.message), None);
    }
}
