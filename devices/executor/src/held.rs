//! Submissions that the kernel may still read after it has taken them.
//!
//! A command that finds no room in a drive's queue (or the queue frozen, while its controller is reset) is handed to a kernel
//! thread. Linux 6.10 to 6.13 then read it once more from the ring, where the next submission may lie by then: the drive
//! gets somebody else's command twice, and this one is answered as done (mended in 6.14 by "io_uring/uring_cmd:
//! unconditionally copy SQEs at prep time"; 6.12.95 does it still). So on these kernels no submission takes the place of a
//! command that is not answered yet.

use std::collections::{HashSet, VecDeque};

/// Whether this kernel reads commands from the ring after it has taken them.
pub(crate) fn kernel_reads_late() -> bool {
    is_late(&rustix::system::uname().release().to_string_lossy())
}

fn is_late(release: &str) -> bool {
    let mut numbers = release.split(|letter: char| !letter.is_ascii_digit()).map(|text| text.parse::<u32>().ok());
    match (numbers.next().flatten(), numbers.next().flatten()) {
        (Some(6), Some(minor)) => (10..14).contains(&minor),
        (Some(_), Some(_)) => false,
        // Rather slow than wrong.
        _ => true,
    }
}

/// The commands on a ring that are not answered, by the place that they were put to.
#[derive(Default)]
pub(crate) struct Held {
    /// Submissions so far.
    next: u64,
    /// Place and user data of commands, oldest first; behind the first some may be answered.
    open: VecDeque<(u64, u64)>,
    /// Commands of those that are not: no more than the ring has places (I-O5).
    unanswered: HashSet<u64>,
}

impl Held {
    /// Whether the next submission would take the place of a command that is not answered, on a ring with `places`.
    pub fn is_full(&self, places: u64) -> bool {
        self.open.front().is_some_and(|(place, _)| self.next - place >= places)
    }

    /// A submission was put to the next place; `command`: the user data, if it is a command.
    pub fn put(&mut self, command: Option<u64>) {
        if let Some(user_data) = command {
            self.open.push_back((self.next, user_data));
            self.unanswered.insert(user_data);
        }
        self.next += 1;
    }

    /// A submission was answered.
    pub fn answer(&mut self, user_data: u64) {
        if self.unanswered.remove(&user_data) {
            while let Some((_, first)) = self.open.front()
                && !self.unanswered.contains(first)
            {
                self.open.pop_front();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels_that_read_late() {
        for (release, late) in [
            ("6.1.0-41-amd64", false),
            ("6.9.7", false),
            ("6.10.0", true),
            ("6.12.95+deb12-cloud-amd64", true),
            ("6.13.3-arch1-1", true),
            ("6.14.0-rc4", false),
            ("6.18.44", false),
            ("7.0.1", false),
            ("5.19", false),
            ("odd", true),
        ] {
            assert_eq!(is_late(release), late, "{release}");
        }
    }

    #[test]
    fn no_place_is_taken_before_its_command_is_answered() {
        let mut held = Held::default();
        for user_data in 0..3 {
            assert!(!held.is_full(4));
            held.put(Some(user_data));
        }
        held.put(None);
        assert!(held.is_full(4), "the first one's place comes next");
        held.answer(1);
        assert!(held.is_full(4), "another one was answered");
        held.answer(0);
        assert!(!held.is_full(4));
        held.put(None);
        held.put(None);
        assert!(held.is_full(4), "the third one's place comes next");
        held.answer(2);
        assert!(!held.is_full(4) && held.open.is_empty() && held.unanswered.is_empty());
        held.put(Some(7));
        (100..200).for_each(|other| held.answer(other));
        assert_eq!((held.open.len(), held.unanswered.len()), (1, 1), "nothing grows for what is no command");
    }
}
