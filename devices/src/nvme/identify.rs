//! The Identify pages of a controller and of a namespace (NVM Express Base 2.0, 5.17.2; NVM Command Set 1.0, 4.1.5).

use super::page::{Page, PageError, bit};
use std::fmt;
use std::time::Duration;

/// Bytes of each Identify page.
pub const IDENTIFY_LEN_BYTES: usize = 4096;

/// Memory page that transfer limits count in: the smallest that a controller has, and the one of every known drive.
const MEMORY_PAGE_LEN_BYTES: u64 = 4096;

/// Block formats that a page has room for.
const FORMATS_MAX: usize = 64;

/// A controller, from its Identify page (CNS 01h).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ControllerIdentity {
    /// PCI vendor.
    pub vendor_id: u16,
    /// Serial number.
    pub serial: String,
    /// Model.
    pub model: String,
    /// Firmware revision in use.
    pub firmware: String,
    /// Number of the controller in its subsystem.
    pub controller_id: u16,
    /// Version of the specification.
    pub version: NvmeVersion,
    /// Most bytes of one command (MDTS); `None`: no limit.
    pub transfer_len_bytes_max: Option<u64>,
    /// Whether the subsystem may have more controllers, which see the same namespaces (CMIC).
    pub has_siblings: bool,
    /// Highest number of a namespace (NN).
    pub namespace_count_max: u32,
    /// Bytes of the drive in all; 0 where it does not say.
    pub capacity_bytes: u64,
    /// Admin commands beyond the mandatory ones (OACS).
    pub admin: AdminSupport,
    /// I/O commands beyond the mandatory ones (ONCS).
    pub commands: CommandSupport,
    /// What formatting one namespace does to the others (FNA).
    pub format: FormatScope,
    /// Ways to sanitize the whole drive (SANICAP).
    pub sanitize: SanitizeSupport,
    /// Whether completed writes may be lost in a power cut until a flush (VWC).
    pub has_volatile_cache: bool,
    /// Blocks that are written atomically towards other commands (AWUN).
    pub atomic_blocks: u32,
    /// Blocks that are written atomically when the power fails (AWUPF).
    pub atomic_blocks_power_fail: u32,
    /// Slots for firmware (FRMW).
    pub firmware_slots: u8,
    /// Temperature at which the drive warns, in kelvin; 0 where it does not say.
    pub temperature_warning_kelvin: u16,
    /// Waits that it names by number with a status that asks for the command again (CRDT1 to CRDT3); zero where it does
    /// not say.
    pub retry_delays: [Duration; 3],
}

/// Version of the specification that a controller follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct NvmeVersion {
    /// 1 or 2.
    pub major: u16,
    /// Minor.
    pub minor: u8,
    /// Tertiary.
    pub tertiary: u8,
}

impl fmt::Display for NvmeVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)?;
        if self.tertiary > 0 { write!(f, ".{}", self.tertiary) } else { Ok(()) }
    }
}

/// Admin commands that a controller may lack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AdminSupport {
    /// Format NVM.
    pub format: bool,
    /// Firmware download and commit.
    pub firmware: bool,
    /// Namespaces can be made, removed, attached and detached.
    pub namespace_management: bool,
    /// Device self-test.
    pub self_test: bool,
}

/// I/O commands that a controller may lack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CommandSupport {
    /// Compare.
    pub compare: bool,
    /// Write Uncorrectable.
    pub write_uncorrectable: bool,
    /// Dataset Management: Deallocate.
    pub dataset_management: bool,
    /// Write Zeroes.
    pub write_zeroes: bool,
    /// Verify.
    pub verify: bool,
    /// Copy.
    pub copy: bool,
}

/// What formatting one namespace does to the others of its subsystem.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FormatScope {
    /// A format applies to all namespaces at once.
    pub formats_all: bool,
    /// A secure erase applies to all namespaces at once.
    pub erases_all: bool,
    /// Erasing by throwing away the drive's own key is possible.
    pub can_crypto_erase: bool,
}

/// Ways to sanitize a drive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SanitizeSupport {
    /// By throwing away its key.
    pub crypto_erase: bool,
    /// By erasing its blocks.
    pub block_erase: bool,
    /// By overwriting.
    pub overwrite: bool,
}

