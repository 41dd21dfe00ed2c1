//! The authority of a cluster: it is made once, issues certificates to members, and revokes them.

use crate::files::{Readers, read_bounded, sync_parent, write_whole};
use crate::pki::PkiDir;
use crate::pki::bundle::Bundle;
use crate::pki::issued::{self, IssuedRow, IssuedState};
use anyhow::{Context, Result, bail};
use kiseki_net::peer::revoked::REVOKED_MAX;
use kiseki_net::peer::trust::Proven;
use kiseki_net::peer::{PeerName, PeerRole};
use kiseki_types::ids::ClusterId;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    SanType, SerialNumber,
};
use std::fs::{DirBuilder, File};
use std::os::unix::fs::DirBuilderExt;
use std::path::PathBuf;
use time::{Duration, OffsetDateTime};
use zeroize::Zeroizing;

/// How long an authority is valid.
const AUTHORITY_DAYS: i64 = 20 * 365;
/// How long a node's certificate is valid when nobody says otherwise.
pub const NODE_DAYS: u32 = 730;
/// How long an administrator's is.
pub const ADMIN_DAYS: u32 = 90;
/// Longest validity of a member's certificate.
pub const DAYS_MAX: u32 = 3650;
/// Clocks of members may be behind ours by as much.
const CLOCKS_DIFFER: Duration = Duration::hours(1);
/// Names and addresses that every node's certificate is for.
const ALWAYS: [&str; 3] = ["localhost", "127.0.0.1", "::1"];
/// Most names and addresses in a certificate.
const ADDRESSES_MAX: usize = 64;

/// What to issue.
#[derive(Clone, Debug)]
pub struct IssueOptions {
    /// Whom for.
    pub role: PeerRole,
    /// Host names and addresses of a node.
    pub addresses: Vec<String>,
    /// How long it is valid.
    pub days: u32,
    /// Directory that it is written into.
    pub out: PathBuf,
    /// Write over what is there.
    pub replace: bool,
}

/// An authority whose key is at hand.
pub struct Authority {
    dir: PkiDir,
    cluster: ClusterId,
    certificate: Vec<u8>,
    not_after: u64,
    issuer: Issuer<'static, KeyPair>,
    /// Held as long as this lives: two at once would lose a line of `issued`.
    _lock: File,
}

/// Seconds since 1970.
#[must_use]
pub fn unix_now() -> u64 {
    u64::try_from(OffsetDateTime::now_utc().unix_timestamp()).unwrap_or(0)
}

fn lock(dir: &PkiDir) -> Result<File> {
    let path = dir.lock_file();
    let file = File::create(&path).with_context(|| format!("can't make {}", path.display()))?;
    file.lock().with_context(|| format!("can't lock {}", path.display()))?;
    Ok(file)
}

/// The same each time for one cluster: a certificate names its signer by this.
fn authority_params(cluster: ClusterId) -> Result<CertificateParams> {
    let mut params = CertificateParams::new(Vec::<String>::new())?;
    params.distinguished_name.push(DnType::CommonName, format!("Kiseki cluster {cluster}"));
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let name = PeerName { cluster, role: PeerRole::Authority };
    params.subject_alt_names = vec![SanType::URI(name.to_string().try_into()?)];
    params.not_before = OffsetDateTime::now_utc() - CLOCKS_DIFFER;
    params.not_after = OffsetDateTime::now_utc() + Duration::days(AUTHORITY_DAYS);
    Ok(params)
}

