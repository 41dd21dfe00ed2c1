//! kiseki-gateway
