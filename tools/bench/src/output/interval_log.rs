//! The interval log: a CSV line for each interval and direction, in the order of time.

use super::Report;
use anyhow::{Context, Result};
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

/// The first line. Times count from the end of the warm-up.
const HEADER: &str =
    "job,direction,start_ms,length_ms,operations,bytes,operations_per_s,bytes_per_s,p50_ns,p99_ns,max_ns";

/// Writes the log of all jobs.
pub fn write(report: &Report, path: &Path) -> Result<()> {
    let write = || {
        let mut out = BufWriter::new(File::create(path)?);
        write_lines(report, &mut out)?;
        out.flush()
    };
    write().with_context(|| format!("can't write {}", path.display()))
}

fn write_lines(report: &Report, out: &mut dyn Write) -> std::io::Result<()> {
    writeln!(out, "{HEADER}")?;
    for job in &report.jobs {
        let mut slices: Vec<_> = job
            .sides()
            .flat_map(|(direction, side)| side.meter.timeline().into_iter().map(move |slice| (direction, slice)))
            .collect();
        slices.sort_by_key(|(_, slice)| slice.start_ns);
        for (direction, slice) in slices {
            let interval = &slice.interval;
            writeln!(
                out,
                "{},{direction},{},{},{},{},{:.1},{:.0},{},{},{}",
                quoted(&job.name),
                slice.start_ns / 1_000_000,
                slice.len_ns as f64 / 1e6,
                interval.ops,
                interval.bytes,
                slice.per_second(interval.ops),
                slice.per_second(interval.bytes),
                interval.percentile_ns(50.0),
                interval.percentile_ns(99.0),
                interval.max_ns
            )?;
        }
    }
    Ok(())
}

/// A field as RFC 4180 wants it.
fn quoted(field: &str) -> String {
    match field.contains([',', '"', '\n', '\r']) {
        true => format!("\"{}\"", field.replace('"', "\"\"")),
        false => field.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest::Manifest;
    use crate::measure::{Meter, Timing, Window};
    use crate::output::{Job, Side};
    use serde_json::json;

    #[test]
    fn directions_stand_together_in_the_order_of_time() {
        let meter = |ends_ns: &[u64]| {
            let mut meter = Meter::new(Window { start_ns: 1_000_000_000, end_ns: 1_750_000_000 });
            for end_ns in ends_ns {
                let start_ns = end_ns - 20_000;
                meter.record(Timing { intended_ns: start_ns, start_ns, end_ns: *end_ns }, 4096);
            }
            Some(Side::of(meter))
        };
        let (read, write) = (meter(&[1_100_000_000, 1_200_000_000]), meter(&[1_600_000_000]));
        let job = Job { name: "a \"b\", c".to_owned(), read, write, ..Job::default() };
        let manifest = Manifest::new("device", json!("x"), json!({}));
        let mut out = Vec::new();
        write_lines(&Report { manifest, jobs: vec![job], warnings: Vec::new() }, &mut out).unwrap();
        let text = String::from_utf8(out).unwrap();
        let name = "\"a \"\"b\"\", c\"";
        let lines = [
            HEADER.to_owned(),
            format!("{name},read,0,500,2,8192,4.0,16384,20000,20000,20000"),
            format!("{name},write,0,500,0,0,0.0,0,0,0,0"),
            format!("{name},read,500,250,0,0,0.0,0,0,0,0"),
            format!("{name},write,500,250,1,4096,4.0,16384,20000,20000,20000"),
        ];
        assert_eq!(text.lines().collect::<Vec<_>>(), lines);
    }
}
