//! A run: counting files, uploading them, what was found.

use super::IngestArgs;
use super::dedup::{Cutting, Dedup};
use super::metrics::{self, MetricsPage};
use super::tree::{Entry, LeftOut, Tree, open};
use crate::manifest::Manifest;
use crate::measure::{ErrorLog, Meter, ProcessCpu, Spent, Timing, Window};
use crate::output::{Job, Report, ServerCpu, Side};
use crate::progress::{Progress, Tally};
use crate::s3::PARTS_MAX;
use crate::s3::body::Payload;
use crate::s3::cleanup::remove_all;
use crate::s3::content::Content;
use crate::s3::crew::{Crew, on_threads};
use crate::s3::operations::UploadPart;
use crate::s3::session::Session;
use crate::s3::target::Target;
use crate::stop::Stop;
use crate::units::{binary, count, ns};
use anyhow::{Context, Result, anyhow};
use bytes::Bytes;
use futures::future::join_all;
use serde_json::{Value, json};
use std::fs::File;
use std::io::Read;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// A client waits this long after a failure: a server that refuses is not to be stormed.
const FAILURE_PAUSE: Duration = Duration::from_millis(10);

/// What all clients share. Held by threads that read files, too, which may outlive the client that asked them.
struct Shared {
    tree: Mutex<Tree>,
    part_len_bytes: u64,
    cutting: Option<Cutting>,
    dedup: Mutex<Dedup>,
    left_out: Mutex<LeftOut>,
    errors: Mutex<ErrorLog>,
    tally: Tally,
    stop: Stop,
    epoch: Instant,
}

/// A file whose first part has been read.
struct Opened {
    name: String,
    file: File,
    /// Bytes that are left after the first part.
    left_len_bytes: u64,
    part_len_bytes: u64,
    first: Bytes,
    opened_ns: u64,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    fn failed(&self, message: &str) {
        lock(&self.errors).record(message);
        self.tally.failed();
    }

    fn now_ns(&self) -> u64 {
        ns(self.epoch.elapsed())
    }

    /// The next file that can be read, with its first part. `None` at the end, or after Ctrl-C.
    fn next(&self) -> Option<Opened> {
        while !self.stop.is_set() {
            // The lock is held for one step of the walk, not while the file is read.
            let entry = lock(&self.tree).next()?;
            match entry {
                Entry::LeftOut(why, path) => lock(&self.left_out).note(why, &path),
                Entry::Failed(message) => self.failed(&message),
                Entry::File(found) => {
                    let opened_ns = self.now_ns();
                    let read = open(&found.path).and_then(|(mut file, len_bytes)| {
                        // An object has a limited number of parts: those of a very large file are longer.
                        let part_len_bytes = self.part_len_bytes.max(len_bytes.div_ceil(PARTS_MAX));
                        let first = self.read(&mut file, len_bytes.min(part_len_bytes))?;
                        let left_len_bytes = len_bytes.saturating_sub(part_len_bytes);
                        Ok(Opened { name: found.name, file, left_len_bytes, part_len_bytes, first, opened_ns })
                    });
                    match read {
                        Ok(opened) => return Some(opened),
                        Err(error) => self.failed(&format!("{}: {error}", found.path.display())),
                    }
                }
            }
        }
        None
    }

    /// Reads a part, and counts its chunks. A file that has become shorter gives less.
    fn read(&self, file: &mut File, len_bytes: u64) -> std::io::Result<Bytes> {
        let mut bytes = Vec::with_capacity(len_bytes as usize);
        file.take(len_bytes).read_to_end(&mut bytes)?;
        if let Some(cutting) = &self.cutting {
            let chunks = cutting.chunks(&bytes);
            lock(&self.dedup).add(&chunks);
        }
        Ok(bytes.into())
    }

