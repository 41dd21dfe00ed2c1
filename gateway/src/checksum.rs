//! S3's checksums: which one a request brings, computing it while the body streams, combining those of parts.

use crate::errors::{custom, refuse};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use crc_fast::CrcAlgorithm;
use http::{HeaderMap, StatusCode};
use kiseki_engine::api::Attributes;
use s3s::crypto::{Checksum as _, Crc32, Crc32c, Crc64Nvme, Md5, Sha1, Sha256, Sha512, XxHash3, XxHash64, XxHash128};
use s3s::{S3Error, S3ErrorCode, S3Result, TrailingHeaders, dto};
use std::collections::BTreeMap;

/// An algorithm of `x-amz-checksum-*`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Algorithm {
    Crc32,
    Crc32c,
    Crc64Nvme,
    Sha1,
    Sha256,
    Sha512,
    Md5,
    XxHash64,
    XxHash3,
    XxHash128,
}

/// What the checksum of a multipart object is taken of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Of the bytes of the whole object.
    FullObject,
    /// Of the checksums of its parts.
    Composite,
}

/// What S3 computes when the client brings no checksum.
pub(crate) const DEFAULT: Algorithm = Algorithm::Crc64Nvme;

const ALL: [(Algorithm, &str, &str, usize); 10] = [
    (Algorithm::Crc32, "CRC32", "x-amz-checksum-crc32", 4),
    (Algorithm::Crc32c, "CRC32C", "x-amz-checksum-crc32c", 4),
    (Algorithm::Crc64Nvme, "CRC64NVME", "x-amz-checksum-crc64nvme", 8),
    (Algorithm::Sha1, "SHA1", "x-amz-checksum-sha1", 20),
    (Algorithm::Sha256, "SHA256", "x-amz-checksum-sha256", 32),
    (Algorithm::Sha512, "SHA512", "x-amz-checksum-sha512", 64),
    (Algorithm::Md5, "MD5", "x-amz-checksum-md5", 16),
    (Algorithm::XxHash64, "XXHASH64", "x-amz-checksum-xxhash64", 8),
    (Algorithm::XxHash3, "XXHASH3", "x-amz-checksum-xxhash3", 8),
    (Algorithm::XxHash128, "XXHASH128", "x-amz-checksum-xxhash128", 16),
];

impl Algorithm {
    fn row(self) -> &'static (Algorithm, &'static str, &'static str, usize) {
        ALL.iter().find(|row| row.0 == self).expect("ALL lists every algorithm")
    }

    /// As `x-amz-checksum-algorithm` writes it.
    pub(crate) fn name(self) -> &'static str {
        self.row().1
    }

    fn header(self) -> &'static str {
        self.row().2
    }

    fn digest_len_bytes(self) -> usize {
        self.row().3
    }

    /// The algorithm of that name.
    pub(crate) fn of_name(name: &str) -> S3Result<Algorithm> {
        ALL.iter().find(|row| row.1.eq_ignore_ascii_case(name)).map(|row| row.0).ok_or_else(|| {
            refuse(S3ErrorCode::InvalidRequest, "Checksum algorithm provided is unsupported. Please try again.")
        })
    }

    fn crc(self) -> Option<CrcAlgorithm> {
        match self {
            Algorithm::Crc32 => Some(CrcAlgorithm::Crc32IsoHdlc),
            Algorithm::Crc32c => Some(CrcAlgorithm::Crc32Iscsi),
            Algorithm::Crc64Nvme => Some(CrcAlgorithm::Crc64Nvme),
            _ => None,
        }
    }

    /// The kind of a multipart upload that names the algorithm alone.
    pub(crate) fn default_kind(self) -> Kind {
        if self == Algorithm::Crc64Nvme { Kind::FullObject } else { Kind::Composite }
    }

    /// Whether a multipart upload may ask for this kind: only CRCs can be combined, and CRC64NVME has no other kind.
    pub(crate) fn allows(self, kind: Kind) -> bool {
        match kind {
            Kind::FullObject => self.crc().is_some(),
            Kind::Composite => self != Algorithm::Crc64Nvme,
        }
    }
}

