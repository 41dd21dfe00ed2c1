//! Completing an upload a second time: a client that lost the answer asks again, and must not be told that its object
//! does not exist.

use super::Call;
use super::multipart::etag_of;
use crate::checksum::Sums;
use kiseki_engine::api::{Condition, ObjectInfo};
use s3s::dto::CompletedPart;

/// The object that an earlier completion made of these very parts, if it is what the key names now.
///
/// The upload is gone, so its parts are compared by what is left of them: the ETag that they give together and their
/// number. An object with both has this content, whoever put it there. Opaque ETags say nothing of content, and a
/// condition was met or not the first time: neither is guessed at.
pub(super) async fn completed_before(
    call: &Call<'_>,
    bucket: &str,
    key: &str,
    named: &[CompletedPart],
    condition: &Condition,
) -> Option<(ObjectInfo, Option<Sums>)> {
    if *condition != Condition::None {
        return None;
    }
    let etags = named.iter().map(|part| part.e_tag.as_ref().map_or("", |etag| etag.value()));
    let etag = etag_of(etags)?;
    let info = call.shared.store.head(call.tenant(), bucket, key).await.ok()?;
    let same = info.etag == etag && info.part_lens_bytes.len() == named.len();
    let sums = Some(Sums::load(&info.attributes)).filter(|sums| sums.algorithm().is_some());
    same.then_some((info, sums))
}
