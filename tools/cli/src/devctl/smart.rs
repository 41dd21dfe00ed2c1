//! `smart`: how drives fare.

use super::node::{NodeArgs, load};
use anyhow::{Context, Result};
use kiseki_devices::nvme::smart::{CriticalWarnings, SmartLog};
use kiseki_devices::topology::{KernelRoots, Topology};
use kiseki_server::config::HealthSection;
use kiseki_server::smart::{SmartAnswer, ask};
use serde_json::{Value, json};
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Shows the SMART log of NVMe drives, and whether a drive should be emptied.
///
/// Without a device: all of the node's. Verdicts: good; watch (the drive warns of something); evacuate (wear over 90 %
/// or more than 100 media errors: empty it with `kiseki-devctl drain` and replace it). Exit code: 0 when all are good or
/// have no such log, 1 otherwise.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  kiseki-devctl smart                      all drives of the node
  kiseki-devctl smart /dev/nvme0n1 --json")]
pub struct Args {
    /// Drives; all of the node when none is named.
    devices: Vec<PathBuf>,
    #[command(flatten)]
    node: NodeArgs,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// What is to be done about a drive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Good,
    Watch,
    Evacuate,
}

impl Verdict {
    /// I-D3 decides about evacuation; what the drive warns of besides is for people.
    fn of(log: &SmartLog, limits: &HealthSection) -> (Verdict, Vec<String>) {
        let mut reasons = Vec::new();
        if log.used_percent > limits.used_percent_max {
            reasons.push(format!("{} % of its life is used", log.used_percent));
        }
        if log.media_errors > limits.media_errors_max {
            reasons.push(format!("{} media errors", log.media_errors));
        }
        let verdict = match (reasons.is_empty(), log.critical.texts().is_empty()) {
            (false, _) => Verdict::Evacuate,
            (true, false) => Verdict::Watch,
            (true, true) => Verdict::Good,
        };
        reasons.extend(log.critical.texts().into_iter().map(str::to_owned));
        (verdict, reasons)
    }

    fn name(self) -> &'static str {
        match self {
            Verdict::Good => "good",
            Verdict::Watch => "watch",
            Verdict::Evacuate => "evacuate",
        }
    }
}

