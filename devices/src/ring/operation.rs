//! One operation on its way through the ring: what it needs, how it goes on after a short transfer, when it gives up.

use super::backend::{Backend, Step};
use super::patience::Patience;
use super::reply::Reply;
use crate::nvme::command::{CommandAnswer, CommandBackend};
use crate::nvme::status::NvmeStatus;
use crate::pool::BufferPool;
use io_uring::types;
use kiseki_executor::{Submission, Way};
use kiseki_types::limits::DEVICE_BLOCK_BYTES_MIN;
use kiseki_types::{IoBuf, IoBytes};
use std::io;
use std::ops::Range;
use std::rc::Rc;
use std::time::Duration;

/// Times that an operation is submitted again without progress (interrupted, or the kernel was out of memory).
const RETRIES_MAX: u32 = 16;

/// Parts of one vectored write; the kernel takes no more. A longer list goes on where the first submission ended.
const PARTS_PER_WRITE_MAX: usize = 1024;

/// Most bytes of one operation: far above any fragment, far below the kernel's limit.
const TRANSFER_LEN_BYTES_MAX: usize = 1 << 30;

/// What a caller asked for, with the memory that it takes.
pub(super) enum Operation {
    /// Read into `buf`.
    Read { offset: u64, buf: IoBuf, reply: Reply<IoBuf> },
    /// Read into a part of a buffer; other pieces read into the rest.
    ReadPiece { offset: u64, target: Rc<ReadTarget>, piece: Range<usize>, reply: Reply<()> },
    /// Write the parts, `len` bytes in all. `iovecs` is what the kernel reads the list of parts from.
    Write { offset: u64, parts: Vec<IoBytes>, len: usize, iovecs: Vec<libc::iovec>, reply: Reply<()> },
    /// Make completed writes durable; the waiters are in the gate.
    Flush,
    /// Give a range back. `ranges` is what a drive reads the list of ranges from.
    Discard { offset: u64, len_bytes: u64, ranges: Vec<[u8; 16]>, reply: Reply<()> },
}

impl Operation {
    pub fn write(offset: u64, parts: Vec<IoBytes>, reply: Reply<()>) -> Operation {
        let len = parts.iter().map(|part| part.len()).sum();
        assert!(len <= TRANSFER_LEN_BYTES_MAX, "I-O5: write of {len} bytes");
        Operation::Write { offset, parts, len, iovecs: Vec::new(), reply }
    }

    /// Whether its failure means that the device is not to be trusted, and whether it is refused afterwards (I-D6).
    pub fn needs_trust(&self) -> bool {
        matches!(self, Operation::Write { .. } | Operation::Flush)
    }

    /// Bytes to transfer, if it transfers any.
    fn len(&self) -> Option<usize> {
        match self {
            Operation::Read { buf, .. } => Some(buf.len()),
            Operation::ReadPiece { piece, .. } => Some(piece.len()),
            Operation::Write { len, .. } => Some(*len),
            Operation::Flush | Operation::Discard { .. } => None,
        }
    }
}

/// A buffer that several pieces read into. Nobody looks at it before all of them have ended.
pub(super) struct ReadTarget {
    /// Where its bytes lie, taken before any piece started.
    address: *mut u8,
    buf: IoBuf,
}

impl ReadTarget {
    pub fn new(mut buf: IoBuf) -> Rc<ReadTarget> {
        assert!(buf.len() <= TRANSFER_LEN_BYTES_MAX, "I-O5: read of {} bytes", buf.len());
        Rc::new(ReadTarget { address: buf.as_mut_ptr(), buf })
    }

    /// The buffer, once every piece has ended.
    pub fn into_buf(self: Rc<Self>) -> IoBuf {
        Rc::into_inner(self).expect("a piece that has ended holds its target no more").buf
    }
}

/// What a completion means for its operation.
pub(super) enum Progress {
    /// Submit it again, for what is left.
    Continue,
    /// The same, after this time; with what it failed with this time.
    After(Duration, io::Error),
    /// All of it is done.
    Done,
    /// It failed for good.
    Failed(io::Error),
}

/// An operation and how far it is.
pub(super) struct InFlight {
    operation: Operation,
    done: usize,
    /// Bytes that the kernel was asked for last.
    asked: usize,
    retries: u32,
    /// How often a drive was waited for.
    patience: Patience,
    /// The polled queue had no room for it.
    crowded: bool,
    /// Resets that were seen on the drive when it was submitted last.
    pub stamp: u64,
}

impl InFlight {
    pub fn new(operation: Operation) -> InFlight {
        let patience = Patience::default();
        InFlight { operation, done: 0, asked: 0, retries: 0, patience, crowded: false, stamp: 0 }
    }

