//! Tests of the executor: order, time, death and the trace.

use super::*;
use futures::channel::oneshot;
use futures::future::{join, join_all};
use kiseki_types::runtime::{RuntimeExt, current};
use std::cell::RefCell;

const NODE: NodeId = NodeId(1);
const OTHER: NodeId = NodeId(2);

/// Tasks that yield, sleep and draw numbers; returns the order in which they did it, and the trace hash.
fn busy_run(seed: u64) -> (Vec<(u64, u64)>, u64) {
    let sim = Sim::new(seed);
    let seen = Rc::new(RefCell::new(Vec::new()));
    let ports = sim.ports(NODE);
    let tasks = (0..8_u64).map(|task| {
        let (ports, seen) = (ports.clone(), seen.clone());
        async move {
            for _ in 0..20 {
                ports.yield_now().await;
                let [draw] = ports.random::<1>();
                ports.sleep(Duration::from_micros(u64::from(draw))).await;
                seen.borrow_mut().push((task, ports.now().0));
            }
        }
    });
    for task in tasks.collect::<Vec<_>>() {
        ports.spawn("busy", Box::pin(task));
    }
    let clock = sim.ports(NODE);
    sim.block_on(NODE, async { clock.sleep(Duration::from_secs(1)).await });
    let seen = seen.borrow().clone();
    assert_eq!(seen.len(), 160);
    (seen, sim.trace_hash())
}

#[test]
fn the_same_seed_gives_the_same_run_and_another_gives_another() {
    assert_eq!(busy_run(11), busy_run(11));
    assert_ne!(busy_run(11).0, busy_run(12).0);
    assert_ne!(busy_run(11).1, busy_run(12).1);
}

#[test]
fn time_moves_only_when_nothing_can_run() {
    let sim = Sim::new(1);
    let ports = sim.ports(NODE);
    sim.block_on(NODE, async {
        let start = ports.now();
        for _ in 0..100 {
            ports.yield_now().await;
        }
        assert_eq!(ports.now(), start);
        ports.sleep(Duration::from_secs(5)).await;
        assert_eq!(ports.now(), start + Duration::from_secs(5));
        ports.sleep_until(start).await; // the past is no wait
        assert_eq!(ports.now(), start + Duration::from_secs(5));
    });
    assert!(ports.unix_time_ms() > 1_700_000_000_000);
}

#[test]
fn a_timer_that_is_dropped_does_not_hold_time_up() {
    let sim = Sim::new(1);
    let ports = sim.ports(NODE);
    let start = sim.now();
    sim.block_on(NODE, async {
        let long = ports.sleep(Duration::from_secs(100));
        let short = ports.sleep(Duration::from_secs(1));
        drop(futures::future::select(long, short).await);
        ports.sleep(Duration::from_secs(1)).await;
    });
    assert_eq!(sim.now(), start + Duration::from_secs(2));
    let stalled = sim.try_block_on(NODE, std::future::pending::<()>()).unwrap_err();
    assert_eq!((stalled.reason, stalled.now), (StallReason::Deadlock, start + Duration::from_secs(2)));
}

#[test]
fn every_task_sees_the_ports_of_its_own_core() {
    let sim = Sim::new(4);
    let cores = [(NODE, CoreId(0)), (NODE, CoreId(1)), (OTHER, CoreId(0))];
    let answers = cores.map(|(node, core)| {
        let (sender, receiver) = oneshot::channel();
        let ports = sim.core_ports(node, core);
        let expected = ports.clone();
        ports.spawn(
            "who-am-i",
            Box::pin(async move {
                let before = Rc::ptr_eq(&current(), &expected);
                current().yield_now().await;
                sender.send(before && Rc::ptr_eq(&current(), &expected)).unwrap();
            }),
        );
        receiver
    });
    let answers = sim.block_on(NODE, join_all(answers));
    assert!(answers.into_iter().all(|answer| answer == Ok(true)));
    assert!(set_current(None).is_none(), "what was set before is put back");
}

#[test]
fn a_deadlock_names_who_waits() {
    let sim = Sim::new(5);
    let ports = sim.ports(NODE);
    ports.spawn("waits-for-ever", Box::pin(std::future::pending()));
    ports.spawn("waits-for-ever", Box::pin(std::future::pending()));
    ports.spawn("ends", Box::pin(async {}));
    let stalled = sim.try_block_on(NODE, std::future::pending::<()>()).unwrap_err();
    assert_eq!(stalled.reason, StallReason::Deadlock);
    assert_eq!(stalled.pending, [(NODE, "waits-for-ever", 2)]);
    assert!(stalled.to_string().contains("node1/waits-for-ever x2"));
}

#[test]
fn limits_end_a_run_that_never_would() {
    let sim = Sim::new(6);
    let ports = sim.ports(NODE);
    sim.set_limits(Limits { steps: 1000, time: Duration::from_secs(10) });
    let spin = async {
        loop {
            ports.yield_now().await;
        }
    };
    assert_eq!(sim.try_block_on::<()>(NODE, spin).unwrap_err().reason, StallReason::Steps);
    let tick = async {
        loop {
            ports.sleep(Duration::from_secs(1)).await;
        }
    };
    assert_eq!(sim.try_block_on::<()>(NODE, tick).unwrap_err().reason, StallReason::Time);
}

