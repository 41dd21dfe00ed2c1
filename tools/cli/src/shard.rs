//! `kiseki shard`: who holds which shard of a tenant's names, what it holds, and shards that are split.

use anyhow::{Result, bail};
use clap::Subcommand;
use kiseki_server::admin::{AdminRequest, AdminResponse};
use kiseki_server::admin_client::AdminClient;
use kiseki_server::outcome::NodeError;
use kiseki_server::shard_admin::ShardRow;
use kiseki_server::shard_inline::InlineRow;

/// Verbs of `kiseki shard`.
#[derive(Subcommand)]
pub enum ShardCommand {
    /// Lists tenants' shards: leader, voters, objects, bytes, and how much is asked of them.
    List {
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Shows a shard: who holds it, and up to which length its objects lie beside their names, with the room of each voter.
    Show {
        /// Its number.
        shard: u64,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Sets up to which length new objects of a shard lie beside their names. It falls by itself when a voter's metadata directories
    /// fill, and rises only by this.
    Threshold {
        /// Its number.
        shard: u64,
        /// A number of bytes, or `max`: as many as its voters have room for.
        #[arg(value_name = "BYTES|max", value_parser = parse_threshold)]
        bytes: Threshold,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Splits a shard: keys of one bucket move to a new shard, while they are used. Answers when it has begun; `kiseki shard list`
    /// shows how far it is.
    Split {
        /// Its number.
        shard: u64,
        /// The bucket; the one that has most to do when absent.
        #[arg(long)]
        bucket: Option<String>,
        /// The first key that moves; in the middle of what is asked for lately when absent.
        #[arg(long, requires = "bucket")]
        at: Option<String>,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
}

/// `BYTES`, or `max`.
fn parse_threshold(text: &str) -> Result<Threshold, String> {
    match text {
        "max" => Ok(Threshold(None)),
        _ => text
            .parse()
            .map(|bytes| Threshold(Some(bytes)))
            .map_err(|_| format!("`{text}` is neither a number of bytes nor `max`")),
    }
}

/// Up to how many bytes; `None`: as many as there is room for.
#[derive(Clone, Copy)]
pub struct Threshold(Option<u32>);

/// Runs a verb.
pub fn run(command: ShardCommand, mut client: AdminClient) -> Result<()> {
    match command {
        ShardCommand::List { json } => {
            let shards = match client.call(&AdminRequest::ShardList)? {
                AdminResponse::Shards { shards } => shards,
                other => return not_done(other),
            };
            match json {
                true => println!("{}", serde_json::to_string_pretty(&shards)?),
                false => show(&shards),
            }
        }
        ShardCommand::Show { shard, json } => show_one(client.call(&AdminRequest::ShardShow { shard })?, json)?,
        ShardCommand::Threshold { shard, bytes: Threshold(bytes), json } => {
            show_one(client.call(&AdminRequest::ShardThreshold { shard, bytes })?, json)?;
        }
        ShardCommand::Split { shard, bucket, at, json } => {
            let (shard, child) = match client.call(&AdminRequest::ShardSplit { shard, bucket, at })? {
                AdminResponse::Split { shard, child } => (shard, child),
                other => return not_done(other),
            };
            match json {
                true => println!("{:#}", serde_json::json!({ "shard": shard, "child": child })),
                false => {
                    println!("shard {shard} is split: its keys move to shard {child} (`kiseki shard list` shows both)")
                }
            }
        }
    }
    Ok(())
}

/// A shard as JSON: what lists show of it, and `inline`.
pub fn as_json(row: &ShardRow, inline: &InlineRow) -> Result<serde_json::Value> {
    let mut value = serde_json::to_value(row)?;
    value["inline"] = serde_json::to_value(inline)?;
    Ok(value)
}

fn show_one(answer: AdminResponse, json: bool) -> Result<()> {
    let (row, inline) = match answer {
        AdminResponse::Shard { row, inline } => (row, inline),
        other => return not_done(other),
    };
    if json {
        println!("{:#}", as_json(&row, &inline)?);
        return Ok(());
    }
    show(std::slice::from_ref(&row));
    let or_dash = |value: Option<String>| value.unwrap_or_else(|| "-".to_owned());
    println!();
    println!(
        "inline threshold   {} bytes ({} to {})",
        inline.threshold_bytes, inline.floor_bytes, inline.ceiling_bytes
    );
    println!("  because          {}", inline.why);
    println!("  room for         {} bytes", or_dash(inline.supported_bytes.map(|bytes| bytes.to_string())));
    println!(
        "  taken inline     {} of at most {} bytes a second, {} refused",
        inline.bytes_per_second, inline.bytes_per_second_max, inline.refused
    );
    println!();
    println!(
        "{:<6} {:>6} {:>6} {:>6} {:>9} {:>16} {:>9}",
        "voter", "full", "soft", "hard", "replicas", "budget", "heard"
    );
    let percent = |value: Option<u8>| or_dash(value.map(|percent| format!("{percent} %")));
    for voter in &inline.voters {
        println!(
            "{:<6} {:>6} {:>6} {:>6} {:>9} {:>16} {:>9}",
            voter.node,
            percent(voter.fill_percent),
            percent(voter.soft_limit_percent),
            percent(voter.hard_limit_percent),
            voter.replicas,
            or_dash(voter.budget_bytes.map(|bytes| bytes.to_string())),
            or_dash(voter.heard_s_ago.map(|seconds| format!("{seconds} s ago")))
        );
    }
    Ok(())
}

fn show(shards: &[ShardRow]) {
    let number = |number: Option<u64>| number.map_or("-".to_owned(), |number| number.to_string());
    println!(
        "{:<7} {:<16} {:>6} {:<12} {:>12} {:>16} {:>9} {:>9}  state",
        "shard", "tenant", "leader", "voters", "objects", "bytes", "writes/m", "reads/m"
    );
    for row in shards {
        let voters: Vec<String> = row.voters.iter().map(u64::to_string).collect();
        println!(
            "{:<7} {:<16} {:>6} {:<12} {:>12} {:>16} {:>9} {:>9}  {}",
            row.shard,
            row.tenant,
            number(row.leader),
            voters.join(","),
            number(row.keys),
            number(row.bytes),
            row.writes_per_minute,
            row.reads_per_minute,
            row.state
        );
    }
    if shards.is_empty() {
        println!("no tenant has a shard yet");
    }
}

fn not_done<T>(response: AdminResponse) -> Result<T> {
    match response {
        AdminResponse::Error { message, outcome } => Err(NodeError { message, outcome }.into()),
        _ => bail!("the node answers something else; use the `kiseki` of the same release"),
    }
}