    pub fn into_operation(self) -> Operation {
        self.operation
    }

    /// What was asked for.
    pub fn operation(&self) -> &Operation {
        &self.operation
    }

    /// The submission for what is left. It points into `self`'s heap memory: see the caller for why that is sound.
    pub fn submission(
        &mut self,
        backend: &Backend,
        file: types::Fixed,
        pool: Option<&BufferPool>,
    ) -> (Submission, Way) {
        let crowded = self.crowded;
        backend.submission(self.step(pool), file, crowded)
    }

    fn step(&mut self, pool: Option<&BufferPool>) -> Step<'_> {
        let done = self.done;
        self.asked = self.operation.len().unwrap_or(0) - done;
        match &mut self.operation {
            Operation::Read { offset, buf, .. } => {
                assert!(buf.len() <= TRANSFER_LEN_BYTES_MAX, "I-O5: read of {} bytes", buf.len());
                let slot = registered(pool, buf.slot(), buf);
                let left = &mut buf[done..];
                let (address, len_bytes) = (left.as_mut_ptr(), left.len() as u32);
                Step::Read { offset: *offset + done as u64, address, len_bytes, slot }
            }
            Operation::ReadPiece { offset, target, piece, .. } => {
                let slot = registered(pool, target.buf.slot(), &target.buf);
                let address = target.address.wrapping_add(piece.start + done);
                Step::Read { offset: *offset + done as u64, address, len_bytes: (piece.len() - done) as u32, slot }
            }
            Operation::Write { offset, parts, iovecs, .. } => {
                let offset = *offset + done as u64;
                match &parts[..] {
                    [part] => {
                        let slot = registered(pool, part.slot(), part);
                        let left = &part[done..];
                        Step::Write { offset, address: left.as_ptr(), len_bytes: left.len() as u32, slot }
                    }
                    _ => {
                        list_parts(parts, done, iovecs);
                        self.asked = iovecs.iter().map(|iovec| iovec.iov_len).sum();
                        Step::WriteParts { offset, parts: iovecs }
                    }
                }
            }
            Operation::Flush => Step::Flush,
            Operation::Discard { offset, len_bytes, ranges, .. } => {
                Step::Discard { offset: *offset, len_bytes: *len_bytes, ranges }
            }
        }
    }

    /// Takes the kernel's answer.
    pub fn progress(&mut self, backend: &Backend, result: i32) -> Progress {
        match backend {
            Backend::File if result < 0 => self.failed(-result),
            Backend::File => self.moved(result as usize),
            Backend::Commands(commands) => self.command_answered(commands, CommandAnswer::of(result, commands)),
        }
    }

    /// A command is done or it is not; there is nothing between. One that has not happened is told again, after a while. A flush
    /// never: one that was broken off may have lost what it was to keep (I-D6).
    fn command_answered(&mut self, commands: &CommandBackend, answer: CommandAnswer) -> Progress {
        let is_flush = matches!(self.operation, Operation::Flush);
        match answer {
            CommandAnswer::Done => self.moved(self.asked),
            // Where interrupts end it, the kernel lets it wait.
            CommandAnswer::Crowded if !self.crowded => {
                self.crowded = true;
                Progress::Continue
            }
            CommandAnswer::Refused(status) if status.asks_again() && !is_flush => {
                self.later(commands, Some(status), status.io_error())
            }
            CommandAnswer::Refused(status) => Progress::Failed(status.io_error()),
            CommandAnswer::TakenBack if self.is_safe_after_reset(commands) => {
                self.later(commands, None, taken_back("it is told again"))
            }
            CommandAnswer::TakenBack => Progress::Failed(match commands.has_volatile_cache {
                true => cache_lost(),
                false => taken_back("whether it was done is unknown"),
            }),
            CommandAnswer::Crowded | CommandAnswer::NoPath if !is_flush => {
                let text = "the kernel has no way to the drive now, or no room for the command";
                self.later(commands, None, io::Error::new(io::ErrorKind::ResourceBusy, text))
            }
            CommandAnswer::Crowded => Progress::Failed(io::Error::from_raw_os_error(libc::EAGAIN)),
            CommandAnswer::NoPath => Progress::Failed(io::Error::from_raw_os_error(libc::EINVAL)),
            CommandAnswer::Failed(errno) => Progress::Failed(io::Error::from_raw_os_error(errno)),
        }
    }

    /// Whether a command that the kernel took back can be told again. A read always. A write where the drive can't do it late,
    /// and where it is known that no earlier write went with it.
    fn is_safe_after_reset(&self, commands: &CommandBackend) -> bool {
        match self.operation {
            Operation::Read { .. } | Operation::ReadPiece { .. } => true,
            Operation::Write { .. } => commands.is_local && !commands.has_volatile_cache,
            Operation::Flush | Operation::Discard { .. } => false,
        }
    }

    /// One more try after a while, unless there were enough.
    fn later(&mut self, commands: &CommandBackend, status: Option<NvmeStatus>, error: io::Error) -> Progress {
        let number = status.map_or(0, NvmeStatus::retry_delay_number);
        match self.patience.next(&commands.retry, number) {
            Some(wait) => Progress::After(wait, error),
            None => Progress::Failed(error),
        }
    }

    /// Takes a number of bytes transferred.
    fn moved(&mut self, moved: usize) -> Progress {
        let Some(len) = self.operation.len() else { return Progress::Done };
        self.done += moved;
        self.retries = 0;
        if self.done == len {
            return Progress::Done;
        }
        assert!(self.done < len, "the kernel moved {} of {len} bytes", self.done);
        // I-C7: what is left must still be aligned; a transfer that ends inside a block is a device that ended.
        if moved == 0 || !self.done.is_multiple_of(DEVICE_BLOCK_BYTES_MIN) {
            let text = format!("only {} of {len} bytes were transferred", self.done);
            let is_write = matches!(self.operation, Operation::Write { .. });
            let kind = if is_write { io::ErrorKind::WriteZero } else { io::ErrorKind::UnexpectedEof };
            return Progress::Failed(io::Error::new(kind, text));
        }
        Progress::Continue
    }

    fn failed(&mut self, errno: i32) -> Progress {
        let passing = matches!(errno, libc::EINTR | libc::EAGAIN);
        if passing && let Some(again) = self.again() {
            return again;
        }
        // A device or file system that can't give space back: discarding is best effort.
        if matches!(self.operation, Operation::Discard { .. }) && errno == libc::EOPNOTSUPP {
            return Progress::Done;
        }
        Progress::Failed(io::Error::from_raw_os_error(errno))
    }

    /// One more try, unless there were enough.
    fn again(&mut self) -> Option<Progress> {
        self.retries += 1;
        (self.retries <= RETRIES_MAX).then_some(Progress::Continue)
    }
}

