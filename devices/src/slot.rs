//! Where a device sits, and the lamps that show it: the PCI slot's, the enclosure's.
//!
//! Three kinds of lamps are known: the attention lamp of a hotplug slot, the locate lamp of an enclosure that speaks SES,
//! and the one of Native PCIe Enclosure Management, which Linux shows as an LED. Many servers have none of them.

use crate::topology::{BlockDevice, KernelRoots, attribute, names_in};
use std::io;
use std::path::{Path, PathBuf};

/// Where a device sits.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Slot {
    /// Its PCI address.
    pub pci_address: Option<String>,
    /// The slot's name on the machine, as printed beside it.
    pub name: Option<String>,
    /// Enclosure and bay of a SCSI device.
    pub bay: Option<String>,
    /// Its lamps.
    pub lamps: Vec<Lamp>,
}

/// A lamp that can be switched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lamp {
    /// What it is.
    pub kind: LampKind,
    /// The kernel's file that switches it.
    pub path: PathBuf,
}

/// Kinds of lamps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LampKind {
    /// The attention lamp of a hotplug slot: it blinks to be found, and shines for a fault.
    SlotAttention,
    /// The locate lamp of an enclosure.
    EnclosureLocate,
    /// The locate lamp of Native PCIe Enclosure Management.
    NpemLocate,
}

impl LampKind {
    /// For people.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            LampKind::SlotAttention => "attention lamp of the slot",
            LampKind::EnclosureLocate => "locate lamp of the enclosure",
            LampKind::NpemLocate => "locate lamp of the drive bay",
        }
    }

    /// What its file takes.
    #[must_use]
    pub fn value(self, is_on: bool) -> &'static str {
        match (self, is_on) {
            (_, false) => "0",
            (LampKind::SlotAttention, true) => "2",
            (LampKind::EnclosureLocate | LampKind::NpemLocate, true) => "1",
        }
    }
}

impl Lamp {
    /// Switches it. Errors: the kernel's, mostly for want of rights.
    pub fn switch(&self, is_on: bool) -> io::Result<()> {
        std::fs::write(&self.path, self.kind.value(is_on))
    }
}

/// Where a device sits, by what the kernel tells.
#[must_use]
pub fn slot_of(roots: &KernelRoots, device: &BlockDevice) -> Slot {
    let mut slot = Slot { pci_address: device.pci_address().map(str::to_owned), ..Slot::default() };
    let slots = roots.sys.join("bus/pci/slots");
    // The innermost bridge with a slot is the bay; those above are the machine's own.
    for address in device.pci_path.iter().rev() {
        let found = names_in(&slots).into_iter().find(|name| {
            let place = attribute(&slots.join(name), "address");
            place.is_some_and(|place| address.split('.').next() == Some(&place))
        });
        if let Some(name) = found {
            add(&mut slot.lamps, LampKind::SlotAttention, &slots.join(&name).join("attention"));
            slot.name = Some(name);
            break;
        }
    }
    for address in &device.pci_path {
        let led = roots.sys.join("class/leds").join(format!("{address}:enclosure:locate"));
        add(&mut slot.lamps, LampKind::NpemLocate, &led.join("brightness"));
    }
    let hardware = roots.sys.join("block").join(&device.name).join("device").canonicalize().ok();
    let enclosures = roots.sys.join("class/enclosure");
    for enclosure in names_in(&enclosures) {
        for bay in names_in(&enclosures.join(&enclosure)) {
            let below = enclosures.join(&enclosure).join(&bay);
            let held = below.join("device").canonicalize().ok();
            if held.is_some() && held == hardware {
                add(&mut slot.lamps, LampKind::EnclosureLocate, &below.join("locate"));
                slot.bay = Some(format!("{enclosure}, {bay}"));
            }
        }
    }
    slot
}

fn add(lamps: &mut Vec<Lamp>, kind: LampKind, path: &Path) {
    if path.exists() {
        lamps.push(Lamp { kind, path: path.to_owned() });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::topology::Topology;
    use crate::topology::tests::FakeMachine;

    #[test]
    fn a_drive_in_a_slot_is_found_with_its_lamps() {
        let machine = FakeMachine::new();
        machine.nvme(3, 1);
        machine.write("sys/bus/pci/slots/12/address", "0000:03:00\n");
        machine.write("sys/bus/pci/slots/12/attention", "0\n");
        machine.write("sys/bus/pci/slots/13/address", "0000:04:00\n");
        machine.write("sys/class/leds/0000:00:03.0:enclosure:locate/brightness", "0\n");
        let roots = machine.roots();
        let topology = Topology::read(&roots).unwrap();
        let slot = slot_of(&roots, topology.device("nvme3n1").unwrap());
        assert_eq!((slot.pci_address.as_deref(), slot.name.as_deref()), (Some("0000:03:00.0"), Some("12")));
        let kinds: Vec<LampKind> = slot.lamps.iter().map(|lamp| lamp.kind).collect();
        assert_eq!(kinds, [LampKind::SlotAttention, LampKind::NpemLocate]);
        for lamp in &slot.lamps {
            lamp.switch(true).unwrap();
            assert_ne!(std::fs::read_to_string(&lamp.path).unwrap(), "0");
            lamp.switch(false).unwrap();
            assert_eq!(std::fs::read_to_string(&lamp.path).unwrap(), "0");
        }
    }

    #[test]
    fn a_disk_in_an_enclosure_is_found_by_its_bay() {
        let machine = FakeMachine::new();
        machine.disk("sda", "8:0", 2048);
        machine.write("sys/devices/host0/0:0:1:0/model", "DISK\n");
        machine.link("sys/block/sda/device", "sys/devices/host0/0:0:1:0");
        machine.write("sys/class/enclosure/0:0:8:0/Slot 07/locate", "0\n");
        machine.link("sys/class/enclosure/0:0:8:0/Slot 07/device", "sys/devices/host0/0:0:1:0");
        machine.write("sys/class/enclosure/0:0:8:0/Slot 08/locate", "0\n");
        let roots = machine.roots();
        let topology = Topology::read(&roots).unwrap();
        let slot = slot_of(&roots, topology.device("sda").unwrap());
        assert_eq!(slot.bay.as_deref(), Some("0:0:8:0, Slot 07"));
        assert_eq!((slot.lamps.len(), slot.lamps[0].kind), (1, LampKind::EnclosureLocate));
        assert_eq!(slot.name, None);
    }
}
