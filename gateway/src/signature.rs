//! Signatures (version 4) of requests whose payload is empty or not signed, checked with the functions that `s3s` checks
//! by, and with signing keys that are kept: deriving one takes four of the five HMACs of a check.
//!
//! Nothing is refused here. What does not hold here goes to `s3s`, which looks at everything again and says what is wrong.

use http::{HeaderMap, HeaderValue};
use kiseki_engine::api::AccessKey;
use s3s_sigv4::{
    AmzDate, AuthorizationV4, EMPTY_STRING_SHA256_HASH, Payload, calculate_signature_with_key,
    create_canonical_request, create_string_to_sign, derive_signing_key,
};
use std::cell::RefCell;
use std::collections::HashMap;
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

/// How far a request's time may be from ours, as `s3s` has it and AWS.
const SKEW_MS_MAX: u64 = 900_000;

/// Most signing keys kept by a core; one more forgets them all.
const KEYS_KEPT_MAX: usize = 1024;

const SERVICE: &str = "s3";

/// What a request says about its signature.
pub(crate) struct SignedHead<'a> {
    authorization: AuthorizationV4<'a>,
    date: AmzDate,
    payload: Payload<'a>,
}

impl<'a> SignedHead<'a> {
    /// From the three headers; `None` when they are not what a request of S3 without content has.
    pub(crate) fn of(
        authorization: &'a HeaderValue,
        date: &'a HeaderValue,
        content_sha256: &'a HeaderValue,
    ) -> Option<SignedHead<'a>> {
        let authorization = AuthorizationV4::parse(authorization.to_str().ok()?).ok()?;
        let date = AmzDate::parse(date.to_str().ok()?).ok()?;
        let payload = match content_sha256.to_str().ok()? {
            "UNSIGNED-PAYLOAD" => Payload::Unsigned,
            EMPTY_STRING_SHA256_HASH => Payload::SingleChunk(EMPTY_STRING_SHA256_HASH),
            _ => return None,
        };
        let is_as_usual = authorization.algorithm == "AWS4-HMAC-SHA256"
            && authorization.credential.aws_service == SERVICE
            && authorization.credential.date == date.fmt_date().as_str();
        is_as_usual.then_some(SignedHead { authorization, date, payload })
    }

    /// Who claims to have signed.
    pub(crate) fn access_key_id(&self) -> &'a str {
        self.authorization.credential.access_key_id
    }

    /// Whether it was signed about now.
    pub(crate) fn is_recent(&self, unix_time_ms: u64) -> bool {
        let signed = self.date.to_time().and_then(|time| u64::try_from(time.as_millisecond()).ok());
        signed.is_some_and(|signed| signed.abs_diff(unix_time_ms) <= SKEW_MS_MAX)
    }

    /// Whether the header of that name (in lower case) is signed.
    pub(crate) fn covers(&self, name: &str) -> bool {
        self.authorization.signed_headers.contains(&name)
    }

    /// Whether the signature is that of `key` over this request. `path` must be as it is after decoding, and `query` too.
    pub(crate) fn is_by(
        &self,
        key: &[u8; 32],
        method: &str,
        path: &str,
        query: &[(&str, &str)],
        headers: &HeaderMap,
    ) -> bool {
        let mut signed = Vec::with_capacity(self.authorization.signed_headers.len() + 2);
        for name in &self.authorization.signed_headers {
            let before = signed.len();
            for value in headers.get_all(*name) {
                let Ok(value) = value.to_str() else { return false };
                signed.push((*name, value));
            }
            if signed.len() == before {
                return false;
            }
        }
        let canonical = create_canonical_request(method, path, query, signed, self.payload);
        let region = self.authorization.credential.aws_region;
        let to_sign = create_string_to_sign(&canonical, &self.date, region, SERVICE);
        let computed = calculate_signature_with_key(&to_sign, key);
        let mut stated = [0; 32];
        hex::decode_to_slice(self.authorization.signature, &mut stated).is_ok() && bool::from(stated.ct_eq(&computed))
    }
}

