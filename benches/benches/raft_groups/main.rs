//! Raft groups with three replicas in one process, beside a floor in the same run: openraft alone, and one flush of a
//! block. Commands per second, how long one takes, its processor time, and what idle groups cost.
//!
//! `cargo bench --ignore-rust-version -p kiseki-benches --bench raft_groups -- --help` tells the options. A ratio says
//! more than a figure: the disk and the neighbors change from minute to minute, so the three take turns.

mod floor;
mod flush;
mod options;
mod product;

use futures::channel::oneshot;
use kiseki_executor::{Executor, ExecutorOptions};
use kiseki_net::runtime::CoreRuntime;
use kiseki_net::side::SidePool;
use kiseki_raft::type_config::Command;
use kiseki_types::group::RaftGroup;
use kiseki_types::ids::CoreId;
use kiseki_types::runtime::{LocalBoxFuture, Ports, RuntimeExt, set_current};
use options::Options;
use product::Cluster;
use rustix::time::{ClockId, clock_gettime};
use std::cell::{Cell, RefCell};
use std::path::Path;
use std::rc::Rc;
use std::time::{Duration, Instant};

/// The heap of the programs that have these groups (`docs/decisions/heap.md`).
#[global_allocator]
static HEAP: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Bytes of a command.
const COMMAND_LEN_BYTES: usize = 256;

/// Folds and elections are over so long after the start; groups rest by then.
const SETTLE: Duration = Duration::from_secs(15);

fn cpu_time() -> Duration {
    let now = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(now.tv_sec as u64, now.tv_nsec as u32)
}

/// What came of a load.
#[derive(Default)]
struct Figures {
    micros: Vec<u32>,
    wall: Duration,
    cpu: Duration,
}

impl Figures {
    fn add(&mut self, other: Figures) {
        self.micros.extend(other.micros);
        self.wall += other.wall;
        self.cpu += other.cpu;
    }

    fn per_second(&self) -> f64 {
        self.micros.len() as f64 / self.wall.as_secs_f64().max(f64::EPSILON)
    }

    fn cpu_us(&self) -> f64 {
        self.cpu.as_secs_f64() * 1e6 / self.micros.len().max(1) as f64
    }

    /// The time within which so many of a thousand were answered.
    fn permille(&mut self, permille: usize) -> f64 {
        self.micros.sort_unstable();
        let at = self.micros.len() * permille / 1000;
        self.micros.get(at.min(self.micros.len().saturating_sub(1))).map_or(0.0, |micros| f64::from(*micros))
    }
}

/// Proposes a command to one of the groups.
type Propose = Rc<dyn Fn(usize, Vec<u8>) -> LocalBoxFuture<'static, ()>>;

/// Writers that propose one command after the other for `span`.
async fn load(ports: &Ports, propose: &Propose, writers: usize, span: Duration) -> Figures {
    let (micros, until) = (Rc::new(RefCell::new(Vec::new())), Instant::now() + span);
    let (start, cpu) = (Instant::now(), cpu_time());
    let mut ends = Vec::new();
    for number in 0..writers {
        let (propose, micros) = (propose.clone(), micros.clone());
        let (sender, receiver) = oneshot::channel();
        ports.spawn(
            "writer",
            Box::pin(async move {
                let mut command = vec![7; COMMAND_LEN_BYTES];
                command[..8].copy_from_slice(&(number as u64).to_be_bytes());
                let mut begun = Instant::now();
                while begun < until {
                    propose(number, command.clone()).await;
                    let ended = Instant::now();
                    micros.borrow_mut().push((ended - begun).as_micros() as u32);
                    begun = ended;
                }
                let _ = sender.send(());
            }),
        );
        ends.push(receiver);
    }
    futures::future::join_all(ends).await;
    Figures { micros: micros.take(), wall: start.elapsed(), cpu: cpu_time() - cpu }
}

async fn measure(ports: &Ports, options: &Options, base: &Path, groups: u64) {
    let cluster = Cluster::start(ports, base, groups).await;
    let leaders = cluster.leaders.clone();
    let product: Propose = Rc::new(move |number, command| {
        let leader = leaders[number % leaders.len()].clone();
        Box::pin(async move { drop(leader.propose(command).await.expect("it is committed")) })
    });
    let alone = floor::groups(groups).await;
    let floor: Propose = Rc::new(move |number, command| {
        let leader = alone[number % alone.len()].clone();
        Box::pin(async move { drop(leader.client_write(Command(command.into())).await.expect("it is committed")) })
    });
    let block = flush::Block::create(&base.join("block"));
    for writers in options.writers.iter().copied() {
        load(ports, &product, writers, options.span / 4).await;
        if !options.product_only {
            load(ports, &floor, writers, options.span / 8).await;
        }
        let (mut ours, mut theirs, mut flushes) = (Figures::default(), Figures::default(), Figures::default());
        let mut sent = (0, 0);
        for _ in 0..options.rounds {
            if !options.product_only {
                theirs.add(load(ports, &floor, writers, options.span / 2).await);
                flushes.micros.extend(block.flushes(options.span / 4));
            }
            let before = cluster.sent();
            ours.add(load(ports, &product, writers, options.span).await);
            let after = cluster.sent();
            sent = (sent.0 + after.0 - before.0, sent.1 + after.1 - before.1);
        }
        report(options, groups, writers, (&mut ours, &mut theirs, &mut flushes), sent);
    }
    cluster.close().await;
}

