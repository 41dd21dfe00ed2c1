//! The read-only HTTP side: `/livez`, `/readyz`, `/healthz`, `/metrics`, served by side threads.

mod links;
mod shards;
mod stages;

use crate::admin::server::{AdminDesk, Beside};
use crate::health::HealthReport;
use crate::status::{NodeReport, Phase, StatusBoard};
use kiseki_devices::space::FillLevel;
use kiseki_types::fragment::DeviceState;
use kiseki_types::ids::NodeId;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::{ConstGauge, Gauge};
use prometheus_client::registry::Registry;
use std::fmt::Write as _;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

/// Connections served at once; further ones are closed at once (I-O5).
const CONNECTIONS_MAX: usize = 32;
/// Longest request head.
const HEAD_LEN_BYTES_MAX: u64 = 8 * 1024;
/// A client has this long for its request, and for taking the answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// Says whether the cluster would hold without this node; may take a while.
pub type AskHealth = Arc<dyn Fn() -> HealthReport + Send + Sync>;

/// An answer about the cluster's health is given again for so long, however many ask.
const HEALTH_FRESH: Duration = Duration::from_millis(500);

/// [`AskHealth`] of a desk that is there later; until then the node is starting.
pub struct HealthDesk<B> {
    desk: OnceLock<Mutex<AdminDesk<B>>>,
    last: Mutex<Option<(Instant, HealthReport)>>,
}

impl<B> Default for HealthDesk<B> {
    fn default() -> HealthDesk<B> {
        HealthDesk { desk: OnceLock::new(), last: Mutex::new(None) }
    }
}

impl<B: Beside> HealthDesk<B> {
    /// The desk is there.
    pub fn open(&self, desk: AdminDesk<B>) {
        assert!(self.desk.set(Mutex::new(desk)).is_ok(), "a node has one desk");
    }

    /// Asks, or says again what was heard just now. Whoever asks meanwhile waits for the same answer.
    pub fn ask(&self) -> HealthReport {
        let mut last = self.last.lock().expect("nothing panics while it holds the last answer");
        if let Some((_, report)) = last.as_ref().filter(|(at, _)| at.elapsed() < HEALTH_FRESH) {
            return report.clone();
        }
        let report = match self.desk.get() {
            Some(desk) => desk.lock().expect("nothing panics while it asks").health(PATIENCE),
            None => HealthReport::not_ok(NodeId(0), "the node is starting"),
        };
        *last = Some((Instant::now(), report.clone()));
        report
    }
}

/// Listens and serves until the process ends; returns where. `now` is the boottime clock in nanoseconds.
pub fn start(
    listen: SocketAddr,
    board: Arc<StatusBoard>,
    health: AskHealth,
    now: fn() -> u64,
) -> io::Result<SocketAddr> {
    let listener = TcpListener::bind(listen)?;
    let address = listener.local_addr()?;
    std::thread::Builder::new().name("kiseki-http".to_owned()).spawn(move || {
        let open = Arc::new(AtomicUsize::new(0));
        for stream in listener.incoming() {
            let Ok(stream) = stream else {
                std::thread::sleep(Duration::from_millis(50));
                continue;
            };
            if open.load(Ordering::Relaxed) >= CONNECTIONS_MAX {
                continue;
            }
            open.fetch_add(1, Ordering::Relaxed);
            let (board, health, count) = (board.clone(), health.clone(), open.clone());
            let spawned = std::thread::Builder::new().name("kiseki-http-call".to_owned()).spawn(move || {
                let _gone = serve(&stream, &board, &*health, now);
                count.fetch_sub(1, Ordering::Relaxed);
            });
            if spawned.is_err() {
                open.fetch_sub(1, Ordering::Relaxed);
            }
        }
    })?;
    Ok(address)
}