/// The kernel resets a controller that does not answer, and an operator may.
fn taken_back(what: &str) -> io::Error {
    let text = format!("the drive's controller was reset before the command was answered: {what}");
    io::Error::new(io::ErrorKind::TimedOut, text)
}

/// Why a drive with a volatile cache is not trusted after a reset.
pub(super) fn cache_lost() -> io::Error {
    taken_back("what the drive's volatile cache held may be lost with it")
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
    use crate::nvme::command::TransferLimits;
    use crate::ring::cache_watch::ResetCount;
    use crate::ring::patience::RetryLimits;

    fn read(len: usize) -> InFlight {
        InFlight::new(Operation::Read { offset: 0, buf: IoBuf::zeroed(len), reply: crate::ring::reply::reply().0 })
    }

    fn write(len: usize) -> InFlight {
        InFlight::new(Operation::write(0, vec![IoBuf::zeroed(len).freeze()], crate::ring::reply::reply().0))
    }

    fn drive(has_volatile_cache: bool, is_local: bool) -> Backend {
        Backend::Commands(with_paths(has_volatile_cache, is_local))
    }

    fn with_paths(has_volatile_cache: bool, is_local: bool) -> CommandBackend {
        CommandBackend {
            namespace: 1,
            block_len_bytes: 512,
            limits: TransferLimits { len_bytes_max: 1 << 20, boundary_bytes: None },
            is_polled: true,
            is_local,
            has_paths: true,
            has_volatile_cache,
            resets: ResetCount::default(),
            can_deallocate: true,
            retry: RetryLimits {
                span_max: Duration::from_secs(30),
                named: [Duration::from_millis(500), Duration::ZERO, Duration::ZERO],
            },
        }
    }

    fn commands() -> Backend {
        drive(true, true)
    }

    /// Waits until it fails, in milliseconds.
    fn waits(mut operation: InFlight, backend: &Backend, result: i32) -> Vec<u128> {
        let next = || match operation.progress(backend, result) {
            Progress::After(wait, _) => Some(wait.as_millis()),
            Progress::Continue => Some(0),
            Progress::Failed(_) => None,
            Progress::Done => panic!("{result} is no success"),
        };
        std::iter::from_fn(next).take(1000).collect()
    }

    #[test]
    fn short_transfers_go_on_and_an_end_inside_is_an_error() {
        let on_file = |mut operation: InFlight, result| operation.progress(&Backend::File, result);
        let mut operation = read(8192);
        assert!(matches!(operation.progress(&Backend::File, 4096), Progress::Continue));
        assert!(matches!(operation.progress(&Backend::File, 4096), Progress::Done));
        let ended = on_file(read(8192), 0);
        assert!(matches!(ended, Progress::Failed(error) if error.kind() == io::ErrorKind::UnexpectedEof));
        assert!(matches!(on_file(read(8192), 100), Progress::Failed(_)), "I-C7");
        let failed = on_file(read(8192), -libc::EIO);
        assert!(matches!(failed, Progress::Failed(error) if error.raw_os_error() == Some(libc::EIO)));
    }

    #[test]
    fn i_o5_retries_end() {
        assert_eq!(waits(read(4096), &Backend::File, -libc::EAGAIN), [0; RETRIES_MAX as usize]);
        // The first time it only changes the ring.
        for (result, at_once) in [(-libc::EAGAIN, 1), (0x021, 0), (0x370, 0), (-libc::EINVAL, 0), (-libc::EINTR, 0)] {
            let waits = waits(read(4096), &commands(), result);
            assert_eq!(waits[..at_once], vec![0; at_once], "I-O5: {result}");
            assert_eq!(waits[at_once..at_once + 3], [10, 20, 40], "a drive that is busy is not hammered: {result}");
            assert_eq!(waits.iter().sum::<u128>(), 30_000, "I-O5: {result}");
        }
        let single = Backend::Commands(CommandBackend { has_paths: false, ..with_paths(true, true) });
        for operation in [read(4096), write(4096)] {
            assert_eq!(waits(operation, &single, -libc::EINVAL).len(), 0, "refused, not out of reach");
        }
    }

    #[test]
    fn a_drive_that_names_a_time_is_asked_again_then() {
        assert_eq!(waits(write(4096), &commands(), 0x0821)[..2], [500, 500], "CRD 1");
        assert_eq!(waits(write(4096), &commands(), 0x1021)[..2], [10, 20], "CRD 2, which it left empty");
        assert_eq!(waits(write(4096), &commands(), 0x4821).len(), 0, "do not retry");
    }

    #[test]
    fn i_d6_after_a_reset_only_what_is_safe_is_told_again() {
        let fate = |operation: fn() -> InFlight, has_cache, is_local| {
            let backend = drive(has_cache, is_local);
            let ends = [-libc::EINTR, 0x008].map(|result| waits(operation(), &backend, result).len());
            assert_eq!(ends[0], ends[1], "taken back by the kernel or broken off by the drive");
            ends[0]
        };
        for (has_cache, is_local, write_again) in
            [(true, true, false), (false, true, true), (false, false, false), (true, false, false)]
        {
            let about = format!("I-D6: volatile cache {has_cache}, local {is_local}");
            assert!(fate(|| read(4096), has_cache, is_local) > 10, "{about}");
            assert_eq!(fate(|| write(4096), has_cache, is_local) > 10, write_again, "{about}");
            assert_eq!(fate(|| InFlight::new(Operation::Flush), has_cache, is_local), 0, "{about}");
        }
        let failed = write(4096).progress(&drive(true, true), -libc::EINTR);
        assert!(matches!(failed, Progress::Failed(error) if error.to_string().contains("volatile cache")));
    }

    #[test]
    fn a_command_is_done_as_a_whole_or_refused_by_name() {
        let backend = commands();
        let mut done = read(8192);
        let (_, way) = done.submission(&backend, types::Fixed(0), None);
        assert_eq!(way, Way::Polled);
        assert!(matches!(done.progress(&backend, 0), Progress::Done));

        let mut crowded = read(4096);
        let _polled = crowded.submission(&backend, types::Fixed(0), None);
        assert!(matches!(crowded.progress(&backend, -libc::EAGAIN), Progress::Continue));
        assert_eq!(crowded.submission(&backend, types::Fixed(0), None).1, Way::Interrupt, "where it may wait");

        let refused = read(4096).progress(&backend, 0x281);
        assert!(matches!(refused, Progress::Failed(error) if error.to_string().contains("unrecovered read error")));
        let lost = write(4096).progress(&backend, -libc::EINTR);
        assert!(matches!(lost, Progress::Failed(error) if error.kind() == io::ErrorKind::TimedOut));
        let gone = write(4096).progress(&backend, -libc::ENODEV);
        assert!(matches!(gone, Progress::Failed(error) if error.raw_os_error() == Some(libc::ENODEV)));
    }

    #[test]
    fn i_d6_a_flush_is_never_tried_again() {
        for result in [0x021, 0x0821, 0x370, -libc::EINTR, -libc::EINVAL] {
            assert_eq!(waits(InFlight::new(Operation::Flush), &commands(), result).len(), 0, "I-D6: {result}");
        }
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
