//! Conditions on reads and on copy sources, and conditions on writes in the engine's words.

use crate::errors::refuse;
use http::{HeaderMap, HeaderValue};
use kiseki_engine::api::{Condition, ObjectInfo};
use s3s::dto::{ETagCondition, Timestamp};
use s3s::{S3Error, S3ErrorCode, S3Result};

/// The four conditions of a read, as the request states them.
#[derive(Default)]
pub(crate) struct ReadConditions {
    pub(crate) if_match: Option<ETagCondition>,
    pub(crate) if_none_match: Option<ETagCondition>,
    pub(crate) if_modified_since: Option<Timestamp>,
    pub(crate) if_unmodified_since: Option<Timestamp>,
}

/// What conditions come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Holds,
    NotModified,
    Failed,
}

impl ReadConditions {
    /// Decides in the order of RFC 9110, 13.2.2: an ETag condition overrules the date condition of its kind.
    pub(crate) fn decide(&self, info: &ObjectInfo) -> Verdict {
        let modified_unix_s = (info.modified_unix_ms / 1000) as i64;
        if let Some(condition) = &self.if_match {
            if !matches(condition, &info.etag) {
                return Verdict::Failed;
            }
        } else if let Some(since) = &self.if_unmodified_since
            && modified_unix_s > unix_s(since)
        {
            return Verdict::Failed;
        }
        if let Some(condition) = &self.if_none_match {
            if matches(condition, &info.etag) {
                return Verdict::NotModified;
            }
        } else if let Some(since) = &self.if_modified_since
            && modified_unix_s <= unix_s(since)
        {
            return Verdict::NotModified;
        }
        Verdict::Holds
    }

    /// For GET and HEAD: 412 or 304.
    pub(crate) fn check_read(&self, info: &ObjectInfo) -> S3Result<()> {
        match self.decide(info) {
            Verdict::Holds => Ok(()),
            Verdict::Failed => Err(precondition_failed()),
            Verdict::NotModified => Err(not_modified(info)),
        }
    }

    /// For the source of a copy: 412 either way.
    pub(crate) fn check_copy(&self, info: &ObjectInfo) -> S3Result<()> {
        match self.decide(info) {
            Verdict::Holds => Ok(()),
            Verdict::Failed | Verdict::NotModified => Err(precondition_failed()),
        }
    }
}

/// The condition of a write, decided in the shard.
pub(crate) fn of_write(if_match: Option<&ETagCondition>, if_none_match: Option<&ETagCondition>) -> S3Result<Condition> {
    match (if_match, if_none_match) {
        (None, None) => Ok(Condition::None),
        (Some(_), Some(_)) => Err(refuse(
            S3ErrorCode::NotImplemented,
            "If-Match and If-None-Match together on a write are not implemented.",
        )),
        (None, Some(ETagCondition::Any)) => Ok(Condition::IfAbsent),
        (None, Some(ETagCondition::ETag(etag))) => Ok(Condition::IfNoneMatch(etag.value().to_owned())),
        (Some(condition), None) => Ok(of_delete(Some(condition))),
    }
}

/// The condition of a delete.
pub(crate) fn of_delete(if_match: Option<&ETagCondition>) -> Condition {
    match if_match {
        None => Condition::None,
        Some(ETagCondition::Any) => Condition::IfMatch("*".to_owned()),
        Some(ETagCondition::ETag(etag)) => Condition::IfMatch(etag.value().to_owned()),
    }
}

fn matches(condition: &ETagCondition, etag: &str) -> bool {
    match condition {
        ETagCondition::Any => true,
        // A list of quoted ETags arrives as one value with the inner quotes in it.
        ETagCondition::ETag(wanted) => wanted.value().split('"').any(|wanted| wanted == etag),
    }
}

fn unix_s(timestamp: &Timestamp) -> i64 {
    time::OffsetDateTime::from(timestamp.clone()).unix_timestamp()
}

fn precondition_failed() -> S3Error {
    refuse(S3ErrorCode::PreconditionFailed, "At least one of the pre-conditions you specified did not hold")
}

fn not_modified(info: &ObjectInfo) -> S3Error {
    let mut error = refuse(S3ErrorCode::NotModified, "Not Modified");
    let mut headers = HeaderMap::new();
    if let Ok(value) = HeaderValue::try_from(format!("\"{}\"", info.etag)) {
        headers.insert(http::header::ETAG, value);
    }
    let mut text = Vec::new();
    if crate::attributes::timestamp(info.modified_unix_ms)
        .format(s3s::dto::TimestampFormat::HttpDate, &mut text)
        .is_ok()
        && let Ok(value) = HeaderValue::from_bytes(&text)
    {
        headers.insert(http::header::LAST_MODIFIED, value);
    }
    error.set_headers(headers);
    error
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attributes::timestamp;

    fn info() -> ObjectInfo {
        ObjectInfo {
            key: "k".to_owned(),
            len_bytes: 1,
            modified_unix_ms: 10_500,
            etag: "abc".to_owned(),
            attributes: Default::default(),
            part_lens_bytes: vec![],
        }
    }

    fn etag(text: &str) -> Option<ETagCondition> {
        Some(text.parse().unwrap())
    }

    #[test]
    fn etag_conditions_overrule_dates() {
        let (before, same, after) = (Some(timestamp(9_000)), Some(timestamp(10_000)), Some(timestamp(11_000)));
        let cases = [
            ("match", etag("\"abc\""), None, None, None, Verdict::Holds),
            ("any", etag("*"), None, None, None, Verdict::Holds),
            ("list", etag("\"x\", \"abc\""), None, None, None, Verdict::Holds),
            ("no match", etag("\"x\""), None, None, None, Verdict::Failed),
            ("match beats date", etag("abc"), None, None, before.clone(), Verdict::Holds),
            ("unmodified", None, None, None, same.clone(), Verdict::Holds),
            ("modified", None, None, None, before.clone(), Verdict::Failed),
            ("none match hit", None, etag("abc"), None, None, Verdict::NotModified),
            ("none match miss", None, etag("x"), None, None, Verdict::Holds),
            ("none match miss beats date", None, etag("x"), after.clone(), None, Verdict::Holds),
            ("not since", None, None, same, None, Verdict::NotModified),
            ("since", None, None, before, None, Verdict::Holds),
            ("failed beats not modified", etag("x"), etag("abc"), None, None, Verdict::Failed),
        ];
        for (what, if_match, if_none_match, if_modified_since, if_unmodified_since, verdict) in cases {
            let conditions = ReadConditions { if_match, if_none_match, if_modified_since, if_unmodified_since };
            assert_eq!(conditions.decide(&info()), verdict, "{what}");
        }
    }

    #[test]
    fn write_conditions_become_the_engines() {
        assert_eq!(of_write(None, None).unwrap(), Condition::None);
        assert_eq!(of_write(None, etag("*").as_ref()).unwrap(), Condition::IfAbsent);
        assert_eq!(of_write(None, etag("a").as_ref()).unwrap(), Condition::IfNoneMatch("a".to_owned()));
        assert_eq!(of_write(etag("\"a\"").as_ref(), None).unwrap(), Condition::IfMatch("a".to_owned()));
        assert_eq!(of_write(etag("*").as_ref(), None).unwrap(), Condition::IfMatch("*".to_owned()));
        assert!(of_write(etag("*").as_ref(), etag("*").as_ref()).is_err());
    }
}
