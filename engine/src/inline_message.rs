//! What a shard is asked and answers about its inline threshold. Byte layout: `docs/formats/engine-messages.md`.

use crate::inline_threshold::Threshold;
use crate::metadata_room::MetadataBudget;
use kiseki_types::codec::{CodecError, Reader, Writer};
use kiseki_types::ids::NodeId;

/// Version of these messages.
const FORMAT: u8 = 1;

/// Voters that an answer names.
const VOTERS_MAX: usize = 64;

/// What a shard is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InlineRequest {
    /// What is your threshold, and why?
    Show,
    /// Have this one from now on. Refused where a voter has no room for it.
    Set {
        /// Bytes; `None`: as much as there is room for.
        len_bytes: Option<u32>,
    },
    /// Have no higher one than this, which the shard has that gives keys to this one.
    Lower(Threshold),
}

/// What a shard's leader knows of a voter's metadata directories.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VoterRoom {
    /// The voter's node.
    pub node: NodeId,
    /// What its directories have room for; `None`: it has not said.
    pub budget: Option<MetadataBudget>,
    /// Replicas of tenants' shards there, which share it.
    pub replicas: u64,
    /// How long ago it said so.
    pub heard_ms_ago: u64,
}

impl VoterRoom {
    /// Bytes of content that this shard may still store inline there.
    #[must_use]
    pub fn per_shard(&self) -> Option<u64> {
        self.budget.map(|budget| budget.content_bytes / self.replicas.max(1))
    }

    /// The voter with the least room, of those that have said what they have (I-SF1).
    #[must_use]
    pub fn least(voters: &[VoterRoom]) -> Option<&VoterRoom> {
        voters.iter().filter(|voter| voter.budget.is_some()).min_by_key(|voter| voter.per_shard())
    }
}

/// A shard's threshold, and where it comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InlineView {
    /// Who leads the shard.
    pub leader: NodeId,
    /// What is recorded.
    pub threshold: Threshold,
    /// What holds just now: the leader takes no more than the lowest while its own directories are over their hard limit.
    pub effective_len_bytes: u32,
    /// What there is room for; `None` while no voter has said anything.
    pub supported_len_bytes: Option<u32>,
    /// The lowest that the leader lets it be.
    pub floor_len_bytes: u32,
    /// The highest.
    pub ceiling_len_bytes: u32,
    /// Objects that are expected.
    pub objects_expected: u64,
    /// Whether all that are there have been counted for that since the leader leads.
    pub is_counted: bool,
    /// Bytes taken inline in the last ten seconds.
    pub window_bytes: u64,
    /// Bytes a second that it takes; 0: none.
    pub bytes_per_second_max: u64,
    /// What was refused in this term, because of its length, the rate, or full directories.
    pub refused: u64,
    /// The voters.
    pub voters: Vec<VoterRoom>,
}

impl InlineRequest {
    /// The bytes of a message.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut writer = Writer::new();
        writer.u8(FORMAT);
        match self {
            InlineRequest::Show => writer.u8(0),
            InlineRequest::Set { len_bytes } => {
                writer.u8(1).u8(u8::from(len_bytes.is_some())).u32(len_bytes.unwrap_or(0))
            }
            InlineRequest::Lower(threshold) => {
                threshold.put(writer.u8(2));
                &mut writer
            }
        };
        writer.finish()
    }

    /// Back from those.
    pub fn decode(bytes: &[u8]) -> Result<InlineRequest, CodecError> {
        let mut reader = begin("request about inline content", bytes)?;
        let request = match reader.u8()? {
            0 => InlineRequest::Show,
            1 => {
                let is_said = reader.flag()?;
                let len_bytes = reader.u32()?;
                InlineRequest::Set { len_bytes: is_said.then_some(len_bytes) }
            }
            2 => InlineRequest::Lower(Threshold::take(&mut reader)?),
            other => return Err(reader.unknown(u64::from(other))),
        };
        reader.end()?;
        Ok(request)
    }
}

