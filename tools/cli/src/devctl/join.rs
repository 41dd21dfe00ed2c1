//! What `enroll` and `replace` have in common: a node that runs does it itself, otherwise it is prepared for its next
//! start; then, if wanted, the wait until every stripe has its full width.

use super::asking::{Asking, print_answer};
use super::drain::await_empty;
use super::node::{ElsewhereArgs, load, path_on_node};
use anyhow::{Context, Result, anyhow, bail};
use indicatif::{ProgressBar, ProgressStyle};
use kiseki_server::admin::{AdminRequest, AdminResponse};
use kiseki_server::admin_client::{AdminClient, AdminClientError};
use kiseki_server::config::Config;
use kiseki_server::device_admin::DeviceAnswer;
use kiseki_server::device_name;
use kiseki_server::enroll::{ChangeMode, JoinKind, JoinedDevice, candidates};
use kiseki_server::enroll_offline::Offline;
use kiseki_server::outcome::{NodeError, Partly};
use kiseki_server::status::{DeviceReport, NodeReport};
use serde_json::json;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// Longer than every core may take for it.
const ANSWER_PATIENCE: Duration = Duration::from_secs(900);

/// Between two looks at the repair of a node.
const LOOK_INTERVAL: Duration = Duration::from_millis(250);

/// Stripes wait for so long without anything to do before `--wait` gives up: repair looks at them again meanwhile.
const WAITING_PATIENCE: Duration = Duration::from_secs(10);

/// How a device is to join.
#[derive(clap::Args)]
pub struct JoinOptions {
    /// Check everything and say what would happen; change nothing.
    #[arg(long)]
    dry_run: bool,
    /// Wait until every stripe has its full width.
    #[arg(long, conflicts_with = "dry_run")]
    wait: bool,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// The node that devices join.
pub struct Joiner {
    options: JoinOptions,
    way: Way,
    joined: Vec<JoinedDevice>,
    /// Whether what joins was formatted by this command.
    has_formatted: bool,
    /// Whether the node is on another machine.
    is_elsewhere: bool,
}

enum Way {
    Running(AdminClient),
    Stopped(Box<Offline>),
}

impl Joiner {
    /// Finds out whether the node in `dir` runs. While it does not, its directory is held, so that it does not start
    /// meanwhile.
    pub fn new(dir: PathBuf, elsewhere: &ElsewhereArgs, options: JoinOptions) -> Result<Joiner> {
        let (joined, has_formatted, is_elsewhere) = (Vec::new(), false, elsewhere.is_named());
        if let Some(mut client) = elsewhere.connect()? {
            client.be_patient(ANSWER_PATIENCE)?;
            return Ok(Joiner { options, way: Way::Running(client), joined, has_formatted, is_elsewhere });
        }
        let config: Config = load(dir)?;
        let way = match AdminClient::connect(&config.dir.admin_socket()) {
            Ok(mut client) => {
                client.be_patient(ANSWER_PATIENCE)?;
                Way::Running(client)
            }
            Err(AdminClientError::NotRunning { .. }) if options.wait => {
                bail!(
                    "--wait needs a node that runs; start it first, or leave --wait away and look at `kiseki status` then"
                )
            }
            Err(AdminClientError::NotRunning { .. }) => Way::Stopped(Box::new(Offline::begin(config)?)),
            Err(error) => return Err(error.into()),
        };
        Ok(Joiner { options, way, joined, has_formatted, is_elsewhere })
    }

    pub fn is_dry_run(&self) -> bool {
        self.options.dry_run
    }

    pub fn is_json(&self) -> bool {
        self.options.json
    }

    fn mode(&self) -> ChangeMode {
        if self.options.dry_run { ChangeMode::DryRun } else { ChangeMode::Make }
    }

    /// What can be refused is refused before anything is formatted.
    pub fn check_before_format(&mut self, devices: &[PathBuf]) -> Result<()> {
        let Some(report) = self.report()? else { return Ok(()) };
        for device in devices {
            let path = std::path::absolute(device)?;
            if report.devices.iter().any(|known| Path::new(&known.path) == path && known.is_usable()) {
                bail!("{} is in use by this node; it is not formatted", device.display());
            }
        }
        Ok(())
    }

    /// The devices that join are formatted now.
    pub fn note_formatted(&mut self) {
        self.has_formatted = true;
    }

