//! What a core tells the status board, a few times a second.

use crate::cluster::{self, CoreCluster};
use crate::core_node::CoreNode;
use crate::executor::CoreShared;
use crate::status::{CoreReport, CoreTimes, DeviceIoReport, StatusBoard};
use crate::{alerts, peer_port, shards, space, upkeep};
use kiseki_devices::fragment_store::{DeviceIo, DeviceReport};
use kiseki_engine::inline_threshold::THRESHOLD_LEN_BYTES;
use kiseki_engine::wire::{INLINE_VERSION, ROOM_VERSION};
use kiseki_gateway::S3Service;
use kiseki_net::peer::PeerServer;
use kiseki_types::fragment::{DeviceState, FragmentStore};
use kiseki_types::ids::CoreId;
use kiseki_types::runtime::{Ports, RuntimeExt};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

/// Between two reports of a core.
const INTERVAL: Duration = Duration::from_millis(500);

/// Notes what opening the lanes found on the devices.
pub fn devices_opened(board: &StatusBoard, reports: &[DeviceReport]) {
    for report in reports {
        let Some(problem) = &report.problem else { continue };
        tracing::warn!(device = %report.name, reason = %problem, "device not used; going on without it");
        fail(board, &report.device.to_string(), problem);
    }
}

fn fail(board: &StatusBoard, id: &str, reason: &str) {
    board.lock().lose_device(id, "failed", reason);
}

/// Why a device that still works should not be used any more: somebody else found it failed.
fn reason_to_leave(board: &StatusBoard, id: &str) -> Option<String> {
    let board = board.lock();
    let found = board.devices.iter().find(|device| device.id == id && !device.is_usable())?;
    Some(format!("{}: {}", found.path, found.reason))
}

/// Reports until the executor ends.
pub fn start(
    shared: &Arc<CoreShared>,
    core: CoreId,
    node: &Rc<CoreNode>,
    gateway: &S3Service,
    members: Members,
    ports: &Ports,
) {
    let (shared, node, gateway, ports_of_task) = (shared.clone(), node.clone(), gateway.clone(), ports.clone());
    let task = async move {
        // Clients and members are served for a while after the signal.
        let ended = shared.ending.members();
        while !ended.is_stopped() {
            report(&shared, core, &node, &gateway, &members, &ports_of_task);
            ports_of_task.sleep(INTERVAL).await;
        }
    };
    ports.spawn("report", Box::pin(task));
}

/// A core's connections with members of the cluster.
pub struct Members {
    /// From them, where the port is open.
    pub server: Option<Rc<PeerServer>>,
    /// To them.
    pub cluster: Rc<CoreCluster>,
}

fn add(values: &mut BTreeMap<String, u64>, name: &str, value: u64) {
    *values.entry(name.to_owned()).or_default() += value;
}

/// Processor time that the thread of this core has had.
fn cpu_us() -> u64 {
    let used = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    u64::try_from(used.tv_sec).unwrap_or(0) * 1_000_000 + u64::try_from(used.tv_nsec).unwrap_or(0) / 1000
}

fn device_io(node: &CoreNode) -> BTreeMap<String, DeviceIoReport> {
    let report = |io: DeviceIo| DeviceIoReport {
        reads: io.reads,
        read_bytes: io.read_bytes,
        read_us: io.read_us,
        writes: io.writes,
        write_bytes: io.write_bytes,
        write_us: io.write_us,
    };
    node.fragments().device_io().into_iter().map(|(device, io)| (device.to_string(), report(io))).collect()
}

