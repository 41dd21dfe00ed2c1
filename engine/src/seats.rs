//! The shards that have a replica on this core, and what serves them: a shard's service comes into being when its
//! replica leads and has applied everything of earlier terms, and is dropped, with everything it remembers and does in the
//! background, when the term ends. What it decides states its term, and every replica refuses what commits in another.

mod handover;

pub(crate) use handover::Entered;

use crate::api::StoreError;
use crate::background::Background;
use crate::control_service::ControlService;
use crate::core::Core;
use crate::engine::EngineInputs;
use crate::home_service::{HomeService, Patience};
use crate::keys::MetaSealer;
use crate::leader::Leader;
use crate::replica_keeper::{AskHost, KeeperInputs, keep};
use crate::shard_service::ShardService;
use kiseki_types::group::{GroupView, Leadership, RaftGroup};
use kiseki_types::ids::{NodeId, ShardId, Term};
use kiseki_types::runtime::{LocalBoxFuture, RuntimeExt};
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::{Rc, Weak};
use std::time::Duration;
use tracing::{debug, info, warn};

/// Ages of a pin epoch after which a writer on another node that has not ended a pin counts as gone.
const PIN_LIFE_EPOCHS: u32 = 6;

/// Before a service that could not begin is tried again.
const RETRY_INTERVAL: Duration = Duration::from_millis(200);

/// Between two looks for shards that are half made.
const FINISH_INTERVAL: Duration = Duration::from_secs(30);

/// Between two looks at the splits that go on.
const SPLIT_INTERVAL: Duration = Duration::from_secs(1);

/// Between two looks at a seat that a start waits for.
const LOOK_INTERVAL: Duration = Duration::from_millis(5);

/// What serves a shard.
#[derive(Clone)]
pub(crate) enum Service {
    Control(Rc<ControlService>),
    Home(Rc<HomeService>),
    Shard(Rc<ShardService>),
}

/// A service and the term that it lives in.
struct Serving {
    term: Term,
    service: Service,
    background: Rc<Background>,
}

/// One replica on this core.
struct Seat {
    group: Rc<dyn RaftGroup>,
    sealer: Option<Rc<MetaSealer>>,
    serving: RefCell<Option<Serving>>,
    /// Terms that began here since the node started.
    terms: Cell<u64>,
    /// Why the last service did not begin.
    problem: RefCell<Option<StoreError>>,
    /// Requests that the service is busy with.
    busy: Cell<usize>,
    /// Whether new ones wait, because the shard is being handed over.
    shut_by: Cell<usize>,
}

/// All replicas of one core.
pub(crate) struct Seats {
    core: Rc<Core>,
    inputs: Rc<EngineInputs>,
    seats: RefCell<BTreeMap<ShardId, Rc<Seat>>>,
    /// Whether work behind the answers goes on.
    is_active: Cell<bool>,
    is_stopping: Cell<bool>,
}

impl Seats {
    pub(crate) fn new(core: Rc<Core>, inputs: Rc<EngineInputs>) -> Rc<Seats> {
        let (is_active, is_stopping) = (Cell::new(false), Cell::new(false));
        Rc::new(Seats { core, inputs, seats: RefCell::default(), is_active, is_stopping })
    }

    /// Takes a replica: it is served from now on whenever it leads.
    pub(crate) fn add(self: &Rc<Self>, group: Rc<dyn RaftGroup>, sealer: Option<Rc<MetaSealer>>) {
        let shard = group.shard();
        let seat = Rc::new(Seat {
            group,
            sealer,
            serving: RefCell::default(),
            terms: Cell::new(0),
            problem: RefCell::default(),
            busy: Cell::new(0),
            shut_by: Cell::new(0),
        });
        if self.seats.borrow_mut().insert(shard, seat.clone()).is_some() {
            debug!(%shard, "a replica was taken twice");
        }
        let seats = Rc::downgrade(self);
        self.core.background.repeat("seat", Box::pin(serve(seats, seat)));
    }

    /// The replica of a shard.
    pub(crate) fn group(&self, shard: ShardId) -> Option<Rc<dyn RaftGroup>> {
        self.seats.borrow().get(&shard).map(|seat| seat.group.clone())
    }

    /// What serves a shard here just now.
    pub(crate) fn service(&self, shard: ShardId) -> Option<Service> {
        let seats = self.seats.borrow();
        let serving = seats.get(&shard)?.serving.borrow();
        serving.as_ref().map(|serving| serving.service.clone())
    }

