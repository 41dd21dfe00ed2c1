//! What one key may hold: a register with the writes that are known to it, as a linearizable store must behave.
//!
//! Every write has a start and, once it is known that it happened, a time by which it had happened: its
//! acknowledgement, or the end of the first read that saw it. A write that got no answer may happen at any time until
//! the next power cut. A read may return a write unless another one, begun after this one had happened, had happened
//! before the read began.

use crate::content::Content;

/// Logical time of a run: each begin and each end of an operation is a tick of its own.
pub type Tick = u64;

/// Number of a write; it travels in the object's attributes.
pub type WriteId = u64;

/// What a write leaves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    /// No object (or no bucket).
    Absent,
    /// An object: its parts' contents one after the other; a plain one has exactly one part.
    Object(Vec<Content>),
}

impl Value {
    /// Bytes in all.
    #[must_use]
    pub fn len_bytes(&self) -> u64 {
        match self {
            Value::Absent => 0,
            Value::Object(parts) => parts.iter().map(Content::len).sum(),
        }
    }
}

/// What a write was bound to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bound {
    /// Nothing.
    Free,
    /// There is no object.
    IfAbsent,
    /// The object is that of this write.
    IfMatch(WriteId),
}

/// One write.
#[derive(Clone, Debug)]
pub struct Write {
    /// Its number.
    pub id: WriteId,
    /// What it leaves.
    pub value: Value,
    /// What it was bound to.
    pub bound: Bound,
    /// When it began.
    pub start: Tick,
    /// By when it is known to have happened.
    pub happened_by: Option<Tick>,
}

/// The writes to one key that may still matter.
#[derive(Debug)]
pub struct Register {
    writes: Vec<Write>,
}

impl Default for Register {
    fn default() -> Register {
        Register::holding(Write { id: 0, value: Value::Absent, bound: Bound::Free, start: 0, happened_by: Some(0) })
    }
}

impl Register {
    fn holding(write: Write) -> Register {
        Register { writes: vec![write] }
    }

    /// A write begins.
    pub fn begin(&mut self, id: WriteId, value: Value, bound: Bound, now: Tick) {
        self.writes.push(Write { id, value, bound, start: now, happened_by: None });
    }

    /// A write is known to have happened. Returns what is wrong with that, if anything.
    pub fn happened(&mut self, id: WriteId, now: Tick) -> Option<String> {
        let write = self.writes.iter_mut().find(|write| write.id == id).expect("it was begun");
        write.happened_by = Some(write.happened_by.unwrap_or(now).min(now));
        let write = write.clone();
        if !self.bound_could_hold(&write, now) {
            return Some(format!("write {id} happened though its condition {:?} did not hold", write.bound));
        }
        self.rival(&write, now)
            .map(|rival| format!("writes {id} and {rival} both happened under the condition {:?}", write.bound))
    }

    /// A write is known not to have happened.
    pub fn refused(&mut self, id: WriteId) {
        self.writes.retain(|write| write.id != id || write.happened_by.is_some());
    }

    /// Whether the condition of a write could hold at some time while it ran.
    fn bound_could_hold(&self, write: &Write, now: Tick) -> bool {
        let mut others = self.possible(write.start, now).filter(|other| other.id != write.id);
        match write.bound {
            Bound::Free => true,
            Bound::IfAbsent => others.any(|other| other.value == Value::Absent),
            Bound::IfMatch(id) => others.any(|other| other.id == id),
        }
    }

    /// Another write that can't have happened under the same condition.
    fn rival(&self, write: &Write, now: Tick) -> Option<WriteId> {
        let mut same = self
            .writes
            .iter()
            .filter(|other| other.id != write.id && other.bound == write.bound && other.happened_by.is_some());
        match write.bound {
            Bound::Free => None,
            // The object of a write is there once: whoever replaces it first has it alone.
            Bound::IfMatch(_) => same.next().map(|other| other.id),
            // Between two creations there must be room for a removal.
            Bound::IfAbsent => same
                .find(|other| {
                    let from = other.start.min(write.start);
                    !self.writes.iter().any(|gap| {
                        gap.value == Value::Absent
                            && gap.id != 0
                            && gap.start < now
                            && gap.happened_by.is_none_or(|by| by > from)
                    })
                })
                .map(|other| other.id),
        }
    }

    /// Writes that a read from `from` to `to` may return.
    pub fn possible(&self, from: Tick, to: Tick) -> impl Iterator<Item = &Write> {
        self.writes.iter().filter(move |write| {
            let replaced = |by: &Write| {
                let happened_before = write.happened_by.is_some_and(|own| own < by.start);
                happened_before && by.happened_by.is_some_and(|happened| happened < from)
            };
            write.start < to && !self.writes.iter().any(replaced)
        })
    }

    /// Whether a read from `from` to `to` may find no object.
    #[must_use]
    pub fn may_be_absent(&self, from: Tick, to: Tick) -> bool {
        self.possible(from, to).any(|write| write.value == Value::Absent)
    }

    /// Whether a read from `from` to `to` may find an object.
    #[must_use]
    pub fn may_be_present(&self, from: Tick, to: Tick) -> bool {
        self.possible(from, to).any(|write| write.value != Value::Absent)
    }

