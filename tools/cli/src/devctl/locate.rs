//! `locate`: where a device sits, shown by a lamp.

use super::look::look_at;
use anyhow::{Context, Result, anyhow, bail};
use kiseki_devices::file_device::RawDevice;
use kiseki_devices::in_use::UsesOfMachine;
use kiseki_devices::slot::{Slot, slot_of};
use kiseki_devices::topology::KernelRoots;
use kiseki_types::meta::MetaFile;
use serde_json::json;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// How long a lamp is on, and off, when reads make it blink.
const BLINK_HALF: Duration = Duration::from_millis(500);
/// How long it blinks when nobody says.
const BLINK_SECONDS: u64 = 30;
/// Longest time to blink or shine: a day.
const SECONDS_MAX: u64 = 86_400;
/// Bytes of one read.
const READ_LEN_BYTES: usize = 128 << 10;
/// Distance between reads, so that the drive really reads.
const READ_STRIDE_BYTES: u64 = 16 << 20;

/// Shows where a device sits: PCI address and slot, and its locate lamp.
///
/// The lamp shines until `--off`, or for `--seconds`. Where there is none, `--blink` reads half of every second, which
/// shows in the activity lamp; that disturbs nobody and changes nothing. Exit code: 0, or 1 when nothing shines or blinks.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  kiseki-devctl locate /dev/nvme0n1                  address, slot, lamp on
  kiseki-devctl locate /dev/nvme0n1 --off
  kiseki-devctl locate /dev/nvme0n1 --blink --seconds 60
  kiseki-devctl locate /dev/nvme0n1 --dry-run        address and slot only")]
pub struct Args {
    /// The device, by any of its names.
    device: PathBuf,
    /// Switch the lamp off.
    #[arg(long, conflicts_with_all = ["blink", "seconds"])]
    off: bool,
    /// Blink by reading, where there is no lamp to switch.
    #[arg(long)]
    blink: bool,
    /// Switch it off again after so many seconds.
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..=SECONDS_MAX))]
    seconds: Option<u64>,
    /// Only say what would be switched.
    #[arg(long)]
    dry_run: bool,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

pub fn run(args: Args) -> Result<ExitCode> {
    let roots = KernelRoots::default();
    let machine = UsesOfMachine::read(&roots).context("can't list the devices of this machine")?;
    let node = machine.topology().find_path(&args.device);
    let Some(node) = node.filter(|_| !args.device.is_file()) else {
        bail!("{} is no block device of this machine; `kiseki-devctl list --all` shows them", args.device.display());
    };
    let slot = slot_of(&roots, node.device);
    let path = roots.dev.join(&node.device.name);
    let row = look_at(&args.device, &machine, &roots);
    match args.json {
        true => println!(
            "{:#}",
            json!({
                "path": args.device.display().to_string(),
                "node": node.device.name,
                "serial": node.device.serial,
                "id": row.id(),
                "pci_address": slot.pci_address,
                "slot": slot.name,
                "bay": slot.bay,
                "lamps": slot.lamps.iter().map(|lamp| json!({
                    "kind": lamp.kind.name(),
                    "path": lamp.path.display().to_string(),
                })).collect::<Vec<_>>(),
            })
        ),
        false => print!("{}", text(&args.device, node.device.serial.as_deref(), &slot)),
    }
    if args.dry_run {
        for lamp in &slot.lamps {
            eprintln!("would write {} to {}", lamp.kind.value(!args.off), lamp.path.display());
        }
        return Ok(ExitCode::SUCCESS);
    }
    show(&args, &slot, &path)
}

fn text(path: &Path, serial: Option<&str>, slot: &Slot) -> String {
    let mut parts = vec![format!("serial {}", serial.unwrap_or("unknown"))];
    parts
        .push(slot.pci_address.as_ref().map_or("on no PCI bus".to_owned(), |address| format!("PCI address {address}")));
    parts.push(slot.name.as_ref().map_or("no slot known".to_owned(), |name| format!("slot {name}")));
    parts.extend(slot.bay.as_ref().map(|bay| format!("enclosure {bay}")));
    format!("{}: {}\n", path.display(), parts.join(", "))
}

