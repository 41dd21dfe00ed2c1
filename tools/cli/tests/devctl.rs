//! `kiseki-devctl` as an operator types it, on images and, where this machine lets us, on loop devices.

use kiseki_devices::superblock::FormatMarker;
use kiseki_types::ids::{ClusterId, DeviceId};
use serde_json::Value;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

const CLUSTER: &str = "0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f";
const OTHER_CLUSTER: &str = "0e0e0e0e0e0e0e0e0e0e0e0e0e0e0e0e";
const IMAGE_LEN_BYTES: u64 = 64 << 20;
/// Where the partition of [`with_partition`] begins.
const PARTITION_START: u64 = 1 << 20;

/// What a run printed and answered.
struct Run {
    code: i32,
    out: String,
    error: String,
}

fn devctl(args: &[&str]) -> Run {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kiseki-devctl"));
    let Output { status, stdout, stderr } =
        command.args(args).env_remove("KISEKI_DIR").stdin(Stdio::null()).output().expect("it starts");
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("it prints text");
    Run { code: status.code().expect("it ends by itself"), out: text(stdout), error: text(stderr) }
}

fn format(device: &Path, more: &[&str]) -> Run {
    let args = [&["format", "--cluster", CLUSTER, device.to_str().unwrap()], more].concat();
    devctl(&args)
}

/// A directory on a file system that does direct I/O.
fn dir() -> tempfile::TempDir {
    tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap()
}

fn image(dir: &tempfile::TempDir, name: &str) -> PathBuf {
    let path = dir.path().join(name);
    File::create(&path).unwrap().set_len(IMAGE_LEN_BYTES).unwrap();
    path
}

fn put(path: &Path, offset: u64, bytes: &[u8]) {
    OpenOptions::new().write(true).open(path).unwrap().write_all_at(bytes, offset).unwrap();
}

/// A GPT with one partition, and an ext4 file system in it.
fn with_partition(path: &Path) {
    let last = IMAGE_LEN_BYTES / 512 - 1;
    let mut first = vec![0; 512];
    first[446 + 4] = 0xee;
    first[510..].copy_from_slice(&[0x55, 0xaa]);
    put(path, 0, &first);
    for (header, table) in [(1, 2), (last, last - 32)] {
        put(path, header * 512, b"EFI PART");
        put(
            path,
            header * 512 + 72,
            &[&table.to_le_bytes()[..], &128u32.to_le_bytes(), &128u32.to_le_bytes()].concat(),
        );
        let run = [(PARTITION_START / 512).to_le_bytes(), (last - 64).to_le_bytes()].concat();
        put(path, table * 512, &[&[0xaf; 32][..], &run].concat());
    }
    put(path, PARTITION_START + 1080, &[0x53, 0xef]);
    put(path, PARTITION_START + 1024 + 96, &[0x40]);
}

#[test]
fn i_d7_a_file_system_in_a_partition_is_named_and_protected() {
    let dir = dir();
    let path = image(&dir, "d.img");
    with_partition(&path);
    let before = std::fs::read(&path).unwrap();
    for (wipe, missing) in
        [(&[][..], &["gpt", "p1:ext"][..]), (&["--wipe", "gpt"], &["p1:ext"]), (&["--wipe", "ext,gpt"], &["p1:ext"])]
    {
        let run = format(&path, wipe);
        assert_eq!(run.code, 1, "I-D7: {wipe:?}: {}", run.error);
        assert!(run.error.contains(&format!("confirm each by name: {}", missing.join(", "))), "I-D7: {}", run.error);
        assert!(run.error.contains("an ext4 file system in partition 1"), "{}", run.error);
        assert!(std::fs::read(&path).unwrap() == before, "I-D7: {wipe:?} wrote to a refused device");
    }
    let both = ["--wipe", "gpt,p1:ext"];
    let planned = devctl(&[&["plan", "--cluster", CLUSTER, path.to_str().unwrap()][..], &both].concat());
    assert_eq!(planned.code, 0, "{}", planned.error);
    let dry = format(&path, &[&both[..], &["--dry-run"]].concat());
    assert_eq!((dry.code, &dry.out), (0, &planned.out), "a dry run shows the plan");
    assert!(std::fs::read(&path).unwrap() == before, "a plan wrote to the device");
    let run = format(&path, &both);
    assert_eq!(run.code, 0, "{}", run.error);
    assert!(
        run.out.contains("formatted as device") && run.out.contains("to take into use: kiseki-devctl enroll"),
        "{}",
        run.out
    );
    let inspected = devctl(&["inspect", path.to_str().unwrap(), "--json"]);
    let value: Value = serde_json::from_str(&inspected.out).unwrap();
    assert_eq!((inspected.code, value["cluster"].as_str()), (0, Some(CLUSTER)));
    let damage: Vec<&Value> =
        value["superblock_copies"].as_array().unwrap().iter().map(|copy| &copy["damage"]).collect();
    assert_eq!(damage, [&Value::Null; 4]);
}

