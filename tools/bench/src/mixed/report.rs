//! What a profile's phases become in the result.

use super::profile::{Kind, Profile};
use super::run::{Outcome, Span};
use crate::measure::Watched;
use crate::output::{Job, Side};
use crate::units::{binary, three_digits};
use serde_json::{Value, json};

impl Kind {
    /// As results call it.
    fn word(self) -> &'static str {
        match self {
            Kind::Write => "write",
            Kind::Read => "read",
            Kind::List => "list",
            Kind::Stat => "stat",
            Kind::Delete => "delete",
        }
    }
}

/// One profile's job. Processor time is that of the whole process: with several profiles it can't be told whose.
pub fn job(
    profile: &Profile,
    outcome: Outcome,
    watched: Option<&Watched>,
    is_alone: bool,
    warnings: &mut Vec<String>,
) -> Job {
    let mut job = Job {
        name: profile.name.clone(),
        about: profile.about.clone(),
        errors: outcome.errors,
        wall_ns: Some(outcome.wall_ns),
        ..Job::default()
    };
    let mut first_byte = Some(outcome.first_byte);
    for (phase, meter) in profile.phases.iter().zip(outcome.meters) {
        match phase.kind {
            Kind::Write => job.write = Some(Side::of(meter)),
            Kind::Read => job.read = Some(Side { meter, first_byte: first_byte.take() }),
            kind => job.others.push((kind.word(), Side::of(meter))),
        }
    }
    if let Some(watched) = watched {
        job.machine = watched.spent.machine;
        match is_alone {
            true => (job.cpu, job.servers) = (watched.spent.own, watched.servers.clone()),
            false => all_profiles(&mut job, watched),
        }
    }
    job.extra.insert("rounds".to_owned(), json!(outcome.rounds_whole));
    job.extra.insert("phases".to_owned(), outcome.spans.iter().map(span).collect());
    job.notes.push(format!("rounds: {} whole", outcome.rounds_whole));
    if profile.is_checkpoint() {
        checkpoint(&mut job, &outcome.spans);
    }
    if profile.verify {
        let bytes = job.read.as_ref().map_or(0, |side| side.meter.bytes());
        job.notes.push(format!("verify: every byte of {} of GETs", binary(bytes as f64)));
    }
    if job.ops() == 0 {
        warnings.push(format!("{}: no operation ended; measure longer", job.name));
    }
    job
}

fn all_profiles(job: &mut Job, watched: &Watched) {
    let servers: Vec<Value> = watched
        .servers
        .iter()
        .map(|server| json!({"pid": server.pid, "total_ns": server.used.map(|used| used.total_ns())}))
        .collect();
    let own_ns = watched.spent.own.total_ns();
    job.extra.insert("cpu_of_all_profiles".to_owned(), json!({"client_ns": own_ns, "servers": servers}));
    let mut note = format!("cpu of all profiles: client {:.2}s", own_ns as f64 / 1e9);
    for server in &watched.servers {
        let used_s = server.used.unwrap_or_default().total_ns() as f64 / 1e9;
        note.push_str(&format!(", server pid={} {used_s:.2}s", server.pid));
    }
    job.notes.push(note);
}

fn span(span: &Span) -> Value {
    json!({
        "round": span.round,
        "phase": span.kind.word(),
        "begin_ns": span.begin_ns,
        "first_end_ns": span.first_end_ns,
        "end_ns": span.end_ns,
        "is_whole": span.is_whole,
    })
}

/// What a training job would wait for: all parts stored, the slowest writer, the first byte back, all parts read.
fn checkpoint(job: &mut Job, spans: &[Span]) {
    let whole = |kind: Kind| spans.iter().filter(move |span| span.kind == kind && span.is_whole);
    let mean = |lens_ns: Vec<u64>| lens_ns.iter().sum::<u64>().checked_div(lens_ns.len() as u64);
    let writes = mean(whole(Kind::Write).map(|span| span.end_ns - span.begin_ns).collect());
    let slowest = mean(whole(Kind::Write).map(|span| span.end_ns - span.first_end_ns).collect());
    let reads = mean(whole(Kind::Read).map(|span| span.end_ns - span.begin_ns).collect());
    let gaps = whole(Kind::Read).filter_map(|read| {
        let write = whole(Kind::Write).find(|write| write.round == read.round)?;
        Some(read.first_byte_ns.saturating_sub(write.end_ns))
    });
    let gaps = mean(gaps.collect());
    let ms = |len_ns: Option<u64>| len_ns.map_or("-".to_owned(), |len_ns| three_digits(len_ns as f64 / 1e6));
    job.notes.push(format!(
        "checkpoint: write {}ms, of it waiting for the slowest writer {}ms; until the first byte back {}ms; read {}ms",
        ms(writes),
        ms(slowest),
        ms(gaps),
        ms(reads)
    ));
    let value = json!({"write_ns": writes, "slowest_writer_wait_ns": slowest, "stall_ns": gaps, "read_ns": reads});
    job.extra.insert("checkpoint".to_owned(), value);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_checkpoint_s_times_are_those_of_whole_rounds() {
        let span = |round, kind, begin_ns, first_end_ns, end_ns, is_whole| Span {
            round,
            kind,
            begin_ns,
            first_end_ns,
            first_byte_ns: begin_ns + 7,
            end_ns,
            is_whole,
        };
        let spans = [
            span(0, Kind::Write, 0, 60, 100, true),
            span(0, Kind::Read, 103, 120, 163, true),
            span(1, Kind::Write, 200, 280, 400, true),
            span(1, Kind::Read, 400, 410, 999_999, false),
        ];
        let mut job = Job::default();
        checkpoint(&mut job, &spans);
        let wanted = json!({"write_ns": 150, "slowest_writer_wait_ns": 80, "stall_ns": 10, "read_ns": 60});
        assert_eq!(job.extra["checkpoint"], wanted);
    }
}
