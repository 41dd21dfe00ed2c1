//! The page: everything in one file, nothing from outside, no scripts. Whatever comes from a result is escaped.

use crate::plot::{Plots, Throughput, time};
use crate::results::{JobResult, RunResult, SideResult};
use crate::units::{binary, count};
use serde_json::{Map, Value};
use std::fmt::Write;

/// Pictures keep their white ground in the dark too: their colors are chosen for it.
const STYLE: &str = "\
:root { color-scheme: light dark; --ground: #fff; --ink: #1b1b1b; --faint: #5a5a5a; --line: #d0d0d0; --band: #f5f5f5; --warn: #8a3b00; }
@media (prefers-color-scheme: dark) {
  :root { --ground: #16181b; --ink: #e6e6e6; --faint: #a8a8a8; --line: #3c4046; --band: #202328; --warn: #ffb070; }
}
body { background: var(--ground); color: var(--ink); font: 16px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 68rem; padding: 0 1rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.25rem; margin-top: 2.5rem; } h3 { font-size: 1.05rem; margin-bottom: 0.3rem; }
.table { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; width: 100%; }
th, td { border-bottom: 1px solid var(--line); padding: 0.3rem 0.7rem; text-align: right; white-space: nowrap; }
th:first-child, td:first-child, th:nth-child(2), td:nth-child(2) { text-align: left; }
tbody tr:nth-child(odd) { background: var(--band); }
table.facts td { text-align: left; white-space: normal; overflow-wrap: anywhere; }
table.facts td:first-child { color: var(--faint); white-space: nowrap; width: 14rem; }
figure { margin: 1.5rem 0; } figure svg { background: #fff; border: 1px solid var(--line); height: auto; max-width: 100%; }
figcaption, .faint { color: var(--faint); } .warning { color: var(--warn); }
@media print { body { margin: 0; max-width: none; } figure { break-inside: avoid; } }
";

/// The page of results and their plots.
pub fn page(results: &[RunResult], plots: &Plots) -> String {
    let mut out = String::new();
    let names: Vec<&str> = results.iter().map(|result| result.name.as_str()).collect();
    let title = format!("kiseki-bench: {}", names.join(", "));
    let _ = write!(
        out,
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <title>{0}</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n<h1>{0}</h1>\n",
        escaped(&title)
    );
    warnings(&mut out, results);
    figures_table(&mut out, results);
    stages_table(&mut out, results);
    plots.plots.iter().for_each(|plot| {
        let (title, caption) = (escaped(&plot.title), escaped(&plot.caption));
        let _ = writeln!(out, "<h2>{title}</h2>\n<figure>\n{}<figcaption>{caption}</figcaption>\n</figure>", plot.svg);
    });
    if !plots.left_out.is_empty() {
        list(&mut out, "Not shown", "faint", &plots.left_out);
    }
    results.iter().for_each(|result| facts(&mut out, result));
    out.push_str("</body>\n</html>\n");
    out
}

/// Text of a result within the page.
fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '&' => out.push_str("&amp;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            c if c.is_control() && c != '\n' => out.push('\u{fffd}'),
            c => out.push(c),
        }
    }
    out
}

fn list(out: &mut String, title: &str, class: &str, lines: &[String]) {
    let _ = writeln!(out, "<h2>{title}</h2>\n<ul class=\"{class}\">");
    lines.iter().for_each(|line| {
        let _ = writeln!(out, "<li>{}</li>", escaped(line));
    });
    out.push_str("</ul>\n");
}

/// First of all what makes the figures mean less.
fn warnings(out: &mut String, results: &[RunResult]) {
    let mut lines = Vec::new();
    for result in results {
        lines.extend(result.warnings.iter().map(|warning| format!("{}: {warning}", result.name)));
        for job in result.jobs.iter().filter(|job| job.error_count > 0) {
            let messages = job.messages.join("; ");
            lines.push(format!("{}, {}: {} operations failed. {messages}", result.name, job.name, job.error_count));
        }
    }
    if !lines.is_empty() {
        list(out, "Warnings", "warning", &lines);
    }
}

fn figures_table(out: &mut String, results: &[RunResult]) {
    let heads = [
        "Result",
        "Job",
        "",
        "Operations/s",
        "Bytes/s",
        "mean",
        "p50",
        "p90",
        "p99",
        "p99.9",
        "p99.99",
        "max",
        "CPU/op",
        "Server CPU/op",
    ];
    out.push_str("<h2>Figures</h2>\n<div class=\"table\"><table>\n<thead><tr>");
    heads.iter().for_each(|head| {
        let _ = write!(out, "<th>{head}</th>");
    });
    out.push_str("</tr></thead>\n<tbody>\n");
    for result in results {
        for job in &result.jobs {
            job.sides.iter().for_each(|side| row(out, result, job, side));
        }
    }
    out.push_str("</tbody>\n</table></div>\n<p class=\"faint\">Latencies from when an operation was due to its end");
    out.push_str(" (fio: its <code>clat</code> where it has no more). Processor time for an operation of all directions together.</p>\n");
}