#[test]
fn i_d7_another_clusters_device_is_refused_and_our_own_unused_one_is_done_already() {
    let dir = dir();
    let path = image(&dir, "d.img");
    assert_eq!(format(&path, &[]).code, 0);
    let again = format(&path, &["--json"]);
    let value: Value = serde_json::from_str(&again.out).unwrap();
    assert_eq!((again.code, value["done_already"].as_bool()), (0, Some(true)), "the same command goes on");
    let other = devctl(&["format", "--cluster", OTHER_CLUSTER, path.to_str().unwrap()]);
    assert_eq!(other.code, 1);
    assert!(other.error.ends_with(&format!("confirm each by name: kiseki:{CLUSTER}\n")), "I-D7: {}", other.error);
}

#[test]
fn i_d7_one_refused_device_keeps_all_from_being_touched() {
    let dir = dir();
    let (blank, signed) = (image(&dir, "a.img"), image(&dir, "b.img"));
    with_partition(&signed);
    let run = format(&blank, &[signed.to_str().unwrap()]);
    assert_eq!(run.code, 1);
    assert!(
        std::fs::read(&blank).unwrap().iter().all(|byte| *byte == 0),
        "the first was formatted, the second refused"
    );
}

#[test]
fn i_d7_a_device_that_somebody_writes_to_is_refused_whatever_is_confirmed() {
    let dir = dir();
    let path = image(&dir, "d.img");
    put(&path, 4096 - 10, b"SWAPSPACE2");
    let before = std::fs::read(&path).unwrap();
    let writer = OpenOptions::new().write(true).open(&path).unwrap();
    let run = format(&path, &["--wipe", "swap"]);
    let who = format!("open for writing (stop process {})", std::process::id());
    assert!(run.code == 1 && run.error.contains(&who), "I-D7: {}", run.error);
    assert!(std::fs::read(&path).unwrap() == before, "I-D7: it was written to");
    drop(writer);
    assert_eq!(format(&path, &["--wipe", "swap"]).code, 0);
}

#[test]
fn an_interrupted_format_says_so_and_the_same_command_goes_on() {
    let dir = dir();
    let path = image(&dir, "d.img");
    let marker = FormatMarker { cluster: ClusterId([15; 16]), device: DeviceId([1; 16]) };
    put(&path, 0, &marker.encode());
    let run = devctl(&["inspect", path.to_str().unwrap()]);
    assert_eq!(run.code, 1);
    assert!(
        run.out.contains("FORMAT WAS INTERRUPTED") && run.out.contains("run the same `kiseki-devctl format` again"),
        "{}",
        run.out
    );
    assert_eq!(format(&path, &[]).code, 0);
    assert_eq!(devctl(&["inspect", path.to_str().unwrap()]).code, 0);
}

#[test]
fn each_damaged_superblock_is_told_with_its_reason() {
    let dir = dir();
    let path = image(&dir, "d.img");
    assert_eq!(format(&path, &[]).code, 0);
    put(&path, 100, &[0xff]);
    put(&path, IMAGE_LEN_BYTES - 4096, &[0; 8]);
    let run = devctl(&["inspect", path.to_str().unwrap()]);
    assert_eq!(run.code, 1, "a damaged copy is a problem");
    for expected in
        ["superblock 0     at 0: damaged: ", "superblock 1     at 4096: good", "superblock 3", "damaged: no magic"]
    {
        assert!(run.out.contains(expected), "{expected}: {}", run.out);
    }
}

