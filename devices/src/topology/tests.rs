//! A machine made of files: what the kernel would tell of it.

use super::*;

/// A fabricated machine; `in_use` and the tools are tried on it too.
pub(crate) struct FakeMachine {
    dir: tempfile::TempDir,
}

impl FakeMachine {
    pub(crate) fn new() -> FakeMachine {
        let machine = FakeMachine { dir: tempfile::tempdir().unwrap() };
        for dir in ["sys/block", "sys/class/nvme", "sys/class/nvme-generic", "proc/self", "dev"] {
            std::fs::create_dir_all(machine.dir.path().join(dir)).unwrap();
        }
        machine.write("proc/self/mountinfo", "");
        machine.write("proc/swaps", "Filename\t\t\tType\t\tSize\t\tUsed\t\tPriority\n");
        machine.write("proc/locks", "");
        machine
    }

    pub(crate) fn roots(&self) -> KernelRoots {
        let root = self.dir.path();
        KernelRoots { sys: root.join("sys"), proc: root.join("proc"), dev: root.join("dev") }
    }

    pub(crate) fn write(&self, path: &str, text: &str) {
        let path = self.dir.path().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }

    pub(crate) fn link(&self, path: &str, to: &str) {
        let path = self.dir.path().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::os::unix::fs::symlink(self.dir.path().join(to), path).unwrap();
    }

    /// A drive with namespaces `1..=count` of 1 GiB, on the bus at `0000:0<index>:00.0`.
    pub(crate) fn nvme(&self, index: u32, count: u32) {
        let controller = format!("sys/devices/pci0000:00/0000:00:0{index}.0/0000:0{index}:00.0/nvme/nvme{index}");
        for (name, text) in [
            ("model", "FAST 9000  \n".to_owned()),
            ("serial", format!("S{index}\n")),
            ("firmware_rev", "1.0\n".to_owned()),
            ("state", "live\n".to_owned()),
            ("transport", "pcie\n".to_owned()),
            ("address", format!("0000:0{index}:00.0\n")),
            ("subsysnqn", format!("nqn.test:{index}\n")),
        ] {
            self.write(&format!("{controller}/{name}"), &text);
        }
        self.link(&format!("sys/class/nvme/nvme{index}"), &controller);
        for namespace in 1..=count {
            let name = format!("nvme{index}n{namespace}");
            let dir = format!("{controller}/{name}");
            self.disk_files(&dir, &format!("259:{}", 10 * index + namespace), 2 << 20);
            self.write(&format!("{dir}/nsid"), &format!("{namespace}\n"));
            self.write(&format!("{dir}/eui"), &format!("52 54 00 00 00 00 0{index} 0{namespace}\n"));
            self.write(&format!("{dir}/nguid"), "00000000-0000-0000-0000-000000000000\n");
            self.write(&format!("{dir}/queue/write_cache"), "write back\n");
            self.link(&format!("{dir}/device"), &controller);
            self.link(&format!("sys/block/{name}"), &dir);
            self.write(&format!("sys/class/nvme-generic/ng{index}n{namespace}/dev"), "241:0\n");
        }
    }

    /// A device at `/sys/block/<name>` with files of its own; `sectors` of 512 bytes.
    pub(crate) fn disk(&self, name: &str, number: &str, sectors: u64) {
        self.disk_files(&format!("sys/block/{name}"), number, sectors);
    }

    fn disk_files(&self, dir: &str, number: &str, sectors: u64) {
        self.write(&format!("{dir}/dev"), &format!("{number}\n"));
        self.write(&format!("{dir}/size"), &format!("{sectors}\n"));
        self.write(&format!("{dir}/ro"), "0\n");
        self.write(&format!("{dir}/queue/logical_block_size"), "512\n");
        self.write(&format!("{dir}/queue/physical_block_size"), "4096\n");
        self.write(&format!("{dir}/queue/rotational"), "0\n");
        std::fs::create_dir_all(self.dir.path().join(dir).join("holders")).unwrap();
    }

    pub(crate) fn partition(&self, disk: &str, name: &str, index: u32, number: &str) {
        let dir = format!("sys/block/{disk}/{name}");
        self.write(&format!("{dir}/partition"), &format!("{index}\n"));
        self.write(&format!("{dir}/dev"), &format!("{number}\n"));
        self.write(&format!("{dir}/start"), "2048\n");
        self.write(&format!("{dir}/size"), "4096\n");
    }

    /// `holder` is made on `below` (a device, or `disk/partition`).
    pub(crate) fn holder(&self, below: &str, holder: &str) {
        self.write(&format!("sys/block/{below}/holders/{holder}/dev"), "");
    }
}

