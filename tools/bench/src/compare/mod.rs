//! `compare`: two sides of results, their medians and spread, and a plain verdict.

mod rule;
mod sides;

use crate::plot::{Throughput, time};
use crate::results::RunResult;
use crate::units::{binary, count};
use crate::usage::usage;
use anyhow::{Context, Result};
use clap::Args;
use rule::{Finding, Samples, judge};
use serde_json::{Value, json};
use sides::{Line, Metric, matched};
use std::fmt::Write as _;
use std::io::Write as _;
use std::path::PathBuf;

/// Most results of one side: the exact rank test of more takes long, and changes no verdict.
const RUNS_MAX: usize = 30;

const EXAMPLES: &str = "\
Examples:
  # several runs of each side, best made in turn: A B A B A B
  kiseki-bench compare a1.json a2.json a3.json --with b1.json b2.json b3.json
  # one of each: judged by how the intervals vary, which is weak
  kiseki-bench compare before.json after.json
  # the product's rings beside fio (--output-format=json --lat_percentiles=1)
  kiseki-bench compare fio.json ours.json

A difference counts only beyond the spread. With four runs or more on each side: a rank test (Mann-Whitney, exact,
two-sided, 5 %). With two or three: the ranges must not overlap. With one: the middle 80 % of its intervals of 500 ms.";

/// Arguments of `compare`.
#[derive(Args, Clone, Debug)]
#[command(after_help = EXAMPLES)]
pub struct CompareArgs {
    /// Results of side A, ours or fio's; without --with the second one is side B
    #[arg(required = true, value_name = "RESULT.json")]
    pub results: Vec<PathBuf>,
    /// Results of side B
    #[arg(long, value_name = "RESULT.json", num_args = 1..)]
    pub with: Vec<PathBuf>,
    /// Print one JSON document instead of text
    #[arg(long)]
    pub json: bool,
}

/// What became of a line.
#[derive(Clone, Debug)]
enum Verdict {
    /// B is better or worse by so many percent.
    Differs { is_better: bool, text: String },
    /// Nothing beyond the spread.
    Same,
    /// Nothing can be said.
    Refused(String),
}

/// A line with its verdict.
struct Judged {
    line: Line,
    finding: Option<Finding>,
    verdict: Verdict,
}

/// A whole comparison.
struct Comparison {
    names: [Vec<String>; 2],
    judged: Vec<Judged>,
    refused: Vec<String>,
    warnings: Vec<String>,
}

/// Compares and prints.
pub fn run(args: &CompareArgs) -> Result<()> {
    let (a, b) = match (&args.results[..], &args.with[..]) {
        ([a, b], []) => (std::slice::from_ref(a), std::slice::from_ref(b)),
        (_, []) => return Err(usage("give two results, or several and those of the other side with --with")),
        (a, b) => (a, b),
    };
    if a.len().max(b.len()) > RUNS_MAX {
        return Err(usage(format!("give at most {RUNS_MAX} results of a side")));
    }
    let read = |side: &[PathBuf]| side.iter().map(|path| RunResult::read(path)).collect::<Result<Vec<_>>>();
    let comparison = Comparison::of(&read(a)?, &read(b)?);
    let text = match args.json {
        true => format!("{:#}\n", comparison.json()),
        false => comparison.text(),
    };
    std::io::stdout().lock().write_all(text.as_bytes()).context("can't write the comparison to stdout")
}

impl Comparison {
    fn of(a: &[RunResult], b: &[RunResult]) -> Comparison {
        let found = matched(a, b);
        let names = [a, b].map(|side| side.iter().map(|result| result.name.clone()).collect());
        let judged = found.lines.into_iter().map(Judged::of).collect();
        Comparison { names, judged, refused: found.refused, warnings: found.warnings }
    }

