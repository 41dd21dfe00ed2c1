//! What lies on the device against what the journals (and, where they are at hand, the node's index tables) say.

use super::lanes::LaneVerdict;
use super::scan::{Found, FoundState};
use super::{FragmentState, Problem, ProblemKind, Verdict, VerifiedFragment};
use crate::image::Image;
use crate::index_rebuild::NodeRows;
use crate::layout::DeviceLayout;
use crate::superblock::Superblock;
use kiseki_types::LaneId;
use kiseki_types::fragment::StoredFragment;
use kiseki_types::limits::FRAGMENT_HEADER_BYTES;
use kiseki_types::{Generation, Locator};
use std::collections::{BTreeMap, BTreeSet};

/// Extents that hold a fragment by what journals and tables say.
struct UsedExtents {
    by_start: BTreeMap<u64, StoredFragment>,
}

impl UsedExtents {
    /// Gathers them; two that overlap are a problem, and the first counts.
    fn gather(
        superblock: &Superblock,
        lanes: &[LaneVerdict],
        known: Option<&NodeRows>,
        verdict: &mut Verdict,
    ) -> UsedExtents {
        let mut used = UsedExtents { by_start: BTreeMap::new() };
        for lane in lanes {
            for fragment in lane.history.live() {
                used.add(&superblock.layout, lane.lane, fragment, "its journal", verdict);
            }
        }
        for (lane, row) in known.into_iter().flat_map(|rows| rows.extents_of(superblock.device)) {
            // The journal alone decides about the blocks that its records touch.
            let (start, end) = (row.extent.start.0, row.extent.end().0);
            let touched = lanes.iter().any(|other| other.history.touching(start, end).is_some());
            if !touched {
                let source = format!("the index table of lane {}", lane.0);
                used.add(&superblock.layout, lane, row, &source, verdict);
            }
        }
        used
    }

    /// Takes an extent up that lane `owner` says it gave out.
    fn add(
        &mut self,
        layout: &DeviceLayout,
        owner: LaneId,
        fragment: &StoredFragment,
        source: &str,
        verdict: &mut Verdict,
    ) {
        let (extent, lane) = (fragment.extent, Some(owner));
        let in_own_zone = layout.zone_of(extent.start).is_some_and(|zone| {
            let (start, len) = layout.zone(zone);
            layout.lane_of_zone(zone) == owner && extent.end() <= start.plus(len)
        });
        if !in_own_zone {
            let text = format!("{source} names {extent}, which lies outside the lane's zones");
            verdict.problem(Problem::at(ProblemKind::FragmentOutside, lane, extent.start, text));
            return;
        }
        match self.overlapping(extent.start.0, extent.end().0) {
            Some(other) => {
                let text = format!("{source} names {extent}, which overlaps {}", other.extent);
                verdict.problem(Problem::at(ProblemKind::ExtentsOverlap, lane, extent.start, text));
            }
            None => drop(self.by_start.insert(extent.start.0, fragment.clone())),
        }
    }

    fn overlapping(&self, start: u64, end: u64) -> Option<&StoredFragment> {
        let before = self.by_start.range(..end).next_back().map(|(_, fragment)| fragment);
        before.filter(|fragment| fragment.extent.end().0 > start)
    }
}

fn lane_of(layout: &DeviceLayout, fragment: &StoredFragment) -> Option<LaneId> {
    layout.zone_of(fragment.extent.start).map(|zone| layout.lane_of_zone(zone))
}

/// What is known of the blocks of something found.
enum Standing {
    /// They are used as what was found.
    Used,
    /// They are used as something else, which is judged on its own.
    Contradicted,
    /// They are free.
    Free,
    /// Nothing speaks about them.
    Unspoken,
}

struct Judge<'a> {
    superblock: &'a Superblock,
    lanes: &'a [LaneVerdict],
    used: UsedExtents,
    /// Whether what is not used is free: the tables are at hand.
    is_complete: bool,
}