impl Kind {
    /// As `x-amz-checksum-type` writes it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Kind::FullObject => dto::ChecksumType::FULL_OBJECT,
            Kind::Composite => dto::ChecksumType::COMPOSITE,
        }
    }

    /// The kind of that name.
    pub(crate) fn of_name(name: &str) -> S3Result<Kind> {
        match name {
            dto::ChecksumType::FULL_OBJECT => Ok(Kind::FullObject),
            dto::ChecksumType::COMPOSITE => Ok(Kind::Composite),
            _ => Err(refuse(S3ErrorCode::InvalidRequest, "Value for x-amz-checksum-type header is invalid.")),
        }
    }
}

/// A checksum being computed.
pub(crate) enum Hasher {
    Crc32(Crc32),
    Crc32c(Crc32c),
    Crc64Nvme(Crc64Nvme),
    Sha1(Sha1),
    Sha256(Sha256),
    Sha512(Sha512),
    Md5(Md5),
    XxHash64(XxHash64),
    XxHash3(Box<XxHash3>),
    XxHash128(Box<XxHash128>),
}

impl Hasher {
    pub(crate) fn new(algorithm: Algorithm) -> Hasher {
        match algorithm {
            Algorithm::Crc32 => Hasher::Crc32(Crc32::new()),
            Algorithm::Crc32c => Hasher::Crc32c(Crc32c::new()),
            Algorithm::Crc64Nvme => Hasher::Crc64Nvme(Crc64Nvme::new()),
            Algorithm::Sha1 => Hasher::Sha1(Sha1::new()),
            Algorithm::Sha256 => Hasher::Sha256(Sha256::new()),
            Algorithm::Sha512 => Hasher::Sha512(Sha512::new()),
            Algorithm::Md5 => Hasher::Md5(Md5::new()),
            Algorithm::XxHash64 => Hasher::XxHash64(XxHash64::new()),
            Algorithm::XxHash3 => Hasher::XxHash3(Box::new(XxHash3::new())),
            Algorithm::XxHash128 => Hasher::XxHash128(Box::new(XxHash128::new())),
        }
    }

    pub(crate) fn update(&mut self, bytes: &[u8]) {
        match self {
            Hasher::Crc32(hasher) => hasher.update(bytes),
            Hasher::Crc32c(hasher) => hasher.update(bytes),
            Hasher::Crc64Nvme(hasher) => hasher.update(bytes),
            Hasher::Sha1(hasher) => hasher.update(bytes),
            Hasher::Sha256(hasher) => hasher.update(bytes),
            Hasher::Sha512(hasher) => hasher.update(bytes),
            Hasher::Md5(hasher) => hasher.update(bytes),
            Hasher::XxHash64(hasher) => hasher.update(bytes),
            Hasher::XxHash3(hasher) => hasher.update(bytes),
            Hasher::XxHash128(hasher) => hasher.update(bytes),
        }
    }

    pub(crate) fn finish(self) -> Vec<u8> {
        match self {
            Hasher::Crc32(hasher) => hasher.finalize().to_vec(),
            Hasher::Crc32c(hasher) => hasher.finalize().to_vec(),
            Hasher::Crc64Nvme(hasher) => hasher.finalize().to_vec(),
            Hasher::Sha1(hasher) => hasher.finalize().to_vec(),
            Hasher::Sha256(hasher) => hasher.finalize().to_vec(),
            Hasher::Sha512(hasher) => hasher.finalize().to_vec(),
            Hasher::Md5(hasher) => hasher.finalize().to_vec(),
            Hasher::XxHash64(hasher) => hasher.finalize().to_vec(),
            Hasher::XxHash3(hasher) => hasher.finalize().to_vec(),
            Hasher::XxHash128(hasher) => hasher.finalize().to_vec(),
        }
    }
}

/// The checksum that a request promises.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Plan {
    pub(crate) algorithm: Algorithm,
    pub(crate) expected: Expected,
}

/// Where its value stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Expected {
    /// In a header.
    Value(Vec<u8>),
    /// In the trailer of the body.
    Trailer,
}