    /// The control shard, while it is led here.
    pub(crate) fn control(&self) -> Option<Rc<ControlService>> {
        match self.service(ShardId::CONTROL)? {
            Service::Control(control) => Some(control),
            _ => None,
        }
    }

    /// All that serve here just now.
    pub(crate) fn services(&self) -> Vec<Service> {
        let seats = self.seats.borrow();
        let service = |seat: &Rc<Seat>| seat.serving.borrow().as_ref().map(|serving| serving.service.clone());
        seats.values().filter_map(service).collect()
    }

    /// Who leads a shard, as far as its replica here knows.
    pub(crate) fn leader(&self, shard: ShardId) -> Option<NodeId> {
        self.group(shard)?.leadership().leader
    }

    /// Every replica of this core and who leads it, for status.
    pub(crate) fn leaderships(&self) -> Vec<(ShardId, Leadership, Vec<u64>)> {
        let seats = self.seats.borrow();
        seats.iter().map(|(shard, seat)| (*shard, seat.group.leadership(), seat.group.voters())).collect()
    }

    /// Every replica of this core as it is, and how many terms began here since the node started.
    pub(crate) fn views(&self) -> Vec<(ShardId, GroupView, u64)> {
        let seats = self.seats.borrow();
        seats.iter().map(|(shard, seat)| (*shard, seat.group.view(), seat.terms.get())).collect()
    }

    /// Waits until a replica of this core is led: by another node, or here and served.
    ///
    /// Errors: a service that does not begin, where nobody else could lead.
    pub(crate) async fn until_led(&self, shard: ShardId) -> Result<(), StoreError> {
        let seat = self.seats.borrow().get(&shard).cloned();
        let Some(seat) = seat else { return Ok(()) };
        let own = self.core.nodes.own();
        let mut since = self.core.ports.now();
        loop {
            if seat.serving.borrow().is_some() || seat.group.leadership().leader.is_some_and(|leader| leader != own) {
                return Ok(());
            }
            if let Some(problem) = seat.problem.borrow().clone().filter(|_| self.core.nodes.is_alone()) {
                return Err(problem);
            }
            let now = self.core.ports.now();
            if now.since(since) >= Duration::from_secs(10) {
                since = now;
                info!(%shard, voters = ?seat.group.voters(), "waiting for a majority of this shard's voters");
            }
            self.core.ports.sleep(LOOK_INTERVAL).await;
        }
    }

    /// From now on work behind the answers goes on: everything it may need answers.
    pub(crate) fn activate(&self) {
        self.is_active.set(true);
        let seats: Vec<Rc<Seat>> = self.seats.borrow().values().cloned().collect();
        for seat in seats {
            let serving = seat.serving.borrow();
            if let Some(serving) = serving.as_ref() {
                self.begin_work(serving, &seat);
            }
        }
    }

    fn begin_work(&self, serving: &Serving, seat: &Rc<Seat>) {
        if let Service::Home(home) = &serving.service {
            home.settle_stale_pins(self.grace(seat.terms.get() - 1));
        }
        if let Service::Control(control) = &serving.service {
            let (control, core) = (control.clone(), self.core.clone());
            serving.background.repeat("splits", Box::pin(tend_splits(control.clone(), core.clone())));
            serving.background.repeat("half made shards", Box::pin(finish_shards(control, core)));
        }
        let calls = self.core.calls.clone();
        let ask_host: AskHost = Rc::new(move |node, shard| {
            let calls = calls.clone();
            Box::pin(async move { calls.host(node, shard).await })
        });
        let (ports, group, nodes) = (self.core.ports.clone(), seat.group.clone(), self.core.nodes.clone());
        let pass_on = handover::passing(ports.clone(), seat);
        let inputs = KeeperInputs { ports, group, nodes, ask_host, pass_on };
        serving.background.repeat("keep replicas", Box::pin(keep(inputs)));
    }

    /// How long writers of earlier terms may still be at work. Those of a node that is alone went down with it.
    fn grace(&self, terms_before: u64) -> Duration {
        match self.core.nodes.is_alone() && terms_before == 0 {
            true => Duration::ZERO,
            false => self.inputs.pin_epoch_age,
        }
    }

    /// Ends the work behind the answers of every service.
    pub(crate) async fn stop(&self) {
        self.is_stopping.set(true);
        let seats: Vec<Rc<Seat>> = self.seats.borrow().values().cloned().collect();
        let backgrounds: Vec<Rc<Background>> = seats
            .iter()
            .filter_map(|seat| seat.serving.borrow().as_ref().map(|serving| serving.background.clone()))
            .collect();
        let stops = backgrounds.iter().map(|background| background.stop());
        futures::future::join_all(stops).await;
    }

