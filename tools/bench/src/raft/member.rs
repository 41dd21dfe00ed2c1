//! One member on its executor: a server for the others' parcels, links to them, its replicas; the first one has the writers too.

use super::{MEMBERS, RaftArgs, since_ns};
use crate::measure::{ErrorLog, Meter, Spent, Timing, Window};
use crate::progress::{Progress, TICK, Tally};
use crate::rpc::buffers;
use crate::rpc::members::Member as Certificate;
use crate::stop::Stop;
use anyhow::{Context, Result, anyhow};
use futures::channel::oneshot;
use futures::future::join_all;
use kiseki_net::peer::{Callers, LinkInputs, PeerGate, PeerLinks, PeerServer, PeerServices};
use kiseki_net::{CoreRuntime, Listener, MeshShape, SidePool, StopSignal, Stopper};
use kiseki_raft::ShardGroup;
use kiseki_raft_members::{Member, WRITER_LEN_BYTES};
use kiseki_server::steps::Steps;
use kiseki_types::group::RaftGroup;
use kiseki_types::peer::ServiceId;
use kiseki_types::runtime::{Ports, RuntimeExt, set_current};
use kiseki_types::{CoreId, NodeId, ShardId};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// Side threads of a member, for table files.
const SIDE_THREADS: usize = 2;

/// Longest sleep: Ctrl-C is looked for this often.
const SLEEP_MAX: Duration = Duration::from_millis(100);

/// A writer waits this long after a failure, such as while a group has no leader.
const FAILURE_PAUSE: Duration = Duration::from_millis(10);

/// What all members share.
pub struct Run {
    args: RaftArgs,
    dir: PathBuf,
    stop: Stop,
    window: Window,
    /// What no member does before all have come to it.
    pub steps: Steps,
    addresses: [OnceLock<SocketAddr>; MEMBERS as usize],
    epoch: OnceLock<Instant>,
    ended_ns: OnceLock<u64>,
    tally: Arc<Tally>,
    written: Mutex<Option<(Meter, ErrorLog)>>,
}

/// What a member counted in the window.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counted {
    /// Flushes of its journal.
    pub flushes: u64,
    /// Parcels that it sent, and calls in them.
    pub sent: (u64, u64),
}

impl Run {
    /// Nothing has begun yet.
    pub fn new(args: &RaftArgs, dir: &Path, stop: &Stop) -> Run {
        Run {
            args: args.clone(),
            dir: dir.to_owned(),
            stop: stop.clone(),
            window: args.span.window(),
            steps: Steps::new(MEMBERS),
            addresses: Default::default(),
            epoch: OnceLock::new(),
            ended_ns: OnceLock::new(),
            tally: Arc::default(),
            written: Mutex::default(),
        }
    }

    /// What the writers measured.
    pub fn take_written(&self) -> (Meter, ErrorLog) {
        let written = self.written.lock().unwrap_or_else(PoisonError::into_inner).take();
        written.unwrap_or_else(|| (Meter::new(self.window), ErrorLog::default()))
    }

    /// When the window ended.
    pub fn end_ns(&self) -> u64 {
        self.ended_ns.get().copied().unwrap_or(self.window.end_ns)
    }

    /// Shows progress until the window has ended or nobody works any more. Returns what was used in the window.
    pub fn wait_for_window(&self, has_ended: impl Fn() -> bool) -> Spent {
        let mut progress = Progress::start("measuring", Some(self.window.end_ns / 1_000_000));
        let mut begin = None;
        loop {
            let now_ns = self.epoch.get().map_or(0, |epoch| since_ns(*epoch));
            if begin.is_none() && self.epoch.get().is_some() && now_ns >= self.window.start_ns {
                begin = Some(Spent::now());
            }
            if now_ns >= self.window.end_ns || has_ended() || self.stop.is_set() {
                let _first = self.ended_ns.set(now_ns.min(self.window.end_ns));
                return begin.map_or_else(Spent::default, |begin| Spent::now().since(&begin));
            }
            let next_ns =
                if begin.is_some() { self.window.end_ns } else { self.window.start_ns.max(now_ns + 1_000_000) };
            thread::sleep(Duration::from_nanos(next_ns - now_ns).min(TICK));
            progress.show(now_ns / 1_000_000, &self.tally);
        }
    }
}

