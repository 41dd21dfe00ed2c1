//! Having the drive itself format a namespace: other blocks, or a secure erase. Decided here, from what the drive says of
//! itself and what its other namespaces carry; nothing is sent.

use crate::in_use::Use;
use crate::nvme::admin::{AdminCommand, FormatRequest, SecureErase};
use crate::nvme::identify::{ControllerIdentity, LbaFormat, NamespaceIdentity, RelativePerformance};
use crate::probe::FoundSignature;
use std::fmt;
use std::time::Duration;
use thiserror::Error;

/// How long a drive may take. Erasing a large one by overwriting takes hours.
const FORMAT_TIMEOUT: Duration = Duration::from_secs(12 * 3600);

/// Blocks that Kiseki works with.
const BLOCK_LENS: [u32; 2] = [512, 4096];

/// Which block format an operator wants.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum BlockChoice {
    /// The one that it has.
    #[default]
    Keep,
    /// The best: 4096 bytes, the fastest of these.
    Preferred,
    /// The fastest one with blocks of so many bytes.
    BlockLen(u32),
    /// That of this number.
    Index(u8),
}

/// What an operator wants of a namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NamespaceChoice {
    /// Its blocks.
    pub blocks: BlockChoice,
    /// What becomes of its data.
    pub erase: SecureErase,
}

impl Default for NamespaceChoice {
    fn default() -> NamespaceChoice {
        NamespaceChoice { blocks: BlockChoice::Keep, erase: SecureErase::None }
    }
}

impl NamespaceChoice {
    /// Whether the drive is left alone.
    #[must_use]
    pub fn is_default(&self) -> bool {
        *self == NamespaceChoice::default()
    }
}

/// Another namespace of the same drive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sibling {
    /// Its block device, `nvme0n2`; `None`: this machine has none for it, so nobody can look at it.
    pub name: Option<String>,
    /// Its number.
    pub namespace: u32,
    /// Who uses it.
    pub uses: Vec<Use>,
    /// What it carries; `Err`: it can't be read, and why.
    pub signatures: Result<Vec<FoundSignature>, String>,
}

impl Sibling {
    fn shown(&self) -> String {
        self.name.clone().unwrap_or_else(|| format!("namespace {}", self.namespace))
    }

    /// What has to be named before it may be lost: (name, description).
    fn to_confirm(&self) -> Vec<(String, String)> {
        let unknown = |reason: &str| {
            let name = format!("nsid{}", self.namespace);
            vec![(name, format!("whatever namespace {} carries ({reason})", self.namespace))]
        };
        match (&self.name, &self.signatures) {
            (None, _) => unknown("it has no block device here"),
            (Some(_), Err(reason)) => unknown(reason),
            (Some(name), Ok(found)) => found
                .iter()
                .map(|found| (format!("{name}:{}", found.name), format!("{} on {name}", found.description)))
                .collect(),
        }
    }
}

/// Why a namespace is not formatted by its drive.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum NamespaceRefusal {
    /// The drive has no such command.
    #[error("the drive does not support Format NVM; leave --nvme-format, --lbaf, --block-size and --secure-erase away")]
    Unsupported,
    /// It can't throw its key away.
    #[error("the drive can't erase cryptographically; --secure-erase user-data does the same, slower")]
    NoCryptoErase,
    /// There is no such block format.
    #[error("the namespace has no block format {index}; it has {formats}")]
    NoFormat {
        /// The number.
        index: u8,
        /// Those that it has.
        formats: String,
    },
    /// No block format has blocks of that length and no metadata.
    #[error("the namespace has no block format with {block_len_bytes} bytes and no metadata; it has {formats}")]
    NoBlockLen {
        /// The length.
        block_len_bytes: u32,
        /// Those that it has.
        formats: String,
    },
    /// We do not work with such blocks.
    #[error("block format {format} is not for Kiseki: blocks must have 512 or 4096 bytes and no metadata")]
    Unusable {
        /// The format.
        format: String,
    },
    /// Another namespace would be lost with this one, and somebody uses it.
    #[error(
        "the drive formats all of its namespaces at once, and {sibling} is in use: {by}; stop that, or leave the drive's own format away"
    )]
    SiblingInUse {
        /// Its name.
        sibling: String,
        /// Who, and how.
        by: String,
    },
    /// Another namespace would be lost with this one, and it carries data that is not named.
    #[error(
        "the drive formats all of its namespaces at once, which would overwrite {found}; to have that, confirm each by name: {confirm}"
    )]
    SiblingSigned {
        /// What was found, for people.
        found: String,
        /// The names to confirm, comma separated.
        confirm: String,
    },
}

