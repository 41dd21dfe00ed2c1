//! The `.hgrm` files of a result.

use super::Report;
use crate::measure::Latency;
use anyhow::{Context, Result};
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

/// Writes each distribution; in an open loop the one corrected for late starts.
pub fn write(report: &Report, path: &Path) -> Result<()> {
    let mut all: Vec<(Vec<&str>, &Latency)> = Vec::new();
    for job in &report.jobs {
        for (direction, side) in job.sides() {
            let name = if report.jobs.len() > 1 { vec![job.name.as_str(), direction] } else { vec![direction] };
            all.push((name, &side.meter.corrected));
        }
    }
    let single = all.len() == 1;
    for (name, latency) in all {
        let path = if single { path.to_owned() } else { with_name(path, &name.join(".")) };
        let write = || {
            let mut out = BufWriter::new(File::create(&path)?);
            latency.write_hgrm(&mut out)?;
            out.flush()
        };
        write().with_context(|| format!("can't write {}", path.display()))?;
    }
    Ok(())
}

/// `a/b.hgrm` and `read` make `a/b.read.hgrm`.
fn with_name(path: &Path, name: &str) -> PathBuf {
    let clean: String = name.chars().map(|c| if c.is_ascii_alphanumeric() || c == '.' { c } else { '-' }).collect();
    let extension = path.extension().and_then(|extension| extension.to_str()).unwrap_or("hgrm");
    path.with_extension(format!("{}.{extension}", clean.trim_matches('-')))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_stand_before_the_extension() {
        assert_eq!(with_name(Path::new("a/b.hgrm"), "read"), Path::new("a/b.read.hgrm"));
        assert_eq!(with_name(Path::new("b"), "/dev/x y.write"), Path::new("b.dev-x-y.write.hgrm"));
    }
}