    /// The part after the last one.
    fn read_more(&self, opened: &mut Opened) -> std::io::Result<Bytes> {
        let len_bytes = opened.left_len_bytes.min(opened.part_len_bytes);
        let bytes = self.read(&mut opened.file, len_bytes)?;
        // Nothing more comes out of a file that ended early.
        let is_end = (bytes.len() as u64) < len_bytes;
        opened.left_len_bytes = if is_end { 0 } else { opened.left_len_bytes - len_bytes };
        Ok(bytes)
    }
}

/// What is known before the upload.
#[derive(Clone, Copy, Debug, Default)]
struct Total {
    files: u64,
    bytes: u64,
}

/// Counts what there is, for the progress bar; errors are told when files are read.
fn count_files(args: &IngestArgs, stop: &Stop) -> Total {
    let (mut total, tally) = (Total::default(), Tally::default());
    let mut progress = Progress::start("counting files", None);
    for entry in Tree::new(&args.directory) {
        if stop.is_set() {
            break;
        }
        let Entry::File(found) = entry else { continue };
        let len_bytes = found.path.symlink_metadata().map_or(0, |found| found.len());
        total = Total { files: total.files + 1, bytes: total.bytes + len_bytes };
        tally.done(len_bytes);
        progress.show(total.files, &tally);
    }
    total
}

/// One client's work, until there are no more files.
async fn upload_files(shared: &Arc<Shared>, mut session: Session<'_>, prefix: &str) -> Meter {
    let mut meter = whole_meter();
    loop {
        let (tree, stop) = (shared.clone(), &shared.stop);
        // On a thread of its own: a slow disk and the chunker must not hold up the other clients' answers.
        let Ok(Some(opened)) = tokio::task::spawn_blocking(move || tree.next()).await else { return meter };
        let name = opened.name.clone();
        let start_ns = shared.now_ns();
        match upload(shared, &mut session, prefix, opened).await {
            Ok(len_bytes) => {
                let timing = Timing { intended_ns: start_ns, start_ns, end_ns: shared.now_ns() };
                meter.record(timing, len_bytes);
                shared.tally.done(len_bytes);
            }
            // Given up because of Ctrl-C, not failed.
            Err(_) if stop.is_set() => return meter,
            Err(error) => {
                shared.failed(&format!("{name}: {error:#}"));
                tokio::time::sleep(FAILURE_PAUSE).await;
            }
        }
    }
}

/// Uploads a file; its bytes.
async fn upload(shared: &Arc<Shared>, session: &mut Session<'_>, prefix: &str, opened: Opened) -> Result<u64> {
    let key = format!("{prefix}{}", opened.name);
    if opened.left_len_bytes == 0 {
        let len_bytes = opened.first.len() as u64;
        session.put_bytes(&key, Payload::of(opened.first)).await?;
        return Ok(len_bytes);
    }
    let upload = session.create_upload(&key).await?;
    let sent = match send_parts(shared, session, (&key, &upload), opened).await {
        Ok((tags, len_bytes)) => session.complete_upload(&key, &upload, &tags).await.map(|()| len_bytes),
        Err(error) => Err(error),
    };
    if sent.is_err() {
        // Parts of an upload that nobody completes would stay for ever; the error told is the first one.
        let _ = session.abort_upload(&key, &upload).await;
    }
    sent
}

/// Sends all parts, one after the other; their tags and bytes.
async fn send_parts(
    shared: &Arc<Shared>,
    session: &mut Session<'_>,
    (key, upload): (&str, &str),
    mut opened: Opened,
) -> Result<(Vec<String>, u64)> {
    let (mut tags, mut len_bytes) = (Vec::new(), 0);
    let mut bytes = std::mem::take(&mut opened.first);
    loop {
        len_bytes += bytes.len() as u64;
        let part = UploadPart { key, upload, number: tags.len() as u64 + 1 };
        tags.push(session.upload_part(part, Payload::of(bytes)).await?);
        if opened.left_len_bytes == 0 {
            return Ok((tags, len_bytes));
        }
        if shared.stop.is_set() {
            return Err(anyhow!("interrupted"));
        }
        let reader = shared.clone();
        let reading = tokio::task::spawn_blocking(move || {
            let bytes = reader.read_more(&mut opened);
            bytes.map(|bytes| (opened, bytes))
        });
        (opened, bytes) = reading.await?.context("reading")?;
        if bytes.is_empty() {
            return Ok((tags, len_bytes));
        }
    }
}

