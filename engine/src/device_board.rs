//! The devices as one core's engine sees them: what its fragment store says of each, and what the control shard has
//! recorded (I-D2).
//!
//! The control shard tells every core before it answers a change, so after the answer no write that begins anywhere
//! places a fragment on a device that is to be emptied. Writes that began before are counted ([`Placement`]): a device
//! is empty for good only when those have ended.

use crate::device_record::DeviceRecord;
use crate::nodes::{NodeBoard, Standing};
use crate::racks::Racks;
use crate::spread::Spread;
use kiseki_types::fragment::{DeviceState, DeviceStatus, FragmentStore};
use kiseki_types::ids::{DeviceId, PoolId};
use kiseki_types::runtime::Instant;
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

/// One core's view of the devices.
pub struct DeviceBoard {
    fragments: Rc<dyn FragmentStore>,
    nodes: Rc<NodeBoard>,
    records: RefCell<BTreeMap<DeviceId, DeviceRecord>>,
    /// Which change of the records these are.
    version: Cell<u64>,
    /// Devices that nothing more is placed on, whatever a stripe would need: they are being retired, or perhaps were.
    closed: RefCell<BTreeSet<DeviceId>>,
    /// Raised by each change of what may be placed where.
    turn: Cell<u64>,
    /// Placements under way, by the turn in which they began.
    placements: RefCell<BTreeMap<u64, usize>>,
}

/// Somebody has chosen devices and puts fragments on them for as long as this lives.
pub struct Placement {
    board: Rc<DeviceBoard>,
    turn: u64,
}

impl Drop for Placement {
    fn drop(&mut self) {
        let mut placements = self.board.placements.borrow_mut();
        let count = placements.get_mut(&self.turn).expect("a placement is counted");
        *count -= 1;
        if *count == 0 {
            placements.remove(&self.turn);
        }
    }
}

impl DeviceBoard {
    /// Nothing recorded yet.
    #[must_use]
    pub fn new(fragments: Rc<dyn FragmentStore>, nodes: Rc<NodeBoard>) -> Rc<DeviceBoard> {
        Rc::new(DeviceBoard {
            fragments,
            nodes,
            records: RefCell::default(),
            version: Cell::new(0),
            closed: RefCell::default(),
            turn: Cell::new(0),
            placements: RefCell::default(),
        })
    }

    /// Takes up what is recorded; what is older than what is known is passed over.
    pub fn take_up(&self, version: u64, records: Vec<DeviceRecord>) {
        if version < self.version.get() {
            return;
        }
        self.version.set(version);
        let records: BTreeMap<_, _> = records.into_iter().map(|record| (record.device, record)).collect();
        // A removal whose outcome is unknown leaves its device closed. What is recorded as staying stays: no removal that was
        // tried before comes after that.
        let may_leave = |device: &DeviceId| {
            let state = records.get(device).map(DeviceRecord::state_in_use);
            matches!(state, Some(DeviceState::Evacuating | DeviceState::Removed))
        };
        self.closed.borrow_mut().retain(may_leave);
        self.records.replace(records);
        self.turn.set(self.turn.get() + 1);
    }

    /// What is recorded, in the order of ids.
    #[must_use]
    pub fn records(&self) -> Vec<DeviceRecord> {
        self.records.borrow().values().cloned().collect()
    }

    /// All devices that the store knows, each in the state that counts here.
    #[must_use]
    pub fn devices(&self) -> Vec<DeviceStatus> {
        let mut devices = self.fragments.devices();
        let records = self.records.borrow();
        for device in &mut devices {
            let recorded = records.get(&device.id).map(DeviceRecord::state_in_use);
            device.state = match (device.state, recorded) {
                (_, Some(DeviceState::Removed)) => DeviceState::Removed,
                // What was recorded of a failure is past: the store has opened it since.
                (DeviceState::Healthy, Some(recorded)) => recorded,
                (state, _) => state,
            };
            // What a node holds that is to leave moves to others, as from a device that is to be emptied.
            if device.state.takes_fragments() && self.nodes.is_draining(device.node) {
                device.state = DeviceState::Evacuating;
            }
        }
        devices
    }

    /// Devices whose fragments can be read.
    #[must_use]
    pub fn readable(&self) -> BTreeSet<DeviceId> {
        let devices = self.devices().into_iter();
        devices.filter(|device| device.state.is_readable()).map(|device| device.id).collect()
    }

    /// Devices that stripes count on, and their pools: those that can be read, and those of nodes that are awaited. A node
    /// that is restarted changes nothing of it.
    #[must_use]
    pub fn counted_on(&self, nodes: &NodeBoard, now: Instant) -> BTreeMap<DeviceId, PoolId> {
        let comes_back = |device: &DeviceStatus| {
            device.state == DeviceState::Unreachable && nodes.standing(device.node, now) == Standing::Awaited
        };
        let devices = self.devices().into_iter();
        let counted = devices.filter(|device| device.state.is_readable() || comes_back(device));
        counted.map(|device| (device.id, device.pool)).collect()
    }

    /// Which nodes fail together.
    #[must_use]
    pub fn racks(&self) -> Racks {
        self.nodes.racks()
    }

    /// How a pool lies on the nodes, for whoever acknowledges.
    #[must_use]
    pub fn spread(&self, devices: &[DeviceStatus], pool: PoolId, now: Instant) -> Spread {
        let is_awaited = |node| self.nodes.standing(node, now) == Standing::Awaited;
        Spread::of(devices, pool, is_awaited, self.nodes.never_heard(now).len())
    }

    /// Devices of a pool that are to be emptied.
    #[must_use]
    pub fn evacuating(&self) -> BTreeSet<DeviceId> {
        let devices = self.devices().into_iter();
        devices.filter(|device| device.state == DeviceState::Evacuating).map(|device| device.id).collect()
    }

    /// Whether a device has left the node for good: what it held counts as gone.
    #[must_use]
    pub fn is_removed(&self, device: DeviceId) -> bool {
        self.records.borrow().get(&device).is_some_and(|record| record.state() == DeviceState::Removed)
    }

    /// Devices of a pool that fragments are placed on only where a stripe would not get its full width otherwise:
    /// those that are being emptied, unless they are closed.
    #[must_use]
    pub fn last_resort(&self, pool: PoolId) -> BTreeSet<DeviceId> {
        let closed = self.closed.borrow();
        let devices = self.devices().into_iter();
        let of_pool = devices.filter(|device| device.pool == pool && device.state == DeviceState::Evacuating);
        of_pool.map(|device| device.id).filter(|id| !closed.contains(id)).collect()
    }

    /// Announces that fragments are placed as the devices are now.
    #[must_use]
    pub fn place(self: &Rc<Self>) -> Placement {
        let turn = self.turn.get();
        *self.placements.borrow_mut().entry(turn).or_default() += 1;
        Placement { board: self.clone(), turn }
    }

    /// Closes a device for placement, or opens it again.
    pub fn set_closed(&self, device: DeviceId, is_closed: bool) {
        let mut closed = self.closed.borrow_mut();
        let changed = if is_closed { closed.insert(device) } else { closed.remove(&device) };
        if changed {
            self.turn.set(self.turn.get() + 1);
        }
    }

    /// Placements that chose their devices before the last change: they may still put fragments where none are placed
    /// any more.
    #[must_use]
    pub fn older_placements(&self) -> usize {
        self.placements.borrow().range(..self.turn.get()).map(|(_, count)| count).sum()
    }
}