/// Member `number`, from 0 on, from begin to end.
pub async fn run(run: &Run, number: usize, certificate: &Certificate) -> Result<Counted> {
    let side = SidePool::start(SIDE_THREADS)?;
    let ports: Ports = Rc::new(CoreRuntime::new(CoreId(0), side.clone()));
    set_current(Some(ports.clone()));
    let result = work(run, number, certificate, &ports).await;
    // Whoever is woken by the end gets to run once more before the executor goes.
    ports.sleep(Duration::from_millis(1)).await;
    set_current(None);
    side.stop();
    result
}

async fn work(run: &Run, number: usize, certificate: &Certificate, ports: &Ports) -> Result<Counted> {
    let id = NodeId(number as u64 + 1);
    let pool = buffers::reused();
    let links = PeerLinks::new(LinkInputs { ports: ports.clone(), trust: certificate.trust()?, buffers: pool.clone() });
    let member = Member::start(id, ports, &run.dir.join(format!("member{}", id.0)), links.clone()).await;
    let member = member.with_context(|| format!("member {} can't be made", id.0))?;
    let (stopper, stop) = Stopper::new();
    let serving = serve(run, number, certificate, ports, &member, stop)?;
    run.steps.done(1, ports).await?;
    for (other, address) in run.addresses.iter().enumerate().filter(|(other, _)| *other != number) {
        links.set_address(NodeId(other as u64 + 1), *address.get().context("all members have an address")?);
    }
    let shards = (0..run.args.groups).map(|group| ShardId(ShardId::TENANT_FIRST + u64::from(group)));
    let mut groups = Vec::new();
    if number > 0 {
        for shard in shards.clone() {
            groups.push(member.join(shard).await.context("a replica can't be made")?);
        }
    }
    run.steps.done(2, ports).await?;
    if number == 0 {
        let voters: Vec<u64> = (1..=u64::from(MEMBERS)).collect();
        for shard in shards {
            groups.push(member.lead(shard, &voters).await.context("a group can't be made")?);
        }
    }
    run.steps.done(3, ports).await?;
    let epoch = *run.epoch.get_or_init(Instant::now);
    let writers = if number == 0 { start_writers(run, &groups, ports, epoch) } else { Vec::new() };
    let counted = count(run, &member, ports, epoch).await;
    collect(run, writers).await?;
    // Followers answer until no command is under way any more.
    run.steps.done(4, ports).await?;
    if number == 0 {
        close(&groups).await?;
    }
    run.steps.done(5, ports).await?;
    if number > 0 {
        close(&groups).await?;
    }
    run.steps.done(6, ports).await?;
    stopper.stop();
    serving.await.map_err(|_| anyhow!("the server of member {} ended early", id.0))?;
    Ok(counted)
}

async fn close(groups: &[ShardGroup]) -> Result<()> {
    for group in groups {
        group.close().await.context("a group can't be closed")?;
    }
    Ok(())
}

/// Answers the other members from now on; the receiver hears of the end.
fn serve(
    run: &Run,
    number: usize,
    certificate: &Certificate,
    ports: &Ports,
    member: &Member,
    stop: StopSignal,
) -> Result<oneshot::Receiver<()>> {
    let (gate, mut arrivals) = PeerGate::new(certificate.trust()?, MeshShape { core_count: 1, lane_count: 1 });
    let services = Rc::new(PeerServices::default());
    services.serve(ServiceId::RAFT, Callers::Nodes, member.handler());
    let listener = Listener::bind(SocketAddr::from(([127, 0, 0, 1], 0)))?;
    run.addresses[number].get_or_init(|| listener.address());
    let server = PeerServer::new(ports.clone(), CoreId(0), gate.clone(), buffers::reused(), services, stop.clone());
    ports.spawn("accept", Box::pin(gate.accept(listener, ports.clone(), stop)));
    let (sender, ended) = oneshot::channel();
    let arrivals = arrivals.remove(0);
    let serving = async move {
        server.run(arrivals).await;
        let _nobody_waits = sender.send(());
    };
    ports.spawn("serve", Box::pin(serving));
    Ok(ended)
}

