//! kiseki-net