/// One request a connection.
fn serve(
    stream: &TcpStream,
    board: &StatusBoard,
    health: &dyn Fn() -> HealthReport,
    now: fn() -> u64,
) -> io::Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let mut head = BufReader::new(stream.take(HEAD_LEN_BYTES_MAX));
    let mut request = String::new();
    head.read_line(&mut request)?;
    let mut line = String::new();
    while head.read_line(&mut line)? > 2 {
        line.clear();
    }
    let mut words = request.split_whitespace();
    let answer = match (words.next(), words.next()) {
        (Some("GET" | "HEAD"), Some(path)) => respond(path, &board.snapshot(), health, now()),
        (Some(_), Some(_)) => Answer::text(405, "this port only reads; use `kiseki` for changes\n"),
        _ => Answer::text(400, "not an HTTP request\n"),
    };
    let body = if request.starts_with("HEAD ") { "" } else { &answer.body };
    let answer = format!(
        "HTTP/1.1 {} {}\r\ncontent-type: {}\r\ncontent-length: {}\r\ncache-control: no-store\r\nconnection: close\r\n\r\n{body}",
        answer.status,
        reason(answer.status),
        answer.content_type,
        answer.body.len(),
    );
    // In one piece: a node that ends has then answered, or not at all.
    let mut writer = stream;
    writer.write_all(answer.as_bytes())
}

struct Answer {
    status: u16,
    content_type: &'static str,
    body: String,
}

impl Answer {
    fn text(status: u16, body: &str) -> Answer {
        Answer { status, content_type: "text/plain; charset=utf-8", body: body.to_owned() }
    }
}

fn reason(status: u16) -> &'static str {
    match status {
        200 => "OK",
        400 => "Bad Request",
        404 => "Not Found",
        405 => "Method Not Allowed",
        _ => "Service Unavailable",
    }
}

fn respond(path: &str, report: &NodeReport, health: &dyn Fn() -> HealthReport, now: u64) -> Answer {
    match path.split('?').next().unwrap_or_default() {
        "/livez" => match report.silent_cores(now).as_slice() {
            [] => Answer::text(200, "alive\n"),
            silent => Answer::text(503, &format!("cores {} do not answer\n", silent.join(", "))),
        },
        "/readyz" => match report.phase {
            Phase::Serving => Answer::text(200, "ready\n"),
            Phase::Starting => Answer::text(503, "starting\n"),
            Phase::Stopping => Answer::text(503, "stopping\n"),
        },
        "/healthz" => {
            let health = health();
            let status = if health.ok { 200 } else { 503 };
            let mut body = serde_json::json!({
                "ok": health.ok,
                "node": health.node,
                "alone": health.alone,
                "reasons": health.reasons,
                "healthy": report.is_healthy() && report.unsafe_settings.is_empty(),
                "phase": report.phase,
                "durability": report.durability,
                "devices": report.devices,
                "pools": report.pools,
                "metadata_dirs": report.metadata_dirs,
                "repair": report.repair,
                "rebalance": report.rebalance,
                "scrub": report.scrub,
                "unsafe_settings": report.unsafe_settings,
                "warnings": report.warnings,
            })
            .to_string();
            body.push('\n');
            Answer { status, content_type: "application/json", body }
        }
        "/metrics" => metrics(report, now),
        "/stages" => stages::answer(report),
        _ => Answer::text(404, "/livez /readyz /healthz /metrics /stages\n"),
    }
}

