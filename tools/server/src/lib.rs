//! kiseki-server