/// Switches the lamps, or blinks.
fn show(args: &Args, slot: &Slot, path: &Path) -> Result<ExitCode> {
    if slot.lamps.is_empty() {
        if args.off {
            eprintln!("there is no lamp to switch off");
            return Ok(ExitCode::FAILURE);
        }
        if !args.blink {
            eprintln!("there is no locate lamp; --blink makes the activity lamp blink by reading");
            return Ok(ExitCode::FAILURE);
        }
        let seconds = args.seconds.unwrap_or(BLINK_SECONDS);
        eprintln!("reading half of every second for {seconds} s: look for the lamp that blinks evenly");
        let bytes = blink(path, Duration::from_secs(seconds))?;
        eprintln!("read {} MiB", bytes >> 20);
        return Ok(ExitCode::SUCCESS);
    }
    switch(slot, !args.off)?;
    match (args.off, args.seconds) {
        (true, _) => eprintln!("switched off"),
        (false, None) => eprintln!("switched on; `kiseki-devctl locate {} --off` ends it", args.device.display()),
        (false, Some(seconds)) => {
            eprintln!("switched on for {seconds} s");
            std::thread::sleep(Duration::from_secs(seconds));
            switch(slot, false)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn switch(slot: &Slot, is_on: bool) -> Result<()> {
    for lamp in &slot.lamps {
        let switched = lamp.switch(is_on);
        switched.map_err(|error| {
            anyhow!("the {} can't be switched ({}): {error}; it takes root", lamp.kind.name(), lamp.path.display())
        })?;
    }
    Ok(())
}

/// Reads for half of every second; says how many bytes it were.
fn blink(path: &Path, time: Duration) -> Result<u64> {
    let raw = RawDevice::open_for_reading(path)?;
    let len = raw.len()?;
    if len < READ_LEN_BYTES as u64 {
        bail!("{} is too small to read from", path.display());
    }
    let mut buf = vec![0; READ_LEN_BYTES];
    let (started, mut at, mut read) = (Instant::now(), 0, 0);
    while started.elapsed() < time {
        let half = Instant::now();
        while half.elapsed() < BLINK_HALF {
            raw.read_at(at, &mut buf).with_context(|| format!("reading {}", path.display()))?;
            read += READ_LEN_BYTES as u64;
            at += READ_STRIDE_BYTES;
            if at + READ_LEN_BYTES as u64 > len {
                at = 0;
            }
        }
        std::thread::sleep(BLINK_HALF);
    }
    Ok(read)
}

#[cfg(test)]
mod tests {
    use super::*;
    use kiseki_devices::file_device::create_image;

    #[test]
    fn the_address_is_told_in_any_case() {
        let none = Slot::default();
        assert_eq!(
            text(Path::new("/dev/sda"), None, &none),
            "/dev/sda: serial unknown, on no PCI bus, no slot known\n"
        );
        let slot = Slot { pci_address: Some("0000:01:00.0".into()), name: Some("7".into()), ..Slot::default() };
        let shown = text(Path::new("/dev/nvme0n1"), Some("S1"), &slot);
        assert_eq!(shown, "/dev/nvme0n1: serial S1, PCI address 0000:01:00.0, slot 7\n");
    }

    #[test]
    fn blinking_reads_and_ends() {
        let dir = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        let path = dir.path().join("d.img");
        create_image(&path, 1 << 20).unwrap();
        assert!(blink(&path, Duration::from_millis(1)).unwrap() >= READ_LEN_BYTES as u64);
        create_image(&dir.path().join("small"), 4096).unwrap();
        assert!(blink(&dir.path().join("small"), Duration::from_millis(1)).is_err());
    }
}
