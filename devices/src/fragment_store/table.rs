//! The devices of a core while it runs: which there are, how one is added, how one is taken out.
//!
//! - An operation holds its device for as long as it lasts; the table is never borrowed across an await.
//! - A device is *added* first (its journals replayed and published, everything on it readable) and *admitted* when all
//!   cores of the node have added it: only then [`FragmentStore::devices`] names it, so that nobody places a fragment
//!   where another core could not read it.
//! - A device is *removed* at once for all that comes later. What is in flight ends first: writes with an error, reads
//!   with their bytes. Then its queue goes, and with it the file. Rows that name it stay.
//! - While anything of an earlier opening is in flight, of one that was removed or of one that could not be added, the
//!   device is not opened again.

use super::{Core, CoreFragmentStore, DeviceOnCore, DeviceReport, StoreDevice};
use crate::recovery;
use kiseki_types::DeviceId;
use kiseki_types::device::Device;
use kiseki_types::fragment::FragmentError;
#[cfg(doc)]
use kiseki_types::fragment::FragmentStore;
use kiseki_types::runtime::RuntimeExt;
use kiseki_types::table::TableError;
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::{Rc, Weak};
use std::time::Duration;
use thiserror::Error;

/// How long a removal waits for what is in flight: longer than a drive takes to give up on an operation.
const LEAVE_PATIENCE: Duration = Duration::from_secs(60);

/// Between two looks at what still uses a device that leaves.
const LEAVE_LOOK: Duration = Duration::from_millis(1);

/// Why a device was not added.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum AddDeviceError {
    /// A device of that id is there, or something of an earlier opening is still in flight.
    #[error("device {device} is in use on this core already; remove it first")]
    Present {
        /// Which.
        device: DeviceId,
    },
    /// It was formatted for another number of lanes.
    #[error("{name} was formatted with {found} lanes, the node has {wanted}; format it again with kiseki-devctl")]
    Lanes {
        /// Its path.
        name: String,
        /// How many it has.
        found: u16,
        /// How many the node has.
        wanted: u16,
    },
    /// Its journals can't be opened.
    #[error("{name}: {problem}")]
    Unusable {
        /// Its path.
        name: String,
        /// Why, with the remedy.
        problem: String,
    },
    /// An index lane did not answer, or the device failed while it was opened.
    #[error(transparent)]
    Fragments(#[from] FragmentError),
    /// The table file of one of the core's lanes can't be read.
    #[error(transparent)]
    Table(#[from] TableError),
}

/// A device was taken out, but operations on it do not end.
#[derive(Debug, Error, Clone, PartialEq, Eq)]
#[error(
    "operations on {name} did not end in {} s; it is out of use, and its file is closed when they do; if the drive is \
     dead, pull it",
    LEAVE_PATIENCE.as_secs()
)]
pub struct StillInFlight {
    /// Its path.
    pub name: String,
}

/// The queue of a device that was taken out, for as long as somebody holds it.
#[derive(Clone)]
struct Leaving {
    queue: Weak<dyn Device>,
    name: String,
}

/// See the module.
#[derive(Default)]
pub(crate) struct DeviceTable {
    devices: RefCell<BTreeMap<DeviceId, Rc<DeviceOnCore>>>,
    /// Devices being added: the journals of one are never opened twice.
    coming: RefCell<Vec<DeviceId>>,
    /// Openings that were taken out, or did not come in, and may still have something in flight.
    leaving: RefCell<BTreeMap<DeviceId, Leaving>>,
    /// Flushes, and their waiters, of devices that have gone: the sums never fall.
    gone_flushes: Cell<(u64, u64)>,
}

impl DeviceTable {
    pub fn get(&self, id: DeviceId) -> Option<Rc<DeviceOnCore>> {
        self.devices.borrow().get(&id).cloned()
    }

    /// All of them, by id, as they are now.
    pub fn all(&self) -> Vec<Rc<DeviceOnCore>> {
        self.devices.borrow().values().cloned().collect()
    }

    pub fn insert(&self, device: Rc<DeviceOnCore>) {
        let id = device.id;
        let before = self.devices.borrow_mut().insert(id, device);
        assert!(before.is_none(), "device {id} is opened once");
    }

    fn take(&self, id: DeviceId) -> Option<Rc<DeviceOnCore>> {
        self.devices.borrow_mut().remove(&id)
    }

    /// (flushes, waiters that shared them) since the start.
    pub fn flushes(&self) -> (u64, u64) {
        let devices = self.devices.borrow();
        let counts = devices.values().map(|device| (device.gate.flush_count(), device.gate.waiter_count()));
        counts.fold(self.gone_flushes.get(), |sum, more| (sum.0 + more.0, sum.1 + more.1))
    }
}