    /// An error of one device, with what was done before it, unless the error tells.
    pub fn partly(&self, error: anyhow::Error) -> anyhow::Error {
        if error.downcast_ref::<Partly>().is_some() {
            return error;
        }
        match (self.options.dry_run, self.joined.len(), self.has_formatted) {
            (false, 0, true) => error.context(Partly("formatted, but not taken into use".to_owned())),
            (true, ..) | (_, 0, false) => error,
            (false, count, _) => {
                error.context(Partly(format!("the first {count} devices take part, the others do not")))
            }
        }
    }

    pub fn enroll(&mut self, device: &Path) -> Result<()> {
        let (path, mode, actor) = (path_on_node(device, self.is_elsewhere)?, self.mode(), actor());
        let joined = match &mut self.way {
            Way::Running(client) => ask(client, &AdminRequest::DeviceEnroll { path, actor, mode })?,
            Way::Stopped(offline) => offline.enroll(&path, None, &actor, mode)?,
        };
        self.note(joined)
    }

    pub fn replace(&mut self, old: &str, new: &Path) -> Result<()> {
        let (path, mode, actor) = (path_on_node(new, self.is_elsewhere)?, self.mode(), actor());
        let device = self.as_named(old)?;
        if let Some(works) = self.find_working(&device)? {
            return self.replace_working(&works, path);
        }
        let joined = match &mut self.way {
            Way::Running(client) => ask(client, &AdminRequest::DeviceReplace { device, path, actor, mode })?,
            Way::Stopped(offline) => offline.enroll(&path, Some(&device), &actor, mode)?,
        };
        self.note(joined)
    }

    /// Refuses to replace what is no device of the node, before anything is formatted.
    pub fn check_leaving(&mut self, old: &str, new: &Path) -> Result<()> {
        let (device, new) = (self.as_named(old)?, path_on_node(new, self.is_elsewhere)?);
        if let Way::Stopped(offline) = &self.way {
            return offline.check_leaving(&device, &new);
        }
        let Some(report) = self.report()? else { return Ok(()) };
        let found = device_name::find(&device, Path::new(&device), &candidates(&report.devices));
        found.map(drop).map_err(|why| anyhow!(why))
    }

    /// The device of that path or id on a node that runs, when it works.
    fn find_working(&mut self, device: &str) -> Result<Option<DeviceReport>> {
        let Some(report) = self.report()? else { return Ok(None) };
        // None, or several: the node says so when it is asked.
        let found = device_name::find(device, Path::new(device), &candidates(&report.devices)).ok();
        Ok(found.map(|at| report.devices[at].clone()).filter(DeviceReport::is_usable))
    }

    /// One that works is emptied, not given up: the new one joins, what the old one holds moves, then it is let go.
    fn replace_working(&mut self, old: &DeviceReport, path: PathBuf) -> Result<()> {
        let (mode, actor, asking) = (self.mode(), actor(), self.asking());
        let Way::Running(client) = &mut self.way else { bail!("the node does not run") };
        let joined = ask(client, &AdminRequest::DeviceEnroll { path, actor, mode })?;
        let (device, reason) = (old.id.clone(), format!("device {} takes its place", joined.device));
        self.note(joined)?;
        let Way::Running(client) = &mut self.way else { bail!("the node does not run") };
        let drain = AdminRequest::DeviceDrain { device: device.clone(), reason: reason.clone(), mode };
        let partly = |error: anyhow::Error| match asking.dry_run {
            true => error, // nothing was done
            false => error.context(Partly(format!("the new device takes part, and {} is not let go", old.path))),
        };
        let answer = ask_about(client, &drain).map_err(partly)?;
        if !self.options.wait {
            let would = if asking.dry_run { "would be emptied" } else { "is being emptied" };
            let next =
                format!("{0} {would}; then `kiseki-devctl drain {0} --wait` and `kiseki-devctl retire {0}`", old.path);
            return print_answer(&answer, &next, &asking);
        }
        await_empty(client, &answer, &asking).map_err(partly)?;
        let retire = AdminRequest::DeviceRetire { device, reason, lost: false, mode };
        let retired = ask_about(client, &retire).map_err(partly)?;
        let done = format!("{} is empty and not part of the node any more; it can be pulled", old.path);
        print_answer(&retired, &done, &asking)
    }

    /// A path is relative to where it is typed, an id is none; of a node elsewhere it is taken as it is.
    fn as_named(&self, old: &str) -> Result<String> {
        let typed = Path::new(old);
        Ok(match !self.is_elsewhere && (typed.exists() || old.contains('/')) {
            true => std::path::absolute(typed)?.display().to_string(),
            false => old.to_owned(),
        })
    }