impl Judge<'_> {
    fn standing(&self, found: &Found) -> Standing {
        let (start, end) = (found.start.0, found.end().0);
        if self.used.by_start.get(&start).is_some_and(|fragment| found.is(fragment)) {
            return Standing::Used;
        }
        if self.used.overlapping(start, end).is_some() {
            return Standing::Contradicted;
        }
        let touched = self.lanes.iter().any(|lane| lane.history.touching(start, end).is_some());
        if touched || self.is_complete { Standing::Free } else { Standing::Unspoken }
    }

    fn lane(&self, found: &Found) -> Option<LaneId> {
        let layout = &self.superblock.layout;
        layout.zone_of(found.start).map(|zone| layout.lane_of_zone(zone))
    }
}

/// Fills in the verdict's fragments, scraps, doubles, and problems of fragments.
pub(super) fn judge(
    image: &Image,
    superblock: &Superblock,
    lanes: &[LaneVerdict],
    found: Vec<Found>,
    known: Option<&NodeRows>,
    verdict: &mut Verdict,
) {
    let used = UsedExtents::gather(superblock, lanes, known, verdict);
    let is_complete = known.is_some() && lanes.iter().all(|lane| lane.is_sound);
    let judge = Judge { superblock, lanes, used, is_complete };
    judge_used(image, &judge, &found, verdict);
    let intact: BTreeMap<u64, u64> = found
        .iter()
        .filter(|found| found.state == FoundState::Intact)
        .map(|found| (found.start.0, found.end().0))
        .collect();
    for found in found {
        let standing = judge.standing(&found);
        match (&found.state, standing) {
            (FoundState::Intact, standing) => {
                let state = match standing {
                    Standing::Used => FragmentState::Used,
                    Standing::Unspoken => FragmentState::Unspoken,
                    Standing::Free | Standing::Contradicted => FragmentState::Leftover,
                };
                let fragment = found.fragment(superblock.device).expect("an intact fragment has a header");
                verdict.fragments.push(VerifiedFragment { fragment, state });
            }
            // Judged with its extent; its payload may be good in parts.
            (FoundState::PayloadDamaged { .. }, Standing::Used) => {
                verdict.damaged.extend(found.fragment(superblock.device));
            }
            (_, Standing::Used) => {}
            (_, Standing::Free | Standing::Contradicted) => verdict.scraps += 1,
            (_, Standing::Unspoken) => judge_unspoken(&judge, &found, &intact, verdict),
        }
    }
    find_doubles(superblock, verdict);
}

/// Every extent that is used holds its fragment, intact.
fn judge_used(image: &Image, judge: &Judge<'_>, found: &[Found], verdict: &mut Verdict) {
    let layout = &judge.superblock.layout;
    for fragment in judge.used.by_start.values() {
        let lane = lane_of(layout, fragment);
        let at = found.binary_search_by_key(&fragment.extent.start, |other| other.start);
        let key = &fragment.meta.key;
        let what = format!("fragment {} of {} generation {}", key.index, key.locator, key.generation);
        let mut problem =
            |kind, text| verdict.problem(Problem::at(kind, lane, fragment.extent.start, format!("{what} {text}")));
        match at.ok().map(|at| &found[at]) {
            None => {
                let offset = fragment.extent.start.0 * u64::from(layout.block_len_bytes());
                let there = match image.read(offset, FRAGMENT_HEADER_BYTES) {
                    Err(error) => format!("can't be read: {error}"),
                    Ok(bytes) if bytes.iter().all(|byte| *byte == 0) => {
                        "should lie here; there are only zeros".to_owned()
                    }
                    Ok(_) => "should lie here; there are other bytes".to_owned(),
                };
                problem(ProblemKind::FragmentMissing, there);
            }
            Some(found) if found.state == FoundState::HeaderDamaged => {
                problem(ProblemKind::FragmentHeader, "should lie here; the header there is damaged".to_owned());
            }
            Some(found) if !found.is(fragment) => {
                let other = found.meta.as_ref().map(|meta| meta.key);
                let other = other.map(|key| format!("{} of {} generation {}", key.index, key.locator, key.generation));
                let text = format!("should lie here; fragment {} does", other.unwrap_or_default());
                problem(ProblemKind::FragmentOther, text);
            }
            Some(found) => match found.state {
                FoundState::PayloadDamaged { bad, first } => {
                    problem(ProblemKind::FragmentPayload, format!("has {bad} damaged pieces, the first is {first}"));
                }
                FoundState::LeavesZone => {
                    problem(ProblemKind::FragmentOutside, "leaves its zone".to_owned());
                }
                FoundState::CutOff => {
                    problem(ProblemKind::FragmentPayload, "is cut off by the end of the device".to_owned());
                }
                FoundState::Intact | FoundState::HeaderDamaged => {}
            },
        }
    }
}

