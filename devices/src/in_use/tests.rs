//! Each way in which a device may be in use, on a fabricated machine, and real ones where they can be had.

use super::*;
use crate::file_device::DeviceLock;
use crate::topology::tests::FakeMachine;

fn uses(machine: &FakeMachine, name: &str) -> Vec<String> {
    let read = UsesOfMachine::read(&machine.roots()).unwrap();
    let path = machine.roots().dev.join(name);
    read.of_path(&path).iter().map(ToString::to_string).collect()
}

#[test]
fn an_idle_device_is_not_in_use() {
    let machine = FakeMachine::new();
    machine.nvme(0, 1);
    machine.partition("nvme0n1", "nvme0n1p1", 1, "259:50");
    machine.write("proc/self/mountinfo", "22 1 253:0 / / rw - ext4 /dev/sda1 rw\n");
    assert!(uses(&machine, "nvme0n1").is_empty());
}

#[test]
fn i_d7_mounts_are_found_on_the_device_its_partitions_and_what_is_made_of_them() {
    let machine = FakeMachine::new();
    machine.nvme(0, 1);
    machine.partition("nvme0n1", "nvme0n1p1", 1, "259:50");
    machine.partition("nvme0n1", "nvme0n1p2", 2, "259:51");
    machine.disk("dm-0", "252:0", 2048);
    machine.write("sys/block/dm-0/dm/name", "vg-root\n");
    machine.holder("nvme0n1/nvme0n1p2", "dm-0");
    machine.write(
        "proc/self/mountinfo",
        "22 1 259:50 / /boot\\040files rw,relatime shared:1 - ext4 /dev/nvme0n1p1 rw\n\
         23 1 252:0 / / rw - xfs /dev/mapper/vg-root rw\n",
    );
    let expected = [
        "nvme0n1p1 is mounted at /boot files",
        "vg-root (dm-0) is mounted at /",
        "nvme0n1p2 is part of vg-root (dm-0)",
    ];
    assert_eq!(uses(&machine, "nvme0n1"), expected);
    assert_eq!(uses(&machine, "ng0n1"), expected, "the generic node is the same device");
    assert_eq!(uses(&machine, "nvme0n1p1"), expected[..1]);
}

#[test]
fn i_d7_a_file_system_with_a_number_of_its_own_is_found_by_its_source() {
    let machine = FakeMachine::new();
    machine.disk("sdb", "8:16", 2048);
    machine.write("proc/self/mountinfo", "30 1 0:45 /sub /data rw - btrfs /dev/sdb rw\n");
    assert_eq!(uses(&machine, "sdb"), ["sdb is mounted at /data"]);
}

#[test]
fn i_d7_swap_raid_and_stacks_of_devices_are_found() {
    let machine = FakeMachine::new();
    machine.disk("sda", "8:0", 2048);
    machine.disk("sdb", "8:16", 2048);
    machine.partition("sda", "sda1", 1, "8:1");
    machine.disk("md0", "9:0", 2048);
    machine.disk("dm-1", "252:1", 2048);
    machine.holder("sdb", "md0");
    machine.holder("md0", "dm-1");
    machine.write(
        "proc/swaps",
        "Filename\tType\tSize\tUsed\tPriority\n/dev/sda1 partition 100 0 -2\n/dev/dm-1 partition 100 0 -3\n",
    );
    assert_eq!(uses(&machine, "sda"), ["sda1 is swap space"]);
    assert_eq!(uses(&machine, "sdb"), ["dm-1 is swap space", "md0 is part of dm-1", "sdb is part of md0"]);
}

#[test]
fn i_d7_who_has_the_whole_device_has_its_partitions_and_not_the_other_way_round() {
    let machine = FakeMachine::new();
    machine.disk("sda", "8:0", 2048);
    machine.partition("sda", "sda1", 1, "8:1");
    machine.partition("sda", "sda2", 2, "8:2");
    machine.write("proc/swaps", "Filename\tType\tSize\tUsed\tPriority\n/dev/sda2 partition 100 0 -2\n");
    assert!(uses(&machine, "sda1").is_empty(), "a neighbor is no use");
    assert_eq!(uses(&machine, "sda2"), ["sda2 is swap space"]);
    machine.disk("md0", "9:0", 2048);
    machine.holder("sda", "md0");
    machine.write("proc/self/mountinfo", "22 1 9:0 / /raid rw - xfs /dev/md0 rw\n");
    let whole = ["md0 is mounted at /raid", "sda is part of md0"];
    assert_eq!(uses(&machine, "sda1"), whole, "I-D7: RAID on the whole disk");
    machine.write("proc/self/mountinfo", "30 1 8:0 / /data rw - ext4 /dev/sda rw\n");
    assert_eq!(uses(&machine, "sda1"), ["sda is mounted at /data", "sda is part of md0"], "I-D7");
}