fn row(out: &mut String, result: &RunResult, job: &JobResult, side: &SideResult) {
    let latency = |percent| side.latency().and_then(|latency| latency.percentile_ns(percent));
    let shown = |ns: Option<f64>| ns.map_or_else(|| "–".to_owned(), time);
    let step = job.sweep.as_ref().map_or_else(String::new, |step| {
        let knee = if step.is_knee { ", knee" } else { "" };
        format!(" ({} {}{knee})", step.variable, step.value)
    });
    let mut cells = vec![result.name.clone(), format!("{}{step}", job.name), side.direction.to_owned()];
    cells.push(count(Throughput::Operations.amount(side)));
    cells.push(format!("{}/s", binary(Throughput::Bytes.amount(side))));
    cells.push(shown(side.latency().map(|latency| latency.mean_ns)));
    cells.extend([50.0, 90.0, 99.0, 99.9, 99.99].map(|percent| shown(latency(percent))));
    cells.push(shown(side.latency().map(|latency| latency.max_ns)));
    cells.push(shown(job.client_cpu_ns_per_op));
    cells.push(shown(job.server_cpu_ns_per_op));
    out.push_str("<tr>");
    cells.iter().for_each(|cell| {
        let _ = write!(out, "<td>{}</td>", escaped(cell));
    });
    out.push_str("</tr>\n");
}

fn stages_table(out: &mut String, results: &[RunResult]) {
    let jobs = results.iter().flat_map(|result| result.jobs.iter().map(move |job| (result, job)));
    let mut rows = String::new();
    for (result, job) in jobs {
        for stage in job.waterfall.iter().flat_map(|waterfall| &waterfall.stages) {
            let [p50, p99, p999] = stage.percentiles_ns.map(time);
            let cells = [format!("{}, {}", result.name, job.name), stage.name.clone(), stage.count.to_string()];
            let cells = cells.into_iter().chain([time(stage.mean_ns), p50, p99, p999]);
            let cells: String = cells.map(|cell| format!("<td>{}</td>", escaped(&cell))).collect();
            let _ = writeln!(rows, "<tr>{cells}</tr>");
        }
    }
    if !rows.is_empty() {
        out.push_str(
            "<h2>Stages of the server</h2>\n<div class=\"table\"><table>\n<thead><tr><th>Job</th><th>Stage</th>",
        );
        out.push_str("<th>Count</th><th>mean</th><th>p50</th><th>p99</th><th>p99.9</th></tr></thead>\n<tbody>\n");
        let _ = writeln!(out, "{rows}</tbody>\n</table></div>");
    }
}

/// Manifest and options of one result.
fn facts(out: &mut String, result: &RunResult) {
    let _ = writeln!(out, "<h2>{}</h2>\n<p>{}</p>", escaped(&result.name), escaped(&result.program));
    let manifest: Map<String, Value> = result
        .manifest
        .iter()
        .filter(|(key, _)| *key != "options")
        .map(|(key, value)| (key.clone(), value.clone()))
        .collect();
    for (title, facts) in [("Manifest", &manifest), ("Options", &result.options)] {
        if facts.is_empty() {
            continue;
        }
        let _ = writeln!(out, "<h3>{title}</h3>\n<div class=\"table\"><table class=\"facts\">\n<tbody>");
        for (key, value) in facts {
            let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            let _ = writeln!(out, "<tr><td>{}</td><td>{}</td></tr>", escaped(key), escaped(&text));
        }
        out.push_str("</tbody>\n</table></div>\n");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plot;
    use serde_json::json;

    #[test]
    fn nothing_of_a_result_becomes_markup_and_nothing_comes_from_outside() {
        let evil = "</title><script src=http://x></script><img onerror='a' \"b\">&";
        let latency = json!({"N": 5, "mean": 1.0, "max": 10, "bins": {"7": 4, "10": 1}});
        let mut options = Map::new();
        options.insert(evil.to_owned(), json!([evil]));
        let document = json!({
            "manifest": {"program": evil, "version": evil, "git_commit": evil, "options": options, "cpu_model": evil},
            "global options": options, "warnings": [evil],
            "jobs": [{"jobname": evil, "error": 3, "errors": {"messages": [{"message": evil, "count": 3}]},
                "read": {"total_ios": 5, "io_bytes": 5, "iops": 5.0, "lat_ns": latency},
                "sweep": {"variable": evil, "value": 3},
                "waterfall": {"source": evil, "stages": [{"name": evil, "count": 1, "mean_ns": 1.0, "p50_ns": 1, "p99_ns": 2, "p999_ns": 3}]}}]});
        let results = [RunResult::parse(evil.to_owned(), &document).unwrap()];
        let plots = plot::of(&results).unwrap();
        let page = page(&results, &plots);
        assert_eq!((plots.plots.len(), page.matches("<svg").count()), (2, 2), "latency and stages");
        for bad in ["<script", "<img", "http://x>", "</title><", "<link", "src=\"", "href="] {
            assert!(!page.contains(bad), "{bad:?} is in the page");
        }
        assert!(page.contains("&lt;script src=http://x&gt;") && page.contains("prefers-color-scheme: dark"));
        for part in ["3 operations failed", "<td>cpu_model</td>", ">5.00<", "Not shown", ">7 ns<"] {
            assert!(page.contains(part), "{part:?} is not in\n{page}");
        }
    }
}
