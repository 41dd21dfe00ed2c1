//! Signature Version 4 in the `Authorization` header, as AWS describes it for S3.

use hmac::{Hmac, KeyInit, Mac};
use sha2::{Digest, Sha256};
use std::fmt::Write;
use time::OffsetDateTime;

/// What stands for the hash of a body that is not hashed.
pub const UNSIGNED_PAYLOAD: &str = "UNSIGNED-PAYLOAD";

/// Keys and region of whoever signs.
#[derive(Clone)]
pub struct Credentials {
    /// Names the key.
    pub access_key_id: String,
    /// The key; never printed.
    pub secret_access_key: String,
    /// Of temporary credentials.
    pub session_token: Option<String>,
    /// What the endpoint says it is.
    pub region: String,
}

/// A request as it is signed.
pub struct Canonical<'a> {
    /// GET, PUT and so on.
    pub method: &'a str,
    /// Percent-encoded path.
    pub path: &'a str,
    /// Percent-encoded `name=value` pairs, sorted, joined by '&'.
    pub query: &'a str,
    /// Lower-case names and values, sorted; all of them are signed.
    pub headers: &'a [(&'a str, &'a str)],
    /// Hex SHA-256 of the body, or [`UNSIGNED_PAYLOAD`].
    pub payload_hash: &'a str,
}

/// Signs requests. The key of a day is derived once.
pub struct Signer {
    credentials: Credentials,
    day: String,
    key: Hmac<Sha256>,
}

fn keyed(key: &[u8]) -> Hmac<Sha256> {
    Hmac::new_from_slice(key).expect("HMAC takes keys of every length")
}

fn mac(mut key: Hmac<Sha256>, text: &str) -> [u8; 32] {
    key.update(text.as_bytes());
    key.finalize().into_bytes().into()
}

/// Hex SHA-256.
pub fn sha256_hex(bytes: &[u8]) -> String {
    hex::encode(Sha256::digest(bytes))
}

/// A time as the `x-amz-date` header has it.
pub fn amz_date(unix_seconds: i64) -> String {
    let at = OffsetDateTime::from_unix_timestamp(unix_seconds).unwrap_or(OffsetDateTime::UNIX_EPOCH);
    let (date, time) = (at.date(), at.time());
    format!(
        "{:04}{:02}{:02}T{:02}{:02}{:02}Z",
        date.year(),
        u8::from(date.month()),
        date.day(),
        time.hour(),
        time.minute(),
        time.second()
    )
}

impl Signer {
    /// A signer for S3.
    pub fn new(credentials: Credentials) -> Signer {
        Signer { credentials, day: String::new(), key: keyed(&[]) }
    }

    /// Whose key it is.
    pub fn credentials(&self) -> &Credentials {
        &self.credentials
    }

    fn renew(&mut self, day: &str) {
        let secret = format!("AWS4{}", self.credentials.secret_access_key);
        let parts = [day, &self.credentials.region, "s3", "aws4_request"];
        let key = parts.iter().fold(keyed(secret.as_bytes()), |key, part| keyed(&mac(key, part)));
        (self.day, self.key) = (day.to_owned(), key);
    }

    /// The value of the `Authorization` header.
    pub fn authorization(&mut self, request: &Canonical<'_>, amz_date: &str) -> String {
        let day = &amz_date[..8];
        if self.day != day {
            self.renew(day);
        }
        let names: Vec<&str> = request.headers.iter().map(|header| header.0).collect();
        let signed = names.join(";");
        let mut canonical = format!("{}\n{}\n{}\n", request.method, request.path, request.query);
        for (name, value) in request.headers {
            let _ = writeln!(canonical, "{name}:{}", value.trim());
        }
        let _ = write!(canonical, "\n{signed}\n{}", request.payload_hash);
        let scope = format!("{day}/{}/s3/aws4_request", self.credentials.region);
        let text = format!("AWS4-HMAC-SHA256\n{amz_date}\n{scope}\n{}", sha256_hex(canonical.as_bytes()));
        let signature = hex::encode(mac(self.key.clone(), &text));
        let id = &self.credentials.access_key_id;
        format!("AWS4-HMAC-SHA256 Credential={id}/{scope},SignedHeaders={signed},Signature={signature}")
    }
}

/// Percent-encodes what AWS encodes; `/` too, unless it is part of a path.
pub fn encode(text: &str, is_path: bool) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => out.push(char::from(byte)),
            b'/' if is_path => out.push('/'),
            _ => drop(write!(out, "%{byte:02X}")),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    const EMPTY: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
    const DATE: &str = "20130524T000000Z";

    fn signature(request: &Canonical<'_>) -> String {
        let mut signer = Signer::new(Credentials {
            access_key_id: "AKIAIOSFODNN7EXAMPLE".to_owned(),
            secret_access_key: "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY".to_owned(),
            session_token: None,
            region: "us-east-1".to_owned(),
        });
        let header = signer.authorization(request, DATE);
        assert_eq!(header, signer.authorization(request, DATE), "the key of the day is used again");
        header.rsplit_once('=').unwrap().1.to_owned()
    }

    /// The examples of "Authenticating Requests: Using the Authorization Header" in AWS's S3 reference.
    #[test]
    fn aws_s_own_examples() {
        let host = ("host", "examplebucket.s3.amazonaws.com");
        let (empty, date) = (("x-amz-content-sha256", EMPTY), ("x-amz-date", DATE));
        let get = |path, query, headers| Canonical { method: "GET", path, query, headers, payload_hash: EMPTY };
        let ranged = [host, ("range", "bytes=0-9"), empty, date];
        let plain = [host, empty, date];
        assert_eq!(
            signature(&get("/test.txt", "", &ranged)),
            "f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41"
        );
        assert_eq!(
            signature(&get("/", "lifecycle=", &plain)),
            "fea454ca298b7da1c68078a5d1bdbfbbe0d65c699e0f91ac7a200a0136783543"
        );
        assert_eq!(
            signature(&get("/", "max-keys=2&prefix=J", &plain)),
            "34b48302e7b5fa45bde8084f4b7868a86f0a534bc59db6670ed5711ef69dc6f7"
        );
        let hash = sha256_hex(b"Welcome to Amazon S3.");
        let headers = [
            ("date", "Fri, 24 May 2013 00:00:00 GMT"),
            host,
            ("x-amz-content-sha256", &hash),
            date,
            ("x-amz-storage-class", "REDUCED_REDUNDANCY"),
        ];
        let path = format!("/{}", encode("test$file.text", true));
        let put = Canonical { method: "PUT", path: &path, query: "", headers: &headers, payload_hash: &hash };
        assert_eq!(signature(&put), "98ad721746da40c64f1a55b78f14c238d841ea1380cd77a1b5971af0ece108bd");
    }

    #[test]
    fn dates_and_encodings_are_aws_s() {
        assert_eq!(amz_date(1_369_353_600), DATE);
        assert_eq!(encode("a b/ü~+", true), "a%20b/%C3%BC~%2B");
        assert_eq!(encode("a/b", false), "a%2Fb");
    }
}