/// What the drive is going to be told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamespaceFormat {
    /// The command.
    pub command: AdminCommand,
    /// The block format from then on.
    pub format: LbaFormat,
    /// What becomes of the data.
    pub erase: SecureErase,
    /// Other namespaces that are lost with this one.
    pub also_lost: Vec<String>,
}

/// What is known of a namespace and its drive.
#[derive(Clone, Copy, Debug)]
pub struct NamespaceFacts<'a> {
    /// The controller.
    pub controller: &'a ControllerIdentity,
    /// The namespace.
    pub namespace: &'a NamespaceIdentity,
    /// Its number.
    pub id: u32,
    /// The other namespaces of the drive.
    pub siblings: &'a [Sibling],
}

/// Decides what to tell the drive. `None`: nothing, it is as wanted already.
///
/// Errors: what the drive can't do, and what would be lost with the namespace and is not named in `confirmed` (I-D7).
pub fn plan_namespace(
    facts: NamespaceFacts<'_>,
    choice: NamespaceChoice,
    confirmed: &[String],
) -> Result<Option<NamespaceFormat>, NamespaceRefusal> {
    let format = chosen_format(facts.namespace, choice.blocks)?;
    // One that was interrupted is told again: until it is done the drive answers no read.
    let is_unfinished = facts.namespace.format_remaining_percent.is_some_and(|percent| percent > 0);
    if format == facts.namespace.format && choice.erase == SecureErase::None && !is_unfinished {
        return Ok(None);
    }
    let controller = facts.controller;
    if !controller.admin.format {
        return Err(NamespaceRefusal::Unsupported);
    }
    if choice.erase == SecureErase::Cryptographic && !controller.format.can_crypto_erase {
        return Err(NamespaceRefusal::NoCryptoErase);
    }
    let all = controller.format.formats_all || choice.erase != SecureErase::None && controller.format.erases_all;
    if all {
        check_siblings(facts.siblings, confirmed)?;
    }
    Ok(Some(NamespaceFormat {
        command: AdminCommand::format(FormatRequest {
            namespace: if all { u32::MAX } else { facts.id },
            format_index: format.index,
            erase: choice.erase,
            timeout: FORMAT_TIMEOUT,
        }),
        format,
        erase: choice.erase,
        also_lost: facts.siblings.iter().filter(|_| all).map(Sibling::shown).collect(),
    }))
}