impl Plan {
    /// Reads the headers of a request with a body. One checksum at most; a named algorithm must come with its value.
    pub(crate) fn from_headers(headers: &HeaderMap) -> S3Result<Option<Plan>> {
        let mut plan: Option<Plan> = None;
        for (algorithm, _, header, _) in ALL {
            for value in headers.get_all(header) {
                let expected = Expected::Value(parse_value(algorithm, value.as_bytes())?);
                set_only(&mut plan, Plan { algorithm, expected })?;
            }
        }
        for names in headers.get_all("x-amz-trailer") {
            let names = names.to_str().map_err(|_| invalid_trailer())?;
            for name in names.split(',').map(|name| name.trim().to_ascii_lowercase()) {
                if !name.starts_with("x-amz-checksum-") {
                    continue;
                }
                let row = ALL.iter().find(|row| row.2 == name).ok_or_else(invalid_trailer)?;
                set_only(&mut plan, Plan { algorithm: row.0, expected: Expected::Trailer })?;
            }
        }
        for header in ["x-amz-sdk-checksum-algorithm", "x-amz-checksum-algorithm"] {
            let Some(name) = headers.get(header) else { continue };
            let named = Algorithm::of_name(name.to_str().unwrap_or_default())?;
            match &plan {
                Some(plan) if plan.algorithm == named => {}
                Some(_) => {
                    return Err(refuse(
                        S3ErrorCode::InvalidRequest,
                        format!("Value for {header} header is invalid: it differs from the checksum that was sent."),
                    ));
                }
                None => {
                    return Err(refuse(
                        S3ErrorCode::InvalidRequest,
                        format!(
                            "{header} specified, but no corresponding x-amz-checksum-* or x-amz-trailer headers were \
                             found."
                        ),
                    ));
                }
            }
        }
        Ok(plan)
    }

    /// Compares what was computed with what was promised.
    pub(crate) fn verify(&self, computed: &[u8], trailers: Option<&TrailingHeaders>) -> S3Result<()> {
        let promised = match &self.expected {
            Expected::Value(value) => value.clone(),
            Expected::Trailer => trailers
                .and_then(|trailers| {
                    trailers.read(|headers| headers.get(self.algorithm.header()).map(|value| value.as_bytes().to_vec()))
                })
                .flatten()
                .ok_or_else(|| {
                    custom(
                        "MalformedTrailerError",
                        StatusCode::BAD_REQUEST,
                        "The request contained trailing data that was not well-formed or did not conform to our \
                         published schema.",
                    )
                })
                .and_then(|value| parse_value(self.algorithm, &value))?,
        };
        if promised == computed { Ok(()) } else { Err(bad_digest(self.algorithm)) }
    }
}

fn set_only(slot: &mut Option<Plan>, plan: Plan) -> S3Result<()> {
    if slot.replace(plan).is_some() {
        return Err(refuse(
            S3ErrorCode::InvalidRequest,
            "Expecting a single x-amz-checksum- header. Multiple checksum Types are not allowed.",
        ));
    }
    Ok(())
}

fn invalid_trailer() -> S3Error {
    refuse(S3ErrorCode::InvalidRequest, "The value specified in the x-amz-trailer header is not supported")
}

fn parse_value(algorithm: Algorithm, value: &[u8]) -> S3Result<Vec<u8>> {
    STANDARD.decode(value).ok().filter(|value| value.len() == algorithm.digest_len_bytes()).ok_or_else(|| {
        refuse(S3ErrorCode::InvalidRequest, format!("Value for {} header is invalid.", algorithm.header()))
    })
}

/// The body is not what its checksum promised.
pub(crate) fn bad_digest(algorithm: Algorithm) -> S3Error {
    refuse(
        S3ErrorCode::BadDigest,
        format!("The {} you specified did not match the calculated checksum.", algorithm.name()),
    )
}