impl Authority {
    /// Makes the authority of `cluster`. Refuses where there is one: another key would part the cluster. A key that was left
    /// by a crash before its certificate was written is used, since it has signed nothing.
    pub fn create(dir: &PkiDir, cluster: ClusterId) -> Result<Authority> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(dir.path())
            .with_context(|| format!("can't make {}", dir.path().display()))?;
        sync_parent(dir.path())?;
        let held = lock(dir)?;
        if dir.authority().exists() {
            bail!("{} exists: an authority is made once in a cluster's life", dir.authority().display());
        }
        if dir.issued().exists() && !issued::read(dir)?.is_empty() {
            bail!(
                "{} is missing, and certificates were issued by it: copy it (the ca.crt of any of them) and ca.key back",
                dir.authority().display()
            );
        }
        let key = match dir.authority_key().exists() {
            false => KeyPair::generate()?,
            true => read_key(dir)?,
        };
        let certificate = authority_params(cluster)?.self_signed(&key)?.pem();
        issued::write(dir, &[])?;
        if !dir.revoked().exists() {
            let text = "# Serial numbers of certificates that are believed no more; `kiseki ca revoke` adds to it.\n";
            write_whole(&dir.revoked(), text.as_bytes(), Readers::Everybody)?;
        }
        let pem = Zeroizing::new(key.serialize_pem());
        write_whole(&dir.authority_key(), pem.as_bytes(), Readers::Owner)?;
        write_whole(&dir.authority(), certificate.as_bytes(), Readers::Everybody)?;
        drop(held);
        Authority::open(dir)
    }

    /// Opens the authority in `dir`.
    pub fn open(dir: &PkiDir) -> Result<Authority> {
        let read = |path: PathBuf| {
            read_bounded(&path, 1 << 20).with_context(|| {
                format!("can't read {}; `kiseki ca init` makes an authority, `--dir` says where it is", path.display())
            })
        };
        let certificate = read(dir.authority())?;
        if !dir.authority_key().exists() {
            bail!(
                "{} is missing, so nothing can be issued or revoked here: do it where the authority's key is, or copy it back",
                dir.authority_key().display()
            );
        }
        let key = read_key(dir)?;
        let lock = lock(dir)?;
        let proven = own_name(&certificate).with_context(|| format!("{}", dir.authority().display()))?;
        if proven.name.role != PeerRole::Authority {
            bail!("{} is the certificate of {}, not of an authority", dir.authority().display(), proven.name);
        }
        let cluster = proven.name.cluster;
        let issuer = Issuer::new(authority_params(cluster)?, key);
        let not_after = proven.not_after;
        Ok(Authority { dir: dir.clone(), cluster, certificate, not_after, issuer, _lock: lock })
    }

    /// The cluster.
    #[must_use]
    pub fn cluster(&self) -> ClusterId {
        self.cluster
    }

    /// When the authority itself ends, seconds since 1970.
    #[must_use]
    pub fn not_after(&self) -> u64 {
        self.not_after
    }

    /// Issues a certificate with a new key. It is listed before it can be used by anybody.
    pub fn issue(&self, options: &IssueOptions) -> Result<IssuedRow> {
        if !(1..=DAYS_MAX).contains(&options.days) {
            bail!("a certificate is valid for 1 to {DAYS_MAX} days, not {}", options.days);
        }
        let [_, _, key_file] = Bundle::files(&options.out);
        if key_file.exists() && !options.replace {
            bail!("{} exists; --replace writes a new key and certificate over it", key_file.display());
        }
        let addresses = self.addresses(options)?;
        let serial = random_serial();
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::new(addresses.clone())
            .with_context(|| format!("{} is no host name or address", addresses.join(", ")))?;
        let name = PeerName { cluster: self.cluster, role: options.role.clone() };
        params.distinguished_name.push(DnType::CommonName, name.role.to_string());
        params.subject_alt_names.push(SanType::URI(name.to_string().try_into()?));
        params.serial_number = Some(SerialNumber::from_slice(&serial));
        params.use_authority_key_identifier_extension = true;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        if matches!(options.role, PeerRole::Node(_)) {
            params.extended_key_usages.push(ExtendedKeyUsagePurpose::ServerAuth);
        }
        let now = OffsetDateTime::now_utc();
        let end = OffsetDateTime::from_unix_timestamp(i64::try_from(self.not_after)?)?;
        params.not_before = now - CLOCKS_DIFFER;
        params.not_after = (now + Duration::days(i64::from(options.days))).min(end);
        let row = IssuedRow {
            serial: hex::encode(serial),
            name: name.role.to_string(),
            addresses,
            issued_unix: unix_now(),
            not_after_unix: u64::try_from(params.not_after.unix_timestamp())?,
        };
        let certificate = params.signed_by(&key, &self.issuer)?.pem().into_bytes();
        let mut rows = issued::read(&self.dir)?;
        rows.push(row.clone());
        issued::write(&self.dir, &rows)?;
        let key = Zeroizing::new(key.serialize_pem().into_bytes());
        Bundle { authority: self.certificate.clone(), certificate, key }.write(&options.out, options.replace)?;
        Ok(row)
    }

    fn addresses(&self, options: &IssueOptions) -> Result<Vec<String>> {
        let mut addresses = options.addresses.clone();
        if matches!(options.role, PeerRole::Node(_)) {
            addresses.extend(
                ALWAYS
                    .iter()
                    .filter(|name| !options.addresses.iter().any(|own| own == *name))
                    .map(|name| (*name).to_owned()),
            );
        }
        if addresses.len() > ADDRESSES_MAX {
            bail!("a certificate is for at most {ADDRESSES_MAX} host names and addresses");
        }
        if let Some(port) = addresses.iter().find(|name| name.parse::<std::net::SocketAddr>().is_ok()) {
            bail!("{port}: a host name or address is meant, without a port");
        }
        Ok(addresses)
    }

    /// Revokes the certificates that `matches` and that are still believed; returns them.
    pub fn revoke(&self, matches: impl Fn(&IssuedRow) -> bool, why: &str) -> Result<Vec<IssuedRow>> {
        let (mut text, revoked) = issued::read_revoked(&self.dir.revoked())?;
        let now = unix_now();
        let is_believed = |row: &IssuedRow| {
            matches!(row.state(&revoked, now), IssuedState::Valid | IssuedState::Renew) && matches(row)
        };
        let rows: Vec<IssuedRow> = issued::read(&self.dir)?.into_iter().filter(is_believed).collect();
        if revoked.len() + rows.len() > REVOKED_MAX {
            bail!(
                "{} can hold {REVOKED_MAX} certificates; take out those that have expired",
                self.dir.revoked().display()
            );
        }
        if !text.is_empty() && !text.ends_with('\n') {
            text.push('\n');
        }
        for row in &rows {
            let why: String = why.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
            text.push_str(format!("{} {} at {now} {why}", row.serial, row.name).trim_end());
            text.push('\n');
        }
        write_whole(&self.dir.revoked(), text.as_bytes(), Readers::Everybody)?;
        Ok(rows)
    }
}

