//! Messages between engines: what is encoded comes back, what is damaged, too long or too new is refused.

use super::samples::{
    begin, fragment, fragment_calls, fragment_replies, object, page, put_entry, requests, responses, written,
};
use super::*;
use crate::api::{ListItem, ListPage, StoreError};
use crate::composition::{PAGE_REFERENCES_MAX, PAGES_MAX, PageReference};
use crate::delta::{ChunkName, REFERENCES_PER_DELTA_MAX};
use crate::engine_capnp::{fragment_call, home_request, request, response};
use crate::message::{
    ControlRequest, CoreRequest, HomeRequest, HomeResponse, NodeEntry, NodeState, OpenShard, ShardRequest,
    ShardResponse, TenantSecrets,
};
use capnp::message::Builder;
use kiseki_types::ids::{Generation, Locator, PageId, TenantId};
use kiseki_types::limits::KEY_LEN_BYTES_MAX;
use kiseki_types::peer::MESSAGE_LEN_BYTES_MAX;
use kiseki_types::secret::SecretKey;

/// All of a request, keys included: for tests only.
fn shown(request: &EngineRequest) -> String {
    let body = match &request.body {
        RequestBody::Control(request) => format!("control {request:?}"),
        RequestBody::Home(request) => format!("home {request:?}"),
        RequestBody::Shard(request) => format!("shard {request:?}"),
        RequestBody::Open(open) => format!("open {}", shown_open(open)),
        RequestBody::Core(request) => format!("core {request:?}"),
        RequestBody::Node(request) => format!("node {request:?}"),
    };
    format!("{} {body} {:?}", request.shard, request.stamp)
}

fn shown_open(open: &OpenShard) -> String {
    format!("{} {:?} {}", open.tenant, open.metadata_key.expose(), open.create)
}

fn shown_response(response: &EngineResponse) -> String {
    match response {
        Err(error) => format!("{error:?}"),
        Ok(ResponseBody::Done) => "done".to_owned(),
        Ok(ResponseBody::Control(response, mark)) => format!("control {} {mark:?}", shown_control(response)),
        Ok(ResponseBody::Home(response)) => format!("home {response:?}"),
        Ok(ResponseBody::Shard(response, mark)) => format!("shard {response:?} {mark:?}"),
        Ok(ResponseBody::Looks(looks)) => format!("{looks:?}"),
        Ok(ResponseBody::Hosted(voter)) => format!("hosted {voter}"),
        Ok(ResponseBody::Holdings(held)) => format!("{held:?}"),
        Ok(ResponseBody::Without(without)) => format!("{without:?}"),
        Ok(ResponseBody::MetadataRoom(room)) => format!("{room:?}"),
        Ok(ResponseBody::NotHere { leader, request }) => format!("not here {leader:?} {}", request.is_some()),
    }
}

fn shown_control(response: &ControlResponse) -> String {
    match response {
        ControlResponse::AccessKey(key) => format!("access key {key:?}"),
        ControlResponse::Secrets(TenantSecrets { dedup, kek_epoch, kek, private }) => {
            format!("{dedup:?} {kek_epoch} {:?} {:?}", kek.expose(), private.expose())
        }
        ControlResponse::Tenant(tenant) => format!("{tenant:?}"),
        ControlResponse::Tenants(tenants) => format!("{tenants:?}"),
        ControlResponse::NewAccessKey(id, secret) => format!("new {id} {secret:?}"),
        ControlResponse::AccessKeys(ids) => format!("{ids:?}"),
        ControlResponse::Bucket(bucket) => format!("{bucket:?}"),
        ControlResponse::Buckets(buckets) => format!("{buckets:?}"),
        ControlResponse::Devices(version, records) => format!("{version} {records:?}"),
        ControlResponse::Device(record) => format!("{record:?}"),
        ControlResponse::Nodes(version, entries) => format!("{version} {entries:?}"),
        ControlResponse::Node(entry) => format!("{entry:?}"),
        ControlResponse::ShardKey(open) => shown_open(open),
        ControlResponse::Shards(answer) => format!("{answer:?}"),
    }
}

/// What stands in a message, whichever it is, decodes or is refused; it never panics.
fn decode_all(bytes: &[u8]) -> [bool; 4] {
    [
        decode_request(bytes).is_ok(),
        decode_response(bytes).is_ok(),
        decode_fragment_call(bytes).is_ok(),
        decode_fragment_reply(bytes).is_ok(),
    ]
}