    /// The whole in one sentence.
    fn verdict(&self) -> String {
        let refused = self.judged.iter().filter(|one| matches!(one.verdict, Verdict::Refused(_))).count();
        let all = self.judged.len() - refused;
        if all == 0 {
            let first = self.judged.iter().find_map(|one| match &one.verdict {
                Verdict::Refused(why) => Some(why),
                _ => None,
            });
            let why = self.refused.first().or(first).map_or("nothing is on both sides", String::as_str);
            return format!("can't be compared: {why}");
        }
        let differing = |wanted: bool| {
            let is_it =
                move |one: &&Judged| matches!(&one.verdict, Verdict::Differs { is_better, .. } if *is_better == wanted);
            self.judged.iter().filter(is_it).collect::<Vec<_>>()
        };
        let (better, worse) = (differing(true), differing(false));
        let mut text = match (better.len(), worse.len()) {
            (0, 0) => "no difference that the spread allows to see".to_owned(),
            (better, worse) => {
                let rest = all - better - worse;
                format!(
                    "B is better in {better} and worse in {worse} of {all} lines; in {rest} no difference is to be seen"
                )
            }
        };
        // With one throughput, that is what people ask for first.
        let mut rates = self.judged.iter().filter(|one| matches!(one.line.metric, Metric::Throughput(_)));
        if let (Some(Judged { verdict: Verdict::Differs { text: rate, .. }, .. }), None) = (rates.next(), rates.next())
        {
            text = format!("{rate}; {text}");
        }
        if self.judged.iter().filter_map(|one| one.finding.as_ref()).any(|finding| finding.weakness.is_some()) {
            text.push_str(" (weak: too few runs)");
        }
        text
    }

    fn text(&self) -> String {
        let mut out = String::new();
        for (name, files) in ["A", "B"].iter().zip(&self.names) {
            let _ = writeln!(out, "{name}: {}", files.join(", "));
        }
        let mut job = String::new();
        for one in &self.judged {
            let line = &one.line;
            let head = format!("{}, {}", line.job, line.direction);
            if head != job {
                let _ = writeln!(out, "\n{head}");
                job = head;
            }
            let shown = |samples: &Samples| {
                let median = samples.median().map_or_else(|| "-".to_owned(), |value| line.metric.show(value));
                match samples.range().filter(|_| samples.runs.len() > 1) {
                    Some(range) => {
                        format!("{median} [{} .. {}]", line.metric.show(*range.start()), line.metric.show(*range.end()))
                    }
                    None => median,
                }
            };
            let ratio = one.ratio().map_or_else(String::new, |ratio| format!("B/A {ratio:.3}"));
            let [a, b] = [shown(&line.samples[0]), shown(&line.samples[1])];
            let _ = writeln!(out, "  {:<14} A {a:<36} B {b:<36} {ratio:<11} {}", line.metric.name(), one.words());
        }
        if !self.judged.is_empty() {
            out.push('\n');
        }
        let mut rules: Vec<&str> =
            self.judged.iter().filter_map(|one| Some(one.finding.as_ref()?.rule.as_str())).collect();
        rules.iter_mut().for_each(|rule| *rule = rule.split(", p=").next().unwrap_or(rule));
        rules.dedup();
        rules.iter().for_each(|rule| {
            let _ = writeln!(out, "rule: {rule}");
        });
        let mut weak: Vec<&str> =
            self.judged.iter().filter_map(|one| one.finding.as_ref()?.weakness.as_deref()).collect();
        weak.dedup();
        weak.iter().for_each(|weakness| {
            let _ = writeln!(out, "weak: {weakness}");
        });
        self.refused.iter().for_each(|line| {
            let _ = writeln!(out, "can't be compared: {line}");
        });
        self.warnings.iter().for_each(|line| {
            let _ = writeln!(out, "warning: {line}");
        });
        let _ = writeln!(out, "verdict: {}", self.verdict());
        out
    }