/// Something damaged where nothing says what the blocks are: what newer fragments overwrote is a scrap, the rest may be
/// one that is used.
fn judge_unspoken(judge: &Judge<'_>, found: &Found, intact: &BTreeMap<u64, u64>, verdict: &mut Verdict) {
    let overwritten = intact.range(..found.end().0).next_back().is_some_and(|(_, end)| *end > found.start.0);
    if overwritten {
        verdict.scraps += 1;
        return;
    }
    let doubt = "; whether it is still used only the node's index knows (--dir)";
    let what = found.meta.as_ref().map(|meta| {
        let key = &meta.key;
        format!("fragment {} of {} generation {}", key.index, key.locator, key.generation)
    });
    let what = what.unwrap_or_else(|| "a fragment".to_owned());
    let (kind, text) = match found.state {
        FoundState::HeaderDamaged => (ProblemKind::FragmentHeader, "has a damaged header".to_owned()),
        FoundState::PayloadDamaged { bad, first } => {
            (ProblemKind::FragmentPayload, format!("has {bad} damaged pieces, the first is {first}"))
        }
        FoundState::LeavesZone => (ProblemKind::FragmentOutside, "leaves its zone".to_owned()),
        FoundState::CutOff => (ProblemKind::FragmentPayload, "is cut off by the end of the device".to_owned()),
        FoundState::Intact => return,
    };
    if matches!(found.state, FoundState::PayloadDamaged { .. }) {
        verdict.damaged.extend(found.fragment(judge.superblock.device));
    }
    verdict.problem(Problem::at(kind, judge.lane(found), found.start, format!("{what} {text}{doubt}")));
}

/// I-D4: a device holds one fragment of a stripe. Two that are known to be used are a problem; a leftover is none.
fn find_doubles(superblock: &Superblock, verdict: &mut Verdict) {
    let counted = |found: &&VerifiedFragment| found.state != FragmentState::Leftover;
    let mut stripes: BTreeMap<(Locator, Generation), (u64, u64)> = BTreeMap::new();
    let mut seen: BTreeSet<(Locator, Generation)> = BTreeSet::new();
    for found in verdict.fragments.iter().filter(counted) {
        let key = &found.fragment.meta.key;
        if !seen.insert((key.locator, key.generation)) {
            stripes.insert((key.locator, key.generation), (0, 0));
        }
    }
    drop(seen);
    let mut problems = Vec::new();
    for found in verdict.fragments.iter().filter(counted) {
        let key = &found.fragment.meta.key;
        let Some((all, used)) = stripes.get_mut(&(key.locator, key.generation)) else { continue };
        *all += 1;
        *used += u64::from(found.state == FragmentState::Used);
        if found.state == FragmentState::Used && *used == 2 {
            let text = format!(
                "I-D4: fragment {} of {} generation {} lies beside another one of its stripe, and both are used",
                key.index, key.locator, key.generation
            );
            let lane = lane_of(&superblock.layout, &found.fragment);
            problems.push(Problem::at(ProblemKind::SecondOfStripe, lane, found.fragment.extent.start, text));
        }
    }
    verdict.doubles = stripes.values().filter(|(_, used)| *used < 2).map(|(all, _)| all - 1).sum();
    verdict.problems.append(&mut problems);
}
