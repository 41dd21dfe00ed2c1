//! What each core of the node does: a bucket, objects to read, the measured part, reading back.

use super::EngineArgs;
use super::client::{BUCKET, Client, Measured};
use super::counts::Counts;
use crate::measure::{Schedule, Window};
use crate::progress::Tally;
use crate::s3::content::Content;
use crate::s3::objects::Naming;
use crate::stop::Stop;
use crate::units::ns;
use anyhow::{Context, Result, anyhow};
use futures::channel::oneshot;
use futures::future::join_all;
use kiseki_engine::api::Store;
use kiseki_engine::message::{ControlRequest, ControlResponse, Dedup};
use kiseki_server::executor::OpenCore;
use kiseki_server::steps::Steps;
use kiseki_types::ids::{CoreId, TenantId};
use kiseki_types::runtime::{Ports, RuntimeExt};
use std::cell::{Cell, RefCell};
use std::future::Future;
use std::rc::Rc;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

/// Longest sleep: Ctrl-C is looked for this often.
const SLEEP_MAX: Duration = Duration::from_millis(100);

/// How often a step of the preparation is tried: what is being led just now answers a moment later.
const TRIES: u32 = 3;

/// What all cores share.
pub struct Run {
    /// What was asked for.
    pub args: EngineArgs,
    /// Seed of contents and choices.
    pub seed: u64,
    /// What objects hold.
    pub content: Content,
    /// What they are called.
    pub naming: Naming,
    /// Objects that are stored first and then read.
    pub read_objects: u64,
    /// What is measured.
    pub window: Window,
    /// For the progress line.
    pub tally: Tally,
    /// Ctrl-C.
    pub stop: Stop,
    /// Begin of the measured part and its warm-up.
    pub epoch: OnceLock<Instant>,
    /// What no core does before all have come to it.
    pub steps: Steps,
    tenant: OnceLock<TenantId>,
    results: Mutex<Vec<CoreResult>>,
}

/// What one core has to tell.
pub struct CoreResult {
    /// Of all its clients.
    pub measured: Measured,
    /// When operations were due that nobody began.
    pub never_begun: Vec<u64>,
    /// Counters over the window.
    pub counts: Counts,
    /// Processor time of making and checking contents in the window.
    pub load_cpu_ns: u64,
    /// Objects read back.
    pub checked: u64,
}

impl Run {
    /// Nothing has begun yet.
    pub fn new(args: &EngineArgs, seed: u64, stop: &Stop) -> Run {
        Run {
            args: args.clone(),
            seed,
            content: Content::new(seed),
            naming: Naming::new("", seed, args.load.dedup_ratio),
            read_objects: args.read_objects(),
            window: args.span.window(),
            tally: Tally::default(),
            stop: stop.clone(),
            epoch: OnceLock::new(),
            steps: Steps::new(args.cores),
            tenant: OnceLock::new(),
            results: Mutex::default(),
        }
    }

