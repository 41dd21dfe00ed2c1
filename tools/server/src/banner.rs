//! What a person sees when the node is ready.

use crate::executor::CoreShared;
use crate::status::{NodeReport, Phase};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

/// Between two looks at the phase.
const LOOK_INTERVAL: Duration = Duration::from_millis(10);

/// Prints the banner from a thread of its own as soon as the node serves; prints nothing when it never does.
pub fn when_ready(shared: Arc<CoreShared>, admin: SocketAddr) {
    let spawned = std::thread::Builder::new().name("kiseki-banner".to_owned()).spawn(move || {
        loop {
            let report = shared.board.snapshot();
            match report.phase {
                Phase::Serving => return println!("{}", text(&shared, &report, admin)),
                Phase::Stopping => return,
                Phase::Starting if shared.steps.failure().is_some() => return,
                Phase::Starting => std::thread::sleep(LOOK_INTERVAL),
            }
        }
    });
    if let Err(error) = spawned {
        tracing::warn!(%error, "no thread for the banner");
    }
}

fn text(shared: &CoreShared, report: &NodeReport, admin: SocketAddr) -> String {
    let dir = &shared.config.dir;
    let healthy = report.devices.iter().filter(|device| device.is_usable()).count();
    let paths: Vec<String> = report.paths_in_use.iter().map(|(what, path)| format!("{what}: {path}")).collect();
    let mut text = format!(
        "\nkiseki {} is serving\n  S3       {}\n  health   http://{admin}/healthz   metrics http://{admin}/metrics\n  \
         devices  {healthy} of {} usable, {}\n  metadata {} directories\n  cores    {} ({} lanes)\n  paths    {}\n",
        report.version,
        report.endpoint,
        report.devices.len(),
        report.durability,
        report.metadata_dirs.iter().filter(|dir| dir.state == "current").count(),
        report.cores,
        report.lanes,
        paths.join(", "),
    );
    for setting in &report.unsafe_settings {
        text.push_str(&format!("  UNSAFE   {setting}\n"));
    }
    for warning in &report.warnings {
        text.push_str(&format!("  warning  {warning}\n"));
    }
    text.push_str(&format!(
        "try\n  . {env} && aws s3 mb s3://hello && aws s3 cp README.md s3://hello/\n  s3cmd -c {s3cfg} ls\n  \
         target/release/kiseki --dir {node} status\nready for requests",
        env = dir.env_file().display(),
        s3cfg = dir.s3cfg().display(),
        node = dir.path().display(),
    ));
    text
}
