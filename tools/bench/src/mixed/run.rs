//! A run from begin to end: bucket, objects to read, all profiles at once, removal.

use super::MixedArgs;
use super::profile::{Kind, Profile, Step};
use super::report::job;
use crate::manifest::Manifest;
use crate::measure::{Course, ErrorLog, Latency, Meter, Plan, Timing, Watched, Window};
use crate::output::Report;
use crate::s3::cleanup::remove_all;
use crate::s3::content::Content;
use crate::s3::crew::{Crew, for_all, on_threads};
use crate::s3::servers::{Servers, Times, tell};
use crate::s3::session::Session;
use crate::s3::target::Target;
use crate::stop::Stop;
use crate::units::ns;
use anyhow::Result;
use futures::future::join_all;
use serde_json::json;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::time::{Duration, Instant};
use tokio::sync::Barrier;

/// Failures after which a profile gives up: what all fail with will not go away.
const FAILURES_MAX: u64 = 1000;

/// A client waits this long after a failure: a server that refuses is not to be stormed.
const FAILURE_PAUSE: Duration = Duration::from_millis(10);

/// Phases whose times are kept one by one; all count in the sums.
const SPANS_MAX: usize = 1000;

/// When one phase of one round was done.
#[derive(Clone, Copy, Debug)]
pub struct Span {
    /// Which.
    pub round: u64,
    /// What was done.
    pub kind: Kind,
    /// Begin of all clients.
    pub begin_ns: u64,
    /// When the first operation had ended.
    pub first_end_ns: u64,
    /// When the head of the first answer to a GET was there.
    pub first_byte_ns: u64,
    /// When the last client had ended.
    pub end_ns: u64,
    /// Whether every step was begun.
    pub is_whole: bool,
}

/// The phase that all clients of a profile are in.
#[derive(Clone)]
struct Now {
    round: u64,
    phase: usize,
    begin_ns: u64,
    /// Time that earlier rounds spent in this phase.
    before_ns: u64,
    order: Arc<Vec<u64>>,
}

/// Where a profile is.
struct Progressed {
    now: Option<Now>,
    next: (u64, usize),
    spent_ns: Vec<u64>,
    spans: Vec<Span>,
    rounds_whole: u64,
}

/// A profile at work.
struct Running<'a> {
    profile: &'a Profile,
    course: &'a Course,
    /// Whether rounds go on until the time is over.
    is_endless: bool,
    barrier: Barrier,
    progressed: Mutex<Progressed>,
    next_step: AtomicU64,
    first_end_ns: AtomicU64,
    first_byte_ns: AtomicU64,
    failures: AtomicU64,
}

/// What one client measured.
pub struct ClientResult {
    /// By phase.
    pub meters: Vec<Meter>,
    /// Of GETs.
    pub first_byte: Latency,
    /// Failures.
    pub errors: ErrorLog,
}

/// What a profile measured.
pub struct Outcome {
    /// By phase; their time is that of the phase only.
    pub meters: Vec<Meter>,
    /// Of GETs.
    pub first_byte: Latency,
    /// Failures.
    pub errors: ErrorLog,
    /// Phases one by one, as far as they are kept.
    pub spans: Vec<Span>,
    /// Rounds that went through all phases.
    pub rounds_whole: u64,
    /// From the first phase's begin to the last one's end.
    pub wall_ns: u64,
}

/// Notes the operations of one client in one phase.
pub struct Recorder<'a> {
    course: &'a Course,
    first_end_ns: &'a AtomicU64,
    first_byte_ns: &'a AtomicU64,
    /// What times of the course are shifted by, so that a phase's time has no gaps between rounds.
    begin_ns: u64,
    before_ns: u64,
    meter: &'a mut Meter,
    first_byte: &'a mut Latency,
}

impl Recorder<'_> {
    /// Now.
    pub fn now_ns(&self) -> u64 {
        self.course.now_ns()
    }

    /// Counts an operation that began then and has ended now.
    pub fn done(&mut self, start_ns: u64, bytes: u64, first_byte: Option<Instant>) {
        let end_ns = self.now_ns();
        self.first_end_ns.fetch_min(end_ns, Ordering::Relaxed);
        if let Some(first_byte) = first_byte {
            let at_ns = ns(first_byte.saturating_duration_since(self.course.epoch()));
            self.first_byte_ns.fetch_min(at_ns, Ordering::Relaxed);
            self.first_byte.record(at_ns.saturating_sub(start_ns));
        }
        let in_phase = |at_ns: u64| at_ns.saturating_sub(self.begin_ns) + self.before_ns;
        let start_in_phase_ns = in_phase(start_ns);
        let timing = Timing { intended_ns: start_in_phase_ns, start_ns: start_in_phase_ns, end_ns: in_phase(end_ns) };
        self.meter.record(timing, bytes);
        self.course.tally.done_in(bytes, end_ns - start_ns);
    }
}

