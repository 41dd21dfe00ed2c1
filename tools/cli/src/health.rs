//! `kiseki health`: whether the cluster would hold if a node, or a whole rack, left now.

use anyhow::{Result, bail};
use kiseki_server::admin::{AdminRequest, AdminResponse};
use kiseki_server::admin_client::AdminClient;
use kiseki_server::health::HealthReport;
use kiseki_server::outcome::NodeError;
use std::process::ExitCode;

/// Asks a node; about itself, about another one, or about a rack.
pub fn ask(client: &mut AdminClient, node: Option<u64>, rack: Option<String>) -> Result<HealthReport> {
    match client.call(&AdminRequest::Health { node, rack })? {
        AdminResponse::Health(health) => Ok(health),
        AdminResponse::Error { message, outcome } => Err(NodeError { message, outcome }.into()),
        _ => bail!("the node answers something else; use the `kiseki` of the same release"),
    }
}

/// Shows the answer; the exit code is 0 when the cluster would hold, otherwise 1.
pub fn run(client: &mut AdminClient, node: Option<u64>, rack: Option<String>, json: bool) -> Result<ExitCode> {
    let health = ask(client, node, rack)?;
    match json {
        true => println!("{}", serde_json::to_string_pretty(&health)?),
        false => print!("{}", text(&health)),
    }
    Ok(if health.ok { ExitCode::SUCCESS } else { ExitCode::from(1) })
}

fn text(health: &HealthReport) -> String {
    let about = health.about();
    match (health.ok, health.alone) {
        (true, true) => {
            format!("{about} serves; it is the only node, so while it is away nothing is served\n")
        }
        (true, false) => format!("ok: the cluster holds without {about}\n"),
        (false, _) => {
            let reasons: String = health.reasons.iter().map(|reason| format!("  {reason}\n")).collect();
            format!("NOT ok: the cluster would not hold without {about}\n{reasons}")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_keeps_a_node_is_said_line_by_line() {
        let mut health = HealthReport { ok: true, node: 2, ..HealthReport::default() };
        assert_eq!(text(&health), "ok: the cluster holds without node 2\n");
        let rack = HealthReport { rack: Some("r1".to_owned()), ..health.clone() };
        assert_eq!(text(&rack), "ok: the cluster holds without rack r1\n");
        health.reasons = vec!["shard s7 is late".to_owned(), "node 3 is being drained".to_owned()];
        health.ok = false;
        assert!(text(&health).ends_with("node 2\n  shard s7 is late\n  node 3 is being drained\n"));
        assert!(text(&HealthReport { ok: true, alone: true, ..HealthReport::default() }).contains("only node"));
    }
}