fn metrics(report: &NodeReport, now: u64) -> Answer {
    let mut registry = Registry::with_prefix("kiseki");
    let gauge = |registry: &mut Registry, name: &str, help: &str, value: u64| {
        registry.register(name.to_owned(), help, ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX)));
    };
    let healthy = report.devices.iter().filter(|device| device.state == "healthy").count() as u64;
    let uptime = now.saturating_sub(report.started_at) / 1_000_000_000;
    for (name, help, value) in [
        ("uptime_seconds", "Time since the start", uptime),
        ("ready", "Whether requests are answered", u64::from(report.phase == Phase::Serving)),
        ("devices", "Devices configured", report.devices.len() as u64),
        ("devices_healthy", "Devices that take reads and writes", healthy),
        ("unsafe_settings", "Settings that weaken durability or secrecy", report.unsafe_settings.len() as u64),
        ("connections", "Client connections", report.core_reports.values().map(|core| core.connections).sum()),
    ] {
        gauge(&mut registry, name, help, value);
    }
    let (repair, scrub) = (&report.repair, &report.scrub);
    for (name, help, value) in [
        ("at_full_width", "Whether every stripe has all its fragments", u64::from(repair.at_full_width)),
        ("repair_backlog", "Stripes queued or being repaired", repair.backlog_stripes),
        ("repair_waiting", "Stripes that wait for devices", repair.waiting_stripes),
        ("repair_devices_wanted", "Devices that those stripes wait for", repair.devices_wanted),
        ("stripes_lost", "Stripes with fewer good fragments than their data need", repair.lost_stripes),
        ("rebalance_at_rest", "Whether stripes lie as placement demands", u64::from(report.rebalance.at_rest)),
        ("scrub_position_permille", "Thousandths of the scrub pass that are done", scrub.position_permille),
        ("scrub_last_full_pass_unix_seconds", "End of the last scrub pass", scrub.last_full_pass_unix_ms / 1000),
        ("scrub_homes_overdue", "Homes whose scrub takes longer than the interval", scrub.homes_overdue),
    ] {
        gauge(&mut registry, name, help, value);
    }
    let sum = |value: fn(&crate::status::DeviceReport) -> u64| report.devices.iter().map(value).sum();
    gauge(&mut registry, "capacity_bytes", "Bytes for fragments on all devices", sum(|device| device.capacity_bytes));
    gauge(&mut registry, "free_bytes", "Free bytes on all devices", sum(|device| device.free_bytes));
    let paths = Family::<Vec<(String, String)>, Gauge>::default();
    for device in report.devices.iter().filter(|device| !device.io_path.is_empty()) {
        paths.get_or_create(&vec![("path".to_owned(), device.io_path.clone())]).inc();
    }
    registry.register("device_io_paths", "Devices by the way that they are driven", paths);
    space_metrics(&mut registry, report);
    device_metrics(&mut registry, report);
    links::metrics(&mut registry, report);
    shards::metrics(&mut registry, report);
    stages::metrics(&mut registry, report);
    let names: std::collections::BTreeSet<&String> =
        report.core_reports.values().flat_map(|core| core.values.keys()).collect();
    for name in names {
        let total = report.total(name);
        let help = name.replace('_', " ");
        match name.strip_suffix("_total") {
            Some(base) => registry.register(base.to_owned(), help, ConstCounter::new(total)),
            None => gauge(&mut registry, name, &help, total),
        }
    }
    let mut body = String::new();
    if encode(&mut body, &registry).is_err() {
        let _ = write!(body, "# encoding failed");
    }
    Answer { status: 200, content_type: "application/openmetrics-text; version=1.0.0; charset=utf-8", body }
}

