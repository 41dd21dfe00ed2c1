//! A run from begin to end: bucket, objects to read, measurement, reading back, removal.

use super::admin_page::AdminPage;
use super::client::{Client, ClientResult, Clock};
use super::crew::{for_all, on_threads, runtime};
use super::due::DueQueue;
use super::objects::Written;
use super::server_times::{self, ServerTimes};
use super::{Mix, Setup};
use crate::manifest::Manifest;
use crate::measure::{CpuTime, ErrorLog, Latency, Meter, ProcessCpu, Schedule, Window};
use crate::output::{Job, Report, ServerCpu, Side};
use crate::progress::{Progress, TICK, Tally};
use crate::stop::Stop;
use crate::units::{binary, ns};
use anyhow::{Context, Result, anyhow};
use futures::future::{Future, join};
use futures::stream::{FuturesUnordered, StreamExt};
use serde_json::json;
use std::sync::{Barrier, Mutex, OnceLock, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

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
}

/// What this machine's processes used during the window.
struct Used {
    own: CpuTime,
    servers: Vec<ServerCpu>,
    /// What nodes spent their time on, where their admin ports are known.
    times: Option<Result<ServerTimes>>,
    end_ns: u64,
}

/// Servers that are looked at when the window begins and ends.
struct Servers {
    processes: Vec<(u32, ProcessCpu)>,
    nodes: Vec<AdminPage>,
}

impl Servers {
    fn of(setup: &Setup) -> Result<Servers> {
        let processes = setup.args.server_pid.iter().map(|pid| Ok((*pid, ProcessCpu::of(*pid)?)));
        let authorities = setup.args.ca_bundle.as_deref().filter(|path| !path.as_os_str().is_empty());
        let page = |url: &String| AdminPage::open("--server-admin", url, "/stages", authorities);
        let nodes = setup.args.server_admin.iter().map(page).collect::<Result<Vec<_>>>()?;
        ServerTimes::read(&nodes)?; // not to learn after the run that it can't be done
        Ok(Servers { processes: processes.collect::<Result<Vec<_>>>()?, nodes })
    }

    fn times(&self) -> Option<Result<ServerTimes>> {
        (!self.nodes.is_empty()).then(|| ServerTimes::read(&self.nodes))
    }
}

/// What one thread has: its clients' results, and when operations were due that nobody began.
type ThreadResult = Result<(Vec<ClientResult>, Vec<u64>)>;

/// Runs it all.
pub fn run(setup: &Setup, stop: &Stop) -> Result<Report> {
    let servers = Servers::of(setup)?;
    let mut options = serde_json::to_value(&setup.args)?;
    options["seed"] = json!(setup.seed);
    options["threads"] = json!(setup.threads);
    options["read_objects"] = json!(setup.read_objects);
    let manifest = Manifest::new("s3", json!({"endpoint": setup.endpoint.url, "bucket": setup.bucket.name}), options);
    let made_bucket = runtime()?.block_on(ensure_bucket(setup))?;
    for_all(setup, "storing objects to read", setup.read_objects as usize, Some(stop), async |client, index| {
        client.put_read_object(index as u64).await
    })?;
    let mut measured = measure(setup, stop, &servers)?;
    let mut warnings = Vec::new();
    let checked = match setup.args.verify && setup.args.op.writes() {
        true => read_back(setup, stop, &mut measured)?,
        false => 0,
    };
    if setup.args.cleanup {
        clean_up(setup, &measured.0.written, made_bucket)?;
    } else {
        let (bucket, prefix) = (&setup.bucket.name, &setup.naming.prefix);
        warnings.push(format!("objects are left in s3://{bucket}/{prefix}; --cleanup removes them"));
    }
    let job = job(setup, measured, checked, &mut warnings);
    Ok(Report { manifest, jobs: vec![job], warnings })
}

async fn ensure_bucket(setup: &Setup) -> Result<bool> {
    let mut connection = setup.connection();
    let ensuring = setup.bucket.ensure(&mut connection, &setup.credentials.region);
    let made = tokio::time::timeout(setup.args.timeout, ensuring).await;
    let made = made.map_err(|_| anyhow!("no answer within --timeout {}s", setup.args.timeout.as_secs_f64()))?;
    made.with_context(|| format!("endpoint {}", setup.endpoint.url))
}

/// Runs futures side by side; only those that were woken are looked at.
async fn all<T>(futures: impl Iterator<Item = impl Future<Output = T>>) -> Vec<T> {
    futures.collect::<FuturesUnordered<_>>().collect().await
}