#[test]
fn what_means_nothing_is_refused_with_what_to_do() {
    let dir = dir();
    let path = image(&dir, "d.img");
    for flags in [&["--nvme-format"][..], &["--lbaf", "1"], &["--block-size", "4096"], &["--secure-erase", "crypto"]] {
        let run = format(&path, flags);
        assert_eq!(run.code, 1, "{flags:?}");
        assert!(run.error.contains("is no NVMe namespace"), "{flags:?}: {}", run.error);
    }
    let name = path.to_str().unwrap();
    for (args, text) in [
        (&["format"][..], "required arguments"),
        (&["format", name, "--block-size", "1024"], "4096 or 512"),
        (&["format", name, "--lbaf", "1", "--nvme-format"], "cannot be used with"),
        (&["format", name, "--cluster", "12"], "32 hex digits"),
        (&["locate", name, "--off", "--blink"], "cannot be used with"),
    ] {
        let run = devctl(args);
        assert!(run.code == 2 && run.error.contains(text), "{args:?}: {} {}", run.code, run.error);
    }
    let smart = devctl(&["smart", name]);
    assert!(smart.code == 1 && smart.out.contains("no SMART log"), "{}", smart.out);
    let locate = devctl(&["locate", name]);
    assert!(locate.code == 1 && locate.error.contains("`kiseki-devctl list --all` shows them"), "{}", locate.error);
    let gone = devctl(&["inspect", "/nowhere/nvme0n1"]);
    assert!(gone.code == 1 && gone.out.contains("can't be read: opening on /nowhere/nvme0n1 failed"), "{}", gone.out);
    let small = dir.path().join("small.img");
    File::create(&small).unwrap().set_len(1 << 20).unwrap();
    assert!(format(&small, &[]).error.contains("too small for 4 lanes"));
}

#[test]
fn every_device_of_the_machine_is_listed() {
    let run = devctl(&["list", "--all", "--json"]);
    assert_eq!(run.code, 0, "{}", run.error);
    let value: Value = serde_json::from_str(&run.out).unwrap();
    for device in value.as_array().unwrap() {
        assert!(
            device["path"].is_string() && device["in_use"].is_array() || device["controller"].is_string(),
            "{device}"
        );
    }
}

/// A loop device, taken down at the end.
struct Loop(PathBuf);

impl Loop {
    /// `None`, said aloud: this machine has none for us.
    fn new(image: &Path, block_len_bytes: u32) -> Option<Loop> {
        let args = ["--find", "--show", "--partscan", "--direct-io=on", "-b", &block_len_bytes.to_string()];
        let made = Command::new("losetup").args(args).arg(image).output();
        match made {
            Ok(output) if output.status.success() => {
                Some(Loop(PathBuf::from(String::from_utf8(output.stdout).unwrap().trim())))
            }
            other => {
                println!("SKIPPED: no loop device with blocks of {block_len_bytes} bytes: {other:?}");
                None
            }
        }
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = Command::new("losetup").arg("-d").arg(&self.0).status();
    }
}

#[test]
fn i_d7_loop_devices_are_formatted_and_what_uses_them_is_named() {
    for block_len_bytes in [512, 4096] {
        let dir = dir();
        let path = image(&dir, "d.img");
        let Some(device) = Loop::new(&path, block_len_bytes) else { return };
        let below = format(&path, &[]);
        let name = device.0.file_name().unwrap().to_str().unwrap().to_owned();
        assert_eq!(below.code, 1, "I-D7: the image of a loop device was formatted");
        assert!(
            below.error.contains(&format!("the loop device {name} is made of it (losetup -d /dev/{name})")),
            "{}",
            below.error
        );
        let run = format(&device.0, &["--class", "ssd"]);
        assert_eq!(run.code, 0, "blocks of {block_len_bytes}: {}", run.error);
        assert_eq!(devctl(&["inspect", device.0.to_str().unwrap()]).code, 0);
        // Somebody else holds it exclusively from here on.
        let wipe = format!("kiseki:{CLUSTER}");
        let made = Command::new("mkfs.ext4").args(["-q", "-F"]).arg(&device.0).output();
        let at = dir.path().join("mnt");
        std::fs::create_dir(&at).unwrap();
        let is_mounted = made.is_ok_and(|made| made.status.success())
            && Command::new("mount").arg(&device.0).arg(&at).output().is_ok_and(|done| done.status.success());
        if !is_mounted {
            println!("SKIPPED: no ext4 file system can be mounted here");
            continue;
        }
        let run = format(&device.0, &["--yes", "--wipe", &format!("ext,{wipe}")]);
        let listed = devctl(&["list", "--all"]);
        let unmounted = Command::new("umount").arg(&at).status().unwrap();
        assert!(unmounted.success());
        assert_eq!(run.code, 1, "I-D7: a mounted device was formatted");
        assert!(run.error.contains(&format!("{name} is mounted at {}", at.display())), "I-D7: {}", run.error);
        assert!(listed.out.contains(&format!("{name} is mounted at")), "{}", listed.out);
        assert_eq!(format(&device.0, &["--wipe", "ext"]).code, 0, "and when it is not mounted any more it is");
    }
}

