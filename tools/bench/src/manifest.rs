//! What a figure depends on besides the thing measured: program, machine, options. It stands in every result.

use serde_json::{Map, Value, json};
use std::fs::read_to_string;
use std::time::{SystemTime, UNIX_EPOCH};

/// Everything about a run that is known before it begins.
#[derive(Clone, Debug)]
pub struct Manifest {
    /// The verb.
    pub verb: &'static str,
    /// Endpoint or paths.
    pub target: Value,
    /// Options as they took effect.
    pub options: Value,
    /// Wall clock at the start, milliseconds since 1970.
    pub started_unix_ms: u64,
    /// Load of the machine at the start, over one minute: what else ran.
    pub load_average: f64,
}

impl Manifest {
    /// Notes what is known now.
    #[must_use]
    pub fn new(verb: &'static str, target: Value, options: Value) -> Manifest {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let load = read_to_string("/proc/loadavg").ok();
        let load = load.and_then(|text| text.split_whitespace().next()?.parse().ok());
        Manifest {
            verb,
            target,
            options,
            started_unix_ms: u64::try_from(since.as_millis()).unwrap_or(u64::MAX),
            load_average: load.unwrap_or(0.0),
        }
    }

    /// As the JSON output shows it.
    #[must_use]
    pub fn json(&self) -> Value {
        let (name, release) = kernel();
        json!({
            "program": "kiseki-bench",
            "version": env!("CARGO_PKG_VERSION"),
            "git_commit": env!("KISEKI_BENCH_COMMIT"),
            "verb": self.verb,
            "target": self.target,
            "options": self.options,
            "started_unix_ms": self.started_unix_ms,
            "kernel": format!("{name} {release}"),
            "cpu_model": cpu_model(),
            "cpu_count": std::thread::available_parallelism().map_or(0, usize::from),
            "cpu_features": cpu_features(),
            "kernels": kernels(),
            "governor": governor(),
            "memory_bytes": memory_bytes(),
            "load_average_1m": self.load_average,
        })
    }

    /// One line for people.
    #[must_use]
    pub fn line(&self) -> String {
        let (name, release) = kernel();
        format!(
            "kiseki-bench {} ({}), {name} {release}, {}, {} CPUs, governor {}, load {:.2}",
            env!("CARGO_PKG_VERSION"),
            env!("KISEKI_BENCH_COMMIT"),
            cpu_model(),
            std::thread::available_parallelism().map_or(0, usize::from),
            governor().unwrap_or_else(|| "unknown".to_owned()),
            self.load_average,
        )
    }
}

fn kernel() -> (String, String) {
    let name = rustix::system::uname();
    (name.sysname().to_string_lossy().into_owned(), name.release().to_string_lossy().into_owned())
}

fn cpu_model() -> String {
    let text = read_to_string("/proc/cpuinfo").unwrap_or_default();
    let line = text.lines().find(|line| line.starts_with("model name"));
    line.and_then(|line| line.split_once(": ")).map_or("unknown", |(_, model)| model.trim()).to_owned()
}

/// What the frequency governor of the first CPU is called; virtual machines show none.
fn governor() -> Option<String> {
    let text = read_to_string("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor").ok()?;
    Some(text.trim().to_owned())
}

fn memory_bytes() -> u64 {
    let text = read_to_string("/proc/meminfo").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"));
    let kib = line.and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok());
    kib.unwrap_or(0) * 1024
}

/// Instruction sets that the kernels choose by.
#[cfg(target_arch = "x86_64")]
fn cpu_features() -> Vec<&'static str> {
    macro_rules! present {
        ($($feature:tt),*) => {
            [$(($feature, std::is_x86_feature_detected!($feature))),*]
        };
    }
    let features = present!("aes", "avx2", "avx512f", "avx512bw", "avx512vbmi", "gfni", "sha", "vaes", "vpclmulqdq");
    features.into_iter().filter_map(|(name, present)| present.then_some(name)).collect()
}

/// Other processors run the plain kernels.
#[cfg(not(target_arch = "x86_64"))]
fn cpu_features() -> Vec<&'static str> {
    Vec::new()
}

/// The kernels that this processor gets.
fn kernels() -> Map<String, Value> {
    let fastest = |name: Option<String>| Value::from(name.unwrap_or_default());
    let cut = kiseki_kernels::rabin::Kernel::runnable().last().map(|kernel| format!("{kernel:?}"));
    let id = Some(format!("{:?}", kiseki_kernels::sha256::Kernel::chosen()));
    let seal = Some(format!("{:?}", kiseki_engine::envelope::CipherLibrary::fastest()));
    Map::from_iter([
        ("cut".to_owned(), fastest(cut)),
        ("id".to_owned(), fastest(id)),
        ("seal".to_owned(), fastest(seal)),
    ])
}
