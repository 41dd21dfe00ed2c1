//! `kiseki ca`: the authority of a cluster, the certificates of its nodes and administrators, and those that are revoked.

use anyhow::{Context, Result, anyhow, bail};
use clap::{Args, Subcommand};
use kiseki_net::peer::name::{cluster_id, is_admin_name};
use kiseki_net::peer::revoked::Serial;
use kiseki_net::peer::{PeerName, PeerRole};
use kiseki_server::config::{Config, Overrides};
use kiseki_server::key_store::{KeyStore, read_passphrase};
use kiseki_server::paths::KisekiDir;
use kiseki_server::pki::authority::{ADMIN_DAYS, NODE_DAYS, unix_now};
use kiseki_server::pki::issued::{self, IssuedRow, IssuedState};
use kiseki_server::pki::{Authority, IssueOptions, PkiDir};
use kiseki_types::ids::{ClusterId, NodeId};
use serde::Serialize;
use std::path::PathBuf;

/// Verbs of `kiseki ca`. They work on files below DIR/pki and need no running node.
#[derive(Subcommand)]
pub enum CaCommand {
    /// Makes the authority of a cluster in DIR/pki. `kiseki-server init` has done so for the first node.
    Init {
        /// The cluster's id (`kiseki status` shows it); taken from the key store in DIR when absent.
        #[arg(long)]
        cluster: Option<String>,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Issues a node's certificate.
    IssueNode {
        /// The node's number, never reused.
        #[arg(long, value_parser = clap::value_parser!(u64).range(1..=u64::MAX / 2))]
        node: u64,
        /// A host name or address at which it is reached, besides localhost; may be given several times.
        #[arg(long = "address")]
        addresses: Vec<String>,
        /// Days that it is valid.
        #[arg(long, default_value_t = NODE_DAYS)]
        days: u32,
        /// Where it goes.
        #[command(flatten)]
        out: OutArgs,
    },
    /// Issues an administrator's certificate, for `kiseki --node HOST:PORT --cert DIR`.
    IssueAdmin {
        /// The administrator's name: 1 to 63 of a-z, 0-9, '-', '_', '.'.
        #[arg(long)]
        name: String,
        /// Days that it is valid.
        #[arg(long, default_value_t = ADMIN_DAYS)]
        days: u32,
        /// Where it goes.
        #[command(flatten)]
        out: OutArgs,
    },
    /// Revokes certificates: nodes turn their holders away, and close their connections.
    Revoke {
        /// Whose.
        #[command(flatten)]
        whose: WhoseArgs,
        /// Why; it is written beside.
        #[arg(long, default_value = "")]
        reason: String,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Lists what was issued, and what it is worth now.
    List {
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
}

/// Where a certificate goes.
#[derive(Args)]
pub struct OutArgs {
    /// Directory to write it into; below DIR/pki when absent.
    #[arg(long)]
    out: Option<PathBuf>,
    /// Write a new key and certificate over those that are there.
    #[arg(long)]
    replace: bool,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// Whose certificates.
#[derive(Args)]
#[group(required = true, multiple = false)]
pub struct WhoseArgs {
    /// All of a node.
    #[arg(long)]
    node: Option<u64>,
    /// All of an administrator.
    #[arg(long)]
    admin: Option<String>,
    /// The one with this serial number.
    #[arg(long)]
    serial: Option<String>,
}

/// Runs a verb.
pub fn run(dir: &KisekiDir, command: CaCommand) -> Result<()> {
    let pki = PkiDir::at(&dir.pki());
    match command {
        CaCommand::Init { cluster, json } => init(dir, &pki, cluster.as_deref(), json),
        CaCommand::IssueNode { node, addresses, days, out } => {
            let role = PeerRole::Node(NodeId(node));
            let default = pki.path().join(format!("node-{node}"));
            let to = out.out.clone().unwrap_or(default);
            let options = IssueOptions { role, addresses, days, out: to.clone(), replace: out.replace };
            let next = format!(
                "next: carry {} to the node and name it there in kiseki.toml: [peer] certificate_dir; carry {} along: [peer] \
                 revoked_file",
                to.display(),
                pki.revoked().display()
            );
            issue(&pki, &options, &next, out.json)
        }
        CaCommand::IssueAdmin { name, days, out } => {
            if !is_admin_name(&name) {
                bail!(
                    "an administrator's name is 1 to 63 of a-z, 0-9, '-', '_' and '.', and starts with a letter or digit"
                );
            }
            let to = out.out.clone().unwrap_or(pki.path().join(format!("admin-{name}")));
            let role = PeerRole::Admin(name);
            let options = IssueOptions { role, addresses: Vec::new(), days, out: to.clone(), replace: out.replace };
            let next = format!(
                "next: carry {0} to where it is used, then: kiseki --node HOST:PORT --cert {0} status (HOST:PORT is [peer] listen \
                 of a node)",
                to.display()
            );
            issue(&pki, &options, &next, out.json)
        }
        CaCommand::Revoke { whose, reason, json } => revoke(&pki, &whose, &reason, json),
        CaCommand::List { json } => list(&pki, json),
    }
}

fn print_json(value: &impl Serialize) -> Result<()> {
    println!("{}", serde_json::to_string_pretty(value)?);
    Ok(())
}

fn cluster_of_node(dir: &KisekiDir) -> Result<ClusterId> {
    let config = Config::load(&Overrides { dir: dir.path().to_owned(), ..Overrides::default() })
        .context("name the cluster with --cluster, or the directory of its first node with --dir")?;
    let passphrase = read_passphrase(&config.keys.passphrase_file)?;
    Ok(KeyStore::open(&config.keys.key_store_file, &passphrase)?.cluster)
}

fn init(dir: &KisekiDir, pki: &PkiDir, cluster: Option<&str>, json: bool) -> Result<()> {
    let cluster = match cluster {
        Some(text) => cluster_id(text).ok_or_else(|| anyhow!("{text:?} is no cluster id: 32 digits of 0-9, a-f"))?,
        None => cluster_of_node(dir)?,
    };
    let authority = Authority::create(pki, cluster)?;
    if json {
        let not_after_unix = authority.not_after();
        let path = pki.path();
        return print_json(
            &serde_json::json!({ "cluster": cluster.to_string(), "dir": path, "not_after_unix": not_after_unix }),
        );
    }
    println!("authority of cluster {cluster} made in {}, valid {}", pki.path().display(), until(authority.not_after()));
    println!(
        "keep {} secret, and a copy of it in another place: whoever has it can make any member\n\
         next: kiseki ca issue-node --node N --address HOST, kiseki ca issue-admin --name NAME",
        pki.authority_key().display()
    );
    Ok(())
}

fn issue(pki: &PkiDir, options: &IssueOptions, next: &str, json: bool) -> Result<()> {
    let row = Authority::open(pki)?.issue(options)?;
    if json {
        let mut value = serde_json::to_value(&row)?;
        value["dir"] = serde_json::to_value(&options.out)?;
        return print_json(&value);
    }
    println!("certificate of {} made in {}, valid {}", row.name, options.out.display(), until(row.not_after_unix));
    if !row.addresses.is_empty() {
        println!("it is for {}", row.addresses.join(", "));
    }
    println!("{next}");
    println!(
        "renew it before it ends with the same command and --replace; a running node takes the new files by itself"
    );
    Ok(())
}

fn revoke(pki: &PkiDir, whose: &WhoseArgs, reason: &str, json: bool) -> Result<()> {
    let serial = match &whose.serial {
        Some(text) => {
            let serial =
                Serial::parse(text).ok_or_else(|| anyhow!("{text:?} is no serial number; `list` shows them"))?;
            Some(serial.to_string())
        }
        None => None,
    };
    let name =
        whose.node.map(|node| format!("node/{node}")).or(whose.admin.as_ref().map(|name| format!("admin/{name}")));
    let is_meant = |row: &IssuedRow| match (&serial, &name) {
        (Some(serial), _) => Serial::parse(&row.serial).is_some_and(|own| own.to_string() == *serial),
        (None, Some(name)) => row.name == *name,
        (None, None) => false,
    };
    let rows = Authority::open(pki)?.revoke(is_meant, reason)?;
    if rows.is_empty() {
        bail!("no certificate that is still believed is meant; `kiseki ca list` shows all");
    }
    if json {
        return print_json(&rows);
    }
    rows.iter().for_each(|row| println!("revoked {} ({})", row.serial, row.name));
    println!(
        "the node in this directory reads the list within seconds; next: copy {} to the other nodes, where [peer] revoked_file says",
        pki.revoked().display()
    );
    Ok(())
}

#[derive(Serialize)]
struct Listed {
    #[serde(flatten)]
    row: IssuedRow,
    state: IssuedState,
}

fn list(pki: &PkiDir, json: bool) -> Result<()> {
    let (_, revoked) = issued::read_revoked(&pki.revoked())?;
    let now = unix_now();
    let listed = |row: IssuedRow| Listed { state: row.state(&revoked, now), row };
    let rows: Vec<Listed> = issued::read(pki)?.into_iter().map(listed).collect();
    if json {
        return print_json(&rows);
    }
    for Listed { row, state } in &rows {
        let word = match state {
            IssuedState::Valid => "valid",
            IssuedState::Renew => "RENEW",
            IssuedState::Expired => "expired",
            IssuedState::Revoked => "revoked",
        };
        let addresses = row.addresses.join(", ");
        println!("{word:<8} {:<24} {} {}  {addresses}", row.name, row.serial, until(row.not_after_unix));
    }
    if rows.iter().any(|row| row.state == IssuedState::Renew) {
        println!("RENEW: ends soon; issue it again with --replace");
    }
    let authority = std::fs::read(pki.authority()).context("the authority's certificate can't be read")?;
    let own = kiseki_server::pki::authority::own_name(&authority)?;
    println!("the authority of {} is valid {}", name_of(&own.name), until(own.not_after));
    Ok(())
}

fn name_of(name: &PeerName) -> String {
    format!("cluster {}", name.cluster)
}

/// `until 2027-01-31 (66 days)`.
pub fn until(unix: u64) -> String {
    let date = i64::try_from(unix).ok().and_then(|unix| time::OffsetDateTime::from_unix_timestamp(unix).ok());
    let Some(date) = date.map(time::OffsetDateTime::date) else { return format!("until {unix} s after 1970") };
    match unix.checked_sub(unix_now()) {
        Some(left) => format!("until {date} ({} days)", left / 86_400),
        None => format!("until {date} (it has ended)"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_say_how_long_it_is() {
        assert!(until(unix_now() + 3 * 86_400 + 60).ends_with("(3 days)"), "{}", until(unix_now() + 3 * 86_400));
        assert_eq!(until(86_400), "until 1970-01-02 (it has ended)");
    }
}
