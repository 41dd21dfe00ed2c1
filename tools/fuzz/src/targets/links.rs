//! What peers send, what their certificates say, and the list of revoked ones.

use crate::target::{Seed, Target, Verdict, accepted, bytes_settle, bytes_survive, value_survives};
use futures::executor::block_on;
use futures::future::poll_fn;
use futures::io::Cursor;
use kiseki_net::peer::PeerName;
use kiseki_net::peer::control::{Control, Hello};
use kiseki_net::peer::frame::{FrameKind, HEAD_LEN_BYTES, Head};
use kiseki_net::peer::reader::{FrameReader, ReadError};
use kiseki_net::peer::revoked;
use kiseki_net::peer::trust::Proven;
use kiseki_net::peer::validity::Validity;
use kiseki_net::peer::{name, preamble};
use kiseki_types::buf::plain_buffers;
use kiseki_types::ids::{ClusterId, LaneId};
use kiseki_types::peer::{BULK_LEN_BYTES_MAX, MESSAGE_LEN_BYTES_MAX, ServiceId};
use rustls::pki_types::CertificateDer;

/// The first bytes of a connection.
pub const PREAMBLE: Target =
    Target::new("link_preamble", preamble_run, || vec![("lane", preamble::encode(LaneId(3)).to_vec())]);
/// The head of a frame.
pub const HEAD: Target = Target::new("link_head", head, head_seeds);
/// Frames one after the other, as a connection reads them. A length that is announced costs one message and one buffer.
pub const FRAMES: Target = Target::new("link_frames", frames, frame_seeds)
    .allowed(MESSAGE_LEN_BYTES_MAX + BULK_LEN_BYTES_MAX + 256 * 1024, 64);
/// The message of a control frame.
pub const CONTROL: Target = Target::new("link_control", control, control_seeds);
/// The name in a certificate.
pub const NAME: Target = Target::new("peer_name", peer_name, || {
    let id = "ab".repeat(16);
    vec![
        ("node", format!("kiseki://{id}/node/3").into_bytes()),
        ("admin", format!("kiseki://{id}/admin/alice").into_bytes()),
        ("authority", format!("kiseki://{id}/ca").into_bytes()),
    ]
});
/// A certificate, as far as it is taken apart here.
pub const CERTIFICATE: Target = Target::new("peer_certificate", certificate, certificate_seeds);
/// The list of revoked certificates.
pub const REVOKED: Target = Target::new("revoked_list", revoked_list, || {
    vec![("two", b"# revoked\n00ab12 admin/alice at 5 lost laptop\n\nff\n".to_vec())]
})
.allowed(96 * 1024, 64);

fn preamble_run(bytes: &[u8]) -> Verdict {
    bytes_survive(bytes, |bytes| {
        let lane = preamble::decode(bytes.try_into().ok()?).ok()?;
        Some(preamble::encode(lane).to_vec())
    })
}

fn head(bytes: &[u8]) -> Verdict {
    bytes_survive(bytes, |bytes| {
        let (fixed, lengths) = bytes.split_first_chunk::<HEAD_LEN_BYTES>()?;
        let len = Head::lengths_len(fixed).ok()?;
        let head = Head::decode(fixed, lengths).ok()?;
        assert_eq!(lengths.len(), len, "a head says how long it is");
        assert!(head.content_len() <= MESSAGE_LEN_BYTES_MAX + BULK_LEN_BYTES_MAX, "I-O5");
        Some(head.encode())
    })
}

fn call(message_len: usize, bulk_lens: Vec<usize>) -> Head {
    Head { service: ServiceId::ADMIN, lane: LaneId(2), message_len, bulk_lens, ..Head::empty(FrameKind::Call, 7) }
}

fn head_seeds() -> Vec<Seed> {
    vec![
        ("call", call(9, vec![4096, 0, 1]).encode()),
        ("dropped", Head::empty(FrameKind::Dropped, 7).encode()),
        ("control", Head { message_len: 24, ..Head::empty(FrameKind::Control, 0) }.encode()),
    ]
}

