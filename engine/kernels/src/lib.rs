//! kiseki-kernels
