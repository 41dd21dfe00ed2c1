//! The fragments of the whole cluster: what the engine uses where there are several nodes.
//!
//! - Each node indexes what its own devices hold, nothing else. A fragment is put on, read from and freed at the node of its
//!   device, at the core there that has the lane of the locator.
//! - Where a generation lies, all members are asked at once. One that does not answer is named: what was not found may be there.
//! - What devices others have is heard from them once a second, and whether they answer with it ([`crate::nodes`]).
//!
//! Until a core has taken up what is recorded of the nodes, it does not know whether it is alone: then it neither finds nor
//! puts anything. A node that is alone is asked directly: nothing is allocated or waited for beyond what its own store does.

mod locate;
mod remote;
mod serve;

pub use serve::fragment_handler;

use crate::background::Background;
use crate::latency::Latencies;
use crate::nodes::{NodeBoard, Standing};
use crate::wire::{FragmentCall, FragmentReply};
use futures::StreamExt;
use futures::future::{Either, join, join_all, select};
use futures::stream::FuturesUnordered;
use kiseki_types::buf::{BufferSource, IoBuf, IoBytes};
use kiseki_types::fragment::{
    DeviceState, DeviceStatus, DeviceUse, FragmentError, FragmentMeta, FragmentStore, Located, StoredFragment,
};
use kiseki_types::ids::{DeviceId, Generation, LaneId, Locator, NodeId};
use kiseki_types::peer::PeerCalls;
use kiseki_types::runtime::{Instant, LocalBoxFuture, Ports, RuntimeExt};
use kiseki_types::units::{BlockIndex, Extent};
use remote::{CallFailure, Remote, gathered};
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::pin::pin;
use std::rc::Rc;
use std::time::Duration;
use tracing::debug;

/// How long an operation on a device of another node may take.
const OPERATION_DEADLINE: Duration = Duration::from_secs(10);

/// How often a node is asked for its devices, and how long it may take.
const HEAR_INTERVAL: Duration = Duration::from_secs(1);
const HEAR_DEADLINE: Duration = Duration::from_secs(2);

/// Between two looks whom to ask.
const LOOK_INTERVAL: Duration = Duration::from_millis(200);

/// One core's [`FragmentStore`] over all nodes.
#[derive(Clone)]
pub struct ClusterFragments {
    inner: Rc<Inner>,
}

struct Inner {
    ports: Ports,
    nodes: Rc<NodeBoard>,
    local: Rc<dyn FragmentStore>,
    remote: Remote,
    buffers: BufferSource,
    /// The devices of others, as each said last.
    heard: RefCell<BTreeMap<NodeId, Vec<DeviceStatus>>>,
    /// What the cores of others said last of the space on their lanes: free bytes and all bytes.
    spaces: RefCell<BTreeMap<NodeId, LaneSpaces>>,
    /// Which other node has a device.
    owners: RefCell<BTreeMap<DeviceId, NodeId>>,
    /// How long who takes to answer.
    latencies: Rc<Latencies>,
}

/// By device, and the lane whose core said so.
type LaneSpaces = BTreeMap<(DeviceId, LaneId), (u64, u64)>;

impl ClusterFragments {
    /// The store of a core whose own node's fragments are `local`. Others are heard of from [`ClusterFragments::start`] on.
    #[must_use]
    pub fn new(
        ports: Ports,
        nodes: Rc<NodeBoard>,
        peers: Rc<dyn PeerCalls>,
        local: Rc<dyn FragmentStore>,
        buffers: BufferSource,
    ) -> ClusterFragments {
        let remote = Remote::new(peers);
        let (heard, spaces, owners, latencies) = <(RefCell<_>, RefCell<_>, RefCell<_>, Rc<_>)>::default();
        let inner = Inner { ports, nodes, local, remote, buffers, heard, spaces, owners, latencies };
        ClusterFragments { inner: Rc::new(inner) }
    }

    /// How long devices and nodes take to answer, as this core sees it.
    #[must_use]
    pub fn latencies(&self) -> Rc<Latencies> {
        self.inner.latencies.clone()
    }

    /// Asks the other members for their devices from now on; it ends with the core's background work.
    pub fn start(&self, background: &Rc<Background>) {
        background.repeat("hear of devices", Box::pin(self.inner.clone().hear_forever()));
    }

