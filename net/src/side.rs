//! Side threads: where redb transactions and everything else that blocks runs, off the executors.
//!
//! One pool serves all cores of a node. Jobs of one (core, queue) pair form a strand: they run in order, one at a time;
//! strands run side by side, so a slow flush of one file holds up no other file while a thread is free.

use kiseki_types::ids::CoreId;
use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::{Builder, JoinHandle};

/// Jobs waiting in one strand from which on it is worth a warning (I-O5): owners bound what they have outstanding, and
/// a strand this long says that one of them does not.
pub const STRAND_JOBS_WARN: usize = 4096;

/// Most jobs waiting in one strand. An owner that gets here has lost its bound: that is our own bug.
pub const STRAND_JOBS_MAX: usize = 1 << 20;

type Job = Box<dyn FnOnce() + Send>;
type StrandKey = (CoreId, u64);

#[derive(Default)]
struct State {
    /// Strands with a job running or waiting; the jobs are those that wait.
    strands: BTreeMap<StrandKey, VecDeque<Job>>,
    /// Strands with a job waiting and none running, in the order in which they became so.
    runnable: VecDeque<StrandKey>,
    stopping: bool,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    wake: Condvar,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("nothing panics while it holds the side threads' lock")
    }
}

/// The side threads of a node.
pub struct SidePool {
    shared: Arc<Shared>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

impl SidePool {
    /// Starts `thread_count` threads (at least one).
    pub fn start(thread_count: usize) -> io::Result<Arc<SidePool>> {
        let shared = Arc::<Shared>::default();
        let mut threads = Vec::new();
        for index in 0..thread_count.max(1) {
            let shared = shared.clone();
            threads.push(Builder::new().name(format!("kiseki-side-{index}")).spawn(move || work(&shared))?);
        }
        Ok(Arc::new(SidePool { shared, threads: Mutex::new(threads) }))
    }

    /// Queues a job behind the earlier ones of its strand. After [`SidePool::stop`] the job is dropped unrun, which its
    /// caller sees as `Stopping`.
    pub fn run(&self, core: CoreId, queue: u64, job: Job) {
        let key = (core, queue);
        let mut state = self.shared.lock();
        if state.stopping {
            return;
        }
        match state.strands.get_mut(&key) {
            Some(waiting) => {
                waiting.push_back(job);
                let len = waiting.len();
                assert!(len <= STRAND_JOBS_MAX, "I-O5: {len} jobs wait in side queue {queue} of core {core}");
                if len == STRAND_JOBS_WARN {
                    tracing::warn!(%core, queue, jobs = len, "side threads fall behind; the disk is slow");
                }
            }
            None => {
                state.strands.insert(key, VecDeque::from([job]));
                state.runnable.push_back(key);
                self.shared.wake.notify_one();
            }
        }
    }

    /// Lets the threads run what is queued and ends them. Called once the cores have stopped.
    pub fn stop(&self) {
        self.shared.lock().stopping = true;
        self.shared.wake.notify_all();
        let threads = std::mem::take(&mut *self.threads.lock().expect("only stop takes this lock after start"));
        for thread in threads {
            // A thread that panicked has ended the process already.
            let _ = thread.join();
        }
    }

    /// Jobs that wait, of all strands.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.shared.lock().strands.values().map(VecDeque::len).sum()
    }
}

/// A side thread: one job of one strand at a time.
fn work(shared: &Shared) {
    let mut state = shared.lock();
    loop {
        let Some(key) = state.runnable.pop_front() else {
            if state.stopping {
                return;
            }
            state = shared.wake.wait(state).expect("nothing panics while it holds the side threads' lock");
            continue;
        };
        let strand = state.strands.get_mut(&key).expect("a runnable strand is listed");
        let job = strand.pop_front().expect("a runnable strand has a job");
        drop(state);
        if catch_unwind(AssertUnwindSafe(job)).is_err() {
            // Half of a write may have happened and whoever waits for it would wait for ever: no way to go on.
            std::process::abort();
        }
        state = shared.lock();
        if state.strands.get(&key).is_some_and(VecDeque::is_empty) {
            state.strands.remove(&key);
        } else {
            state.runnable.push_back(key);
            shared.wake.notify_one();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;
    use std::time::Duration;

    #[test]
    fn jobs_of_one_queue_run_in_order_and_one_at_a_time() {
        let pool = SidePool::start(4).unwrap();
        let done: Arc<Mutex<Vec<(u64, usize)>>> = Arc::default();
        let busy: Arc<Mutex<BTreeMap<u64, bool>>> = Arc::default();
        for number in 0..400 {
            let queue = number as u64 % 3;
            let (done, busy) = (done.clone(), busy.clone());
            let job = move || {
                assert!(!busy.lock().unwrap().insert(queue, true).unwrap_or(false), "one at a time");
                std::thread::yield_now();
                done.lock().unwrap().push((queue, number));
                busy.lock().unwrap().insert(queue, false);
            };
            pool.run(CoreId(0), queue, Box::new(job));
        }
        pool.stop();
        let done = done.lock().unwrap();
        assert_eq!(done.len(), 400, "stop runs what is queued");
        for queue in 0..3 {
            let order: Vec<usize> = done.iter().filter(|row| row.0 == queue).map(|row| row.1).collect();
            assert!(order.is_sorted(), "queue {queue} ran out of order");
        }
    }

    #[test]
    fn a_blocked_queue_holds_up_no_other() {
        let pool = SidePool::start(2).unwrap();
        let (release, blocked) = mpsc::channel::<()>();
        pool.run(CoreId(0), 1, Box::new(move || blocked.recv().unwrap()));
        let (sender, receiver) = mpsc::channel();
        pool.run(CoreId(1), 1, Box::new(move || sender.send(()).unwrap()));
        receiver.recv_timeout(Duration::from_secs(10)).expect("the other core's queue 1 is another strand");
        release.send(()).unwrap();
        pool.stop();
        pool.run(CoreId(0), 1, Box::new(|| panic!("nothing runs after stop")));
    }
}