/// I-D7: a namespace that is lost along with another is protected like it.
fn check_siblings(siblings: &[Sibling], confirmed: &[String]) -> Result<(), NamespaceRefusal> {
    if let Some(used) = siblings.iter().find(|sibling| !sibling.uses.is_empty()) {
        let by: Vec<String> = used.uses.iter().map(|found| format!("{found} ({})", found.remedy())).collect();
        return Err(NamespaceRefusal::SiblingInUse { sibling: used.shown(), by: by.join("; ") });
    }
    let missing: Vec<(String, String)> =
        siblings.iter().flat_map(Sibling::to_confirm).filter(|(name, _)| !confirmed.contains(name)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let (names, found): (Vec<String>, Vec<String>) = missing.into_iter().unzip();
    Err(NamespaceRefusal::SiblingSigned { found: found.join(", "), confirm: names.join(", ") })
}

fn chosen_format(namespace: &NamespaceIdentity, choice: BlockChoice) -> Result<LbaFormat, NamespaceRefusal> {
    let formats = || namespace.formats.iter().map(|format| Lbaf(*format).to_string()).collect::<Vec<_>>().join(", ");
    let format = match choice {
        BlockChoice::Keep => namespace.format,
        BlockChoice::Preferred => namespace.preferred_format().unwrap_or(namespace.format),
        BlockChoice::Index(index) => {
            let found = namespace.formats.iter().find(|format| format.index == index).copied();
            found.ok_or_else(|| NamespaceRefusal::NoFormat { index, formats: formats() })?
        }
        BlockChoice::BlockLen(block_len_bytes) => {
            let plain = namespace.formats.iter().filter(|format| format.metadata_len_bytes == 0);
            let found = plain.filter(|format| format.block_len_bytes == block_len_bytes);
            // What it has already is as good as another that is no faster.
            let best = found.min_by_key(|format| (format.performance, **format != namespace.format, format.index));
            *best.ok_or_else(|| NamespaceRefusal::NoBlockLen { block_len_bytes, formats: formats() })?
        }
    };
    if format.metadata_len_bytes > 0 || !BLOCK_LENS.contains(&format.block_len_bytes) {
        return Err(NamespaceRefusal::Unusable { format: Lbaf(format).to_string() });
    }
    Ok(format)
}

/// The format that would serve better than the one in use: 4096 bytes where there are 512, if it is no slower.
#[must_use]
pub fn recommended_format(namespace: &NamespaceIdentity) -> Option<LbaFormat> {
    let best = namespace.preferred_format()?;
    let better = best.block_len_bytes > namespace.format.block_len_bytes || namespace.format.metadata_len_bytes > 0;
    (better && best.performance <= namespace.format.performance).then_some(best)
}

/// A block format as nvme-cli prints it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lbaf(pub LbaFormat);

impl fmt::Display for Lbaf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let performance = match self.0.performance {
            RelativePerformance::Best => 0,
            RelativePerformance::Better => 1,
            RelativePerformance::Good => 2,
            RelativePerformance::Degraded => 3,
        };
        let lbads = self.0.block_len_bytes.trailing_zeros();
        write!(f, "lbaf {}: ms:{} lbads:{lbads} rp:{performance:#x}", self.0.index, self.0.metadata_len_bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nvme::identify::IDENTIFY_LEN_BYTES;

    /// A controller that supports Format NVM, with these FNA bits.
    fn controller(fna: u8) -> ControllerIdentity {
        let mut page = vec![0; IDENTIFY_LEN_BYTES];
        page[256] = 1 << 1;
        page[524] = fna;
        ControllerIdentity::parse(&page).unwrap()
    }

    /// 512 bytes (in use, good), 512 + 8, 4096 (best), 4096 + 64, 4096 (better).
    fn namespace() -> NamespaceIdentity {
        let mut page = vec![0; IDENTIFY_LEN_BYTES];
        page[..8].copy_from_slice(&(1u64 << 21).to_le_bytes());
        page[25] = 4;
        for (slot, raw) in [0x0209_0000u32, 0x0209_0008, 0x000c_0000, 0x000c_0040, 0x010c_0000].iter().enumerate() {
            page[128 + 4 * slot..132 + 4 * slot].copy_from_slice(&raw.to_le_bytes());
        }
        NamespaceIdentity::parse(&page).unwrap()
    }

    fn sibling(uses: Vec<Use>, signatures: &[&str]) -> Sibling {
        let signatures = signatures.iter().map(|name| FoundSignature {
            name: (*name).to_owned(),
            description: format!("an {name} file system"),
            partition: None,
            unused_of: None,
        });
        Sibling { name: Some("nvme0n2".to_owned()), namespace: 2, uses, signatures: Ok(signatures.collect()) }
    }

    fn plan(
        fna: u8,
        blocks: BlockChoice,
        erase: SecureErase,
        siblings: &[Sibling],
        confirmed: &[&str],
    ) -> Result<Option<NamespaceFormat>, NamespaceRefusal> {
        let (controller, namespace) = (controller(fna), namespace());
        let facts = NamespaceFacts { controller: &controller, namespace: &namespace, id: 1, siblings };
        let confirmed: Vec<String> = confirmed.iter().map(|name| (*name).to_owned()).collect();
        plan_namespace(facts, NamespaceChoice { blocks, erase }, &confirmed)
    }

    #[test]
    fn the_block_format_is_the_one_asked_for_or_the_best() {
        for (choice, index) in [
            (BlockChoice::Preferred, Some(2)),
            (BlockChoice::BlockLen(4096), Some(2)),
            (BlockChoice::Index(4), Some(4)),
            (BlockChoice::Index(0), None),
            (BlockChoice::BlockLen(512), None),
            (BlockChoice::Keep, None),
        ] {
            let planned = plan(0, choice, SecureErase::None, &[], &[]).unwrap();
            assert_eq!(planned.map(|planned| planned.format.index), index, "{choice:?}");
        }
        let erase = plan(0, BlockChoice::Keep, SecureErase::UserData, &[], &[]).unwrap().unwrap();
        assert_eq!((erase.format.index, erase.command.namespace(), erase.command.dwords()[0]), (0, 1, 1 << 9));
        assert_eq!(recommended_format(&namespace()).unwrap().index, 2);
    }

    #[test]
    fn a_format_that_the_drive_did_not_finish_is_asked_for_again() {
        let unfinished = NamespaceIdentity { format_remaining_percent: Some(40), ..namespace() };
        let facts = NamespaceFacts { controller: &controller(0), namespace: &unfinished, id: 1, siblings: &[] };
        let asked = NamespaceChoice { blocks: BlockChoice::BlockLen(512), erase: SecureErase::None };
        assert_eq!(plan_namespace(facts, asked, &[]).unwrap().unwrap().format.index, 0);
    }

    #[test]
    fn what_the_drive_cannot_do_is_refused_by_name() {
        let refused = |blocks, erase| plan(0, blocks, erase, &[], &[]).unwrap_err().to_string();
        assert!(
            refused(BlockChoice::Index(9), SecureErase::None)
                .contains("no block format 9; it has lbaf 0: ms:0 lbads:9")
        );
        assert!(
            refused(BlockChoice::Index(3), SecureErase::None)
                .contains("lbaf 3: ms:64 lbads:12 rp:0x0 is not for Kiseki")
        );
        assert!(refused(BlockChoice::BlockLen(8192), SecureErase::None).contains("8192 bytes and no metadata"));
        assert!(refused(BlockChoice::Keep, SecureErase::Cryptographic).contains("--secure-erase user-data"));
        let mut none = controller(0);
        none.admin.format = false;
        let namespace = namespace();
        let facts = NamespaceFacts { controller: &none, namespace: &namespace, id: 1, siblings: &[] };
        let choice = NamespaceChoice { blocks: BlockChoice::Preferred, erase: SecureErase::None };
        assert_eq!(plan_namespace(facts, choice, &[]), Err(NamespaceRefusal::Unsupported));
    }

    #[test]
    fn i_d7_a_namespace_that_would_be_lost_along_is_protected_like_the_one_named() {
        const FORMATS_ALL: u8 = 1;
        const ERASES_ALL: u8 = 2;
        let mounted = Use::Mounted { node: "nvme0n2".to_owned(), at: "/data".to_owned() };
        let used = [sibling(vec![mounted], &[])];
        let signed = [sibling(Vec::new(), &["xfs"])];
        let blocks = BlockChoice::Preferred;
        let error = plan(FORMATS_ALL, blocks, SecureErase::None, &used, &["nvme0n2:xfs"]).unwrap_err().to_string();
        assert!(error.contains("nvme0n2 is in use: nvme0n2 is mounted at /data (umount /data)"), "I-D7: {error}");
        let error = plan(FORMATS_ALL, blocks, SecureErase::None, &signed, &["xfs"]).unwrap_err().to_string();
        assert!(error.contains("an xfs file system on nvme0n2") && error.ends_with("nvme0n2:xfs"), "I-D7: {error}");
        let planned = plan(FORMATS_ALL, blocks, SecureErase::None, &signed, &["nvme0n2:xfs"]).unwrap().unwrap();
        assert_eq!((planned.also_lost.join(","), planned.command.namespace()), ("nvme0n2".to_owned(), u32::MAX));
        // A drive that only erases all at once formats one; one that formats all also erases all.
        let planned = plan(ERASES_ALL, blocks, SecureErase::None, &used, &[]).unwrap().unwrap();
        assert_eq!((planned.command.namespace(), planned.also_lost.len()), (1, 0));
        plan(ERASES_ALL, blocks, SecureErase::UserData, &used, &[]).unwrap_err();
        plan(FORMATS_ALL, blocks, SecureErase::UserData, &used, &[]).unwrap_err();
        // What nobody can look at is no less in danger.
        let hidden = [Sibling { name: None, ..sibling(Vec::new(), &[]) }];
        let error = plan(FORMATS_ALL, blocks, SecureErase::None, &hidden, &[]).unwrap_err().to_string();
        assert!(error.ends_with("confirm each by name: nsid2"), "I-D7: {error}");
        plan(FORMATS_ALL, blocks, SecureErase::None, &hidden, &["nsid2"]).unwrap().unwrap();
    }
}