    fn json(&self) -> Value {
        let side = |samples: &Samples| {
            let range = samples.range();
            json!({"median": samples.median(), "min": range.as_ref().map(|range| *range.start()),
                "max": range.as_ref().map(|range| *range.end()), "runs": samples.runs})
        };
        let line = |one: &Judged| {
            let verdict = match &one.verdict {
                Verdict::Differs { is_better: true, .. } => "b_better",
                Verdict::Differs { is_better: false, .. } => "b_worse",
                Verdict::Same => "no_visible_difference",
                Verdict::Refused(_) => "not_comparable",
            };
            json!({"job": one.line.job, "direction": one.line.direction, "metric": one.line.metric.name(),
                "unit": one.line.metric.unit(), "a": side(&one.line.samples[0]), "b": side(&one.line.samples[1]),
                "ratio": one.ratio(), "verdict": verdict, "text": one.words(),
                "rule": one.finding.as_ref().map(|finding| &finding.rule),
                "weakness": one.finding.as_ref().and_then(|finding| finding.weakness.as_ref())})
        };
        json!({
            "a": self.names[0],
            "b": self.names[1],
            "lines": self.judged.iter().map(line).collect::<Vec<_>>(),
            "not_comparable": self.refused,
            "warnings": self.warnings,
            "verdict": self.verdict(),
        })
    }
}

impl Judged {
    fn of(line: Line) -> Judged {
        let finding = judge(&line.samples[0], &line.samples[1]);
        let mut judged = Judged { line, finding: finding.as_ref().ok().cloned(), verdict: Verdict::Same };
        judged.verdict = match (finding, judged.ratio()) {
            (Err(why), _) => Verdict::Refused(why),
            (Ok(_), None) => Verdict::Refused("A is zero".to_owned()),
            (Ok(finding), Some(ratio)) if finding.differs && ratio != 1.0 => {
                let is_better = (ratio > 1.0) == judged.line.metric.more_is_better();
                Verdict::Differs { is_better, text: judged.line.metric.difference(ratio) }
            }
            (Ok(_), Some(_)) => Verdict::Same,
        };
        judged
    }

    fn ratio(&self) -> Option<f64> {
        let [a, b] = &self.line.samples;
        Some(b.median()? / a.median().filter(|a| *a > 0.0)?)
    }

    fn words(&self) -> String {
        match &self.verdict {
            Verdict::Differs { text, .. } => text.clone(),
            Verdict::Same => "no difference that the spread allows to see".to_owned(),
            Verdict::Refused(why) => format!("can't be compared: {why}"),
        }
    }
}

impl Metric {
    fn name(self) -> String {
        match self {
            Metric::Throughput(Throughput::Operations) => "IOPS".to_owned(),
            Metric::Throughput(Throughput::Bytes) => "BW".to_owned(),
            Metric::Latency(word, thousandths) => format!("{word} p{}", f64::from(thousandths) / 1000.0),
            Metric::Cpu(whose) => format!("{whose} cpu/op"),
        }
    }

    fn unit(self) -> &'static str {
        match self {
            Metric::Throughput(Throughput::Operations) => "1/s",
            Metric::Throughput(Throughput::Bytes) => "bytes/s",
            Metric::Latency(..) | Metric::Cpu(_) => "ns",
        }
    }

    fn show(self, value: f64) -> String {
        match self {
            Metric::Throughput(Throughput::Operations) => count(value),
            Metric::Throughput(Throughput::Bytes) => format!("{}/s", binary(value)),
            Metric::Latency(..) | Metric::Cpu(_) => time(value),
        }
    }

    fn more_is_better(self) -> bool {
        matches!(self, Metric::Throughput(_))
    }

    /// `B is 12 % faster`.
    fn difference(self, ratio: f64) -> String {
        let (more, less) = match self {
            Metric::Throughput(_) => ("faster", "slower"),
            Metric::Latency(..) => ("longer", "shorter"),
            Metric::Cpu(_) => ("dearer", "cheaper"),
        };
        let percent = (ratio - 1.0).abs() * 100.0;
        let percent = if percent < 9.95 { format!("{percent:.1}") } else { format!("{percent:.0}") };
        format!("B is {percent} % {}", if ratio > 1.0 { more } else { less })
    }
}

#[cfg(test)]
mod tests;
