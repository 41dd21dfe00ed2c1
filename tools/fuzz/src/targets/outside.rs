//! What operators and clients send: the key store and its configuration, administration, S3 behind `s3s`.

use crate::target::{Seed, Target, Verdict, accepted, bytes_settle, value_survives};
use http::header::{HeaderMap, HeaderName, HeaderValue};
use kiseki_engine::api::Attributes;
use kiseki_gateway::fuzzing as gateway;
use kiseki_server::admin::AdminRequest;
use kiseki_server::config::{Config, FileConfig, Overrides};
use kiseki_server::fuzzing as server;
use kiseki_server::paths::KisekiDir;
use std::path::Path;

/// What stands in a key store file in clear.
pub const KEY_STORE_HEAD: Target = Target::new("key_store_head", key_store_head, key_store_head_seeds);
/// The opened part of a key store.
pub const KEY_STORE_PLAIN: Target = Target::new("key_store_plain", key_store_plain, key_store_plain_seeds);
/// `kiseki.toml`. Its parser keeps a tree of all tokens.
pub const CONFIG: Target = Target::new("config", config, config_seeds).allowed(256 * 1024, 512);
/// A line on the admin socket.
pub const ADMIN_REQUEST: Target = Target::new("admin_request", admin_request, admin_request_seeds);
/// A continuation token.
pub const TOKEN: Target = Target::new("continuation_token", token, token_seeds);
/// `Range`, `x-amz-copy-source-range` and part numbers.
pub const RANGE: Target = Target::new("range", range, range_seeds);
/// `x-amz-checksum-*`, `x-amz-trailer` and `Content-MD5`.
pub const CHECKSUM_HEADERS: Target =
    Target::new("checksum_headers", checksum_headers, checksum_headers_seeds).allowed(96 * 1024, 64);
/// Stored attributes of an object.
pub const ATTRIBUTES: Target = Target::new("attributes", attributes, attributes_seeds).allowed(96 * 1024, 64);
/// An upload id.
pub const UPLOAD_ID: Target = Target::new("upload_id", upload_id, || vec![("upload", b"0f".repeat(16))]);
/// A query.
pub const QUERY: Target = Target::new("query", query, query_seeds);

fn key_store_head(bytes: &[u8]) -> Verdict {
    if server::key_store_head(bytes) { Verdict::Accepted } else { Verdict::Refused }
}

fn key_store_head_seeds() -> Vec<Seed> {
    // `docs/formats/key-store.md`: magic, version, derivation, rounds, salt, nonce, length, sealed part.
    let head = [&b"KISEKEYS\x01\0\x01\0"[..], &600_000u32.to_le_bytes(), &[1; 32], &[2; 12]].concat();
    vec![("head", [&head[..], &20u32.to_le_bytes(), &[7; 20]].concat())]
}

fn key_store_plain(bytes: &[u8]) -> Verdict {
    bytes_settle(bytes, server::key_store_plain)
}

fn key_store_plain_seeds() -> Vec<Seed> {
    let keys = [&[9; 16][..], &[1; 32], &[2; 32], &[3; 32]].concat();
    let masters = [&2u32.to_le_bytes()[..], &1u32.to_le_bytes(), &[4; 32], &2u32.to_le_bytes(), &[5; 32]].concat();
    vec![("two-epochs", [keys, masters].concat())]
}

fn config(bytes: &[u8]) -> Verdict {
    let Ok(text) = std::str::from_utf8(bytes) else { return Verdict::Refused };
    let Ok(file) = FileConfig::parse(text) else { return Verdict::Refused };
    let dir = KisekiDir::at(Path::new("/fuzzed")).expect("an absolute path");
    let Ok(config) = Config::combine(dir.clone(), file, &Overrides::default()) else { return Verdict::Refused };
    let again = FileConfig::parse(&config.describe()).expect("what is printed at start parses");
    let again = Config::combine(dir, again, &Overrides::default()).expect("and can be run with");
    assert_eq!(again, config);
    let _shown = (config.endpoint(), config.unsafe_settings());
    Verdict::Accepted
}

fn config_seeds() -> Vec<Seed> {
    let small = "cores = 2\nmetadata_dirs = ['meta0', 'meta1']\ndevices = ['d0', 'd1']\n";
    let full = "cores = 4\nside_threads = 9\nunsafe_single_copy = true\nmetadata_dirs = [\"m\"]\ndevices = [\"d\"]\n\n\
                [s3]\nlisten = \"[::1]:9000\"\nregion = \"eu\"\nunsafe_s3_plaintext = true\n\
                connections_per_core_max = 17\n\n[admin]\nlisten = \"127.0.0.1:9090\"\n\n[keys]\n\
                passphrase_file = \"p\"\n\n[log]\nfilter = \"info\"\nformat = \"json\"\n";
    vec![("small", small.into()), ("full", full.into())]
}

fn admin_request(bytes: &[u8]) -> Verdict {
    let decode = |bytes: &[u8]| serde_json::from_slice::<AdminRequest>(bytes);
    value_survives(bytes, decode, |request| serde_json::to_vec(request).expect("a request is plain data"))
}