fn whole_meter() -> Meter {
    Meter::new(Window { start_ns: 0, end_ns: u64::MAX })
}

/// Reads and cuts all files on threads of their own.
fn read_all(shared: &Shared, threads: usize, total: Total) -> Result<Meter> {
    let ended = AtomicUsize::new(0);
    let one = || {
        let mut meter = whole_meter();
        while let Some(mut opened) = shared.next() {
            let start_ns = opened.opened_ns;
            let mut len_bytes = opened.first.len() as u64;
            let mut result = Ok(());
            while opened.left_len_bytes > 0 && result.is_ok() && !shared.stop.is_set() {
                result = shared.read_more(&mut opened).map(|bytes| len_bytes += bytes.len() as u64);
            }
            match result {
                Ok(()) => {
                    let timing = Timing { intended_ns: start_ns, start_ns, end_ns: shared.now_ns() };
                    meter.record(timing, len_bytes);
                    shared.tally.done(len_bytes);
                }
                Err(error) => shared.failed(&format!("{}: {error}", opened.name)),
            }
        }
        ended.fetch_add(1, Ordering::Relaxed);
        meter
    };
    thread::scope(|scope| {
        let handles: Vec<_> = (0..threads).map(|_| scope.spawn(one)).collect();
        show(shared, total, || ended.load(Ordering::Relaxed) == threads);
        let mut all = whole_meter();
        for handle in handles {
            all.merge(&handle.join().map_err(|_| anyhow!("a thread ended early"))?);
        }
        Ok(all)
    })
}

fn show(shared: &Shared, total: Total, has_ended: impl Fn() -> bool) {
    let mut progress = Progress::start("ingest", Some(total.bytes));
    while !has_ended() {
        thread::sleep(Duration::from_millis(5));
        progress.show_files(&shared.tally, total.files, total.bytes);
    }
}

/// Uploads all files by all clients.
fn upload_all(shared: &Arc<Shared>, target: &Target, crew: Crew, prefix: &str, total: Total) -> Result<Meter> {
    let (ended, content) = (AtomicUsize::new(0), Arc::new(Content::new(0)));
    let work = async |_: usize, numbers: Vec<usize>| {
        let client = async |_| upload_files(shared, Session::new(target, &content, false), prefix).await;
        let meters = join_all(numbers.into_iter().map(client)).await;
        ended.fetch_add(1, Ordering::Relaxed);
        meters
    };
    let showing = || show(shared, total, || ended.load(Ordering::Relaxed) == crew.threads);
    let (results, ()) = on_threads(crew, work, showing)?;
    let mut all = whole_meter();
    results.iter().flatten().for_each(|meter| all.merge(meter));
    Ok(all)
}