impl<'a> Running<'a> {
    fn new(profile: &'a Profile, course: &'a Course, is_endless: bool) -> Running<'a> {
        let spent_ns = vec![0; profile.phases.len()];
        Running {
            profile,
            course,
            is_endless,
            barrier: Barrier::new(profile.clients),
            progressed: Mutex::new(Progressed {
                now: None,
                next: (0, 0),
                spent_ns,
                spans: Vec::new(),
                rounds_whole: 0,
            }),
            next_step: AtomicU64::new(0),
            first_end_ns: AtomicU64::new(u64::MAX),
            first_byte_ns: AtomicU64::new(u64::MAX),
            failures: AtomicU64::new(0),
        }
    }

    fn is_over(&self) -> bool {
        self.course.is_over() || self.failures.load(Ordering::Relaxed) >= FAILURES_MAX
    }

    fn progressed(&self) -> std::sync::MutexGuard<'_, Progressed> {
        self.progressed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for the other clients, and goes into the next phase with them. `None` at the end.
    async fn turn(&self) -> Option<Now> {
        if self.barrier.wait().await.is_leader() {
            self.advance();
        }
        self.barrier.wait().await;
        self.progressed().now.clone()
    }

    /// Ends the phase and begins the next one. Nobody else works meanwhile.
    fn advance(&self) {
        let mut progressed = self.progressed();
        let progressed = &mut *progressed;
        let now_ns = self.course.now_ns();
        if let Some(now) = progressed.now.take() {
            let phase = self.profile.phases[now.phase];
            progressed.spent_ns[now.phase] += now_ns - now.begin_ns;
            let is_whole = self.next_step.load(Ordering::Relaxed) >= phase.steps;
            if is_whole && now.phase + 1 == self.profile.phases.len() {
                progressed.rounds_whole += 1;
            }
            if progressed.spans.len() < SPANS_MAX {
                progressed.spans.push(Span {
                    round: now.round,
                    kind: phase.kind,
                    begin_ns: now.begin_ns,
                    first_end_ns: self.first_end_ns.load(Ordering::Relaxed).min(now_ns),
                    first_byte_ns: self.first_byte_ns.load(Ordering::Relaxed).min(now_ns),
                    end_ns: now_ns,
                    is_whole,
                });
            }
        }
        let (round, phase) = progressed.next;
        if self.is_over() || (!self.is_endless && round >= self.profile.rounds) {
            return;
        }
        progressed.next = if phase + 1 < self.profile.phases.len() { (round, phase + 1) } else { (round + 1, 0) };
        let order = Arc::new(self.profile.order(round));
        for first in [&self.first_end_ns, &self.first_byte_ns] {
            first.store(u64::MAX, Ordering::Relaxed);
        }
        self.next_step.store(0, Ordering::Relaxed);
        let (begin_ns, before_ns) = (self.course.now_ns(), progressed.spent_ns[phase]);
        progressed.now = Some(Now { round, phase, begin_ns, before_ns, order });
    }

    /// One client, from the first phase to the last.
    async fn work(&self, mut session: Session<'_>) -> ClientResult {
        let whole = Window { start_ns: 0, end_ns: u64::MAX };
        let mut result = ClientResult {
            meters: vec![Meter::new(whole); self.profile.phases.len()],
            first_byte: Latency::default(),
            errors: ErrorLog::default(),
        };
        while let Some(now) = self.turn().await {
            let phase = self.profile.phases[now.phase];
            let mut recorder = Recorder {
                course: self.course,
                first_end_ns: &self.first_end_ns,
                first_byte_ns: &self.first_byte_ns,
                begin_ns: now.begin_ns,
                before_ns: now.before_ns,
                meter: &mut result.meters[now.phase],
                first_byte: &mut result.first_byte,
            };
            while !self.is_over() {
                let index = self.next_step.fetch_add(1, Ordering::Relaxed);
                if index >= phase.steps {
                    break;
                }
                let step = Step { round: now.round, kind: phase.kind, index };
                if let Err(error) = self.profile.step(step, &now.order, &mut session, &mut recorder).await {
                    result.errors.record(&format!("{error:#}"));
                    self.course.tally.failed();
                    self.failures.fetch_add(1, Ordering::Relaxed);
                    tokio::time::sleep(FAILURE_PAUSE).await;
                }
            }
        }
        result
    }

    fn outcome(self, results: Vec<ClientResult>) -> Outcome {
        let progressed = self.progressed.into_inner().unwrap_or_else(PoisonError::into_inner);
        let whole = Window { start_ns: 0, end_ns: u64::MAX };
        let mut meters = vec![Meter::new(whole); self.profile.phases.len()];
        let (mut first_byte, mut errors) = (Latency::default(), ErrorLog::default());
        for result in &results {
            meters.iter_mut().zip(&result.meters).for_each(|(all, one)| all.merge(one));
            first_byte.merge(&result.first_byte);
            errors.merge(&result.errors);
        }
        meters.iter_mut().zip(&progressed.spent_ns).for_each(|(meter, spent_ns)| meter.close(*spent_ns));
        let wall_ns = progressed.spent_ns.iter().sum();
        let (spans, rounds_whole) = (progressed.spans, progressed.rounds_whole);
        Outcome { meters, first_byte, errors, spans, rounds_whole, wall_ns }
    }
}

