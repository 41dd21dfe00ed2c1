//! The tasks of a core: what is ready, what is alive, and what other threads have woken.

use crate::executor::with_current;
use async_task::Runnable;
use crossbeam::queue::SegQueue;
use rustix::event::{EventfdFlags, eventfd};
use std::cell::RefCell;
use std::collections::VecDeque;
use std::future::Future;
use std::io;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Wake, Waker};

/// The side of a core that other threads see.
pub(crate) struct Remote {
    woken: SegQueue<Runnable>,
    /// The core sleeps, or is about to: whoever wakes a task has to ring.
    sleeping: AtomicBool,
    bell: OwnedFd,
}

impl Remote {
    pub fn new() -> io::Result<Arc<Remote>> {
        let bell = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Arc::new(Remote { woken: SegQueue::new(), sleeping: AtomicBool::new(false), bell }))
    }

    /// Readable when the core was rung for.
    pub fn bell(&self) -> &OwnedFd {
        &self.bell
    }

    /// Makes a task ready: in the core's own queue when it is the core that wakes it.
    fn schedule(self: &Arc<Self>, runnable: Runnable) {
        let mut runnable = Some(runnable);
        with_current(|tasks| {
            if Arc::ptr_eq(&tasks.remote, self) {
                tasks.ready.borrow_mut().extend(runnable.take());
            }
        });
        if let Some(runnable) = runnable {
            self.woken.push(runnable);
            self.ring();
        }
    }

    /// Wakes the core if it sleeps.
    fn ring(&self) {
        // Ordered after what was pushed, as the core's look at the queue is ordered after its store of the flag: one
        // of the two sees the other.
        if self.sleeping.swap(false, Ordering::SeqCst) {
            // A full counter, the only failure, rings as well.
            let _full = rustix::io::write(&self.bell, &1_u64.to_ne_bytes());
        }
    }

    /// Silences the bell.
    pub fn answer(&self) {
        let _was_silent = rustix::io::read(&self.bell, &mut [0; 8]);
    }

    /// Whether other threads have woken tasks.
    pub fn has_woken(&self) -> bool {
        !self.woken.is_empty()
    }

    /// Announces a sleep. False: there is something to do, and it was taken back.
    pub fn lie_down(&self, main: &MainWaker) -> bool {
        self.sleeping.store(true, Ordering::SeqCst);
        let may_sleep = self.woken.is_empty() && !main.is_woken();
        if !may_sleep {
            self.get_up();
        }
        may_sleep
    }

    pub fn get_up(&self) {
        self.sleeping.store(false, Ordering::SeqCst);
    }
}

/// Wakes the future that an executor was started with.
pub(crate) struct MainWaker {
    woken: AtomicBool,
    remote: Arc<Remote>,
}

impl MainWaker {
    pub fn new(remote: Arc<Remote>) -> Arc<MainWaker> {
        Arc::new(MainWaker { woken: AtomicBool::new(true), remote })
    }

    pub fn is_woken(&self) -> bool {
        self.woken.load(Ordering::SeqCst)
    }

    pub fn take(&self) -> bool {
        self.woken.swap(false, Ordering::SeqCst)
    }
}

impl Wake for MainWaker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.woken.store(true, Ordering::SeqCst);
        self.remote.ring();
    }
}

/// Tasks that have not ended, so that an executor can end them: whoever holds a waker of one may outlive it.
#[derive(Default)]
struct Alive {
    wakers: Vec<Option<Waker>>,
    free: Vec<usize>,
}

/// The tasks of one core.
pub(crate) struct Tasks {
    ready: RefCell<VecDeque<Runnable>>,
    alive: RefCell<Alive>,
    pub remote: Arc<Remote>,
}

/// Takes a task off the list when it ends, however it ends.
struct Ending {
    tasks: Rc<Tasks>,
    slot: usize,
}

impl Drop for Ending {
    fn drop(&mut self) {
        let waker = {
            let mut alive = self.tasks.alive.borrow_mut();
            alive.free.push(self.slot);
            alive.wakers[self.slot].take()
        };
        drop(waker);
    }
}