    /// Makes the service of a term.
    async fn begin(&self, seat: &Rc<Seat>) -> Result<Serving, StoreError> {
        let ports = self.core.ports.clone();
        let term = seat.group.read_barrier().await.map_err(crate::leader::unavailable)?;
        let leader = Leader::new(ports.clone(), seat.group.clone(), seat.sealer.clone(), term);
        let background = Background::new(ports);
        let core = &self.core;
        let shard = seat.group.shard();
        let service = if shard == ShardId::CONTROL {
            let control = ControlService::new(
                leader,
                core.calls.clone(),
                &core.keys,
                core.nodes.own(),
                self.inputs.shards_per_tenant,
            );
            control.start(self.inputs.first_pool).await?;
            Service::Control(control)
        } else if shard.0 < ShardId::TENANT_FIRST {
            let pin_life = self.inputs.pin_epoch_age * PIN_LIFE_EPOCHS;
            let patience = Patience { grace: self.grace(seat.terms.get()), pin_life };
            let home = HomeService::new(leader, core, background.clone(), patience);
            home.start().await?;
            Service::Home(home)
        } else {
            let (age, split) = (self.inputs.pin_epoch_age, self.inputs.split);
            let service = ShardService::new(leader, core, background.clone(), age, split);
            service.start(core.nodes.is_alone()).await?;
            Service::Shard(service)
        };
        Ok(Serving { term, service, background })
    }

    fn install(&self, seat: &Rc<Seat>, serving: Serving) {
        seat.terms.set(seat.terms.get() + 1);
        if let Service::Home(home) = &serving.service {
            self.core.homes.begin(home.clone());
        }
        if self.is_active.get() {
            self.begin_work(&serving, seat);
        }
        debug!(shard = %seat.group.shard(), term = serving.term.0, "served here from now on");
        seat.serving.replace(Some(serving));
    }

    fn end(&self, seat: &Rc<Seat>) {
        let Some(Serving { term, service, background }) = seat.serving.take() else { return };
        let shard = seat.group.shard();
        if let Service::Home(_) = service {
            self.core.homes.end(shard);
        }
        info!(%shard, term = term.0, "not led here any more");
        // What has begun there ends by itself: nothing of it is accepted any more.
        let stopping = async move { background.stop().await };
        self.core.background.finish("end a term", stopping);
    }
}

/// Has shards finished whose making was cut off, for as long as the control shard is led here.
async fn finish_shards(control: Rc<ControlService>, core: Rc<Core>) {
    loop {
        core.ports.sleep(FINISH_INTERVAL).await;
        if !core.nodes.is_alone()
            && let Err(error) = control.open_tenant_shards(false).await
        {
            warn!(%error, "shards that are half made could not be finished; tried again");
        }
    }
}

/// Goes on with splits, for as long as the control shard is led here.
async fn tend_splits(control: Rc<ControlService>, core: Rc<Core>) {
    loop {
        core.ports.sleep(SPLIT_INTERVAL).await;
        if let Err(error) = control.tend_splits().await {
            warn!(%error, "splits can't be looked after; tried again");
        }
    }
}

/// Serves a replica term by term, for as long as the core's background work goes on.
async fn serve(seats: Weak<Seats>, seat: Rc<Seat>) {
    let shard = seat.group.shard();
    loop {
        let now = seat.group.leadership();
        if !now.is_here {
            seat.group.leadership_after(now).await;
            continue;
        }
        let Some(all) = seats.upgrade() else { return };
        match all.begin(&seat).await {
            Ok(serving) => {
                let term = serving.term;
                seat.problem.replace(None);
                all.install(&seat, serving);
                let ports = all.core.ports.clone();
                drop(all);
                until_over(&*seat.group, term).await;
                let Some(all) = seats.upgrade() else { return };
                if all.is_stopping.get() {
                    return;
                }
                all.end(&seat);
                drop(all);
                ports.yield_now().await;
            }
            Err(error) => {
                warn!(%shard, %error, "a shard that is led here can't be served yet; tried again");
                seat.problem.replace(Some(error));
                let pause: LocalBoxFuture<'static, ()> = all.core.ports.sleep(RETRY_INTERVAL);
                drop(all);
                pause.await;
            }
        }
    }
}

/// Waits until a term has ended here.
async fn until_over(group: &dyn RaftGroup, term: Term) {
    let mut now = group.leadership();
    while now.is_here && now.term == term {
        now = group.leadership_after(now).await;
    }
}