#[test]
fn what_is_said_comes_back_as_it_was() {
    for (name, request) in requests() {
        let bytes = encode_request(&request).unwrap_or_else(|error| panic!("{name}: {error}"));
        let back = decode_request(&bytes).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(shown(&back), shown(&request), "{name}");
        assert_eq!(encode_request(&back).as_ref(), Ok(&bytes), "{name}");
    }
    for (name, response) in responses() {
        let bytes = encode_response(&response).unwrap_or_else(|error| panic!("{name}: {error}"));
        let back = decode_response(&bytes).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(shown_response(&back), shown_response(&response), "{name}");
        assert_eq!(encode_response(&back).as_ref(), Ok(&bytes), "{name}");
    }
    for (name, call) in fragment_calls() {
        let bytes = encode_fragment_call(&call).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(decode_fragment_call(&bytes), Ok(call), "{name}");
    }
    for (name, reply) in fragment_replies() {
        let bytes = encode_fragment_reply(&reply).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(decode_fragment_reply(&bytes), Ok(reply), "{name}");
    }
}

#[test]
fn samples_have_names_of_their_own() {
    let names = |mut names: Vec<&'static str>| {
        let count = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), count);
    };
    names(requests().iter().map(|(name, _)| *name).collect());
    names(responses().iter().map(|(name, _)| *name).collect());
    names(fragment_calls().iter().map(|(name, _)| *name).collect());
    names(fragment_replies().iter().map(|(name, _)| *name).collect());
}

#[test]
fn the_request_is_not_given_back_to_another_node() {
    let request = Some(Box::new(RequestBody::Core(CoreRequest::Forget)));
    let bytes = encode_response(&Ok(ResponseBody::NotHere { leader: Some(NodeId(3)), request })).unwrap();
    let back = decode_response(&bytes).unwrap();
    assert!(matches!(back, Ok(ResponseBody::NotHere { leader: Some(NodeId(3)), request: None })));
}

