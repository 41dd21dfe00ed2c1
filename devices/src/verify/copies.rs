//! The four copies of the superblock: which counts, which is as old as it should be, and what is wrong with the others.

use super::{Problem, ProblemKind, Verdict};
use crate::image::Image;
use crate::layout::{DeviceLayout, SUPERBLOCK_COPIES, SUPERBLOCK_LEN_BYTES};
use crate::superblock::{Superblock, SuperblockDamage, SuperblockState, far_offsets, four};
use kiseki_types::device::DeviceGeometry;
use kiseki_types::limits::DEVICE_BLOCK_BYTES_MAX;
use kiseki_types::{BlockCount, BlockIndex};

/// What one copy is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CopyState {
    /// Of the newest generation.
    Newest,
    /// Of the one before, as it should be.
    Previous,
    /// Older, as a crash between two writes leaves it.
    Behind,
    /// Older than a crash can leave it.
    Stale,
    /// Another device's.
    Foreign,
    /// It does not verify, and why.
    Damaged(String),
}

impl CopyState {
    /// Its name in JSON and messages.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            CopyState::Newest => "newest",
            CopyState::Previous => "previous",
            CopyState::Behind => "behind",
            CopyState::Stale => "stale",
            CopyState::Foreign => "foreign",
            CopyState::Damaged(_) => "damaged",
        }
    }
}

/// One copy of the superblock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CopyVerdict {
    /// Its number, 0 to 3.
    pub copy: usize,
    /// Where it lies, in bytes.
    pub offset_bytes: u64,
    /// Its generation, when it verifies.
    pub generation: Option<u64>,
    /// What it is.
    pub state: CopyState,
}

/// Reads and judges the copies; problems go into the verdict when there is a copy to go by.
pub(super) fn check(image: &Image, verdict: &mut Verdict) -> SuperblockState {
    let (state, copies, offsets) = read(image);
    let newest = match &state {
        SuperblockState::Present { superblock, .. } => Some(superblock),
        _ => None,
    };
    for (copy, found) in copies.iter().enumerate() {
        let state = judge(copy, found, newest.map(|newest| &**newest));
        let generation = found.as_ref().ok().map(|superblock| superblock.generation);
        if let Some(newest) = newest
            && let Some((kind, text)) = problem_of(copy, &state, found)
        {
            let block = BlockIndex(offsets[copy] / u64::from(newest.layout.block_len_bytes()));
            verdict.problem(Problem::at(kind, None, block, text));
        }
        verdict.copies.push(CopyVerdict { copy, offset_bytes: offsets[copy], generation, state });
    }
    state
}

pub(super) type Copies = [Result<Superblock, SuperblockDamage>; SUPERBLOCK_COPIES];

/// Reads the copies: what they say together, each of them, and where they lie.
pub(super) fn read(image: &Image) -> (SuperblockState, Copies, [u64; SUPERBLOCK_COPIES]) {
    let block_len_bytes = DEVICE_BLOCK_BYTES_MAX as u32;
    let block_count = BlockCount(image.len_bytes() / u64::from(block_len_bytes));
    let found = DeviceGeometry { block_len_bytes, block_count };
    let read_copy = |copy: usize, offset: u64| match image.read(offset, SUPERBLOCK_LEN_BYTES) {
        Ok(bytes) => Superblock::decode(&bytes, copy),
        Err(error) => Err(SuperblockDamage::Read(error.to_string())),
    };
    let offsets = DeviceLayout::superblock_offsets(found);
    let front: Vec<_> = (0..2).map(|copy| read_copy(copy, offsets[copy])).collect();
    let offsets = far_offsets(&front, found);
    let far: Vec<_> = (2..SUPERBLOCK_COPIES).map(|copy| read_copy(copy, offsets[copy])).collect();
    let copies = four(front, far);
    (SuperblockState::choose(copies.clone()), copies, offsets)
}

fn judge(copy: usize, found: &Result<Superblock, SuperblockDamage>, newest: Option<&Superblock>) -> CopyState {
    let superblock = match found {
        Ok(superblock) => superblock,
        Err(damage) => return CopyState::Damaged(damage.to_string()),
    };
    // Without a newest one a later format was found, and no copy of this one counts.
    let Some(newest) = newest else { return CopyState::Stale };
    if (superblock.cluster, superblock.device) != (newest.cluster, newest.device) {
        return CopyState::Foreign;
    }
    let turn = u64::from(copy as u32 % 2);
    let expected = match newest.generation % 2 == turn {
        true => newest.generation,
        false => newest.generation.saturating_sub(1),
    };
    match superblock.generation {
        found if found == newest.generation => CopyState::Newest,
        found if found == expected => CopyState::Previous,
        // Generation g goes to the front first: a crash leaves the far copy of its turn at g - 2.
        found if copy >= 2 && found + 2 == newest.generation => CopyState::Behind,
        _ => CopyState::Stale,
    }
}

fn problem_of(
    copy: usize,
    state: &CopyState,
    found: &Result<Superblock, SuperblockDamage>,
) -> Option<(ProblemKind, String)> {
    let generation = found.as_ref().map_or(0, |superblock| superblock.generation);
    match state {
        CopyState::Newest | CopyState::Previous | CopyState::Behind => None,
        CopyState::Stale => Some((
            ProblemKind::SuperblockStale,
            format!("copy {copy} of the superblock has generation {generation}: a later write of it was lost"),
        )),
        CopyState::Foreign => {
            let whose = found.as_ref().map(|other| other.device.to_string()).unwrap_or_default();
            Some((ProblemKind::SuperblockForeign, format!("copy {copy} of the superblock is that of device {whose}")))
        }
        CopyState::Damaged(reason) => {
            Some((ProblemKind::SuperblockDamaged, format!("copy {copy} of the superblock does not verify: {reason}")))
        }
    }
}