    /// The write of that number, if a read from `from` to `to` may return it.
    #[must_use]
    pub fn find(&self, id: WriteId, from: Tick, to: Tick) -> Option<&Write> {
        self.possible(from, to).find(|write| write.id == id)
    }

    /// A read that ended at `now` returned this write: so it had happened, and no later read may go back behind it.
    pub fn seen(&mut self, id: WriteId, now: Tick) -> Option<String> {
        self.happened(id, now)
    }

    /// After a power cut the first read decides between what was possible; nothing else can happen any more.
    pub fn settle(&mut self, id: Option<WriteId>, now: Tick) {
        let kept = id.and_then(|id| self.writes.iter().find(|write| write.id == id).cloned());
        *self = match kept {
            Some(write) => Register::holding(Write { bound: Bound::Free, happened_by: Some(now), ..write }),
            None => Register::holding(Write {
                id: 0,
                value: Value::Absent,
                bound: Bound::Free,
                start: now,
                happened_by: Some(now),
            }),
        };
    }

    /// Whether the only thing known is this write.
    #[must_use]
    pub fn holds(&self, id: WriteId) -> bool {
        matches!(self.writes.as_slice(), [write] if write.id == id)
    }

    /// Short text of what was possible, for reports.
    #[must_use]
    pub fn describe(&self, from: Tick, to: Tick) -> String {
        let one = |write: &Write| match &write.value {
            Value::Absent => format!("absent({})", write.id),
            value => format!("write {} of {} bytes", write.id, value.len_bytes()),
        };
        self.possible(from, to).map(one).collect::<Vec<_>>().join(" or ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object() -> Value {
        Value::Object(Vec::new())
    }

    fn ids(register: &Register, from: Tick, to: Tick) -> Vec<WriteId> {
        register.possible(from, to).map(|write| write.id).collect()
    }

    #[test]
    fn an_acknowledged_write_replaces_what_was_there() {
        let mut register = Register::default();
        register.begin(1, object(), Bound::Free, 10);
        assert_eq!(ids(&register, 11, 12), [0, 1], "in flight: old or new");
        assert_eq!(register.happened(1, 13), None);
        assert_eq!(ids(&register, 12, 14), [0, 1], "a read that began before");
        assert_eq!(ids(&register, 14, 15), [1]);
    }

    #[test]
    fn of_two_writes_at_once_either_may_be_last() {
        let mut register = Register::default();
        register.begin(1, object(), Bound::Free, 10);
        register.begin(2, object(), Bound::Free, 11);
        register.happened(1, 12);
        register.happened(2, 13);
        assert_eq!(ids(&register, 14, 15), [1, 2]);
    }

    #[test]
    fn an_unanswered_write_may_happen_later_but_what_was_seen_does_not_go_back() {
        let mut register = Register::default();
        register.begin(1, object(), Bound::Free, 10);
        assert_eq!(ids(&register, 20, 21), [0, 1]);
        register.seen(1, 22);
        assert_eq!(ids(&register, 23, 24), [1]);
    }

    #[test]
    fn an_unanswered_write_can_come_after_a_later_one() {
        let mut register = Register::default();
        register.begin(1, object(), Bound::Free, 10);
        register.begin(2, Value::Absent, Bound::Free, 12);
        register.happened(2, 13);
        assert_eq!(ids(&register, 14, 15), [1, 2]);
    }

    #[test]
    fn after_a_cut_the_first_read_decides() {
        let mut register = Register::default();
        register.begin(1, object(), Bound::Free, 10);
        register.begin(2, object(), Bound::Free, 11);
        register.settle(Some(2), 20);
        assert_eq!(ids(&register, 21, 22), [2]);
        register.begin(3, object(), Bound::Free, 23);
        register.settle(None, 30);
        assert!(register.may_be_absent(31, 32) && !register.may_be_present(31, 32));
    }

    #[test]
    fn of_two_creations_one_is_too_many_unless_a_removal_fits_between() {
        let mut register = Register::default();
        register.begin(1, object(), Bound::IfAbsent, 10);
        register.begin(2, object(), Bound::IfAbsent, 11);
        assert_eq!(register.happened(1, 12), None);
        assert!(register.happened(2, 13).is_some());

        let mut register = Register::default();
        register.begin(1, object(), Bound::IfAbsent, 10);
        register.begin(2, object(), Bound::IfAbsent, 11);
        register.begin(3, Value::Absent, Bound::Free, 11);
        assert_eq!((register.happened(1, 12), register.happened(2, 13)), (None, None));
    }

    #[test]
    fn a_condition_that_could_not_hold_is_reported() {
        let mut register = Register::default();
        register.begin(1, object(), Bound::Free, 10);
        register.happened(1, 11);
        register.begin(2, object(), Bound::IfAbsent, 12);
        assert!(register.happened(2, 13).is_some());
        let mut register = Register::default();
        register.begin(1, object(), Bound::Free, 10);
        register.happened(1, 11);
        register.begin(2, object(), Bound::IfMatch(1), 12);
        register.begin(3, object(), Bound::IfMatch(1), 13);
        assert_eq!(register.happened(2, 14), None);
        assert!(register.happened(3, 15).is_some(), "the object of write 1 was replaced twice");
    }
}