#[test]
fn i_d7_a_partition_in_use_keeps_the_whole_device() {
    let dir = dir();
    let path = image(&dir, "d.img");
    with_partition(&path);
    let Some(device) = Loop::new(&path, 512) else { return };
    let part = PathBuf::from(format!("{}p1", device.0.display()));
    if !part.exists() {
        println!("SKIPPED: the kernel shows no partition of {} (its table has no checksums)", device.0.display());
        return;
    }
    assert!(Command::new("mkswap").arg(&part).output().unwrap().status.success());
    if !Command::new("swapon").arg(&part).output().unwrap().status.success() {
        println!("SKIPPED: no swap here");
        return;
    }
    let run = format(&device.0, &["--wipe", "gpt,p1:swap"]);
    assert!(Command::new("swapoff").arg(&part).status().unwrap().success());
    assert!(run.code == 1 && run.error.contains("is swap space (swapoff"), "I-D7: {}", run.error);
}

/// The object that an error is with `--json`.
fn error_object(run: &Run) -> Value {
    assert_eq!(run.error.lines().count(), 1, "one line: {}", run.error);
    let value: Value = serde_json::from_str(&run.error).unwrap();
    assert_eq!(value["error"]["exit_code"].as_i64(), Some(i64::from(run.code)), "{}", run.error);
    value["error"].clone()
}

#[test]
fn with_json_an_error_is_one_object_and_the_exit_code_says_how_it_ended() {
    let dir = dir();
    let path = image(&dir, "d.img");
    with_partition(&path);
    let refused = format(&path, &["--json"]);
    let error = error_object(&refused);
    assert_eq!((refused.code, error["outcome"].as_str()), (1, Some("refused")));
    assert!(error["message"].as_str().unwrap().contains("confirm each by name: gpt, p1:ext") && refused.out.is_empty());
    for args in [&["format", "--json"][..], &["retire", "--json"], &["nonsense", "--json"]] {
        let run = devctl(args);
        assert_eq!((run.code, error_object(&run)["outcome"].as_str()), (2, Some("usage")), "{args:?}");
    }
    let node = dir.path().join("node");
    std::fs::create_dir(&node).unwrap();
    let drain = ["drain", "abcd", "--json", "--dir", node.to_str().unwrap()];
    let stopped = devctl(&drain);
    assert_eq!((stopped.code, error_object(&stopped)["outcome"].as_str()), (1, Some("refused")));
    assert!(error_object(&stopped)["causes"][0].as_str().unwrap().contains("start it with `kiseki-server run`"));
    // A node that goes away in the middle of its answer.
    let listener = std::os::unix::net::UnixListener::bind(node.join("admin.sock")).unwrap();
    let gone = std::thread::spawn(move || drop(listener.accept()));
    let failed = devctl(&drain);
    gone.join().unwrap();
    assert_eq!((failed.code, error_object(&failed)["outcome"].as_str()), (3, Some("failed")), "{}", failed.error);
    let good = image(&dir, "good.img");
    assert_eq!(format(&good, &[]).code, 0);
    let partly = devctl(&["verify", "--json", good.to_str().unwrap(), "/nowhere/d.img"]);
    let answer: Value = serde_json::from_str(&partly.out).unwrap();
    assert_eq!((partly.code, answer["refused"].as_array().unwrap().len()), (4, 1), "one of two was looked at");
    assert_eq!(devctl(&["verify", "/nowhere/d.img"]).code, 1);
}

#[test]
fn administration_speaks_of_errors_in_the_same_way() {
    let dir = dir();
    let kiseki = |args: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_kiseki"));
        let output = command.args(args).arg("--dir").arg(dir.path()).stdin(Stdio::null()).output().unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        Run { code: output.status.code().unwrap(), out: text(output.stdout), error: text(output.stderr) }
    };
    let stopped = kiseki(&["tenant", "list", "--json"]);
    assert_eq!((stopped.code, error_object(&stopped)["outcome"].as_str()), (1, Some("refused")));
    let usage = kiseki(&["tenant", "--json", "create"]);
    assert_eq!((usage.code, error_object(&usage)["outcome"].as_str()), (2, Some("usage")));
    let people = kiseki(&["tenant", "list"]);
    assert!(people.error.starts_with("kiseki: no node answers at"), "{}", people.error);
}

