//! Telling devices of freed extents: in the background, in runs of neighbors, at a bounded rate.
//!
//! An extent is free, and so may be discarded, only when its release is durable and its reads have ended (see
//! `release`). A run leaves the allocator for as long as its discard takes: discards and writes in flight are done in
//! any order, and the new bytes would be gone (I-C8). What is given out before its turn comes is not discarded at all.
//! A discard that failed may still be carried out, by a drive behind a network even long after: its run stays out of use
//! until the device is opened again, and no other discard follows it. Each device has rounds of its own, so a slow one
//! holds up no other.
//! Nothing of this needs to survive a crash: a block that was not discarded is still free, and after a start all free
//! space counts as not discarded and is passed over once.

use super::{Core, DeviceOnCore, add};
use crate::lane::LaneOnDevice;
use crate::space::{DeviceSpace, DiscardPolicy};
use crate::zones::DiscardWish;
use kiseki_types::BlockCount;
use kiseki_types::limits::{DEVICE_BLOCK_BYTES_MAX, ENVELOPE_LEN_BYTES_MAX, FRAGMENT_HEADER_BYTES};
use kiseki_types::runtime::RuntimeExt;
use std::rc::{Rc, Weak};
use std::time::Duration;

/// Between two rounds; neighbors that are freed within one become one run.
const ROUND_INTERVAL: Duration = Duration::from_secs(1);

/// Longest run of one discard: so much of a lane is out of use meanwhile, and for longer when it fails.
const RUN_LEN_BYTES_MAX: u64 = 64 << 20;

/// Most discards of a lane on a device in one round: many small ones cost a drive more than their bytes say.
const RUNS_PER_ROUND_MAX: usize = 64;

/// Blocks of the largest fragment.
fn fragment_blocks_max(block_len_bytes: u32) -> BlockCount {
    let payload = ENVELOPE_LEN_BYTES_MAX.next_multiple_of(DEVICE_BLOCK_BYTES_MAX);
    BlockCount::holding((FRAGMENT_HEADER_BYTES + payload) as u64, block_len_bytes)
}

impl DeviceOnCore {
    /// The device's space on this core's lanes.
    pub fn report_space(&self, refuses_clients: bool) -> DeviceSpace {
        let block = u64::from(self.layout.block_len_bytes());
        let mut space = DeviceSpace {
            pool: self.pool,
            fill: self.space.fill,
            total_bytes: 0,
            free_bytes: 0,
            longest_free_run_bytes: 0,
            free_runs: 0,
            usable_bytes: 0,
            refuses_clients,
            discard_queue_bytes: 0,
            discard_unknown_bytes: 0,
        };
        for lane in self.lanes.values() {
            let zones = lane.zones.borrow();
            let cut_up = zones.fragmentation(fragment_blocks_max(self.layout.block_len_bytes()));
            space.total_bytes += zones.total_blocks().0 * block;
            space.free_bytes += zones.free_blocks().0 * block;
            space.longest_free_run_bytes = space.longest_free_run_bytes.max(cut_up.longest.0 * block);
            space.free_runs += cut_up.runs;
            space.usable_bytes += cut_up.usable.0 * block;
            if let Some(policy) = self.discard_policy() {
                let (freed, unknown) = zones.undiscarded_blocks();
                space.discard_queue_bytes += freed.0 * block;
                space.discard_unknown_bytes += policy.unknown_after.map_or(0, |_| unknown.0 * block);
            }
        }
        space
    }

    /// How the device's free space is discarded, unless it can't be.
    fn discard_policy(&self) -> Option<DiscardPolicy> {
        let is_possible = !self.discard_failed.get() && self.device.discard_granularity().is_some();
        self.space.discard.filter(|_| is_possible && self.check().is_ok())
    }
}

impl Core {
    /// Begins to discard what has become free since the last round, as far as the rate allows, on every device whose last
    /// round has ended.
    fn start_round(self: &Rc<Core>) {
        for device in self.devices.all() {
            if device.discard_policy().is_none() || device.is_discarding.replace(true) {
                continue;
            }
            let core = self.clone();
            let round = async move {
                core.discard_on(&device).await;
                device.is_discarding.set(false);
            };
            self.ports.spawn("discard round", Box::pin(round));
        }
    }

    async fn discard_on(&self, device: &DeviceOnCore) {
        let Some(policy) = device.discard_policy() else { return };
        let block = u64::from(device.layout.block_len_bytes());
        let each_round = policy.bytes_per_second_max * ROUND_INTERVAL.as_secs() / block;
        let unit = device.device.discard_granularity().map_or(1, |unit| unit.0);
        let mut left = (device.discard_credit.get() + each_round).min(each_round.max(unit));
        let age = self.ports.now().since(device.opened);
        let also_unknown = policy.unknown_after.is_some_and(|delay| age >= delay);
        let first = device.discard_turn.replace(device.discard_turn.get().wrapping_add(1));
        let lanes = device.lanes.values().cycle().skip(first % device.lanes.len().max(1)).take(device.lanes.len());
        for lane in lanes {
            self.discard_in(device, lane, also_unknown, &mut left).await;
        }
        device.discard_credit.set(left);
    }

    async fn discard_in(&self, device: &DeviceOnCore, lane: &LaneOnDevice, also_unknown: bool, left: &mut u64) {
        let block = u64::from(device.layout.block_len_bytes());
        for _ in 0..RUNS_PER_ROUND_MAX {
            // I-D6: a device that failed meanwhile is told nothing more.
            let Some(granularity) = device.discard_policy().and_then(|_| device.device.discard_granularity()) else {
                return;
            };
            let wish = DiscardWish {
                blocks_max: (*left).min(RUN_LEN_BYTES_MAX.max(granularity.0 * block) / block),
                granularity: granularity.0.max(1),
                also_unknown,
            };
            let Some((start, len)) = lane.zones.borrow_mut().take_discard(wish) else { return };
            let result = device.device.discard(start, len).await;
            *left -= len.0;
            match result {
                Ok(()) => {
                    lane.discarded(start, len);
                    add(&self.counters.discards, 1);
                    add(&self.counters.discarded_bytes, len.0 * block);
                }
                Err(error) => {
                    add(&self.counters.discard_errors, 1);
                    device.discard_failed.set(true);
                    lane.discard_in_doubt();
                    tracing::warn!(
                        device = %device.id, name = %device.name, %error, len_bytes = len.0 * block,
                        "discard failed; until the device is opened again there are no more, and what this one was about stays unused"
                    );
                }
            }
        }
    }
}

/// Discards until nobody holds the store any more.
pub(super) async fn discard_forever(weak: Weak<Core>) {
    let Some(ports) = weak.upgrade().map(|core| core.ports.clone()) else { return };
    loop {
        ports.sleep(ROUND_INTERVAL).await;
        let Some(core) = weak.upgrade() else { return };
        core.start_round();
    }
}
