//! Searching block by block, for the kernels that roll many far-apart segments of a block side by side.
//!
//! A fingerprint depends on 64 bytes only, so segments can start anywhere after a warm-up of 64 bytes. A kernel rolls
//! one segment in each lane of its vectors and marks, for each tile of 64 columns, the lanes in which it saw something.
//! What is the same for all of them is here: where blocks lie, which tests follow, and when the filter is given up.
//!
//! Each kernel has two variants without a branch in the loop. *Suspects* looks at the high 16 bits only (T <= 2^16) and
//! is the faster one; each suspect is then tested by the plain kernel. Data made to match those 16 bits everywhere
//! would drown it, so *exact*, which compares all 32, takes over where suspects crowd, and where T is larger.

use super::{Rabin, WINDOW_LEN_BYTES};
use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};

/// Columns of a tile: the window, so that the byte that leaves is one tile back.
pub(super) const TILE: usize = WINDOW_LEN_BYTES;

/// Most tiles of a segment. Odd, like every number of tiles here: with segments an even number of cache lines apart
/// the rows fall into the same few cache sets.
pub(super) const TILES_MAX: usize = 17;

/// Shorter searches take the plain kernel: a block of one tile a segment costs as much.
const BLOCK_WORTH_LEN_BYTES: usize = 1024;

/// Suspects are tested one by one while a block has at most one for so many bytes.
const BYTES_PER_SUSPECT: usize = 4096;

/// For each tile of a block, which lanes have a hit or a suspect in it.
pub(super) type Masks = [u64; TILES_MAX];

/// A kernel that rolls blocks.
#[derive(Clone, Copy)]
pub(super) struct Rolling {
    /// Segments that roll side by side, at most 64.
    pub(super) lanes: usize,
    /// Rolls a block of the data, with the exact variant or the other one, and marks its tiles.
    pub(super) mark: fn(&Rabin, &[u8], bool, Block, &mut Masks),
}

/// How blocks are cut for a kernel and a condition.
#[derive(Clone, Copy)]
struct Shape {
    lanes: usize,
    tiles_max: usize,
    suspects_usable: bool,
}

impl Shape {
    fn new(lanes: usize, threshold: u32) -> Shape {
        // Blocks of about an eighth of the mean distance between hits: less of the last one is wasted.
        let mean_distance = (1u64 << 32) / u64::from(threshold.max(1));
        let tiles = (mean_distance as usize / 8 / (lanes * TILE)).clamp(3, TILES_MAX);
        Shape { lanes, tiles_max: (tiles - 1) | 1, suspects_usable: threshold <= 1 << 16 }
    }

    /// The block that searches on from `at`: it begins there, or, near the end of the data, ends with the data and
    /// covers some positions again. `None` when the rest is not worth one, or too little lies before it.
    fn next_block(self, at: usize, data_len: usize) -> Option<Block> {
        let Shape { lanes, tiles_max, .. } = self;
        let left = data_len - at;
        if left < BLOCK_WORTH_LEN_BYTES || at < WINDOW_LEN_BYTES {
            return None;
        }
        if left >= lanes * TILE * tiles_max {
            return Some(Block { start: at, tiles: tiles_max, lanes });
        }
        let tiles = left.div_ceil(lanes * TILE) | 1;
        let back = data_len.checked_sub(lanes * TILE * tiles).filter(|start| *start >= WINDOW_LEN_BYTES);
        match back {
            Some(start) => Some(Block { start, tiles, lanes }),
            // Too near to the start of the data to reach back: a shorter block from `at` on, if one fits.
            None => {
                let whole = left / (lanes * TILE);
                (whole > 0).then(|| Block { start: at, tiles: (whole - 1) | 1, lanes })
            }
        }
    }
}

/// One block: as many segments as the kernel has lanes, one after the other, from `start` on, which has 64 bytes in
/// front of it.
#[derive(Clone, Copy)]
pub(super) struct Block {
    pub(super) start: usize,
    pub(super) tiles: usize,
    lanes: usize,
}

impl Block {
    fn end(self) -> usize {
        self.start + self.lanes * TILE * self.tiles
    }

    /// Where tile `tile` of segment `lane` starts.
    fn tile_start(self, lane: usize, tile: usize) -> usize {
        self.start + (lane * self.tiles + tile) * TILE
    }

    /// Panics unless a kernel of `lanes` lanes may roll this block over this data: its reads are not checked.
    pub(super) fn assert_rollable(self, lanes: usize, data: &[u8]) {
        let inside = self.start >= WINDOW_LEN_BYTES && self.end() <= data.len();
        let fits = self.lanes == lanes && self.tiles <= TILES_MAX;
        assert!(inside && fits, "{lanes} lanes, {} tiles at {} of {} bytes", self.tiles, self.start, data.len());
    }

    /// Asks for the part of the next block that is as far into it as this tile is into this block. The rows are more
    /// streams than the hardware follows by itself.
    #[allow(unsafe_code)]
    #[inline(always)]
    pub(super) fn prefetch_next(self, data: &[u8], tile: usize) {
        let len = self.lanes * TILE;
        let start = self.end() + tile * len;
        let Some(ahead) = data.get(start..start + len) else { return };
        for line in ahead.as_chunks::<64>().0 {
            // SAFETY: every processor of this architecture has SSE, and a prefetch reads nothing.
            unsafe { _mm_prefetch::<_MM_HINT_T0>(line.as_ptr().cast()) };
        }
    }
}

impl Rabin {
    /// [`Rabin::find_hit`] with a kernel that rolls blocks.
    pub(super) fn find_hit_rolling(&self, rolling: Rolling, data: &[u8], from: usize) -> Option<usize> {
        let mark = |exact, block, masks: &mut Masks| (rolling.mark)(self, data, exact, block, masks);
        self.find_hit_by_blocks(Shape::new(rolling.lanes, self.threshold), data, from, mark)
    }

