//! `kiseki-server init --join BUNDLE`: makes a directory ready for a node that joins a cluster. It brings nothing of its own but
//! devices: its number and certificate come in the bundle, the keys from a node of the cluster, over a link on which both have
//! proved who they are.
//!
//! Order, so that a directory whose making was cut off never forms a cluster (I-O4): `nodes.json` before the keys, the keys before the
//! devices, and at the end the note in the metadata directories which node it is. A start refuses where `nodes.json` is and
//! the note is not; `init` goes on.

use crate::config::FileConfig;
use crate::files::{Readers, read_bounded, write_whole};
use crate::init::{self, InitOptions, Made};
use crate::join_service::{JoinAnswer, JoinQuestion};
use crate::key_store::KeyStore;
use crate::metadata::JoinNote;
use crate::nodes_file::{NodesFile, is_address};
use crate::paths::KisekiDir;
use crate::pki::Bundle;
use crate::pki::authority::own_name;
use crate::pki::issued::read_revoked;
use anyhow::{Context, Result, anyhow, bail};
use kiseki_executor::{Executor, ExecutorOptions};
use kiseki_net::peer::{CallFailure, Expect, Link, LinkInputs, LinkTarget, PeerRole, PeerTrust};
use kiseki_net::{CoreRuntime, SidePool};
use kiseki_types::buf::plain_buffers;
use kiseki_types::ids::{CoreId, LaneId, NodeId};
use kiseki_types::peer::{Parcel, ServiceId};
use kiseki_types::runtime::Ports;
use serde::{Deserialize, Serialize};
use std::net::{SocketAddr, ToSocketAddrs};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};
use zeroize::Zeroizing;

/// What a bundle says beside the certificate.
const INVITATION_FILE: &str = "join.json";

/// Longest invitation.
const INVITATION_LEN_BYTES_MAX: u64 = 1 << 20;

/// How long one node has for its answer.
const ANSWER_MAX: Duration = Duration::from_secs(10);

/// How long a joining node goes round among its seeds: a cluster that elects a leader answers within it.
const PATIENCE: Duration = Duration::from_secs(30);

/// Between two rounds.
const ROUND_PAUSE: Duration = Duration::from_secs(1);

/// Where a member of the cluster is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Seed {
    /// Its number: who must answer there.
    pub node: u64,
    /// HOST:PORT.
    pub address: String,
}

/// What a node that is to join is told.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Invitation {
    /// The cluster's id.
    pub cluster: String,
    /// The number that it gets.
    pub node: u64,
    /// Whom it asks.
    pub seeds: Vec<Seed>,
}

impl Invitation {
    /// Completes the bundle in `dir`; durable on return.
    pub fn write(&self, dir: &Path) -> Result<()> {
        let path = dir.join(INVITATION_FILE);
        let text = serde_json::to_vec_pretty(self)?;
        write_whole(&path, &text, Readers::Everybody).with_context(|| format!("can't write {}", path.display()))
    }

    fn read(dir: &Path) -> Result<Invitation> {
        let path = dir.join(INVITATION_FILE);
        let bytes = read_bounded(&path, INVITATION_LEN_BYTES_MAX).with_context(|| {
            format!(
                "can't read {}; `kiseki node add` makes a bundle to join with: carry all of it here",
                path.display()
            )
        })?;
        let invitation: Invitation =
            serde_json::from_slice(&bytes).with_context(|| format!("{} makes no sense", path.display()))?;
        if let Some(seed) = invitation.seeds.iter().find(|seed| !is_address(&seed.address)) {
            bail!("{}: {:?} is no HOST:PORT", path.display(), seed.address);
        }
        if invitation.seeds.is_empty() {
            bail!("{} names no node to ask", path.display());
        }
        Ok(invitation)
    }
}

/// A bundle as it was carried here.
struct JoinBundle {
    dir: PathBuf,
    invitation: Invitation,
    member: Bundle,
    trust: Arc<PeerTrust>,
    revoked_text: String,
}

impl JoinBundle {
    fn read(dir: &Path) -> Result<JoinBundle> {
        let invitation = Invitation::read(dir)?;
        let member = Bundle::read(dir)?;
        let (revoked_text, revoked) = read_revoked(&dir.join("revoked"))?;
        let trust = member.trust(dir, revoked)?;
        let name = trust.own().name;
        if name.role != PeerRole::Node(NodeId(invitation.node)) || name.cluster.to_string() != invitation.cluster {
            bail!(
                "{}: the certificate is of {name}, the invitation for node {} of cluster {}; make another bundle with `kiseki node \
                 add`",
                dir.display(),
                invitation.node,
                invitation.cluster
            );
        }
        Ok(JoinBundle { dir: dir.to_owned(), invitation, member, trust, revoked_text })
    }
}

/// Makes what is missing; goes on where an earlier run was cut off.
pub fn run(options: &InitOptions, bundle: &Path) -> Result<Made> {
    let bundle = JoinBundle::read(bundle)?;
    let mut made = Made::new();
    let config = init::write_config(options, &mut made)?;
    if config.peer.listen.is_none() {
        bail!(
            "a node of a cluster listens for the others: --peer-listen ADDR:PORT, or `listen` in [peer] of kiseki.toml"
        );
    }
    if config.peer.addresses.is_empty() && config.peer.listen.is_some_and(|listen| listen.ip().is_unspecified()) {
        bail!("{}", crate::cluster::NOBODY_FINDS);
    }
    take_certificate(options, &config, &bundle, &mut made)?;
    let store = options.dir.resolve(&config.keys.key_store_file);
    if !store.exists() {
        let (keys, nodes) = ask(&bundle)?;
        if nodes.cluster != bundle.invitation.cluster || keys.cluster.to_string() != bundle.invitation.cluster {
            bail!("the keys that came are of another cluster; that is our own fault");
        }
        nodes.write(&options.dir)?;
        init::store_keys(options, &config, &keys, &mut made)?;
        made.push(format!("place of node {} in cluster {}", bundle.invitation.node, bundle.invitation.cluster));
    } else if NodesFile::read(&options.dir)?.is_none_or(|nodes| nodes.cluster != bundle.invitation.cluster) {
        bail!(
            "{} exists and is not of this joining: join with a new directory, since keys are never replaced",
            store.display()
        );
    }
    made.extend(init::run(options)?);
    Ok(made)
}

