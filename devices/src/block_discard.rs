//! Discards of block devices that are not driven by commands, on threads beside the cores.
//!
//! On a block device `fallocate` with a hole is a *write of zeros* that may unmap (NVMe: Write Zeroes), and the kernel has no
//! mode of it that only discards. The ioctl BLKDISCARD is the request that drives take as "these blocks hold nothing"
//! (NVMe: Dataset Management; SATA: TRIM). It blocks until the drive is done, so a thread of the device does it: one for
//! all cores, which ends with the last of their queues. Discards are in nobody's way and come a few a second.

#![allow(unsafe_code)]

use futures::channel::oneshot;
use kiseki_types::runtime::LocalBoxFuture;
use std::cell::Cell;
use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::rc::Rc;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError, Weak};

/// `_IO(0x12, 119)`.
const BLKDISCARD: libc::c_ulong = 0x1277;

/// Discards of one device that wait (I-O5): every core has one under way at most.
const WAITING_MAX: usize = 1024;

/// One discard. The file is open until it is done, whatever becomes of the queue.
struct Job {
    file: Arc<File>,
    range: [u64; 2],
    reply: oneshot::Sender<io::Result<()>>,
}

/// The threads, by the number of the device.
static THREADS: Mutex<BTreeMap<u64, Weak<SyncSender<Job>>>> = Mutex::new(BTreeMap::new());

/// One core's way to discard ranges of a block device.
pub(crate) struct BlockDiscard {
    file: Arc<File>,
    thread: Arc<SyncSender<Job>>,
    /// The device has said that it can't.
    is_refused: Rc<Cell<bool>>,
}

impl BlockDiscard {
    /// For a block device that is open for writing. Errors: no thread, no descriptor.
    pub fn start(file: &File) -> io::Result<BlockDiscard> {
        let (file, number) = (Arc::new(file.try_clone()?), file.metadata()?.rdev());
        let mut threads = THREADS.lock().unwrap_or_else(PoisonError::into_inner);
        threads.retain(|_, thread| thread.strong_count() > 0);
        let thread = match threads.get(&number).and_then(Weak::upgrade) {
            Some(running) => running,
            None => {
                let started = Arc::new(start_thread()?);
                threads.insert(number, Arc::downgrade(&started));
                started
            }
        };
        Ok(BlockDiscard { file, thread, is_refused: Rc::default() })
    }

    /// Whether the device still takes discards, as far as is known.
    pub fn is_possible(&self) -> bool {
        !self.is_refused.get()
    }

    /// Tells the device that the bytes hold nothing. A device that can't is no error: it is not asked again.
    pub fn discard(&self, offset: u64, len_bytes: u64) -> LocalBoxFuture<'static, io::Result<()>> {
        if self.is_refused.get() {
            return Box::pin(std::future::ready(Ok(())));
        }
        let (reply, answer) = oneshot::channel();
        let job = Job { file: self.file.clone(), range: [offset, len_bytes], reply };
        let refused = match self.thread.try_send(job) {
            Ok(()) => None,
            Err(TrySendError::Full(_)) => Some("too many discards wait (I-O5)"),
            Err(TrySendError::Disconnected(_)) => Some("the thread that discards has ended"),
        };
        if let Some(refused) = refused {
            return Box::pin(std::future::ready(Err(io::Error::other(refused))));
        }
        let is_refused = self.is_refused.clone();
        Box::pin(async move {
            let done = answer.await.unwrap_or_else(|_| Err(io::Error::other("the thread that discards has ended")));
            match done {
                Err(error) if matches!(error.raw_os_error(), Some(libc::EOPNOTSUPP | libc::ENOTTY)) => {
                    is_refused.set(true);
                    Ok(())
                }
                other => other,
            }
        })
    }
}

fn start_thread() -> io::Result<SyncSender<Job>> {
    let (sender, jobs) = sync_channel::<Job>(WAITING_MAX);
    let work = move || carry_out(&jobs, discard_blocking);
    std::thread::Builder::new().name("kiseki-discard".to_owned()).spawn(work)?;
    Ok(sender)
}

/// Carries discards out until nobody can give any more.
fn carry_out(jobs: &Receiver<Job>, discard: impl Fn(&File, [u64; 2]) -> io::Result<()>) {
    while let Ok(Job { file, range, reply }) = jobs.recv() {
        // I-C8: nobody waits for it, so nobody keeps the range out of use until it is done.
        if reply.is_canceled() {
            continue;
        }
        let done = discard(&file, range);
        drop(file); // whoever hears of the end may close the device
        let _gone = reply.send(done);
    }
}