impl ControllerIdentity {
    /// Reads the page. Errors: `Truncated`.
    pub fn parse(bytes: &[u8]) -> Result<ControllerIdentity, PageError> {
        let page = Page::new("Identify Controller", bytes, IDENTIFY_LEN_BYTES)?;
        let (version, oacs, oncs) = (page.u32(80), u32::from(page.u16(256)), u32::from(page.u16(520)));
        let (fna, sanicap) = (u32::from(page.u8(524)), page.u32(328));
        Ok(ControllerIdentity {
            vendor_id: page.u16(0),
            serial: page.text(4, 20),
            model: page.text(24, 40),
            firmware: page.text(64, 8),
            controller_id: page.u16(78),
            version: NvmeVersion {
                major: (version >> 16) as u16,
                minor: (version >> 8) as u8,
                tertiary: version as u8,
            },
            transfer_len_bytes_max: transfer_limit(page.u8(77)),
            has_siblings: bit(u32::from(page.u8(76)), 1),
            namespace_count_max: page.u32(516),
            capacity_bytes: page.counter(280),
            admin: AdminSupport {
                format: bit(oacs, 1),
                firmware: bit(oacs, 2),
                namespace_management: bit(oacs, 3),
                self_test: bit(oacs, 4),
            },
            commands: CommandSupport {
                compare: bit(oncs, 0),
                write_uncorrectable: bit(oncs, 1),
                dataset_management: bit(oncs, 2),
                write_zeroes: bit(oncs, 3),
                verify: bit(oncs, 7),
                copy: bit(oncs, 8),
            },
            format: FormatScope { formats_all: bit(fna, 0), erases_all: bit(fna, 1), can_crypto_erase: bit(fna, 2) },
            sanitize: SanitizeSupport {
                crypto_erase: bit(sanicap, 0),
                block_erase: bit(sanicap, 1),
                overwrite: bit(sanicap, 2),
            },
            has_volatile_cache: bit(u32::from(page.u8(525)), 0),
            atomic_blocks: zero_based(page.u16(526)),
            atomic_blocks_power_fail: zero_based(page.u16(528)),
            firmware_slots: page.u8(260) >> 1 & 7,
            temperature_warning_kelvin: page.u16(266),
            // In units of 100 ms.
            retry_delays: [128, 130, 132].map(|at| Duration::from_millis(100 * u64::from(page.u16(at)))),
        })
    }
}

/// The limit is a power of two of memory pages; 0 and what no command can reach are none.
fn transfer_limit(power: u8) -> Option<u64> {
    match power {
        0 | 20.. => None,
        power => Some(MEMORY_PAGE_LEN_BYTES << power),
    }
}

/// The specification counts what can't be none from 0.
fn zero_based(value: u16) -> u32 {
    u32::from(value) + 1
}

/// A block format that a namespace can have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LbaFormat {
    /// Its number, for Format NVM.
    pub index: u8,
    /// Bytes of a block.
    pub block_len_bytes: u32,
    /// Bytes of metadata of each block.
    pub metadata_len_bytes: u16,
    /// How fast it is.
    pub performance: RelativePerformance,
}

/// Speed of a block format among those of a drive, the best first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum RelativePerformance {
    /// Best.
    Best,
    /// Better.
    Better,
    /// Good.
    Good,
    /// Degraded.
    Degraded,
}

impl fmt::Display for RelativePerformance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            RelativePerformance::Best => "best",
            RelativePerformance::Better => "better",
            RelativePerformance::Good => "good",
            RelativePerformance::Degraded => "degraded",
        })
    }
}

impl LbaFormat {
    fn parse(index: u8, raw: u32) -> Option<LbaFormat> {
        // Below 512 bytes the specification has no blocks, and a format of 0 is none.
        let power = raw >> 16 & 0xff;
        (9..=16).contains(&power).then(|| LbaFormat {
            index,
            block_len_bytes: 1 << power,
            metadata_len_bytes: raw as u16,
            performance: match raw >> 24 & 3 {
                0 => RelativePerformance::Best,
                1 => RelativePerformance::Better,
                2 => RelativePerformance::Good,
                _ => RelativePerformance::Degraded,
            },
        })
    }
}

/// What a namespace's blocks read as after they were deallocated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeallocatedReads {
    /// The drive does not say.
    Unknown,
    /// As zeros.
    Zeros,
    /// As ones.
    Ones,
}