fn frames(bytes: &[u8]) -> Verdict {
    let (mut input, mut reader) = (Cursor::new(bytes), FrameReader::new(plain_buffers()));
    let (mut count, mut len) = (0, 0);
    loop {
        reader.begin_turn();
        match block_on(poll_fn(|cx| reader.poll_frame(cx, &mut input, &mut |_| Ok(())))) {
            Ok(frame) => {
                count += 1;
                len += frame.head.encode().len() + frame.head.content_len();
                assert_eq!(frame.message.len(), frame.head.message_len);
                assert_eq!(frame.bulk.iter().map(|buf| buf.len()).collect::<Vec<_>>(), frame.head.bulk_lens);
                if frame.head.kind == FrameKind::Control {
                    let _understood = Control::decode(&frame.message);
                }
            }
            Err(ReadError::Closed) if count > 0 && len == bytes.len() => return Verdict::Accepted,
            Err(_) => return Verdict::Refused,
        }
    }
}

fn frame_seeds() -> Vec<Seed> {
    let ping = Control::Ping(1).encode();
    let control = Head { message_len: ping.len(), ..Head::empty(FrameKind::Control, 0) };
    let content = [1; 3 + 5 + 2];
    let two = [&control.encode()[..], &ping, &call(3, vec![5, 2]).encode(), &content].concat();
    let refused = Head { message_len: 2, ..Head::empty(FrameKind::Refused, 7) };
    vec![("control-and-call", two), ("refused", [&refused.encode()[..], b"no"].concat())]
}

fn control(bytes: &[u8]) -> Verdict {
    value_survives(bytes, Control::decode, Control::encode)
}

fn control_seeds() -> Vec<Seed> {
    let hello = Hello {
        version_min: 1,
        version_max: 2,
        cluster: ClusterId([7; 16]),
        node: 3,
        cores: 2,
        lanes: 4,
        calls_max: 128,
        bytes_max: 1 << 25,
    };
    vec![
        ("hello", Control::Hello(hello).encode()),
        ("goodbye", Control::Goodbye("the node is stopping".to_owned()).encode()),
        ("ping", Control::Ping(9).encode()),
        ("cancel", Control::Cancel(9).encode()),
    ]
}

fn peer_name(bytes: &[u8]) -> Verdict {
    bytes_survive(bytes, |bytes| {
        let name: PeerName = std::str::from_utf8(bytes).ok()?.parse().ok()?;
        assert_eq!(name::cluster_id(&name.cluster.to_string()), Some(name.cluster));
        Some(name.to_string().into_bytes())
    })
}

fn certificate(bytes: &[u8]) -> Verdict {
    let certificate = CertificateDer::from(bytes);
    let _named = Proven::of_certificate(&certificate);
    accepted(Validity::of_certificate(&certificate))
}

fn certificate_seeds() -> Vec<Seed> {
    let der = |tag: u8, parts: &[&[u8]]| {
        let content = parts.concat();
        [&[tag, content.len() as u8][..], &content].concat()
    };
    let validity = der(0x30, &[&der(0x17, &[b"240229120000Z"]), &der(0x18, &[b"20510101000000Z"])]);
    let fields = [
        der(0xa0, &[&der(0x02, &[&[2]])]),
        der(0x02, &[&[5]]),
        der(0x30, &[]),
        der(0x30, &[]),
        validity,
        der(0x30, &[]),
    ];
    let fields: Vec<&[u8]> = fields.iter().map(Vec::as_slice).collect();
    vec![("validity", der(0x30, &[&der(0x30, &fields)]))]
}

fn revoked_list(bytes: &[u8]) -> Verdict {
    bytes_settle(bytes, |bytes| {
        let serials = revoked::parse(std::str::from_utf8(bytes).ok()?).ok()?;
        // A number without digits is 0, and is written with two.
        let line = |serial: &revoked::Serial| format!("{:0>2}\n", serial.to_string());
        Some(serials.iter().map(line).collect::<String>().into_bytes())
    })
}
