//! The allocator against a model that knows every block.

use super::*;
use proptest::prelude::*;
use std::collections::BTreeSet;

/// Two zones that touch, and one apart.
const ZONES: [(u64, u64); 3] = [(10, 40), (50, 30), (100, 25)];

fn zones() -> Zones {
    Zones::new(ZONES.map(|(start, len)| (BlockIndex(start), BlockCount(len))))
}

fn wish(granularity: u64) -> DiscardWish {
    DiscardWish { blocks_max: 1000, granularity, also_unknown: true }
}

#[test]
fn extents_never_cross_zones_and_come_back_whole() {
    let mut zones = zones();
    assert_eq!(zones.allocate(BlockCount(41)), None, "the longest zone has 40");
    let long = zones.allocate(BlockCount(40)).unwrap();
    assert_eq!(long, BlockIndex(10));
    let rest: Vec<_> = [30, 25].map(|len| zones.allocate(BlockCount(len)).unwrap().0).to_vec();
    assert_eq!(rest, [50, 100]);
    assert_eq!((zones.free_blocks(), zones.allocate(BlockCount(1))), (BlockCount(0), None));
    zones.free(long, BlockCount(40));
    zones.free(BlockIndex(50), BlockCount(30));
    assert_eq!(zones.allocate(BlockCount(41)), None, "touching zones stay two");
    assert!(zones.mark_used(BlockIndex(45), BlockCount(6)).unwrap_err().to_string().contains("outside"));
    assert!(matches!(zones.mark_used(BlockIndex(100), BlockCount(1)), Err(ZoneError::Overlap { .. })));
    assert!(matches!(zones.mark_used(BlockIndex(0), BlockCount(u64::MAX)), Err(ZoneError::Outside { .. })));
    zones.mark_used(BlockIndex(20), BlockCount(5)).unwrap();
    assert_eq!(zones.used().collect::<Vec<_>>(), [(BlockIndex(20), BlockCount(5)), (BlockIndex(100), BlockCount(25))]);
}

#[test]
fn a_run_behind_more_slivers_than_a_search_looks_at_is_discarded_all_the_same() {
    // Two blocks in eight are free, again and again, and units of eight: nothing of them can be discarded.
    let slivers = 2 * DISCARD_RUNS_LOOKED_AT_MAX as u64 + 10;
    let mut zones = Zones::new([(BlockIndex(0), BlockCount(8 * slivers + 64))]);
    for sliver in 0..slivers {
        zones.mark_used(BlockIndex(8 * sliver), BlockCount(6)).unwrap();
    }
    let rounds = (0..4).find_map(|_| zones.take_discard(wish(8)));
    assert_eq!(rounds, Some((BlockIndex(8 * slivers), BlockCount(64))));
}

#[test]
fn fragmentation_counts_what_extents_can_be_cut_from() {
    let mut zones = zones();
    let at = |longest, runs, usable| Fragmentation { longest: BlockCount(longest), runs, usable: BlockCount(usable) };
    assert_eq!(zones.fragmentation(BlockCount(12)), at(40, 3, 36 + 24 + 24));
    zones.mark_used(BlockIndex(30), BlockCount(1)).unwrap();
    assert_eq!(zones.fragmentation(BlockCount(12)), at(30, 4, 12 + 12 + 24 + 24));
    zones.free(BlockIndex(30), BlockCount(1));
    assert_eq!(zones.fragmentation(BlockCount(41)), at(40, 3, 0));
}

#[test]
fn freed_neighbors_are_discarded_as_one_run_before_space_of_which_nobody_knows() {
    let mut zones = zones();
    let taken = [4, 4, 4].map(|len| zones.allocate(BlockCount(len)).unwrap());
    for start in taken {
        zones.free(start, BlockCount(4));
    }
    let known_only = DiscardWish { also_unknown: false, ..wish(1) };
    assert_eq!(zones.undiscarded_blocks(), (BlockCount(12), BlockCount(83)));
    assert_eq!(zones.take_discard(known_only), Some((BlockIndex(10), BlockCount(12))));
    assert_eq!(zones.take_discard(known_only), None);
    assert_eq!(zones.free_blocks(), BlockCount(95), "it is nobody's");
    assert_eq!(zones.allocate(BlockCount(40)), None, "I-C8: but it is not given out either");
    zones.discarded(BlockIndex(10), BlockCount(12));
    assert_eq!(zones.allocate(BlockCount(40)), Some(BlockIndex(10)));
    zones.free(BlockIndex(10), BlockCount(40));
    // At most so much at once, whole units only, and never outside of what is free.
    let small = DiscardWish { blocks_max: 20, ..wish(8) };
    assert_eq!(zones.take_discard(small), Some((BlockIndex(16), BlockCount(16))));
    assert_eq!(zones.take_discard(small), Some((BlockIndex(32), BlockCount(16))));
    assert_eq!(zones.take_discard(DiscardWish { also_unknown: false, ..small }), None, "the rest are slivers");
    assert_eq!(zones.take_discard(wish(8)), Some((BlockIndex(56), BlockCount(24))));
    assert_eq!(zones.take_discard(DiscardWish { blocks_max: 7, ..wish(8) }), None, "not even one unit");
}

#[test]
#[should_panic(expected = "I-C8")]
fn i_c8_a_discard_that_nobody_started_is_our_own_bug() {
    zones().discarded(BlockIndex(10), BlockCount(4));
}

