//! What goes wrong with devices and metadata directories, and what to do next.

use kiseki_types::codec::CodecError;
use kiseki_types::{ClusterId, DeviceId};
use std::io;
use thiserror::Error;

/// Errors of the devices room.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum DeviceError {
    /// An operation failed; the cause is in the source chain.
    #[error("{operation} on {device} failed")]
    Io {
        /// Path or name of the device.
        device: String,
        /// What was tried.
        operation: &'static str,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// A lane's journal can't be written.
    #[error(transparent)]
    Journal(#[from] Box<crate::journal::JournalOpenError>),
    /// The file system below an image file does not do direct I/O.
    #[error(
        "{device}: its file system refuses O_DIRECT; put the image on ext4 or XFS (not tmpfs or overlay), or name a block device"
    )]
    DirectRefused {
        /// Path of the image.
        device: String,
    },
    /// Another process has the device open.
    #[error("{device} is in use by another process or mounted; stop that first")]
    Busy {
        /// Path of the device.
        device: String,
    },
    /// Somebody uses the device; nothing overrides that.
    #[error("{device} is in use: {by}; stop that first, nothing was changed")]
    InUse {
        /// Path of the device.
        device: String,
        /// Who, and how.
        by: String,
    },
    /// Neither a file nor a block device.
    #[error("{device} is neither a regular file nor a block device")]
    NotADevice {
        /// The path.
        device: String,
    },
    /// Commands were asked for and can't be used.
    #[error("{device} can't be driven by NVMe commands: {reason}; set device_path = \"auto\", or mend that")]
    PassthroughRefused {
        /// Path of the device.
        device: String,
        /// Why not.
        reason: String,
    },
    /// A block length that we do not work with.
    #[error("{device} has blocks of {block_len_bytes} bytes; only 512 and 4096 are supported")]
    BlockLen {
        /// Path or name of the device.
        device: String,
        /// What it says.
        block_len_bytes: u32,
    },
    /// The number of lanes is out of range.
    #[error("{lanes} lanes: must be between 1 and {limit}")]
    Lanes {
        /// Lanes asked for.
        lanes: u16,
        /// The limit.
        limit: u16,
    },
    /// The device is too small for its lanes.
    #[error("a device of {len_bytes} bytes is too small for {lanes} lanes: {needed_bytes} bytes are needed")]
    TooSmall {
        /// Bytes of the device.
        len_bytes: u64,
        /// Lanes asked for.
        lanes: u16,
        /// Bytes that would do.
        needed_bytes: u64,
    },
    /// A layout whose areas overlap or leave the device.
    #[error("the layout is not sound: {reason}")]
    Layout {
        /// What is wrong.
        reason: &'static str,
    },
    /// Bytes on the device do not decode.
    #[error("{what} on {device} can't be read")]
    Format {
        /// Path or name of the device.
        device: String,
        /// Which structure.
        what: &'static str,
        /// The cause.
        #[source]
        source: CodecError,
    },
    /// No copy of the superblock is there: the device was never formatted, or all of it was overwritten.
    #[error("{device} carries no Kiseki superblock; format it with kiseki-devctl, or restore it if it had one")]
    NeverFormatted {
        /// Path or name of the device.
        device: String,
    },
    /// A format was begun and not finished.
    #[error(
        "formatting {device} for cluster {cluster} was interrupted; run the same `kiseki-devctl format` again, it starts over"
    )]
    FormatInterrupted {
        /// Path or name of the device.
        device: String,
        /// The cluster that it was for.
        cluster: ClusterId,
    },
    /// Superblock copies are there, and none of them can be believed.
    #[error(
        "{device}: no copy of its superblock can be read ({reason}); its fragments will be rebuilt on other devices"
    )]
    SuperblockUnreadable {
        /// Path or name of the device.
        device: String,
        /// What is wrong with the copies.
        reason: String,
    },
    /// The device was written by a later release.
    #[error("{device} has superblock format {found}; this release reads up to {known}: upgrade it")]
    FormatTooNew {
        /// Path or name of the device.
        device: String,
        /// The version found.
        found: u32,
        /// The highest version known.
        known: u32,
    },
    /// The device has become smaller since it was formatted.
    #[error("{device} has {found_bytes} bytes; it was formatted with {formatted_bytes}: part of it is cut off")]
    Shrunk {
        /// Path or name of the device.
        device: String,
        /// Bytes now.
        found_bytes: u64,
        /// Bytes when it was formatted.
        formatted_bytes: u64,
    },
    /// The device reports another block length than when it was formatted.
    #[error("{device} has blocks of {found} bytes; it was formatted with {formatted}")]
    BlockLenChanged {
        /// Path or name of the device.
        device: String,
        /// Now.
        found: u32,
        /// When it was formatted.
        formatted: u32,
    },
    /// The device belongs to another cluster (I-O4, I-D7).
    #[error("{device} belongs to cluster {found}, not to {expected}; it is left alone")]
    OtherCluster {
        /// Path or name of the device.
        device: String,
        /// Whose it is.
        found: ClusterId,
        /// Who asked.
        expected: ClusterId,
    },
    /// The device carries somebody's data (I-D7).
    #[error("{device} carries {found}; to overwrite it, confirm each by name: {confirm}")]
    Signed {
        /// Path or name of the device.
        device: String,
        /// What was found, for people.
        found: String,
        /// The names to confirm, comma separated.
        confirm: String,
    },
    /// An earlier write or flush failed; nothing is written until the device is reopened and checked (I-D6).
    #[error("device {device} is fenced: {reason}")]
    Fenced {
        /// The device.
        device: DeviceId,
        /// What failed.
        reason: String,
    },
}

impl DeviceError {
    /// Names the device and the operation of an I/O error.
    pub fn io(device: &str, operation: &'static str, source: io::Error) -> DeviceError {
        DeviceError::Io { device: device.to_owned(), operation, source }
    }
}
