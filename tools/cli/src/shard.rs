//! `kiseki shard`: who holds which shard of a tenant's names, what it holds, and shards that are split.

use anyhow::{Result, bail};
use clap::Subcommand;
use kiseki_server::admin::{AdminRequest, AdminResponse};
use kiseki_server::admin_client::AdminClient;
use kiseki_server::outcome::NodeError;
use kiseki_server::shard_admin::ShardRow;

/// Verbs of `kiseki shard`.
#[derive(Subcommand)]
pub enum ShardCommand {
    /// Lists tenants' shards: leader, voters, objects, bytes, and how much is asked of them.
    List {
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
