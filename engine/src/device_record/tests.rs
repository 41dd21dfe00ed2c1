//! Of records: which changes are taken, and what they leave.

use super::*;

const DEVICE: DeviceId = DeviceId([7; 16]);

fn opened() -> DeviceUpdate {
    let place = DevicePlace { path: "/dev/d0".to_owned(), pool: PoolId(0), class: "file".to_owned() };
    DeviceUpdate::Opened { place, actor: DeviceActor::Node, reason: "opened".to_owned() }
}

fn lost(state: DeviceState) -> DeviceUpdate {
    DeviceUpdate::Lost { state, reason: "gone".to_owned() }
}

fn evacuate(actor: DeviceActor, cause: Option<WearCause>) -> DeviceUpdate {
    DeviceUpdate::Evacuate { actor, reason: "drain".to_owned(), cause }
}

fn cancel() -> DeviceUpdate {
    DeviceUpdate::CancelEvacuation { reason: "keep it".to_owned() }
}

fn remove() -> DeviceUpdate {
    DeviceUpdate::Remove { reason: "retired".to_owned(), seen: None }
}

/// The record after all of these, each at the time of its number; updates that change nothing are skipped.
fn after(updates: Vec<DeviceUpdate>) -> Result<DeviceRecord, StoreError> {
    let mut record = None;
    for (at, update) in updates.into_iter().enumerate() {
        record = DeviceRecord::after(record.as_ref(), DEVICE, update, at as u64)?.or(record);
    }
    Ok(record.expect("the first update makes a record"))
}

#[test]
fn i_d2_every_change_keeps_time_reason_and_actor() {
    use DeviceState::{Evacuating, Failed, Healthy, Removed, Unreachable};
    let by_operator = evacuate(DeviceActor::Operator, None);
    let cases = [
        (vec![opened()], Healthy),
        (vec![opened(), lost(Failed), opened()], Healthy),
        (vec![opened(), lost(Failed), lost(Unreachable)], Unreachable),
        (vec![opened(), by_operator.clone()], Evacuating),
        (vec![opened(), by_operator.clone(), lost(Failed)], Failed),
        (vec![opened(), by_operator.clone(), lost(Unreachable), opened()], Evacuating),
        (vec![opened(), by_operator.clone(), cancel()], Healthy),
        (vec![opened(), by_operator.clone(), lost(Failed), cancel(), opened()], Healthy),
        (vec![opened(), by_operator, remove()], Removed),
        (vec![opened(), remove(), lost(Failed)], Removed),
    ];
    for (updates, wanted) in cases {
        let text = format!("{updates:?}");
        let record = after(updates).unwrap();
        assert_eq!(record.state(), wanted, "I-D2: {text}");
        assert!(record.history().is_sorted_by_key(|event| event.at_unix_ms), "I-D2: {text}");
        assert!(record.history().iter().all(|event| !event.reason.is_empty()), "I-D2: {text}");
    }
    let record = after(vec![opened(), evacuate(DeviceActor::Wear, Some(WearCause::Used))]).unwrap();
    let last = record.last();
    assert_eq!((last.at_unix_ms, last.actor, last.reason.as_str()), (1, DeviceActor::Wear, "drain"), "I-D2");
}

#[test]
fn i_d2_what_a_state_does_not_allow_is_refused_and_says_why() {
    let by_operator = || evacuate(DeviceActor::Operator, None);
    for (updates, words) in [
        (vec![by_operator()], "record of device"),
        (vec![opened(), remove(), opened()], "format it anew"),
        (vec![opened(), remove(), by_operator()], "was removed"),
        (vec![opened(), remove(), remove()], "was removed"),
        (vec![opened(), cancel()], "not being evacuated"),
        (vec![opened(), lost(DeviceState::Failed), by_operator()], "repair rebuilds"),
    ] {
        let text = format!("{updates:?}");
        let error = after(updates).expect_err(&text);
        assert!(error.to_string().contains(words), "{text}: {error}");
    }
    let twice = after(vec![opened(), by_operator(), by_operator()]).unwrap();
    assert_eq!(twice.history().len(), 2, "asked for twice is asked for once");
}

