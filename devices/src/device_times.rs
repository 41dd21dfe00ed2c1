//! How long devices take for what the data path asks of it: always on, exported beside the stages of the data path, so that
//! a slow drive and a slow node are told apart.

use kiseki_types::histogram::Histogram;
use std::cell::RefCell;
use std::time::Duration;

/// What is asked of a device. Several go on at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceStep {
    /// Parts of a fragment, until they are in memory; nothing is checked yet.
    Read,
    /// A fragment and, side by side, the journal record that names it, until both are written; not flushed.
    Write,
    /// A flush for all who wait for one.
    Flush,
}

impl DeviceStep {
    /// All of them.
    pub const ALL: [DeviceStep; 3] = [DeviceStep::Read, DeviceStep::Write, DeviceStep::Flush];

    /// As it is exported.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            DeviceStep::Read => "device_read",
            DeviceStep::Write => "device_write",
            DeviceStep::Flush => "device_flush",
        }
    }
}

/// The times of a core's devices.
#[derive(Debug, Default)]
pub struct DeviceTimes {
    of: RefCell<[Histogram; DeviceStep::ALL.len()]>,
}

impl DeviceTimes {
    /// Counts one that was not refused.
    pub(crate) fn record(&self, step: DeviceStep, took: Duration) {
        self.of.borrow_mut()[step as usize].record(took);
    }

    /// All times, by name.
    #[must_use]
    pub fn by_name(&self) -> Vec<(&'static str, Histogram)> {
        DeviceStep::ALL.iter().map(|step| step.name()).zip(self.of.borrow().iter().cloned()).collect()
    }
}