#[test]
fn i_d7_the_far_table_of_a_disk_of_any_number_of_sectors_is_found_and_wiped() {
    let dir = dir();
    for (name, len) in [("odd.img", IMAGE_LEN_BYTES + 3 * 512), ("cut.img", IMAGE_LEN_BYTES + 700)] {
        let path = dir.path().join(name);
        File::create(&path).unwrap().set_len(len).unwrap();
        put(&path, (len / 512 - 1) * 512, b"EFI PART");
        // On the loop device where there is one, else on the image.
        let device = Loop::new(&path, 512);
        let named = device.as_ref().map_or(&path, |device| &device.0);
        let inspected = devctl(&["inspect", named.to_str().unwrap()]);
        assert!(inspected.out.contains("--wipe gpt"), "I-D7: {name}: {}", inspected.out);
        let run = format(named, &[]);
        assert!(run.code == 1 && run.error.contains("confirm each by name: gpt\n"), "I-D7: {name}: {}", run.error);
        let run = format(named, &["--wipe", "gpt"]);
        assert_eq!(run.code, 0, "{name}: {}", run.error);
        let again = format(named, &["--json"]);
        assert!(again.out.contains("\"done_already\":true"), "{name}: {} {}", again.out, again.error);
        drop(device);
        let end = &std::fs::read(&path).unwrap()[IMAGE_LEN_BYTES as usize..];
        assert!(end.iter().all(|byte| *byte == 0), "I-D7: {name}: the table is still there");
    }
}

/// An MBR with two partitions, which every kernel shows.
fn with_two_partitions(path: &Path) {
    let mut table = vec![0; 512];
    for (slot, start) in [(0, 2048u32), (1, 65536)] {
        let entry = &mut table[446 + 16 * slot..][..16];
        entry[4] = 0x83;
        entry[8..12].copy_from_slice(&start.to_le_bytes());
        entry[12..].copy_from_slice(&49152u32.to_le_bytes());
    }
    table[510..].copy_from_slice(&[0x55, 0xaa]);
    put(path, 0, &table);
}

#[test]
fn i_d7_who_uses_the_whole_device_keeps_its_partitions_and_a_neighbor_does_not() {
    let dir = dir();
    let path = image(&dir, "d.img");
    with_two_partitions(&path);
    let Some(device) = Loop::new(&path, 512) else { return };
    let part = |number: u32| PathBuf::from(format!("{}p{number}", device.0.display()));
    if !part(2).exists() {
        println!("SKIPPED: the kernel shows no partitions of {}", device.0.display());
        return;
    }
    let name = device.0.file_name().unwrap().to_str().unwrap().to_owned();
    let writer = OpenOptions::new().write(true).open(&device.0).unwrap();
    let run = format(&part(1), &[]);
    assert_eq!(run.code, 1, "I-D7: a partition of a device that somebody writes to was formatted");
    assert!(run.error.contains(&format!("has {name} open for writing")), "I-D7: {}", run.error);
    drop(writer);
    // Held exclusively as a whole, by nobody whom the kernel names.
    let holder = std::os::unix::fs::OpenOptionsExt::custom_flags(OpenOptions::new().read(true), 0o200).open(&device.0);
    let run = format(&part(1), &[]);
    assert!(run.code == 1 && run.error.contains("held exclusively"), "I-D7: {}", run.error);
    drop(holder);
    // The neighbor's use is its own.
    let holder = std::os::unix::fs::OpenOptionsExt::custom_flags(OpenOptions::new().read(true), 0o200).open(part(2));
    let run = format(&part(1), &["--lanes", "2"]);
    assert_eq!(run.code, 0, "{}", run.error);
    let whole = format(&device.0, &["--wipe", &format!("mbr,p1:kiseki:{CLUSTER}")]);
    drop(holder);
    assert!(whole.code == 1 && whole.error.contains("in use"), "I-D7: a partition is held: {}", whole.error);
}

#[test]
fn a_reader_that_goes_away_is_no_error() {
    for program in [env!("CARGO_BIN_EXE_kiseki-devctl"), env!("CARGO_BIN_EXE_kiseki")] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let mut command = Command::new(program);
        let output = command.args(["completion", "bash"]).stdout(writer).stderr(Stdio::piped()).output().unwrap();
        assert_eq!(output.status.signal(), Some(13), "{program} ends as other tools do");
        assert_eq!(String::from_utf8_lossy(&output.stderr), "");
    }
}
