//! Which pages readers have open: their counts don't fall until the readers are done. A reader that is gone without a word lets
//! go by itself after a while.

use crate::message::ReadId;
use kiseki_types::ids::PageId;
use kiseki_types::runtime::Instant;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// A reader on another node that has read no page for so long is gone.
pub(super) const READER_SILENT_MAX: Duration = Duration::from_secs(3600);

/// Who holds pages: a reader that named itself, or one whose node does not know how to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Holder {
    Named(ReadId),
    Nameless(u64),
}

/// One object that is open for reading.
struct OpenRead {
    /// When a page of it was read last.
    touched: Instant,
    pages: Vec<PageId>,
}

/// All objects that are open for reading.
#[derive(Default)]
pub(super) struct OpenReads {
    reads: BTreeMap<Holder, OpenRead>,
    holders: BTreeMap<PageId, BTreeSet<Holder>>,
    nameless: u64,
}

impl OpenReads {
    /// A reader opens an object. Opened again, be it another object by then, it holds what it opened last.
    pub(super) fn open(&mut self, read: Option<ReadId>, pages: Vec<PageId>, now: Instant) {
        let holder = match read {
            Some(read) => Holder::Named(read),
            None => {
                self.nameless += 1;
                Holder::Nameless(self.nameless)
            }
        };
        self.end(holder);
        if pages.is_empty() {
            return;
        }
        for page in &pages {
            self.holders.entry(*page).or_default().insert(holder);
        }
        self.reads.insert(holder, OpenRead { touched: now, pages });
    }

    /// A reader is done. One that opened under another leader holds nothing here, and lets nothing of another reader go.
    pub(super) fn close(&mut self, read: Option<ReadId>, pages: &[PageId]) {
        let holder = match read {
            // It may hold another object by now: whoever asked twice is answered twice.
            Some(read) => {
                let holder = Holder::Named(read);
                self.reads.get(&holder).is_some_and(|open| open.pages == pages).then_some(holder)
            }
            None => pages.first().and_then(|page| self.holders.get(page)).and_then(|holders| {
                let same = |holder: &&Holder| {
                    matches!(holder, Holder::Nameless(_))
                        && self.reads.get(holder).is_some_and(|read| read.pages == pages)
                };
                holders.iter().find(same).copied()
            }),
        };
        if let Some(holder) = holder {
            self.end(holder);
        }
    }

    /// A page is being read: who reads it lives. Of those without a name each may be the one.
    pub(super) fn touch(&mut self, read: Option<ReadId>, page: PageId, now: Instant) {
        if let Some(read) = read {
            if let Some(open) = self.reads.get_mut(&Holder::Named(read)) {
                open.touched = now;
            }
            return;
        }
        for holder in self.holders.get(&page).into_iter().flatten() {
            if matches!(holder, Holder::Nameless(_))
                && let Some(open) = self.reads.get_mut(holder)
            {
                open.touched = now;
            }
        }
    }

    /// Whether a reader holds a page.
    pub(super) fn holds(&self, page: PageId) -> bool {
        self.holders.contains_key(&page)
    }

    /// Readers on other nodes that are gone with their node, or whose goodbye was lost on the way, hold nothing any more.
    pub(super) fn let_silent_go(&mut self, now: Instant) {
        let silent = self.reads.iter().filter(|(_, read)| now.since(read.touched) >= READER_SILENT_MAX);
        let silent: Vec<Holder> = silent.map(|(holder, _)| *holder).collect();
        silent.into_iter().for_each(|holder| self.end(holder));
    }

    fn end(&mut self, holder: Holder) {
        let Some(read) = self.reads.remove(&holder) else { return };
        for page in read.pages {
            if let Some(holders) = self.holders.get_mut(&page) {
                holders.remove(&holder);
                if holders.is_empty() {
                    self.holders.remove(&page);
                }
            }
        }
    }

    /// How many there are.
    #[cfg(test)]
    fn len(&self) -> usize {
        self.reads.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: Instant = Instant(0);

    fn page(byte: u8) -> PageId {
        PageId([byte; 16])
    }

    fn read(byte: u8) -> Option<ReadId> {
        Some(ReadId([byte; 16]))
    }

    #[test]
    fn i_c2_a_reader_that_opened_elsewhere_lets_nothing_of_another_one_go() {
        let mut open = OpenReads::default();
        open.open(read(1), vec![page(1), page(2)], START);
        open.close(read(2), &[page(1), page(2)]); // it opened under another leader
        open.close(None, &[page(1), page(2)]);
        assert!(open.holds(page(1)) && open.holds(page(2)));
        open.close(read(1), &[page(1), page(2)]);
        assert!(!open.holds(page(1)) && !open.holds(page(2)));
        assert_eq!(open.len(), 0);
    }

    #[test]
    fn two_readers_of_one_object_hold_it_until_both_are_done() {
        let mut open = OpenReads::default();
        for reader in [read(1), read(2), None] {
            open.open(reader, vec![page(1)], START);
        }
        open.close(read(1), &[page(1)]);
        open.close(read(1), &[page(1)]); // its goodbye came twice
        open.close(None, &[page(1)]);
        assert!(open.holds(page(1)));
        open.close(read(2), &[page(1)]);
        assert!(!open.holds(page(1)));
    }

    #[test]
    fn opened_again_a_read_holds_once() {
        let mut open = OpenReads::default();
        open.open(read(1), vec![page(1)], START);
        open.open(read(1), vec![page(2)], START); // the first answer was lost, and the object was written anew
        assert!(!open.holds(page(1)) && open.holds(page(2)));
        open.close(read(1), &[page(1)]); // the first answer is done with what it opened
        assert!(open.holds(page(2)), "I-C2: what was opened later is held");
        open.close(read(1), &[page(2)]);
        assert!(!open.holds(page(2)));
    }

    #[test]
    fn only_readers_that_read_nothing_for_long_are_let_go_and_leave_nothing_behind() {
        let mut open = OpenReads::default();
        open.open(read(1), vec![page(1), page(3)], START);
        open.open(read(2), vec![page(1)], START);
        let later = START + READER_SILENT_MAX;
        open.touch(read(2), page(1), START + READER_SILENT_MAX / 2);
        open.let_silent_go(later);
        assert!(open.holds(page(1)) && !open.holds(page(3)), "only the second one reads");
        open.let_silent_go(later + READER_SILENT_MAX);
        assert_eq!((open.len(), open.holds(page(1))), (0, false));
    }
}
