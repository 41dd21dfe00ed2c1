//! Typed calls to shards, over a link.

use crate::api::StoreError;
use crate::device_record::DeviceRecord;
use crate::message::{
    Closing, ControlRequest, ControlResponse, DeviceLook, EngineRequest, EngineResponse, HomeRequest, HomeResponse,
    OpenShard, RequestBody, ResponseBody, ShardRequest, ShardResponse,
};
use futures::future::join_all;
use kiseki_types::ids::{DeviceId, LaneId, Locator, ShardId};
use kiseki_types::link::Link;
use std::collections::BTreeMap;
use std::rc::Rc;

/// The engine's way to every shard of the node.
#[derive(Clone)]
pub struct Calls {
    link: Rc<dyn Link<EngineRequest, EngineResponse>>,
    lane_count: u16,
    home_count: u16,
}

impl Calls {
    /// `lane_count` and `home_count` are fixed when the node is formatted.
    #[must_use]
    pub fn new(link: Rc<dyn Link<EngineRequest, EngineResponse>>, lane_count: u16, home_count: u16) -> Calls {
        Calls { link, lane_count, home_count }
    }

    /// Number of homes.
    #[must_use]
    pub fn home_count(&self) -> u16 {
        self.home_count
    }

    /// The home of a chunk.
    #[must_use]
    pub fn home_of(&self, locator: &Locator) -> ShardId {
        locator.home(self.home_count)
    }

    async fn call(&self, shard: ShardId, body: RequestBody) -> EngineResponse {
        let answer = self.link.call(shard.lane(self.lane_count), EngineRequest { shard, body }).await;
        answer.unwrap_or_else(|error| Err(StoreError::Unavailable { reason: error.to_string() }))
    }

    /// Asks the control shard.
    pub async fn control(&self, request: ControlRequest) -> Result<ControlResponse, StoreError> {
        match self.call(ShardId::CONTROL, RequestBody::Control(request)).await? {
            ResponseBody::Control(response) => Ok(response),
            _ => panic!("the control shard answers control requests"),
        }
    }

    /// Asks a home.
    pub async fn home(&self, shard: ShardId, request: HomeRequest) -> Result<HomeResponse, StoreError> {
        match self.call(shard, RequestBody::Home(request)).await? {
            ResponseBody::Home(response) => Ok(response),
            _ => panic!("a home answers home requests"),
        }
    }

    /// Asks a tenant's shard.
    pub async fn shard(&self, shard: ShardId, request: ShardRequest) -> Result<ShardResponse, StoreError> {
        match self.call(shard, RequestBody::Shard(Box::new(request))).await? {
            ResponseBody::Shard(response) => Ok(response),
            _ => panic!("a tenant's shard answers shard requests"),
        }
    }

    /// Has every core of the node forget what it remembers of the control shard. A core that does not answer is stopping
    /// and serves nobody.
    pub async fn forget_everywhere(&self) {
        let calls = (0..self.lane_count).map(|lane| {
            let request = EngineRequest { shard: ShardId::CONTROL, body: RequestBody::Forget };
            self.link.call(LaneId(lane), request)
        });
        join_all(calls).await;
    }

    /// Has every core of the node act on what is recorded of the devices. A core that does not answer is stopping; the
    /// next start reads the records.
    pub async fn tell_devices_everywhere(&self, version: u64, records: &[DeviceRecord]) {
        let calls = (0..self.lane_count).map(|lane| {
            let body = RequestBody::Devices { version, records: records.to_vec() };
            self.link.call(LaneId(lane), EngineRequest { shard: ShardId::CONTROL, body })
        });
        join_all(calls).await;
    }

    /// What every core knows of a device, each once. Errors: a core that does not answer.
    pub async fn look_at_device(&self, device: DeviceId, closing: Closing) -> Result<Vec<DeviceLook>, StoreError> {
        let calls = (0..self.lane_count).map(|lane| {
            let body = RequestBody::LookAtDevice(device, closing);
            self.link.call(LaneId(lane), EngineRequest { shard: ShardId::CONTROL, body })
        });
        let mut looks = BTreeMap::new();
        for answer in join_all(calls).await {
            let answer = answer.unwrap_or_else(|error| Err(StoreError::Unavailable { reason: error.to_string() }));
            match answer? {
                ResponseBody::Look(look) => looks.insert(look.core, look),
                _ => panic!("a core answers a look with what it knows"),
            };
        }
        Ok(looks.into_values().collect())
    }

    /// Has a tenant's shard opened where its lane is.
    pub async fn open(&self, shard: ShardId, open: OpenShard) -> Result<(), StoreError> {
        self.call(shard, RequestBody::Open(open)).await.map(|_| ())
    }
}
