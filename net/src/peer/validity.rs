//! When a certificate begins and ends: the one thing that nobody below us tells.

use rustls::pki_types::CertificateDer;

/// Seconds since 1970 between which a certificate is valid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Validity {
    /// From.
    pub not_before: u64,
    /// To.
    pub not_after: u64,
}

const SEQUENCE: u8 = 0x30;
const VERSION: u8 = 0xa0;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;

impl Validity {
    /// What a certificate says; `None` when it can't be read.
    #[must_use]
    pub fn of_certificate(certificate: &CertificateDer<'_>) -> Option<Validity> {
        // Certificate { TBSCertificate { [version], serial, algorithm, issuer, Validity { from, to } .. } .. }
        let (_, whole, _) = element(certificate).filter(|(tag, ..)| *tag == SEQUENCE)?;
        let (_, mut fields, _) = element(whole).filter(|(tag, ..)| *tag == SEQUENCE)?;
        if let Some((VERSION, _, rest)) = element(fields) {
            fields = rest;
        }
        for _serial_algorithm_issuer in 0..3 {
            fields = element(fields)?.2;
        }
        let (_, validity, _) = element(fields).filter(|(tag, ..)| *tag == SEQUENCE)?;
        let (tag, from, rest) = element(validity)?;
        let (end_tag, to, _) = element(rest)?;
        Some(Validity { not_before: seconds(tag, from)?, not_after: seconds(end_tag, to)? })
    }
}

/// The first element of DER bytes: tag, content, and what follows.
fn element(bytes: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (&tag, rest) = bytes.split_first()?;
    let (&first, mut rest) = rest.split_first()?;
    let len = match first {
        0..=0x7f => usize::from(first),
        0x81..=0x84 => {
            let (digits, behind) = rest.split_at_checked(usize::from(first - 0x80))?;
            rest = behind;
            digits.iter().fold(0, |len, digit| (len << 8) | usize::from(*digit))
        }
        _ => return None,
    };
    let (content, behind) = rest.split_at_checked(len)?;
    Some((tag, content, behind))
}

/// `YYMMDDhhmmssZ` or `YYYYMMDDhhmmssZ` (RFC 5280, 4.1.2.5).
fn seconds(tag: u8, text: &[u8]) -> Option<u64> {
    let digits = text.strip_suffix(b"Z")?;
    if !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let number = |part: &[u8]| part.iter().fold(0u64, |sum, digit| sum * 10 + u64::from(digit - b'0'));
    let (year, rest) = match (tag, digits.len()) {
        (UTC_TIME, 12) => {
            let year = number(&digits[..2]);
            (year + if year < 50 { 2000 } else { 1900 }, &digits[2..])
        }
        (GENERALIZED_TIME, 14) => (number(&digits[..4]), &digits[4..]),
        _ => return None,
    };
    let parts: Vec<u64> = rest.chunks(2).map(number).collect();
    let [month, day, hour, minute, second] = parts[..] else { return None };
    if year < 1970 || !(1..=12).contains(&month) || !(1..=31).contains(&day) || hour > 23 || minute > 59 || second > 60
    {
        return None;
    }
    Some(((days_before(year, month) + day - 1) * 24 + hour) * 3600 + minute * 60 + second)
}

/// Days between 1970 and the first of a month, in the Gregorian calendar.
fn days_before(year: u64, month: u64) -> u64 {
    // Counted from March, so that the leap day is the last one of its year.
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let days = year * 365 + year / 4 - year / 100 + year / 400 + (153 * month + 2) / 5;
    days - 719_468
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_what_calendars_say() {
        for (tag, text, wanted) in [
            (UTC_TIME, "700101000000Z", Some(0)),
            (UTC_TIME, "240229120000Z", Some(1_709_208_000)),
            (GENERALIZED_TIME, "20501231235959Z", Some(2_556_143_999)),
            (UTC_TIME, "491231000000Z", Some(2_524_521_600)),
            (UTC_TIME, "241301000000Z", None),
            (UTC_TIME, "240229120000", None),
            (GENERALIZED_TIME, "240229120000Z", None),
            (UTC_TIME, "24022912000xZ", None),
        ] {
            assert_eq!(seconds(tag, text.as_bytes()), wanted, "{text}");
        }
    }

    #[test]
    fn a_real_certificate_tells_and_cut_off_ones_do_not() {
        let made = rcgen::generate_simple_self_signed(vec!["localhost".to_string()]).unwrap();
        let der = made.cert.der();
        let validity = Validity::of_certificate(der).unwrap();
        assert!(validity.not_before < validity.not_after);
        for len in 0..der.len() {
            assert_eq!(Validity::of_certificate(&CertificateDer::from(&der[..len])), None, "cut at {len}");
        }
    }
}