impl InlineView {
    /// The bytes of a message.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut writer = Writer::new();
        writer.u8(FORMAT).u64(self.leader.0);
        self.threshold.put(&mut writer);
        writer.u32(self.effective_len_bytes);
        writer.u8(u8::from(self.supported_len_bytes.is_some())).u32(self.supported_len_bytes.unwrap_or(0));
        writer.u32(self.floor_len_bytes).u32(self.ceiling_len_bytes).u64(self.objects_expected);
        writer.u8(u8::from(self.is_counted));
        writer.u64(self.window_bytes).u64(self.bytes_per_second_max).u64(self.refused);
        let voters = &self.voters[..self.voters.len().min(VOTERS_MAX)];
        writer.u32(voters.len() as u32);
        for voter in voters {
            writer.u64(voter.node.0).u64(voter.replicas).u64(voter.heard_ms_ago).u8(u8::from(voter.budget.is_some()));
            if let Some(budget) = &voter.budget {
                writer
                    .u8(budget.fill_percent)
                    .u8(budget.soft_percent)
                    .u8(budget.hard_percent)
                    .u64(budget.content_bytes);
            }
        }
        writer.finish()
    }

    /// Back from those.
    pub fn decode(bytes: &[u8]) -> Result<InlineView, CodecError> {
        let mut reader = begin("answer about inline content", bytes)?;
        let leader = NodeId(reader.u64()?);
        let threshold = Threshold::take(&mut reader)?;
        let effective_len_bytes = reader.u32()?;
        let is_known = reader.flag()?;
        let supported = reader.u32()?;
        let mut view = InlineView {
            leader,
            threshold,
            effective_len_bytes,
            supported_len_bytes: is_known.then_some(supported),
            floor_len_bytes: reader.u32()?,
            ceiling_len_bytes: reader.u32()?,
            objects_expected: reader.u64()?,
            is_counted: reader.flag()?,
            window_bytes: reader.u64()?,
            bytes_per_second_max: reader.u64()?,
            refused: reader.u64()?,
            voters: Vec::new(),
        };
        for _ in 0..reader.count(VOTERS_MAX)? {
            let (node, replicas, heard_ms_ago) = (NodeId(reader.u64()?), reader.u64()?, reader.u64()?);
            let budget = match reader.flag()? {
                false => None,
                true => Some(MetadataBudget {
                    fill_percent: reader.u8()?,
                    soft_percent: reader.u8()?,
                    hard_percent: reader.u8()?,
                    content_bytes: reader.u64()?,
                }),
            };
            view.voters.push(VoterRoom { node, budget, replicas, heard_ms_ago });
        }
        reader.end()?;
        Ok(view)
    }
}

fn begin<'a>(what: &'static str, bytes: &'a [u8]) -> Result<Reader<'a>, CodecError> {
    let mut reader = Reader::new(what, bytes);
    match reader.u8()? {
        FORMAT => Ok(reader),
        other => Err(reader.unknown(u64::from(other))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::samples::inline_view;

    #[test]
    fn i_sf1_the_voter_with_the_least_room_counts_and_shards_share_it() {
        let voter = |node, content_bytes, replicas| {
            let budget = Some(MetadataBudget { fill_percent: 1, soft_percent: 50, hard_percent: 75, content_bytes });
            VoterRoom { node: NodeId(node), budget, replicas, heard_ms_ago: 0 }
        };
        let silent = VoterRoom { budget: None, ..voter(1, 0, 0) };
        let voters = [silent, voter(2, 900, 1), voter(3, 1000, 4), voter(4, 700, 0)];
        let least = VoterRoom::least(&voters).expect("three have said something");
        assert_eq!((least.node, least.per_shard()), (NodeId(3), Some(250)));
        assert_eq!(VoterRoom::least(&voters[3..]).and_then(VoterRoom::per_shard), Some(700));
        assert_eq!(VoterRoom::least(&voters[..1]), None);
    }

    #[test]
    fn messages_come_back_and_cut_ones_do_not() {
        for request in [
            InlineRequest::Show,
            InlineRequest::Set { len_bytes: None },
            InlineRequest::Set { len_bytes: Some(9) },
            InlineRequest::Lower(Threshold { len_bytes: 9, ..Threshold::default() }),
        ] {
            let bytes = request.encode();
            assert_eq!(InlineRequest::decode(&bytes), Ok(request));
            (0..bytes.len()).for_each(|len| assert!(InlineRequest::decode(&bytes[..len]).is_err(), "{len}"));
        }
        for view in [inline_view(), InlineView { supported_len_bytes: None, ..inline_view() }] {
            let bytes = view.encode();
            assert_eq!(InlineView::decode(&bytes).as_ref(), Ok(&view));
            (0..bytes.len()).for_each(|len| assert!(InlineView::decode(&bytes[..len]).is_err(), "{len}"));
            assert!(InlineView::decode(&[&bytes[..], &[0]].concat()).is_err());
        }
    }
}