fn measure(setup: &Setup, stop: &Stop, servers: &Servers) -> Result<(Measured, Used)> {
    let start_ns = ns(setup.args.warmup);
    let window = Window { start_ns, end_ns: start_ns + ns(setup.args.runtime) };
    let (ready, epoch, tally) = (Barrier::new(setup.threads + 1), OnceLock::new(), Tally::default());
    let work = async |thread: usize, numbers: Vec<usize>| -> ThreadResult {
        let mut clients: Vec<Client<'_>> = numbers.iter().map(|number| Client::new(setup, *number)).collect();
        let connected: Vec<Result<()>> = all(clients.iter_mut().map(Client::connect)).await;
        // All connections are there before the clock runs; who has none still lets the others go on.
        ready.wait();
        connected.into_iter().collect::<Result<()>>()?;
        let clock = Clock { epoch: *epoch.get_or_init(Instant::now), window, tally: &tally, stop };
        let Some(rate) = setup.args.rate else {
            return Ok((all(clients.into_iter().map(|client| client.run(&clock, None))).await, Vec::new()));
        };
        let queue = DueQueue::new();
        let schedule = Schedule::share(rate, thread, setup.threads);
        let filling = queue.fill(schedule, clock.epoch, window.end_ns, stop);
        let working = all(clients.into_iter().map(|client| client.run(&clock, Some(&queue))));
        let (left, results) = join(filling, working).await;
        Ok((results, left?))
    };
    let watch = || {
        ready.wait();
        watch(*epoch.get_or_init(Instant::now), window, &tally, stop, servers)
    };
    let (results, used) = on_threads(setup, work, watch)?;
    let mut all = Measured {
        read: Meter::new(window),
        write: Meter::new(window),
        first_byte: Latency::default(),
        errors: ErrorLog::default(),
        connects: 0,
        never_begun: 0,
        written: Vec::new(),
    };
    for result in results {
        let (clients, left) = result.with_context(|| format!("endpoint {}", setup.endpoint.url))?;
        all.add(clients);
        all.never_begun += left.len() as u64;
        // Which operation each would have been is not decided; what waited shows where most operations are.
        let meter = if setup.args.op.get_percent >= 50 { &mut all.read } else { &mut all.write };
        left.into_iter().for_each(|due_ns| meter.record_never_begun(due_ns, used.end_ns));
    }
    all.read.close(used.end_ns);
    all.write.close(used.end_ns);
    Ok((all, used))
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

/// Shows progress, and looks at processor times when the window begins and ends.
fn watch(epoch: Instant, window: Window, tally: &Tally, stop: &Stop, servers: &Servers) -> Used {
    let own = ProcessCpu::own();
    let read_all = || {
        let servers: Vec<Option<CpuTime>> = servers.processes.iter().map(|(_, process)| process.read()).collect();
        (own.read().unwrap_or_default(), servers)
    };
    let mut progress = Progress::start("measuring", Some(window.end_ns / 1_000_000));
    let (mut begin, mut times) = (read_all(), servers.times());
    let mut is_warm = false;
    loop {
        let now_ns = ns(epoch.elapsed());
        if !is_warm && now_ns >= window.start_ns {
            is_warm = true;
            begin = read_all();
            times = servers.times();
        }
        if now_ns >= window.end_ns || stop.is_set() {
            let end = read_all();
            let times = times.map(|begin| {
                thread::sleep(server_times::BEHIND);
                Ok(ServerTimes::read(&servers.nodes)?.since(&begin?))
            });
            let servers = servers.processes.iter().zip(begin.1.iter().zip(&end.1));
            let servers = servers.map(|((pid, _), (begin, end))| {
                let used = begin.as_ref().zip(end.as_ref()).map(|(begin, end)| end.since(begin));
                ServerCpu { pid: *pid, used }
            });
            let servers = servers.collect();
            return Used { own: end.0.since(&begin.0), servers, times, end_ns: now_ns };
        }
        let next_ns = if is_warm { window.end_ns } else { window.start_ns };
        thread::sleep(Duration::from_nanos(next_ns - now_ns).min(TICK));
        progress.show(now_ns / 1_000_000, tally);
    }
}

/// Reads every acknowledged object back. Returns how many were checked; what fails joins the errors.
fn read_back(setup: &Setup, stop: &Stop, measured: &mut (Measured, Used)) -> Result<u64> {
    let measured = &mut measured.0;
    let expected: Vec<(usize, u64, Vec<u32>)> = measured
        .written
        .iter()
        .flat_map(|written| written.expected().map(|(slot, versions)| (written.client(), slot, versions)))
        .filter(|(_, _, versions)| !versions.is_empty())
        .collect();
    let failures = Mutex::new(ErrorLog::default());
    for_all(setup, "reading back", expected.len(), Some(stop), async |client, index| {
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
    for_all(setup, "removing objects", keys.len(), None, async |client, index| client.delete(&keys[index]).await)?;
    if made_bucket {
        let mut connection = setup.connection();
        runtime()?.block_on(setup.bucket.remove(&mut connection)).context("the bucket can't be removed")?;
    }
    Ok(())
}

fn job(setup: &Setup, (measured, used): (Measured, Used), checked: u64, warnings: &mut Vec<String>) -> Job {
    let Mix { get_percent } = setup.args.op;
    let first_byte = Some(measured.first_byte);
    let mut job = Job {
        name: setup.args.op.word(),
        about: setup.args.about(),
        read: (get_percent > 0).then_some(Side { meter: measured.read, first_byte }),
        write: (get_percent < 100).then(|| Side::of(measured.write)),
        is_open_loop: setup.args.rate.is_some(),
        errors: measured.errors,
        cpu: used.own,
        servers: used.servers,
        ..Job::default()
    };
    if job.ops() == 0 {
        warnings.push("no operation ended within --runtime; measure longer".to_owned());
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
        let (count, rate) = (measured.never_begun, setup.args.rate.unwrap_or(0.0));
        warnings.push(format!("{count} operations were due and never begun: --rate {rate} is more than was served"));
    }
    match used.times {
        None => {}
        Some(Err(error)) => warnings.push(format!("what servers spent their time on is not known: {error:#}")),
        Some(Ok(times)) => {
            job.extra.insert("waterfall".to_owned(), times.json());
            job.notes.extend(times.lines());
        }
    }
    let idle = setup.clients * setup.connections_per_client();
    if measured.connects > idle as u64 {
        job.notes.push(format!("{} connections were made for {idle} in use: not all were kept", measured.connects));
    }
    if setup.args.verify {
        let part = if checked > 0 { format!(", {checked} objects read back") } else { String::new() };
        let bytes = job.read.as_ref().map_or(0, |side| side.meter.bytes());
        job.notes.push(format!("verify: every byte of {} of GETs{part}", binary(bytes as f64)));
    }
    job
}