/// A task for each writer, which tells in the end what it measured.
fn start_writers(
    run: &Run,
    groups: &[ShardGroup],
    ports: &Ports,
    epoch: Instant,
) -> Vec<oneshot::Receiver<(Meter, ErrorLog)>> {
    let start = |number: usize| {
        let writer = Writer {
            number,
            group: groups[number % groups.len()].clone(),
            command_len: run.args.command_bytes as usize,
            window: run.window,
            stop: run.stop.clone(),
            tally: run.tally.clone(),
            ports: ports.clone(),
        };
        let (sender, ended) = oneshot::channel();
        let writing = async move {
            let _nobody_waits = sender.send(writer.write(epoch).await);
        };
        ports.spawn("writer", Box::pin(writing));
        ended
    };
    (0..usize::from(run.args.writers)).map(start).collect()
}

struct Writer {
    number: usize,
    group: ShardGroup,
    command_len: usize,
    window: Window,
    stop: Stop,
    tally: Arc<Tally>,
    ports: Ports,
}

impl Writer {
    /// Proposes one command after the other until the window ends.
    async fn write(self, epoch: Instant) -> (Meter, ErrorLog) {
        let (mut meter, mut errors) = (Meter::new(self.window), ErrorLog::default());
        let mut command = vec![7; self.command_len];
        command[..WRITER_LEN_BYTES].copy_from_slice(&(self.number as u64).to_be_bytes());
        while !self.stop.is_set() {
            let start_ns = since_ns(epoch);
            if start_ns >= self.window.end_ns {
                break;
            }
            match self.group.propose(command.clone()).await {
                Ok(_) => {
                    let timing = Timing { intended_ns: start_ns, start_ns, end_ns: since_ns(epoch) };
                    meter.record(timing, self.command_len as u64);
                    self.tally.done(self.command_len as u64);
                }
                Err(error) => {
                    errors.record(&error.to_string());
                    self.tally.failed();
                    self.ports.sleep(FAILURE_PAUSE).await;
                }
            }
        }
        (meter, errors)
    }
}

/// Waits for the writers and puts together what they measured.
async fn collect(run: &Run, writers: Vec<oneshot::Receiver<(Meter, ErrorLog)>>) -> Result<()> {
    if writers.is_empty() {
        return Ok(());
    }
    let (mut all, mut errors) = (Meter::new(run.window), ErrorLog::default());
    for written in join_all(writers).await {
        let (meter, failed) = written.map_err(|_| anyhow!("a writer's task ended early"))?;
        all.merge(&meter);
        errors.merge(&failed);
    }
    *run.written.lock().unwrap_or_else(PoisonError::into_inner) = Some((all, errors));
    Ok(())
}

/// Counts over the window.
async fn count(run: &Run, member: &Member, ports: &Ports, epoch: Instant) -> Counted {
    let wait_until = async |at_ns: u64| {
        while since_ns(epoch) < at_ns && !run.stop.is_set() {
            ports.sleep(Duration::from_nanos(at_ns.saturating_sub(since_ns(epoch))).min(SLEEP_MAX)).await;
        }
    };
    wait_until(run.window.start_ns).await;
    let (flushes, sent) = (member.flushes(), member.sent());
    wait_until(run.window.end_ns).await;
    let (flushes_after, sent_after) = (member.flushes(), member.sent());
    Counted { flushes: flushes_after - flushes, sent: (sent_after.0 - sent.0, sent_after.1 - sent.1) }
}
