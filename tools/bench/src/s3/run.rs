//! A run from begin to end: bucket, objects to read, measurement, reading back, removal.

use super::client::{Client, ClientResult};
use super::crew::{Crew, for_all, on_threads};
use super::due::DueQueue;
use super::objects::Written;
use super::servers::{Servers, Times, tell};
use super::{Mix, Setup};
use crate::manifest::Manifest;
use crate::measure::{Course, ErrorLog, Latency, Meter, Schedule, Watched};
use crate::output::{Job, Report, Side};
use crate::stop::Stop;
use crate::sweep;
use crate::units::binary;
use anyhow::{Context, Result};
use futures::future::{Future, join};
use futures::stream::{FuturesUnordered, StreamExt};
use serde_json::json;
use std::sync::{Barrier, Mutex, PoisonError, mpsc};

/// Share of the time for which the client's threads may work before that is worth a warning: beyond it, requests wait
/// for the client more than for the server.
const BUSY_MAX: f64 = 0.8;

/// What the threads measured together.
struct Measured {
    read: Meter,
    write: Meter,
    first_byte: Latency,
    errors: ErrorLog,
    connects: u64,
    never_begun: u64,
    written: Vec<Written>,
    /// What nodes spent their time on, where their admin ports are known.
    times: Times,
}

/// What one thread has: its clients' results, and when operations were due that nobody began.
type ThreadResult = Result<(Vec<ClientResult>, Vec<u64>)>;

/// Runs it all.
pub fn run(setup: &Setup, stop: &Stop) -> Result<Report> {
    let servers = Servers::open(&setup.args.admin, &setup.args.target)?;
    let mut options = serde_json::to_value(&setup.args)?;
    options["seed"] = json!(setup.seed);
    options["threads"] = json!(setup.threads);
    options["read_objects"] = json!(setup.read_objects);
    let bucket = &setup.target.bucket.name;
    let manifest = Manifest::new("s3", json!({"endpoint": setup.target.url(), "bucket": bucket}), options);
    let made_bucket = setup.target.ensure_bucket()?;
    for_clients(setup, "storing objects to read", setup.read_objects as usize, Some(stop), async |client, index| {
        client.put_read_object(index as u64).await
    })?;
    let (mut jobs, mut written, mut warnings) = (Vec::new(), Vec::new(), Vec::new());
    for step in setup.steps() {
        let mut measured = measure(&step, stop, &servers)?;
        let checked = match setup.args.load.verify && setup.args.load.op.writes() {
            true => read_back(&step, stop, &mut measured)?,
            false => 0,
        };
        written.append(&mut measured.0.written);
        jobs.push(job(&step, measured, checked, &mut warnings));
        if stop.is_set() {
            break;
        }
    }
    if let Some(sweep) = &setup.args.length.sweep {
        sweep::mark(sweep, &mut jobs.iter_mut().collect::<Vec<_>>(), &mut warnings);
    }
    if setup.args.target.cleanup {
        clean_up(setup, &written, made_bucket)?;
    } else {
        warnings.push(format!("objects are left in s3://{bucket}/{}; --cleanup removes them", setup.naming.prefix));
    }
    Ok(Report { manifest, jobs, warnings })
}

/// Does a step for each of `count` things by all clients.
fn for_clients(
    setup: &Setup,
    phase: &str,
    count: usize,
    stop: Option<&Stop>,
    step: impl for<'c, 'a> AsyncFn(&'c mut Client<'a>, usize) -> Result<()> + Sync,
) -> Result<()> {
    let client = |number| Client::new(setup, number);
    let step = async |client: &mut Client<'_>, index| step(client, index).await.map(|()| setup.args.load.size);
    for_all(crew(setup), phase, count, stop, client, step)
}

fn crew(setup: &Setup) -> Crew {
    Crew { threads: setup.threads, clients: setup.clients }
}

/// Runs futures side by side; only those that were woken are looked at.
async fn all<T>(futures: impl Iterator<Item = impl Future<Output = T>>) -> Vec<T> {
    futures.collect::<FuturesUnordered<_>>().collect().await
}

fn measure(setup: &Setup, stop: &Stop, servers: &Servers) -> Result<(Measured, Watched)> {
    let plan = setup.args.plan();
    let (ready, course) = (Barrier::new(setup.threads + 1), Course::new(&plan, stop));
    let (working, ended) = mpsc::channel::<()>();
    // One for each thread, which drops it at its end: then the watch ends too.
    let working = Mutex::new(vec![working; setup.threads]);
    let work = async |thread: usize, numbers: Vec<usize>| -> ThreadResult {
        let _working = working.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let mut clients: Vec<Client<'_>> = numbers.iter().map(|number| Client::new(setup, *number)).collect();
        let connected: Vec<Result<()>> = all(clients.iter_mut().map(Client::connect)).await;
        // All connections are there before the clock runs; who has none still lets the others go on.
        ready.wait();
        connected.into_iter().collect::<Result<()>>()?;
        course.epoch();
        let Some(rate) = setup.args.load.rate else {
            return Ok((all(clients.into_iter().map(|client| client.run(&course, None))).await, Vec::new()));
        };
        let queue = DueQueue::new();
        let schedule = Schedule::share(rate, thread, setup.threads);
        let filling = queue.fill(schedule, &course, plan.count);
        let working = all(clients.into_iter().map(|client| client.run(&course, Some(&queue))));
        let (filled, results) = join(filling, working).await;
        filled?;
        Ok((results, queue.left()))
    };
    let watching = || {
        ready.wait();
        course.epoch();
        servers.watch(&plan, &course, &ended)
    };
    servers.settle(plan.warmup);
    let (results, (watched, times)) = on_threads(crew(setup), work, watching)?;
    let window = course.window();
    let mut all = Measured {
        read: Meter::new(window),
        write: Meter::new(window),
        first_byte: Latency::default(),
        errors: ErrorLog::default(),
        connects: 0,
        never_begun: 0,
        written: Vec::new(),
        times,
    };
    for result in results {
        let (clients, left) = result.with_context(|| format!("endpoint {}", setup.target.url()))?;
        all.add(clients);
        all.never_begun += left.len() as u64;
        // Which operation each would have been is not decided; what waited shows where most operations are.
        let meter = if setup.args.load.op.get_percent >= 50 { &mut all.read } else { &mut all.write };
        left.into_iter().for_each(|due_ns| meter.record_never_begun(due_ns, watched.end_ns));
    }
    let end_ns = match plan.count {
        Some(_) if !stop.is_set() => all.read.last_end_ns().max(all.write.last_end_ns()),
        _ => watched.end_ns,
    };
    all.read.close(end_ns);
    all.write.close(end_ns);
    Ok((all, watched))
}