/// What a block is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Block {
    Free { is_discarded: bool },
    Used,
    Discarding,
}

/// Every block, and the extents and discards that are under way.
struct Model {
    blocks: BTreeMap<u64, Block>,
    used: BTreeMap<u64, u64>,
    discarding: BTreeMap<u64, u64>,
}

impl Model {
    fn new() -> Model {
        let all = ZONES.iter().flat_map(|(start, len)| *start..start + len);
        let blocks = all.map(|block| (block, Block::Free { is_discarded: false })).collect();
        Model { blocks, used: BTreeMap::new(), discarding: BTreeMap::new() }
    }

    fn is_free(&self, block: u64) -> bool {
        matches!(self.blocks.get(&block), Some(Block::Free { .. }))
    }

    fn fits(&self, start: u64, len: u64) -> bool {
        let one_zone = ZONES.iter().any(|(zone, blocks)| *zone <= start && start + len <= zone + blocks);
        one_zone && (start..start + len).all(|block| self.is_free(block))
    }

    fn set(&mut self, start: u64, len: u64, to: Block) {
        for block in start..start + len {
            *self.blocks.get_mut(&block).expect("inside a zone") = to;
        }
    }

    /// Whether whole units with an undiscarded block are free.
    fn has_discard(&self, granularity: u64) -> bool {
        (0..125 / granularity).map(|unit| unit * granularity).any(|start| {
            let undiscarded = |block| self.blocks.get(&block) == Some(&Block::Free { is_discarded: false });
            self.fits(start, granularity) && (start..start + granularity).any(undiscarded)
        })
    }
}

proptest! {
    /// No block is given out twice or while it is discarded, none is lost, and no space is refused that would fit.
    #[test]
    fn i_c8_no_extent_is_given_twice_and_none_is_lost(
        steps in prop::collection::vec((0_u8..8, 0_u64..1000), 1..300), granularity in 1_u64..9,
    ) {
        let (mut zones, mut model) = (zones(), Model::new());
        for (step, number) in steps {
            match step {
                0..=2 => {
                    let len = 1 + number % 12;
                    match zones.allocate(BlockCount(len)) {
                        Some(BlockIndex(start)) => {
                            prop_assert!(model.fits(start, len), "I-C8: {start}+{len} was not free");
                            model.set(start, len, Block::Used);
                            model.used.insert(start, len);
                        }
                        None => prop_assert!(!(10..125).any(|start| model.fits(start, len)), "{len} would have fitted"),
                    }
                }
                3 => {
                    let (start, len) = (number % 130, 1 + number / 130);
                    let marked = zones.mark_used(BlockIndex(start), BlockCount(len)).is_ok();
                    prop_assert_eq!(marked, model.fits(start, len), "marking {}+{}", start, len);
                    if marked {
                        model.set(start, len, Block::Used);
                        model.used.insert(start, len);
                    }
                }
                4 | 5 => {
                    let Some(start) = model.used.keys().nth(number as usize % model.used.len().max(1)).copied() else {
                        continue;
                    };
                    let len = model.used.remove(&start).unwrap();
                    zones.free(BlockIndex(start), BlockCount(len));
                    model.set(start, len, Block::Free { is_discarded: false });
                }
                6 => {
                    let blocks_max = granularity + number % 20;
                    match zones.take_discard(DiscardWish { blocks_max, granularity, also_unknown: true }) {
                        Some((BlockIndex(start), BlockCount(len))) => {
                            prop_assert!(model.fits(start, len), "I-C8: {start}+{len} is not free");
                            prop_assert!(start % granularity == 0 && len % granularity == 0 && len <= blocks_max);
                            model.set(start, len, Block::Discarding);
                            model.discarding.insert(start, len);
                        }
                        None => prop_assert!(!model.has_discard(granularity), "there is something to discard"),
                    }
                }
                _ => {
                    let count = model.discarding.len().max(1);
                    let Some(start) = model.discarding.keys().nth(number as usize % count).copied() else { continue };
                    let len = model.discarding.remove(&start).unwrap();
                    zones.discarded(BlockIndex(start), BlockCount(len));
                    model.set(start, len, Block::Free { is_discarded: true });
                }
            }
            let count = |wanted: fn(&Block) -> bool| model.blocks.values().filter(|block| wanted(block)).count() as u64;
            prop_assert_eq!(zones.free_blocks().0, count(|block| *block != Block::Used));
            prop_assert_eq!(zones.discarding_blocks().0, count(|block| *block == Block::Discarding));
            let (freed, unknown) = zones.undiscarded_blocks();
            let undiscarded = count(|block| *block == Block::Free { is_discarded: false });
            prop_assert_eq!(freed.0 + unknown.0, undiscarded);
        }
        let mut rebuilt = super::tests::zones();
        for (start, len) in &model.used {
            rebuilt.mark_used(BlockIndex(*start), BlockCount(*len)).unwrap();
        }
        for (start, len) in std::mem::take(&mut model.discarding) {
            zones.discarded(BlockIndex(start), BlockCount(len));
        }
        prop_assert_eq!(&rebuilt.free, &zones.free);
        prop_assert_eq!(&rebuilt.used, &zones.used);
        let free: BTreeSet<u64> = zones.free.iter().flat_map(|(start, len)| start..start + len).collect();
        let wanted = model.blocks.iter().filter(|(_, block)| **block != Block::Used).map(|(block, _)| *block);
        prop_assert_eq!(free, wanted.collect::<BTreeSet<u64>>());
    }
}