fn report(shared: &CoreShared, core: CoreId, node: &CoreNode, gateway: &S3Service, members: &Members, ports: &Ports) {
    let s3 = gateway.counters();
    let mut values: BTreeMap<String, u64> = BTreeMap::new();
    let mut set = |name: &str, value: u64| add(&mut values, name, value);
    let requests: u64 = s3.operations.values().map(|operation| operation.answers_by_class.iter().sum::<u64>()).sum();
    let failed: u64 = s3.operations.values().map(|operation| operation.answers_by_class[4]).sum();
    set("s3_requests_total", requests);
    set("s3_plain_reads_total", s3.plain_reads);
    set("s3_requests_5xx_total", failed);
    set("s3_bytes_in_total", s3.bytes_in);
    set("s3_bytes_out_total", s3.bytes_out);
    let executor = kiseki_executor::stats();
    set("core_cpu_us_total", cpu_us());
    set("executor_polls_total", executor.polls);
    set("executor_ring_calls_total", executor.enters);
    set("executor_sleeps_total", executor.sleeps);
    set("executor_busy_polls_total", executor.busy_polls);
    set("executor_busy_polls_found_total", executor.busy_polls_found);
    set("executor_busy_poll_us_total", executor.busy_poll_time.as_micros().try_into().unwrap_or(u64::MAX));
    let fragments = node.fragments().counters();
    set("fragment_puts_total", fragments.puts.get());
    set("fragment_put_bytes_total", fragments.put_bytes.get());
    set("fragment_puts_forwarded_total", fragments.puts_forwarded.get());
    set("fragment_reads_total", fragments.reads.get());
    set("fragment_read_bytes_total", fragments.read_bytes.get());
    set("fragments_corrupt_total", fragments.corrupt.get());
    set("fragment_releases_total", fragments.releases.get());
    set("journal_folds_total", fragments.folds.get());
    let (flushes, waiters) = node.fragments().flushes();
    set("device_flushes_total", flushes);
    set("device_flush_waiters_total", waiters);
    let data = &node.engine().core().counters;
    set("chunks_written_total", data.chunks_written.get());
    set("chunk_bytes_written_total", data.chunk_bytes_written.get());
    set("chunks_deduplicated_total", data.chunks_deduplicated.get());
    set("moves_followed_total", data.moves_followed.get());
    set("chunk_bytes_deduplicated_total", data.chunk_bytes_deduplicated.get());
    set("stripes_degraded_total", data.stripes_degraded.get());
    set("stripes_as_copies_total", data.stripes_as_copies.get());
    set("rebuilds_total", data.rebuilds.get());
    set("data_bytes_read_total", data.bytes_read.get());
    set("hedged_reads_total", data.hedged_reads.get());
    set("hedged_reads_won_total", data.hedged_reads_won.get());
    set("hedged_reads_refused_total", data.hedged_reads_refused.get());
    set("slow_reads_avoided_total", data.slow_reads_avoided.get());
    set("late_reads", node.engine().core().late_reads.get() as u64);
    set("writes_abandoned_total", data.writes_abandoned.get());
    let inline = &node.engine().core().inline;
    set("inline_writes_total", inline.writes.get());
    set("inline_bytes_total", inline.bytes.get());
    set("inline_refused_total", inline.refusals.get());
    set("inline_waits_for_a_node", node.engine().calls().lacking(INLINE_VERSION).is_some().into());
    // Of the node, so one core tells it.
    if let Some(budget) = inline.budget().filter(|_| core.0 == 0) {
        set("metadata_fill_percent", budget.fill_percent.into());
        set("metadata_inline_budget_bytes", budget.content_bytes);
        if inline.settings().bytes_per_second_max > 0 {
            set("metadata_soft_limit_percent", budget.soft_percent.into());
            set("metadata_hard_limit_percent", budget.hard_percent.into());
        }
    }
    set("inline_threshold_falls_total", inline.falls.get());
    let thresholds: Vec<u32> = node.engine().shards().iter().map(|shard| shard.threshold_len_bytes()).collect();
    let below = |limit: u32| thresholds.iter().filter(|threshold| **threshold < limit).count() as u64;
    set("inline_thresholds_lowered", below(THRESHOLD_LEN_BYTES));
    let floor = inline.settings().floor_len_bytes;
    set("inline_thresholds_at_floor", if floor < THRESHOLD_LEN_BYTES { below(floor + 1) } else { 0 });
    set("inline_long_waits_for_a_node", node.engine().calls().lacking(ROOM_VERSION).is_some().into());
    let budget = &node.engine().core().write_budget;
    set("write_bytes_in_flight", budget.in_flight.used() as u64);
    set("write_bytes_filling", budget.filling.used() as u64);
    set("write_bytes_naming", budget.naming.used() as u64);
    set("write_budget_waits_total", budget.in_flight.waits.get() + budget.filling.waits.get());
    let control = &node.engine().core().control_cache;
    set("control_cache_hits_total", control.hits.get());
    set("control_cache_misses_total", control.misses.get());
    let homes = &node.engine().core().homes;
    set("home_hits_total", homes.counters.hits.get());
    set("home_misses_total", homes.counters.misses.get());
    set("home_generations_freed_total", homes.counters.freed.get());
    set("home_generations_pardoned_total", homes.counters.pardoned.get());
    set("home_stale_pins", homes.all().iter().map(|home| home.stale_pins()).sum());
    let collection = &node.engine().core().collection_counters;
    set("collection_pages_dropped_total", collection.pages_dropped.get());
    set("collection_generations_freed_total", collection.generations_freed.get());
    set("collection_waiting", node.engine().shards().iter().map(|shard| shard.waiting_for_collection()).sum());
    set("collection_failed_rounds_total", collection.failed_rounds.get());
    set("pin_epochs_closed_total", collection.epochs_closed.get());
    set("fences_forgotten_total", collection.fences_forgotten.get());
    let mut links = members.server.as_deref().map(|server| peer_port::report(server, &mut values)).unwrap_or_default();
    links.extend(members.cluster.links.as_deref().map(peer_port::report_out).unwrap_or_default());
    let upkeep = upkeep::of_core(node.engine(), &mut values);
    let device_space = space::of_core(node.fragments(), &mut values);
    let mut set = |name: &str, value: u64| add(&mut values, name, value);
    set("raft_groups", node.groups().count() as u64);
    let (led, votes_missing) = node.engine().led();
    set("raft_groups_led", led);
    set("raft_votes_missing", votes_missing);
    set("raft_groups_fenced", node.groups().fenced().len() as u64);
    let views = node.engine().group_views();
    let (shards, shards_not_told) = shards::of_core(&views, shared.config.cores);
    // Sums over replicas only grow: a replica that was opened stays in its seat until the node stops, however often it is rebuilt.
    set("raft_proposals_total", views.iter().map(|(_, view, _)| view.proposals).sum());
    set("raft_snapshots_sent_total", views.iter().map(|(_, view, _)| view.snapshots_sent).sum());
    set("raft_snapshots_installed_total", views.iter().map(|(_, view, _)| view.snapshots_installed).sum());
    set("raft_elections_won_total", views.iter().map(|(_, _, won)| *won).sum());
    let tables = || views.iter().map(|(_, view, _)| view.table_sizes);
    set("table_file_bytes", tables().map(|sizes| sizes.file_bytes).sum());
    set("table_live_bytes", tables().map(|sizes| sizes.live_bytes).sum());
    set("table_compactions_total", tables().map(|sizes| sizes.compactions).sum());
    set("table_compacted_bytes_total", tables().map(|sizes| sizes.compacted_bytes).sum());
    let (mut device_free_bytes, mut device_read_errors) = (BTreeMap::new(), BTreeMap::new());
    let (mut device_fragments, mut device_used_bytes) = (BTreeMap::new(), BTreeMap::new());
    for device in node.fragments().devices() {
        let id = device.id.to_string();
        device_free_bytes.insert(id.clone(), device.free_bytes);
        device_read_errors.insert(id.clone(), device.read_errors);
        if let Some(used) = node.fragments().use_of(device.id) {
            device_fragments.insert(id.clone(), used.fragments);
            device_used_bytes.insert(id.clone(), used.bytes);
        }
        if node.engine().core().devices.is_removed(device.id) {
            continue; // it is being closed
        }
        if device.state == DeviceState::Failed {
            let why = node.fragments().why_failed(device.id).unwrap_or_else(|| "it failed an operation".to_owned());
            fail(&shared.board, &id, &format!("{why}; it is fenced until it is reopened (I-D6)"));
        } else if let Some(reason) = reason_to_leave(&shared.board, &id) {
            node.fragments().fail_device(device.id, &reason);
        }
    }
    let (reported_at, connections) = (ports.now().0, s3.connections);
    let stages = node.engine().core().stages.by_name().into_iter();
    let report = CoreReport {
        reported_at,
        connections,
        values,
        device_free_bytes,
        device_space,
        device_fragments,
        device_used_bytes,
        device_read_errors,
        evacuations: upkeep::evacuations(node.engine()),
        upkeep,
        links,
        shards,
        shards_not_told,
        device_io: device_io(node),
        heard: members.cluster.heard(),
        times: CoreTimes {
            stages: stages.chain(node.groups().raft_times()).chain(node.fragments().device_times().by_name()).collect(),
            operations: s3.operations.into_iter().map(|(name, operation)| (name, operation.phases)).collect(),
        },
    };
    shared.board.lock().core_reports.insert(core.0.to_string(), report);
    if core == CoreId(0) {
        let mut devices = BTreeMap::new();
        for device in node.engine().core().fragments.devices().iter().filter(|device| device.state.is_readable()) {
            *devices.entry(device.node.0).or_default() += 1;
        }
        cluster::settle(shared, ports.now(), &devices);
    }
    let mut board = shared.board.lock();
    let board = &mut *board;
    board.settle_upkeep();
    space::settle(board);
    for device in &mut board.devices {
        device.free_bytes = board.core_reports.values().filter_map(|core| core.device_free_bytes.get(&device.id)).sum();
    }
    if let Some(peer) = board.peer.as_mut()
        && let Some(port) = &shared.peer
    {
        peer.refused = port.refused_count();
    }
    if core == CoreId(0) {
        let unix = ports.unix_time_ms() / 1000;
        board.alerts = alerts::of(board, ports.now().0, unix);
        for member in shared.meta.dir.members().into_iter().filter(|member| !member.healthy) {
            let path = shared.meta.paths[member.index].display().to_string();
            board.metadata_dirs.iter_mut().filter(|dir| dir.path == path && dir.state == "current").for_each(|dir| {
                dir.state = "stale".to_owned();
                dir.reason = "it failed; once its disk is sound, restart to have it filled".to_owned();
            });
        }
    }
}