/// A derived key and what it was derived from.
struct Kept {
    day: String,
    region: String,
    secret: Zeroizing<String>,
    key: Zeroizing<[u8; 32]>,
}

/// The signing keys of a core's last signers: one for each access key, of the day and region that it signed for last.
#[derive(Default)]
pub(crate) struct SigningKeys {
    by_access_key: RefCell<HashMap<String, Kept>>,
}

impl SigningKeys {
    /// The key that `head` must be signed with, given the secret of its access key as the store has it now: a key of
    /// another secret is never used.
    pub(crate) fn key_for(&self, head: &SignedHead<'_>, access_key: &AccessKey) -> Zeroizing<[u8; 32]> {
        let (day, region) = (head.authorization.credential.date, head.authorization.credential.aws_region);
        let mut kept = self.by_access_key.borrow_mut();
        if let Some(kept) = kept.get(head.access_key_id())
            && kept.day == day
            && kept.region == region
            && *kept.secret == *access_key.secret
        {
            return kept.key.clone();
        }
        let key = Zeroizing::new(derive_signing_key(access_key.secret.as_bytes(), &head.date, region, SERVICE));
        if kept.len() >= KEYS_KEPT_MAX && !kept.contains_key(head.access_key_id()) {
            kept.clear();
        }
        let (day, region, secret) = (day.to_owned(), region.to_owned(), access_key.secret.clone());
        kept.insert(head.access_key_id().to_owned(), Kept { day, region, secret, key: key.clone() });
        key
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kiseki_types::TenantId;

    const DAY: &str = "20130524";

    fn access_key(secret: &str) -> AccessKey {
        AccessKey { tenant: TenantId(1), secret: Zeroizing::new(secret.to_owned()) }
    }

    fn header(text: &str) -> HeaderValue {
        HeaderValue::from_str(text).unwrap()
    }

    fn authorization(id: &str, region: &str, signature: &str) -> HeaderValue {
        header(&format!(
            "AWS4-HMAC-SHA256 Credential={id}/{DAY}/{region}/s3/aws4_request,SignedHeaders=host;range;x-amz-content-sha256;\
             x-amz-date,Signature={signature}"
        ))
    }

    /// "GET Object" of AWS's "Signature Calculations for the Authorization Header: Transferring Payload in a Single
    /// Chunk", key and all.
    const SECRET: &str = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY";
    const SIGNATURE: &str = "f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41";

    fn example() -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert("host", header("examplebucket.s3.amazonaws.com"));
        headers.insert("range", header("bytes=0-9"));
        headers.insert("x-amz-content-sha256", header(EMPTY_STRING_SHA256_HASH));
        headers.insert("x-amz-date", header("20130524T000000Z"));
        headers
    }

    fn is_signed(headers: &HeaderMap, signature: &str, secret: &str, path: &str) -> bool {
        let authorization = authorization("AKIAIOSFODNN7EXAMPLE", "us-east-1", signature);
        let head = SignedHead::of(&authorization, &headers["x-amz-date"], &headers["x-amz-content-sha256"]).unwrap();
        let keys = SigningKeys::default();
        let key = keys.key_for(&head, &access_key(secret));
        head.is_by(&key, "GET", path, &[], headers)
    }

    #[test]
    fn awss_own_example_is_signed_and_whatever_differs_is_not() {
        let headers = example();
        assert!(is_signed(&headers, SIGNATURE, SECRET, "/test.txt"));
        assert!(!is_signed(&headers, SIGNATURE, "another", "/test.txt"));
        assert!(!is_signed(&headers, SIGNATURE, SECRET, "/test.txs"));
        assert!(!is_signed(&headers, &SIGNATURE.replace('f', "e"), SECRET, "/test.txt"));
        for name in ["host", "range"] {
            let mut changed = example();
            changed.insert(name, header("x"));
            assert!(!is_signed(&changed, SIGNATURE, SECRET, "/test.txt"), "{name} is signed");
            changed.remove(name);
            assert!(!is_signed(&changed, SIGNATURE, SECRET, "/test.txt"), "{name} is missing");
        }
    }

