//! Listing what lies below a prefix, page by page.

use super::connection::{Call, Connection, element};
use super::operations::Bucket;
use super::sigv4::encode;
use anyhow::{Context, Result};
use http::Method;

/// One page of a listing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Page {
    /// Keys of objects.
    pub keys: Vec<String>,
    /// What asks for the next page; `None` after the last.
    pub next: Option<String>,
}

impl Bucket {
    /// One page of the objects below a prefix: ListObjectsV2, a thousand at most.
    pub async fn list_page(&self, connection: &mut Connection, prefix: &str, next: Option<&str>) -> Result<Page> {
        let path = self.path();
        let token = next.map_or_else(String::new, |next| format!("continuation-token={}&", encode(next, false)));
        // Encoded, since XML has no way to write some characters that keys may have.
        let query = format!("{token}encoding-type=url&list-type=2&prefix={}", encode(prefix, false));
        let call = Call { query: &query, ..Call::new(Method::GET, &path) };
        let text = connection.page(call).await.context("LIST")?;
        page(&text).context("LIST: the answer can't be read")
    }
}

fn page(text: &str) -> Option<Page> {
    let is_encoded = element(text, "EncodingType").is_some_and(|kind| kind == "url");
    let mut keys = Vec::new();
    for part in text.split("<Contents>").skip(1) {
        let key = element(part, "Key")?;
        keys.push(if is_encoded { decode(&key)? } else { key });
    }
    let is_truncated = element(text, "IsTruncated").is_some_and(|value| value == "true");
    let next = element(text, "NextContinuationToken");
    match (is_truncated, next) {
        (false, _) => Some(Page { keys, next: None }),
        (true, Some(next)) => Some(Page { keys, next: Some(next) }),
        // Without the token the listing would begin again for ever.
        (true, None) => None,
    }
}

/// Undoes percent-encoding; some servers write a space as '+'.
fn decode(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, later @ ..] = rest {
        rest = later;
        match first {
            b'%' => {
                let digits = std::str::from_utf8(later.get(..2)?).ok()?;
                bytes.push(u8::from_str_radix(digits, 16).ok()?);
                rest = &later[2..];
            }
            b'+' => bytes.push(b' '),
            other => bytes.push(*other),
        }
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_are_read_with_their_next() {
        let head = "<ListBucketResult><EncodingType>url</EncodingType>";
        let keys = "<Contents><Key>a%2Fb+c</Key><Size>1</Size></Contents><Contents><Key>%C3%BC</Key></Contents>";
        let more = "<IsTruncated>true</IsTruncated><NextContinuationToken>t&amp;1</NextContinuationToken>";
        let found = page(&format!("{head}{more}{keys}</ListBucketResult>")).unwrap();
        assert_eq!((found.keys, found.next.as_deref()), (vec!["a/b c".to_owned(), "ü".to_owned()], Some("t&1")));
        let plain = page("<L><IsTruncated>false</IsTruncated><Contents><Key>a+%</Key></Contents></L>").unwrap();
        assert_eq!(plain, Page { keys: vec!["a+%".to_owned()], next: None });
        assert_eq!(page("<L><IsTruncated>true</IsTruncated></L>"), None, "an end without an end");
        assert_eq!(page(&format!("{head}<Contents><Key>%f</Key></Contents>")), None);
    }
}
