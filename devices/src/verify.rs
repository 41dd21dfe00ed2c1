//! Everything a device says of itself, checked without a node, a ring or a write: superblock copies, geometry, the journal
//! of each lane, and every fragment with every piece of it.
//!
//! What a device alone can't tell: whether a fragment in space that no untrimmed record touches is used, or was released
//! and is not overwritten yet. Both look the same; the node's index tables know ([`NodeRows`]). With them every fragment
//! is *used* or a *leftover*; without, those are *unspoken*.
//!
//! Reading order: [`Verdict`], then the steps in the order of [`verify`].

mod copies;
mod judge;
mod lanes;
mod problem;
mod scan;

pub use copies::{CopyState, CopyVerdict};
pub use lanes::LaneVerdict;
pub use problem::{Problem, ProblemKind};

use crate::image::Image;
use crate::index_rebuild::NodeRows;
use crate::layout::{SUPERBLOCK_COPIES, SUPERBLOCK_LEN_BYTES};
use crate::probe::{self, FoundSignature};
use crate::superblock::{Superblock, SuperblockState};
use kiseki_types::BlockCount;
use kiseki_types::device::DeviceGeometry;
use kiseki_types::fragment::StoredFragment;
use kiseki_types::limits::DEVICE_BLOCK_BYTES_MIN;
use scan::Found;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Most threads that read one device: beyond this depth drives gain little.
pub const THREADS_MAX: usize = 32;

/// What is shorter was never a device: it has no room for the copies of a superblock.
const LEN_BYTES_MIN: u64 = (SUPERBLOCK_COPIES * SUPERBLOCK_LEN_BYTES) as u64;

/// How a device is verified.
#[derive(Clone, Copy)]
pub struct VerifyOptions<'a> {
    /// What the stopped node's index tables say, where they are at hand.
    pub known: Option<&'a NodeRows>,
    /// Threads that read, 1 to [`THREADS_MAX`].
    pub threads: usize,
    /// Hears of progress, from any thread.
    pub on_progress: &'a (dyn Fn(Progress) + Sync),
}

/// How far a device is verified.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// So many bytes will be looked at.
    Begin {
        /// Bytes of all zones.
        total_bytes: u64,
    },
    /// So many more are done.
    Done {
        /// Bytes since the last time.
        bytes: u64,
    },
}

/// What is known of an intact fragment beside its bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FragmentState {
    /// The journal or the index says that its extent holds it.
    Used,
    /// Neither speaks about its blocks: used, or released and not overwritten yet.
    Unspoken,
    /// Its blocks are free: it was released, or never acknowledged.
    Leftover,
}

/// An intact fragment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VerifiedFragment {
    /// What and where.
    pub fragment: StoredFragment,
    /// What is known of it.
    pub state: FragmentState,
}

/// What verifying one device gave.
#[derive(Debug)]
pub struct Verdict {
    /// Its path.
    pub name: String,
    /// Its length.
    pub len_bytes: u64,
    /// The copies of its superblock.
    pub copies: Vec<CopyVerdict>,
    /// The newest copy; `None` when there is none to go by, and then nothing below was looked at.
    pub superblock: Option<Superblock>,
    /// What else it carries, when it is no device of ours.
    pub signatures: Vec<FoundSignature>,
    /// The journal of each lane.
    pub lanes: Vec<LaneVerdict>,
    /// Intact fragments in order of place.
    pub fragments: Vec<VerifiedFragment>,
    /// Headers and torn or overwritten rests in free space: normal, they are written over one day. (Intact leftovers
    /// are among `fragments`.)
    pub scraps: u64,
    /// Fragments that share their stripe with another one on the device, where nothing says that both are used.
    pub doubles: u64,
    /// What is wrong, in order of place.
    pub problems: Vec<Problem>,
    /// Fragments whose header is intact and whose payload is not, and that may be used.
    pub(crate) damaged: Vec<StoredFragment>,
}

impl Verdict {
    fn new(image: &Image) -> Verdict {
        Verdict {
            name: image.name().to_owned(),
            len_bytes: image.len_bytes(),
            copies: Vec::new(),
            superblock: None,
            signatures: Vec::new(),
            lanes: Vec::new(),
            fragments: Vec::new(),
            scraps: 0,
            doubles: 0,
            problems: Vec::new(),
            damaged: Vec::new(),
        }
    }

    /// Whether nothing is wrong.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.problems.is_empty()
    }

    /// Intact fragments in one state.
    #[must_use]
    pub fn count(&self, state: FragmentState) -> u64 {
        self.fragments.iter().filter(|fragment| fragment.state == state).count() as u64
    }

    fn problem(&mut self, problem: Problem) {
        self.problems.push(problem);
    }
}

