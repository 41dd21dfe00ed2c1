//! How the operations of a queue become submissions: reads and writes of a file or a block device, or commands to a drive.

use super::cache_watch::CacheWatch;
use crate::nvme::command::{CommandAnswer, CommandBackend};
use io_uring::{opcode, squeue, types};
use kiseki_executor::{Submission, Way};
use std::ops::Range;

/// What the kernel is asked for next, with where its memory lies.
pub(crate) enum Step<'a> {
    /// Read into memory; `slot` where that is registered.
    Read { offset: u64, address: *mut u8, len_bytes: u32, slot: Option<u16> },
    /// Write one run of memory; `slot` where that is registered.
    Write { offset: u64, address: *const u8, len_bytes: u32, slot: Option<u16> },
    /// Write several runs of memory.
    WriteParts { offset: u64, parts: &'a [libc::iovec] },
    /// Make completed writes durable.
    Flush,
    /// Give a range back. `ranges` lives as long as the operation.
    Discard { offset: u64, len_bytes: u64, ranges: &'a mut Vec<[u8; 16]> },
}

/// What a queue sends its operations to.
pub(crate) enum Backend {
    /// A file or a block device.
    File,
    /// A namespace, by commands.
    Commands(CommandBackend),
}

impl Backend {
    /// The submission of a step. It points to the memory that the step names: see the caller for why that is sound.
    /// `crowded`: the polled queue had no room for it.
    pub fn submission(&self, step: Step<'_>, file: types::Fixed, crowded: bool) -> (Submission, Way) {
        match self {
            Backend::File => (file_entry(step, file).into(), Way::Interrupt),
            Backend::Commands(commands) => commands.submission(step, file, crowded),
        }
    }

    /// Whether a transfer goes as a whole.
    pub fn is_whole(&self, offset: u64, len_bytes: usize) -> bool {
        match self {
            Backend::File => true,
            Backend::Commands(commands) => commands.limits.holds(offset, len_bytes),
        }
    }

    /// The pieces that a transfer is cut into; they go at once.
    pub fn cut(&self, offset: u64, len_bytes: usize) -> Vec<Range<usize>> {
        match self {
            Backend::File => std::iter::once(0..len_bytes).collect(),
            Backend::Commands(commands) => commands.limits.cut(offset, len_bytes),
        }
    }

    /// Whether a completed write may be lost until a flush.
    pub fn needs_flush(&self) -> bool {
        match self {
            Backend::File => true,
            Backend::Commands(commands) => commands.has_volatile_cache,
        }
    }

    /// Watches over a volatile cache that only a flush empties. Files and block devices have the kernel between.
    pub fn cache_watch(&self) -> Option<CacheWatch> {
        match self {
            Backend::Commands(commands) if commands.has_volatile_cache => {
                Some(CacheWatch::new(commands.resets.clone()))
            }
            Backend::File | Backend::Commands(_) => None,
        }
    }

    /// Whether an answer of the kernel tells of a reset of the drive.
    pub fn tells_of_reset(&self, result: i32) -> bool {
        match self {
            Backend::File => false,
            Backend::Commands(commands) => CommandAnswer::of(result, commands).tells_of_reset(),
        }
    }

    /// Whether ranges can be given back.
    pub fn can_discard(&self) -> bool {
        match self {
            Backend::File => true,
            Backend::Commands(commands) => commands.can_deallocate,
        }
    }
}

fn file_entry(step: Step<'_>, file: types::Fixed) -> squeue::Entry {
    match step {
        Step::Read { offset, address, len_bytes, slot: Some(slot) } => {
            opcode::ReadFixed::new(file, address, len_bytes, slot).offset(offset).build()
        }
        Step::Read { offset, address, len_bytes, slot: None } => {
            opcode::Read::new(file, address, len_bytes).offset(offset).build()
        }
        Step::Write { offset, address, len_bytes, slot: Some(slot) } => {
            opcode::WriteFixed::new(file, address, len_bytes, slot).offset(offset).build()
        }
        Step::Write { offset, address, len_bytes, slot: None } => {
            opcode::Write::new(file, address, len_bytes).offset(offset).build()
        }
        Step::WriteParts { offset, parts } => {
            opcode::Writev::new(file, parts.as_ptr(), parts.len() as u32).offset(offset).build()
        }
        Step::Flush => opcode::Fsync::new(file).flags(types::FsyncFlags::DATASYNC).build(),
        // Works on files and, as a write of zeros that may unmap, on block devices.
        Step::Discard { offset, len_bytes, .. } => opcode::Fallocate::new(file, len_bytes)
            .offset(offset)
            .mode(libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE)
            .build(),
    }
}