impl CoreFragmentStore {
    /// Adds a device while the core runs: opens the core's lanes on it as a start does, tells the index lanes what the
    /// journals say, and gives the journals' space back. From then on what lies on it can be read and released here;
    /// it is named as a device only after [`CoreFragmentStore::admit_device`].
    ///
    /// Errors: what keeps a device from being used at a start; nothing of it is kept then.
    pub async fn add_device(&self, given: StoreDevice) -> Result<DeviceReport, AddDeviceError> {
        let id = given.id;
        let core = &self.core;
        core.check_published()?;
        // I-D6: what is in flight of an earlier opening would land in what a new one gives out.
        core.devices.leaving.borrow_mut().retain(|_, left| left.queue.strong_count() > 0);
        let is_leaving = core.devices.leaving.borrow().contains_key(&id);
        if is_leaving || core.devices.get(id).is_some() || core.devices.coming.borrow().contains(&id) {
            return Err(AddDeviceError::Present { device: id });
        }
        if given.layout.lanes() != core.lane_count {
            let (found, wanted) = (given.layout.lanes(), core.lane_count);
            return Err(AddDeviceError::Lanes { name: given.name, found, wanted });
        }
        core.devices.coming.borrow_mut().push(id);
        let added = core.clone().open_added(given).await;
        core.devices.coming.borrow_mut().retain(|coming| *coming != id);
        let (device, report) = added?;
        core.devices.insert(device);
        Ok(report)
    }

    /// Names an added device to those who place fragments. Errors: it is not there, or it failed since it was added.
    pub fn admit_device(&self, id: DeviceId) -> Result<(), FragmentError> {
        self.core.device(id)?.is_admitted.set(true);
        Ok(())
    }

    /// Takes a device out: nothing new reaches it, what is in flight ends, its queue and its file are closed on return.
    /// One that is not there is no error. What the index says of it stays, so that it may come back.
    pub async fn remove_device(&self, id: DeviceId) -> Result<(), StillInFlight> {
        if let Some(device) = self.core.devices.take(id) {
            self.core.send_away(device);
        }
        let Some(Leaving { queue, name }) = self.core.devices.leaving.borrow().get(&id).cloned() else { return Ok(()) };
        self.core.queue_gone(queue, &name).await?;
        self.core.devices.leaving.borrow_mut().remove(&id);
        Ok(())
    }
}

impl Core {
    /// Lets nothing new reach a device that was taken out, and notes it for as long as something of it is in flight.
    fn send_away(&self, device: Rc<DeviceOnCore>) {
        device.is_leaving.set(true);
        device.gate.fence("it was taken out of use");
        let (flushes, waiters) = self.devices.gone_flushes.get();
        let gone = (flushes + device.gate.flush_count(), waiters + device.gate.waiter_count());
        self.devices.gone_flushes.set(gone);
        let left = Leaving { queue: Rc::downgrade(&device.device), name: device.name.clone() };
        self.devices.leaving.borrow_mut().insert(device.id, left);
    }

    /// Waits until nobody holds the queue of a device any more.
    async fn queue_gone(&self, queue: Weak<dyn Device>, name: &str) -> Result<(), StillInFlight> {
        let deadline = self.ports.now() + LEAVE_PATIENCE;
        while queue.strong_count() > 0 {
            if self.ports.now() > deadline {
                return Err(StillInFlight { name: name.to_owned() });
            }
            self.ports.sleep(LEAVE_LOOK).await;
        }
        Ok(())
    }

    async fn open_added(
        self: Rc<Core>,
        given: StoreDevice,
    ) -> Result<(Rc<DeviceOnCore>, DeviceReport), AddDeviceError> {
        let (id, queue, name) = (given.id, Rc::downgrade(&given.device), given.name.clone());
        let opened = self.open_and_publish(given).await;
        if opened.is_err() {
            // I-D6: the next attempt must not meet a task of this one, however long that takes.
            let left = Leaving { queue: queue.clone(), name: name.clone() };
            self.devices.leaving.borrow_mut().insert(id, left);
            if self.queue_gone(queue, &name).await.is_ok() {
                self.devices.leaving.borrow_mut().remove(&id);
            }
        }
        opened
    }

    async fn open_and_publish(
        self: &Rc<Core>,
        given: StoreDevice,
    ) -> Result<(Rc<DeviceOnCore>, DeviceReport), AddDeviceError> {
        let mut device = DeviceOnCore::new(&self.ports, &self.device_times, given, false);
        let tables = self.indexes.iter().map(|(lane, index)| (*lane, index.table()));
        let report = recovery::open_device(&self.ports, &self.buffers, tables, &mut device).await?;
        if let Some(problem) = report.problem {
            return Err(AddDeviceError::Unusable { name: report.name, problem });
        }
        let device = Rc::new(device);
        self.watch_fence(&device);
        // I-C8: before anything is appended, or later records would make the journal call the replayed ones flushed.
        let published = self.publish_devices(std::slice::from_ref(&device)).await.and_then(|()| device.check());
        if let Err(error) = published {
            device.is_leaving.set(true);
            device.gate.fence("it could not be added");
            return Err(error.into());
        }
        Ok((device, report))
    }
}