/// Runs it all.
pub fn run(args: &MixedArgs, stop: &Stop) -> Result<Report> {
    let target = Target::open(&args.target)?;
    let seed = args.seed.unwrap_or_else(crate::noise::fresh_seed);
    let (content, prefix) = (Arc::new(Content::new(seed)), format!("{}{seed:016x}/", args.target.prefix));
    let profiles: Vec<Profile> =
        args.profiles.iter().map(|name| Profile::new(*name, args, &prefix, &content, seed)).collect();
    for profile in &profiles {
        args.target.check_parts(profile.len_bytes_max)?;
    }
    let servers = Servers::open(&args.admin, &args.target)?;
    let clients: usize = profiles.iter().map(|profile| profile.clients).sum();
    let crew = Crew { threads: args.target.threads_for(clients), clients };
    let mut options = serde_json::to_value(args)?;
    options["seed"] = json!(seed);
    options["threads"] = json!(crew.threads);
    let bucket = &target.bucket.name;
    let manifest = Manifest::new("mixed", json!({"endpoint": target.url(), "bucket": bucket}), options);
    let made_bucket = target.ensure_bucket()?;
    let measured = prepare(&target, &profiles, &content, crew.threads, stop)
        .and_then(|()| measure(args, &target, &profiles, &content, crew, &servers, stop));
    let mut warnings = Vec::new();
    if args.target.cleanup {
        // Whatever failed before is told first, but nothing is left behind for it.
        let removed = remove_all(&target, &prefix, crew).and_then(|()| match made_bucket {
            true => target.remove_bucket(),
            false => Ok(()),
        });
        if measured.is_ok() {
            removed?;
        }
    } else {
        warnings.push(format!("objects are left in s3://{bucket}/{prefix}; --cleanup removes them"));
    }
    let (outcomes, watched, times) = measured?;
    let is_alone = profiles.len() == 1;
    let mut jobs = Vec::new();
    for (number, (profile, outcome)) in profiles.iter().zip(outcomes).enumerate() {
        let used = (number == 0).then_some(&watched);
        jobs.push(job(profile, outcome, used, is_alone, &mut warnings));
    }
    if let Some(first) = jobs.first_mut() {
        if times.is_some() && !is_alone {
            first.notes.push("server times: of all profiles".to_owned());
        }
        tell(times, first, &mut warnings);
    }
    Ok(Report { manifest, jobs, warnings })
}

/// Stores what is read later.
fn prepare(target: &Target, profiles: &[Profile], content: &Arc<Content>, threads: usize, stop: &Stop) -> Result<()> {
    for profile in profiles {
        let phase = format!("storing objects of {}", profile.name);
        let clients = profile.clients;
        let crew = Crew { threads: threads.min(clients), clients };
        let session = |_| Session::new(target, content, false);
        let store = async |session: &mut Session<'_>, index: usize| profile.prepare(session, index as u64).await;
        for_all(crew, &phase, profile.prepared as usize, Some(stop), session, store)?;
    }
    Ok(())
}

fn measure(
    args: &MixedArgs,
    target: &Target,
    profiles: &[Profile],
    content: &Arc<Content>,
    crew: Crew,
    servers: &Servers,
    stop: &Stop,
) -> Result<(Vec<Outcome>, Watched, Times)> {
    let steps = |profile: &Profile| profile.rounds * profile.phases.iter().map(|phase| phase.steps).sum::<u64>();
    let all_steps: u64 = profiles.iter().map(steps).sum();
    let plan = Plan {
        warmup: Duration::ZERO,
        runtime: args.runtime.unwrap_or_default(),
        count: args.runtime.is_none().then_some(all_steps),
        steady: None,
    };
    let course = Course::new(&plan, stop);
    let running: Vec<Running<'_>> =
        profiles.iter().map(|profile| Running::new(profile, &course, args.runtime.is_some())).collect();
    let owners: Vec<usize> =
        profiles.iter().enumerate().flat_map(|(number, profile)| vec![number; profile.clients]).collect();
    let begin = Barrier::new(crew.clients);
    let (working, ended) = mpsc::channel::<()>();
    let working = Mutex::new(vec![working; crew.threads]);
    let work = async |_: usize, numbers: Vec<usize>| {
        let _working = working.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let one = async |number: usize| {
            let running = &running[owners[number]];
            let mut session = Session::new(target, content, running.profile.verify);
            // One that can't be made now is tried again by the first operation, which then tells why.
            let _ = session.connect().await;
            begin.wait().await;
            course.epoch();
            (owners[number], running.work(session).await)
        };
        join_all(numbers.into_iter().map(one)).await
    };
    // What was stored before is no part of it.
    servers.settle(plan.warmup);
    let (results, (watched, times)) = on_threads(crew, work, || servers.watch(&plan, &course, &ended))?;
    let mut by_profile: Vec<Vec<ClientResult>> = profiles.iter().map(|_| Vec::new()).collect();
    results.into_iter().flatten().for_each(|(owner, result)| by_profile[owner].push(result));
    let outcomes = running.into_iter().zip(by_profile).map(|(running, results)| running.outcome(results));
    Ok((outcomes.collect(), watched, times))
}