/// The checksum of a multipart object from those of its parts: `(digest, bytes)` in order.
pub(crate) fn of_parts(algorithm: Algorithm, kind: Kind, parts: &[(Vec<u8>, u64)]) -> String {
    match (kind, algorithm.crc()) {
        (Kind::FullObject, Some(crc)) => {
            let number = |digest: &[u8]| digest.iter().fold(0u64, |number, byte| (number << 8) | u64::from(*byte));
            let combined = parts
                .iter()
                .map(|(digest, len_bytes)| (number(digest), *len_bytes))
                .reduce(|(left, left_len), (right, right_len)| {
                    (crc_fast::checksum_combine(crc, left, right, right_len), left_len + right_len)
                })
                .map_or(0, |(value, _)| value);
            let bytes = combined.to_be_bytes();
            STANDARD.encode(&bytes[bytes.len() - algorithm.digest_len_bytes()..])
        }
        _ => {
            let mut hasher = Hasher::new(algorithm);
            parts.iter().for_each(|(digest, _)| hasher.update(digest));
            format!("{}-{}", STANDARD.encode(hasher.finish()), parts.len())
        }
    }
}

/// Checksums of an object or part as they are kept: base64 by algorithm, and what kind they are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Sums {
    values: BTreeMap<Algorithm, String>,
    kind: Option<Kind>,
}

impl Kind {
    const ATTRIBUTE: &str = "sum-type";
}

impl Sums {
    pub(crate) fn of_digests(digests: impl IntoIterator<Item = (Algorithm, Vec<u8>)>) -> Sums {
        let values = digests.into_iter().map(|(algorithm, digest)| (algorithm, STANDARD.encode(digest))).collect();
        Sums { values, kind: None }
    }

    pub(crate) fn of_value(algorithm: Algorithm, value: String) -> Sums {
        Sums { values: BTreeMap::from([(algorithm, value)]), kind: None }
    }

    pub(crate) fn with_kind(mut self, kind: Kind) -> Sums {
        self.kind = Some(kind);
        self
    }

    /// Keeps them as attributes.
    pub(crate) fn store(&self, attributes: &mut Attributes) {
        for (algorithm, value) in &self.values {
            attributes.insert(format!("sum.{}", algorithm.name()), value.clone());
        }
        if let Some(kind) = self.kind {
            attributes.insert(Kind::ATTRIBUTE.to_owned(), kind.name().to_owned());
        }
    }

    /// Reads them back.
    pub(crate) fn load(attributes: &Attributes) -> Sums {
        let values = ALL
            .iter()
            .filter_map(|row| attributes.get(&format!("sum.{}", row.1)).map(|value| (row.0, value.clone())))
            .collect();
        let kind = attributes.get(Kind::ATTRIBUTE).and_then(|name| Kind::of_name(name).ok());
        Sums { values, kind }
    }

    /// The digest of one algorithm.
    pub(crate) fn digest(&self, algorithm: Algorithm) -> Option<Vec<u8>> {
        self.values.get(&algorithm).and_then(|value| STANDARD.decode(value).ok())
    }

    /// The base64 of one algorithm.
    pub(crate) fn value(&self, algorithm: Algorithm) -> Option<&str> {
        self.values.get(&algorithm).map(String::as_str)
    }

    /// The first algorithm there is.
    pub(crate) fn algorithm(&self) -> Option<Algorithm> {
        self.values.keys().next().copied()
    }

    /// Only one algorithm, the others left out.
    pub(crate) fn only(mut self, algorithm: Algorithm) -> Sums {
        self.values.retain(|kept, _| *kept == algorithm);
        self
    }

    /// As headers.
    pub(crate) fn headers(&self) -> impl Iterator<Item = (&'static str, &str)> {
        let kind = self.kind.map(|kind| ("x-amz-checksum-type", kind.name()));
        self.values.iter().map(|(algorithm, value)| (algorithm.header(), value.as_str())).chain(kind)
    }