    #[test]
    fn a_signature_holds_for_a_quarter_of_an_hour_around_its_time() {
        let headers = example();
        let authorization = authorization("A", "us-east-1", SIGNATURE);
        let head = SignedHead::of(&authorization, &headers["x-amz-date"], &headers["x-amz-content-sha256"]).unwrap();
        let signed_ms = 1_369_353_600_000;
        for (now_ms, is_recent) in [
            (signed_ms, true),
            (signed_ms + 900_000, true),
            (signed_ms + 900_001, false),
            (signed_ms - 900_000, true),
            (signed_ms - 900_001, false),
        ] {
            assert_eq!(head.is_recent(now_ms), is_recent, "{now_ms}");
        }
    }

    #[test]
    fn a_kept_key_is_never_that_of_another_secret_day_or_region() {
        let headers = example();
        let keys = SigningKeys::default();
        let key = |region: &str, secret: &str| {
            let authorization = authorization("A", region, SIGNATURE);
            let head =
                SignedHead::of(&authorization, &headers["x-amz-date"], &headers["x-amz-content-sha256"]).unwrap();
            *keys.key_for(&head, &access_key(secret))
        };
        let first = key("us-east-1", "one");
        assert_eq!(key("us-east-1", "one"), first);
        assert_ne!(key("us-east-1", "two"), first, "the secret was changed");
        assert_ne!(key("eu-west-1", "one"), first);
        assert_eq!(key("us-east-1", "one"), first);
        assert_eq!(keys.by_access_key.borrow().len(), 1);
    }

    #[test]
    fn a_key_that_is_replaced_forgets_no_other_and_one_too_many_forgets_all() {
        let headers = example();
        let keys = SigningKeys::default();
        let ask = |id: &str, secret: &str| {
            let authorization = authorization(id, "us-east-1", SIGNATURE);
            let head =
                SignedHead::of(&authorization, &headers["x-amz-date"], &headers["x-amz-content-sha256"]).unwrap();
            keys.key_for(&head, &access_key(secret));
            keys.by_access_key.borrow().len()
        };
        for number in 1..=KEYS_KEPT_MAX {
            assert_eq!(ask(&format!("AK{number}"), "one"), number);
        }
        assert_eq!(ask("AK7", "two"), KEYS_KEPT_MAX);
        assert_eq!(ask("another", "one"), 1);
    }

    #[test]
    fn other_payloads_services_days_and_algorithms_are_not_looked_at_here() {
        let headers = example();
        let date = &headers["x-amz-date"];
        let empty = &headers["x-amz-content-sha256"];
        let good = authorization("A", "us-east-1", SIGNATURE);
        let text = good.to_str().unwrap();
        assert!(SignedHead::of(&good, date, &header("UNSIGNED-PAYLOAD")).is_some());
        for (authorization, date, payload) in [
            (good.clone(), date.clone(), header("STREAMING-AWS4-HMAC-SHA256-PAYLOAD")),
            (good.clone(), date.clone(), header(&"0".repeat(64))),
            (good.clone(), header("20130525T000000Z"), empty.clone()),
            (header(&text.replace("/s3/", "/sts/")), date.clone(), empty.clone()),
            (header(&text.replace("AWS4-HMAC", "AWS5-HMAC")), date.clone(), empty.clone()),
            (header("AWS4-HMAC-SHA256"), date.clone(), empty.clone()),
        ] {
            assert!(
                SignedHead::of(&authorization, &date, &payload).is_none(),
                "{authorization:?} {date:?} {payload:?}"
            );
        }
    }
}
