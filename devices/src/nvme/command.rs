//! I/O commands to a namespace through its character device: `IORING_OP_URING_CMD` with a command of 72 bytes.

use crate::nvme::status::NvmeStatus;
use crate::ring::backend::Step;
use crate::ring::cache_watch::ResetCount;
use crate::ring::patience::RetryLimits;
use io_uring::{opcode, types};
use kiseki_executor::{Submission, Way};
use std::ops::Range;

/// `_IOWR('N', 0x80, struct nvme_uring_cmd)`: memory in one run.
const NVME_URING_CMD_IO: u32 = 0xc048_4e80;
/// `_IOWR('N', 0x81, struct nvme_uring_cmd)`: memory in a list of runs.
const NVME_URING_CMD_IO_VEC: u32 = 0xc048_4e81;

const FLUSH: u8 = 0x00;
const WRITE: u8 = 0x01;
const READ: u8 = 0x02;
const DATASET_MANAGEMENT: u8 = 0x09;

/// Attribute of Dataset Management: deallocate.
const DEALLOCATE: u32 = 1 << 2;

/// Ranges of one Dataset Management command.
const RANGES_MAX: usize = 256;

/// Blocks of one range; whole 4096 bytes of blocks of 512.
const RANGE_BLOCKS_MAX: u64 = u32::MAX as u64 & !7;

/// What a command may transfer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TransferLimits {
    /// Bytes of one command, a multiple of 4096.
    pub len_bytes_max: usize,
    /// Commands are kept from crossing multiples of so many bytes, a multiple of 4096.
    pub boundary_bytes: Option<u64>,
}

impl TransferLimits {
    /// Whether a transfer needs no cut.
    pub fn holds(&self, offset: u64, len_bytes: usize) -> bool {
        let ends_within = |boundary: u64| offset % boundary + len_bytes as u64 <= boundary;
        len_bytes <= self.len_bytes_max && self.boundary_bytes.is_none_or(ends_within)
    }

    /// The pieces of a transfer of `len_bytes` at `offset`: in order, without gaps, each within the limits.
    pub fn cut(&self, offset: u64, len_bytes: usize) -> Vec<Range<usize>> {
        let mut pieces = Vec::with_capacity(len_bytes / self.len_bytes_max + 1);
        let mut start = 0;
        while start < len_bytes {
            let to_boundary = self.boundary_bytes.map_or(u64::MAX, |boundary| {
                let within = (offset + start as u64) % boundary;
                boundary - within
            });
            let len = (len_bytes - start).min(self.len_bytes_max);
            let len = usize::try_from(to_boundary).map_or(len, |to_boundary| len.min(to_boundary));
            pieces.push(start..start + len);
            start += len;
        }
        pieces
    }
}

/// A namespace that takes commands.
#[derive(Clone, Debug)]
pub(crate) struct CommandBackend {
    /// Its id.
    pub namespace: u32,
    /// Bytes of its own block, 512 or 4096.
    pub block_len_bytes: u32,
    /// What a command may transfer.
    pub limits: TransferLimits,
    /// Whether reads and writes go to queues without interrupts.
    pub is_polled: bool,
    /// Whether it is on this machine's bus: a controller that was reset there does nothing that it was told before. Over
    /// a network a command may still be on its way.
    pub is_local: bool,
    /// Whether it has several controllers, of which none may work for a while.
    pub has_paths: bool,
    /// Whether completed writes may be lost until a flush.
    pub has_volatile_cache: bool,
    /// Resets that were seen on it.
    pub resets: ResetCount,
    /// Whether it takes Deallocate.
    pub can_deallocate: bool,
    /// How long it is waited for when it asks for that.
    pub retry: RetryLimits,
}

/// Command dwords that are not the same in all of our commands.
struct Command {
    opcode: u8,
    address: u64,
    data_len: u32,
    dwords_10_12: [u32; 3],
}

impl CommandBackend {
    /// The submission of a step. Commands without data and rare ones are never polled: some kernels can't, and what takes
    /// milliseconds need not keep a core awake. One that found the polled queue full waits in the other one, where the
    /// kernel lets it wait.
    pub fn submission(&self, step: Step<'_>, file: types::Fixed, crowded: bool) -> (Submission, Way) {
        let transfer = if self.is_polled && !crowded { Way::Polled } else { Way::Interrupt };
        match step {
            Step::Read { offset, address, len_bytes, slot } => {
                let command = self.transfer(READ, offset, u64::from(len_bytes), address as u64, len_bytes);
                (self.entry(command, file, NVME_URING_CMD_IO, slot), transfer)
            }
            Step::Write { offset, address, len_bytes, slot } => {
                let command = self.transfer(WRITE, offset, u64::from(len_bytes), address as u64, len_bytes);
                (self.entry(command, file, NVME_URING_CMD_IO, slot), transfer)
            }
            Step::WriteParts { offset, parts } => {
                let len_bytes = parts.iter().map(|part| part.iov_len as u64).sum();
                let command = self.transfer(WRITE, offset, len_bytes, parts.as_ptr() as u64, parts.len() as u32);
                (self.entry(command, file, NVME_URING_CMD_IO_VEC, None), transfer)
            }
            Step::Flush => {
                let command = Command { opcode: FLUSH, address: 0, data_len: 0, dwords_10_12: [0; 3] };
                (self.entry(command, file, NVME_URING_CMD_IO, None), Way::Interrupt)
            }
            Step::Discard { offset, len_bytes, ranges } => {
                *ranges = self.ranges(offset, len_bytes);
                let command = Command {
                    opcode: DATASET_MANAGEMENT,
                    address: ranges.as_ptr() as u64,
                    data_len: 16 * ranges.len() as u32,
                    dwords_10_12: [ranges.len() as u32 - 1, DEALLOCATE, 0],
                };
                (self.entry(command, file, NVME_URING_CMD_IO, None), Way::Interrupt)
            }
        }
    }