/// One series for each device and state (I-D2), and for what is left on it while it is emptied (I-O2).
fn device_metrics(registry: &mut Registry, report: &NodeReport) {
    type Labels = Vec<(&'static str, String)>;
    let (states, errors) = (Family::<Labels, Gauge>::default(), Family::<Labels, Gauge>::default());
    let (fragments, bytes) = (Family::<Labels, Gauge>::default(), Family::<Labels, Gauge>::default());
    let (used, media_errors) = (Family::<Labels, Gauge>::default(), Family::<Labels, Gauge>::default());
    let count = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
    for device in &report.devices {
        let labels = || vec![("device", device.id.clone()), ("path", device.path.clone())];
        for state in DeviceState::ALL {
            let mut labels = labels();
            labels.push(("state", state.name().to_owned()));
            states.get_or_create(&labels).set(i64::from(device.state == state.name()));
        }
        errors.get_or_create(&labels()).set(count(device.read_errors));
        if let Some(wear) = &device.wear {
            used.get_or_create(&labels()).set(i64::from(wear.used_percent));
            media_errors.get_or_create(&labels()).set(count(wear.media_errors));
        }
        if let Some(evacuation) = &device.evacuation {
            fragments.get_or_create(&labels()).set(count(evacuation.fragments_left));
            bytes.get_or_create(&labels()).set(count(evacuation.bytes_left));
        }
    }
    registry.register("device_state", "Whether a device is in a state", states);
    registry.register("device_read_errors", "Errors that reads met on a device since its record began", errors);
    registry.register("device_used_percent", "Life of a drive that is used, by its maker's estimate", used);
    registry.register("device_media_errors", "Media errors that a drive counts", media_errors);
    registry.register("evacuation_fragments_left", "Fragments left on a device that is emptied", fragments);
    registry.register("evacuation_bytes_left", "Bytes left on a device that is emptied", bytes);
}

/// Fill and fragmentation of each device, fill of each pool.
fn space_metrics(registry: &mut Registry, report: &NodeReport) {
    type ByName = Family<Vec<(&'static str, String)>, Gauge>;
    let mut family = |name: &str, help: &str, label: &'static str, values: Vec<(String, u64)>| {
        let gauges = ByName::default();
        for (of, value) in values {
            gauges.get_or_create(&vec![(label, of)]).set(i64::try_from(value).unwrap_or(i64::MAX));
        }
        registry.register(name.to_owned(), help, gauges);
    };
    let devices = |value: fn(&crate::space::SpaceReport) -> u64| {
        let known = report.devices.iter().filter(|device| !device.space.level.is_empty());
        known.map(|device| (device.path.clone(), value(&device.space))).collect::<Vec<_>>()
    };
    let level = |name: &str| FillLevel::of_name(name) as u64;
    for (name, help, values) in [
        ("device_fill_permille", "Thousandths of the zones that are used", devices(|space| space.fill_permille)),
        (
            "device_fill_level",
            "0 normal, 1 warn, 2 critical, 3 read-only",
            devices(|space| FillLevel::of_name(&space.level) as u64),
        ),
        ("device_longest_free_run_bytes", "Longest free run of a lane", devices(|space| space.longest_free_run_bytes)),
        ("device_free_runs", "Free runs", devices(|space| space.free_runs)),
        (
            "device_free_usable_permille",
            "Thousandths of the free space that the largest fragments can be cut from",
            devices(|space| space.usable_permille),
        ),
    ] {
        family(name, help, "device", values);
    }
    let pools = |value: &dyn Fn(&crate::space::PoolReport) -> u64| {
        report.pools.iter().map(|pool| (pool.pool.to_string(), value(pool))).collect::<Vec<_>>()
    };
    let help = "Thousandths of the zones of usable devices that are used";
    family("pool_fill_permille", help, "pool", pools(&|pool| pool.fill_permille));
    let help = "0 normal, 1 warn, 2 critical: clients are refused, 3 read-only";
    family("pool_fill_level", help, "pool", pools(&|pool| level(&pool.level)));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn get(address: SocketAddr, request: &str) -> String {
        let mut stream = TcpStream::connect(address).unwrap();
        write!(stream, "{request} HTTP/1.1\r\nhost: x\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }

    #[test]
    fn health_tells_what_is_unsafe_and_nothing_can_be_changed() {
        let board = Arc::new(StatusBoard::default());
        let holds = Arc::new(std::sync::atomic::AtomicBool::new(true));
        let said = holds.clone();
        let health: AskHealth = Arc::new(move || match said.load(Ordering::Relaxed) {
            true => HealthReport { ok: true, node: 2, ..HealthReport::default() },
            false => HealthReport::not_ok(NodeId(2), "shard s7 has its only replica on node 2"),
        });
        let address = start("127.0.0.1:0".parse().unwrap(), board.clone(), health, || 5).unwrap();
        assert!(get(address, "GET /livez").starts_with("HTTP/1.1 200"));
        assert!(get(address, "GET /readyz").starts_with("HTTP/1.1 503"));
        {
            let mut report = board.lock();
            report.phase = Phase::Serving;
            report.unsafe_settings = vec!["unsafe_s3_plaintext".to_owned()];
            let device = crate::status::DeviceReport { io_path: "passthrough".to_owned(), ..Default::default() };
            report.devices = vec![device.clone(), device];
            let core = report.core_reports.entry("0".to_owned()).or_default();
            core.values.insert("requests_total".to_owned(), 7);
            let space =
                crate::space::SpaceReport { level: "critical".to_owned(), fill_permille: 905, ..Default::default() };
            let device = crate::status::DeviceReport { path: "/d0".to_owned(), space, ..Default::default() };
            report.devices.push(device);
            report.pools.push(crate::space::PoolReport { pool: 1, level: "warn".to_owned(), fill_permille: 810 });
        }
        assert!(get(address, "GET /readyz").starts_with("HTTP/1.1 200"));
        let health = get(address, "GET /healthz");
        assert!(health.contains("unsafe_s3_plaintext") && health.contains("\"healthy\":false"), "I-O1: {health}");
        assert!(health.starts_with("HTTP/1.1 200") && health.contains("\"ok\":true"), "{health}");
        holds.store(false, Ordering::Relaxed);
        let health = get(address, "GET /healthz");
        assert!(health.starts_with("HTTP/1.1 503") && health.contains("only replica on node 2"), "{health}");
        let metrics = get(address, "GET /metrics");
        assert!(metrics.contains("kiseki_requests_total 7"), "{metrics}");
        assert!(metrics.contains("kiseki_ready 1"), "{metrics}");
        assert!(metrics.contains("kiseki_device_io_paths{path=\"passthrough\"} 2"), "{metrics}");
        assert!(metrics.contains("kiseki_device_fill_level{device=\"/d0\"} 2"), "{metrics}");
        assert!(metrics.contains("kiseki_pool_fill_permille{pool=\"1\"} 810"), "{metrics}");
        assert!(get(address, "POST /metrics").starts_with("HTTP/1.1 405"));
        assert!(get(address, "GET /").starts_with("HTTP/1.1 404"));
    }

    #[test]
    fn i_d2_metrics_have_a_series_for_each_device_and_state() {
        let device = crate::status::DeviceReport {
            path: "/dev/d0".to_owned(),
            id: "07".to_owned(),
            state: "evacuating".to_owned(),
            evacuation: Some(crate::status::EvacuationReport { fragments_left: 9, ..Default::default() }),
            ..Default::default()
        };
        let report = NodeReport { devices: vec![device], ..NodeReport::default() };
        let text = respond("/metrics", &report, &HealthReport::default, 1).body;
        for line in [
            "kiseki_device_state{device=\"07\",path=\"/dev/d0\",state=\"evacuating\"} 1",
            "kiseki_device_state{device=\"07\",path=\"/dev/d0\",state=\"healthy\"} 0",
            "kiseki_evacuation_fragments_left{device=\"07\",path=\"/dev/d0\"} 9",
        ] {
            assert!(text.contains(line), "I-D2: {line} is not in {text}");
        }
    }

    #[test]
    fn a_core_that_fell_silent_is_not_alive() {
        let mut report = NodeReport::default();
        report.core_reports.insert("1".to_owned(), crate::status::CoreReport { reported_at: 5, ..Default::default() });
        assert_eq!(respond("/livez", &report, &HealthReport::default, 6).status, 200);
        assert_eq!(respond("/livez", &report, &HealthReport::default, 20_000_000_000).status, 503);
    }
}
