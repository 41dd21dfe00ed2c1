//! How many bytes of entries stand in the journal alone, and in which records: where the older half of them ends.

use kiseki_types::journal::Sequence;
use std::collections::VecDeque;

/// Records are counted together until they hold so much.
const STEP_LEN_BYTES: usize = 256 * 1024;

/// Entries that only the journal and memory hold.
#[derive(Debug, Default)]
pub struct Unfolded {
    /// Runs of records: the last one of each and the bytes of entries in all of them.
    runs: VecDeque<(Sequence, usize)>,
    len_bytes: usize,
}

impl Unfolded {
    /// Bytes of entries.
    pub fn len_bytes(&self) -> usize {
        self.len_bytes
    }

    /// A record holds so many bytes of entries.
    pub fn add(&mut self, sequence: Sequence, len_bytes: usize) {
        self.len_bytes += len_bytes;
        match self.runs.back_mut() {
            Some((last, held)) if *held < STEP_LEN_BYTES => (*last, *held) = (sequence, *held + len_bytes),
            _ => self.runs.push_back((sequence, len_bytes)),
        }
    }

    /// The record behind which no more than half of the bytes stand; 0 when there are none.
    pub fn older_half(&self) -> Sequence {
        let mut older = 0;
        for (last, len_bytes) in &self.runs {
            older += len_bytes;
            if older * 2 >= self.len_bytes {
                return *last;
            }
        }
        0
    }

    /// Records up to this one are folded.
    pub fn fold(&mut self, upto: Sequence) {
        while let Some((last, len_bytes)) = self.runs.front()
            && *last <= upto
        {
            self.len_bytes -= len_bytes;
            self.runs.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_half_is_left_by_bytes_whatever_the_records_hold() {
        let mut unfolded = Unfolded::default();
        assert_eq!(unfolded.older_half(), 0);
        // A thousand short records, then four long ones.
        (1..=1000).for_each(|sequence| unfolded.add(sequence, 1024));
        (1001..=1004).for_each(|sequence| unfolded.add(sequence, STEP_LEN_BYTES));
        let all = 1000 * 1024 + 4 * STEP_LEN_BYTES;
        assert_eq!(unfolded.len_bytes(), all);
        let half = unfolded.older_half();
        unfolded.fold(half);
        assert!((all / 2 - 2 * STEP_LEN_BYTES..=all / 2).contains(&unfolded.len_bytes()), "{}", unfolded.len_bytes());
        unfolded.fold(1004);
        assert_eq!((unfolded.len_bytes(), unfolded.older_half()), (0, 0));
    }
}