    /// In the fields of `s3s`.
    pub(crate) fn into_dto(mut self) -> dto::Checksum {
        let mut take = |algorithm| self.values.remove(&algorithm);
        dto::Checksum {
            checksum_crc32: take(Algorithm::Crc32),
            checksum_crc32c: take(Algorithm::Crc32c),
            checksum_crc64nvme: take(Algorithm::Crc64Nvme),
            checksum_sha1: take(Algorithm::Sha1),
            checksum_sha256: take(Algorithm::Sha256),
            checksum_sha512: take(Algorithm::Sha512),
            checksum_md5: take(Algorithm::Md5),
            checksum_xxhash64: take(Algorithm::XxHash64),
            checksum_xxhash3: take(Algorithm::XxHash3),
            checksum_xxhash128: take(Algorithm::XxHash128),
            checksum_type: self.kind.map(|kind| dto::ChecksumType::from_static(kind.name())),
        }
    }
}

/// Copies the ten checksum fields from one struct of `s3s` to another; most share them, none shares a type.
macro_rules! copy_sums {
    ($from:expr => $to:expr) => {{
        let from = $from;
        $to.checksum_crc32 = from.checksum_crc32;
        $to.checksum_crc32c = from.checksum_crc32c;
        $to.checksum_crc64nvme = from.checksum_crc64nvme;
        $to.checksum_sha1 = from.checksum_sha1;
        $to.checksum_sha256 = from.checksum_sha256;
        $to.checksum_sha512 = from.checksum_sha512;
        $to.checksum_md5 = from.checksum_md5;
        $to.checksum_xxhash64 = from.checksum_xxhash64;
        $to.checksum_xxhash3 = from.checksum_xxhash3;
        $to.checksum_xxhash128 = from.checksum_xxhash128;
    }};
}
pub(crate) use copy_sums;

