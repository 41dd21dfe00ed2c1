//! `verify`: reads whole devices without a node and says what they hold and what is wrong; `--rebuild-index` makes a
//! node's index from their bytes alone.

mod as_json;
mod rebuild;
mod text;

use anyhow::{Result, bail};
use indicatif::{ProgressBar, ProgressStyle};
use kiseki_devices::DeviceError;
use kiseki_devices::file_device::block_node;
use kiseki_devices::image::Image;
use kiseki_devices::index_rebuild::NodeRows;
use kiseki_devices::superblock::Superblock;
use kiseki_devices::verify::{Progress, Verdict, VerifyOptions, superblock, verify};
use kiseki_server::devices::with_causes;
use kiseki_server::outcome::Outcome;
use kiseki_server::stopped_node::StoppedNode;
use serde_json::json;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Most devices that are read at once; further ones wait.
const DEVICES_AT_ONCE: usize = 16;

/// Reads whole devices that no node uses, and checks everything on them. Nothing is written.
///
/// Superblock copies, geometry, journals, and every piece of every fragment. Works on block devices, image files and
/// copies of them, read-only ones too. Exit code: 0 when all is well, 1 when something is wrong or none could be looked at,
/// 4 when some could not.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  kiseki-devctl verify /dev/nvme1n1 /dev/nvme2n1
  kiseki-devctl verify --dir /var/lib/kiseki              # all devices of a stopped node, and its index
  kiseki-devctl verify --dir /var/lib/kiseki --rebuild-index           # does each device explain itself?
  kiseki-devctl verify --dir /var/lib/kiseki --rebuild-index --write   # put a lost index back")]
pub struct Args {
    /// Block devices and image files; all devices of the node when --dir is given alone.
    #[arg(required_unless_present = "dir")]
    devices: Vec<PathBuf>,
    /// Directory of the stopped node that the devices belong to: its index tells used fragments from leftovers.
    #[arg(long)]
    dir: Option<PathBuf>,
    /// List every intact fragment, not only problems.
    #[arg(long)]
    fragments: bool,
    /// Make the index from the bytes of the devices, and compare it with the node's (with --dir).
    #[arg(long)]
    rebuild_index: bool,
    /// Put the index made from the devices in the place of the node's, which must be stopped.
    #[arg(long, requires_all = ["rebuild_index", "dir"])]
    write: bool,
    /// Threads that read each device.
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..=32))]
    threads: u16,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

pub fn run(args: Args) -> Result<ExitCode> {
    let node = match (&args.dir, args.write) {
        (None, _) => None,
        (Some(dir), false) => Some(StoppedNode::to_look(dir)?),
        (Some(dir), true) => Some(StoppedNode::to_change(dir)?),
    };
    let paths = match (&node, args.devices.is_empty()) {
        (Some(node), true) => node.config.devices.clone(),
        _ => args.devices.clone(),
    };
    let (images, refused) = open_all(&paths)?;
    let superblocks: Vec<Superblock> = images.iter().filter_map(superblock).collect();
    let tables = match (&node, superblocks.is_empty()) {
        (Some(node), false) => Some(node.read_rows(&superblocks.iter().collect::<Vec<_>>())?),
        _ => None,
    };
    // A rebuild goes by the bytes alone, or it would prove nothing. Tables of which some are lost tell nothing either.
    let known = tables.as_ref().filter(|tables| tables.lost.is_empty() && !args.rebuild_index);
    let verdicts = verify_all(&images, known.map(|tables| &tables.rows), &args);
    let is_any_looked_at = !images.is_empty();
    drop(images); // a rebuild opens the devices as the node does
    let mut output =
        json!({ "devices": verdicts.iter().map(|it| as_json::device(it, args.fragments)).collect::<Vec<_>>() });
    if !args.json {
        verdicts.iter().for_each(|verdict| say(&text::device(verdict, args.fragments)));
    }
    let mut is_clean = verdicts.iter().all(Verdict::is_clean) && say_twins(&verdicts, args.json);
    let lost: Vec<String> = tables
        .iter()
        .flat_map(|tables| &tables.lost)
        .map(|(lane, reason)| format!("the index table of lane {} is lost: {reason}", lane.0))
        .collect();
    is_clean &= lost.is_empty() || args.write;
    output["index_lost"] = json!(lost);
    if !args.json && !lost.is_empty() {
        say(&lost.join("\n"));
        if !args.write {
            say("  -> kiseki-devctl verify --rebuild-index --write --dir DIR makes it anew");
        }
    }
    if args.rebuild_index {
        let rebuilt = rebuild::make(&verdicts);
        // A table that is lost is nothing to compare with.
        let rows = tables.as_ref().filter(|tables| tables.lost.is_empty()).map(|tables| &tables.rows);
        let comparison = rebuild::report(&rebuilt, rows, args.fragments, args.json);
        is_clean &= comparison.is_explained || args.write;
        output["rebuild"] = comparison.json;
        if let (true, Some(node)) = (args.write, &node) {
            if !refused.is_empty() {
                bail!("no index is written while devices can't be looked at: {}", refused.join("; "));
            }
            let bar = if args.json { ProgressBar::hidden() } else { ProgressBar::new(0) };
            bar.set_style(ProgressStyle::with_template("{bar:30} {pos}/{len} index rows, {eta} left")?);
            let written = node.replace_index(&rebuilt.devices, &rebuilt.unsound, &|at| {
                bar.set_length(at.total_rows);
                bar.set_position(at.done_rows);
            })?;
            bar.finish_and_clear();
            output["rebuild"]["rows_written"] = json!(written);
            if !args.json {
                say(&format!("{written} rows written; the node can start"));
            }
        }
    }
    output["refused"] = json!(refused);
    output["is_clean"] = json!(is_clean && refused.is_empty());
    match args.json {
        true => say(&format!("{output:#}")),
        false => refused.iter().for_each(|reason| eprintln!("kiseki-devctl: {reason}")),
    }
    Ok(match (refused.is_empty(), is_clean) {
        (false, _) if is_any_looked_at => Outcome::Partly.exit_code(),
        (false, _) => Outcome::Refused.exit_code(),
        (true, false) => ExitCode::FAILURE,
        (true, true) => ExitCode::SUCCESS,
    })
}