/// A namespace, from its Identify page (CNS 00h).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamespaceIdentity {
    /// Blocks in all (NSZE).
    pub block_count: u64,
    /// Blocks that may be allocated at once (NCAP); fewer than all where it is thinly provisioned.
    pub capacity_blocks: u64,
    /// Blocks in use (NUSE).
    pub used_blocks: u64,
    /// The formats that it can have, without those that make no sense.
    pub formats: Vec<LbaFormat>,
    /// The format that it has.
    pub format: LbaFormat,
    /// Whether metadata travel within the block, which makes it longer.
    pub has_extended_blocks: bool,
    /// Type of end-to-end protection, 0 for none.
    pub protection: u8,
    /// Whether several controllers may be attached to it (NMIC).
    pub is_shared: bool,
    /// What is left of a format that goes on, in percent (FPI); `None`: the drive does not tell.
    pub format_remaining_percent: Option<u8>,
    /// What deallocated blocks read as.
    pub deallocated_reads: DeallocatedReads,
    /// Blocks that are written atomically when the power fails (NAWUPF), where that differs from the controller's.
    pub atomic_blocks_power_fail: Option<u32>,
    /// Commands are best kept from crossing multiples of so many blocks (NOIOB); `None`: no such boundary.
    pub boundary_blocks: Option<u16>,
    /// What the drive likes to be written and deallocated in.
    pub preferred: Option<PreferredUnits>,
    /// Globally unique identifier; `None`: all zero.
    pub nguid: Option<[u8; 16]>,
    /// IEEE extended unique identifier; `None`: all zero.
    pub eui64: Option<[u8; 8]>,
}

/// Units in blocks that a namespace works best with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PreferredUnits {
    /// Length of a write (NPWG).
    pub write_blocks: u32,
    /// Alignment of a write (NPWA).
    pub write_alignment_blocks: u32,
    /// Length of a deallocated range (NPDG).
    pub deallocate_blocks: u32,
    /// Alignment of a deallocated range (NPDA).
    pub deallocate_alignment_blocks: u32,
}

impl NamespaceIdentity {
    /// Reads the page. Errors: `Truncated`, `NoNamespace`, `FormatInUse`, `Size`.
    pub fn parse(bytes: &[u8]) -> Result<NamespaceIdentity, PageError> {
        let page = Page::new("Identify Namespace", bytes, IDENTIFY_LEN_BYTES)?;
        let block_count = page.u64(0);
        if block_count == 0 {
            return Err(PageError::NoNamespace);
        }
        let count = (usize::from(page.u8(25)) + 1).min(FORMATS_MAX);
        let formats: Vec<LbaFormat> =
            (0..count).filter_map(|index| LbaFormat::parse(index as u8, page.u32(128 + 4 * index))).collect();
        let flbas = page.u8(26);
        // The upper bits count only where there are more formats than the lower ones can name.
        let index = if count > 16 { flbas & 0xf | flbas >> 1 & 0x30 } else { flbas & 0xf };
        let format = formats.iter().find(|format| format.index == index).copied();
        let format = format.ok_or(PageError::FormatInUse { index, count: formats.len() })?;
        if block_count.checked_mul(u64::from(format.block_len_bytes)).is_none_or(|len| len > i64::MAX as u64) {
            return Err(PageError::Size { block_count, block_len_bytes: format.block_len_bytes });
        }
        let features = u32::from(page.u8(24));
        Ok(NamespaceIdentity {
            block_count,
            capacity_blocks: page.u64(8).min(block_count),
            used_blocks: page.u64(16).min(block_count),
            formats,
            format,
            has_extended_blocks: format.metadata_len_bytes > 0 && bit(u32::from(flbas), 4),
            protection: page.u8(29) & 7,
            is_shared: bit(u32::from(page.u8(30)), 0),
            format_remaining_percent: bit(u32::from(page.u8(32)), 7).then(|| (page.u8(32) & 0x7f).min(100)),
            deallocated_reads: match page.u8(33) & 7 {
                1 => DeallocatedReads::Zeros,
                2 => DeallocatedReads::Ones,
                _ => DeallocatedReads::Unknown,
            },
            atomic_blocks_power_fail: bit(features, 1).then(|| zero_based(page.u16(36))),
            boundary_blocks: Some(page.u16(46)).filter(|blocks| *blocks > 0),
            preferred: bit(features, 4).then(|| PreferredUnits {
                write_blocks: zero_based(page.u16(64)),
                write_alignment_blocks: zero_based(page.u16(66)),
                deallocate_blocks: zero_based(page.u16(68)),
                deallocate_alignment_blocks: zero_based(page.u16(70)),
            }),
            nguid: Some(page.array(104)).filter(|id| *id != [0; 16]),
            eui64: Some(page.array(120)).filter(|id| *id != [0; 8]),
        })
    }