/// Checks a whole device. Nothing is written.
#[must_use]
pub fn verify(image: &Image, options: &VerifyOptions<'_>) -> Verdict {
    let mut verdict = Verdict::new(image);
    let state = copies::check(image, &mut verdict);
    let SuperblockState::Present { superblock, .. } = state else {
        explain_stranger(image, &state, &mut verdict);
        return verdict;
    };
    check_length(image, &superblock, &mut verdict);
    let threads = options.threads.clamp(1, THREADS_MAX);
    let layout = superblock.layout;
    let mut lanes = parallel(usize::from(layout.lanes()), threads, |lane| lanes::read(image, &superblock, lane as u16));
    (options.on_progress)(Progress::Begin { total_bytes: layout.capacity_bytes() });
    let scans = parallel(layout.zone_count() as usize, threads, |zone| {
        scan::scan_zone(image, &layout, zone as u32, &|bytes| (options.on_progress)(Progress::Done { bytes }))
    });
    let mut found: Vec<Found> = Vec::new();
    for scan in scans {
        found.extend(scan.found);
        for range in scan.unreadable {
            verdict.problem(Problem::unreadable(&layout, range));
        }
    }
    lanes::check(&superblock, &mut lanes, &found, options.known, &mut verdict);
    judge::judge(image, &superblock, &lanes, found, options.known, &mut verdict);
    verdict.lanes = lanes;
    verdict.superblock = Some(*superblock);
    verdict.problems.sort_by_key(|problem| (problem.block, problem.kind));
    verdict
}

/// The newest superblock of a device, if there is one to go by.
#[must_use]
pub fn superblock(image: &Image) -> Option<Superblock> {
    match copies::read(image).0 {
        SuperblockState::Present { superblock, .. } => Some(*superblock),
        _ => None,
    }
}

/// Says what lies on a device without a superblock to go by.
fn explain_stranger(image: &Image, state: &SuperblockState, verdict: &mut Verdict) {
    // Sectors: others count in them, and a device may end with less than a block.
    let block_len_bytes = DEVICE_BLOCK_BYTES_MIN as u32;
    let block_count = BlockCount(image.len_bytes() / u64::from(block_len_bytes));
    let geometry = DeviceGeometry { block_len_bytes, block_count };
    let ((front, front_len), (far, far_len)) = probe::ends(geometry);
    let at = |block: kiseki_types::BlockIndex| block.0 * u64::from(block_len_bytes);
    let (front, _) = image.read_around(at(front), front_len);
    let (far, _) = image.read_around(at(far), far_len);
    verdict.signatures = probe::probe(&front, &far, geometry);
    let carried: Vec<String> = verdict.signatures.iter().map(ToString::to_string).collect();
    let carried = if carried.is_empty() { "no signature that is known".to_owned() } else { carried.join(" and ") };
    let problem = match state {
        SuperblockState::TooNew { version } => {
            Problem::new(ProblemKind::FormatTooNew, format!("its superblock has format {version}"))
        }
        SuperblockState::Unreadable { reason } if image.len_bytes() >= LEN_BYTES_MIN => {
            Problem::new(ProblemKind::SuperblockLost, format!("no copy of its superblock verifies: {reason}"))
        }
        _ => Problem::new(ProblemKind::NotFormatted, format!("it carries no Kiseki superblock, but {carried}")),
    };
    verdict.problem(problem);
}

fn check_length(image: &Image, superblock: &Superblock, verdict: &mut Verdict) {
    let formatted = superblock.layout.geometry().len_bytes();
    if image.len_bytes() < formatted {
        let text = format!(
            "it has {} bytes and was formatted with {formatted}: everything from block {} on is gone",
            image.len_bytes(),
            image.len_bytes() / u64::from(superblock.layout.block_len_bytes())
        );
        verdict.problem(Problem::new(ProblemKind::DeviceShrunk, text));
    }
}

/// `work` of 0..count on some threads; the answers in order.
fn parallel<T: Send>(count: usize, threads: usize, work: impl Fn(usize) -> T + Sync) -> Vec<T> {
    if threads == 1 {
        return (0..count).map(work).collect();
    }
    let next = AtomicUsize::new(0);
    let done: Mutex<Vec<(usize, T)>> = Mutex::new(Vec::with_capacity(count));
    std::thread::scope(|scope| {
        for _ in 0..threads.min(count) {
            scope.spawn(|| {
                loop {
                    let at = next.fetch_add(1, Ordering::Relaxed);
                    if at >= count {
                        return;
                    }
                    let answer = work(at);
                    done.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push((at, answer));
                }
            });
        }
    });
    let mut done = done.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    done.sort_by_key(|(at, _)| *at);
    done.into_iter().map(|(_, answer)| answer).collect()
}
