//! The executor of one core: tasks, timers, and the one io_uring through which everything of the core goes.
//!
//! A core is a thread with an [`Executor`]. All its devices, journals and sockets share one ring, so a turn of the
//! loop ends with at most one system call, however much completed: run what is ready, hand over what was queued, take what
//! is done, and sleep in the same call when there is nothing left to run; a core that waits for little and never long looks around for
//! a moment first. Where several device operations start in one
//! turn they are handed over in the middle of it, two to four at a time, so that a drive does not stand still meanwhile. Other threads
//! reach a core by waking one of its tasks, which costs a system call only when the core sleeps.
//!
//! What it guarantees, and what its tests try to break: an executor never sleeps while a task of it can run; a wake-up
//! from another thread is never lost; memory that the kernel was given stays until the kernel is done with it, also
//! when the executor ends.
//!
//! It knows nothing of devices, sockets or messages. In reading order: [`executor`], [`tasks`], [`ring`],
//! [`queue`], [`mod@readiness`], [`timers`], `busy_poll`.

mod busy_poll;
pub mod executor;
mod held;
pub mod queue;
pub mod readiness;
pub mod ring;
pub mod tasks;
pub mod timers;

pub use executor::{BUSY_POLL, Executor, ExecutorOptions, ExecutorStats, core_ring, spawn, stats, yield_now};
pub use queue::Submission;
pub use readiness::{Interest, Readiness, readiness};
pub use ring::{Completion, CoreRing, FileSlot, Rings, Way};
pub use timers::{Sleep, sleep};