/// Puts the certificate where the node looks for it. A key that is there already stays.
fn take_certificate(options: &InitOptions, config: &FileConfig, bundle: &JoinBundle, made: &mut Made) -> Result<()> {
    let out = options.dir.resolve(&config.peer.certificate_dir);
    let [_, certificate, key] = Bundle::files(&out);
    if key.exists() {
        let known = std::fs::read(&certificate).ok().and_then(|pem| own_name(&pem).ok());
        if known.is_none_or(|known| known.name != bundle.trust.own().name) {
            bail!(
                "{} holds the key of somebody else; join with a new directory, one for each node",
                certificate.parent().unwrap_or(&out).display()
            );
        }
        return Ok(());
    }
    let revoked = options.dir.resolve(&config.peer.revoked_file);
    init::make_dir(revoked.parent().context("the list lies in a directory")?)?;
    if !revoked.exists() {
        write_whole(&revoked, bundle.revoked_text.as_bytes(), Readers::Everybody)?;
    }
    bundle.member.write(&out, false)?;
    made.push(format!("certificate of node {} in {}", bundle.invitation.node, out.display()));
    Ok(())
}

/// Asks the seeds, one after the other, until one answers.
fn ask(bundle: &JoinBundle) -> Result<(KeyStore, NodesFile)> {
    let executor = Executor::new(ExecutorOptions::default())
        .context("no executor can be made; `kiseki-server doctor` tells what hinders it")?;
    let side = SidePool::start(1).context("no thread can be started")?;
    let ports: Ports = Rc::new(CoreRuntime::new(CoreId(0), side));
    let until = Instant::now() + PATIENCE;
    loop {
        let mut reasons = Vec::new();
        for seed in &bundle.invitation.seeds {
            match ask_one(bundle, seed, &executor, &ports) {
                Ok(JoinAnswer::Welcome { keys, nodes }) => return Ok((*keys, nodes)),
                Ok(JoinAnswer::Nodes(_)) => bail!("node {} at {} answers something else", seed.node, seed.address),
                Ok(JoinAnswer::Refused(reason)) => bail!("node {} at {}: {reason}", seed.node, seed.address),
                Err(error) => reasons.push(format!("  node {} at {}: {error:#}", seed.node, seed.address)),
            }
        }
        if Instant::now() >= until {
            bail!(
                "no node of the cluster has given the keys:\n{}\ncorrect the addresses in {} if the nodes have moved; nothing was \
                 formatted",
                reasons.join("\n"),
                bundle.dir.join(INVITATION_FILE).display()
            );
        }
        std::thread::sleep(ROUND_PAUSE);
    }
}

fn ask_one(bundle: &JoinBundle, seed: &Seed, executor: &Executor, ports: &Ports) -> Result<JoinAnswer> {
    let addresses: Vec<SocketAddr> = seed.address.to_socket_addrs().context("the name can't be resolved")?.collect();
    let target = LinkTarget { addresses, expect: Expect::Node(NodeId(seed.node)), lane: LaneId(0) };
    let inputs = LinkInputs { ports: ports.clone(), trust: bundle.trust.clone(), buffers: plain_buffers() };
    let link = Link::new(inputs, target);
    let parcel = Parcel { message: JoinQuestion::Join.encode(), bulk: Vec::new() };
    let answer = executor.run(link.clone().call(ServiceId::JOIN, LaneId(0), parcel, ANSWER_MAX));
    link.close("it has asked");
    let answer = answer.map_err(|failure: CallFailure| anyhow!("{failure}"))?;
    let message = Zeroizing::new(answer.message);
    JoinAnswer::decode(&message).context("its answer is not understood; use the same release")
}

/// What a directory that is to join has to note in its metadata: there is `nodes.json`, and its certificate says who it is.
pub fn note_of(dir: &KisekiDir, config: &FileConfig) -> Result<Option<JoinNote>> {
    let Some(nodes) = NodesFile::read(dir)? else { return Ok(None) };
    let [_, certificate, _] = Bundle::files(&dir.resolve(&config.peer.certificate_dir));
    let pem = std::fs::read(&certificate).with_context(|| format!("can't read {}", certificate.display()))?;
    match own_name(&pem)?.name.role {
        PeerRole::Node(node) => Ok(Some(JoinNote { node: node.0, homes: nodes.homes })),
        other => bail!("{} is the certificate of {other}, which is no node", certificate.display()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_invitation_that_leads_nowhere_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let error = Invitation::read(dir.path()).unwrap_err().to_string();
        assert!(error.contains("kiseki node add"), "{error}");
        let seed = |address: &str| Seed { node: 1, address: address.to_owned() };
        let invitation = |seeds| Invitation { cluster: "ab".repeat(16), node: 2, seeds };
        let good = invitation(vec![seed("storage1:9100")]);
        good.write(dir.path()).unwrap();
        assert_eq!(Invitation::read(dir.path()).unwrap(), good);
        for bad in [invitation(Vec::new()), invitation(vec![seed("storage1")])] {
            bad.write(dir.path()).unwrap();
            assert!(Invitation::read(dir.path()).is_err(), "{bad:?}");
        }
    }
}