fn admin_request_seeds() -> Vec<Seed> {
    vec![
        ("tenant", br#"{"command":"tenant-create","name":"a","dedup":"private"}"#.to_vec()),
        ("bucket", br#"{"command":"bucket-set","tenant":"a","bucket":"b","etag":"opaque"}"#.to_vec()),
        ("status", br#"{"command":"status"}"#.to_vec()),
    ]
}

fn token(bytes: &[u8]) -> Verdict {
    let Ok(text) = std::str::from_utf8(bytes) else { return Verdict::Refused };
    let encoded = gateway::url_encoded(text);
    assert!(encoded.bytes().all(|byte| byte.is_ascii_graphic()), "a listing can carry it");
    let Some((again, last)) = gateway::continuation_token(text) else { return Verdict::Refused };
    assert_eq!(gateway::continuation_token(&again).map(|(_, last)| last), Some(last));
    Verdict::Accepted
}

fn token_seeds() -> Vec<Seed> {
    vec![("key", b"AWEvYg".to_vec())]
}

fn range(bytes: &[u8]) -> Verdict {
    let Some((numbers, text)) = bytes.split_first_chunk::<10>() else { return Verdict::Refused };
    let (number, len) = numbers.split_first_chunk::<2>().expect("ten bytes");
    let len_bytes = u64::from_le_bytes(len.try_into().expect("eight bytes"));
    let part = gateway::part_range(i32::from(i16::from_le_bytes(*number)), len_bytes, &[]);
    let Ok(text) = std::str::from_utf8(text) else { return Verdict::Refused };
    let found = [gateway::range(text, len_bytes), gateway::copy_range(text, len_bytes), part];
    for range in found.iter().flatten() {
        assert!(range.start <= range.end && range.end <= len_bytes, "{range:?} of {len_bytes} bytes");
    }
    accepted(found.into_iter().flatten().next())
}

fn range_seeds() -> Vec<Seed> {
    let seed = |text: &[u8]| [&1i16.to_le_bytes()[..], &100u64.to_le_bytes(), text].concat();
    vec![("both", seed(b"bytes=0-9")), ("open", seed(b"bytes=5-")), ("suffix", seed(b"bytes=-7"))]
}

fn checksum_headers(bytes: &[u8]) -> Verdict {
    let mut headers = HeaderMap::new();
    for line in bytes.split(|byte| *byte == b'\n') {
        let Some(colon) = line.iter().position(|byte| *byte == b':') else { continue };
        let (name, value) = (HeaderName::from_bytes(&line[..colon]), HeaderValue::from_bytes(&line[colon + 1..]));
        if let (Ok(name), Ok(value)) = (name, value) {
            headers.append(name, value);
        }
    }
    accepted(gateway::checksum_headers(&headers, &[0; 4]))
}

fn checksum_headers_seeds() -> Vec<Seed> {
    vec![
        ("crc32", b"x-amz-checksum-crc32:AAAAAA==\nx-amz-sdk-checksum-algorithm:CRC32".to_vec()),
        ("trailer", b"x-amz-trailer:x-amz-checksum-crc64nvme".to_vec()),
        ("md5", b"content-md5:AAAAAAAAAAAAAAAAAAAAAA==\nx-amz-checksum-xxhash64:AAAAAAAAAAA=".to_vec()),
    ]
}

fn attributes(bytes: &[u8]) -> Verdict {
    let Some((len_bytes, text)) = bytes.split_first_chunk::<8>() else { return Verdict::Refused };
    let Ok(text) = std::str::from_utf8(text) else { return Verdict::Refused };
    let pairs = text.lines().filter_map(|line| line.split_once('='));
    let stored: Attributes = pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
    // An engine refuses lengths over half of what a number holds: two parts always add up.
    let once = gateway::attributes(&stored, u64::from_le_bytes(*len_bytes) / 2);
    assert_eq!(gateway::attributes(&once, 1), once, "attributes stay as they are once they are stored");
    accepted(once.first_key_value())
}

fn attributes_seeds() -> Vec<Seed> {
    let text = b"h.content-type=text/plain\nm.owner=me\nsum.CRC32=AAAAAQ==\nsum-type=FULL_OBJECT\n\
                 h.content-encoding=aws-chunked, gzip";
    vec![("object", [&77u64.to_le_bytes()[..], text].concat())]
}

fn upload_id(bytes: &[u8]) -> Verdict {
    let Ok(text) = std::str::from_utf8(bytes) else { return Verdict::Refused };
    accepted(gateway::upload_id(text))
}

fn query(bytes: &[u8]) -> Verdict {
    let Ok(text) = std::str::from_utf8(bytes) else { return Verdict::Refused };
    if gateway::query_is_refused(text) { Verdict::Refused } else { Verdict::Accepted }
}

fn query_seeds() -> Vec<Seed> {
    vec![("list", b"prefix=a&delimiter=/".to_vec())]
}