    /// What the cores told.
    pub fn take_results(&self) -> Vec<CoreResult> {
        std::mem::take(&mut self.results.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// What the clients of one core share.
pub struct CoreSide {
    /// The core's ports.
    pub ports: Ports,
    /// Its engine, as gateways see it.
    pub store: Store,
    /// Whose the objects are.
    pub tenant: TenantId,
    /// In an open loop, when operations of this core are due.
    schedule: RefCell<Option<Schedule>>,
    load_cpu_ns: Cell<u64>,
}

impl CoreSide {
    /// Nothing is due yet.
    pub fn new(run: &Run, open: &OpenCore, tenant: TenantId) -> CoreSide {
        let (core, cores) = (usize::from(open.core.0), usize::from(run.args.cores));
        let schedule = run.args.load.rate.map(|rate| Schedule::share(rate, core, cores));
        CoreSide {
            ports: open.ports.clone(),
            store: open.node.store(),
            tenant,
            schedule: RefCell::new(schedule),
            load_cpu_ns: Cell::default(),
        }
    }

    /// Notes processor time that the load took for itself.
    pub fn add_load_cpu(&self, cpu_ns: u64) {
        self.load_cpu_ns.set(self.load_cpu_ns.get() + cpu_ns);
    }

    /// Waits until the next operation is due and says since when; in a closed loop that is now. `None`: none comes any more.
    pub async fn due(&self, run: &Run, epoch: Instant) -> Option<u64> {
        let due_ns = match self.schedule.borrow_mut().as_mut() {
            None => return Some(u64::MAX),
            Some(schedule) => {
                let due_ns = schedule.due_ns();
                if due_ns >= run.window.end_ns {
                    return None;
                }
                schedule.advance();
                due_ns
            }
        };
        self.wait_until(run, epoch, due_ns).await.then_some(due_ns)
    }

    /// Whether the time came before Ctrl-C.
    async fn wait_until(&self, run: &Run, epoch: Instant, at_ns: u64) -> bool {
        loop {
            let now_ns = ns(epoch.elapsed());
            if run.stop.is_set() {
                return false;
            }
            if now_ns >= at_ns {
                return true;
            }
            self.ports.sleep(Duration::from_nanos(at_ns - now_ns).min(SLEEP_MAX)).await;
        }
    }

    /// When operations were due that nobody took until `end_ns`.
    fn never_begun(&self, end_ns: u64) -> Vec<u64> {
        let Some(mut schedule) = self.schedule.take() else { return Vec::new() };
        let mut left = Vec::new();
        while schedule.due_ns() < end_ns {
            left.push(schedule.due_ns());
            schedule.advance();
        }
        left
    }
}

/// All that a core does.
pub async fn on_core(run: Arc<Run>, open: OpenCore) -> Result<()> {
    let result = steps(&run, &open).await;
    if let Err(error) = &result {
        run.steps.fail(format!("{error:#}"));
    }
    result
}

async fn steps(run: &Arc<Run>, open: &OpenCore) -> Result<()> {
    let (ports, core) = (&open.ports, usize::from(open.core.0));
    if open.core == CoreId(0) {
        let tenant = make_bucket(open).await?;
        run.tenant.get_or_init(|| tenant);
    }
    run.steps.done(1, ports).await?;
    let tenant = *run.tenant.get().context("core 0 has made a tenant")?;
    let cores = usize::from(run.args.cores);
    let side = Rc::new(CoreSide::new(run, open, tenant));
    let numbers = (core..usize::from(run.args.clients)).step_by(cores);
    let clients: Vec<Client> = numbers.map(|number| Client::new(run, &side, number)).collect();
    // Only cores with clients store.
    let storing = cores.min(usize::from(run.args.clients));
    let indexes: Vec<u64> = (core as u64..run.read_objects).step_by(storing).filter(|_| core < storing).collect();
    store_read_objects(run, &side, &clients, &indexes).await.context("storing objects to read")?;
    run.steps.done(2, ports).await?;
    let epoch = *run.epoch.get_or_init(Instant::now);
    let (clients, mut result) = measure(run, open, &side, clients, epoch).await?;
    // Readers of written objects begin when no core writes any more.
    run.steps.done(3, ports).await?;
    if run.args.load.verify && run.args.load.op.writes() {
        result.checked = read_back(run, &clients, &mut result.measured).await;
    }
    run.results.lock().unwrap_or_else(PoisonError::into_inner).push(result);
    Ok(())
}

/// A tenant and a bucket of its own.
pub async fn make_bucket(open: &OpenCore) -> Result<TenantId> {
    let request = ControlRequest::CreateTenant { name: BUCKET.to_owned(), dedup: Dedup::Shared };
    let ControlResponse::Tenant(tenant) = open.node.engine().calls().control(request).await.context("a tenant")? else {
        return Err(anyhow!("the control shard answers in another kind"));
    };
    open.node.store().create_bucket(tenant.tenant, BUCKET).await.context("a bucket")?;
    Ok(tenant.tenant)
}

/// Runs a future as a task of the core.
fn task<T: 'static>(side: &CoreSide, work: impl Future<Output = T> + 'static) -> oneshot::Receiver<T> {
    let (sender, receiver) = oneshot::channel();
    let work = async move {
        let _nobody_waits = sender.send(work.await);
    };
    side.ports.spawn("client", Box::pin(work));
    receiver
}

/// Stores objects by all clients; stops at the first that fails for good.
async fn store_read_objects(run: &Run, side: &CoreSide, clients: &[Client], indexes: &[u64]) -> Result<()> {
    let next = Cell::new(0);
    let one = async |client: &Client| -> Result<()> {
        while let Some(index) = indexes.get(next.replace(next.get() + 1)).filter(|_| !run.stop.is_set()) {
            let mut tries = 1;
            while let Err(error) = client.put_read_object(*index).await {
                if tries == TRIES {
                    next.set(indexes.len()); // the others stop too
                    return Err(error);
                }
                tries += 1;
                side.ports.sleep(SLEEP_MAX).await;
            }
            run.tally.done(run.args.load.size);
        }
        Ok(())
    };
    join_all(clients.iter().map(one)).await.into_iter().collect()
}

async fn measure(
    run: &Arc<Run>,
    open: &OpenCore,
    side: &Rc<CoreSide>,
    clients: Vec<Client>,
    epoch: Instant,
) -> Result<(Vec<Client>, CoreResult)> {
    let working = clients.into_iter().map(|mut client| {
        task(side, async move {
            client.work(epoch).await;
            client
        })
    });
    let working: Vec<_> = working.collect();
    let window = run.window;
    side.wait_until(run, epoch, window.start_ns).await;
    let (begin, load_begin_ns) = (Counts::read(open), side.load_cpu_ns.get());
    side.wait_until(run, epoch, window.end_ns).await;
    let (counts, load_cpu_ns) = (Counts::read(open).since(&begin), side.load_cpu_ns.get() - load_begin_ns);
    let end_ns = ns(epoch.elapsed()).min(window.end_ns);
    let never_begun = side.never_begun(end_ns);
    let clients = join_all(working).await.into_iter().collect::<Result<Vec<_>, _>>();
    let clients = clients.map_err(|_| anyhow!("a client's task ended early"))?;
    let mut measured = Measured::new(run);
    clients.iter().for_each(|client| measured.merge(&client.measured));
    Ok((clients, CoreResult { measured, never_begun, counts, load_cpu_ns, checked: 0 }))
}

/// Reads every acknowledged object back; what fails joins the errors. Returns how many were looked at.
async fn read_back(run: &Run, clients: &[Client], measured: &mut Measured) -> u64 {
    let checks = clients.iter().map(async |client| {
        let (mut checked, mut failures) = (0, Vec::new());
        for (slot, versions) in client.written.expected().filter(|(_, versions)| !versions.is_empty()) {
            if run.stop.is_set() {
                break;
            }
            if let Err(error) = client.check_written(slot, &versions).await {
                failures.push(format!("reading back: {error:#}"));
            }
            checked += 1;
        }
        (checked, failures)
    });
    let mut all = 0;
    for (checked, failures) in join_all(checks).await {
        all += checked;
        failures.iter().for_each(|failure| measured.errors.record(failure));
    }
    all
}
