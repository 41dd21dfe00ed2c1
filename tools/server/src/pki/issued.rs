//! What an authority has issued, and what has become of it.

use crate::files::{Readers, read_bounded, write_whole};
use crate::pki::PkiDir;
use anyhow::{Context, Result, anyhow, bail};
use kiseki_net::peer::revoked::{self, REVOKED_FILE_LEN_BYTES_MAX, Serial};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

/// Longest list of issued certificates.
const ISSUED_FILE_LEN_BYTES_MAX: u64 = 64 << 20;

/// A certificate that ends within so many seconds should be renewed.
pub const RENEW_BEFORE_S: u64 = 30 * 24 * 3600;

/// A certificate that was issued: a line of the file `issued`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IssuedRow {
    /// Its serial number in hexadecimal digits.
    pub serial: String,
    /// `node/3` or `admin/alice`.
    pub name: String,
    /// Host names and addresses that it is for.
    pub addresses: Vec<String>,
    /// When it was issued, seconds since 1970.
    pub issued_unix: u64,
    /// When it ends.
    pub not_after_unix: u64,
}

/// What a certificate is worth now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum IssuedState {
    /// It is believed.
    Valid,
    /// It is believed and ends soon.
    Renew,
    /// It has ended.
    Expired,
    /// It is believed no more.
    Revoked,
}

impl IssuedRow {
    /// What it is worth at `now`, seconds since 1970.
    #[must_use]
    pub fn state(&self, revoked: &BTreeSet<Serial>, now: u64) -> IssuedState {
        match Serial::parse(&self.serial) {
            Some(serial) if revoked.contains(&serial) => IssuedState::Revoked,
            _ if self.not_after_unix < now => IssuedState::Expired,
            _ if self.not_after_unix < now + RENEW_BEFORE_S => IssuedState::Renew,
            _ => IssuedState::Valid,
        }
    }
}

/// All rows, in the order in which they were issued.
pub fn read(dir: &PkiDir) -> Result<Vec<IssuedRow>> {
    let path = dir.issued();
    let bytes = read_bounded(&path, ISSUED_FILE_LEN_BYTES_MAX).with_context(|| {
        format!("can't read {}; `kiseki ca init` makes an authority, `--dir` says where it is", path.display())
    })?;
    let text = String::from_utf8(bytes).map_err(|_| anyhow!("{} is not UTF-8", path.display()))?;
    let row = |(number, line): (usize, &str)| {
        serde_json::from_str(line).with_context(|| format!("{}:{}: not a line of ours", path.display(), number + 1))
    };
    text.lines().enumerate().map(row).collect()
}

/// Replaces all rows.
pub(super) fn write(dir: &PkiDir, rows: &[IssuedRow]) -> Result<()> {
    let mut text = String::new();
    for row in rows {
        text.push_str(&serde_json::to_string(row)?);
        text.push('\n');
    }
    write_whole(&dir.issued(), text.as_bytes(), Readers::Everybody)
        .with_context(|| format!("can't write {}", dir.issued().display()))
}

/// The text of the list of revoked certificates, and the list.
pub fn read_revoked(path: &std::path::Path) -> Result<(String, BTreeSet<Serial>)> {
    let bytes = read_bounded(path, REVOKED_FILE_LEN_BYTES_MAX).with_context(|| {
        format!(
            "can't read {}, the list of revoked certificates; without it nobody knows whom to turn away: copy it from the \
             authority's directory (an empty file revokes nothing)",
            path.display()
        )
    })?;
    let Ok(text) = String::from_utf8(bytes) else { bail!("{} is not UTF-8", path.display()) };
    let serials = revoked::parse(&text).map_err(|error| anyhow!("{}: {error}", path.display()))?;
    Ok((text, serials))
}
