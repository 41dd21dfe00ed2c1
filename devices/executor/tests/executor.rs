//! What an executor guarantees: it never sleeps over ready tasks, loses no wake-up, starves neither sockets nor timers,
//! and ends with everything of its tasks dropped on its own thread.

use futures::StreamExt;
use futures::channel::{mpsc, oneshot};
use futures::future::{join_all, poll_fn};
use kiseki_executor::{
    Completion, Executor, ExecutorOptions, Interest, Way, core_ring, readiness, sleep, spawn, stats, yield_now,
};
use std::cell::{Cell, RefCell};
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::rc::Rc;
use std::sync::{Arc, Mutex};
use std::task::{Poll, Waker};
use std::time::{Duration, Instant};

/// A test that hangs is a lost wake-up: it fails after this.
const PATIENCE: Duration = Duration::from_secs(60);

/// Runs `body` on an executor of a thread of its own.
fn on_executor<F: Future<Output = ()>>(body: impl FnOnce() -> F + Send + 'static) {
    on_executor_with(ExecutorOptions::default(), body);
}

fn on_executor_with<F: Future<Output = ()>>(options: ExecutorOptions, body: impl FnOnce() -> F + Send + 'static) {
    let (done, ended) = std::sync::mpsc::channel();
    let thread = std::thread::spawn(move || {
        Executor::new(options).unwrap().run(body());
        done.send(()).unwrap();
    });
    if ended.recv_timeout(PATIENCE) == Err(std::sync::mpsc::RecvTimeoutError::Timeout) {
        panic!("the executor sleeps for ever");
    }
    thread.join().unwrap();
}

#[test]
fn no_wake_up_from_another_thread_is_lost() {
    on_executor(|| answers_of_another_thread(100_000));
}

async fn answers_of_another_thread(rounds: u32) {
    let (questions, asked) = std::sync::mpsc::channel::<oneshot::Sender<u32>>();
    let thread = std::thread::spawn(move || {
        for (count, answer) in (1..).zip(asked) {
            // Answers fall before, into and after the moment in which the executor lies down.
            for _ in 0..count % 97 {
                std::hint::spin_loop();
            }
            answer.send(count).unwrap();
        }
    });
    for round in 1..=rounds {
        let (answer, answered) = oneshot::channel();
        questions.send(answer).unwrap();
        assert_eq!(answered.await, Ok(round));
    }
    drop(questions);
    thread.join().unwrap();
}

#[test]
fn tasks_woken_from_several_threads_at_once_all_run() {
    const EACH: u64 = 5_000;
    on_executor(|| async {
        let sum = Rc::new(Cell::new(0));
        let mut threads = Vec::new();
        let mut tasks = Vec::new();
        for _ in 0..3 {
            let (sender, mut receiver) = mpsc::unbounded();
            threads.push(std::thread::spawn(move || {
                for number in 0..EACH {
                    sender.unbounded_send(number).unwrap();
                    if number % 64 == 0 {
                        std::thread::yield_now();
                    }
                }
            }));
            let (sum, (ended, end)) = (sum.clone(), oneshot::channel());
            spawn(async move {
                while let Some(number) = receiver.next().await {
                    sum.set(sum.get() + number);
                }
                ended.send(()).unwrap();
            });
            tasks.push(end);
        }
        join_all(tasks).await;
        assert_eq!(sum.get(), 3 * EACH * (EACH - 1) / 2);
        threads.into_iter().for_each(|thread| thread.join().unwrap());
    });
}

#[test]
fn it_never_sleeps_while_a_task_is_ready_and_sleeps_when_none_is() {
    on_executor(|| async {
        sleep(Duration::from_millis(1)).await;
        // In a task: the future that an executor is started with is woken in a way of its own.
        let (ended, end) = oneshot::channel();
        spawn(async move {
            let before = stats();
            for _ in 0..10_000 {
                yield_now().await;
            }
            ended.send((before, stats())).unwrap();
        });
        let (before, busy) = end.await.unwrap();
        assert_eq!(busy.sleeps, before.sleeps, "it slept over a ready task");
        assert!(busy.enters - before.enters < 100, "turns without work for the kernel cost no call: {busy:?}");
        sleep(Duration::from_millis(20)).await;
        let rested = stats();
        assert!((1..=5).contains(&(rested.sleeps - busy.sleeps)), "one sleep, not a loop: {rested:?}");
    });
}

/// Hears of the end of one operation.
struct Heard(RefCell<Option<oneshot::Sender<i32>>>);

