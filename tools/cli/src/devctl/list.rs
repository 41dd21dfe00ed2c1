//! `list`: the devices of a node, or of the machine.

use super::look::{Look, look_at};
use super::node::{NodeArgs, load};
use super::render::table;
use anyhow::{Context, Result};
use kiseki_devices::in_use::UsesOfMachine;
use kiseki_devices::topology::KernelRoots;
use serde_json::{Value, json};
use std::path::PathBuf;
use std::process::ExitCode;

const HEAD: [&str; 11] =
    ["PATH", "GENERIC", "MODEL", "SERIAL", "ID", "SIZE", "BLOCK", "FIRMWARE", "CLASS", "CARRIES", "IN USE BY"];

/// Lists the devices of a node, or with --all every block device of this machine.
///
/// Each with its names, identifiers, block format, what it carries and who uses it. Reading what it carries takes the
/// right to read the device. Exit code: 0, or 1 when a device of the node can't be used.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  kiseki-devctl list                       the devices in .kiseki/kiseki.toml, or below $KISEKI_DIR
  kiseki-devctl list --all                 every block device here, whoever it belongs to
  kiseki-devctl list --all --json | jq '.[] | select(.in_use == []) | .path'")]
pub struct Args {
    #[command(flatten)]
    node: NodeArgs,
    /// Every block device of this machine, not only the node's.
    #[arg(long)]
    all: bool,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

pub fn run(args: Args) -> Result<ExitCode> {
    let roots = KernelRoots::default();
    let machine = UsesOfMachine::read(&roots).context("can't list the devices of this machine")?;
    let looks = match args.all {
        true => all(&machine, &roots),
        false => {
            let paths =
                load(args.node.dir.clone()).context("--all lists the devices of this machine without a node")?.devices;
            paths.iter().map(|path| look_at(path, &machine, &roots)).collect()
        }
    };
    print!("{}", shown(&looks, &machine, &args));
    // Whatever others' devices carry is no problem of ours.
    let is_good = |look: &Look| look.content.as_ref().is_ok_and(|content| content.superblock.is_ok());
    Ok(if args.all || looks.iter().all(is_good) { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Devices that have a size; an empty drive carries nothing to list.
fn all(machine: &UsesOfMachine, roots: &KernelRoots) -> Vec<Look> {
    let devices = machine.topology().devices.iter().filter(|device| device.len_bytes > 0 || device.nvme.is_some());
    let paths: Vec<PathBuf> = devices.map(|device| roots.dev.join(&device.name)).collect();
    paths.iter().map(|path| look_at(path, machine, roots)).collect()
}

fn shown(looks: &[Look], machine: &UsesOfMachine, args: &Args) -> String {
    if args.json {
        return format!("{:#}\n", Value::Array(looks.iter().map(Look::json).chain(bare(machine, args)).collect()));
    }
    let mut text = table(&HEAD, &looks.iter().map(Look::row).collect::<Vec<_>>());
    for controller in bare(machine, args) {
        let name = controller["controller"].as_str().unwrap_or_default();
        text.push_str(&format!("{name}: a controller without a namespace here; `nvme list-ns /dev/{name} --all`\n"));
    }
    for look in looks.iter().filter(|_| !args.all) {
        if let Ok(content) = &look.content
            && let Err(error) = &content.superblock
        {
            text.push_str(&format!("{error}\n"));
        }
    }
    text
}

/// Controllers none of whose namespaces this machine has.
fn bare(machine: &UsesOfMachine, args: &Args) -> Vec<Value> {
    let topology = machine.topology();
    let has_namespace = |name: &String| {
        topology.devices.iter().any(|device| device.nvme.as_ref().is_some_and(|nvme| nvme.controllers.contains(name)))
    };
    let bare = topology.controllers.iter().filter(|controller| args.all && !has_namespace(&controller.name));
    bare.map(|controller| {
        json!({
            "controller": controller.name,
            "model": controller.model,
            "serial": controller.serial,
            "firmware": controller.firmware,
            "state": controller.state,
            "address": controller.address,
        })
    })
    .collect()
}
