//! A thread that keeps executors from sleeping over ready tasks.
//!
//! glommio 0.9 looks at sockets and timers only when nothing is ready or when its preempt timer has expired, so the
//! timer has to be short where a task is always ready (a device is being polled). But when it finds the timer expired
//! before it ran the first task of a turn (the thread was not scheduled in between), it takes that for "nothing to
//! run" and parks, whatever is ready; timers that have rung meanwhile are used up, so the sleep has no end. A wake-up
//! from another thread ends it, and this thread gives one to every executor all the time.

use std::cell::RefCell;
use std::future::poll_fn;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Poll, Waker};
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant};

/// While some task of an executor is always ready, sockets and timers are looked at this often: make every executor
/// with this preempt timer.
pub const PREEMPT_INTERVAL: Duration = Duration::from_micros(500);

/// Longest time that an executor sleeps over ready tasks while it is at work.
const INTERVAL: Duration = Duration::from_millis(2);

/// The same on a node without work: a wake-up costs an idle core up to a millisecond of a virtual machine's time.
const IDLE_INTERVAL: Duration = Duration::from_millis(25);

/// An executor is at work for this many short intervals after it last said so.
const BUSY_BEATS: u32 = 50;

/// Timers of each executor. A wake-up from another thread can be lost as well: a node that was starting, and had no timer
/// yet, slept until a debugger looked at it. While a timer runs a sleep has an end; one that rang over ready tasks is
/// used up, so there are several.
const TIMERS: u32 = 4;
const TIMER_INTERVAL: Duration = Duration::from_millis(200);
const TIMER_STEP: Duration = Duration::from_millis(50);

thread_local! {
    /// The beat of this thread's executor.
    static BEAT: RefCell<Option<Arc<Beat>>> = const { RefCell::new(None) };
}

/// Says that this thread's executor is at work, so that its pulse is fast for a while. Cheap: one store.
pub(crate) fn note_work() {
    BEAT.with_borrow(|beat| {
        if let Some(beat) = beat {
            beat.worked.store(true, Ordering::Relaxed);
        }
    });
}

/// Wake-ups that an executor may have unanswered (I-O5). Each counts as a reference to the pulse's task, of which
/// glommio allows 32,767; an executor that answered none of these is stuck in one of its tasks anyway.
const UNANSWERED_MAX: u32 = 1000;

struct Beat {
    waker: Mutex<Option<Waker>>,
    unanswered: AtomicU32,
    /// Set by the executor, cleared by the pulse.
    worked: AtomicBool,
    /// Beats until the executor counts as idle; of the pulse's thread.
    busy_for: AtomicU32,
}

impl Beat {
    fn new() -> Arc<Beat> {
        let (unanswered, busy_for) = (AtomicU32::new(0), AtomicU32::new(BUSY_BEATS));
        Arc::new(Beat { waker: Mutex::new(None), unanswered, worked: AtomicBool::new(false), busy_for })
    }

    /// Whether the executor is at work; called once a beat.
    fn is_busy(&self) -> bool {
        let left = match self.worked.swap(false, Ordering::Relaxed) {
            true => BUSY_BEATS,
            false => self.busy_for.load(Ordering::Relaxed).saturating_sub(1),
        };
        self.busy_for.store(left, Ordering::Relaxed);
        left > 0
    }

    fn waker(&self) -> MutexGuard<'_, Option<Waker>> {
        self.waker.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wake(&self) {
        if self.unanswered.load(Ordering::Relaxed) < UNANSWERED_MAX
            && let Some(waker) = &*self.waker()
        {
            self.unanswered.fetch_add(1, Ordering::Relaxed);
            waker.wake_by_ref();
        }
    }
}