fn discard_blocking(file: &File, range: [u64; 2]) -> io::Result<()> {
    loop {
        // SAFETY: the request reads two u64, from an array of that shape that lives across the call; the descriptor is
        // open as long as `file`.
        let answer = unsafe { libc::ioctl(file.as_raw_fd(), BLKDISCARD, range.as_ptr()) };
        let error = io::Error::last_os_error();
        match answer {
            0 => return Ok(()),
            _ if error.kind() == io::ErrorKind::Interrupted => {}
            _ => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{BlockDiscard, Job, carry_out};
    use crate::file_device::{create_image, open_device};
    use crate::ring::RingOptions;
    use crate::testing::on_executor;
    use futures::channel::oneshot;
    use kiseki_types::{BlockCount, BlockIndex, IoBuf};
    use std::cell::RefCell;
    use std::os::unix::fs::MetadataExt;
    use std::path::{Path, PathBuf};
    use std::process::Command;
    use std::sync::Arc;
    use std::sync::mpsc::sync_channel;

    /// A loop device, taken down at the end.
    struct Loop(PathBuf);

    impl Loop {
        fn new(image: &Path) -> Option<Loop> {
            let made = Command::new("losetup").args(["--find", "--show", "--direct-io=on"]).arg(image).output();
            let made = made.ok().filter(|made| made.status.success());
            if made.is_none() {
                println!("SKIPPED: no loop device here");
            }
            Some(Loop(PathBuf::from(String::from_utf8(made?.stdout).unwrap().trim())))
        }

        /// An operator can turn them off, and a loop device keeps that for its next image.
        fn takes_discards(&self) -> bool {
            let most = std::fs::read_to_string(self.directory().join("queue/discard_max_bytes")).unwrap();
            most.trim() != "0"
        }

        fn directory(&self) -> PathBuf {
            Path::new("/sys/block").join(self.0.file_name().unwrap())
        }

        /// (writes, discards) that the device has done. The kernel counts a request after it has answered it, and ends it after
        /// that: with none in flight all are counted.
        fn requests(&self) -> (u64, u64) {
            let numbers = |file: &str| -> Vec<u64> {
                let text = std::fs::read_to_string(self.directory().join(file)).unwrap();
                text.split_whitespace().map(|field| field.parse().unwrap()).collect()
            };
            let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
            while numbers("inflight").iter().any(|count| *count > 0) {
                assert!(std::time::Instant::now() < deadline, "requests stay in flight");
                std::thread::yield_now();
            }
            let stat = numbers("stat");
            (stat[4], stat[11])
        }
    }

    impl Drop for Loop {
        fn drop(&mut self) {
            let _ = Command::new("losetup").arg("-d").arg(&self.0).status();
        }
    }

    #[test]
    fn a_discard_of_a_block_device_reaches_it_as_one_and_writes_no_zeros() {
        let dir = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        let path = dir.path().join("d.img");
        create_image(&path, 32 << 20).unwrap();
        let Some(device) = Loop::new(&path) else { return };
        if !device.takes_discards() {
            println!("SKIPPED: discards are turned off on {}", device.0.display());
            return;
        }
        let blocks = || std::fs::metadata(&path).unwrap().blocks();
        on_executor(async {
            let queue = open_device(&device.0, RingOptions::default(), None).unwrap();
            let mut noise = IoBuf::zeroed(4 << 20);
            noise.fill(0xa5);
            let noise = noise.freeze();
            for start in [0, 1024] {
                queue.write(BlockIndex(start), vec![noise.clone()]).await.unwrap();
            }
            queue.flush().await.unwrap();
            let (full, before) = (blocks(), device.requests());
            assert!(full * 512 >= 8 << 20, "{full} blocks are allocated");
            queue.discard(BlockIndex(1024), BlockCount(1024)).await.unwrap();
            let after = device.requests();
            assert_eq!((after.0 - before.0, after.1 - before.1), (0, 1), "one discard, and no write of zeros");
            assert!(blocks() * 512 <= full * 512 - (3 << 20), "the space below is given back: {} of {full}", blocks());
            let kept = queue.read(BlockIndex(0), IoBuf::zeroed(4 << 20)).await.unwrap();
            assert!(kept[..] == noise[..], "I-C8: what was not discarded stays");
            assert!(queue.discard_granularity().is_some());
        });
    }

    #[test]
    fn i_c8_a_discard_that_nobody_waits_for_any_more_is_not_carried_out() {
        let file = Arc::new(tempfile::tempfile().unwrap());
        let (sender, jobs) = sync_channel(2);
        let give = |start| {
            let (reply, answer) = oneshot::channel();
            sender.send(Job { file: file.clone(), range: [start, 4096], reply }).unwrap();
            answer
        };
        drop(give(0));
        let awaited = give(8192);
        drop(sender);
        let told = RefCell::new(Vec::new());
        carry_out(&jobs, |_, range| {
            told.borrow_mut().push(range);
            Ok(())
        });
        assert_eq!(told.take(), [[8192, 4096]], "I-C8");
        on_executor(async { awaited.await.unwrap().unwrap() });
        assert_eq!(Arc::strong_count(&file), 1, "what was left out holds no file either");
    }

    #[test]
    fn what_takes_no_discards_is_asked_once_and_that_is_no_error() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(1 << 20).unwrap();
        on_executor(async {
            let discard = BlockDiscard::start(&file).unwrap();
            assert!(discard.is_possible());
            for _ in 0..2 {
                discard.discard(0, 4096).await.unwrap();
                assert!(!discard.is_possible(), "a file knows nothing of the request");
            }
        });
    }
}
