//! Locks on files that outlive their holder by a moment.
//!
//! A lock belongs to the open file, and a process that is being forked has a copy of it until it becomes another program;
//! the files of a process that was killed are closed a moment after it is gone. So who finds a lock taken looks again
//! before it says so.

use std::fs::{File, TryLockError};
use std::time::{Duration, Instant};

/// How long a lock may outlive whoever let go of it.
const LINGER_MAX: Duration = Duration::from_millis(300);

const POLL: Duration = Duration::from_millis(5);

/// Locks the file for this process alone. Blocks for a moment when another one has it.
///
/// Errors: `WouldBlock` when it is still taken after that.
pub fn lock_exclusive(file: &File) -> Result<(), TryLockError> {
    patiently(|| file.try_lock())
}

/// Locks the file together with others that only look. Blocks and errors as [`lock_exclusive`].
pub fn lock_shared(file: &File) -> Result<(), TryLockError> {
    patiently(|| file.try_lock_shared())
}

fn patiently(lock: impl Fn() -> Result<(), TryLockError>) -> Result<(), TryLockError> {
    let began = Instant::now();
    loop {
        match lock() {
            Err(TryLockError::WouldBlock) if began.elapsed() < LINGER_MAX => std::thread::sleep(POLL),
            other => return other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_that_its_holder_lets_go_of_a_moment_later_is_waited_for() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let held = file.reopen().unwrap();
        held.lock().unwrap();
        let holder = std::thread::spawn(move || {
            std::thread::sleep(POLL * 4);
            drop(held);
        });
        assert!(lock_exclusive(&file.reopen().unwrap()).is_ok());
        holder.join().unwrap();
        let held = file.reopen().unwrap();
        held.lock().unwrap();
        assert!(matches!(lock_shared(&file.reopen().unwrap()), Err(TryLockError::WouldBlock)));
    }
}
