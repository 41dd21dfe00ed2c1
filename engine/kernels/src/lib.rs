//! The byte kernels: what touches every byte of data, as fast as this processor can, each beside a plain twin that
//! gives the same bytes.
//!
//! This room knows nothing of chunks, keys or devices: it rolls fingerprints, hashes, and multiplies in GF(2^8). The
//! processor is asked at start which kernels it can run; a new kernel is one more arm of a `Kernel` enum here.
//!
//! Reading order: [`rabin`] (where a chunk ends), [`sha256`] (what it is called), [`erasure`] (how it survives), [`md5`]
//! (what S3 calls it).

pub mod erasure;
pub mod md5;
pub mod rabin;
pub mod sha256;
