//! What homes are asked and answer.

use super::WireError;
use super::field::{
    array, elements, id_of_words, id_words, locator_of_words, locator_words, needed, put_name, put_names, take_name,
    take_names, take_shape, take_usize,
};
use super::frame::{count, fits, within};
use crate::composition::PAGE_REFERENCES_MAX;
use crate::delta::{ChunkName, REFERENCES_PER_DELTA_MAX};
use crate::engine_capnp::{Collected as WireCollected, RepairCause as WireCause};
use crate::engine_capnp::{begin, begin_chunk, evacuating, home_request, home_response, named_pin};
use crate::evacuation::EvacuationAnswer;
use crate::message::{BeginChunk, Collected, Decision, HomeRequest, HomeResponse, PinId};
use crate::repair_queue::RepairCause;
use capnp::struct_list;
use kiseki_types::ids::{Generation, MasterEpoch, PinEpoch, PoolId, ShardId};
use kiseki_types::limits::ENVELOPE_LEN_BYTES_MAX;

/// Chunks that one call begins.
const BEGUN_MAX: usize = PAGE_REFERENCES_MAX;

/// Generations that one call names: more are told in several.
const NAMED_MAX: usize = REFERENCES_PER_DELTA_MAX;

/// Writes a request.
pub(super) fn put_request(mut out: home_request::Builder<'_>, request: &HomeRequest) -> Result<(), WireError> {
    match request {
        HomeRequest::Begin { shard, pin_epoch, pool, shape, master_epoch, chunks } => {
            let mut out = out.init_begin();
            out.set_shard(shard.0);
            out.set_pin_epoch(pin_epoch.0);
            out.set_pool(pool.0);
            out.set_data(shape.data);
            out.set_parity(shape.parity);
            out.set_master_epoch(master_epoch.0);
            fits("chunks to begin", chunks.len(), BEGUN_MAX)?;
            put_begun(out.init_chunks(count(chunks.len())), chunks);
        }
        HomeRequest::Confirm(pin) => out.set_confirm(pin),
        HomeRequest::Settle { complete, abort } => {
            let mut out = out.init_settle();
            fits("chunks to settle", complete.len().max(abort.len()), NAMED_MAX)?;
            if !complete.is_empty() {
                put_pins(out.reborrow().init_complete(count(complete.len())), complete);
            }
            if !abort.is_empty() {
                put_pins(out.init_abort(count(abort.len())), abort);
            }
        }
        HomeRequest::Collect(name) => put_name(out.init_collect(), name),
        HomeRequest::Unknown(names) => {
            fits("chunks to look up", names.len(), NAMED_MAX)?;
            put_names(out.init_unknown(count(names.len())), names);
        }
        HomeRequest::Repair { name, margin, cause } => {
            let mut out = out.init_repair();
            put_name(out.reborrow().init_name(), name);
            out.set_margin(*margin);
            out.set_cause(match cause {
                RepairCause::Missing => WireCause::Missing,
                RepairCause::Unreadable => WireCause::Unreadable,
            });
        }
        HomeRequest::Evacuate(names) => {
            fits("chunks to move", names.len(), NAMED_MAX)?;
            put_names(out.init_evacuate(count(names.len())), names);
        }
        HomeRequest::Adopt { shard, names } => {
            let mut out = out.init_adopt();
            out.set_shard(shard.0);
            fits("chunks to adopt", names.len(), NAMED_MAX)?;
            put_names(out.init_names(count(names.len())), names);
        }
    }
    Ok(())
}

fn put_begun(mut out: struct_list::Builder<'_, begin_chunk::Owned>, chunks: &[BeginChunk]) {
    for (at, chunk) in chunks.iter().enumerate() {
        let mut out = out.reborrow().get(count(at));
        let ([a, b, c, d], [low, high]) = (locator_words(&chunk.locator), id_words(&chunk.pin));
        out.set_a(a);
        out.set_b(b);
        out.set_c(c);
        out.set_d(d);
        out.set_pin_low(low);
        out.set_pin_high(high);
        out.set_envelope_len_bytes(chunk.envelope_len_bytes);
    }
}

fn put_pins(mut out: struct_list::Builder<'_, named_pin::Owned>, pins: &[(ChunkName, PinId)]) {
    for (at, (name, pin)) in pins.iter().enumerate() {
        let mut out = out.reborrow().get(count(at));
        let ([a, b, c, d], [low, high]) = (locator_words(&name.locator), id_words(pin));
        out.set_a(a);
        out.set_b(b);
        out.set_c(c);
        out.set_d(d);
        out.set_generation(name.generation.0);
        out.set_pin_low(low);
        out.set_pin_high(high);
    }
}

/// A request.
pub(super) fn take_request(request: home_request::Reader<'_>) -> Result<HomeRequest, WireError> {
    Ok(match request.which()? {
        home_request::Begin(begin) => take_begin(begin?)?,
        home_request::Confirm(pin) => HomeRequest::Confirm(array("a pin", pin)?),
        home_request::Settle(settle) => {
            let settle = settle?;
            let pins = |list| -> Result<Vec<(ChunkName, PinId)>, WireError> {
                Ok(elements("chunks to settle", NAMED_MAX, list)?.map(take_pin).collect())
            };
            HomeRequest::Settle { complete: pins(settle.get_complete())?, abort: pins(settle.get_abort())? }
        }
        home_request::Collect(name) => {
            needed("the chunk to collect", request.has_collect())?;
            HomeRequest::Collect(take_name(name?))
        }
        home_request::Unknown(names) => HomeRequest::Unknown(take_names("chunks to look up", NAMED_MAX, names)?),
        home_request::Repair(repair) => {
            let repair = repair?;
            needed("the chunk to repair", repair.has_name())?;
            let cause = match repair.get_cause()? {
                WireCause::Missing => RepairCause::Missing,
                WireCause::Unreadable => RepairCause::Unreadable,
            };
            HomeRequest::Repair { name: take_name(repair.get_name()?), margin: repair.get_margin(), cause }
        }
        home_request::Evacuate(names) => HomeRequest::Evacuate(take_names("chunks to move", NAMED_MAX, names)?),
        home_request::Adopt(adopt) => {
            let adopt = adopt?;
            let names = take_names("chunks to adopt", NAMED_MAX, adopt.get_names())?;
            HomeRequest::Adopt { shard: ShardId(adopt.get_shard()), names }
        }
    })
}

