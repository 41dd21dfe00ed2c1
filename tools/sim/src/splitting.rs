//! An operator among the clients of one node: now and then a shard is split at a key that they use, and nothing may be seen of it.

use crate::client::Client;
use kiseki_engine::api::StoreError;
use kiseki_engine::message::{ControlRequest, ControlResponse};
use kiseki_engine::split_message::ShardMapRequest;

impl Client {
    /// Splits the shard that holds a key, at that key. It goes on by itself, over power cuts too.
    pub async fn split(&self) {
        let Some(calls) = self.core.calls.clone() else { return };
        let place = self.draw_place();
        let request = ControlRequest::Bucket { tenant: self.tenant, name: place.bucket().to_owned() };
        let shard = match calls.control(request).await {
            Ok(ControlResponse::Bucket(bucket)) => bucket.ranges.holder(place.key(), bucket.shard).shard,
            Ok(_) => return self.violation(format!("{place}: the control shard answers something else")),
            Err(error) => return self.violation(format!("{place}: the bucket is not there: {error}")),
        };
        let (bucket, at) = (Some(place.bucket().to_owned()), Some(place.key().to_owned()));
        match calls.control(ControlRequest::Shards(ShardMapRequest::Split { shard, bucket, at })).await {
            // One at a time; and the keys may have moved meanwhile.
            Ok(_) | Err(StoreError::Exists { .. } | StoreError::Invalid { .. }) => {}
            Err(error) => self.violation(format!("{place}: its shard can't be split: {error}")),
        }
    }
}
