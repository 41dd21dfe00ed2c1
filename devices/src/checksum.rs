//! The checksum of everything in this room: CRC32C.

/// CRC32C (Castagnoli) of `bytes`.
#[must_use]
pub fn crc32c(bytes: &[u8]) -> u32 {
    let sum = crc_fast::checksum(crc_fast::CrcAlgorithm::Crc32Iscsi, bytes);
    u32::try_from(sum).expect("a CRC32C has 32 bits")
}

/// The polynomial of CRC32C, lowest power in the highest bit.
const POLYNOMIAL: u32 = 0x82f6_3b78;

/// The only bit of `bytes` that has to be flipped so that their checksum is `wanted`; `None` when one bit explains nothing.
///
/// That it does so by chance has a probability of one in 2^32 for each bit.
pub(crate) fn flipped_bit(bytes: &[u8], wanted: u32) -> Option<usize> {
    // The checksum is linear: what one bit changes in it depends on how many bytes follow, and on nothing else.
    let difference = crc32c(bytes) ^ wanted;
    let shifted = |mut register: u32| {
        for _ in 0..8 {
            register = (register >> 1) ^ (POLYNOMIAL * (register & 1));
        }
        register
    };
    let table: [u32; 256] = std::array::from_fn(|byte| shifted(byte as u32));
    let mut changes: [u32; 8] = std::array::from_fn(|bit| shifted(1 << bit));
    for at in (0..bytes.len()).rev() {
        if let Some(bit) = changes.iter().position(|change| *change == difference) {
            return Some(8 * at + bit);
        }
        changes.iter_mut().for_each(|change| *change = (*change >> 8) ^ table[(*change & 0xff) as usize]);
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flipped_bit_is_found_wherever_it_is_and_two_are_not_one() {
        let good: Vec<u8> = (0..300u32).map(|byte| (byte * 7) as u8).collect();
        let wanted = crc32c(&good);
        assert_eq!(flipped_bit(&good, wanted), None);
        for bit in [0, 7, 8, 1000, 2391, 2399] {
            let mut bad = good.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(flipped_bit(&bad, wanted), Some(bit));
            bad[150] ^= 0x81;
            assert_eq!(flipped_bit(&bad, wanted), None, "bit {bit} and two more");
        }
    }

    #[test]
    fn the_check_value_of_crc32c_holds() {
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
    }
}
