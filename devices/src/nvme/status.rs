//! The status that a drive completes a command with, by name.

use std::fmt;
use std::io;

/// Status of a command that did not succeed: what the kernel hands up, without the phase bit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NvmeStatus(u16);

/// Type and code; the bits above say how to go on.
const CODE_MASK: u16 = 0x7ff;
const DO_NOT_RETRY: u16 = 0x4000;
const RETRY_DELAY_SHIFT: u16 = 11;

/// What the codes mean, by type and code.
const NAMES: &[(u16, &str)] = &[
    (0x001, "invalid opcode"),
    (0x002, "invalid field in command"),
    (0x004, "data transfer error"),
    (0x005, "aborted: power loss notification"),
    (0x006, "internal error"),
    (0x007, "abort requested"),
    (0x008, "aborted: submission queue deleted"),
    (0x00b, "invalid namespace or format"),
    (0x00c, "command sequence error"),
    (0x011, "SGL data too short or long"),
    (0x013, "PRP offset invalid"),
    (0x014, "atomic write unit exceeded"),
    (0x015, "operation denied"),
    (0x01c, "sanitize failed"),
    (0x01d, "sanitize in progress"),
    (0x020, "namespace is write protected"),
    (0x021, "command interrupted"),
    (0x022, "transient transport error"),
    (0x080, "LBA out of range"),
    (0x081, "capacity exceeded"),
    (0x082, "namespace not ready"),
    (0x083, "reservation conflict"),
    (0x084, "format in progress"),
    (0x106, "invalid firmware slot"),
    (0x109, "invalid log page"),
    (0x10a, "invalid format"),
    (0x10d, "feature identifier not saveable"),
    (0x115, "namespace insufficient capacity"),
    (0x118, "namespace already attached"),
    (0x11a, "namespace not attached"),
    (0x11d, "device self-test in progress"),
    (0x180, "conflicting attributes"),
    (0x182, "write to a read-only range"),
    (0x280, "write fault"),
    (0x281, "unrecovered read error"),
    (0x282, "end-to-end guard check error"),
    (0x283, "end-to-end application tag check error"),
    (0x284, "end-to-end reference tag check error"),
    (0x285, "compare failure"),
    (0x286, "access denied"),
    (0x287, "deallocated or unwritten block"),
    (0x300, "internal path error"),
    (0x302, "asymmetric access inaccessible"),
    (0x303, "asymmetric access transition"),
    (0x360, "controller pathing error"),
    (0x370, "host pathing error"),
    (0x371, "aborted by the host: the controller was reset or removed"),
];

impl NvmeStatus {
    /// From what the kernel answered; `None`: success.
    #[must_use]
    pub fn new(raw: u16) -> Option<NvmeStatus> {
        (raw & CODE_MASK != 0).then_some(NvmeStatus(raw))
    }

    /// Status code type and status code, as `nvme-cli` prints them.
    #[must_use]
    pub fn code(self) -> u16 {
        self.0 & CODE_MASK
    }

    /// Whether the drive says that trying again fails again (DNR).
    #[must_use]
    pub fn is_final(self) -> bool {
        self.0 & DO_NOT_RETRY != 0
    }

    /// Whether the same command is asked for again: the drive was busy with itself, or the kernel with the drive (0x370, while
    /// its controller is reset), and it has not been done.
    #[must_use]
    pub fn asks_again(self) -> bool {
        !self.is_final() && matches!(self.code(), 0x021 | 0x022 | 0x082 | 0x303 | 0x370)
    }

    /// Whether the command ended with the queue that it was in, as the kernel ends them before it resets a controller: whether
    /// it was done is unknown.
    #[must_use]
    pub fn is_broken_off(self) -> bool {
        !self.is_final() && self.code() == 0x008
    }

    /// Whether the kernel gave it because it resets the controller or lost the way to it, with whatever advice to try again.
    #[must_use]
    pub fn tells_of_reset(self) -> bool {
        matches!(self.code(), 0x008 | 0x370 | 0x371)
    }

    /// Which of the waits that the controller's identity lists is to pass first (CRD), 1 to 3; 0: none.
    #[must_use]
    pub fn retry_delay_number(self) -> u8 {
        (self.0 >> RETRY_DELAY_SHIFT & 3) as u8
    }

    /// Whether a medium or its data failed, rather than the command or the way to the drive.
    #[must_use]
    pub fn is_media_error(self) -> bool {
        self.code() >> 8 == 2 && !matches!(self.code(), 0x285 | 0x286)
    }

    /// Its name in the specification.
    #[must_use]
    pub fn name(self) -> &'static str {
        let code = self.code();
        NAMES.iter().find(|(known, _)| *known == code).map_or_else(
            || match code >> 8 {
                0 => "generic error",
                1 => "command specific error",
                2 => "media or data integrity error",
                3 => "path error",
                7 => "vendor specific error",
                _ => "unknown error",
            },
            |(_, name)| name,
        )
    }

    /// As an I/O error that names it.
    #[must_use]
    pub fn io_error(self) -> io::Error {
        let kind = match self.code() {
            0x280..=0x284 | 0x287 => io::ErrorKind::InvalidData,
            0x001 => io::ErrorKind::Unsupported,
            0x015 | 0x286 => io::ErrorKind::PermissionDenied,
            0x020 | 0x182 => io::ErrorKind::ReadOnlyFilesystem,
            0x081 => io::ErrorKind::StorageFull,
            _ => io::ErrorKind::Other,
        };
        io::Error::new(kind, self)
    }
}

impl fmt::Display for NvmeStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NVMe status {:#05x}: {}", self.code(), self.name())?;
        if self.is_final() { f.write_str(" (do not retry)") } else { Ok(()) }
    }
}

impl std::error::Error for NvmeStatus {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statuses_have_names_and_keep_them_in_io_errors() {
        assert_eq!(NvmeStatus::new(0), None);
        let read = NvmeStatus::new(0x4281).unwrap();
        assert_eq!(read.to_string(), "NVMe status 0x281: unrecovered read error (do not retry)");
        assert!(read.is_final() && read.is_media_error());
        let error = NvmeStatus::new(0x280).unwrap().io_error();
        assert_eq!(error.to_string(), "NVMe status 0x280: write fault");
        let found = error.get_ref().and_then(|inner| inner.downcast_ref::<NvmeStatus>()).unwrap();
        assert_eq!(found.code(), 0x280);
        assert!(!NvmeStatus::new(0x285).unwrap().is_media_error(), "a compare that differs is an answer");
        assert_eq!(NvmeStatus::new(0x7c3).unwrap().name(), "vendor specific error");
        assert_eq!(NvmeStatus::new(0x371).unwrap().io_error().kind(), io::ErrorKind::Other);
        let delays = [0x0021, 0x0821, 0x1021, 0x5821].map(|raw| NvmeStatus::new(raw).unwrap().retry_delay_number());
        assert_eq!(delays, [0, 1, 2, 3]);
        assert!(NvmeStatus::new(0x370).unwrap().asks_again() && !NvmeStatus::new(0x371).unwrap().asks_again());
        assert!(NvmeStatus::new(0x021).unwrap().asks_again() && !NvmeStatus::new(0x4021).unwrap().asks_again());
        assert!(!NvmeStatus::new(0x280).unwrap().asks_again(), "I-D6: a write that failed is not tried again");
    }

    #[test]
    fn the_table_is_sorted_and_names_each_code_once() {
        assert!(NAMES.windows(2).all(|pair| pair[0].0 < pair[1].0));
    }
}
