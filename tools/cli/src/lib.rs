//! kiseki-cli