#[test]
fn a_drive_is_known_by_all_its_names() {
    let machine = FakeMachine::new();
    machine.nvme(0, 2);
    machine.nvme(1, 0);
    machine.disk("sda", "8:0", 4 << 20);
    machine.write("sys/block/sda/device/model", "ST4000\n");
    machine.write("sys/block/sda/device/vendor", "SEAGATE\n");
    machine.write("sys/block/sda/device/vpd_pg80", "\0\x50\0\x08Z1234567");
    machine.write("sys/block/sda/queue/rotational", "1\n");
    machine.partition("nvme0n1", "nvme0n1p1", 1, "259:50");
    let found = Topology::read(&machine.roots()).unwrap();
    let names: Vec<&str> = found.devices.iter().map(|device| device.name.as_str()).collect();
    assert_eq!(names, ["nvme0n1", "nvme0n2", "sda"]);
    assert_eq!(found.controllers.len(), 2, "a controller without namespaces is listed too");
    let device = found.device("nvme0n1").unwrap();
    assert_eq!(device.model.as_deref(), Some("FAST 9000"));
    assert_eq!((device.serial.as_deref(), device.firmware.as_deref()), (Some("S0"), Some("1.0")));
    assert_eq!(device.eui64.as_deref(), Some("5254000000000001"));
    assert_eq!(device.nguid, None, "all zeros is no identifier");
    assert_eq!((device.len_bytes, device.logical_block_len_bytes), (1 << 30, 512));
    assert_eq!(device.pci_path, ["0000:00:00.0", "0000:00:00.0"]);
    assert!(device.has_write_cache && device.class() == DeviceClass::Nvme);
    let nvme = device.nvme.as_ref().unwrap();
    assert_eq!((nvme.namespace, nvme.generic.as_deref()), (1, Some("ng0n1")));
    assert_eq!((nvme.controllers.join(","), nvme.transport.as_deref()), ("nvme0".to_owned(), Some("pcie")));
    assert_eq!(found.find("ng0n1").unwrap().name(), "nvme0n1");
    assert_eq!(found.find("nvme0n1p1").unwrap().partition.unwrap().start_bytes, 1 << 20);
    assert_eq!(found.siblings(device).len(), 1);
    assert_eq!(found.find_path(Path::new("/dev/nvme0n2")).unwrap().name(), "nvme0n2");
    assert_eq!(found.find_path(Path::new("/nowhere/nvme0n2")), None, "a name elsewhere is another thing");
    let disk = found.device("sda").unwrap();
    assert_eq!((disk.model.as_deref(), disk.serial.as_deref()), (Some("SEAGATE ST4000"), Some("Z1234567")));
    assert!(disk.class() == DeviceClass::Hdd && disk.nvme.is_none() && found.siblings(disk).is_empty());
}

#[test]
fn namespaces_with_several_ways_to_them_are_one_device() {
    let machine = FakeMachine::new();
    machine.nvme(0, 0);
    machine.nvme(1, 0);
    let subsystem = "sys/devices/virtual/nvme-subsystem/nvme-subsys0";
    for controller in ["nvme0", "nvme1"] {
        let index = controller.strip_prefix("nvme").unwrap();
        machine.link(
            &format!("{subsystem}/{controller}"),
            &format!("sys/devices/pci0000:00/0000:00:0{index}.0/0000:0{index}:00.0/nvme/{controller}"),
        );
        machine.write(&format!("sys/class/nvme/{controller}/subsysnqn"), "nqn.shared\n");
    }
    machine.disk_files(&format!("{subsystem}/nvme0n1"), "259:1", 2048);
    machine.link(&format!("{subsystem}/nvme0n1/device"), subsystem);
    machine.link("sys/block/nvme0n1", &format!("{subsystem}/nvme0n1"));
    machine.disk("nvme0c0n1", "259:2", 2048);
    machine.write("sys/block/nvme0c0n1/hidden", "1\n");
    let found = Topology::read(&machine.roots()).unwrap();
    assert_eq!(found.devices.len(), 1);
    let nvme = found.devices[0].nvme.as_ref().unwrap();
    assert_eq!(nvme.controllers, ["nvme0", "nvme1"]);
    assert_eq!(found.devices[0].pci_address(), Some("0000:00:00.0"));
    assert_eq!(found.devices[0].serial.as_deref(), Some("S0"), "a subsystem without a serial: its controller's");
}

#[test]
fn a_machine_without_sysfs_is_an_error_and_missing_files_are_not() {
    let roots = KernelRoots { sys: "/nowhere".into(), ..KernelRoots::default() };
    assert!(Topology::read(&roots).unwrap_err().to_string().contains("/nowhere/block"));
    let machine = FakeMachine::new();
    std::fs::create_dir_all(machine.roots().sys.join("block/odd")).unwrap();
    let found = Topology::read(&machine.roots()).unwrap();
    assert_eq!((found.devices[0].len_bytes, found.devices[0].number), (0, None));
}

#[test]
fn names_are_sorted_as_people_count() {
    let mut names = vec!["nvme10n1", "nvme9n2", "sdb", "nvme9n10", "sda"];
    names.sort_by_cached_key(|name| counted(name));
    assert_eq!(names, ["nvme9n2", "nvme9n10", "nvme10n1", "sda", "sdb"]);
    for (name, is) in [("0000:01:00.0", true), ("10000:02:05.0", true), ("pci0000:00", false), ("nvme0", false)] {
        assert_eq!(is_pci_address(name), is, "{name}");
    }
}
