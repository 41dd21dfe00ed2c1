//! What the verbs share that ask a running node about a device it uses.

use super::node::{ElsewhereArgs, NodeArgs};
use anyhow::{Context, Result, bail};
use kiseki_server::admin::{AdminRequest, AdminResponse};
use kiseki_server::admin_client::AdminClient;
use kiseki_server::device_admin::DeviceAnswer;
use kiseki_server::enroll::ChangeMode;
use kiseki_server::outcome::NodeError;
use kiseki_server::paths::KisekiDir;
use kiseki_server::status::DeviceReport;

/// How such a verb asks and answers.
#[derive(clap::Args)]
pub struct Asking {
    /// Only say what would happen.
    #[arg(long)]
    pub dry_run: bool,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

impl Asking {
    /// Whether the node is to do it.
    pub fn mode(&self) -> ChangeMode {
        if self.dry_run { ChangeMode::DryRun } else { ChangeMode::Make }
    }
}

/// Asks the node; its refusal is an error.
pub fn ask(node: &NodeArgs, elsewhere: &ElsewhereArgs, request: &AdminRequest) -> Result<(AdminClient, DeviceAnswer)> {
    let mut client = match elsewhere.connect()? {
        Some(client) => client,
        None => AdminClient::connect(&KisekiDir::at(&node.dir)?.admin_socket())
            .context("a device is drained and retired by the node that uses it")?,
    };
    match client.call(request)? {
        AdminResponse::Device(answer) => Ok((client, *answer)),
        AdminResponse::Error { message, outcome } => Err(NodeError { message, outcome }.into()),
        _ => bail!("the node answers in another kind; use the kiseki-devctl of the same release"),
    }
}

/// What the node says of a device now.
pub fn report_of(client: &mut AdminClient, device: &str) -> Result<Option<DeviceReport>> {
    match client.call(&AdminRequest::Status)? {
        AdminResponse::Status(report) => Ok(report.devices.into_iter().find(|found| found.id == device)),
        AdminResponse::Error { message, outcome } => Err(NodeError { message, outcome }.into()),
        _ => bail!("the node answers in another kind; use the kiseki-devctl of the same release"),
    }
}

/// The answer as JSON, or a sentence.
pub fn print_answer(answer: &DeviceAnswer, sentence: &str, asking: &Asking) -> Result<()> {
    match asking.json {
        true => println!("{}", serde_json::to_string_pretty(answer)?),
        false => println!("{sentence}"),
    }
    Ok(())
}