    fn asking(&self) -> Asking {
        Asking { dry_run: self.options.dry_run, json: self.options.json }
    }

    fn note(&mut self, joined: JoinedDevice) -> Result<()> {
        if self.options.json {
            println!("{}", serde_json::to_string(&joined)?);
        } else {
            let is_stopped = matches!(self.way, Way::Stopped(_));
            println!("{}", line(&joined, self.options.dry_run, is_stopped));
            if joined.kind == JoinKind::Replaced && is_stopped && !self.options.dry_run {
                println!(
                    "  what {} held is rebuilt from the start on, then it counts as removed: `kiseki status`",
                    old(&joined)
                );
            }
            joined.warnings.iter().for_each(|warning| println!("  warning: {warning}"));
        }
        self.joined.push(joined);
        Ok(())
    }

    fn report(&mut self) -> Result<Option<NodeReport>> {
        let Way::Running(client) = &mut self.way else { return Ok(None) };
        match client.call(&AdminRequest::Status)? {
            AdminResponse::Status(report) => Ok(Some(*report)),
            _ => bail!("the node answers in another kind"),
        }
    }

    /// Waits, if that is wanted; the exit code says whether full width is reached.
    pub fn finish(mut self) -> Result<ExitCode> {
        if !self.options.wait {
            return Ok(ExitCode::SUCCESS);
        }
        let bar = if self.options.json { ProgressBar::hidden() } else { ProgressBar::new(0) };
        bar.set_style(ProgressStyle::with_template("{bar:30} {pos}/{len} stripes {msg}")?);
        let began = Instant::now();
        let (mut backlog_max, mut stuck_since, mut first) = (0, None, None);
        loop {
            let unknown = || Partly("done, but whether repair ended is not known: `kiseki status` tells".to_owned());
            let report = self.report().with_context(unknown)?.context("the node has stopped")?;
            let repair = &report.repair;
            let open = repair.backlog_stripes + repair.waiting_stripes;
            backlog_max = open.max(backlog_max);
            let first = *first.get_or_insert(repair.bytes_repaired);
            let repaired = repair.bytes_repaired.saturating_sub(first) as f64 / f64::from(1 << 20);
            bar.set_length(backlog_max);
            bar.set_position(backlog_max.saturating_sub(open));
            bar.set_message(format!(
                "{repaired:.1} MiB rebuilt, {:.1} MiB/s",
                repaired / began.elapsed().as_secs_f64().max(0.1)
            ));
            let all_there = self
                .joined
                .iter()
                .all(|joined| report.devices.iter().any(|device| device.id == joined.device && device.is_usable()));
            if repair.at_full_width && all_there {
                bar.finish_and_clear();
                self.say_full_width(began.elapsed(), repaired);
                return Ok(ExitCode::SUCCESS);
            }
            let is_stuck = repair.backlog_stripes == 0 && repair.waiting_stripes > 0 && !repair.waits_for.is_empty();
            stuck_since = if is_stuck { stuck_since.or(Some(Instant::now())) } else { None };
            if !all_there || stuck_since.is_some_and(|since| since.elapsed() > WAITING_PATIENCE) {
                bar.finish_and_clear();
                let what = if all_there { repair.waits_for.as_str() } else { "the device, which is used no more" };
                let error = anyhow!("{} stripes are not at full width; they wait for {what}", repair.waiting_stripes);
                return Err(error.context(Partly("done, but repair did not end".to_owned())));
            }
            std::thread::sleep(LOOK_INTERVAL);
        }
    }