#[test]
fn a_circle_of_holders_ends() {
    let machine = FakeMachine::new();
    machine.disk("dm-0", "252:0", 2048);
    machine.disk("dm-1", "252:1", 2048);
    machine.holder("dm-0", "dm-1");
    machine.holder("dm-1", "dm-0");
    assert_eq!(uses(&machine, "dm-0").len(), 2);
}

#[test]
fn a_loop_device_uses_its_file_or_device() {
    let machine = FakeMachine::new();
    let image = machine.roots().dev.join("disk.img");
    std::fs::write(&image, b"").unwrap();
    machine.disk("loop3", "7:3", 2048);
    machine.write("sys/block/loop3/loop/backing_file", &format!("{}\n", image.canonicalize().unwrap().display()));
    assert_eq!(uses(&machine, "disk.img"), ["the loop device loop3 is made of it"]);
    machine.disk("sdx", "8:112", 2048);
    let node = machine.roots().dev.join("sdx");
    machine.write("sys/block/loop3/loop/backing_file", &format!("{}\n", node.display()));
    assert_eq!(uses(&machine, "sdx"), ["the loop device loop3 is made of it"], "I-D7: a device below one");
}

#[test]
fn processes_that_lock_or_write_are_named() {
    let machine = FakeMachine::new();
    let image = machine.roots().dev.join("disk.img");
    std::fs::write(&image, b"").unwrap();
    let image = image.canonicalize().unwrap();
    let dir = machine.roots().proc.join("4242");
    machine.write("proc/4242/comm", "qemu\n");
    machine.write("proc/4242/fdinfo/7", "pos:\t0\nflags:\t0100000\n");
    std::fs::create_dir_all(dir.join("fd")).unwrap();
    std::os::unix::fs::symlink(&image, dir.join("fd/7")).unwrap();
    assert!(uses(&machine, "disk.img").is_empty(), "reading is no use");
    machine.write("proc/4242/fdinfo/7", "pos:\t0\nflags:\t0100002\n");
    assert_eq!(uses(&machine, "disk.img"), [format!("qemu (pid 4242) has {} open for writing", image.display())]);
    let Some(FileKey::File(number, inode)) = FileKey::of_node(&image) else { panic!("a file") };
    machine.write("proc/4242/comm", "kiseki-server\n");
    machine.write(
        "proc/locks",
        &format!("1: FLOCK  ADVISORY  WRITE 4242 {:02x}:{:02x}:{inode} 0 EOF\n", number.major, number.minor),
    );
    assert_eq!(uses(&machine, "disk.img"), ["a running Kiseki node has it: kiseki-server (pid 4242)"]);
}

#[test]
fn i_d7_a_use_is_refused_with_its_remedy() {
    let uses = [Use::Mounted { node: "sda1".to_owned(), at: "/data".to_owned() }];
    let error = refuse("/dev/sda", &uses).unwrap_err();
    assert_eq!(
        error.to_string(),
        "/dev/sda is in use: sda1 is mounted at /data (umount /data); stop that first, nothing was changed"
    );
    refuse("/dev/sda", &[]).unwrap();
}

/// On this machine: a lock that another process holds is seen by its owner's name.
#[test]
fn i_d7_a_lock_of_another_process_is_seen() {
    let dir = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
    let path = dir.path().join("d.img");
    std::fs::write(&path, vec![0; 4096]).unwrap();
    let Ok(mut child) = std::process::Command::new("flock")
        .args(["--exclusive", path.to_str().unwrap(), "cat"])
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::null())
        .spawn()
    else {
        println!("SKIPPED: flock(1) is not there");
        return;
    };
    while DeviceLock::acquire(&path).is_ok() {
        std::thread::yield_now();
    }
    let error = refuse_in_use(&path).unwrap_err().to_string();
    drop(child.stdin.take());
    child.wait().unwrap();
    assert!(error.contains("has locked it") && error.contains("stop process"), "I-D7: {error}");
    refuse_in_use(&path).unwrap();
}
