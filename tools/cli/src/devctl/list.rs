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

#[cfg(test)]
mod tests {
    use super::*;

    /// A machine made of files: a drive with a namespace, a drive without, an empty optical drive.
    fn machine(root: &std::path::Path) -> KernelRoots {
        for (path, text) in [
            ("sys/class/nvme/nvme0/model", "FAST 9000"),
            ("sys/class/nvme/nvme0/serial", "S1"),
            ("sys/class/nvme/nvme0/firmware_rev", "1.0"),
            ("sys/class/nvme/nvme1/model", "FAST 9000"),
            ("sys/class/nvme-generic/ng0n1/dev", "241:0"),
            ("sys/block/nvme0n1/dev", "259:0"),
            ("sys/block/nvme0n1/size", "2097152"),
            ("sys/block/nvme0n1/nsid", "1"),
            ("sys/block/nvme0n1/eui", "52 54 00 00 00 00 00 01"),
            ("sys/block/nvme0n1/queue/logical_block_size", "4096"),
            ("sys/block/sr0/size", "0"),
            ("proc/self/mountinfo", "22 1 259:0 / /data rw - xfs /dev/nvme0n1 rw"),
        ] {
            let path = root.join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        let link = root.join("sys/block/nvme0n1/device");
        std::os::unix::fs::symlink(root.join("sys/class/nvme/nvme0"), link).unwrap();
        KernelRoots { sys: root.join("sys"), proc: root.join("proc"), dev: root.join("dev") }
    }

    fn args(json: bool) -> Args {
        Args { node: NodeArgs { dir: PathBuf::new() }, all: true, json }
    }

    #[test]
    fn a_fabricated_machine_is_listed_for_people_and_for_programs() {
        let dir = tempfile::tempdir().unwrap();
        let roots = machine(dir.path());
        let machine = UsesOfMachine::read(&roots).unwrap();
        let looks = all(&machine, &roots);
        assert_eq!(looks.len(), 1, "an empty drive is not listed");
        let text = shown(&looks, &machine, &args(false));
        for part in
            ["ng0n1", "FAST 9000", "S1", "eui.5254000000000001", "1.07 GB", "4096", "nvme0n1 is mounted at /data"]
        {
            assert!(text.contains(part), "{part}: {text}");
        }
        assert!(text.contains("nvme1: a controller without a namespace here"), "{text}");
        let value: Value = serde_json::from_str(&shown(&looks, &machine, &args(true))).unwrap();
        assert_eq!(value[0]["node"], "nvme0n1");
        assert_eq!(value[0]["in_use"][0]["remedy"], "umount /data");
        assert_eq!(value[1]["controller"], "nvme1");
    }
}
