//! kiseki-bench
