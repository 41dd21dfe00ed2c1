//! Disks that are emptied and retired while clients work and the power fails.
//!
//! What was acknowledged of a state has to be recorded at the next start (I-D2), and a disk that was retired is never
//! opened again: what clients stored has to be on the others (I-D5).

use kiseki_engine::device_record::{DeviceActor, DevicePlace, DeviceRecord, DeviceUpdate};
use kiseki_engine::engine::Engine;
use kiseki_engine::retirement::{GiveUp, retire};
use kiseki_simulator::{CutSwitch, SeededRng};
use kiseki_types::fragment::DeviceState;
use kiseki_types::ids::{DeviceId, PoolId};
use kiseki_types::runtime::{Ports, RuntimeExt};
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

/// Longest pause before the next change.
const PAUSE_MS_MAX: u64 = 400;

/// Between two attempts to retire a disk that is being emptied.
const RETIRE_PAUSE: Duration = Duration::from_millis(300);

/// What is known of the disks' states across power cuts.
#[derive(Default)]
pub(super) struct Drains {
    /// States that may be recorded, by disk: one when it was acknowledged, several when that is open.
    possible: RefCell<BTreeMap<DeviceId, BTreeSet<DeviceState>>>,
    /// Disks that were retired.
    retired: RefCell<BTreeSet<DeviceId>>,
    /// Evacuations begun, and disks retired: so that a run which did nothing is noticed.
    pub begun: Cell<u64>,
}

impl Drains {
    /// Whether the node may not open the disk any more.
    pub fn is_retired(&self, device: DeviceId) -> bool {
        self.retired.borrow().contains(&device)
    }

    /// How many disks were retired.
    pub fn retired_count(&self) -> usize {
        self.retired.borrow().len()
    }

    /// What a start finds recorded, against what was acknowledged before it.
    pub fn check(&self, records: &[DeviceRecord]) {
        for record in records {
            let mut possible = self.possible.borrow_mut();
            let Some(states) = possible.get_mut(&record.device) else { continue };
            let found = record.state();
            assert!(states.contains(&found), "I-D2: device {} is {found:?}, of {states:?}", record.device);
            *states = BTreeSet::from([found]);
            if found == DeviceState::Removed {
                self.retired.borrow_mut().insert(record.device);
            }
        }
    }

    fn begin(&self, device: DeviceId, state: DeviceState) {
        self.possible
            .borrow_mut()
            .entry(device)
            .or_insert_with(|| BTreeSet::from([DeviceState::Healthy]))
            .insert(state);
    }

    fn acknowledge(&self, device: DeviceId, state: DeviceState) {
        self.possible.borrow_mut().insert(device, BTreeSet::from([state]));
    }
}

/// A task of the node, which dies with it.
pub(super) struct Draining {
    pub engine: Rc<Engine>,
    pub ports: Ports,
    pub switch: Arc<CutSwitch>,
    pub devices: Vec<DeviceId>,
    /// Disks that may be retired in all.
    pub retire_max: usize,
    pub drains: Rc<Drains>,
    pub rng: SeededRng,
}

impl Draining {
    /// Empties one disk after the other; some of them stay after all, some are retired.
    pub async fn forever(self) {
        for device in self.devices.clone() {
            let place = DevicePlace { path: device.to_string(), pool: PoolId(0), class: "file".to_owned() };
            let update =
                DeviceUpdate::Opened { place, actor: DeviceActor::Node, reason: "opened by a start".to_owned() };
            if self.engine.record_device(device, update).await.is_err() {
                return self.only_without_power();
            }
        }
        let Ok(records) = self.engine.device_records().await else { return self.only_without_power() };
        for record in records.iter().filter(|record| record.state() == DeviceState::Evacuating) {
            if self.may_retire() && self.rng.chance(2, 3) {
                return self.retire(record.device).await;
            }
            let cancel = DeviceUpdate::CancelEvacuation { reason: "a run".to_owned() };
            if !self.change(record.device, DeviceState::Healthy, cancel).await {
                return self.only_without_power();
            }
        }
        loop {
            let device = self.devices[self.rng.index(self.devices.len())];
            let (actor, reason) = (DeviceActor::Operator, "a run".to_owned());
            let evacuate = DeviceUpdate::Evacuate { actor, reason, cause: None };
            if !self.change(device, DeviceState::Evacuating, evacuate).await {
                return self.only_without_power();
            }
            self.drains.begun.set(self.drains.begun.get() + 1);
            self.pause().await;
            if self.may_retire() && self.rng.chance(1, 2) {
                return self.retire(device).await;
            }
            let cancel = DeviceUpdate::CancelEvacuation { reason: "a run".to_owned() };
            if !self.change(device, DeviceState::Healthy, cancel).await {
                return self.only_without_power();
            }
            self.pause().await;
        }
    }

    fn may_retire(&self) -> bool {
        self.drains.retired_count() < self.retire_max
    }

    async fn pause(&self) {
        self.ports.sleep(Duration::from_millis(self.rng.below(PAUSE_MS_MAX))).await;
    }

    async fn change(&self, device: DeviceId, state: DeviceState, update: DeviceUpdate) -> bool {
        self.drains.begin(device, state);
        let is_done = self.engine.record_device(device, update).await.is_ok();
        if is_done {
            self.drains.acknowledge(device, state);
        }
        is_done
    }

    /// Tries until the disk is empty, or the power goes: then the next start goes on emptying it.
    async fn retire(&self, device: DeviceId) {
        let calls = self.engine.calls().clone();
        self.drains.begin(device, DeviceState::Removed);
        while !self.switch.is_cut() {
            if retire(&calls, &self.ports, device, "a run", GiveUp::Nothing).await.is_ok() {
                self.drains.acknowledge(device, DeviceState::Removed);
                self.drains.retired.borrow_mut().insert(device);
                return;
            }
            self.ports.sleep(RETIRE_PAUSE).await;
        }
    }

    fn only_without_power(&self) {
        assert!(self.switch.is_cut(), "I-D2: a device's state could not be recorded while there was power");
    }
}
