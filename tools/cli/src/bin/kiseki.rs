//! `kiseki`: administration of a running node through its admin socket, or over TLS from elsewhere.

use anyhow::Result;
use clap::{CommandFactory, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;
use kiseki_cli::ca::{self, CaCommand};
use kiseki_cli::node::{self, NodeCommand};
use kiseki_cli::shard::{self, ShardCommand};
use kiseki_cli::top::{self, Show};
use kiseki_cli::{health, shards};
use kiseki_server::admin::{AdminRequest, AdminResponse, Dedup, Etag};
use kiseki_server::admin_client::AdminClient;
use kiseki_server::outcome::{self, NodeError};
use kiseki_server::paths::{DEFAULT_DIR, KisekiDir};
use kiseki_server::space::{PoolReport, SpaceReport};
use kiseki_server::status::{DeviceReport, EvacuationReport, NodeReport, NodeSeen, PeerReport, Phase};
use serde::Serialize;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// How long `status` shows a device that was removed: one day. `--json` has it for longer.
const FORMER_NEWS_MS: u64 = 86_400_000;

/// Tenants, access keys, buckets and the state of a running Kiseki node.
#[derive(Parser)]
#[command(
    version,
    about,
    after_help = "Example:
  kiseki tenant create team-1
  kiseki key create team-1 --json

From elsewhere:
  kiseki ca issue-admin --name alice          (where the authority is)
  kiseki --node storage1:9100 --cert admin-alice status

Exit codes: 0 done, 1 refused (health: it would not hold), 2 wrong usage, 3 failed. With --json an error is one object on standard error:
{\"error\":{outcome, exit_code, message, causes}}."
)]
struct Cli {
    /// Directory of the node.
    #[arg(long, env = "KISEKI_DIR", default_value = DEFAULT_DIR, global = true)]
    dir: PathBuf,
    /// A node elsewhere, HOST:PORT, where its `[peer]` listens; stands in front of the verb.
    #[arg(long, env = "KISEKI_NODE", requires = "cert", value_name = "HOST:PORT")]
    node: Option<String>,
    /// Directory with an administrator's certificate, made by `kiseki ca issue-admin`.
    #[arg(long, env = "KISEKI_CERT", value_name = "DIR")]
    cert: Option<PathBuf>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Tenants: each has its own buckets and keys.
    #[command(subcommand)]
    Tenant(TenantCommand),
    /// Access keys of tenants.
    #[command(subcommand)]
    Key(KeyCommand),
    /// Settings of buckets.
    #[command(subcommand)]
    Bucket(BucketCommand),
    /// Certificates: the authority of the cluster, its nodes, its administrators.
    #[command(subcommand)]
    Ca(CaCommand),
    /// The cluster's nodes: those that are there, a new one, one that leaves.
    #[command(subcommand)]
    Node(NodeCommand),
    /// The shards of tenants' names: what they hold, how one is split, and which objects lie beside their names.
    #[command(subcommand)]
    Shard(ShardCommand),
    /// Shows devices, metadata directories, and what is unsafe or wrong.
    Status {
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Says whether the cluster would hold if a node, or a rack, left now: before it is restarted or drained. Exit code 0: yes, 1: no.
    Health {
        /// Number of the node; the one that is asked when absent.
        number: Option<u64>,
        /// All nodes of this rack at once, instead of a node.
        #[arg(long, conflicts_with = "number")]
        rack: Option<String>,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Shows what the node does just now, again each second: nodes, cores, devices, pools, shards, backlog, alerts.
    Top {
        /// Show it once, after a second.
        #[arg(long)]
        once: bool,
        /// The same as JSON.
        #[arg(long)]
        json: bool,
    },
    /// Prints completions for a shell.
    Completion {
        /// The shell.
        shell: Shell,
    },
    /// Writes the manual pages into a directory.
    #[command(hide = true)]
    Man {
        /// The directory.
        dir: PathBuf,
    },
}

#[derive(Subcommand)]
enum TenantCommand {
    /// Makes a tenant.
    Create {
        /// Its name: 1 to 63 of a-z, 0-9, '-', '_', '.'.
        name: String,
        /// Whether its chunks are shared with tenants that share too. With `private`, destroying the tenant's key
        /// destroys its data.
        #[arg(long, value_enum, default_value_t = DedupArg::Shared)]
        dedup: DedupArg,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Lists tenants.
    List {
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
}

#[derive(Subcommand)]
enum KeyCommand {
    /// Makes an access key. Its secret is shown this once.
    Create {
        /// Whose.
        tenant: String,
        /// Print JSON: `access_key_id` and `secret_access_key`.
        #[arg(long)]
        json: bool,
    },
    /// Lists access key ids.
    List {
        /// Whose.
        tenant: String,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
}

#[derive(Subcommand)]
enum BucketCommand {
    /// Changes how a bucket works from now on.
    Set {
        /// Its name.
        name: String,
        /// How ETags are made: `opaque` saves the MD5 of every upload, `md5` is what most clients expect.
        #[arg(long, value_enum)]
        etag: EtagArg,
        /// Whose bucket it is.
        #[arg(long, default_value = "default")]
        tenant: String,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
}

#[derive(Clone, Copy, ValueEnum)]
enum DedupArg {
    Shared,
    Private,
}

#[derive(Clone, Copy, ValueEnum)]
enum EtagArg {
    Md5,
    Opaque,
}

fn main() -> ExitCode {
    sigpipe::reset();
    match run(outcome::parse()) {
        Ok(code) => code,
        Err(error) => outcome::fail("kiseki", &error),
    }
}

fn run(cli: Cli) -> Result<ExitCode> {
    let done = |()| ExitCode::SUCCESS;
    let (request, json) = match cli.command {
        Command::Completion { shell } => {
            clap_complete::generate(shell, &mut Cli::command(), "kiseki", &mut std::io::stdout());
            return Ok(ExitCode::SUCCESS);
        }
        Command::Ca(command) => return ca::run(&KisekiDir::at(&cli.dir)?, command).map(done),
        Command::Man { dir } => return Ok(clap_mangen::generate_to(Cli::command(), dir).map(done)?),
        Command::Tenant(TenantCommand::Create { name, dedup, json }) => {
            let dedup = match dedup {
                DedupArg::Shared => Dedup::Shared,
                DedupArg::Private => Dedup::Private,
            };
            (AdminRequest::TenantCreate { name, dedup }, json)
        }
        Command::Tenant(TenantCommand::List { json }) => (AdminRequest::TenantList, json),
        Command::Key(KeyCommand::Create { tenant, json }) => (AdminRequest::KeyCreate { tenant }, json),
        Command::Key(KeyCommand::List { tenant, json }) => (AdminRequest::KeyList { tenant }, json),
        Command::Bucket(BucketCommand::Set { name, etag, tenant, json }) => {
            let etag = match etag {
                EtagArg::Md5 => Etag::Md5,
                EtagArg::Opaque => Etag::Opaque,
            };
            (AdminRequest::BucketSet { tenant, bucket: name, etag }, json)
        }
        Command::Node(command) => {
            let dir = KisekiDir::at(&cli.dir)?;
            return node::run(&dir, command, || connect(cli.node.as_deref(), cli.cert.as_deref(), &dir)).map(done);
        }
        Command::Shard(command) => {
            let dir = KisekiDir::at(&cli.dir)?;
            return shard::run(command, connect(cli.node.as_deref(), cli.cert.as_deref(), &dir)?).map(done);
        }
        Command::Status { json } => (AdminRequest::Status, json),
        Command::Health { number, rack, json } => {
            let mut client = connect(cli.node.as_deref(), cli.cert.as_deref(), &KisekiDir::at(&cli.dir)?)?;
            return health::run(&mut client, number, rack, json);
        }
        Command::Top { once, json } => {
            let show = match (once, json) {
                (_, true) => Show::Json,
                (true, false) => Show::Once,
                (false, false) => Show::Live,
            };
            let mut client = connect(cli.node.as_deref(), cli.cert.as_deref(), &KisekiDir::at(&cli.dir)?)?;
            return top::run(&mut client, show).map(done);
        }
    };
    let mut client = connect(cli.node.as_deref(), cli.cert.as_deref(), &KisekiDir::at(&cli.dir)?)?;
    print(client.call(&request)?, json).map(done)
}

/// A way to the node that is meant.
fn connect(node: Option<&str>, cert: Option<&Path>, dir: &KisekiDir) -> Result<AdminClient> {
    match (node, cert) {
        (Some(node), Some(cert)) => Ok(AdminClient::remote(node, cert)?),
        _ => Ok(AdminClient::connect(&dir.admin_socket())?),
    }
}

fn print(response: AdminResponse, json: bool) -> Result<()> {
    match response {
        AdminResponse::Error { message, outcome } => Err(NodeError { message, outcome }.into()),
        AdminResponse::Tenant(tenant) if json => print_json(&tenant),
        AdminResponse::Tenant(tenant) => {
            println!("tenant {} made; give it an access key: kiseki key create {0}", tenant.name);
            Ok(())
        }
        AdminResponse::Tenants { tenants } if json => print_json(&tenants),
        AdminResponse::Tenants { tenants } => {
            for tenant in tenants {
                println!("{:<32} {}", tenant.name, if tenant.dedup == Dedup::Shared { "shared" } else { "private" });
            }
            Ok(())
        }
        AdminResponse::Key(key) if json => print_json(&key),
        AdminResponse::Key(key) => {
            println!("access_key_id     {}\nsecret_access_key {}", key.access_key_id, key.secret_access_key);
            println!("the secret is not shown again");
            Ok(())
        }
        AdminResponse::Keys { access_key_ids } if json => print_json(&access_key_ids),
        AdminResponse::Keys { access_key_ids } => {
            access_key_ids.iter().for_each(|id| println!("{id}"));
            Ok(())
        }
        AdminResponse::Done if json => print_json(&serde_json::json!({ "done": true })),
        AdminResponse::Done => {
            println!("done");
            Ok(())
        }
        AdminResponse::Nodes { nodes } => print_json(&nodes),
        AdminResponse::Node(row) => print_json(&row),
        AdminResponse::Invited(invitation) => print_json(&invitation),
        AdminResponse::Device(device) => print_json(&device),
        AdminResponse::Joined(joined) => print_json(&joined),
        AdminResponse::Health(health) => print_json(&health),
        AdminResponse::Shards { shards } => print_json(&shards),
        AdminResponse::Shard { row, inline } => print_json(&shard::as_json(&row, &inline)?),
        AdminResponse::Split { shard, child } => print_json(&serde_json::json!({ "shard": shard, "child": child })),
        AdminResponse::Status(report) if json => print_json(&report),
        AdminResponse::Status(report) => {
            print_status(&report);
            Ok(())
        }
    }
}

fn print_json(value: &impl Serialize) -> Result<()> {
    println!("{}", serde_json::to_string_pretty(value)?);
    Ok(())
}

fn print_status(report: &NodeReport) {
    let gib = |bytes: u64| bytes as f64 / f64::from(1 << 30);
    println!("cluster {}, node {}", report.cluster, report.node);
    println!(
        "{} at {} ({} cores, {} lanes, {})",
        phase(report),
        report.endpoint,
        report.cores,
        report.lanes,
        report.durability
    );
    if report.phase == Phase::Starting && !(report.waits_for.is_empty() && report.waits_because.is_empty()) {
        println!("  waiting   {}", waiting_line(report));
    }
    for node in report.nodes.iter().filter(|_| report.nodes.len() > 1) {
        println!("  node      {:<9} {}", node.row.state, node_line(node));
    }
    for device in &report.devices {
        let why = match device.io_path_reason.as_str() {
            "" => String::new(),
            reason => format!(": {reason}"),
        };
        let space = format!(
            "{:.1} of {:.1} GiB free{}, {}{why}",
            gib(device.free_bytes),
            gib(device.capacity_bytes),
            space_words(&device.space),
            device.io_path
        );
        println!(
            "  device    {:<11} {} {}{}",
            device.state,
            device.path,
            if device.reason.is_empty() { &space } else { &device.reason },
            since(device)
        );
        if let Some(evacuation) = &device.evacuation {
            println!("    drain   {}", evacuation_line(evacuation));
        }
        if let Some(health) = health_line(device) {
            println!("    smart   {health}");
        }
        if !device.warning.is_empty() {
            println!("    wear    {}", device.warning);
        }
    }
    for device in report.former_devices.iter().filter(|device| is_news(device)) {
        let id = device.id.get(..8).unwrap_or(&device.id);
        println!("  former    {:<11} {} (device {id}) {}{}", device.state, device.path, device.reason, since(device));
        if !device.warning.is_empty() {
            println!("    repair  {}", device.warning);
        }
    }
    for pool in &report.pools {
        println!("  pool      {:<9} {}", pool.level, pool_line(pool));
    }
    for dir in &report.metadata_dirs {
        println!("  metadata  {:<9} {} {}", dir.state, dir.path, dir.reason);
    }
    if let Some(peer) = &report.peer {
        println!("  peer      {}", peer_line(peer));
    }
    print!("{}", shards::status_lines(report));
    println!("  repair    {}", repair_line(report));
    println!("  rebalance {}", rebalance_line(report));
    println!("  scrub     {}", scrub_line(report));
    for setting in &report.unsafe_settings {
        println!("  unsafe    {setting}");
    }
    for warning in &report.warnings {
        println!("  warning   {warning}");
    }
    for alert in report.alerts.iter().filter(|alert| !is_told(report, alert)) {
        println!("  ALERT     {alert}");
    }
}

/// Whether a line of its own says so.
fn is_told(report: &NodeReport, alert: &str) -> bool {
    report.warnings.iter().any(|warning| warning == alert)
        || report.unsafe_settings.iter().any(|setting| alert.starts_with(setting.as_str()))
}

/// What the drive says of its health, or why it can't be asked.
fn health_line(device: &DeviceReport) -> Option<String> {
    let reading = device.wear.as_ref().map(|wear| wear.summary());
    match (reading, device.wear_problem.as_str()) {
        (reading, "") => reading,
        (None, problem) => Some(format!("can't be read: {problem}")),
        (Some(reading), problem) => Some(format!("{reading} (as read before; now it can't be: {problem})")),
    }
}

/// A device that is removed is news for a day; any other that is not configured may want something.
fn is_news(device: &DeviceReport) -> bool {
    device.state != "removed" || now_ms().saturating_sub(device.since_unix_ms) < FORMER_NEWS_MS
}

/// Since when a device that is not healthy is so, and by whom.
fn since(device: &DeviceReport) -> String {
    if device.since_unix_ms == 0 || device.state == "healthy" {
        return String::new();
    }
    format!(" (by {}, {} ago)", device.actor, span(now_ms().saturating_sub(device.since_unix_ms) / 1000))
}

fn now_ms() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_millis()).unwrap_or(u64::MAX)
}

fn span(seconds: u64) -> String {
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7200 => format!("{} min", seconds / 60),
        7200..172_800 => format!("{} h", seconds / 3600),
        _ => format!("{} days", seconds / 86_400),
    }
}

fn evacuation_line(evacuation: &EvacuationReport) -> String {
    let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    if evacuation.fragments_left == 0 {
        return "empty; kiseki-devctl retire lets it go".to_owned();
    }
    let mut line = format!("{} fragments, {:.1} MiB left", evacuation.fragments_left, mib(evacuation.bytes_left));
    if !evacuation.waits_for.is_empty() {
        line.push_str(&format!(", {} stripes wait for {}", evacuation.waiting_stripes, evacuation.waits_for));
    } else if let Some(seconds) = evacuation.eta_seconds {
        line.push_str(&format!(", {:.1} MiB/s, {} to go", mib(evacuation.bytes_per_second), span(seconds)));
    }
    line
}

/// Level and fragmentation of a device, where they are known.
fn space_words(space: &SpaceReport) -> String {
    if space.level.is_empty() {
        return String::new();
    }
    let level = if space.level == "normal" { String::new() } else { format!(", {}", space.level.to_uppercase()) };
    let mut words = format!("{level}; {} free runs, {} % of it usable", space.free_runs, space.usable_permille / 10);
    if space.discard_queue_bytes > 0 {
        words.push_str(&format!(", {} MiB to discard", space.discard_queue_bytes.div_ceil(1 << 20)));
    }
    words
}

fn pool_line(pool: &PoolReport) -> String {
    let advice = match pool.level.as_str() {
        "warn" => "; add devices or delete data soon",
        "critical" => "; new data of clients is refused (507): add devices or delete data",
        "read-only" => "; nothing is taken, repaired fragments neither: add devices or delete data",
        _ => "",
    };
    format!("{}: {}.{} % full{advice}", pool.pool, pool.fill_permille / 10, pool.fill_permille % 10)
}

fn waiting_line(report: &NodeReport) -> String {
    match (report.waits_for.as_str(), report.waits_because.as_str()) {
        ("", because) => format!("for the cluster: {because}"),
        (nodes, "") => format!("for a majority; silent: {nodes}"),
        (nodes, because) => format!("for a majority; silent: {nodes}; {because}"),
    }
}

fn node_line(node: &NodeSeen) -> String {
    let heard = match node.heard_ms_ago {
        _ if node.is_here => "this node".to_owned(),
        Some(ms) => format!("heard {} ago", span(ms / 1000)),
        None => "not heard since this node started".to_owned(),
    };
    let devices = node.devices.map_or(String::new(), |count| format!(", {count} devices"));
    format!("{} at {}, {heard}{devices}", node.row.node, node.row.addresses.join(", "))
}

fn peer_line(peer: &PeerReport) -> String {
    let problem = if peer.problem.is_empty() { String::new() } else { format!("; PROBLEM: {}", peer.problem) };
    format!(
        "{} as {}, certificate valid {}, {} revoked, {} turned away{problem}",
        peer.listen,
        peer.name,
        ca::until(peer.not_after_unix),
        peer.revoked,
        peer.refused
    )
}

fn repair_line(report: &NodeReport) -> String {
    let repair = &report.repair;
    let mut line = match repair.at_full_width {
        true => "all stripes at full width".to_owned(),
        false if repair.backlog_stripes + repair.waiting_stripes + repair.lost_stripes == 0 => "looking".to_owned(),
        false => format!("{} stripes to repair", repair.backlog_stripes),
    };
    if repair.waiting_stripes > 0 {
        line.push_str(&format!(", {} wait for {}", repair.waiting_stripes, repair.waits_for));
    } else if !repair.waits_for.is_empty() {
        line.push_str(&format!(", waits for {}", repair.waits_for));
    }
    if repair.lost_stripes > 0 {
        line.push_str(&format!(", {} LOST: bring back their devices", repair.lost_stripes));
    }
    let mib = repair.bytes_repaired >> 20;
    line.push_str(&format!("; {} fragments ({mib} MiB) repaired since the start", repair.fragments_repaired));
    line
}

fn rebalance_line(report: &NodeReport) -> String {
    let rebalance = &report.rebalance;
    let mib = |bytes: u64| bytes.div_ceil(1 << 20);
    let mut parts = Vec::new();
    if rebalance.fragments_to_spread > 0 {
        let (fragments, mib) = (rebalance.fragments_to_spread, mib(rebalance.bytes_to_spread));
        parts.push(format!("{fragments} fragments ({mib} MiB) to spread over nodes"));
    }
    if rebalance.fragments_to_balance > 0 {
        let (fragments, mib) = (rebalance.fragments_to_balance, mib(rebalance.bytes_to_balance));
        parts.push(format!("up to {fragments} fragments ({mib} MiB) to emptier devices"));
    }
    let mut line = match parts.is_empty() {
        true if rebalance.at_rest => "at rest".to_owned(),
        true => "looking".to_owned(),
        false => parts.join(", "),
    };
    if !rebalance.waits_for.is_empty() {
        line.push_str(&format!(", waits for {}", rebalance.waits_for));
    } else if rebalance.bytes_per_second > 0 {
        line.push_str(&format!(", {:.1} MiB/s", rebalance.bytes_per_second as f64 / f64::from(1 << 20)));
    }
    let (fragments, moved) = (rebalance.fragments_moved, mib(rebalance.bytes_moved));
    line.push_str(&format!("; {fragments} fragments ({moved} MiB) moved since the start"));
    line
}

fn scrub_line(report: &NodeReport) -> String {
    let scrub = &report.scrub;
    if !scrub.is_on {
        return "off".to_owned();
    }
    let last = match scrub.last_full_pass_unix_ms {
        0 => "no full pass yet".to_owned(),
        ms => {
            let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
            format!("last full pass {} h ago", now.as_secs().saturating_sub(ms / 1000) / 3600)
        }
    };
    let overdue = if scrub.homes_overdue > 0 { "; OVERDUE: raise scrub.mib_per_second_max" } else { "" };
    let (percent, mib) = (scrub.position_permille / 10, scrub.bytes_checked >> 20);
    format!("{percent} % of this pass, {last}; {mib} MiB checked, {} bad{overdue}", scrub.bad_found)
}

fn phase(report: &NodeReport) -> &'static str {
    match report.phase {
        Phase::Starting => "starting",
        Phase::Serving if report.is_healthy() => "serving, healthy",
        Phase::Serving => "serving, not healthy",
        Phase::Stopping => "stopping",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kiseki_server::wear::WearReading;

    #[test]
    fn status_says_what_repair_waits_for() {
        let mut report = NodeReport::default();
        assert!(repair_line(&report).starts_with("looking"));
        report.repair.waiting_stripes = 4;
        report.repair.waits_for = "one more device (5 are usable)".to_owned();
        assert!(repair_line(&report).contains("4 wait for one more device"), "I-D1: {}", repair_line(&report));
        report.repair = kiseki_server::upkeep::RepairReport { at_full_width: true, ..Default::default() };
        assert!(repair_line(&report).starts_with("all stripes at full width"));
        assert_eq!(scrub_line(&report), "off");
    }

    #[test]
    fn i_o2_status_says_what_rebalancing_has_left_and_waits_for() {
        let mut report = NodeReport::default();
        assert!(rebalance_line(&report).starts_with("looking"));
        report.rebalance.at_rest = true;
        assert!(rebalance_line(&report).starts_with("at rest; 0 fragments"));
        report.rebalance = kiseki_server::upkeep::RebalanceReport {
            fragments_to_spread: 3,
            bytes_to_spread: 5 << 20,
            fragments_moved: 2,
            bytes_moved: 1 << 20,
            bytes_per_second: 3 << 19,
            ..Default::default()
        };
        let line = rebalance_line(&report);
        assert_eq!(
            line,
            "3 fragments (5 MiB) to spread over nodes, 1.5 MiB/s; 2 fragments (1 MiB) moved since the start"
        );
        report.rebalance.waits_for = "repair, which comes first".to_owned();
        assert!(rebalance_line(&report).contains("waits for repair"), "{}", rebalance_line(&report));
    }

    #[test]
    fn i_d2_status_says_since_when_and_by_whom_and_how_far_a_drain_is() {
        let state = |state: &str| DeviceReport {
            state: state.to_owned(),
            actor: "wear".to_owned(),
            since_unix_ms: now_ms() - 7_300_000,
            ..DeviceReport::default()
        };
        assert_eq!(since(&state("evacuating")), " (by wear, 2 h ago)", "I-D2");
        assert_eq!(since(&state("healthy")), "");
        let mut evacuation = EvacuationReport { fragments_left: 5, bytes_left: 3 << 20, ..Default::default() };
        assert_eq!(evacuation_line(&evacuation), "5 fragments, 3.0 MiB left");
        (evacuation.bytes_per_second, evacuation.eta_seconds) = (1 << 20, Some(3));
        assert!(evacuation_line(&evacuation).ends_with("1.0 MiB/s, 3 s to go"));
        (evacuation.waits_for, evacuation.waiting_stripes) = ("one more device".to_owned(), 2);
        assert!(evacuation_line(&evacuation).ends_with("2 stripes wait for one more device"));
        evacuation.fragments_left = 0;
        assert!(evacuation_line(&evacuation).starts_with("empty"));
    }

    #[test]
    fn i_c5_status_says_that_clients_are_refused() {
        let pool = PoolReport { pool: 1, level: "critical".to_owned(), fill_permille: 904 };
        assert_eq!(
            pool_line(&pool),
            "1: 90.4 % full; new data of clients is refused (507): add devices or delete data"
        );
        let space = SpaceReport { level: "warn".to_owned(), free_runs: 3, usable_permille: 990, ..Default::default() };
        assert_eq!(space_words(&space), ", WARN; 3 free runs, 99 % of it usable");
        assert_eq!(space_words(&SpaceReport::default()), "", "before every core has reported");
    }

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
        Cli::try_parse_from(["kiseki", "bucket", "set", "photos", "--etag", "opaque"]).unwrap();
        assert!(Cli::try_parse_from(["kiseki", "bucket", "set", "photos"]).is_err(), "nothing to set");
        let line = ["kiseki", "--node", "a:1", "--cert", "c", "ca", "issue-node", "--node", "3"];
        assert!(Cli::try_parse_from(line).is_ok(), "the node to call and the node to issue for are two things");
        assert!(Cli::try_parse_from(["kiseki", "--node", "a:1", "status"]).is_err(), "a certificate is needed");
        let line = ["kiseki", "--node", "a:1", "--cert", "c", "node", "drain", "3"];
        assert!(Cli::try_parse_from(line).is_ok(), "the node to call and the node that is meant are two things");
        assert!(Cli::try_parse_from(["kiseki", "node", "remove"]).is_err(), "which one must be said");
    }

    #[test]
    fn status_says_who_is_there_and_for_whom_a_start_waits() {
        let mut node = NodeSeen { heard_ms_ago: Some(3_500), ..NodeSeen::default() };
        (node.row.node, node.row.addresses) = (3, vec!["10.0.0.3:9100".to_owned()]);
        assert_eq!(node_line(&node), "3 at 10.0.0.3:9100, heard 3 s ago");
        (node.is_here, node.devices) = (true, Some(2));
        assert_eq!(node_line(&node), "3 at 10.0.0.3:9100, this node, 2 devices");
        let mut report = NodeReport { waits_because: "no leader".to_owned(), ..NodeReport::default() };
        assert_eq!(waiting_line(&report), "for the cluster: no leader");
        report.waits_for = "node 3 at 10.0.0.3:9100 (never heard)".to_owned();
        assert!(waiting_line(&report).starts_with("for a majority; silent: node 3"), "{}", waiting_line(&report));
    }

    #[test]
    fn i_d3_status_shows_what_a_drive_says_of_its_health() {
        let mut device = DeviceReport::default();
        assert_eq!(health_line(&device), None, "an image has none");
        device.wear_problem = "Permission denied".to_owned();
        assert_eq!(health_line(&device).unwrap(), "can't be read: Permission denied");
        let wear =
            WearReading { used_percent: 7, media_errors: 2, temperature_celsius: Some(41), ..Default::default() };
        device.wear = Some(wear);
        device.wear_problem.clear();
        assert_eq!(health_line(&device).unwrap(), "7 % of its life used, 0 % spare, 2 media errors, 41 °C", "I-D3");
    }

    #[test]
    fn a_device_that_left_is_shown_for_a_day_and_one_that_wants_something_for_longer() {
        let at =
            |state: &str, since_unix_ms| DeviceReport { state: state.to_owned(), since_unix_ms, ..Default::default() };
        assert!(is_news(&at("removed", now_ms())) && is_news(&at("failed", 1)) && is_news(&at("unreachable", 1)));
        assert!(!is_news(&at("removed", now_ms() - FORMER_NEWS_MS - 1)));
    }
}
