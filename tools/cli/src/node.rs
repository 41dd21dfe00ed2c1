//! `kiseki node`: who belongs to the cluster, what a new node needs to join, and nodes that leave.

use crate::health;
use anyhow::{Context, Result, bail};
use clap::Subcommand;
use kiseki_net::peer::PeerRole;
use kiseki_server::admin::{AdminRequest, AdminResponse, NodeChange};
use kiseki_server::admin_client::AdminClient;
use kiseki_server::join::Invitation;
use kiseki_server::nodes_file::NodeRow;
use kiseki_server::outcome::{NodeError, Partly};
use kiseki_server::paths::KisekiDir;
use kiseki_server::pki::authority::NODE_DAYS;
use kiseki_server::pki::issued::read_revoked;
use kiseki_server::pki::{Authority, IssueOptions, PkiDir};
use kiseki_types::ids::NodeId;
use std::path::{Path, PathBuf};

/// Verbs of `kiseki node`.
#[derive(Subcommand)]
pub enum NodeCommand {
    /// Gives a number to a new node and writes what it needs to join: `kiseki-server init --join BUNDLE` there. Run it where the
    /// authority is (DIR/pki).
    Add {
        /// A host name or address at which administrators reach it, besides localhost; may be given several times.
        #[arg(long = "address")]
        addresses: Vec<String>,
        /// Directory to write the bundle into; DIR/pki/node-NUMBER when absent.
        #[arg(long)]
        out: Option<PathBuf>,
        /// Days that its certificate is valid.
        #[arg(long, default_value_t = NODE_DAYS)]
        days: u32,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Lists all nodes that were ever recorded.
    List {
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Moves what a node holds to others.
    Drain {
        /// Its number.
        number: u64,
        /// Keep it after all.
        #[arg(long)]
        cancel: bool,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Removes a node for good: it is turned away from then on, and its number is never given out again.
    Remove {
        /// Its number.
        number: u64,
        /// It will not come back: what only it holds is given up.
        #[arg(long)]
        lost: bool,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
}

/// Runs a verb; `connect` leads to a node that is asked.
pub fn run(dir: &KisekiDir, command: NodeCommand, connect: impl FnOnce() -> Result<AdminClient>) -> Result<()> {
    match command {
        NodeCommand::Add { addresses, out, days, json } => {
            let bundle = Bundle { addresses, out, days };
            add(&PkiDir::at(&dir.pki()), bundle, connect, json)
        }
        NodeCommand::List { json } => list(connect()?, json),
        NodeCommand::Drain { number, cancel, json } => {
            let change = if cancel { NodeChange::Keep } else { NodeChange::Drain };
            let mut client = connect()?;
            if !cancel && !json {
                foretell(&mut client, number);
            }
            set(client, number, change, json)
        }
        NodeCommand::Remove { number, lost, json } => set(connect()?, number, NodeChange::Remove { lost }, json),
    }
}

struct Bundle {
    addresses: Vec<String>,
    out: Option<PathBuf>,
    days: u32,
}

/// Everything that can be refused is looked at before a number is taken: numbers are not given back.
fn add(pki: &PkiDir, bundle: Bundle, connect: impl FnOnce() -> Result<AdminClient>, json: bool) -> Result<()> {
    let authority = Authority::open(pki).context(
        "a new node's certificate is signed where the cluster's authority is: name its directory with --dir, and a node to ask \
         with --node and --cert",
    )?;
    if let Some(out) = bundle.out.as_deref() {
        is_free(out)?;
    }
    let (revoked, _) = read_revoked(&pki.revoked())?;
    let mut client = connect()?;
    let cluster = match client.call(&AdminRequest::Status)? {
        AdminResponse::Status(report) => report.cluster,
        other => return not_done(other),
    };
    if cluster != authority.cluster().to_string() {
        bail!("the node is of cluster {cluster}, the authority in {} of {}", pki.path().display(), authority.cluster());
    }
    let invitation = match client.call(&AdminRequest::NodeInvite)? {
        AdminResponse::Invited(invitation) => *invitation,
        other => return not_done(other),
    };
    let out = bundle.out.clone().unwrap_or_else(|| pki.path().join(format!("node-{}", invitation.node)));
    let written = write(&authority, &invitation, bundle, &out, &revoked);
    written.with_context(|| {
        Partly(format!(
            "number {0} was given out, and the bundle could not be written; run it again for another number, then `kiseki node \
             remove {0}`",
            invitation.node
        ))
    })?;
    if json {
        let mut value = serde_json::to_value(&invitation)?;
        value["dir"] = serde_json::to_value(&out)?;
        println!("{value:#}");
        return Ok(());
    }
    println!("node {} may join cluster {}", invitation.node, invitation.cluster);
    println!(
        "next: carry {} to its machine, over a channel that you trust (it holds a private key), and there:\n  kiseki-server init --join \
         {} --peer-listen ADDR:9100\n  kiseki-server run",
        out.display(),
        out.file_name().unwrap_or_default().display()
    );
    Ok(())
}

fn is_free(out: &Path) -> Result<()> {
    match out.exists() {
        true => bail!("{} exists; name another directory, one for each node", out.display()),
        false => Ok(()),
    }
}

fn write(authority: &Authority, invitation: &Invitation, bundle: Bundle, out: &Path, revoked: &str) -> Result<()> {
    is_free(out)?;
    let role = PeerRole::Node(NodeId(invitation.node));
    let Bundle { addresses, days, .. } = bundle;
    authority.issue(&IssueOptions { role, addresses, days, out: out.to_owned(), replace: false })?;
    std::fs::write(out.join("revoked"), revoked)?;
    invitation.write(out)
}

fn not_done<T>(response: AdminResponse) -> Result<T> {
    match response {
        AdminResponse::Error { message, outcome } => Err(NodeError { message, outcome }.into()),
        _ => bail!("the node answers something else; use the `kiseki` of the same release"),
    }
}

fn list(mut client: AdminClient, json: bool) -> Result<()> {
    let nodes = match client.call(&AdminRequest::NodeList)? {
        AdminResponse::Nodes { nodes } => nodes,
        other => return not_done(other),
    };
    if json {
        println!("{}", serde_json::to_string_pretty(&nodes)?);
        return Ok(());
    }
    for node in &nodes {
        println!(
            "{:<5} {:<9} {:<24} {:>3} lanes {:>3} cores  {}{}",
            node.node,
            node.state,
            node.addresses.join(","),
            node.lanes,
            node.cores,
            node.version,
            if node.rack.is_empty() { String::new() } else { format!("  rack {}", node.rack) }
        );
    }
    if nodes.is_empty() {
        println!("no node is recorded: the first one is, as soon as its [peer] listens");
    }
    Ok(())
}

/// Says what would not hold if the node left right away. A drain moves what it holds first, so it is no reason to refuse; a
/// restart would be. A node that can't tell keeps nobody from draining.
fn foretell(client: &mut AdminClient, number: u64) {
    match health::ask(client, Some(number), None) {
        Ok(health) if health.ok => println!("the cluster holds without node {number} even now"),
        Ok(health) => {
            println!(
                "not to be stopped before the drain has ended; without node {number} the cluster would not hold now:"
            );
            health.reasons.iter().for_each(|reason| println!("  {reason}"));
        }
        Err(error) => println!("whether the cluster holds without node {number} is not known: {error:#}"),
    }
}

fn set(mut client: AdminClient, node: u64, change: NodeChange, json: bool) -> Result<()> {
    let row: NodeRow = match client.call(&AdminRequest::NodeSet { node, change })? {
        AdminResponse::Node(row) => row,
        other => return not_done(other),
    };
    if json {
        println!("{}", serde_json::to_string_pretty(&row)?);
        return Ok(());
    }
    println!("node {} is {}", row.node, row.state);
    match change {
        NodeChange::Remove { .. } => println!("next, where the authority is: kiseki ca revoke --node {}", row.node),
        NodeChange::Drain => println!("`kiseki node list` shows it; --cancel keeps it after all"),
        NodeChange::Keep => {}
    }
    Ok(())
}
