//! How long devices take for what the data path asks of it: always on, exported beside the stages of the data path, so that
//! a slow drive and a slow node are told apart. What was refused is not counted.

use kiseki_types::step_times::StepTimes;

kiseki_types::steps! {
    /// What is asked of a device. Several go on at once.
    pub enum DeviceStep {
        /// Parts of a fragment, until they are in memory; nothing is checked yet.
        Read = "device_read",
        /// A fragment and, side by side, the journal record that names it, until both are written; not flushed.
        Write = "device_write",
        /// A flush for all who wait for one.
        Flush = "device_flush",
    }
}

/// The times of a core's devices.
pub type DeviceTimes = StepTimes<DeviceStep>;