impl Tasks {
    pub fn new(remote: Arc<Remote>) -> Rc<Tasks> {
        Rc::new(Tasks { ready: RefCell::default(), alive: RefCell::default(), remote })
    }

    /// Starts a task behind those that are ready; nobody waits for it.
    pub fn spawn(self: &Rc<Self>, future: impl Future<Output = ()> + 'static) {
        let slot = {
            let mut alive = self.alive.borrow_mut();
            alive.free.pop().unwrap_or_else(|| {
                alive.wakers.push(None);
                alive.wakers.len() - 1
            })
        };
        let ending = Ending { tasks: self.clone(), slot };
        let task = async move {
            let _ending = ending;
            future.await;
        };
        let remote = self.remote.clone();
        let (runnable, task) = async_task::spawn_local(task, move |runnable| remote.schedule(runnable));
        self.alive.borrow_mut().wakers[slot] = Some(runnable.waker());
        runnable.schedule();
        task.detach();
    }

    /// Takes over what other threads have woken.
    pub fn take_woken(&self) {
        while let Some(runnable) = self.remote.woken.pop() {
            self.ready.borrow_mut().push_back(runnable);
        }
    }

    pub fn ready_count(&self) -> usize {
        self.ready.borrow().len()
    }

    pub fn next_ready(&self) -> Option<Runnable> {
        self.ready.borrow_mut().pop_front()
    }

    /// Drops every task. What a task's end starts or wakes is dropped too.
    pub fn end_all(&self) {
        loop {
            let wakers: Vec<Waker> = self.alive.borrow().wakers.iter().flatten().cloned().collect();
            if wakers.is_empty() {
                break;
            }
            wakers.into_iter().for_each(Waker::wake);
            // A woken task is ready, and a ready one that is dropped is cancelled: its future goes here, on its thread.
            self.take_woken();
            let ready: Vec<Runnable> = self.ready.borrow_mut().drain(..).collect();
            drop(ready);
        }
        self.take_woken();
        let ready: Vec<Runnable> = self.ready.borrow_mut().drain(..).collect();
        drop(ready);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::event::{PollFd, PollFlags, poll};

    #[test]
    fn a_core_does_not_lie_down_over_what_was_woken_and_is_rung_for_when_it_did() {
        let remote = Remote::new().unwrap();
        let main = MainWaker::new(remote.clone());
        assert!(!remote.lie_down(&main), "the main future has not run yet");
        assert!(main.take());
        let tasks = Tasks::new(remote.clone());
        let (wakers, made) = std::sync::mpsc::channel();
        let kept = remote.clone();
        let (runnable, task) = async_task::spawn_local(
            async move {
                std::future::poll_fn(|cx| {
                    wakers.send(cx.waker().clone()).unwrap();
                    std::task::Poll::<()>::Pending
                })
                .await;
            },
            move |runnable| kept.schedule(runnable),
        );
        runnable.run();
        let waker = made.recv().unwrap();
        let wake = || {
            let waker = waker.clone();
            std::thread::spawn(move || waker.wake()).join().unwrap();
        };
        let is_rung = || poll(&mut [PollFd::new(remote.bell(), PollFlags::IN)], Some(&Default::default())) == Ok(1);

        wake(); // between its last look and its lying down: nobody rings, so it has to look again
        assert!(!is_rung());
        assert!(!remote.lie_down(&main), "it would sleep over a ready task");
        tasks.take_woken();
        tasks.next_ready().unwrap().run();
        assert!(remote.lie_down(&main));
        wake();
        assert!(is_rung(), "nobody rang for a core that sleeps");
        remote.answer();
        assert!(!is_rung());
        let main_waker = Waker::from(main.clone());
        assert!(!remote.lie_down(&main), "woken and not yet taken");
        tasks.take_woken();
        tasks.next_ready().unwrap().run();
        assert!(remote.lie_down(&main));
        main_waker.wake();
        assert!(is_rung() && !remote.lie_down(&main));
        drop(task);
        tasks.end_all();
    }
}