impl Measured {
    fn add(&mut self, clients: Vec<ClientResult>) {
        for client in clients {
            self.read.merge(&client.read);
            self.write.merge(&client.write);
            self.first_byte.merge(&client.first_byte);
            self.errors.merge(&client.errors);
            self.connects += client.connects;
            self.written.push(client.written);
        }
    }
}

/// Reads every acknowledged object back. Returns how many were checked; what fails joins the errors.
fn read_back(setup: &Setup, stop: &Stop, measured: &mut (Measured, Watched)) -> Result<u64> {
    let measured = &mut measured.0;
    let expected: Vec<(usize, u64, Vec<u32>)> = measured
        .written
        .iter()
        .flat_map(|written| written.expected().map(|(slot, versions)| (written.client(), slot, versions)))
        .filter(|(_, _, versions)| !versions.is_empty())
        .collect();
    let failures = Mutex::new(ErrorLog::default());
    for_clients(setup, "reading back", expected.len(), Some(stop), async |client, index| {
        let (writer, slot, versions) = &expected[index];
        if let Err(error) = client.check_written(*writer, *slot, versions).await {
            let message = format!("reading back: {error:#}");
            failures.lock().unwrap_or_else(PoisonError::into_inner).record(&message);
        }
        Ok(())
    })?;
    measured.errors.merge(&failures.into_inner().unwrap_or_else(PoisonError::into_inner));
    Ok(expected.len() as u64)
}

fn clean_up(setup: &Setup, written: &[Written], made_bucket: bool) -> Result<()> {
    let naming = &setup.naming;
    let mut keys: Vec<String> = (0..setup.read_objects).map(|index| naming.read_key(index)).collect();
    for written in written {
        keys.extend(written.expected().map(|(slot, _)| naming.write_key(written.client(), slot)));
    }
    for_clients(setup, "removing objects", keys.len(), None, async |client, index| client.delete(&keys[index]).await)?;
    if made_bucket { setup.target.remove_bucket() } else { Ok(()) }
}

fn job(setup: &Setup, (measured, watched): (Measured, Watched), checked: u64, warnings: &mut Vec<String>) -> Job {
    let Mix { get_percent } = setup.args.load.op;
    let first_byte = Some(measured.first_byte);
    let mut job = Job {
        name: setup.args.load.op.word(),
        about: setup.args.about(),
        read: (get_percent > 0).then_some(Side { meter: measured.read, first_byte }),
        write: (get_percent < 100).then(|| Side::of(measured.write)),
        is_open_loop: setup.args.load.rate.is_some(),
        errors: measured.errors,
        cpu: watched.spent.own,
        machine: watched.spent.machine,
        servers: watched.servers,
        ..Job::default()
    };
    if job.ops() == 0 {
        warnings.push(format!("{}: no operation ended in the measured part; measure longer", job.about));
    }
    let busy = job.cpu.total_ns() as f64 / (job.runtime_ns() as f64 * setup.threads as f64).max(1.0);
    if busy > BUSY_MAX {
        warnings.push(format!(
            "{} client threads were busy for {:.0} % of the time: they may be what was measured; raise --threads",
            setup.threads,
            busy * 100.0
        ));
    }
    job.extra.insert("connects".to_owned(), json!(measured.connects));
    job.extra.insert("never_begun_ios".to_owned(), json!(measured.never_begun));
    job.extra.insert("read_back_objects".to_owned(), json!(checked));
    if measured.never_begun > 0 {
        let (count, rate) = (measured.never_begun, setup.args.load.rate.unwrap_or(0.0));
        warnings.push(format!("{count} operations were due and never begun: rate {rate} is more than was served"));
    }
    if let Some(steady) = &watched.steady {
        job.extra.insert("steadystate".to_owned(), steady.json());
        job.notes.push(steady.line());
    }
    tell(measured.times, &mut job, warnings);
    let idle = setup.clients * setup.connections_per_client();
    if measured.connects > idle as u64 {
        job.notes.push(format!("{} connections were made for {idle} in use: not all were kept", measured.connects));
    }
    if setup.args.load.verify {
        let part = if checked > 0 { format!(", {checked} objects read back") } else { String::new() };
        let bytes = job.read.as_ref().map_or(0, |side| side.meter.bytes());
        job.notes.push(format!("verify: every byte of {} of GETs{part}", binary(bytes as f64)));
    }
    job
}