    /// Bytes in all.
    #[must_use]
    pub fn len_bytes(&self) -> u64 {
        self.block_count * u64::from(self.format.block_len_bytes)
    }

    /// The format that we like best: 4096 bytes without metadata, or 512 where there is none of these; among equals the
    /// fastest. `None`: it has neither.
    #[must_use]
    pub fn preferred_format(&self) -> Option<LbaFormat> {
        let plain = self.formats.iter().filter(|format| format.metadata_len_bytes == 0);
        let known = plain.filter(|format| matches!(format.block_len_bytes, 512 | 4096));
        known.min_by_key(|format| (format.block_len_bytes != 4096, format.performance, format.index)).copied()
    }
}

/// Reads a list of active namespaces (CNS 02h): their numbers, rising. Errors: `Truncated`.
pub fn parse_namespace_list(bytes: &[u8]) -> Result<Vec<u32>, PageError> {
    let page = Page::new("Active Namespaces", bytes, IDENTIFY_LEN_BYTES)?;
    let mut list = Vec::new();
    for offset in (0..IDENTIFY_LEN_BYTES).step_by(4) {
        let id = page.u32(offset);
        // The list ends at the first 0; one that does not rise is noise from there on.
        if id == 0 || list.last().is_some_and(|last| *last >= id) {
            break;
        }
        list.push(id);
    }
    Ok(list)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(page: &mut [u8], offset: usize, bytes: &[u8]) {
        page[offset..offset + bytes.len()].copy_from_slice(bytes);
    }

    fn namespace(blocks: u64, flbas: u8, formats: &[u32]) -> Vec<u8> {
        let mut page = vec![0; IDENTIFY_LEN_BYTES];
        put(&mut page, 0, &blocks.to_le_bytes());
        put(&mut page, 8, &blocks.to_le_bytes());
        page[25] = formats.len() as u8 - 1;
        page[26] = flbas;
        for (index, format) in formats.iter().enumerate() {
            put(&mut page, 128 + 4 * index, &format.to_le_bytes());
        }
        page
    }

    #[test]
    fn a_controller_page_is_read_field_by_field() {
        let mut page = vec![0; IDENTIFY_LEN_BYTES];
        put(&mut page, 4, b"S64H1\x1b[2J            ");
        put(&mut page, 24, b"ACME Fast Drive 3.84TB\0\0");
        put(&mut page, 64, b"1.0.4   ");
        page[76] = 2;
        page[77] = 5;
        put(&mut page, 80, &0x0002_0001u32.to_le_bytes());
        put(&mut page, 256, &0b1110u16.to_le_bytes());
        page[260] = 0b0_0111;
        put(&mut page, 280, &3_840_000_000_000u128.to_le_bytes());
        put(&mut page, 328, &0b011u32.to_le_bytes());
        put(&mut page, 520, &0b1000_1100u16.to_le_bytes());
        page[524] = 0b101;
        page[525] = 0b111;
        put(&mut page, 526, &127u16.to_le_bytes());
        put(&mut page, 128, &[5, 0, 0, 0, 0xff, 0xff]);
        let found = ControllerIdentity::parse(&page).unwrap();
        assert_eq!(found.serial, "S64H1?[2J", "no escape sequence reaches a terminal");
        assert_eq!((found.model.as_str(), found.firmware.as_str()), ("ACME Fast Drive 3.84TB", "1.0.4"));
        assert_eq!(found.transfer_len_bytes_max, Some(128 << 10));
        assert_eq!(found.version.to_string(), "2.0.1");
        assert!(found.has_siblings && found.has_volatile_cache);
        assert_eq!((found.atomic_blocks, found.atomic_blocks_power_fail, found.firmware_slots), (128, 1, 3));
        assert!(found.admin.format && found.admin.firmware && found.admin.namespace_management);
        assert!(found.format.formats_all && !found.format.erases_all && found.format.can_crypto_erase);
        assert!(found.commands.dataset_management && found.commands.write_zeroes && found.commands.verify);
        assert!(!found.commands.compare && found.sanitize.block_erase && !found.sanitize.overwrite);
        assert_eq!(found.capacity_bytes, 3_840_000_000_000);
        assert_eq!(found.retry_delays.map(|wait| wait.as_millis()), [500, 0, 6_553_500]);
        assert!(matches!(
            ControllerIdentity::parse(&page[..4095]),
            Err(PageError::Truncated { len_bytes: 4095, needed_bytes: 4096, .. })
        ));
    }

    #[test]
    fn transfer_limits() {
        for (power, limit) in [(0, None), (1, Some(8192)), (7, Some(512 << 10)), (19, Some(2 << 30)), (255, None)] {
            assert_eq!(transfer_limit(power), limit, "MDTS {power}");
        }
    }

    #[test]
    fn a_namespace_page_is_read_field_by_field() {
        let mut page = namespace(1000, 1, &[0x0209_0000, 0x000c_0000, 0x000c_0008, 0]);
        page[24] = 0b1_0010;
        page[29] = 0;
        page[30] = 1;
        page[33] = 1;
        put(&mut page, 36, &7u16.to_le_bytes());
        put(&mut page, 46, &256u16.to_le_bytes());
        put(&mut page, 64, &[3, 0, 3, 0, 7, 0, 7, 0]);
        put(&mut page, 120, &[1, 2, 3, 4, 5, 6, 7, 8]);
        let found = NamespaceIdentity::parse(&page).unwrap();
        assert_eq!(found.formats.len(), 3, "a format of 0 is none");
        assert_eq!((found.format.index, found.format.block_len_bytes, found.len_bytes()), (1, 4096, 4_096_000));
        assert_eq!(found.formats[0].performance, RelativePerformance::Good);
        assert_eq!((found.atomic_blocks_power_fail, found.boundary_blocks), (Some(8), Some(256)));
        let preferred = found.preferred.unwrap();
        assert_eq!((preferred.write_blocks, preferred.deallocate_blocks), (4, 8));
        assert_eq!((found.nguid, found.eui64), (None, Some([1, 2, 3, 4, 5, 6, 7, 8])));
        assert_eq!(found.preferred_format().unwrap().index, 1);
        assert!(found.is_shared && found.deallocated_reads == DeallocatedReads::Zeros);
    }

    #[test]
    fn the_format_in_use_of_many_has_upper_bits_and_of_few_has_not() {
        let many = [0x0009_0000; 33];
        assert_eq!(NamespaceIdentity::parse(&namespace(1, 0x40, &many)).unwrap().format.index, 32);
        assert_eq!(NamespaceIdentity::parse(&namespace(1, 0x60, &many[..2])).unwrap().format.index, 0);
    }

    #[test]
    fn pages_that_make_no_sense_are_refused_by_name() {
        let no_format = NamespaceIdentity::parse(&namespace(1, 3, &[0x0009_0000])).unwrap_err();
        assert_eq!(no_format, PageError::FormatInUse { index: 3, count: 1 });
        let odd = NamespaceIdentity::parse(&namespace(1, 0, &[0x0003_0000])).unwrap_err();
        assert_eq!(odd, PageError::FormatInUse { index: 0, count: 0 });
        assert_eq!(NamespaceIdentity::parse(&[0; IDENTIFY_LEN_BYTES]), Err(PageError::NoNamespace));
        let huge = NamespaceIdentity::parse(&namespace(u64::MAX / 512, 0, &[0x0009_0000])).unwrap_err();
        assert!(matches!(huge, PageError::Size { .. }), "{huge}");
    }

    #[test]
    fn a_list_of_namespaces_ends_at_zero_or_where_it_stops_rising() {
        let mut page = vec![0; IDENTIFY_LEN_BYTES];
        put(&mut page, 0, &[1, 0, 0, 0, 4, 0, 0, 0, 4, 0, 0, 0]);
        assert_eq!(parse_namespace_list(&page).unwrap(), [1, 4]);
        assert_eq!(parse_namespace_list(&[0; IDENTIFY_LEN_BYTES]).unwrap(), []);
        parse_namespace_list(&page[1..]).unwrap_err();
    }
}
