//! One operation on its way through the ring: what it needs, how it goes on after a short transfer, when it gives up.

use crate::pool::BufferPool;
use futures::channel::oneshot;
use io_uring::{opcode, squeue, types};
use kiseki_types::limits::DEVICE_BLOCK_BYTES_MIN;
use kiseki_types::{IoBuf, IoBytes};
use std::io;

/// Times that an operation is submitted again without progress (interrupted, or the kernel was out of memory).
const RETRIES_MAX: u32 = 16;

/// Parts of one vectored write; the kernel takes no more. A longer list goes on where the first submission ended.
const PARTS_PER_WRITE_MAX: usize = 1024;

/// Most bytes of one operation: far above any fragment, far below the kernel's limit.
const TRANSFER_LEN_BYTES_MAX: usize = 1 << 30;

/// What a caller asked for, with the memory that it takes.
pub(super) enum Operation {
    /// Read into `buf`.
    Read { offset: u64, buf: IoBuf, reply: oneshot::Sender<io::Result<IoBuf>> },
    /// Write the parts, `len` bytes in all. `iovecs` is what the kernel reads the list of parts from.
    Write {
        offset: u64,
        parts: Vec<IoBytes>,
        len: usize,
        iovecs: Vec<libc::iovec>,
        reply: oneshot::Sender<io::Result<()>>,
    },
    /// Make completed writes durable; the waiters are in the gate.
    Flush,
    /// Give a range back.
    Discard { offset: u64, len_bytes: u64, reply: oneshot::Sender<io::Result<()>> },
}

impl Operation {
    pub fn write(offset: u64, parts: Vec<IoBytes>, reply: oneshot::Sender<io::Result<()>>) -> Operation {
        let len = parts.iter().map(|part| part.len()).sum();
        assert!(len <= TRANSFER_LEN_BYTES_MAX, "I-O5: write of {len} bytes");
        Operation::Write { offset, parts, len, iovecs: Vec::new(), reply }
    }

    /// Whether its failure means that the device is not to be trusted, and whether it is refused afterwards (I-D6).
    pub fn needs_trust(&self) -> bool {
        matches!(self, Operation::Write { .. } | Operation::Flush)
    }
}

/// What a completion means for its operation.
pub(super) enum Progress {
    /// Submit it again, for what is left.
    Continue,
    /// All of it is done.
    Done,
    /// It failed for good.
    Failed(io::Error),
}

/// An operation and how far it is.
pub(super) struct InFlight {
    operation: Operation,
    done: usize,
    retries: u32,
}

impl InFlight {
    pub fn new(operation: Operation) -> InFlight {
        InFlight { operation, done: 0, retries: 0 }
    }

    pub fn into_operation(self) -> Operation {
        self.operation
    }

    /// The submission for what is left. It points into `self`'s heap memory: see the caller for why that is sound.
    pub fn entry(&mut self, file: types::Fixed, pool: Option<&BufferPool>) -> squeue::Entry {
        let done = self.done;
        match &mut self.operation {
            Operation::Read { offset, buf, .. } => {
                assert!(buf.len() <= TRANSFER_LEN_BYTES_MAX, "I-O5: read of {} bytes", buf.len());
                let slot = registered(pool, buf.slot(), buf);
                let left = &mut buf[done..];
                let (address, len, offset) = (left.as_mut_ptr(), left.len() as u32, *offset + done as u64);
                match slot {
                    Some(slot) => opcode::ReadFixed::new(file, address, len, slot).offset(offset).build(),
                    None => opcode::Read::new(file, address, len).offset(offset).build(),
                }
            }
            Operation::Write { offset, parts, iovecs, .. } => {
                let offset = *offset + done as u64;
                match &parts[..] {
                    [part] => {
                        let slot = registered(pool, part.slot(), part);
                        let left = &part[done..];
                        match slot {
                            Some(slot) => opcode::WriteFixed::new(file, left.as_ptr(), left.len() as u32, slot)
                                .offset(offset)
                                .build(),
                            None => opcode::Write::new(file, left.as_ptr(), left.len() as u32).offset(offset).build(),
                        }
                    }
                    _ => {
                        list_parts(parts, done, iovecs);
                        opcode::Writev::new(file, iovecs.as_ptr(), iovecs.len() as u32).offset(offset).build()
                    }
                }
            }
            Operation::Flush => opcode::Fsync::new(file).flags(types::FsyncFlags::DATASYNC).build(),
            // Works on files and, as a write of zeros that may unmap, on block devices.
            Operation::Discard { offset, len_bytes, .. } => opcode::Fallocate::new(file, *len_bytes)
                .offset(*offset)
                .mode(libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE)
                .build(),
        }
    }