fn read_key(dir: &PkiDir) -> Result<KeyPair> {
    let path = dir.authority_key();
    let pem = read_bounded(&path, 1 << 20).with_context(|| format!("can't read {}", path.display()))?;
    let pem = Zeroizing::new(pem);
    // The error of the parser could quote what it read (I-K8).
    let key = std::str::from_utf8(&pem).ok().and_then(|pem| KeyPair::from_pem(pem).ok());
    key.with_context(|| format!("{} holds no private key", path.display()))
}

/// A serial number that nobody can guess or meet again: 127 random bits.
fn random_serial() -> [u8; 16] {
    let mut serial = [0; 16];
    getrandom::fill(&mut serial).expect("the kernel's random generator answers");
    serial[0] = (serial[0] & 0x7f) | 0x40; // a positive number of full length
    serial
}

/// What the first certificate in a PEM text says of itself.
pub fn own_name(pem: &[u8]) -> Result<Proven> {
    Ok(Proven::of_pem(pem)?)
}

/// The authority in `dir`, made for `cluster` when there is none; whether it was made.
pub fn open_or_create(dir: &PkiDir, cluster: ClusterId) -> Result<(Authority, bool)> {
    if dir.authority().exists() {
        let authority = Authority::open(dir)?;
        if authority.cluster != cluster {
            bail!("{} is the authority of cluster {}, not of {cluster}", dir.authority().display(), authority.cluster);
        }
        return Ok((authority, false));
    }
    Ok((Authority::create(dir, cluster)?, true))
}

#[cfg(test)]
mod tests {
    use super::*;
    use kiseki_types::ids::NodeId;
    use std::os::unix::fs::PermissionsExt;

    fn options(dir: &PkiDir, role: PeerRole, out: &str) -> IssueOptions {
        IssueOptions { role, addresses: Vec::new(), days: 90, out: dir.path().join(out), replace: false }
    }

