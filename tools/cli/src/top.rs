//! `kiseki top`: what a node does just now. Rates come from two looks at it.

mod frame;

use anyhow::{Result, bail};
use frame::Frame;
use kiseki_server::admin::{AdminRequest, AdminResponse};
use kiseki_server::admin_client::AdminClient;
use kiseki_server::outcome::NodeError;
use kiseki_server::status::NodeReport;
use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

/// Between two looks.
const INTERVAL: Duration = Duration::from_secs(1);

/// How it is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Show {
    /// Again and again, until it is broken off.
    Live,
    /// Once.
    Once,
    /// Once, as JSON.
    Json,
}

/// A look at the node, and when it was taken.
fn look(client: &mut AdminClient) -> Result<(NodeReport, Instant)> {
    match client.call(&AdminRequest::Status)? {
        AdminResponse::Status(report) => Ok((*report, Instant::now())),
        AdminResponse::Error { message, outcome } => Err(NodeError { message, outcome }.into()),
        _ => bail!("the node answers something else; use the `kiseki` of the same release"),
    }
}

/// Shows what the node does.
pub fn run(client: &mut AdminClient, show: Show) -> Result<()> {
    let mut before = look(client)?;
    loop {
        std::thread::sleep(INTERVAL);
        let now = look(client)?;
        let frame = Frame::between(&before.0, &now.0, now.1.duration_since(before.1));
        before = now;
        match show {
            Show::Json => {
                println!("{}", serde_json::to_string_pretty(&frame)?);
                return Ok(());
            }
            Show::Once => {
                print!("{}", frame.text());
                return Ok(());
            }
            Show::Live => draw(&frame.text())?,
        }
    }
}

/// Puts a picture over the one before. What does not fit the terminal is left out at the end; where there is no terminal
/// the pictures follow each other.
fn draw(text: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    if !out.is_terminal() {
        writeln!(out, "{text}")?;
        return Ok(out.flush()?);
    }
    let (rows, columns) = console::Term::stdout().size();
    let mut picture = String::from("\x1b[H");
    for line in text.lines().take(usize::from(rows.saturating_sub(1)).max(1)) {
        picture.extend(line.chars().take(usize::from(columns)));
        picture.push_str("\x1b[K\n");
    }
    picture.push_str("\x1b[J");
    out.write_all(picture.as_bytes())?;
    Ok(out.flush()?)
}