/// Runs it all.
pub fn run(args: &IngestArgs, stop: &Stop) -> Result<Report> {
    let target = if args.dry_run { None } else { Some(Target::open(&args.target)?) };
    let page = args.server_admin.as_deref().map(|url| MetricsPage::open(url, args.target.authorities())).transpose()?;
    let servers = args.target.servers()?;
    let clients = usize::from(args.clients);
    let crew = Crew { threads: args.target.threads_for(clients), clients };
    let prefix = format!("{}{:016x}/", args.target.prefix, crate::noise::fresh_seed());
    let mut options = serde_json::to_value(args)?;
    options["threads"] = json!(crew.threads);
    let bucket = &args.target.bucket;
    let to = target.as_ref().map(|target| json!({"endpoint": target.url(), "bucket": bucket}));
    let manifest =
        Manifest::new("ingest", json!({"directory": args.directory, "to": to.unwrap_or(Value::Null)}), options);
    let made_bucket = target.as_ref().map_or(Ok(false), Target::ensure_bucket)?;
    let before = page.as_ref().map(MetricsPage::read).transpose()?;
    let total = count_files(args, stop);
    let shared = Arc::new(Shared {
        tree: Mutex::new(Tree::new(&args.directory)),
        part_len_bytes: args.target.part_size,
        cutting: (!args.no_dedup).then(Cutting::new),
        dedup: Mutex::new(Dedup::new()),
        left_out: Mutex::default(),
        errors: Mutex::default(),
        tally: Tally::default(),
        stop: stop.clone(),
        epoch: Instant::now(),
    });
    let begin = (Spent::now(), servers.iter().map(|server| server.1.read()).collect::<Vec<_>>());
    let measured = match &target {
        None => read_all(&shared, crew.threads.max(args.target.threads.map_or(1, usize::from)), total),
        Some(target) => upload_all(&shared, target, crew, &prefix, total),
    };
    let wall_ns = shared.now_ns();
    let spent = Spent::now().since(&begin.0);
    let of_server = |((pid, process), begin): (&(u32, ProcessCpu), &Option<crate::measure::CpuTime>)| ServerCpu {
        pid: *pid,
        used: process.read().zip(begin.as_ref()).map(|(end, begin)| end.since(begin)),
    };
    let server_cpus = servers.iter().zip(&begin.1).map(of_server).collect();
    let after = page.as_ref().map(MetricsPage::read).transpose();
    let mut warnings = Vec::new();
    if let Some(target) = &target {
        match args.target.cleanup {
            false => warnings.push(format!("objects are left in s3://{bucket}/{prefix}; --cleanup removes them")),
            true => {
                remove_all(target, &prefix, crew)?;
                if made_bucket {
                    target.remove_bucket()?;
                }
            }
        }
    }
    let mut meter = measured?;
    meter.close(wall_ns);
    let mut job = job(args, meter, &shared);
    (job.cpu, job.machine, job.servers) = (spent.own, spent.machine, server_cpus);
    if let Some((before, after)) = before.zip(after?) {
        let added = metrics::added(&before, &after);
        job.notes.push(metrics::line(&added));
        job.extra.insert("server_counters".to_owned(), Value::Object(added));
    }
    if stop.is_set() {
        warnings.push("interrupted: not all files were taken".to_owned());
    }
    Ok(Report { manifest, jobs: vec![job], warnings })
}

fn job(args: &IngestArgs, meter: Meter, shared: &Shared) -> Job {
    let files_per_second = meter.iops();
    let part_size = binary(args.target.part_size as f64);
    let mut job = Job {
        name: args.directory.display().to_string(),
        about: match args.dry_run {
            true => format!("dry run, parts={part_size}"),
            false => format!("ingest, clients={}, parts={part_size}", args.clients),
        },
        errors: lock(&shared.errors).clone(),
        ..Job::default()
    };
    job.extra.insert("files".to_owned(), json!(meter.ops()));
    job.extra.insert("files_per_second".to_owned(), json!(files_per_second));
    job.notes.push(format!("files : {}, {}/s", meter.ops(), count(files_per_second)));
    match args.dry_run {
        true => job.read = Some(Side::of(meter)),
        false => job.write = Some(Side::of(meter)),
    }
    if !args.no_dedup {
        let found = lock(&shared.dedup).found();
        job.notes.extend(found.lines());
        job.extra.insert("dedup".to_owned(), found.json());
    }
    let mut left_out = serde_json::Map::new();
    for (why, count, names) in lock(&shared.left_out).kinds() {
        let more = if count > names.len() as u64 { ", ..." } else { "" };
        job.notes.push(format!("left out: {count} {why}: {}{more}", names.join(", ")));
        left_out.insert(why.to_owned(), json!({"count": count, "names": names}));
    }
    job.extra.insert("left_out".to_owned(), Value::Object(left_out));
    job
}
