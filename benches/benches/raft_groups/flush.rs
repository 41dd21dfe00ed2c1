//! What the disk takes for one durable block: a direct write of 4 KiB and a flush, one after the other.

use rustix::fs::{Mode, OFlags, fdatasync, open};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::{Duration, Instant};

const BLOCK_BYTES: usize = 4096;
const BLOCKS: u64 = 1024;

#[repr(align(4096))]
struct Aligned([u8; BLOCK_BYTES]);

/// A file of blocks that were written before.
pub struct Block(OwnedFd);

impl Block {
    /// Makes the file.
    pub fn create(path: &Path) -> Block {
        std::fs::write(path, vec![1; BLOCK_BYTES * BLOCKS as usize]).expect("there is room");
        let file = open(path, OFlags::WRONLY | OFlags::DIRECT, Mode::empty()).expect("it opens");
        fdatasync(&file).expect("it is flushed");
        Block(file)
    }

    /// How long each flush took, one after the other for `span`.
    pub fn flushes(&self, span: Duration) -> Vec<u32> {
        let (block, until, mut micros) = (Box::new(Aligned([7; BLOCK_BYTES])), Instant::now() + span, Vec::new());
        let mut begun = Instant::now();
        for number in 0.. {
            rustix::io::pwrite(&self.0, &block.0, number % BLOCKS * BLOCK_BYTES as u64).expect("it is written");
            fdatasync(&self.0).expect("it is flushed");
            let ended = Instant::now();
            micros.push((ended - begun).as_micros() as u32);
            begun = ended;
            if ended >= until {
                break;
            }
        }
        micros
    }
}