#[test]
fn i_d3_what_an_operator_cancelled_is_not_begun_again_for_the_same_cause() {
    let worn = || evacuate(DeviceActor::Wear, Some(WearCause::Used));
    let record = after(vec![opened(), worn(), cancel(), worn()]).unwrap();
    assert_eq!(record.state(), DeviceState::Degraded, "I-D3");
    assert!(record.is_cancelled(WearCause::Used) && !record.is_cancelled(WearCause::ReadErrors));
    let other = evacuate(DeviceActor::Wear, Some(WearCause::ReadErrors));
    let record = after(vec![opened(), worn(), cancel(), other]).unwrap();
    assert_eq!(record.state(), DeviceState::Evacuating, "I-D3: another cause is news");
    let by_operator = evacuate(DeviceActor::Operator, None);
    let record = after(vec![opened(), worn(), cancel(), by_operator]).unwrap();
    assert_eq!(record.state(), DeviceState::Evacuating, "an operator may change their mind");
    let record = after(vec![opened(), worn(), cancel(), lost(DeviceState::Failed), opened()]).unwrap();
    assert_eq!(record.state(), DeviceState::Degraded, "a restart does not make it healthy");
}

#[test]
fn a_record_comes_back_is_bounded_and_damage_is_refused() {
    let mut updates = vec![opened()];
    for _ in 0..DEVICE_EVENTS_MAX {
        updates.extend([lost(DeviceState::Failed), opened()]);
    }
    updates.push(DeviceUpdate::ReadErrors(9));
    let long = "ä".repeat(REASON_LEN_BYTES_MAX);
    updates.push(DeviceUpdate::Evacuate { actor: DeviceActor::Wear, reason: long, cause: Some(WearCause::Used) });
    let record = after(updates).unwrap();
    assert_eq!(record.history().len(), DEVICE_EVENTS_MAX, "I-O5");
    assert_eq!(record.last().reason.len(), REASON_LEN_BYTES_MAX, "I-O5");
    let bytes = record.encode();
    assert_eq!(DeviceRecord::decode(DEVICE, &bytes).unwrap(), record);
    for len in 0..bytes.len() {
        assert!(DeviceRecord::decode(DEVICE, &bytes[..len]).is_err(), "cut to {len}");
    }
    assert!(DeviceRecord::decode(DEVICE, &[&[9], &bytes[1..]].concat()).is_err(), "another format");
    assert!(DeviceRecord::decode(DEVICE, &[&bytes[..], &[0]].concat()).is_err(), "something behind it");
}

#[test]
fn i_d5_a_device_that_was_taken_back_since_it_was_looked_at_is_not_removed() {
    let evacuating = after(vec![opened(), evacuate(DeviceActor::Operator, None)]).unwrap();
    let seen = DeviceUpdate::Remove { reason: "retired".to_owned(), seen: Some(evacuating.last().clone()) };
    let kept = DeviceRecord::after(Some(&evacuating), DEVICE, cancel(), 5).unwrap().unwrap();
    let error = DeviceRecord::after(Some(&kept), DEVICE, seen.clone(), 6).unwrap_err();
    assert!(error.to_string().contains("healthy now"), "I-D5: {error}");
    let drained = DeviceRecord::after(Some(&kept), DEVICE, evacuate(DeviceActor::Operator, None), 7).unwrap().unwrap();
    assert!(
        DeviceRecord::after(Some(&drained), DEVICE, seen.clone(), 8).is_err(),
        "I-D5: another drain is another look"
    );
    let removed = DeviceRecord::after(Some(&evacuating), DEVICE, seen, 6).unwrap().unwrap();
    assert_eq!(removed.state(), DeviceState::Removed);
}