    fn say_full_width(&self, after: Duration, repaired_mib: f64) {
        if self.options.json {
            println!(
                "{}",
                json!({ "at_full_width": true, "seconds": after.as_secs_f64(), "mib_rebuilt": repaired_mib })
            );
        } else {
            println!("every stripe has its full width ({repaired_mib:.1} MiB rebuilt in {:.1} s)", after.as_secs_f64());
        }
    }
}

fn ask_about(client: &mut AdminClient, request: &AdminRequest) -> Result<DeviceAnswer> {
    match client.call(request)? {
        AdminResponse::Device(answer) => Ok(*answer),
        AdminResponse::Error { message, outcome } => Err(NodeError { message, outcome }.into()),
        _ => bail!("the node answers in another kind"),
    }
}

fn ask(client: &mut AdminClient, request: &AdminRequest) -> Result<JoinedDevice> {
    match client.call(request)? {
        AdminResponse::Joined(joined) => Ok(*joined),
        AdminResponse::Error { message, outcome } => Err(NodeError { message, outcome }.into()),
        _ => bail!("the node answers in another kind"),
    }
}

fn line(joined: &JoinedDevice, is_dry_run: bool, is_offline: bool) -> String {
    let (path, device) = (&joined.path, &joined.device);
    let gib = joined.capacity_bytes as f64 / f64::from(1 << 30);
    let when = if is_offline { " at the next start" } else { "" };
    let what = match (joined.kind, is_dry_run) {
        (JoinKind::New, false) => format!("device {device} takes part{when}"),
        (JoinKind::Returned, false) => format!("device {device} is back{when}, reopened and checked"),
        (JoinKind::Replaced, false) => format!("device {device} takes the place of {}{when}", old(joined)),
        (JoinKind::New, true) => format!("device {device} would take part{when}"),
        (JoinKind::Returned, true) => format!("device {device} would be taken back{when}"),
        (JoinKind::Replaced, true) => format!("device {device} would take the place of {}{when}", old(joined)),
    };
    format!("{path}: {what} ({gib:.1} GiB)")
}

fn old(joined: &JoinedDevice) -> &str {
    joined.replaced.as_deref().unwrap_or("another one")
}

/// Who asks, for the record.
fn actor() -> String {
    let user = ["SUDO_USER", "USER", "LOGNAME"].iter().find_map(|name| std::env::var(name).ok());
    user.filter(|user| !user.is_empty()).unwrap_or_else(|| "an operator".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use kiseki_server::outcome::Outcome;
    use std::io::{BufRead, BufReader, Write};
    use std::os::unix::net::UnixListener;
    use std::thread::JoinHandle;

    /// A joiner of a node that gives these answers, in their order, and then closes the connection.
    fn joiner(options: JoinOptions, answers: Vec<AdminResponse>) -> (Joiner, JoinHandle<()>) {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("admin.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        let client = AdminClient::connect(&socket).unwrap();
        let node = std::thread::spawn(move || {
            let mut stream = listener.accept().unwrap().0;
            let mut asked = BufReader::new(stream.try_clone().unwrap()).lines();
            for answer in answers {
                asked.next().unwrap().unwrap();
                stream.write_all(format!("{}\n", serde_json::to_string(&answer).unwrap()).as_bytes()).unwrap();
            }
        });
        let (joined, has_formatted, is_elsewhere) = (Vec::new(), false, false);
        (Joiner { options, way: Way::Running(client), joined, has_formatted, is_elsewhere }, node)
    }

    fn options(dry_run: bool, wait: bool) -> JoinOptions {
        JoinOptions { dry_run, wait, json: true }
    }

    fn with_working_device() -> AdminResponse {
        let device = DeviceReport {
            path: "/dev/old".to_owned(),
            id: "01".repeat(16),
            state: "healthy".to_owned(),
            ..DeviceReport::default()
        };
        AdminResponse::Status(Box::new(NodeReport { devices: vec![device], ..NodeReport::default() }))
    }

    #[test]
    fn a_trial_has_done_nothing_in_part() {
        for (is_dry_run, outcome) in [(true, Outcome::Refused), (false, Outcome::Partly)] {
            let refused = AdminResponse::Error { message: "too few".to_owned(), outcome: Outcome::Refused };
            let answers = vec![with_working_device(), AdminResponse::Joined(Box::default()), refused];
            let (mut joiner, node) = joiner(options(is_dry_run, false), answers);
            let error = joiner.replace("/dev/old", Path::new("/dev/new")).unwrap_err();
            let error = joiner.partly(error);
            assert_eq!(Outcome::of(&error), outcome, "{error:?}");
            assert_eq!(error.chain().count(), if is_dry_run { 1 } else { 2 }, "what was done is told once: {error:?}");
            node.join().unwrap();
        }
    }

    #[test]
    fn a_wait_whose_connection_breaks_ends_as_partly_done() {
        let (mut joiner, node) = joiner(options(false, true), vec![AdminResponse::Joined(Box::default())]);
        joiner.enroll(Path::new("/dev/new")).unwrap();
        let error = joiner.finish().unwrap_err();
        assert_eq!(Outcome::of(&error), Outcome::Partly, "{error:?}");
        node.join().unwrap();
    }
}