    fn put_at(
        &self,
        device: DeviceId,
        meta: FragmentMeta,
        payload: Vec<IoBytes>,
        is_upkeep: bool,
    ) -> LocalBoxFuture<'static, Result<Extent, FragmentError>> {
        let inner = &self.inner;
        let Some(node) = inner.owner(device) else {
            if !inner.nodes.is_known() {
                let reason = "the nodes of the cluster are not known yet".to_owned();
                return Box::pin(async move { Err(FragmentError::DeviceFailed { device, reason }) });
            }
            return match is_upkeep {
                true => inner.local.put_for_upkeep(device, meta, payload),
                false => inner.local.put(device, meta, payload),
            };
        };
        let inner = inner.clone();
        Box::pin(async move {
            let locator = meta.key.locator;
            let bulk = gathered(&inner.buffers, &payload);
            let call = FragmentCall::Put { device, meta, is_upkeep };
            match inner.ask(node, &locator, &call, Some(bulk)).await {
                Ok((FragmentReply::Put(Ok(extent)), _)) if extent.device == device => Ok(extent),
                Ok((FragmentReply::Put(Err(error)), _)) => Err(error),
                // Nothing was put: another device takes it.
                Err(CallFailure::Silent(reason)) => Err(FragmentError::DeviceFailed { device, reason }),
                // It is stopping, or not yet up: none of its devices takes what a client writes. Upkeep tries the next one.
                Err(CallFailure::NotDone(reason)) if !is_upkeep => Err(FragmentError::Unanswered { device, reason }),
                other => Err(failed(device, node, other)),
            }
        })
    }
}

impl Inner {
    /// The other node that has a device; `None`: this one, if any.
    fn owner(&self, device: DeviceId) -> Option<NodeId> {
        self.owners.borrow().get(&device).copied()
    }

    /// Asks the node of a device, at the lane of the locator. A node that is silent is not asked.
    async fn ask(
        &self,
        node: NodeId,
        locator: &Locator,
        call: &FragmentCall,
        bulk: Option<IoBuf>,
    ) -> Result<(FragmentReply, Vec<IoBuf>), CallFailure> {
        let Some(lanes) = self.nodes.lanes_of(node) else {
            return Err(CallFailure::NotDone("its node is no member any more".to_owned()));
        };
        if self.nodes.standing(node, self.ports.now()) != Standing::Here {
            return Err(CallFailure::Silent(format!("{node} is silent")));
        }
        let lane = locator.index_lane(lanes);
        let answer = self.remote.call(node, lane, call, bulk.into_iter().collect(), OPERATION_DEADLINE);
        let answer = match select(pin!(answer), pin!(self.nodes.until_silent(node, &self.ports))).await {
            Either::Left((answer, _)) => answer,
            Either::Right(_) => Err(CallFailure::Unanswered(format!("{node} has fallen silent"))),
        };
        if answer.is_ok() {
            self.nodes.heard(node, self.ports.now());
        }
        answer
    }

    async fn free(&self, node: NodeId, fragment: &StoredFragment, call: FragmentCall) -> Result<(), FragmentError> {
        match self.ask(node, &fragment.meta.key.locator, &call, None).await {
            Ok((FragmentReply::Done(result), _)) => result,
            other => Err(failed(fragment.extent.device, node, other)),
        }
    }

    /// Nobody has the device any more: whoever still lists the fragment lets go of it. One that is silent does so when it
    /// looks for orphans.
    async fn forget_everywhere(self: Rc<Inner>, fragment: StoredFragment) -> Result<(), FragmentError> {
        let (members, now) = (self.nodes.members(), self.ports.now());
        let here = members.iter().filter(|(node, _)| self.nodes.standing(*node, now) == Standing::Here);
        let forgets = here.map(|(node, _)| {
            let call = FragmentCall::Forget { fragment: fragment.clone() };
            self.free(*node, &fragment, call)
        });
        let (here, others) = join(self.local.forget(&fragment), join_all(forgets)).await;
        others.into_iter().fold(here, Result::and)
    }

    async fn hear_forever(self: Rc<Inner>) {
        let mut asks = FuturesUnordered::new();
        let mut due = BTreeMap::<NodeId, Instant>::new();
        loop {
            let (now, members) = (self.ports.now(), self.nodes.members());
            due.retain(|node, _| members.iter().any(|(member, _)| member == node));
            for (node, lanes) in members {
                let at = due.entry(node).or_insert(now);
                if *at <= now {
                    *at = now + HEAR_INTERVAL;
                    asks.push(self.hear(node, lanes));
                }
            }
            let mut tick = self.ports.sleep(LOOK_INTERVAL);
            loop {
                if asks.is_empty() {
                    tick.await;
                    break;
                }
                if let Either::Right(_) = select(asks.next(), &mut tick).await {
                    break;
                }
            }
        }
    }