pub fn run(args: Args) -> Result<ExitCode> {
    let roots = KernelRoots::default();
    let topology = Topology::read(&roots).context("can't list the devices of this machine")?;
    let is_named = !args.devices.is_empty();
    // The limits of the node, where there is one: its wear watch goes by them.
    let limits = load(args.node.dir.clone()).map(|config| config.health).unwrap_or_default();
    let devices = match is_named {
        true => args.devices,
        false => load(args.node.dir).context("name a device, or the directory of a node with --dir")?.devices,
    };
    let answers: Vec<(PathBuf, SmartAnswer)> =
        devices.into_iter().map(|path| (path.clone(), ask(&path, &topology, &roots))).collect();
    match args.json {
        true => {
            println!("{:#}", Value::Array(answers.iter().map(|(path, answer)| json(path, answer, &limits)).collect()))
        }
        false => answers.iter().for_each(|(path, answer)| print!("{}", text(path, answer, &limits))),
    }
    let is_good = |answer: &SmartAnswer| match answer {
        SmartAnswer::Log(log) => Verdict::of(log, &limits).0 == Verdict::Good,
        SmartAnswer::None => !is_named,
        SmartAnswer::Failed(_) => false,
    };
    Ok(if answers.iter().all(|(_, answer)| is_good(answer)) { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn text(path: &Path, answer: &SmartAnswer, limits: &HealthSection) -> String {
    let path = path.display();
    match answer {
        SmartAnswer::None => format!("{path}: no SMART log: it is no NVMe drive (smartctl asks SATA and SAS disks)\n"),
        SmartAnswer::Failed(reason) => format!("{path}: can't be asked: {reason}\n"),
        SmartAnswer::Log(log) => log_text(&path.to_string(), log, limits),
    }
}

fn log_text(path: &str, log: &SmartLog, limits: &HealthSection) -> String {
    let (verdict, reasons) = Verdict::of(log, limits);
    let reasons = if reasons.is_empty() { String::new() } else { format!(": {}", reasons.join(", ")) };
    let mut out = format!("{path}: {}{reasons}\n", verdict.name());
    let temperature = log
        .temperature_celsius()
        .map_or("-".to_owned(), |celsius| format!("{celsius} °C ({} K)", log.temperature_kelvin));
    for (name, value) in [
        ("critical_warning", format!("{:#x}", warning_bits(&log.critical))),
        ("temperature", temperature),
        ("available_spare", format!("{}%", log.spare_percent)),
        ("available_spare_threshold", format!("{}%", log.spare_threshold_percent)),
        ("percentage_used", format!("{}%", log.used_percent)),
        ("data_units_read", format!("{} ({})", log.data_units_read, super::render::decimal(log.bytes_read()))),
        ("data_units_written", format!("{} ({})", log.data_units_written, super::render::decimal(log.bytes_written()))),
        ("host_read_commands", log.host_reads.to_string()),
        ("host_write_commands", log.host_writes.to_string()),
        ("controller_busy_time", log.busy_minutes.to_string()),
        ("power_cycles", log.power_cycles.to_string()),
        ("power_on_hours", log.power_on_hours.to_string()),
        ("unsafe_shutdowns", log.unsafe_shutdowns.to_string()),
        ("media_errors", log.media_errors.to_string()),
        ("num_err_log_entries", log.error_log_entries.to_string()),
        ("warning_temp_time", log.hot_minutes.to_string()),
        ("critical_comp_time", log.critical_hot_minutes.to_string()),
    ] {
        // Writing to a string can't fail.
        let _ = writeln!(out, "  {name:<26}: {value}");
    }
    out
}

/// The byte as the drive has it.
fn warning_bits(critical: &CriticalWarnings) -> u8 {
    let bits = [
        critical.spare_low,
        critical.temperature,
        critical.unreliable,
        critical.read_only,
        critical.cache_backup_failed,
        critical.memory_region,
    ];
    (0..).zip(bits).map(|(bit, is_set)| u8::from(is_set) << bit).sum()
}

fn json(path: &Path, answer: &SmartAnswer, limits: &HealthSection) -> Value {
    let path = path.display().to_string();
    match answer {
        SmartAnswer::None => json!({ "path": path, "smart": null, "reason": "it is no NVMe drive" }),
        SmartAnswer::Failed(reason) => json!({ "path": path, "smart": null, "error": reason }),
        SmartAnswer::Log(log) => {
            let (verdict, reasons) = Verdict::of(log, limits);
            json!({
                "path": path,
                "verdict": verdict.name(),
                "reasons": reasons,
                "smart": {
                    "critical_warning": warning_bits(&log.critical),
                    "temperature": log.temperature_kelvin,
                    "avail_spare": log.spare_percent,
                    "spare_thresh": log.spare_threshold_percent,
                    "percent_used": log.used_percent,
                    "data_units_read": log.data_units_read,
                    "data_units_written": log.data_units_written,
                    "host_read_commands": log.host_reads,
                    "host_write_commands": log.host_writes,
                    "controller_busy_time": log.busy_minutes,
                    "power_cycles": log.power_cycles,
                    "power_on_hours": log.power_on_hours,
                    "unsafe_shutdowns": log.unsafe_shutdowns,
                    "media_errors": log.media_errors,
                    "num_err_log_entries": log.error_log_entries,
                    "warning_temp_time": log.hot_minutes,
                    "critical_comp_time": log.critical_hot_minutes,
                },
            })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kiseki_devices::nvme::smart::SMART_LEN_BYTES;

    fn log(critical: u8, used: u8, media_errors: u64) -> SmartLog {
        let mut page = vec![0; SMART_LEN_BYTES];
        (page[0], page[5]) = (critical, used);
        page[160..168].copy_from_slice(&media_errors.to_le_bytes());
        SmartLog::parse(&page).unwrap()
    }

    #[test]
    fn i_d3_wear_and_media_errors_say_evacuate() {
        for (critical, used, errors, verdict) in [
            (0, 0, 0, Verdict::Good),
            (0, 90, 100, Verdict::Good),
            (0, 91, 0, Verdict::Evacuate),
            (0, 0, 101, Verdict::Evacuate),
            (1, 0, 0, Verdict::Watch),
            (1, 255, 0, Verdict::Evacuate),
        ] {
            assert_eq!(
                Verdict::of(&log(critical, used, errors), &HealthSection::default()).0,
                verdict,
                "I-D3: {critical} {used} {errors}"
            );
        }
    }

    #[test]
    fn the_log_is_shown_in_the_words_of_nvme_cli() {
        let text = log_text("/dev/nvme0n1", &log(0b101, 91, 7), &HealthSection::default());
        assert!(
            text.starts_with("/dev/nvme0n1: evacuate: 91 % of its life is used, spare capacity is below"),
            "{text}"
        );
        assert!(text.contains("critical_warning          : 0x5\n") && text.contains("media_errors              : 7\n"));
        let value =
            json(Path::new("/dev/nvme0n1"), &SmartAnswer::Log(Box::new(log(0, 3, 0))), &HealthSection::default());
        assert_eq!((value["verdict"].as_str(), value["smart"]["percent_used"].as_u64()), (Some("good"), Some(3)));
    }

    #[test]
    fn what_has_no_log_says_so() {
        assert!(
            text(Path::new("/dev/sda"), &SmartAnswer::None, &HealthSection::default())
                .contains("no SMART log: it is no NVMe drive")
        );
    }
}
