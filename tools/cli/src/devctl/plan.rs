//! `plan`: exactly what `format` would do, before anything happens.

use super::format_args::DeviceArgs;
use super::inspect::{layout_json, layout_text};
use super::render::{decimal, signatures_json, uses_json};
use anyhow::Result;
use kiseki_devices::format::namespace::Lbaf;
use kiseki_server::format::{FormatOptions, plan_all};
use kiseki_server::format_plan::DevicePlan;
use serde_json::{Value, json};
use std::fmt::Write;
use std::process::ExitCode;

/// Shows exactly what `format` would do: the drive's commands, what is overwritten, every write. Changes nothing.
///
/// Takes the arguments of `format`. Exit code: 0 when it would be done, 1 when it would be refused.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  kiseki-devctl plan /dev/nvme0n1
  kiseki-devctl plan /dev/nvme0n1 --nvme-format --secure-erase user-data --wipe gpt,p1:ext")]
pub struct Args {
    #[command(flatten)]
    devices: DeviceArgs,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

pub fn run(args: Args) -> Result<ExitCode> {
    let options = args.devices.options()?;
    let plans = plan_all(&args.devices.devices, &options)?;
    Ok(show(&plans, &options, args.json))
}

/// Prints plans; the exit code tells whether all would be done.
pub fn show(plans: &[DevicePlan], options: &FormatOptions, is_json: bool) -> ExitCode {
    match is_json {
        true => println!("{:#}", Value::Array(plans.iter().map(|plan| json(plan, options)).collect())),
        false => plans.iter().for_each(|plan| print!("{}", text(plan, options))),
    }
    if plans.iter().all(|plan| plan.check().is_ok()) { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// One plan, for people.
pub fn text(plan: &DevicePlan, options: &FormatOptions) -> String {
    let mut out = format!(
        "{}: format for cluster {}, class {}, {} lanes\n",
        plan.path.display(),
        options.cluster,
        plan.class.name(),
        plan.layout.lanes()
    );
    let mut line = |name: &str, value: String| {
        // Writing to a string can't fail.
        let _ = writeln!(out, "  {name:<10} {value}");
    };
    for found in &plan.uses {
        line("in use", format!("{found}; {}", found.remedy()));
    }
    for found in &plan.signatures {
        let named = if options.wipe.contains(&found.name) { "named: will be overwritten" } else { "not named" };
        line("carries", format!("{} ({}): {named}", found.description, found.name));
    }
    if plan.signatures.is_empty() {
        line("carries", "nothing known".to_owned());
    }
    match &plan.done {
        Some(done) => {
            line("nothing", format!("it is formatted so already, as device {}, and was never used", done.device))
        }
        None => steps(plan, &mut line),
    }
    match plan.check() {
        Ok(()) => line("result", "would be done; nothing was changed".to_owned()),
        Err(error) => line("REFUSED", error.to_string()),
    }
    out
}

fn steps(plan: &DevicePlan, line: &mut impl FnMut(&str, String)) {
    if let Some(drive) = &plan.drive {
        let command = &drive.format.command;
        line("drive", command.to_string());
        line("", format!("= {}", command.nvme_cli(&drive.node.display().to_string())));
        line("", format!("block format from then on: {}", Lbaf(drive.format.format)));
        if !drive.format.also_lost.is_empty() {
            line("", format!("ALL NAMESPACES AT ONCE: also lost: {}", drive.format.also_lost.join(", ")));
        }
        if drive.is_resumed {
            line("", "the drive has an unfinished format; this finishes it".to_owned());
        }
    }
    for write in &plan.writes {
        let places = write.runs.iter().map(|(start, len)| format!("{len} at {start}")).collect::<Vec<_>>();
        let shown = match places.len() {
            0..=4 => places.join(", "),
            count => format!("{}, ... ({count} runs)", places[..3].join(", ")),
        };
        line("write", format!("{}: {} ({shown}), flush", write.step, decimal(write.len_bytes())));
    }
    line("layout", layout_text(&plan.layout));
    if let Some(better) = plan.recommended {
        line("note", format!("the drive also has {}: --nvme-format has it use that", Lbaf(better)));
    }
}

/// One plan, for `--json`.
fn json(plan: &DevicePlan, options: &FormatOptions) -> Value {
    let drive = plan.drive.as_ref().map(|drive| {
        let command = &drive.format.command;
        json!({
            "command": command.name(),
            "opcode": command.opcode(),
            "nsid": command.namespace(),
            "cdw10_15": command.dwords(),
            "timeout_ms": command.timeout().as_millis() as u64,
            "node": drive.node.display().to_string(),
            "nvme_cli": command.nvme_cli(&drive.node.display().to_string()),
            "lbaf": drive.format.format.index,
            "block_len_bytes": drive.format.format.block_len_bytes,
            "also_lost": drive.format.also_lost,
        })
    });
    let writes = plan.writes.iter().map(|write| {
        let runs = write.runs.iter().map(|(start, len)| json!({ "start_bytes": start, "len_bytes": len }));
        json!({ "step": write.step.to_string(), "runs": runs.collect::<Vec<_>>() })
    });
    json!({
        "path": plan.path.display().to_string(),
        "cluster": options.cluster.to_string(),
        "class": plan.class.name(),
        "in_use": uses_json(&plan.uses),
        "signatures": signatures_json(&plan.signatures),
        "confirmed": options.wipe,
        "done_already": plan.done.as_ref().map(|done| done.device.to_string()),
        "admin_commands": drive.into_iter().collect::<Vec<_>>(),
        "writes": writes.collect::<Vec<_>>(),
        "layout": layout_json(&plan.layout),
        "recommended_lbaf": plan.recommended.map(|format| format.index),
        "refused": plan.check().err().map(|error| error.to_string()),
    })
}
