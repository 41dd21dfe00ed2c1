//! `retire`: lets a device of a running node go.

use super::asking::{Asking, ask, print_answer};
use super::node::{ElsewhereArgs, NodeArgs};
use anyhow::Result;
use kiseki_server::admin::AdminRequest;
use std::process::ExitCode;

/// Lets an empty device go: nothing of the node touches it any more, and it can be pulled.
///
/// A device that works has to be drained first. One that is failed or away leaves when repair has brought every stripe to
/// full width without it.
#[derive(clap::Args)]
pub struct Args {
    /// Its path, its id, or the first digits of its id.
    device: String,
    #[command(flatten)]
    node: NodeArgs,
    #[command(flatten)]
    elsewhere: ElsewhereArgs,
    /// Give up what only this device holds; it is failed or away, and will not come back.
    #[arg(long)]
    lost: bool,
    /// Why; it is recorded.
    #[arg(long, default_value = "retired by an operator")]
    reason: String,
    #[command(flatten)]
    asking: Asking,
}

pub fn run(args: Args) -> Result<ExitCode> {
    let Args { device, node, elsewhere, lost, reason, asking } = args;
    let request = AdminRequest::DeviceRetire { device, reason, lost, mode: asking.mode() };
    let (_, answer) = ask(&node, &elsewhere, &request)?;
    let sentence = match answer.is_dry_run {
        true => format!("{} can be retired", answer.path),
        false => format!("{} is removed and closed; it can be pulled", answer.path),
    };
    print_answer(&answer, &sentence, &asking)?;
    Ok(ExitCode::SUCCESS)
}
