//! `inspect`: everything about one device.

use super::look::{Content, Identity, Look, look_at};
use super::render::{decimal, or_dash};
use anyhow::{Context, Result};
use kiseki_devices::DeviceError;
use kiseki_devices::format::namespace::Lbaf;
use kiseki_devices::in_use::UsesOfMachine;
use kiseki_devices::layout::DeviceLayout;
use kiseki_devices::slot::{Slot, slot_of};
use kiseki_devices::superblock::SuperblockCopy;
use kiseki_devices::topology::KernelRoots;
use kiseki_types::ids::LaneId;
use serde_json::{Value, json};
use std::fmt::Write;
use std::path::PathBuf;
use std::process::ExitCode;

/// Shows everything about one device: its drive, its superblocks, its layout, others' signatures, who uses it.
///
/// The device may be named by any of its nodes, by a link below /dev/disk, or be an image file; it may be in use. Exit
/// code: 0 for a device of Kiseki that is whole, 1 for anything else.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  kiseki-devctl inspect /dev/nvme0n1
  kiseki-devctl inspect /dev/disk/by-id/nvme-... --json")]
pub struct Args {
    /// The device.
    device: PathBuf,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

pub fn run(args: Args) -> Result<ExitCode> {
    let roots = KernelRoots::default();
    let machine = UsesOfMachine::read(&roots).context("can't list the devices of this machine")?;
    let look = look_at(&args.device, &machine, &roots);
    let slot = look.device.as_ref().map(|device| slot_of(&roots, device)).unwrap_or_default();
    match args.json {
        true => println!("{:#}", json(&look, &slot)),
        false => print!("{}", text(&look, &slot)),
    }
    let is_whole =
        look.content.as_ref().is_ok_and(|content| content.superblock.is_ok() && content.damaged_copies() == 0);
    Ok(if is_whole { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn text(look: &Look, slot: &Slot) -> String {
    let mut out = format!("{}\n", look.path.display());
    let mut line = |name: &str, value: &str| {
        // Writing to a string can't fail.
        let _ = writeln!(out, "  {name:<16} {value}");
    };
    if let Some(device) = &look.device {
        if let Some(partition) = &look.partition {
            line("partition", &format!("{partition} of {}", device.name));
        }
        if let Some(nvme) = &device.nvme {
            let generic = or_dash(nvme.generic.as_deref());
            let controllers = nvme.controllers.join(", ");
            line(
                "nodes",
                &format!("{}, generic {generic}, controller {controllers}, namespace {}", device.name, nvme.namespace),
            );
        }
        line("model", &or_dash(device.model.as_deref()));
        line("serial", &or_dash(device.serial.as_deref()));
        line("firmware", &or_dash(device.firmware.as_deref()));
        line("EUI64", &or_dash(device.eui64.as_deref()));
        line("NGUID", &or_dash(device.nguid.as_deref()));
        line("WWN", &or_dash(device.wwn.as_deref()));
        line("PCI address", &or_dash(slot.pci_address.as_deref()));
        line("slot", &or_dash(slot.name.as_deref().or(slot.bay.as_deref())));
        line("class", device.class().name());
        let (logical, physical) = (device.logical_block_len_bytes, device.physical_block_len_bytes);
        line("blocks", &format!("{logical} bytes logical, {physical} physical"));
    }
    line("size", &format!("{} ({} bytes)", decimal(look.len_bytes()), look.len_bytes()));
    if let Some(identity) = &look.identity {
        identity_text(&mut out, identity);
    }
    match &look.content {
        Err(error) => {
            let _ = writeln!(out, "  can't be read: {error}");
        }
        Ok(content) => content_text(&mut out, content),
    }
    match look.uses.is_empty() {
        true => out.push_str("  in use           no\n"),
        false => look.uses.iter().for_each(|found| {
            let _ = writeln!(out, "  in use           {found}; {}", found.remedy());
        }),
    }
    out
}

fn identity_text(out: &mut String, identity: &Identity) {
    let Identity { controller, namespace } = identity;
    let mut line = |name: &str, value: String| {
        let _ = writeln!(out, "  {name:<16} {value}");
    };
    line("NVMe", format!("version {}, controller id {}", controller.version, controller.controller_id));
    for format in &namespace.formats {
        let used = if *format == namespace.format { " (in use)" } else { "" };
        line("", format!("{}{used}", Lbaf(*format)));
    }
    line("volatile cache", if controller.has_volatile_cache { "yes, flushed by us" } else { "no" }.to_owned());
    let power_fail = namespace.atomic_blocks_power_fail.unwrap_or(controller.atomic_blocks_power_fail);
    line("atomic writes", format!("{} blocks, {power_fail} over a power cut", controller.atomic_blocks));
    let transfer = controller.transfer_len_bytes_max.map_or("no limit".to_owned(), |len| format!("{} KiB", len >> 10));
    line("transfer limit", transfer);
    if let Some(boundary) = namespace.boundary_blocks {
        line("boundary", format!("{boundary} blocks"));
    }
    if let Some(units) = namespace.preferred {
        let (write, deallocate) = (units.write_blocks, units.deallocate_blocks);
        line("preferred units", format!("writes of {write} blocks, deallocations of {deallocate}"));
    }
    let scope = match (controller.admin.format, controller.format.formats_all, controller.format.erases_all) {
        (false, _, _) => "not supported",
        (true, true, _) => "formats all namespaces at once",
        (true, false, true) => "formats one namespace, erases all at once",
        (true, false, false) => "formats and erases one namespace",
    };
    let crypto = if controller.format.can_crypto_erase { ", can erase cryptographically" } else { "" };
    line("drive's format", format!("{scope}{crypto}"));
    if let Some(percent) = namespace.format_remaining_percent.filter(|percent| *percent > 0) {
        line("", format!("a format goes on or was interrupted: {percent} % left; run the same command again"));
    }
}

fn content_text(out: &mut String, content: &Content) {
    let is_ours = content.copies.iter().any(|copy| copy.found.is_ok()) || content.superblock.is_ok();
    for (number, copy) in content.copies.iter().enumerate().filter(|_| is_ours || content.superblock_is_damaged()) {
        let _ = writeln!(out, "  superblock {number}     {}", copy_text(copy));
    }
    match &content.superblock {
        Ok(found) => {
            let retired = if found.is_retired() { "; retired, nothing lives on it" } else { "" };
            let _ = writeln!(out, "  device           {} of cluster {}{retired}", found.device, found.cluster);
            let _ = writeln!(
                out,
                "  state            generation {}, incarnation {}, metadata-set epoch {}{}",
                found.generation,
                found.incarnation,
                found.metadata.epoch,
                if found.is_unused() { ", not used by a node yet" } else { "" }
            );
            let _ = writeln!(out, "  layout           {}", layout_text(&found.layout));
        }
        Err(error @ DeviceError::FormatInterrupted { .. }) => {
            let _ = writeln!(out, "  FORMAT WAS INTERRUPTED: {error}");
        }
        Err(error) => {
            let _ = writeln!(out, "  {error}");
        }
    }
    for signature in &content.signatures {
        let _ = writeln!(out, "  carries          {signature}; to overwrite it: --wipe {}", signature.name);
    }
}

fn copy_text(copy: &SuperblockCopy) -> String {
    match &copy.found {
        Ok(found) => format!("at {}: good, generation {}", copy.offset_bytes, found.generation),
        Err(damage) => format!("at {}: damaged: {damage}", copy.offset_bytes),
    }
}

/// How a device is divided, in one line.
pub fn layout_text(layout: &DeviceLayout) -> String {
    let block = u64::from(layout.block_len_bytes());
    let (journal, journal_len) = layout.journal_extent(LaneId(0));
    let (zone, zone_len) = layout.zone(0);
    format!(
        "{} lanes; journals from byte {}, {} KiB each; {} zones from byte {}, {:.1} MiB each; {} for fragments",
        layout.lanes(),
        journal.0 * block,
        (journal_len.0 * block) >> 10,
        layout.zone_count(),
        zone.0 * block,
        (zone_len.0 * block) as f64 / f64::from(1 << 20),
        decimal(layout.capacity_bytes())
    )
}

/// How a device is divided, for `--json`.
pub fn layout_json(layout: &DeviceLayout) -> Value {
    let (journal, journal_len) = layout.journal_extent(LaneId(0));
    let (zone, zone_len) = layout.zone(0);
    json!({
        "block_len_bytes": layout.block_len_bytes(),
        "lanes": layout.lanes(),
        "journals_start_block": journal.0,
        "journal_blocks": journal_len.0,
        "zones_start_block": zone.0,
        "zone_blocks": zone_len.0,
        "zones": layout.zone_count(),
        "capacity_bytes": layout.capacity_bytes(),
    })
}

fn json(look: &Look, slot: &Slot) -> Value {
    let mut value = look.json();
    value["slot"] = json!(slot.name.as_ref().or(slot.bay.as_ref()));
    if let Some(Identity { controller, namespace }) = &look.identity {
        let formats = namespace.formats.iter().map(|format| {
            json!({
                "lbaf": format.index,
                "block_len_bytes": format.block_len_bytes,
                "metadata_len_bytes": format.metadata_len_bytes,
                "relative_performance": format.performance.to_string(),
                "in_use": *format == namespace.format,
            })
        });
        value["nvme"] = json!({
            "version": controller.version.to_string(),
            "lba_formats": formats.collect::<Vec<_>>(),
            "volatile_cache": controller.has_volatile_cache,
            "atomic_blocks": controller.atomic_blocks,
            "atomic_blocks_power_fail": namespace.atomic_blocks_power_fail.unwrap_or(controller.atomic_blocks_power_fail),
            "transfer_len_bytes_max": controller.transfer_len_bytes_max,
            "boundary_blocks": namespace.boundary_blocks,
            "format": {
                "supported": controller.admin.format,
                "formats_all_namespaces": controller.format.formats_all,
                "erases_all_namespaces": controller.format.erases_all,
                "crypto_erase": controller.format.can_crypto_erase,
                "remaining_percent": namespace.format_remaining_percent,
            },
        });
    }
    if let Ok(content) = &look.content {
        let copies = content.copies.iter().map(|copy| {
            json!({
                "offset_bytes": copy.offset_bytes,
                "generation": copy.found.as_ref().ok().map(|found| found.generation),
                "damage": copy.found.as_ref().err().map(ToString::to_string),
            })
        });
        value["superblock_copies"] = Value::Array(copies.collect());
        if let Ok(found) = &content.superblock {
            value["layout"] = layout_json(&found.layout);
        }
        value["format_interrupted"] = json!(matches!(content.superblock, Err(DeviceError::FormatInterrupted { .. })));
    }
    value
}
