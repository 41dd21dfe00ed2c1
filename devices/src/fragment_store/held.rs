//! What a device holds, by this core's lanes: for whoever empties it.

use super::{Core, unknown};
use crate::index::{TABLE_EXTENTS, damaged_row, decode_row, extent_row_key};
use crate::lane::LaneOnDevice;
use kiseki_types::fragment::{DeviceUse, FragmentError, StoredFragment};
use kiseki_types::table::{Direction, Scan, prefix_end};
use kiseki_types::{BlockIndex, DeviceId};
use std::ops::Bound;
use std::rc::Rc;

impl Core {
    /// From the zones, so what is being written and what waits for its reads counts too. `None` when the lanes are not
    /// open on the device, so that nobody knows.
    pub fn use_of(&self, device: DeviceId) -> Option<DeviceUse> {
        let device = self.devices.get(device)?;
        let is_whole = self.indexes.keys().all(|lane| device.lanes.contains_key(lane));
        let block = u64::from(device.layout.block_len_bytes());
        is_whole.then(|| DeviceUse {
            fragments: device.lanes.values().map(LaneOnDevice::used_count).sum(),
            bytes: device.lanes.values().map(LaneOnDevice::used_blocks).sum::<u64>() * block,
        })
    }

    /// Fragments with a row behind `after`, in the order of their places.
    pub async fn held_on(
        self: Rc<Core>,
        device: DeviceId,
        after: Option<BlockIndex>,
        limit: usize,
    ) -> Result<Vec<StoredFragment>, FragmentError> {
        let from = match after {
            None => Bound::Included(device.0.to_vec()),
            Some(start) => Bound::Excluded(extent_row_key(device, start)),
        };
        let mut held = Vec::new();
        for index in self.indexes.values() {
            let scan = Scan {
                file: 0,
                table: TABLE_EXTENTS,
                from: from.clone(),
                to: prefix_end(&device.0),
                limit,
                direction: Direction::Forward,
            };
            for (_, value) in index.table().scan(scan).await.map_err(unknown)? {
                let row = decode_row(device, &value).map_err(|error| unknown(damaged_row(&error.to_string())))?;
                held.push(row);
            }
        }
        held.sort_unstable_by_key(|fragment| fragment.extent.start);
        held.truncate(limit);
        Ok(held)
    }
}