    async fn hear(&self, node: NodeId, lanes: u16) {
        // Said before it is asked, so that the time for which it is waited for begins now.
        let _standing = self.nodes.standing(node, self.ports.now());
        // Another lane each time: each core of the node has to answer now and then.
        let lane = LaneId((self.ports.now().0 / HEAR_INTERVAL.as_nanos() as u64 % u64::from(lanes)) as u16);
        match self.remote.call(node, lane, &FragmentCall::Devices, Vec::new(), HEAR_DEADLINE).await {
            Ok((FragmentReply::Devices(mut devices), _)) => {
                // Whose they are says who answered.
                devices.iter_mut().for_each(|device| device.node = node);
                self.add_up(node, lane, lanes, &mut devices);
                self.heard.borrow_mut().insert(node, devices);
                self.nodes.heard(node, self.ports.now());
                self.note_owners();
            }
            Ok(_) => debug!(%node, "a node was asked for its devices and answered something else"),
            Err(failure) => debug!(%node, reason = failure.reason(), "a node does not say which devices it has"),
        }
    }

    /// What a core says of the space on a device is of its own lanes; with what the other cores have said it is of the device. A
    /// core is asked as often as it has lanes, so what counts is how free and all bytes compare. Until every lane was asked,
    /// nothing is said.
    fn add_up(&self, node: NodeId, lane: LaneId, lanes: u16, devices: &mut [DeviceStatus]) {
        let mut spaces = self.spaces.borrow_mut();
        let spaces = spaces.entry(node).or_default();
        let ids: BTreeSet<DeviceId> = devices.iter().map(|device| device.id).collect();
        spaces.retain(|(device, _), _| ids.contains(device));
        for device in devices {
            spaces.insert((device.id, lane), (device.free_bytes, device.lanes_bytes));
            let of_device = spaces.range((device.id, LaneId(0))..(device.id, LaneId(lanes)));
            if of_device.clone().count() < usize::from(lanes) {
                device.lanes_bytes = 0;
                continue;
            }
            let add = |sum: (u64, u64), one: &(u64, u64)| (sum.0.saturating_add(one.0), sum.1.saturating_add(one.1));
            let sum = of_device.fold((0, 0), |sum, (_, one)| add(sum, one));
            (device.free_bytes, device.lanes_bytes) = sum;
        }
    }

    /// Whose devices are. Of two nodes that name one, the one that has it now is the one that answers.
    fn note_owners(&self) {
        let now = self.ports.now();
        let heard = self.heard.borrow();
        let is_here = |node: &NodeId| self.nodes.standing(*node, now) == Standing::Here;
        let (here, silent): (Vec<_>, Vec<_>) = heard.iter().partition(|(node, _)| is_here(node));
        let mut owners = BTreeMap::new();
        for (node, devices) in silent.into_iter().chain(here) {
            owners.extend(devices.iter().map(|device| (device.id, *node)));
        }
        for own in self.local.devices() {
            owners.remove(&own.id);
        }
        self.owners.replace(owners);
    }

    fn others_devices(&self) -> Vec<DeviceStatus> {
        let (now, heard, owners) = (self.ports.now(), self.heard.borrow(), self.owners.borrow());
        let mut others = Vec::new();
        for (node, _) in self.nodes.members() {
            let is_here = self.nodes.standing(node, now) == Standing::Here;
            let devices = heard.get(&node).into_iter().flatten();
            for device in devices.filter(|device| owners.get(&device.id) == Some(&node)) {
                let mut device = device.clone();
                if !is_here && device.state.is_readable() {
                    device.state = DeviceState::Unreachable;
                }
                others.push(device);
            }
        }
        others
    }
}

/// What it means for a device's operation that its node did not answer it.
fn failed<T>(device: DeviceId, node: NodeId, answer: Result<T, CallFailure>) -> FragmentError {
    match answer {
        Err(CallFailure::NotDone(reason)) => FragmentError::DeviceFailed { device, reason },
        // A node that is silent may be back soon with what it has: nobody takes that for gone.
        Err(CallFailure::Silent(reason) | CallFailure::Unanswered(reason)) => {
            FragmentError::Unanswered { device, reason }
        }
        Ok(_) => FragmentError::Unanswered { device, reason: format!("{node} answered something else") },
    }
}

impl FragmentStore for ClusterFragments {
    fn devices(&self) -> Vec<DeviceStatus> {
        let mut devices = self.inner.local.devices();
        if !self.inner.nodes.is_alone() {
            devices.extend(self.inner.others_devices());
            devices.sort_by_key(|device| device.id);
        }
        devices
    }

    fn is_here(&self, device: DeviceId) -> bool {
        self.inner.owner(device).is_none()
    }