    /// A read or write of `len_bytes`. Its block count is kept from 0, in 16 bits.
    fn transfer(&self, opcode: u8, offset: u64, len_bytes: u64, address: u64, data_len: u32) -> Command {
        let block = u64::from(self.block_len_bytes);
        assert!(offset.is_multiple_of(block) && len_bytes.is_multiple_of(block), "I-C7: {len_bytes} at {offset}");
        let (first, count) = (offset / block, len_bytes / block);
        assert!((1..=0x1_0000).contains(&count), "I-O5: a command of {count} blocks");
        Command { opcode, address, data_len, dwords_10_12: [first as u32, (first >> 32) as u32, count as u32 - 1] }
    }

    /// The list of ranges that Deallocate reads.
    fn ranges(&self, offset: u64, len_bytes: u64) -> Vec<[u8; 16]> {
        let block = u64::from(self.block_len_bytes);
        let (mut first, mut left) = (offset / block, len_bytes / block);
        let mut ranges = Vec::new();
        // What does not fit is no smaller than half an exbibyte, and discarding is best effort.
        while left > 0 && ranges.len() < RANGES_MAX {
            let count = left.min(RANGE_BLOCKS_MAX);
            let mut range = [0; 16];
            range[4..8].copy_from_slice(&(count as u32).to_le_bytes());
            range[8..].copy_from_slice(&first.to_le_bytes());
            ranges.push(range);
            (first, left) = (first + count, left - count);
        }
        ranges
    }

    /// `struct nvme_uring_cmd` in a wide submission.
    fn entry(&self, command: Command, file: types::Fixed, operation: u32, slot: Option<u16>) -> Submission {
        let mut raw = [0; 80];
        raw[0] = command.opcode;
        raw[4..8].copy_from_slice(&self.namespace.to_ne_bytes());
        raw[24..32].copy_from_slice(&command.address.to_ne_bytes());
        raw[36..40].copy_from_slice(&command.data_len.to_ne_bytes());
        for (place, dword) in raw[40..52].chunks_exact_mut(4).zip(command.dwords_10_12) {
            place.copy_from_slice(&dword.to_ne_bytes());
        }
        opcode::UringCmd80::new(file, operation).cmd(raw).buf_index(slot).build().into()
    }
}

/// What the kernel's answer to a command means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CommandAnswer {
    /// All of it is done.
    Done,
    /// It never reached the drive, which had no room for it.
    Crowded,
    /// It never reached the drive, which has several paths, of which none works now. The kernel has no other error for that than
    /// for a command that makes no sense; such a one would have shown when the way was chosen.
    NoPath,
    /// The drive refused it.
    Refused(NvmeStatus),
    /// The drive had it, and its controller was reset before it answered.
    TakenBack,
    /// The kernel refused it, or lost it: whether the drive has done it is unknown.
    Failed(i32),
}

impl CommandAnswer {
    /// From the result of a completion: 0, a status of the drive, or an error number below 0.
    pub fn of(result: i32, backend: &CommandBackend) -> CommandAnswer {
        match u16::try_from(result) {
            Ok(status) => match NvmeStatus::new(status) {
                None => CommandAnswer::Done,
                Some(status) if status.is_broken_off() => CommandAnswer::TakenBack,
                Some(status) => CommandAnswer::Refused(status),
            },
            Err(_) => match -result {
                libc::EAGAIN => CommandAnswer::Crowded,
                libc::EINVAL if backend.has_paths => CommandAnswer::NoPath,
                libc::EINTR => CommandAnswer::TakenBack,
                errno => CommandAnswer::Failed(errno),
            },
        }
    }