    /// Takes the kernel's answer: bytes transferred, or an error number below zero.
    pub fn progress(&mut self, result: i32) -> Progress {
        if result < 0 {
            return self.failed(-result);
        }
        let moved = result as usize;
        let (len, end) = match &self.operation {
            Operation::Read { buf, .. } => (buf.len(), io::ErrorKind::UnexpectedEof),
            Operation::Write { len, .. } => (*len, io::ErrorKind::WriteZero),
            Operation::Flush | Operation::Discard { .. } => return Progress::Done,
        };
        self.done += moved;
        self.retries = 0;
        if self.done == len {
            return Progress::Done;
        }
        assert!(self.done < len, "the kernel moved {} of {len} bytes", self.done);
        // I-C7: what is left must still be aligned; a transfer that ends inside a block is a device that ended.
        if moved == 0 || !self.done.is_multiple_of(DEVICE_BLOCK_BYTES_MIN) {
            let text = format!("only {} of {len} bytes were transferred", self.done);
            return Progress::Failed(io::Error::new(end, text));
        }
        Progress::Continue
    }

    fn failed(&mut self, errno: i32) -> Progress {
        let passing = matches!(errno, libc::EINTR | libc::EAGAIN);
        if passing && self.retries < RETRIES_MAX {
            self.retries += 1;
            return Progress::Continue;
        }
        // A device or file system that can't give space back: discarding is best effort.
        if matches!(self.operation, Operation::Discard { .. }) && errno == libc::EOPNOTSUPP {
            return Progress::Done;
        }
        Progress::Failed(io::Error::from_raw_os_error(errno))
    }
}

/// The slot to name to the kernel, when the bytes lie in memory that this ring registered.
fn registered(pool: Option<&BufferPool>, slot: Option<u16>, bytes: &[u8]) -> Option<u16> {
    slot.filter(|slot| pool.is_some_and(|pool| pool.holds(*slot, bytes)))
}

/// Lists what is left of the parts after `done` bytes.
fn list_parts(parts: &[IoBytes], done: usize, iovecs: &mut Vec<libc::iovec>) {
    iovecs.clear();
    let mut skip = done;
    for part in parts {
        if skip >= part.len() {
            skip -= part.len();
            continue;
        }
        let left = &part[skip..];
        skip = 0;
        iovecs.push(libc::iovec { iov_base: left.as_ptr() as *mut libc::c_void, iov_len: left.len() });
        if iovecs.len() == PARTS_PER_WRITE_MAX {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(len: usize) -> InFlight {
        InFlight::new(Operation::Read { offset: 0, buf: IoBuf::zeroed(len), reply: oneshot::channel().0 })
    }

    #[test]
    fn short_transfers_go_on_and_an_end_inside_is_an_error() {
        let mut operation = read(8192);
        assert!(matches!(operation.progress(4096), Progress::Continue));
        assert!(matches!(operation.progress(4096), Progress::Done));
        assert!(
            matches!(read(8192).progress(0), Progress::Failed(error) if error.kind() == io::ErrorKind::UnexpectedEof)
        );
        assert!(matches!(read(8192).progress(100), Progress::Failed(_)), "I-C7");
        assert!(
            matches!(read(8192).progress(-libc::EIO), Progress::Failed(error) if error.raw_os_error() == Some(libc::EIO))
        );
    }

    #[test]
    fn i_o5_retries_end() {
        let mut operation = read(4096);
        let retries = (0..100).take_while(|_| matches!(operation.progress(-libc::EAGAIN), Progress::Continue)).count();
        assert_eq!(retries, RETRIES_MAX as usize);
    }

    #[test]
    fn a_short_vectored_write_goes_on_inside_a_part() {
        let parts: Vec<IoBytes> = (0..3).map(|_| IoBuf::zeroed(4096).freeze()).collect();
        let mut iovecs = Vec::new();
        for (done, lens) in [(0, vec![4096, 4096, 4096]), (512, vec![3584, 4096, 4096]), (8192, vec![4096])] {
            list_parts(&parts, done, &mut iovecs);
            assert_eq!(iovecs.iter().map(|iovec| iovec.iov_len).collect::<Vec<_>>(), lens, "after {done}");
        }
    }
}