impl Completion for Heard {
    fn complete(self: Rc<Self>, _token: u32, result: i32) {
        self.0.take().expect("an operation ends once").send(result).unwrap();
    }
}

#[test]
#[allow(unsafe_code)]
fn it_does_not_sleep_while_something_is_on_its_polled_ring() {
    on_executor(|| async {
        let ring = core_ring();
        ring.add_polled().unwrap();
        sleep(Duration::from_millis(1)).await;
        for way in [Way::Polled, Way::Interrupt].into_iter().cycle().take(200) {
            let before = stats().sleeps;
            let (tell, heard) = oneshot::channel();
            let owner = Rc::new(Heard(RefCell::new(Some(tell))));
            let nothing = io_uring::opcode::Nop::new().build().into();
            // SAFETY: it names no memory.
            unsafe { ring.submit(nothing, way, owner, 0) };
            assert_eq!(heard.await, Ok(0), "{way:?}");
            if way == Way::Polled {
                assert_eq!(stats().sleeps, before, "nothing would have woken it");
            }
        }
        let before = stats().sleeps;
        sleep(Duration::from_millis(5)).await;
        assert!(stats().sleeps > before, "an empty polled ring keeps nobody awake");
    });
}

/// Ends after a while; keeps what the kernel reads of it.
struct After {
    span: io_uring::types::Timespec,
    heard: Heard,
}

impl Completion for After {
    fn complete(self: Rc<Self>, token: u32, _result: i32) {
        Rc::new(Heard(RefCell::new(self.heard.0.take()))).complete(token, 0);
    }
}

/// An operation that is under way for so long.
#[allow(unsafe_code)]
fn after(span: Duration) -> oneshot::Receiver<i32> {
    let (tell, heard) = oneshot::channel();
    let owner = Rc::new(After { span: span.into(), heard: Heard(RefCell::new(Some(tell))) });
    let timeout = io_uring::opcode::Timeout::new(&owner.span).build().into();
    // SAFETY: the span belongs to the owner, in whose memory it stays.
    unsafe { core_ring().submit(timeout, Way::Interrupt, owner, 0) };
    heard
}

#[test]
fn a_core_that_waits_for_little_looks_and_hears_of_everything_meanwhile() {
    const LOOK: Duration = Duration::from_millis(5);
    on_executor_with(ExecutorOptions { busy_poll: LOOK, ..ExecutorOptions::default() }, || async {
        // Where others want the processor it pauses: the rounds go on until it was left alone for long enough.
        let found = || stats().busy_polls_found;
        while found() < 20 {
            after(Duration::from_micros(100)).await.unwrap();
        }
        let mut under_way = after(Duration::from_secs(1));
        let mut renew = || {
            if under_way.try_recv() != Ok(None) {
                under_way = after(Duration::from_secs(1));
            }
        };
        let before = found();
        while found() < before + 100 {
            answers_of_another_thread(1_000).await;
            renew();
        }
        // A look ends with the next timer.
        let looks = stats().busy_polls;
        while stats().busy_polls < looks + 10 {
            sleep(Duration::from_micros(300)).await;
            renew();
        }
        under_way.await.unwrap();
        assert!(stats().busy_poll_time > Duration::ZERO);
    });
    on_executor_with(ExecutorOptions { busy_poll: LOOK, ..ExecutorOptions::default() }, || async {
        for _ in 0..20 {
            sleep(Duration::from_micros(200)).await;
        }
        assert_eq!(stats().busy_polls, 0, "with nothing under way it sleeps at once");
    });
}

#[test]
fn a_task_that_is_always_ready_starves_neither_sockets_nor_timers() {
    on_executor(|| async {
        let (near, mut far) = UnixStream::pair().unwrap();
        let over = Rc::new(Cell::new(false));
        let busy = over.clone();
        spawn(async move {
            while !busy.get() {
                yield_now().await;
            }
        });
        for _ in 0..50 {
            let waiting = readiness(near.as_fd(), Interest::Readable);
            sleep(Duration::from_micros(50)).await;
            far.write_all(&[1]).unwrap();
            waiting.await.unwrap();
            let mut byte = [0];
            (&near).read_exact(&mut byte).unwrap();
        }
        over.set(true);
    });
}