/// The checksums that a struct of `s3s` states, by algorithm, as they came.
pub(crate) fn stated(sums: dto::Checksum) -> Vec<(Algorithm, String)> {
    [
        (Algorithm::Crc32, sums.checksum_crc32),
        (Algorithm::Crc32c, sums.checksum_crc32c),
        (Algorithm::Crc64Nvme, sums.checksum_crc64nvme),
        (Algorithm::Sha1, sums.checksum_sha1),
        (Algorithm::Sha256, sums.checksum_sha256),
        (Algorithm::Sha512, sums.checksum_sha512),
        (Algorithm::Md5, sums.checksum_md5),
        (Algorithm::XxHash64, sums.checksum_xxhash64),
        (Algorithm::XxHash3, sums.checksum_xxhash3),
        (Algorithm::XxHash128, sums.checksum_xxhash128),
    ]
    .into_iter()
    .filter_map(|(algorithm, value)| value.map(|value| (algorithm, value)))
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::{HeaderName, HeaderValue};

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        pairs
            .iter()
            .map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_str(value).unwrap()))
            .collect()
    }

    fn digest(algorithm: Algorithm, bytes: &[u8]) -> Vec<u8> {
        let mut hasher = Hasher::new(algorithm);
        hasher.update(bytes);
        hasher.finish()
    }

    #[test]
    fn check_values_of_the_catalogues() {
        let cases = [
            (Algorithm::Crc32, "cbf43926"),
            (Algorithm::Crc32c, "e3069283"),
            (Algorithm::Crc64Nvme, "ae8b14860a799888"),
            (Algorithm::Sha1, "f7c3bc1d808e04732adf679965ccc34ca7ae3441"),
            (Algorithm::Sha256, "15e2b0d3c33891ebb0f1ef609ec419420c20e320ce94c65fbc8c3312448eb225"),
            (Algorithm::Md5, "25f9e794323b453885f5181f1b624d0b"),
        ];
        for (algorithm, expected) in cases {
            assert_eq!(hex::encode(digest(algorithm, b"123456789")), expected, "{algorithm:?}");
        }
        for (algorithm, ..) in ALL {
            assert_eq!(digest(algorithm, b"").len(), algorithm.digest_len_bytes(), "{algorithm:?}");
        }
    }

    #[test]
    fn full_object_checksums_of_parts_equal_those_of_the_whole() {
        let whole: Vec<u8> = (0..100_000u32).map(|i| ((i * 31) >> 3) as u8).collect();
        for algorithm in [Algorithm::Crc32, Algorithm::Crc32c, Algorithm::Crc64Nvme] {
            for cuts in [vec![0, 100_000], vec![0, 1, 65_536, 100_000], vec![0, 0, 50_000, 50_000, 100_000]] {
                let parts: Vec<_> = cuts
                    .windows(2)
                    .map(|cut| (digest(algorithm, &whole[cut[0]..cut[1]]), (cut[1] - cut[0]) as u64))
                    .collect();
                assert_eq!(
                    of_parts(algorithm, Kind::FullObject, &parts),
                    STANDARD.encode(digest(algorithm, &whole)),
                    "{algorithm:?} {cuts:?}"
                );
            }
        }
    }

    #[test]
    fn composite_checksums_are_of_the_digests() {
        let parts = [(digest(Algorithm::Sha256, b"a"), 1), (digest(Algorithm::Sha256, b"b"), 1)];
        let joined = [parts[0].0.clone(), parts[1].0.clone()].concat();
        assert_eq!(
            of_parts(Algorithm::Sha256, Kind::Composite, &parts),
            format!("{}-2", STANDARD.encode(digest(Algorithm::Sha256, &joined)))
        );
    }

    #[test]
    fn one_checksum_a_request_and_never_a_name_alone() {
        let value = STANDARD.encode(digest(Algorithm::Crc32, b"x"));
        let plan = |pairs: &[(&'static str, &str)]| Plan::from_headers(&headers(pairs));
        assert_eq!(plan(&[]).unwrap(), None);
        assert!(matches!(
            plan(&[("x-amz-checksum-crc32", &value), ("x-amz-sdk-checksum-algorithm", "CRC32")]),
            Ok(Some(Plan { algorithm: Algorithm::Crc32, expected: Expected::Value(_) }))
        ));
        assert!(matches!(
            plan(&[("x-amz-trailer", "x-other, X-Amz-Checksum-SHA256")]),
            Ok(Some(Plan { algorithm: Algorithm::Sha256, expected: Expected::Trailer }))
        ));
        let bad: [&[(&'static str, &str)]; 7] = [
            &[("x-amz-checksum-crc32", &value), ("x-amz-checksum-crc32c", &value)],
            &[("x-amz-checksum-crc32", &value), ("x-amz-trailer", "x-amz-checksum-crc32")],
            &[("x-amz-checksum-crc32", "not base64")],
            &[("x-amz-checksum-sha1", &value)],
            &[("x-amz-trailer", "x-amz-checksum-crc7")],
            &[("x-amz-sdk-checksum-algorithm", "CRC32")],
            &[("x-amz-checksum-crc32", &value), ("x-amz-sdk-checksum-algorithm", "SHA1")],
        ];
        for pairs in bad {
            assert_eq!(plan(pairs).unwrap_err().code().as_str(), "InvalidRequest", "{pairs:?}");
        }
    }

    #[test]
    fn a_wrong_or_missing_checksum_is_refused() {
        let plan = Plan { algorithm: Algorithm::Crc32, expected: Expected::Value(digest(Algorithm::Crc32, b"x")) };
        assert!(plan.verify(&digest(Algorithm::Crc32, b"x"), None).is_ok());
        assert_eq!(plan.verify(&digest(Algorithm::Crc32, b"y"), None).unwrap_err().code().as_str(), "BadDigest");
        let plan = Plan { algorithm: Algorithm::Crc32, expected: Expected::Trailer };
        assert_eq!(plan.verify(&[0; 4], None).unwrap_err().code().as_str(), "MalformedTrailerError");
    }

    #[test]
    fn sums_are_kept_as_attributes() {
        let sums = Sums::of_digests([(Algorithm::Crc32, vec![1, 2, 3, 4]), (Algorithm::Sha1, vec![7; 20])])
            .with_kind(Kind::Composite);
        let mut attributes = Attributes::new();
        sums.store(&mut attributes);
        assert_eq!(Sums::load(&attributes), sums);
        assert_eq!(Sums::load(&Attributes::new()), Sums::default());
    }
}