    fn put(
        &self,
        device: DeviceId,
        meta: FragmentMeta,
        payload: Vec<IoBytes>,
    ) -> LocalBoxFuture<'static, Result<Extent, FragmentError>> {
        self.put_at(device, meta, payload, false)
    }

    fn put_for_upkeep(
        &self,
        device: DeviceId,
        meta: FragmentMeta,
        payload: Vec<IoBytes>,
    ) -> LocalBoxFuture<'static, Result<Extent, FragmentError>> {
        self.put_at(device, meta, payload, true)
    }

    fn locate(
        &self,
        locator: Locator,
        generation: Generation,
    ) -> LocalBoxFuture<'static, Result<Located, FragmentError>> {
        let nodes = &self.inner.nodes;
        if !nodes.is_known() {
            let reason = "the nodes of the cluster are not known yet; try again".to_owned();
            return Box::pin(async move { Err(FragmentError::Unknown { reason }) });
        }
        match nodes.is_alone() {
            true => self.inner.local.locate(locator, generation),
            false => Box::pin(self.inner.clone().locate(locator, generation)),
        }
    }

    fn locate_soon(
        &self,
        locator: Locator,
        generation: Generation,
    ) -> LocalBoxFuture<'static, Result<Located, FragmentError>> {
        match self.inner.nodes.is_known() && !self.inner.nodes.is_alone() {
            true => Box::pin(self.inner.clone().locate_soon(locator, generation)),
            false => self.locate(locator, generation),
        }
    }

    fn locate_here(
        &self,
        locator: Locator,
        generation: Generation,
    ) -> LocalBoxFuture<'static, Result<Vec<StoredFragment>, FragmentError>> {
        self.inner.local.locate_here(locator, generation)
    }

    fn read(
        &self,
        fragment: &StoredFragment,
        range: Range<u32>,
    ) -> LocalBoxFuture<'static, Result<IoBytes, FragmentError>> {
        let device = fragment.extent.device;
        let Some(node) = self.inner.owner(device) else { return self.inner.local.read(fragment, range) };
        let (inner, fragment) = (self.inner.clone(), fragment.clone());
        Box::pin(async move {
            let (locator, len) = (fragment.meta.key.locator, range.len());
            let call = FragmentCall::Read { fragment, range };
            match inner.ask(node, &locator, &call, None).await {
                Ok((FragmentReply::Read(Ok(())), mut bulk)) if bulk.len() == 1 && bulk[0].len() == len => {
                    Ok(bulk.remove(0).freeze())
                }
                Ok((FragmentReply::Read(Err(error)), _)) => Err(error),
                other => Err(failed(device, node, other)),
            }
        })
    }

    fn release(&self, fragment: &StoredFragment) -> LocalBoxFuture<'static, Result<(), FragmentError>> {
        let Some(node) = self.inner.owner(fragment.extent.device) else { return self.inner.local.release(fragment) };
        let (inner, fragment) = (self.inner.clone(), fragment.clone());
        Box::pin(async move {
            let call = FragmentCall::Release { fragment: fragment.clone() };
            inner.free(node, &fragment, call).await
        })
    }

    fn use_of(&self, device: DeviceId) -> Option<DeviceUse> {
        match self.inner.owner(device) {
            Some(_) => Some(DeviceUse::default()),
            None => self.inner.local.use_of(device),
        }
    }

    fn held_on(
        &self,
        device: DeviceId,
        after: Option<BlockIndex>,
        limit: usize,
    ) -> LocalBoxFuture<'static, Result<Vec<StoredFragment>, FragmentError>> {
        match self.inner.owner(device) {
            Some(_) => Box::pin(async { Ok(Vec::new()) }),
            None => self.inner.local.held_on(device, after, limit),
        }
    }

    fn forget(&self, fragment: &StoredFragment) -> LocalBoxFuture<'static, Result<(), FragmentError>> {
        let (inner, device) = (&self.inner, fragment.extent.device);
        let owner = inner.owner(device);
        if inner.nodes.is_alone() || owner.is_none() && inner.local.devices().iter().any(|own| own.id == device) {
            return inner.local.forget(fragment);
        }
        let (inner, fragment) = (inner.clone(), fragment.clone());
        Box::pin(async move {
            match owner {
                Some(node) => {
                    let call = FragmentCall::Forget { fragment: fragment.clone() };
                    inner.free(node, &fragment, call).await
                }
                None => inner.forget_everywhere(fragment).await,
            }
        })
    }

    fn list(
        &self,
        after: Option<(Locator, Generation)>,
        limit: usize,
    ) -> LocalBoxFuture<'static, Result<Vec<(Locator, Generation)>, FragmentError>> {
        self.inner.local.list(after, limit)
    }
}
