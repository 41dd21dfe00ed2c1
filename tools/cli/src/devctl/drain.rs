//! `drain`: empties a device of a running node, or keeps it after all.

use super::asking::{Asking, ask, print_answer, report_of};
use super::node::{ElsewhereArgs, NodeArgs};
use anyhow::{Context, Result, bail};
use indicatif::{ProgressBar, ProgressStyle};
use kiseki_server::admin::AdminRequest;
use kiseki_server::admin_client::AdminClient;
use kiseki_server::device_admin::DeviceAnswer;
use kiseki_server::outcome::Partly;
use kiseki_server::status::{DeviceReport, EvacuationReport};
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// Between two looks at how far it is.
const LOOK_INTERVAL: Duration = Duration::from_millis(500);

/// How long status may take to show a drain that was answered.
const BEGIN_PATIENCE: Duration = Duration::from_secs(10);

/// Moves everything on a device to the others, while the node serves; then the device can be retired.
///
/// New fragments go elsewhere, and every stripe keeps its full width on the way. It goes on after a restart.
#[derive(clap::Args)]
pub struct Args {
    /// Its path, its id, or the first digits of its id.
    device: String,
    #[command(flatten)]
    node: NodeArgs,
    #[command(flatten)]
    elsewhere: ElsewhereArgs,
    /// Keep the device in use after all. What has moved stays where it is.
    #[arg(long, conflicts_with = "wait")]
    cancel: bool,
    /// Show progress until the device is empty.
    #[arg(long)]
    wait: bool,
    /// Why; it is recorded.
    #[arg(long, default_value = "asked for by an operator")]
    reason: String,
    #[command(flatten)]
    asking: Asking,
}

pub fn run(args: Args) -> Result<ExitCode> {
    let Args { device, node, elsewhere, cancel, wait, reason, asking } = args;
    let mode = asking.mode();
    let request = match cancel {
        true => AdminRequest::DeviceDrainCancel { device, reason, mode },
        false => AdminRequest::DeviceDrain { device, reason, mode },
    };
    let (mut client, answer) = ask(&node, &elsewhere, &request)?;
    if !wait || asking.dry_run {
        let sentence = sentence(&answer, cancel);
        print_answer(&answer, &sentence, &asking)?;
        return Ok(ExitCode::SUCCESS);
    }
    let begun = || Partly(format!("the drain of {} has begun, and its end was not seen", answer.path));
    let last = await_empty(&mut client, &answer, &asking).with_context(begun)?;
    let answer = DeviceAnswer { state: last.state, fragments_left: 0, bytes_left: 0, ..answer };
    let sentence = format!("{0} is empty; let it go with `kiseki-devctl retire {0}`", answer.path);
    print_answer(&answer, &sentence, &asking)?;
    Ok(ExitCode::SUCCESS)
}

fn sentence(answer: &DeviceAnswer, is_cancel: bool) -> String {
    let DeviceAnswer { path, state, fragments_left, bytes_left, is_dry_run, .. } = answer;
    let held = format!("{fragments_left} fragments ({:.1} MiB)", *bytes_left as f64 / f64::from(1 << 20));
    match (is_cancel, is_dry_run) {
        (true, true) => format!("{path} would be {state} again; {held} lie on it"),
        (true, false) => format!("{path} is {state} again; {held} lie on it"),
        (false, true) => format!("{held} would move from {path} to other devices"),
        (false, false) => format!("{path} is {state}: {held} move to other devices; --wait shows how far it is"),
    }
}

/// Shows how far the drain of a device is until it is empty.
pub fn await_empty(client: &mut AdminClient, answer: &DeviceAnswer, asking: &Asking) -> Result<DeviceReport> {
    let bar = if asking.json { ProgressBar::hidden() } else { ProgressBar::new(answer.bytes_left) };
    bar.set_style(ProgressStyle::with_template("{bar:30} {bytes}/{total_bytes} {msg}")?);
    let (mut total, began, mut has_begun) = (answer.bytes_left, Instant::now(), false);
    loop {
        let report = report_of(client, &answer.device)?;
        let Some(report) = report else { bail!("{} is no device of the node any more", answer.path) };
        let Some(evacuation) = &report.evacuation else {
            // Status hears of it a moment after the node has answered.
            if !has_begun && began.elapsed() < BEGIN_PATIENCE {
                std::thread::sleep(LOOK_INTERVAL);
                continue;
            }
            bail!("the drain of {} was cancelled; it is {}", report.path, report.state)
        };
        has_begun = true;
        if !report.is_usable() {
            bail!(
                "{} is {} ({}): repair rebuilds what it held on the others, see `kiseki status`",
                report.path,
                report.state,
                report.reason
            );
        }
        total = total.max(evacuation.bytes_left);
        bar.set_length(total);
        bar.set_position(total - evacuation.bytes_left);
        bar.set_message(progress(evacuation));
        if evacuation.is_known && evacuation.fragments_left == 0 {
            bar.finish_and_clear();
            return Ok(report);
        }
        std::thread::sleep(LOOK_INTERVAL);
    }
}

/// Rate, time left, and what it waits for.
fn progress(evacuation: &EvacuationReport) -> String {
    if !evacuation.waits_for.is_empty() {
        return format!("waits for {}", evacuation.waits_for);
    }
    let mib = evacuation.bytes_per_second as f64 / f64::from(1 << 20);
    match evacuation.eta_seconds {
        Some(seconds) => format!("{mib:.1} MiB/s, {}:{:02} left", seconds / 60, seconds % 60),
        None => format!("{} fragments left", evacuation.fragments_left),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_tells_rate_and_time_left_or_what_it_waits_for() {
        let mut evacuation =
            EvacuationReport { bytes_per_second: 3 << 20, eta_seconds: Some(125), ..EvacuationReport::default() };
        assert_eq!(progress(&evacuation), "3.0 MiB/s, 2:05 left");
        evacuation.waits_for = "one more device".to_owned();
        assert_eq!(progress(&evacuation), "waits for one more device");
    }

    #[test]
    fn a_trial_says_what_would_happen() {
        let mut answer = DeviceAnswer { path: "d3".to_owned(), state: "evacuating".to_owned(), ..Default::default() };
        answer.fragments_left = 7;
        assert!(sentence(&answer, false).starts_with("d3 is evacuating: 7 fragments"));
        answer.is_dry_run = true;
        assert!(sentence(&answer, false).contains("would move"));
    }
}