    /// Whether the kernel gave it because a controller is reset, or all ways to it are broken: then the drive may have restarted.
    pub fn tells_of_reset(self) -> bool {
        match self {
            CommandAnswer::NoPath | CommandAnswer::TakenBack => true,
            CommandAnswer::Refused(status) => status.tells_of_reset(),
            CommandAnswer::Done | CommandAnswer::Crowded | CommandAnswer::Failed(_) => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn backend(block_len_bytes: u32) -> CommandBackend {
        CommandBackend {
            namespace: 3,
            block_len_bytes,
            limits: TransferLimits { len_bytes_max: 16384, boundary_bytes: None },
            is_polled: true,
            is_local: true,
            has_paths: false,
            has_volatile_cache: true,
            resets: ResetCount::default(),
            can_deallocate: true,
            retry: RetryLimits { span_max: Duration::from_secs(30), named: [Duration::ZERO; 3] },
        }
    }

    #[test]
    fn transfers_are_cut_at_the_limit_and_at_boundaries() {
        let limits = |len_bytes_max, boundary_bytes| TransferLimits { len_bytes_max, boundary_bytes };
        for (limits, offset, len, wanted) in [
            (limits(16384, None), 0, 4096, vec![4096]),
            (limits(16384, None), 4096, 40960, vec![16384, 16384, 8192]),
            (limits(16384, Some(32768)), 28672, 40960, vec![4096, 16384, 16384, 4096]),
            (limits(1 << 20, Some(8192)), 4096, 20480, vec![4096, 8192, 8192]),
            (limits(1 << 20, Some(8192)), 8192, 8192, vec![8192]),
        ] {
            let pieces = limits.cut(offset, len);
            assert_eq!(pieces.iter().map(|piece| piece.len()).collect::<Vec<_>>(), wanted, "{len} at {offset}");
            assert!(pieces.windows(2).all(|pair| pair[0].end == pair[1].start) && pieces[0].start == 0);
        }
    }

    #[test]
    fn i_c7_blocks_are_the_drives_own() {
        for (block, first, count) in [(512, 24, 16), (4096, 3, 2)] {
            let command = backend(block).transfer(WRITE, 12288, 8192, 0, 8192);
            assert_eq!(command.dwords_10_12, [first, 0, count - 1], "blocks of {block}");
        }
        let far = backend(512).transfer(READ, 1 << 45, 512, 0, 512);
        assert_eq!(far.dwords_10_12, [0, 16, 0]);
    }

    #[test]
    fn ranges_to_deallocate_cover_all_of_it() {
        let ranges = backend(512).ranges(4096, 8192);
        assert_eq!(ranges, [[0, 0, 0, 0, 16, 0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0]]);
        let huge = backend(512).ranges(0, RANGE_BLOCKS_MAX * 512 * 2 + 4096);
        let count = |range: &[u8; 16]| u64::from(u32::from_le_bytes(range[4..8].try_into().unwrap()));
        assert_eq!(huge.iter().map(count).collect::<Vec<_>>(), [RANGE_BLOCKS_MAX, RANGE_BLOCKS_MAX, 8]);
        assert_eq!(huge[2][8..], (2 * RANGE_BLOCKS_MAX).to_le_bytes());
    }

    #[test]
    fn reads_and_writes_are_polled_unless_the_queue_is_full_and_nothing_else_is() {
        let (backend, file) = (backend(4096), types::Fixed(0));
        let read = || Step::Read { offset: 0, address: std::ptr::null_mut(), len_bytes: 4096, slot: None };
        assert_eq!(backend.submission(read(), file, false).1, Way::Polled);
        assert_eq!(backend.submission(read(), file, true).1, Way::Interrupt);
        assert_eq!(backend.submission(Step::Flush, file, false).1, Way::Interrupt);
        let mut ranges = Vec::new();
        let discard = Step::Discard { offset: 0, len_bytes: 4096, ranges: &mut ranges };
        assert_eq!(backend.submission(discard, file, false).1, Way::Interrupt);
        assert_eq!(ranges.len(), 1);
    }

    #[test]
    fn answers() {
        let single = backend(4096);
        let answer = |result| CommandAnswer::of(result, &single);
        assert_eq!(answer(0), CommandAnswer::Done);
        assert_eq!(answer(-libc::EAGAIN), CommandAnswer::Crowded);
        assert_eq!(answer(-libc::EINTR), CommandAnswer::TakenBack);
        assert_eq!(answer(0x008), CommandAnswer::TakenBack);
        assert!(matches!(answer(0x4008), CommandAnswer::Refused(_)), "for good");
        assert_eq!(answer(-libc::ENODEV), CommandAnswer::Failed(libc::ENODEV));
        assert_eq!(answer(0x4281), CommandAnswer::Refused(NvmeStatus::new(0x4281).unwrap()));
        assert_eq!(
            answer(-libc::EINVAL),
            CommandAnswer::Failed(libc::EINVAL),
            "a single controller is no missing path"
        );
        let several = CommandBackend { has_paths: true, ..backend(4096) };
        assert_eq!(CommandAnswer::of(-libc::EINVAL, &several), CommandAnswer::NoPath);
        for result in [-libc::EINTR, 0x008, 0x4008, 0x370, 0x371, -libc::EINVAL] {
            assert!(CommandAnswer::of(result, &several).tells_of_reset(), "I-D6: {result}");
        }
        for result in [0, -libc::EAGAIN, -libc::EINVAL, -libc::EIO, 0x281, 0x021] {
            assert!(!answer(result).tells_of_reset(), "{result}");
        }
    }
}
