//! What the kernel says of an NVMe namespace's block device.

use std::path::{Path, PathBuf};
use std::time::Duration;

/// What the driver has unless somebody changed it. Namespaces of several controllers do not say.
const IO_TIMEOUT_DEFAULT: Duration = Duration::from_secs(30);

/// What the kernel says of the block device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct QueueFacts {
    /// Bytes in all.
    pub len_bytes: u64,
    /// Partitions, and devices on top of it.
    pub occupants: usize,
    pub is_zoned: bool,
    pub is_read_only: bool,
    /// Bytes of one command, and runs of memory in it.
    pub transfer_len_bytes_max: u64,
    pub segments_max: u64,
    /// Whether the driver has queues without interrupts.
    pub can_poll: bool,
    /// Whether the drive is on this machine's bus.
    pub is_local: bool,
    /// Whether the kernel has the namespace as one of several controllers, each a path to it.
    pub has_paths: bool,
    /// How long the kernel gives a command.
    pub io_timeout: Duration,
}

impl QueueFacts {
    /// Reads it from sysfs. The error is the reason not to use commands.
    pub fn read(sys: &Path, block_name: &str) -> Result<QueueFacts, String> {
        let dir = sys.join(block_name);
        let text = |file: &str| std::fs::read_to_string(dir.join(file)).map(|text| text.trim().to_owned());
        let number = |file: &str| {
            let found = text(file)
                .map_err(|error| error.to_string())
                .and_then(|text| text.parse::<u64>().map_err(|_| format!("`{text}` is no number")));
            found.map_err(|error| format!("{}: {error}", dir.join(file).display()))
        };
        let entries = |dir: PathBuf| std::fs::read_dir(dir).into_iter().flatten().flatten();
        let is_partition = |name: &str| name.strip_prefix(block_name).is_some_and(|rest| rest.starts_with('p'));
        let transports = Transports::read(&dir);
        let partitions = entries(dir.clone()).filter(|entry| entry.file_name().to_str().is_some_and(is_partition));
        Ok(QueueFacts {
            // Counted in 512 bytes, whatever the block.
            len_bytes: number("size")?.saturating_mul(512),
            occupants: partitions.count() + entries(dir.join("holders")).count(),
            is_zoned: text("queue/zoned").is_ok_and(|zoned| zoned != "none"),
            is_read_only: number("ro")? != 0,
            transfer_len_bytes_max: number("queue/max_hw_sectors_kb")?.saturating_mul(1024),
            segments_max: number("queue/max_segments")?,
            can_poll: number("queue/io_poll").is_ok_and(|poll| poll == 1),
            is_local: transports.is_local(),
            has_paths: transports.has_paths(),
            io_timeout: number("queue/io_timeout").map_or(IO_TIMEOUT_DEFAULT, Duration::from_millis),
        })
    }
}

/// How the controllers of a namespace are reached. Below a namespace of several controllers lie the subsystem's, in
/// `device`; below one of a single controller that itself.
struct Transports {
    own: Option<String>,
    of_paths: Vec<String>,
}

impl Transports {
    /// Of the namespace at `dir`.
    fn read(dir: &Path) -> Transports {
        let device = dir.join("device");
        let transport =
            |dir: &Path| std::fs::read_to_string(dir.join("transport")).ok().map(|text| text.trim().to_owned());
        let below = std::fs::read_dir(&device).into_iter().flatten().flatten();
        Transports { own: transport(&device), of_paths: below.filter_map(|entry| transport(&entry.path())).collect() }
    }

    /// Whether every controller is on this machine's bus.
    fn is_local(&self) -> bool {
        let mut all = self.own.iter().chain(&self.of_paths).peekable();
        all.peek().is_some() && all.all(|transport| transport == "pcie")
    }

    /// Whether there may be several.
    fn has_paths(&self) -> bool {
        self.own.is_none() && !self.of_paths.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_kernel_says_is_read() {
        let sys = tempfile::tempdir().unwrap();
        let dir = sys.path().join("nvme0n1");
        for directory in ["queue", "holders/dm-0", "nvme0n1p1", "nvme0n1p2", "power", "device/nvme0", "device/power"] {
            std::fs::create_dir_all(dir.join(directory)).unwrap();
        }
        for (file, text) in [
            ("size", "2048\n"),
            ("ro", "0\n"),
            ("queue/zoned", "none\n"),
            ("queue/max_hw_sectors_kb", "128\n"),
            ("queue/max_segments", "33\n"),
            ("queue/io_poll", "1\n"),
            ("queue/io_timeout", "60000\n"),
            ("device/nvme0/transport", "pcie\n"),
        ] {
            std::fs::write(dir.join(file), text).unwrap();
        }
        let facts = QueueFacts {
            len_bytes: 1 << 20,
            occupants: 3,
            is_zoned: false,
            is_read_only: false,
            transfer_len_bytes_max: 128 << 10,
            segments_max: 33,
            can_poll: true,
            is_local: true,
            has_paths: true,
            io_timeout: Duration::from_secs(60),
        };
        assert_eq!(QueueFacts::read(sys.path(), "nvme0n1"), Ok(facts));
        std::fs::create_dir_all(dir.join("device/nvme1")).unwrap();
        std::fs::write(dir.join("device/nvme1/transport"), "tcp\n").unwrap();
        assert!(!QueueFacts::read(sys.path(), "nvme0n1").unwrap().is_local, "one way leads over a network");
        std::fs::write(dir.join("device/transport"), "pcie\n").unwrap();
        std::fs::remove_dir_all(dir.join("device/nvme0")).unwrap();
        std::fs::remove_dir_all(dir.join("device/nvme1")).unwrap();
        let single = QueueFacts::read(sys.path(), "nvme0n1").unwrap();
        assert!(single.is_local && !single.has_paths, "a controller of its own");
        std::fs::remove_file(dir.join("queue/max_segments")).unwrap();
        assert!(QueueFacts::read(sys.path(), "nvme0n1").unwrap_err().contains("max_segments"));
    }
}