/// Prints a line or more. Whoever reads it may stop reading (`| head`): that is no failure.
fn say(text: &str) {
    use std::io::Write;
    let _gone = writeln!(std::io::stdout(), "{}", text.trim_end());
}

/// Opens what can be opened; the others with their reason. Errors: one device given twice.
fn open_all(paths: &[PathBuf]) -> Result<(Vec<Image>, Vec<String>)> {
    let real = |path: &Path| {
        let path = block_node(path);
        std::fs::canonicalize(&path).unwrap_or(path)
    };
    for (at, path) in paths.iter().enumerate() {
        if paths[..at].iter().any(|other| real(other) == real(path)) {
            bail!("{} is given twice", path.display());
        }
    }
    let (mut images, mut refused) = (Vec::new(), Vec::new());
    for path in paths {
        match Image::open(path) {
            Ok(image) => images.push(image),
            Err(error @ DeviceError::Busy { .. }) => refused.push(format!(
                "{error}; a running node checks its devices itself (kiseki status): stop it to verify one here"
            )),
            Err(error) => refused.push(with_causes(&error)),
        }
    }
    Ok((images, refused))
}

/// Verifies all of them, some at once, under one progress bar.
fn verify_all(images: &[Image], known: Option<&NodeRows>, args: &Args) -> Vec<Verdict> {
    let bar = if args.json { ProgressBar::hidden() } else { ProgressBar::new(0) };
    let style = ProgressStyle::with_template("{bar:30} {bytes}/{total_bytes} {bytes_per_sec}, {eta} left");
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    let on_progress = |progress: Progress| match progress {
        Progress::Begin { total_bytes } => bar.inc_length(total_bytes),
        Progress::Done { bytes } => bar.inc(bytes),
    };
    let options = VerifyOptions { known, threads: usize::from(args.threads), on_progress: &on_progress };
    let mut verdicts = Vec::new();
    for some in images.chunks(DEVICES_AT_ONCE) {
        verdicts.extend(std::thread::scope(|scope| {
            let running: Vec<_> = some.iter().map(|image| scope.spawn(|| verify(image, &options))).collect();
            running.into_iter().map(|one| one.join().expect("verifying does not panic")).collect::<Vec<_>>()
        }));
    }
    bar.finish_and_clear();
    verdicts
}

/// Whether no two of the devices are copies of each other.
fn say_twins(verdicts: &[Verdict], is_json: bool) -> bool {
    let mut none = true;
    for (at, verdict) in verdicts.iter().enumerate() {
        let id = verdict.superblock.as_ref().map(|superblock| superblock.device);
        let same = |other: &&Verdict| other.superblock.as_ref().map(|superblock| superblock.device) == id;
        if let Some(twin) = verdicts[..at].iter().find(same).filter(|_| id.is_some()) {
            none = false;
            if !is_json {
                say(&format!("{} is a copy of {}; a node uses one of them at most", verdict.name, twin.name));
            }
        }
    }
    none
}