fn take_begin(begin: begin::Reader<'_>) -> Result<HomeRequest, WireError> {
    let chunk = |chunk: begin_chunk::Reader<'_>| {
        let len = u64::from(chunk.get_envelope_len_bytes());
        within("bytes of an envelope", len, ENVELOPE_LEN_BYTES_MAX as u64)?;
        Ok(BeginChunk {
            locator: locator_of_words([chunk.get_a(), chunk.get_b(), chunk.get_c(), chunk.get_d()]),
            envelope_len_bytes: chunk.get_envelope_len_bytes(),
            pin: id_of_words(chunk.get_pin_low(), chunk.get_pin_high()),
        })
    };
    let chunks = elements("chunks to begin", BEGUN_MAX, begin.get_chunks())?.map(chunk);
    Ok(HomeRequest::Begin {
        shard: ShardId(begin.get_shard()),
        pin_epoch: PinEpoch(begin.get_pin_epoch()),
        pool: PoolId(begin.get_pool()),
        shape: take_shape(begin.get_data(), begin.get_parity())?,
        master_epoch: MasterEpoch(begin.get_master_epoch()),
        chunks: chunks.collect::<Result<_, WireError>>()?,
    })
}

fn take_pin(pin: named_pin::Reader<'_>) -> (ChunkName, PinId) {
    let locator = locator_of_words([pin.get_a(), pin.get_b(), pin.get_c(), pin.get_d()]);
    let name = ChunkName { locator, generation: Generation(pin.get_generation()) };
    (name, id_of_words(pin.get_pin_low(), pin.get_pin_high()))
}

/// Writes a response.
pub(super) fn put_response(mut out: home_response::Builder<'_>, response: &HomeResponse) -> Result<(), WireError> {
    match response {
        HomeResponse::Decisions(decisions) => {
            fits("decisions", decisions.len(), BEGUN_MAX)?;
            let mut list = out.init_decisions(count(decisions.len()));
            for (at, decision) in decisions.iter().enumerate() {
                let mut out = list.reborrow().get(count(at));
                let (is_hit, generation) = match decision {
                    Decision::Hit(generation) => (true, generation),
                    Decision::Miss(generation) => (false, generation),
                };
                out.set_is_hit(is_hit);
                out.set_generation(generation.0);
            }
        }
        HomeResponse::Collected(collected) => out.set_collected(match collected {
            Collected::Freed => WireCollected::Freed,
            Collected::Named => WireCollected::Named,
            Collected::Busy => WireCollected::Busy,
        }),
        HomeResponse::Unknown(names) => {
            fits("unknown chunks", names.len(), NAMED_MAX)?;
            put_names(out.init_unknown(count(names.len())), names);
        }
        HomeResponse::Evacuating(answer) => put_evacuating(out.init_evacuating(), answer)?,
    }
    Ok(())
}

fn put_evacuating(mut out: evacuating::Builder<'_>, answer: &EvacuationAnswer) -> Result<(), WireError> {
    let EvacuationAnswer { unknown, refused, waiting, devices_wanted, no_room } = answer;
    fits("chunks that can't be moved", unknown.len().max(refused.len()), NAMED_MAX)?;
    out.set_waiting(*waiting as u64);
    out.set_devices_wanted(*devices_wanted as u64);
    out.set_no_room(*no_room);
    put_names(out.reborrow().init_unknown(count(unknown.len())), unknown);
    put_names(out.init_refused(count(refused.len())), refused);
    Ok(())
}

/// A response.
pub(super) fn take_response(response: home_response::Reader<'_>) -> Result<HomeResponse, WireError> {
    Ok(match response.which()? {
        home_response::Decisions(decisions) => {
            let decisions = elements("decisions", BEGUN_MAX, decisions)?.map(|decision| {
                let generation = Generation(decision.get_generation());
                if decision.get_is_hit() { Decision::Hit(generation) } else { Decision::Miss(generation) }
            });
            HomeResponse::Decisions(decisions.collect())
        }
        home_response::Collected(collected) => HomeResponse::Collected(match collected? {
            WireCollected::Freed => Collected::Freed,
            WireCollected::Named => Collected::Named,
            WireCollected::Busy => Collected::Busy,
        }),
        home_response::Unknown(names) => HomeResponse::Unknown(take_names("unknown chunks", NAMED_MAX, names)?),
        home_response::Evacuating(answer) => {
            let answer = answer?;
            HomeResponse::Evacuating(EvacuationAnswer {
                unknown: take_names("unknown chunks", NAMED_MAX, answer.get_unknown())?,
                refused: take_names("refused chunks", NAMED_MAX, answer.get_refused())?,
                waiting: take_usize("stripes that wait", answer.get_waiting())?,
                devices_wanted: take_usize("devices wanted", answer.get_devices_wanted())?,
                no_room: answer.get_no_room(),
            })
        }
    })
}
