//! How much room a node's metadata directories have for content that lies beside names.

use crate::inline::InlineSettings;
use kiseki_types::ids::LaneId;
use kiseki_types::meta::MetaSpace;

/// Bytes on the medium for a byte of content, at most: rows lie in pages of a power of two, which are half full in the worst case.
const BYTES_PER_CONTENT_BYTE: u64 = 2;

/// What a node's metadata directories have room for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MetadataBudget {
    /// How full the fullest directory is.
    pub fill_percent: u8,
    /// Beyond this there is less room from one byte to the next.
    pub soft_percent: u8,
    /// Beyond this there is none.
    pub hard_percent: u8,
    /// Bytes of content that all shards together may still store inline: those of the directory that has the least room.
    pub content_bytes: u64,
}

impl MetadataBudget {
    /// What directories leave within the limits; `None` where nothing is known of any.
    #[must_use]
    pub fn of(spaces: &[MetaSpace], settings: &InlineSettings) -> Option<MetadataBudget> {
        let (soft_percent, hard_percent) = (settings.metadata_soft_percent_max, settings.metadata_fill_percent_max);
        let of_each = |space| content_room(space, soft_percent, hard_percent);
        let content_bytes = MetaSpace::rooms_of_each(spaces, of_each).min()?;
        let fill_percent = spaces.iter().map(|space| space.fill_percent()).max()?;
        Some(MetadataBudget { fill_percent, soft_percent, hard_percent, content_bytes })
    }

    /// Whether some directory is over its hard limit (I-SF2).
    #[must_use]
    pub fn is_over_hard_limit(&self) -> bool {
        self.fill_percent > self.hard_percent
    }
}

/// I-SF2: what is left to the hard limit; beyond the soft one, of that as much as is left of the way between the two.
fn content_room(space: MetaSpace, soft_percent: u8, hard_percent: u8) -> u64 {
    let room = u128::from(space.room_to(hard_percent));
    let between = u128::from(space.total_bytes) * u128::from(hard_percent.saturating_sub(soft_percent)) / 100;
    let room = if room < between { room * room / between } else { room };
    u64::try_from(room).unwrap_or(u64::MAX) / BYTES_PER_CONTENT_BYTE
}

/// What a core or a node says of its metadata directories.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MetadataRoom {
    /// The first lane of the core that answers: a core may be asked through each of its lanes.
    pub core: LaneId,
    /// Replicas of tenants' shards, which share the room.
    pub replicas: u64,
    /// What there is; `None` while it has not been measured.
    pub budget: Option<MetadataBudget>,
}

impl MetadataRoom {
    /// What two cores of a node say together: each has replicas of its own, and the directories are the same.
    #[must_use]
    pub fn and(self, other: MetadataRoom) -> MetadataRoom {
        let budgets = self.budget.into_iter().chain(other.budget);
        MetadataRoom {
            core: self.core,
            replicas: self.replicas + other.replicas,
            budget: budgets.min_by_key(|budget| budget.content_bytes),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    fn settings() -> InlineSettings {
        InlineSettings { metadata_soft_percent_max: 50, metadata_fill_percent_max: 75, ..InlineSettings::default() }
    }

    fn space(used: u64) -> MetaSpace {
        MetaSpace { used_bytes: used * GIB, total_bytes: 100 * GIB, file_system: 1 }
    }

    #[test]
    fn i_sf2_room_falls_with_use_faster_beyond_the_soft_limit_and_ends_at_the_hard_one() {
        let room = |used| MetadataBudget::of(&[space(used)], &settings()).unwrap().content_bytes;
        assert_eq!((room(0), room(25), room(50)), (75 * GIB / 2, 25 * GIB, 25 * GIB / 2));
        assert_eq!(room(60), 15 * GIB * 15 / 25 / 2, "less than what is left");
        assert_eq!((room(75), room(90), room(100)), (0, 0, 0));
        for used in 0..100 {
            assert!(room(used + 1) <= room(used), "{used}");
        }
        let is_over = |used| MetadataBudget::of(&[space(used)], &settings()).unwrap().is_over_hard_limit();
        assert!(!is_over(75) && is_over(76));
        let same = InlineSettings { metadata_soft_percent_max: 75, ..settings() };
        assert_eq!(MetadataBudget::of(&[space(70)], &same).unwrap().content_bytes, 5 * GIB / 2, "no soft limit");
    }

    #[test]
    fn the_directory_with_the_least_room_counts_for_all_cores() {
        let small = MetaSpace { used_bytes: 0, total_bytes: GIB, file_system: 2 };
        let alone = MetadataBudget::of(&[space(20)], &settings()).unwrap();
        let shared = MetadataBudget::of(&[space(20), space(20)], &settings()).unwrap();
        assert_eq!(shared.content_bytes, alone.content_bytes / 2, "both lie on one file system");
        let budget = MetadataBudget::of(&[space(60), small], &settings());
        let known = budget.unwrap();
        assert_eq!((known.fill_percent, known.content_bytes), (60, GIB * 75 / 100 / 2));
        assert_eq!(MetadataBudget::of(&[], &settings()), None);
        let room = |core, replicas, budget| MetadataRoom { core: LaneId(core), replicas, budget };
        let both = room(0, 3, None).and(room(4, 5, budget));
        assert_eq!(both, room(0, 8, budget));
    }
}
