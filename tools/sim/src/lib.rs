//! kiseki-sim