/// Tells when it is dropped, and whether the ports of its core were the current ones then.
struct Witness(Rc<RefCell<Vec<bool>>>, Ports);

impl Drop for Witness {
    fn drop(&mut self) {
        self.0.borrow_mut().push(Rc::ptr_eq(&current(), &self.1));
        self.1.spawn("after-death", Box::pin(async { panic!("a dead core runs nothing") }));
    }
}

#[test]
fn killing_a_node_drops_its_tasks_and_no_others() {
    let sim = Sim::new(7);
    let dropped = Rc::new(RefCell::new(Vec::new()));
    for (node, core) in [(NODE, CoreId(0)), (NODE, CoreId(1)), (OTHER, CoreId(0))] {
        let ports = sim.core_ports(node, core);
        let witness = Witness(dropped.clone(), ports.clone());
        ports.spawn(
            "witness",
            Box::pin(async move {
                let _witness = witness;
                std::future::pending::<()>().await;
            }),
        );
    }
    let old = sim.ports(NODE);
    let clock = sim.ports(OTHER);
    sim.block_on(OTHER, async {
        clock.sleep(Duration::from_secs(1)).await;
        sim.kill(NODE);
        clock.sleep(Duration::from_secs(1)).await;
    });
    assert_eq!(*dropped.borrow(), [true, true]);
    old.spawn("too-late", Box::pin(async { panic!("a dead core runs nothing") }));
    let new = sim.ports(NODE);
    assert!(!Rc::ptr_eq(&old, &new), "the next incarnation has ports of its own");
    assert_ne!(old.random::<16>(), new.random::<16>(), "and other random bytes");
    sim.block_on(NODE, async { new.sleep(Duration::from_secs(1)).await });
    assert_eq!(dropped.borrow().len(), 2);
    drop(sim);
    assert_eq!(dropped.borrow().len(), 3, "the end of the run drops the rest");
}

#[test]
fn a_task_may_kill_its_own_node() {
    let sim = Rc::new(Sim::new(8));
    let ports = sim.ports(NODE);
    let (killer, after) = (sim.clone(), Rc::new(Cell::new(false)));
    let reached = after.clone();
    ports.spawn(
        "suicide",
        Box::pin(async move {
            killer.kill(NODE);
            std::future::ready(()).await;
            current().yield_now().await;
            reached.set(true);
        }),
    );
    let clock = sim.ports(OTHER);
    sim.block_on(OTHER, async { clock.sleep(Duration::from_secs(1)).await });
    assert!(!after.get());
}

#[test]
fn wakers_of_dropped_tasks_do_nothing_even_from_another_thread() {
    let sim = Sim::new(9);
    let kept: Rc<RefCell<Option<Waker>>> = Rc::default();
    let keep = kept.clone();
    let ports = sim.ports(NODE);
    ports.spawn(
        "leaks-its-waker",
        Box::pin(std::future::poll_fn(move |context| {
            *keep.borrow_mut() = Some(context.waker().clone());
            Poll::Pending
        })),
    );
    let clock = sim.ports(OTHER);
    sim.block_on(OTHER, async { clock.sleep(Duration::from_secs(1)).await });
    sim.kill(NODE);
    let waker = kept.borrow_mut().take().unwrap();
    std::thread::spawn(move || waker.wake()).join().unwrap();
    sim.block_on(OTHER, async { clock.sleep(Duration::from_secs(1)).await });
}

#[test]
fn offloaded_jobs_run_at_once_and_hand_back_their_result() {
    let sim = Sim::new(10);
    let ports = sim.ports(NODE);
    let answer = sim.block_on(NODE, join(ports.offload(0, || 6 * 7), ports.offload(1, || 1)));
    assert_eq!(answer, (Ok(42), Ok(1)));
}

#[test]
fn a_cut_stops_the_run_behind_the_poll_that_met_it() {
    let sim = Sim::new(11);
    let switch = Arc::new(CutSwitch::default());
    let ports = sim.ports(NODE);
    let (cutter, clock) = (switch.clone(), ports.clone());
    ports.spawn(
        "cutter",
        Box::pin(async move {
            clock.sleep(Duration::from_secs(1)).await;
            cutter.cut_now();
            panic!("what code does after the power is gone does not count");
        }),
    );
    let start = sim.now();
    let wait = async { ports.sleep(Duration::from_secs(5)).await };
    let result = sim.block_on_or_cut(OTHER, wait, &switch);
    assert!(matches!(result, Err(Interrupted::PowerCut)));
    assert_eq!(sim.now(), start + Duration::from_secs(1));
    sim.kill(NODE);
    switch.restore();
    let ports = sim.ports(NODE);
    sim.block_on_or_cut(OTHER, async { ports.sleep(Duration::from_secs(1)).await }, &switch).unwrap();
}

#[test]
#[should_panic(expected = "a bug")]
fn a_panic_of_a_task_ends_the_run() {
    let sim = Sim::new(12);
    let ports = sim.ports(NODE);
    ports.spawn("panics", Box::pin(async { panic!("a bug") }));
    sim.block_on(OTHER, std::future::pending::<()>());
}