fn report(
    options: &Options,
    groups: u64,
    writers: usize,
    (ours, theirs, flushes): (&mut Figures, &mut Figures, &mut Figures),
    (parcels, calls): (u64, u64),
) {
    let done = ours.micros.len() as f64;
    let (p50, p99, alone, flush) =
        (ours.permille(500), ours.permille(990), theirs.permille(500), flushes.permille(500));
    // Without the floor's turns there is nothing to hold it against.
    let ratio = if options.product_only { 0.0 } else { p50 / (alone + flush) };
    if options.json {
        println!(
            "{{\"groups\": {groups}, \"writers\": {writers}, \"ops_per_second\": {:.0}, \"p50_us\": {p50}, \"p99_us\": {p99}, \
             \"cpu_us_per_op\": {:.2}, \"floor_ops_per_second\": {:.0}, \"floor_p50_us\": {alone}, \"floor_cpu_us_per_op\": {:.2}, \
             \"flush_p50_us\": {flush}, \"p50_ratio\": {ratio:.2}, \"calls_per_parcel\": {:.2}, \"commands_per_call\": {:.2}}}",
            ours.per_second(),
            ours.cpu_us(),
            theirs.per_second(),
            theirs.cpu_us(),
            calls as f64 / parcels.max(1) as f64,
            2.0 * done / calls.max(1) as f64,
        );
        return;
    }
    println!(
        "{groups:>3} groups {writers:>4} writers {:>8.0} ops/s, p50 {p50:>6.0} p99 {p99:>7.0} us, {:>6.1} us of CPU | alone {:>8.0} ops/s, \
         p50 {alone:>5.0} us, {:>5.1} us of CPU | flush p50 {flush:>5.0} us | p50 ratio {ratio:.2} | {:.1} calls a parcel, {:.1} commands a call",
        ours.per_second(),
        ours.cpu_us(),
        theirs.per_second(),
        theirs.cpu_us(),
        calls as f64 / parcels.max(1) as f64,
        2.0 * done / calls.max(1) as f64,
    );
}

async fn measure_idle(ports: &Ports, options: &Options, base: &Path, groups: u64) {
    let cluster = Cluster::start(ports, base, groups).await;
    ports.sleep(SETTLE).await;
    let (sent, cpu, start) = (cluster.sent(), cpu_time(), Instant::now());
    ports.sleep(options.span).await;
    let (wall, cpu) = (start.elapsed().as_secs_f64(), (cpu_time() - cpu).as_secs_f64());
    let (parcels, calls) = (cluster.sent().0 - sent.0, cluster.sent().1 - sent.1);
    let (percent, rate, each) = (100.0 * cpu / wall, parcels as f64 / wall, calls as f64 / parcels.max(1) as f64);
    if options.json {
        println!(
            "{{\"groups\": {groups}, \"idle_percent_of_a_core\": {percent:.2}, \"parcels_per_second\": {rate:.1}, \
             \"calls_per_parcel\": {each:.1}}}"
        );
    } else {
        println!(
            "{groups:>3} groups idle: {percent:.2} % of a core for {} nodes, {rate:.1} parcels/s, {each:.1} calls a parcel",
            product::NODES
        );
    }
    cluster.close().await;
}

fn main() {
    let options = Rc::new(Options::from_arguments());
    let base = options.dir.join(format!("kiseki-raft-groups-{}", std::process::id()));
    for groups in options.groups.iter().copied() {
        let side = SidePool::start(2).expect("threads");
        let (pool, base, options) = (side.clone(), base.join(groups.to_string()), options.clone());
        std::fs::create_dir_all(&base).expect("a directory for the files");
        let executor = Executor::new(ExecutorOptions::default()).expect("an executor");
        let ended = Rc::new(Cell::new(false));
        let seen = ended.clone();
        executor.run(async move {
            let ports: Ports = Rc::new(CoreRuntime::new(CoreId(0), pool));
            set_current(Some(ports.clone()));
            if options.idle {
                measure_idle(&ports, &options, &base, groups).await;
            } else {
                measure(&ports, &options, &base, groups).await;
            }
            set_current(None);
            std::fs::remove_dir_all(&base).expect("the files go");
            seen.set(true);
        });
        drop(executor);
        side.stop();
        assert!(ended.get(), "the run went to its end");
    }
    let _ = std::fs::remove_dir(&base); // what a run that broke left stays to be looked at
}