    /// The same with any `mark`: it rolls a block, with the exact variant or the other one, and sets the masks of its
    /// tiles.
    fn find_hit_by_blocks(
        &self,
        shape: Shape,
        data: &[u8],
        from: usize,
        mark: impl Fn(bool, Block, &mut Masks),
    ) -> Option<usize> {
        let mut at = from;
        if at + 1 == WINDOW_LEN_BYTES && at < data.len() {
            // The very first window has nothing in front of it to reach back to.
            if self.is_hit(self.fingerprint_at(data, at)) {
                return Some(at);
            }
            at += 1;
        }
        let mut exact = !shape.suspects_usable;
        while at < data.len() {
            let Some(block) = shape.next_block(at, data.len()) else {
                return self.find_hit_plain(data, at);
            };
            if let Some(position) = self.first_hit_of_block(data, block, at, &mut exact, &mark) {
                return Some(position);
            }
            at = block.end();
        }
        None
    }

    /// The first hit of a block that is not before `from`; turns to the exact variant for good when suspects crowd.
    fn first_hit_of_block(
        &self,
        data: &[u8],
        block: Block,
        from: usize,
        exact: &mut bool,
        mark: &impl Fn(bool, Block, &mut Masks),
    ) -> Option<usize> {
        let mut masks = [0; TILES_MAX];
        if !*exact {
            mark(false, block, &mut masks);
            let suspects: u32 = masks.iter().map(|mask| mask.count_ones()).sum();
            if suspects == 0 {
                return None;
            }
            *exact = suspects as usize > 2 + (block.end() - block.start) / BYTES_PER_SUSPECT;
        }
        if *exact {
            mark(true, block, &mut masks);
        }
        let any = masks.iter().fold(0, |any, mask| any | mask);
        let lanes = (0..block.lanes).filter(|lane| any >> lane & 1 == 1);
        let marked = lanes.flat_map(|lane| (0..block.tiles).map(move |tile| (lane, tile)));
        marked.filter(|(lane, tile)| masks[*tile] >> lane & 1 == 1).find_map(|(lane, tile)| {
            let start = block.tile_start(lane, tile);
            let first = start.max(from);
            if first >= start + TILE { None } else { self.find_hit_plain(&data[..start + TILE], first) }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::Kernel;
    use super::*;
    use std::cell::RefCell;

    /// Which variants a search of `data` went through, block by block, for each kernel that rolls blocks.
    fn variants(key: u32, threshold: u32, data: &[u8]) -> Vec<Vec<bool>> {
        let kernels = Kernel::runnable().into_iter().filter_map(Kernel::rolling);
        let searched = kernels.map(|rolling| {
            let rabin = Rabin::with_kernel(0xD306_EACF, key, threshold, Kernel::Plain);
            let variants = RefCell::new(Vec::new());
            let shape = Shape::new(rolling.lanes, threshold);
            let hit = rabin.find_hit_by_blocks(shape, data, 64, |exact, block, masks| {
                variants.borrow_mut().push(exact);
                (rolling.mark)(&rabin, data, exact, block, masks);
            });
            assert_eq!(hit, None, "{} lanes", rolling.lanes);
            variants.into_inner()
        });
        searched.collect()
    }

    #[test]
    fn crowded_suspects_are_not_tested_one_by_one() {
        // Zeros have fingerprint 0: every position matches the high half of this key, none is below T.
        for exact in variants(0x0000_8000, 1, &vec![0; 200_000]) {
            assert!(exact.len() >= 3 && !exact[0] && exact[1..].iter().all(|exact| *exact), "{exact:?}");
        }
        // Ordinary data stays with the faster variant.
        let data: Vec<u8> = (0..200_000u32).map(|i| (i.wrapping_mul(0x9e37_79b9) >> 24) as u8).collect();
        for exact in variants(0xA5C3_E719, 1, &data) {
            assert!(exact.len() >= 2 && exact.iter().all(|exact| !exact), "{exact:?}");
        }
    }

    #[test]
    fn the_filter_is_not_used_where_it_would_miss_hits() {
        for exact in variants(0xA5C3_E719, 1 << 16, &vec![0; 100_000]) {
            assert!(exact.iter().all(|exact| !exact), "{exact:?}");
        }
        for exact in variants(0xA5C3_E719, (1 << 16) + 1, &vec![0; 100_000]) {
            assert!(exact.iter().all(|exact| *exact), "{exact:?}");
        }
    }

    #[test]
    fn blocks_cover_everything_from_where_they_are_asked_to() {
        for (lanes, tiles_max) in [32, 64].into_iter().flat_map(|lanes| [3, 5, 17].map(|tiles| (lanes, tiles))) {
            let shape = Shape { lanes, tiles_max, suspects_usable: true };
            for data_len in (64..20_000).step_by(61).chain([34_880, 34_881, 69_696, 69_697, 200_000]) {
                let mut at = 64;
                while let Some(block) = (at < data_len).then(|| shape.next_block(at, data_len)).flatten() {
                    let inside = block.start >= WINDOW_LEN_BYTES && block.end() <= data_len;
                    let usable = inside && block.tiles % 2 == 1 && block.tiles <= tiles_max;
                    assert!(usable && block.start <= at && block.end() > at, "{at} of {data_len}: {}", block.tiles);
                    at = block.end();
                }
                assert!(
                    data_len - at.min(data_len) < 2 * lanes * TILE,
                    "{at} of {data_len}: too much for the plain kernel"
                );
            }
        }
    }
}
