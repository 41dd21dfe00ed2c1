//! Sets of page numbers kept as half-open runs.

use std::collections::BTreeMap;

/// A set of page indexes as disjoint half-open runs, start to end.
#[derive(Debug, Default)]
pub(crate) struct PageRanges {
    runs: BTreeMap<u64, u64>,
}

impl PageRanges {
    /// Adds `start..end`, of which no page may be in the set.
    pub fn add(&mut self, start: u64, end: u64) {
        if start < end {
            self.runs.insert(start, end);
        }
    }

    /// Whether `page` is in the set.
    pub fn contains(&self, page: u64) -> bool {
        self.runs.range(..=page).next_back().is_some_and(|(_, end)| *end > page)
    }

    /// Takes `start..end` out, whether in the set or not.
    pub fn remove(&mut self, start: u64, end: u64) {
        while let Some((run_start, run_end)) = self.runs.range(..end).next_back().map(|(from, to)| (*from, *to)) {
            if run_end <= start {
                return;
            }
            self.runs.remove(&run_start);
            self.add(run_start, start.min(run_end));
            self.add(end.max(run_start), run_end);
            if run_start >= start {
                continue;
            }
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::PageRanges;
    use std::collections::BTreeSet;

    #[test]
    fn runs_match_a_plain_set() {
        let mut state = 7u64;
        let mut next = |below: u64| {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 33) % below
        };
        let mut runs = PageRanges::default();
        let mut model = BTreeSet::new();
        let mut end = 0;
        for step in 0..2000 {
            if next(4) == 0 {
                let grow = next(9);
                runs.add(end, end + grow);
                model.extend(end..end + grow);
                end += grow;
            } else {
                let (from, len) = (next(end + 3), next(6));
                runs.remove(from, from + len);
                for page in from..from + len {
                    model.remove(&page);
                }
            }
            for page in 0..end + 4 {
                assert_eq!(runs.contains(page), model.contains(&page), "step {step}, page {page}");
            }
        }
    }
}
