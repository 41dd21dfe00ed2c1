//! kiseki-devices