/// The pulse of a process.
pub struct Pulse {
    beats: Mutex<Vec<Arc<Beat>>>,
    stopped: AtomicBool,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Pulse {
    /// Starts the thread.
    pub fn start() -> io::Result<Arc<Pulse>> {
        let pulse =
            Arc::new(Pulse { beats: Mutex::default(), stopped: AtomicBool::new(false), thread: Mutex::default() });
        let beating = pulse.clone();
        let thread = Builder::new().name("kiseki-pulse".to_owned()).spawn(move || {
            let mut last_all = Instant::now();
            while !beating.stopped.load(Ordering::Acquire) {
                let all_idle = {
                    let beats = beating.beats();
                    let slow = last_all.elapsed() >= IDLE_INTERVAL;
                    if slow {
                        last_all = Instant::now();
                    }
                    let busy: Vec<_> = beats.iter().map(|beat| beat.is_busy()).collect();
                    beats.iter().zip(&busy).filter(|(_, busy)| **busy || slow).for_each(|(beat, _)| beat.wake());
                    !busy.contains(&true)
                };
                std::thread::sleep(if all_idle { IDLE_INTERVAL } else { INTERVAL });
            }
        })?;
        *pulse.thread.lock().unwrap_or_else(PoisonError::into_inner) = Some(thread);
        Ok(pulse)
    }

    fn beats(&self) -> MutexGuard<'_, Vec<Arc<Beat>>> {
        self.beats.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps the calling executor awake for as long as the guard lives, which must be dropped on that executor.
    #[must_use]
    pub fn keep_awake(self: &Arc<Self>) -> AwakeGuard {
        let beat = Beat::new();
        BEAT.set(Some(beat.clone()));
        let answering = beat.clone();
        let task = glommio::spawn_local(poll_fn(move |cx| {
            answering.unanswered.store(0, Ordering::Relaxed);
            answering.waker().get_or_insert_with(|| cx.waker().clone());
            Poll::<()>::Pending
        }));
        self.beats().push(beat.clone());
        let timers = (0..TIMERS).map(|number| glommio::spawn_local(tick(number))).collect();
        AwakeGuard { pulse: self.clone(), beat, _task: task, _timers: timers }
    }

    /// Ends the thread.
    pub fn stop(&self) {
        self.stopped.store(true, Ordering::Release);
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = thread {
            let _ended = thread.join();
        }
    }
}

/// See [`Pulse::keep_awake`].
pub struct AwakeGuard {
    pulse: Arc<Pulse>,
    beat: Arc<Beat>,
    _task: glommio::Task<()>,
    _timers: Vec<glommio::Task<()>>,
}

/// A timer that always runs.
async fn tick(number: u32) {
    loop {
        glommio::timer::sleep(TIMER_INTERVAL + number * TIMER_STEP).await;
    }
}

impl Drop for AwakeGuard {
    fn drop(&mut self) {
        self.pulse.beats().retain(|beat| !Arc::ptr_eq(beat, &self.beat));
        // Here, on the executor: no other thread may hold the last reference to one of its tasks.
        BEAT.set(None);
        let waker = self.beat.waker().take();
        drop(waker);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use glommio::LocalExecutorBuilder;

    #[test]
    fn an_executor_is_busy_for_a_while_after_it_worked() {
        let beat = Beat::new();
        let busy_beats = || (0..1000).take_while(|_| beat.is_busy()).count();
        assert_eq!(busy_beats(), BUSY_BEATS as usize - 1, "a new one counts as busy");
        assert!(!beat.is_busy());
        BEAT.set(Some(beat.clone()));
        note_work();
        BEAT.set(None);
        assert_eq!(busy_beats(), BUSY_BEATS as usize);
    }

    #[test]
    fn an_executor_is_woken_for_as_long_as_its_guard_lives() {
        let pulse = Pulse::start().unwrap();
        let keeper = pulse.clone();
        let executor = LocalExecutorBuilder::default().make().unwrap();
        executor.run(async move {
            let awake = keeper.keep_awake();
            // Nothing but the pulse makes this executor turn: each answer clears what was unanswered.
            let mut answers = 0;
            while answers < 3 {
                if awake.beat.unanswered.load(Ordering::Relaxed) == 0 {
                    answers += 1;
                }
                glommio::timer::sleep(INTERVAL).await;
            }
        });
        assert!(pulse.beats().is_empty(), "the guard takes its executor out");
        pulse.stop();
    }
}
