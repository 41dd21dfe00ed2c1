//! Failed operations: how many, and what the first few kinds said.

use serde_json::{Value, json};

/// Different messages that are kept; the count goes on.
const KINDS_MAX: usize = 8;

/// Longest message kept.
const MESSAGE_LEN_MAX: usize = 300;

/// What went wrong.
#[derive(Clone, Debug, Default)]
pub struct ErrorLog {
    count: u64,
    kinds: Vec<(String, u64)>,
}

impl ErrorLog {
    /// Notes a failure.
    pub fn record(&mut self, message: &str) {
        self.add(&message.chars().take(MESSAGE_LEN_MAX).collect::<String>(), 1);
        self.count += 1;
    }

    fn add(&mut self, message: &str, times: u64) {
        if let Some(kind) = self.kinds.iter_mut().find(|kind| kind.0 == message) {
            kind.1 += times;
        } else if self.kinds.len() < KINDS_MAX {
            self.kinds.push((message.to_owned(), times));
        }
    }

    /// Adds another log.
    pub fn merge(&mut self, other: &ErrorLog) {
        self.count += other.count;
        other.kinds.iter().for_each(|(message, times)| self.add(message, *times));
    }

    /// How many in all.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.count
    }

    /// The first different messages, and how often each came.
    #[must_use]
    pub fn kinds(&self) -> &[(String, u64)] {
        &self.kinds
    }

    /// As the JSON output shows it.
    #[must_use]
    pub fn json(&self) -> Value {
        let messages: Vec<Value> =
            self.kinds.iter().map(|(message, count)| json!({"message": message, "count": count})).collect();
        json!({"count": self.count, "messages": messages})
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_messages_are_one_kind_and_the_count_never_stops() {
        let (mut log, mut other) = (ErrorLog::default(), ErrorLog::default());
        (0..100).for_each(|number| log.record(&format!("message {}", number % 20)));
        other.record("message 0");
        log.merge(&other);
        assert_eq!((log.count(), log.kinds().len(), log.kinds()[0].1), (101, KINDS_MAX, 6));
    }
}
