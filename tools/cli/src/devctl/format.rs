//! `format`: makes devices ours.

use super::format_args::DeviceArgs;
use super::plan;
use super::render::superblock_json;
use anyhow::{Result, anyhow, bail};
use indicatif::{ProgressBar, ProgressStyle};
use kiseki_server::format::{FormatEvent, FormatOptions, format_all, plan_all};
use kiseki_server::format_plan::DevicePlan;
use kiseki_server::outcome::Partly;
use std::io::{BufRead, IsTerminal};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Formats devices for a node; everything on them is lost.
///
/// Refuses what is in use, whatever is said, and what carries signatures until each is named with --wipe. On a terminal it
/// shows the plan and asks for the name of each device; --yes leaves that away. Elsewhere it does not ask, but a format by
/// the drive itself needs --yes. Interrupted, it is finished by the same command.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  kiseki-devctl format /dev/nvme0n1 --dry-run                   what would be done
  kiseki-devctl format /dev/nvme0n1                             a blank device
  kiseki-devctl format /dev/nvme0n1 --wipe gpt,p1:ext           one that carries a file system
  kiseki-devctl format /dev/nvme[0-7]n1 --nvme-format --yes     with blocks of 4096 bytes")]
pub struct Args {
    #[command(flatten)]
    devices: DeviceArgs,
    /// Do not ask.
    #[arg(long, short)]
    yes: bool,
    /// Show what would be done, as `plan` does, and do nothing.
    #[arg(long)]
    dry_run: bool,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

pub fn run(args: Args) -> Result<ExitCode> {
    let options = args.devices.options()?;
    if args.dry_run {
        return Ok(plan::show(&plan_all(&args.devices.devices, &options)?, &options, args.json));
    }
    if !args.yes {
        let plans = plan_all(&args.devices.devices, &options)?;
        plans.iter().try_for_each(DevicePlan::check)?;
        let is_terminal = std::io::stdin().is_terminal() && std::io::stdout().is_terminal();
        match is_terminal && !args.json {
            true => ask(&plans, &options, &mut std::io::stdin().lock())?,
            false => refuse_unasked(&plans)?,
        }
    }
    format_devices(&args.devices.devices, &options, args.json)?;
    if !args.json {
        print!("{}", next_step(&args.devices.dir, &args.devices.devices));
    }
    Ok(ExitCode::SUCCESS)
}

/// Shows what is going to happen and has the name of each device repeated.
fn ask(plans: &[DevicePlan], options: &FormatOptions, answers: &mut impl BufRead) -> Result<()> {
    for plan in plans.iter().filter(|plan| plan.done.is_none()) {
        let name = plan.path.file_name().unwrap_or(plan.path.as_os_str()).to_string_lossy().into_owned();
        print!("{}", plan::text(plan, options));
        println!("Everything on it will be lost. Type its name, {name}, to go on:");
        let mut answer = String::new();
        answers.read_line(&mut answer)?;
        if answer.trim() != name && answer.trim() != plan.path.to_string_lossy() {
            bail!("that is not {name}; nothing was changed");
        }
    }
    Ok(())
}

/// A script that names its devices and their signatures goes on as ever; what a drive does can't be interrupted, and may
/// reach further than the device named.
fn refuse_unasked(plans: &[DevicePlan]) -> Result<()> {
    match plans.iter().find(|plan| plan.drive.is_some()) {
        Some(plan) => bail!(
            "{}: its drive would format it, and there is no terminal to ask on; say --yes (`kiseki-devctl plan` shows what \
             happens). Nothing was changed",
            plan.path.display()
        ),
        None => Ok(()),
    }
}

/// Formats them one after the other, with a bar.
pub fn format_devices(devices: &[PathBuf], options: &FormatOptions, json: bool) -> Result<()> {
    let bar = if json { ProgressBar::hidden() } else { ProgressBar::new(0) };
    let bytes = ProgressStyle::with_template("{msg} {bar:30} {bytes}/{total_bytes}")?;
    let percent = ProgressStyle::with_template("{msg} {bar:30} {pos} % {elapsed}")?;
    let mut done = Vec::new();
    let result = format_all(devices, options, |path, event| {
        let shown = path.display();
        match event {
            FormatEvent::Drive { remaining_percent } => {
                bar.set_style(percent.clone());
                bar.set_length(100);
                bar.set_position(remaining_percent.map_or(0, |left| 100 - u64::from(left.min(100))));
                bar.set_message(format!("{shown}: the drive formats"));
                bar.tick();
            }
            FormatEvent::Writing(at) => {
                bar.set_style(bytes.clone());
                bar.set_length(at.total_bytes);
                bar.set_position(at.done_bytes);
                bar.set_message(format!("{shown}: {}", at.step));
            }
            FormatEvent::Done(superblock) => done.push((path.to_owned(), superblock.clone(), false)),
            FormatEvent::AlreadyDone(superblock) => done.push((path.to_owned(), superblock.clone(), true)),
        }
    });
    bar.finish_and_clear();
    for (path, superblock, was_done) in &done {
        match (json, was_done) {
            (true, _) => {
                let mut value = superblock_json(path, superblock);
                value["done_already"] = (*was_done).into();
                println!("{value}");
            }
            (false, true) => println!("{}: is formatted so already, as device {}", path.display(), superblock.device),
            (false, false) => println!("{}: formatted as device {}", path.display(), superblock.device),
        }
    }
    result.map_err(|error| match done.len() {
        0 => anyhow!(error),
        count => anyhow!(error).context(Partly(format!("the first {count} devices are formatted, the others are not"))),
    })
}

/// `format` does nothing of this: a device is the node's when it is enrolled.
fn next_step(dir: &Path, paths: &[PathBuf]) -> String {
    let paths: Vec<String> = paths.iter().map(|path| path.display().to_string()).collect();
    format!("to take into use: kiseki-devctl enroll --dir {} {}\n", dir.display(), paths.join(" "))
}