    #[test]
    fn members_are_issued_listed_and_revoked() {
        let temporary = tempfile::tempdir().unwrap();
        let dir = PkiDir::at(&temporary.path().join("pki"));
        let cluster = ClusterId([0xab; 16]);
        let authority = Authority::create(&dir, cluster).unwrap();
        let node = options(&dir, PeerRole::Node(NodeId(3)), "node-3");
        let issued = authority.issue(&IssueOptions { addresses: vec!["10.0.0.3".to_owned()], ..node.clone() }).unwrap();
        let [_, _, key] = Bundle::files(&node.out);
        assert_eq!(std::fs::metadata(&key).unwrap().permissions().mode() & 0o777, 0o600, "I-K8");
        assert_eq!(std::fs::metadata(dir.authority_key()).unwrap().permissions().mode() & 0o777, 0o600, "I-K8");
        let before = std::fs::read(&key).unwrap();
        assert!(authority.issue(&node).unwrap_err().to_string().contains("--replace"), "a key is not written over");
        assert_eq!(std::fs::read(&key).unwrap(), before);
        let again = authority.issue(&IssueOptions { replace: true, ..node.clone() }).unwrap();
        assert_ne!(again.serial, issued.serial);
        let trust = Bundle::read(&node.out).unwrap().trust(&node.out, Default::default()).unwrap();
        assert_eq!(trust.own().name, PeerName { cluster, role: PeerRole::Node(NodeId(3)) });
        assert_eq!(trust.own().serial.to_string(), again.serial, "the list names the certificate that is there");
        assert_eq!(trust.own().not_after, again.not_after_unix);

        let admin = authority.issue(&options(&dir, PeerRole::Admin("alice".to_owned()), "admin-alice")).unwrap();
        let revoked = authority.revoke(|row| row.name == "node/3", "stolen\nff").unwrap();
        assert_eq!(revoked.len(), 2, "every certificate of that name");
        let (_, serials) = issued::read_revoked(&dir.revoked()).unwrap();
        assert_eq!(serials.len(), 2, "a reason can't add a line");
        let states: Vec<IssuedState> =
            issued::read(&dir).unwrap().iter().map(|row| row.state(&serials, unix_now())).collect();
        assert_eq!(states, [IssuedState::Revoked, IssuedState::Revoked, IssuedState::Valid]);
        assert_eq!(admin.state(&serials, admin.not_after_unix - 60), IssuedState::Renew);
        assert_eq!(admin.state(&serials, admin.not_after_unix + 1), IssuedState::Expired);
        assert!(authority.revoke(|row| row.name == "node/3", "").unwrap().is_empty(), "once is enough");
        drop(authority);
        assert!(Authority::create(&dir, cluster).is_err(), "an authority is made once");
        assert!(open_or_create(&dir, ClusterId([1; 16])).is_err(), "another cluster's");
        assert!(!open_or_create(&dir, cluster).unwrap().1);
    }

    #[test]
    fn an_authority_that_is_half_made_is_made_whole_and_one_that_was_used_is_not_made_again() {
        let temporary = tempfile::tempdir().unwrap();
        let dir = PkiDir::at(temporary.path());
        let cluster = ClusterId([3; 16]);
        drop(Authority::create(&dir, cluster).unwrap());
        let key = std::fs::read(dir.authority_key()).unwrap();
        std::fs::remove_file(dir.authority()).unwrap();
        let (authority, is_new) = open_or_create(&dir, cluster).unwrap();
        assert!(is_new && std::fs::read(dir.authority_key()).unwrap() == key, "the key was there");
        authority.issue(&options(&dir, PeerRole::Node(NodeId(3)), "node-3")).unwrap();
        drop(authority);
        std::fs::remove_file(dir.authority()).unwrap();
        let refused = Authority::create(&dir, cluster).err().unwrap().to_string();
        assert!(refused.contains("copy it"), "{refused}");
        std::fs::copy(dir.path().join("node-3/ca.crt"), dir.authority()).unwrap();
        drop(Authority::open(&dir).unwrap());
        std::fs::remove_file(dir.authority_key()).unwrap();
        let refused = Authority::open(&dir).err().unwrap().to_string();
        assert!(refused.contains("where the authority's key is"), "{refused}");
    }

    #[test]
    fn what_makes_no_sense_is_not_issued() {
        let temporary = tempfile::tempdir().unwrap();
        let dir = PkiDir::at(temporary.path());
        let authority = Authority::create(&dir, ClusterId([2; 16])).unwrap();
        let node = options(&dir, PeerRole::Node(NodeId(3)), "node-3");
        for bad in [
            IssueOptions { days: 0, ..node.clone() },
            IssueOptions { addresses: vec!["10.0.0.1:9100".to_owned()], ..node.clone() },
            IssueOptions { addresses: vec!["é".to_owned()], ..node.clone() },
        ] {
            assert!(authority.issue(&bad).is_err(), "{bad:?}");
        }
        assert!(issued::read(&dir).unwrap().is_empty() && !node.out.exists());
    }
}