#[test]
fn sleeps_end_in_order_never_early_and_a_dropped_one_wakes_nobody() {
    on_executor(|| async {
        let order = Rc::new(RefCell::new(Vec::new()));
        let begin = Instant::now();
        let sleeps = [9_u64, 3, 6].map(|ms| {
            let order = order.clone();
            async move {
                sleep(Duration::from_millis(ms)).await;
                assert!(begin.elapsed() >= Duration::from_millis(ms));
                order.borrow_mut().push(ms);
            }
        });
        let mut dropped = Box::pin(sleep(Duration::from_millis(1)));
        assert!(poll_fn(|cx| Poll::Ready(dropped.as_mut().poll(cx).is_pending())).await);
        drop(dropped);
        join_all(sleeps).await;
        assert_eq!(*order.borrow(), [3, 6, 9]);
        sleep(Duration::ZERO).await;
        let mut endless = Box::pin(sleep(Duration::MAX));
        assert!(poll_fn(|cx| Poll::Ready(endless.as_mut().poll(cx).is_pending())).await);
    });
}

#[test]
fn far_more_polls_than_the_ring_holds_are_all_answered() {
    on_executor(|| async {
        let (near, mut far) = UnixStream::pair().unwrap();
        let waiting: Vec<_> = (0..20_000).map(|_| readiness(near.as_fd(), Interest::Readable)).collect();
        sleep(Duration::from_millis(5)).await;
        far.write_all(&[1]).unwrap();
        for ready in join_all(waiting).await {
            ready.unwrap();
        }
    });
}

#[test]
fn a_dropped_wait_lets_the_socket_close() {
    on_executor(|| async {
        let (near, far) = UnixStream::pair().unwrap();
        let waiting = readiness(near.as_fd(), Interest::Readable);
        sleep(Duration::from_millis(2)).await;
        drop(waiting);
        drop(near);
        // The kernel closes the file when it lets go of the request; only then the other side hears of it.
        readiness(far.as_fd(), Interest::Readable).await.unwrap();
        assert_eq!((&far).read(&mut [0; 8]).unwrap(), 0);
    });
}

#[test]
fn waits_that_are_dropped_in_their_first_turn_leave_nothing_behind() {
    on_executor(|| async {
        for round in 0..2_000_u32 {
            let (near, mut far) = UnixStream::pair().unwrap();
            drop(readiness(near.as_fd(), Interest::Readable));
            let waiting = readiness(near.as_fd(), Interest::Readable);
            far.write_all(&[1]).unwrap();
            if round % 2 == 0 {
                yield_now().await;
            }
            waiting.await.unwrap();
            (&near).read_exact(&mut [0]).unwrap();
        }
    });
}

/// Counts the drop, and where it happened.
struct Dropped {
    here: std::thread::ThreadId,
    count: Arc<Mutex<u32>>,
}

impl Drop for Dropped {
    fn drop(&mut self) {
        assert_eq!(std::thread::current().id(), self.here, "a task ends on its own thread");
        *self.count.lock().unwrap() += 1;
    }
}

#[test]
fn an_executor_ends_its_tasks_whoever_holds_their_wakers() {
    let executor = Executor::new(Default::default()).unwrap();
    let count = Arc::<Mutex<u32>>::default();
    let wakers = Rc::<RefCell<Vec<Waker>>>::default();
    executor.run(async {
        for _ in 0..10 {
            let guard = Dropped { here: std::thread::current().id(), count: count.clone() };
            let wakers = wakers.clone();
            spawn(async move {
                let _guard = guard;
                poll_fn(|cx| {
                    wakers.borrow_mut().push(cx.waker().clone());
                    Poll::<()>::Pending
                })
                .await;
            });
        }
        yield_now().await;
    });
    let wakers: Vec<Waker> = wakers.borrow_mut().drain(..).collect();
    assert_eq!((wakers.len(), *count.lock().unwrap()), (10, 0));
    let early = wakers[0].clone();
    std::thread::spawn(move || early.wake()).join().unwrap();
    drop(executor);
    assert_eq!(*count.lock().unwrap(), 10);
    // Late wake-ups, and the last references, from elsewhere.
    std::thread::spawn(move || wakers.into_iter().for_each(Waker::wake)).join().unwrap();
}

#[test]
fn what_a_task_starts_at_its_end_ends_too() {
    struct Starts(Arc<Mutex<u32>>);
    impl Drop for Starts {
        fn drop(&mut self) {
            let count = self.0.clone();
            spawn(async move {
                *count.lock().unwrap() += 1;
            });
        }
    }
    let executor = Executor::new(Default::default()).unwrap();
    let count = Arc::<Mutex<u32>>::default();
    executor.run(async {
        let starts = Starts(count.clone());
        spawn(async move {
            let _starts = starts;
            std::future::pending::<()>().await;
        });
        yield_now().await;
    });
    drop(executor);
    assert_eq!(*count.lock().unwrap(), 0, "it is dropped, not run");
    assert_eq!(Arc::strong_count(&count), 1);
}
