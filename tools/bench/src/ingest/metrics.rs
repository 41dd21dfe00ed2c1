//! What the server says that it stored, from the metrics page of its admin port.

use crate::s3::admin_page::{AdminPage, BEHIND};
use crate::units::binary;
use anyhow::{Result, bail};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::path::Path;

/// Counters that tell what became of data; their names without prefix and `_total` are the JSON keys.
const COUNTERS: [&str; 7] = [
    "kiseki_s3_bytes_in_total",
    "kiseki_chunk_bytes_written_total",
    "kiseki_chunk_bytes_deduplicated_total",
    "kiseki_chunks_written_total",
    "kiseki_chunks_deduplicated_total",
    "kiseki_inline_bytes_total",
    "kiseki_fragment_put_bytes_total",
];

/// A metrics page.
pub struct MetricsPage(AdminPage);

/// Counters at some time.
pub type Counters = BTreeMap<&'static str, u64>;

impl MetricsPage {
    /// Of a node's admin port. Errors: `Usage`.
    pub fn open(url: &str, authorities: Option<&Path>) -> Result<MetricsPage> {
        AdminPage::open("--server-admin", url, "/metrics", authorities).map(MetricsPage)
    }

    /// Reads the counters when what has happened so far is in them.
    pub fn read(&self) -> Result<Counters> {
        std::thread::sleep(BEHIND);
        let counters = parse(&self.0.text()?);
        if counters.is_empty() {
            bail!("the metrics page has none of the counters of a Kiseki server");
        }
        Ok(counters)
    }
}

fn parse(text: &str) -> Counters {
    let mut counters = Counters::new();
    for line in text.lines() {
        let Some((name, value)) = line.split_once(' ') else { continue };
        if let Some(known) = COUNTERS.iter().find(|known| **known == name)
            && let Ok(value) = value.trim().parse()
        {
            counters.insert(known, value);
        }
    }
    counters
}

/// What was added between two readings, by JSON key.
pub fn added(before: &Counters, after: &Counters) -> Map<String, Value> {
    let row = |(name, value): (&&'static str, &u64)| {
        let key = name.trim_start_matches("kiseki_").trim_end_matches("_total").to_owned();
        (key, json!(value.saturating_sub(before.get(*name).copied().unwrap_or(0))))
    };
    after.iter().map(row).collect()
}

/// The same for people.
pub fn line(added: &Map<String, Value>) -> String {
    let amount = |key: &str| added.get(key).and_then(Value::as_u64).unwrap_or(0);
    let bytes = |key: &str| binary(amount(key) as f64);
    format!(
        "server: received {}; stored {} in {} new chunks, {} inline; found {} in {} chunks that it had; {} of fragments written",
        bytes("s3_bytes_in"),
        bytes("chunk_bytes_written"),
        amount("chunks_written"),
        bytes("inline_bytes"),
        bytes("chunk_bytes_deduplicated"),
        amount("chunks_deduplicated"),
        bytes("fragment_put_bytes"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_read_and_subtracted() {
        let page = |written: u64| {
            format!("# HELP x\nkiseki_chunks_written_total {written}\nother_total 5\nkiseki_inline_bytes_total x\n")
        };
        let (before, after) = (parse(&page(7)), parse(&page(10)));
        assert_eq!(Value::Object(added(&before, &after)), json!({"chunks_written": 3}));
        assert_eq!(Value::Object(added(&after, &before)), json!({"chunks_written": 0}), "a server that began anew");
        assert!(parse("").is_empty());
    }
}