#[test]
fn i_o5_messages_that_are_cut_changed_or_longer_never_panic() {
    let some = |all: Vec<(&'static str, Vec<u8>)>| all.into_iter().step_by(3);
    let messages: Vec<(&'static str, Vec<u8>)> = some(fuzz::request_seeds())
        .chain(some(fuzz::response_seeds()))
        .chain(fuzz::fragment_call_seeds())
        .chain(fuzz::fragment_reply_seeds())
        .collect();
    for (name, whole) in messages {
        for len in 0..whole.len() {
            assert_eq!(decode_all(&whole[..len]), [false; 4], "{name} cut to {len}");
        }
        assert_eq!(decode_all(&[&whole[..], &[0; 8]].concat()), [false; 4], "{name} with bytes behind it");
        for at in 0..whole.len().min(512) {
            for bits in [1, 0x80, 0xff] {
                let mut changed = whole.clone();
                changed[at] ^= bits;
                let _any = decode_all(&changed);
            }
        }
        // Where the bytes lie does not matter.
        let mut moved = vec![0; whole.len() + 8];
        for shift in 0..8 {
            moved[shift..][..whole.len()].copy_from_slice(&whole);
            assert_eq!(decode_all(&moved[shift..][..whole.len()]), decode_all(&whole), "{name} at {shift}");
        }
    }
}

/// A message whose root says nothing but its version.
fn bare(version: u16, put: impl FnOnce(&mut Builder<capnp::message::HeapAllocator>, u16)) -> Vec<u8> {
    let mut message = Builder::new_default();
    put(&mut message, version);
    capnp::serialize::write_message_to_words(&message)
}

#[test]
fn versions_that_this_release_does_not_speak_are_refused() {
    for (version, refusal) in [
        (0, WireError::Malformed("it has no version".to_owned())),
        (MESSAGE_VERSION + 1, WireError::TooNew { version: MESSAGE_VERSION + 1 }),
    ] {
        let request = bare(version, |message, version| {
            message.init_root::<request::Builder<'_>>().set_version(version);
        });
        assert_eq!(decode_request(&request).err(), Some(refusal.clone()));
        assert_eq!(decode_response(&request).err(), Some(refusal.clone()));
        assert_eq!(decode_fragment_call(&request).err(), Some(refusal.clone()));
        assert_eq!(decode_fragment_reply(&request).err(), Some(refusal));
    }
    let text = WireError::TooNew { version: 9 }.to_string();
    assert!(text.contains("version 9") && text.contains("update this node"), "{text}");
}

#[test]
fn what_is_missing_or_unknown_is_refused() {
    // A union's member is chosen by a number in the data section; a newer release may have more of them.
    let mut call = encode_fragment_call(&FragmentCall::Devices).unwrap();
    let at = call.len() - 16 + 2;
    assert_eq!(call[at], 5, "the number of `devices` stands behind the version, in front of a pointer");
    call[at] = 99;
    assert!(matches!(decode_fragment_call(&call), Err(WireError::Malformed(why)) if why.contains("newer release")));
    let lacking = |put: &dyn Fn(home_request::Builder<'_>)| {
        let mut message = Builder::new_default();
        let mut root = message.init_root::<request::Builder<'_>>();
        root.set_version(MESSAGE_VERSION);
        put(root.init_home());
        decode_request(&capnp::serialize::write_message_to_words(&message)).map(|request| shown(&request))
    };
    let missing = |result: Result<String, WireError>| result.expect_err("it is refused").to_string();
    assert!(missing(lacking(&|mut home| home.set_confirm(&[1; 15]))).contains("15 bytes, 16 needed"));
    assert!(
        missing(lacking(&|home| {
            let _out = home.init_repair();
        }))
        .contains("missing")
    );
    assert!(
        missing(lacking(&|home| {
            let _out = home.init_begin();
        }))
        .contains("0+0")
    );
    let mut message = Builder::new_default();
    let mut root = message.init_root::<fragment_call::Builder<'_>>();
    root.set_version(MESSAGE_VERSION);
    let _out = root.init_release();
    assert!(decode_fragment_call(&capnp::serialize::write_message_to_words(&message)).is_err());
}

/// A node of an earlier release does not say of which node it asks. It removes that node when the answer is "nothing".
#[test]
fn i_d5_holdings_of_no_node_are_refused() {
    let mut message = Builder::new_default();
    let mut root = message.init_root::<request::Builder<'_>>();
    root.set_version(1);
    root.init_core().set_holdings(());
    let refused = decode_request(&capnp::serialize::write_message_to_words(&message));
    assert!(refused.is_err_and(|error| error.to_string().contains("update the node that asks")));
}

#[test]
fn an_error_of_a_later_release_is_an_unknown_outcome_with_its_text() {
    let told = |kind, text: &str| {
        let mut message = Builder::new_default();
        let mut root = message.init_root::<response::Builder<'_>>();
        root.set_version(MESSAGE_VERSION);
        let mut error = root.init_error();
        error.set_kind(kind);
        error.set_text(text);
        decode_response(&capnp::serialize::write_message_to_words(&message)).unwrap().err()
    };
    let unavailable = |reason: &str| Some(StoreError::Unavailable { reason: reason.to_owned() });
    assert_eq!(told(4000, "the quota is used up"), unavailable("the quota is used up"));
    assert_eq!(told(4000, ""), unavailable("another node answers with error 4000"));
    assert_eq!(told(0, "a"), unavailable("a"));
}

#[test]
fn long_texts_for_people_are_cut_where_a_character_ends() {
    let reason = format!("x{}", "é".repeat(REASON_LEN_BYTES_MAX));
    let bytes = encode_response(&Err(StoreError::Damaged { reason })).unwrap();
    let back = decode_response(&bytes).unwrap();
    assert!(matches!(back, Err(StoreError::Damaged { reason }) if reason.len() == REASON_LEN_BYTES_MAX - 1));
}

fn too_large(what: &'static str, body: RequestBody) {
    let refused = encode_request(&EngineRequest { shard: ShardId(1024), body, stamp: None });
    assert!(matches!(refused, Err(WireError::TooLarge { what: found, .. }) if found == what), "{what}: {refused:?}");
}

#[test]
fn i_o5_what_is_over_a_limit_is_not_sent() {
    let name = ChunkName { locator: Locator([1; 32]), generation: Generation(2) };
    let many = || vec![name; REFERENCES_PER_DELTA_MAX + 1];
    let pins: Vec<_> = many().into_iter().map(|name| (name, [0; 16])).collect();
    let shard = |request| RequestBody::Shard(Box::new(request));
    too_large("chunks to begin", RequestBody::Home(begin(PAGE_REFERENCES_MAX + 1)));
    too_large("chunks to settle", RequestBody::Home(HomeRequest::Settle { complete: Vec::new(), abort: pins }));
    too_large("chunks to look up", RequestBody::Home(HomeRequest::Unknown(many())));
    too_large("chunks to move", RequestBody::Home(HomeRequest::Evacuate(many())));
    too_large(
        "pages to let go",
        shard(ShardRequest::CloseRead { pages: vec![PageId([0; 16]); PAGES_MAX + 1], read: None }),
    );
    too_large("bytes of a key", shard(put_entry(&"k".repeat(KEY_LEN_BYTES_MAX + 1))));
    let mut entry = put_entry("k");
    if let ShardRequest::PutEntry { written, .. } = &mut entry {
        written.last = Some((PageId([0; 16]), page(PAGE_REFERENCES_MAX + 1)));
    }
    too_large("references of a page", shard(entry));
    let mut entry = put_entry("k");
    if let ShardRequest::PutEntry { file, .. } = &mut entry {
        file.attributes.insert("name".to_owned(), "v".repeat(17_000));
    }
    too_large("bytes of an attribute", shard(entry));
    let name = "n".repeat(2000);
    too_large("bytes of a name", RequestBody::Control(ControlRequest::CreateAccessKey { tenant: name }));
    let node = |addresses| NodeEntry {
        state: NodeState::Active,
        addresses,
        lanes: 1,
        cores: 1,
        ..NodeEntry::invited(NodeId(1), 0)
    };
    let nodes = |entries| RequestBody::Core(CoreRequest::Nodes { version: 1, entries });
    too_large("nodes", nodes((0..=NODES_MAX).map(|_| node(Vec::new())).collect()));
    too_large("addresses of a node", nodes(vec![node(vec![String::new(); ADDRESSES_MAX + 1])]));
    too_large("bytes of an address", nodes(vec![node(vec!["a".repeat(WORD_LEN_BYTES_MAX + 1)])]));
    let looks = vec![ListItem::Object(object()); 100_001];
    let listing = ShardResponse::Listing(ListPage { items: looks, truncated: false });
    let refused = encode_response(&Ok(ResponseBody::Shard(listing, Mark(1))));
    assert!(matches!(refused, Err(WireError::TooLarge { what: "entries of a listing", .. })), "{refused:?}");
}

#[test]
fn i_o5_a_message_longer_than_a_parcel_takes_is_not_sent_or_read() {
    let items = vec![ListItem::CommonPrefix("p".repeat(1000)); 3000];
    let listing = ShardResponse::Listing(ListPage { items, truncated: false });
    let refused = encode_response(&Ok(ResponseBody::Shard(listing, Mark(1))));
    assert!(matches!(refused, Err(WireError::TooLarge { what: "bytes", limit, .. })
        if limit == MESSAGE_LEN_BYTES_MAX as u64));
    let long = vec![0; MESSAGE_LEN_BYTES_MAX + 8];
    assert!(matches!(decode_request(&long), Err(WireError::OverLimit { what: "bytes", .. })));
    // The most pages that an object can have fit with all that goes with them.
    let mut most = written();
    most.pages = vec![PageReference { page: PageId([1; 16]), len_bytes: 1 }; PAGES_MAX];
    most.loose = vec![PageId([1; 16]); PAGES_MAX];
    most.last = Some((PageId([1; 16]), page(PAGE_REFERENCES_MAX)));
    let mut entry = put_entry("k");
    if let ShardRequest::PutEntry { written, .. } = &mut entry {
        *written = most;
    }
    let request = EngineRequest { shard: ShardId(1024), body: RequestBody::Shard(Box::new(entry)), stamp: None };
    let bytes = encode_request(&request).expect("it fits");
    assert_eq!(shown(&decode_request(&bytes).expect("it is read")), shown(&request));
}

#[test]
fn i_o5_what_came_over_a_limit_is_refused() {
    let home = |put: &dyn Fn(home_request::Builder<'_>)| {
        let mut message = Builder::new_default();
        let mut root = message.init_root::<request::Builder<'_>>();
        root.set_version(MESSAGE_VERSION);
        put(root.init_home());
        decode_request(&capnp::serialize::write_message_to_words(&message)).map(|request| shown(&request))
    };
    let count = REFERENCES_PER_DELTA_MAX as u32 + 1;
    let over = |result: Result<String, WireError>, what| {
        assert!(matches!(&result, Err(WireError::OverLimit { what: found, .. }) if *found == what), "{result:?}");
    };
    over(
        home(&|home| {
            let _out = home.init_settle().init_abort(count);
        }),
        "chunks to settle",
    );
    over(
        home(&|home| {
            let _out = home.init_unknown(count);
        }),
        "chunks to look up",
    );
    over(
        home(&|home| {
            let _out = home.init_evacuate(count);
        }),
        "chunks to move",
    );
    let begun = |chunks| {
        home(&|home| {
            let mut begin = home.init_begin();
            begin.set_data(1);
            let _out = begin.init_chunks(chunks);
        })
    };
    over(begun(PAGE_REFERENCES_MAX as u32 + 1), "chunks to begin");
    assert!(begun(PAGE_REFERENCES_MAX as u32).is_ok());
    let long = home(&|home| {
        let mut begin = home.init_begin();
        begin.set_data(1);
        begin.init_chunks(1).get(0).set_envelope_len_bytes(u32::MAX);
    });
    over(long, "bytes of an envelope");
}

#[test]
fn fragments_that_no_device_holds_are_refused() {
    let refused = |change: &dyn Fn(&mut kiseki_types::fragment::StoredFragment)| {
        let mut fragment = fragment();
        change(&mut fragment);
        let bytes = encode_fragment_call(&FragmentCall::Release { fragment }).expect("it can be said");
        decode_fragment_call(&bytes).expect_err("it is refused").to_string()
    };
    assert!(refused(&|fragment| fragment.meta.key.index = 6).contains("index of a fragment"));
    assert!(refused(&|fragment| fragment.meta.shape.data = 0).contains("0+2"));
    assert!(refused(&|fragment| fragment.meta.payload_len_bytes = 4097).contains("4097"));
    assert!(refused(&|fragment| fragment.meta.payload_len_bytes = 1 << 30).contains("payload"));
    assert!(refused(&|fragment| fragment.meta.envelope_len_bytes = u32::MAX).contains("envelope"));
    assert!(refused(&|fragment| fragment.extent.start.0 = u64::MAX).contains("extent"));
    for range in [0..65 * 4096 + 1, std::ops::Range { start: 9, end: 8 }] {
        let bytes = encode_fragment_call(&FragmentCall::Read { fragment: fragment(), range }).expect("it can be said");
        assert!(decode_fragment_call(&bytes).is_err());
    }
}

#[test]
fn a_device_is_lost_only_in_a_state_that_says_so() {
    use crate::device_record::DeviceUpdate;
    use kiseki_types::fragment::DeviceState;
    let update = DeviceUpdate::Lost { state: DeviceState::Healthy, reason: String::new() };
    let update = ControlRequest::UpdateDevice { device: kiseki_types::ids::DeviceId([1; 16]), update };
    let request = EngineRequest { shard: ShardId::CONTROL, body: RequestBody::Control(update), stamp: None };
    let refused = decode_request(&encode_request(&request).unwrap()).err().expect("it is refused").to_string();
    assert!(refused.contains("healthy"), "{refused}");
}

#[test]
fn i_k8_no_error_shows_a_key() {
    let open = OpenShard { tenant: TenantId(1), metadata_key: SecretKey::take(&mut [b'K'; 32]), create: false };
    let bytes =
        encode_request(&EngineRequest { shard: ShardId(1024), body: RequestBody::Open(open), stamp: None }).unwrap();
    let secret = zeroize::Zeroizing::new("K".repeat(40));
    let key = ControlResponse::AccessKey(Some((TenantId(1), secret)));
    let answer = encode_response(&Ok(ResponseBody::Control(key, Mark(1)))).unwrap();
    for whole in [bytes, answer] {
        for at in 0..whole.len() {
            let mut changed = whole.clone();
            changed[at] ^= 0xff;
            let errors = [
                decode_request(&changed).err().map(|error| format!("{error} {error:?}")),
                decode_response(&changed).err().map(|error| format!("{error} {error:?}")),
            ];
            for error in errors.into_iter().flatten() {
                assert!(!error.contains("KKK") && !error.contains("75, 75"), "{error}");
            }
        }
    }
}

#[test]
fn what_is_said_most_is_short() {
    let len = |body| encode_request(&EngineRequest { shard: ShardId(1024), body, stamp: None }).expect("it fits").len();
    let shard = |request| len(RequestBody::Shard(Box::new(request)));
    let ShardRequest::PutEntry { path, .. } = put_entry("key") else { unreachable!("it is a PutEntry") };
    let name = ChunkName { locator: Locator([1; 32]), generation: Generation(2) };
    let settle = HomeRequest::Settle { complete: vec![(name, [3; 16])], abort: Vec::new() };
    for (what, len, limit) in [
        ("begin", len(RequestBody::Home(begin(1))), 176),
        ("confirm", len(RequestBody::Home(HomeRequest::Confirm([1; 16]))), 88),
        ("settle", len(RequestBody::Home(settle)), 144),
        ("put", shard(put_entry("key")), 536),
        ("head", shard(ShardRequest::Head(path.clone())), 120),
        ("open", shard(ShardRequest::OpenRead { path, read: None }), 120),
    ] {
        assert!(len <= limit, "{what} takes {len} bytes");
    }
    let decision = HomeResponse::Decisions(vec![crate::message::Decision::Miss(Generation(1))]);
    let len = encode_response(&Ok(ResponseBody::Home(decision))).unwrap().len();
    assert!(len <= 88, "a decision takes {len} bytes");
}
