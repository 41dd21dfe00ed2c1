//! The threads: each runs a share of the clients on a runtime of its own, so that no connection changes its thread.

use super::Setup;
use super::client::Client;
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

/// Runs `work` on every thread with the numbers of its clients, and `main` on this one meanwhile.
pub fn on_threads<R: Send, M>(
    setup: &Setup,
    work: impl AsyncFn(usize, Vec<usize>) -> R + Sync,
    main: impl FnOnce() -> M,
) -> Result<(Vec<R>, M)> {
    let runtimes = (0..setup.threads).map(|_| runtime()).collect::<Result<Vec<_>>>()?;
    thread::scope(|scope| {
        let handles: Vec<_> = runtimes
            .into_iter()
            .enumerate()
            .map(|(number, runtime)| {
                let work = &work;
                let clients = (number..setup.clients).step_by(setup.threads).collect();
                scope.spawn(move || runtime.block_on(work(number, clients)))
            })
            .collect();
        let main = main();
        let results = handles.into_iter().map(|handle| handle.join().map_err(|_| anyhow!("a thread ended early")));
        Ok((results.collect::<Result<Vec<_>>>()?, main))
    })
}

/// Does a step for each of `count` things, by all clients; stops at the first that fails for good.
pub fn for_all(
    setup: &Setup,
    phase: &str,
    count: usize,
    stop: Option<&Stop>,
    step: impl for<'c, 'a> AsyncFn(&'c mut Client<'a>, usize) -> Result<()> + Sync,
) -> Result<()> {
    if count == 0 {
        return Ok(());
    }
    let (next, tally, ended) = (AtomicUsize::new(0), Tally::default(), AtomicUsize::new(0));
    let one_client = async |number: usize| -> Result<()> {
        let mut client = Client::new(setup, number);
        loop {
            let index = next.fetch_add(1, Ordering::Relaxed);
            if index >= count || stop.is_some_and(Stop::is_set) {
                return Ok(());
            }
            let mut tries = 0;
            while let Err(error) = step(&mut client, index).await {
                tries += 1;
                if tries == TRIES {
                    next.store(count, Ordering::Relaxed); // the others stop too
                    return Err(error);
                }
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
            tally.done(setup.args.size);
        }
    };
    let thread = async |_: usize, clients: Vec<usize>| -> Result<()> {
        let results = join_all(clients.into_iter().map(one_client)).await;
        ended.fetch_add(1, Ordering::Relaxed);
        results.into_iter().collect()
    };
    let show = || {
        let mut progress = Progress::start(phase, Some(count as u64));
        while ended.load(Ordering::Relaxed) < setup.threads {
            thread::sleep(Duration::from_millis(5));
            progress.show_count(&tally);
        }
    };
    let (results, ()) = on_threads(setup, thread, show)?;
    results.into_iter().collect::<Result<()>>().with_context(|| format!("{phase} failed"))
}
