//! The threads: each runs a share of the clients on a runtime of its own, so that no connection changes its thread.

use crate::progress::{Progress, Tally};
use crate::stop::Stop;
use anyhow::{Context, Result, anyhow};
use futures::future::join_all;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

/// How often a step of the preparation is tried: a busy server may ask to come back.
const TRIES: u32 = 3;

/// A runtime of one thread: hyper's connection tasks and the clients take turns on it without locks or wake-ups
/// across threads, which makes it the cheapest client for one connection as well as for hundreds.
pub fn runtime() -> Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build().context("can't start a runtime")
}

/// Threads and the clients that they share.
#[derive(Clone, Copy, Debug)]
pub struct Crew {
    /// Threads.
    pub threads: usize,
    /// Clients of all of them.
    pub clients: usize,
}

/// Runs `work` on every thread with the numbers of its clients, and `main` on this one meanwhile.
pub fn on_threads<R: Send, M>(
    crew: Crew,
    work: impl AsyncFn(usize, Vec<usize>) -> R + Sync,
    main: impl FnOnce() -> M,
) -> Result<(Vec<R>, M)> {
    let runtimes = (0..crew.threads).map(|_| runtime()).collect::<Result<Vec<_>>>()?;
    thread::scope(|scope| {
        let handles: Vec<_> = runtimes
            .into_iter()
            .enumerate()
            .map(|(number, runtime)| {
                let work = &work;
                let clients = (number..crew.clients).step_by(crew.threads).collect();
                scope.spawn(move || runtime.block_on(work(number, clients)))
            })
            .collect();
        let main = main();
        let results = handles.into_iter().map(|handle| handle.join().map_err(|_| anyhow!("a thread ended early")));
        Ok((results.collect::<Result<Vec<_>>>()?, main))
    })
}

/// Does a step for each of `count` things, by all clients, which are made for it; stops at the first that fails for good.
/// A step returns its bytes.
pub fn for_all<C>(
    crew: Crew,
    phase: &str,
    count: usize,
    stop: Option<&Stop>,
    client: impl Fn(usize) -> C + Sync,
    step: impl for<'c> AsyncFn(&'c mut C, usize) -> Result<u64> + Sync,
) -> Result<()> {
    if count == 0 {
        return Ok(());
    }
    let (next, tally, ended) = (AtomicUsize::new(0), Tally::default(), AtomicUsize::new(0));
    let one_client = async |number: usize| -> Result<()> {
        let mut client = client(number);
        loop {
            let index = next.fetch_add(1, Ordering::Relaxed);
            if index >= count || stop.is_some_and(Stop::is_set) {
                return Ok(());
            }
            let mut tries = 0;
            let len_bytes = loop {
                match step(&mut client, index).await {
                    Ok(len_bytes) => break len_bytes,
                    Err(error) if tries + 1 == TRIES => {
                        next.store(count, Ordering::Relaxed); // the others stop too
                        return Err(error);
                    }
                    Err(_) => tries += 1,
                }
                tokio::time::sleep(Duration::from_millis(200)).await;
            };
            tally.done(len_bytes);
        }
    };
    let thread = async |_: usize, clients: Vec<usize>| -> Result<()> {
        let results = join_all(clients.into_iter().map(one_client)).await;
        ended.fetch_add(1, Ordering::Relaxed);
        results.into_iter().collect()
    };
    let show = || {
        let mut progress = Progress::start(phase, Some(count as u64));
        while ended.load(Ordering::Relaxed) < crew.threads {
            thread::sleep(Duration::from_millis(5));
            progress.show_count(&tally);
        }
    };
    let (results, ()) = on_threads(crew, thread, show)?;
    results.into_iter().collect::<Result<()>>().with_context(|| format!("{phase} failed"))
}
