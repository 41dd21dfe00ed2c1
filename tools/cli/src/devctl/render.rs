//! How devices are shown, the same in every verb.

use kiseki_devices::in_use::Use;
use kiseki_devices::probe::FoundSignature;
use kiseki_devices::superblock::Superblock;
use serde_json::{Value, json};
use std::path::Path;

/// What a superblock says, for `--json`.
pub fn superblock_json(path: &Path, superblock: &Superblock) -> Value {
    json!({
        "path": path.display().to_string(),
        "device": superblock.device.to_string(),
        "cluster": superblock.cluster.to_string(),
        "pool": superblock.pool.0,
        "class": superblock.class.name(),
        "lanes": superblock.layout.lanes(),
        "block_len_bytes": superblock.layout.block_len_bytes(),
        "capacity_bytes": superblock.layout.capacity_bytes(),
        "generation": superblock.generation,
        "incarnation": superblock.incarnation,
        "metadata_epoch": superblock.metadata.epoch,
        "is_retired": superblock.is_retired(),
    })
}

/// Signatures, for `--json`: name, description, partition.
pub fn signatures_json(signatures: &[FoundSignature]) -> Value {
    let each = signatures
        .iter()
        .map(|found| json!({ "name": found.name, "description": found.description, "partition": found.partition }));
    Value::Array(each.collect())
}

/// Uses, for `--json`: what and the remedy.
pub fn uses_json(uses: &[Use]) -> Value {
    Value::Array(uses.iter().map(|found| json!({ "use": found.to_string(), "remedy": found.remedy() })).collect())
}

/// Bytes as makers of drives count them.
pub fn decimal(bytes: u64) -> String {
    let units = [(1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")];
    let bytes_f = bytes as f64;
    match units.into_iter().find(|(unit, _)| bytes_f >= *unit) {
        Some((unit, name)) => format!("{:.2} {name}", bytes_f / unit),
        None => format!("{bytes} B"),
    }
}

/// A table with its head; columns as wide as what stands in them.
pub fn table(head: &[&str], rows: &[Vec<String>]) -> String {
    let mut widths: Vec<usize> = head.iter().map(|name| name.chars().count()).collect();
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let line = |cells: &[String]| {
        let cells = cells.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}"));
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned() + "\n"
    };
    let head: Vec<String> = head.iter().map(|name| (*name).to_owned()).collect();
    std::iter::once(line(&head)).chain(rows.iter().map(|row| line(row))).collect()
}

/// What is there, or a dash.
pub fn or_dash(text: Option<&str>) -> String {
    text.unwrap_or("-").to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_line_up_and_sizes_are_decimal() {
        let rows = [vec!["a".to_owned(), "b".to_owned()], vec!["longer".to_owned(), "ö".to_owned()]];
        assert_eq!(table(&["ONE", "TWO"], &rows), "ONE     TWO\na       b\nlonger  ö\n");
        for (bytes, text) in [(512, "512 B"), (3_840_755_982_336, "3.84 TB"), (268_435_456, "268.44 MB")] {
            assert_eq!(decimal(bytes), text);
        }
    }
}
