//! Calls between executors: every call is answered, bounds hold, a stopped core is told from a slow one.

use futures::channel::oneshot;
use futures::future::join_all;
use kiseki_executor::{Executor, ExecutorOptions};
use kiseki_net::{CoreRuntime, Mesh, MeshCaller, MeshShape, SidePool};
use kiseki_types::ids::{CoreId, LaneId};
use kiseki_types::link::{Link, LinkError};
use kiseki_types::runtime::{Ports, RuntimeExt};
use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

type Numbers = Mesh<u64, (u16, u64)>;

fn on_core<F: Future<Output = ()> + 'static>(
    core: u16,
    side: Arc<SidePool>,
    body: impl FnOnce(Ports) -> F + Send + 'static,
) -> JoinHandle<()> {
    std::thread::spawn(move || {
        Executor::new(ExecutorOptions::default())
            .unwrap()
            .run(async move { body(Rc::new(CoreRuntime::new(CoreId(core), side))).await });
    })
}

#[test]
fn calls_reach_the_core_of_the_lane_and_are_answered_on_both_cores_at_once() {
    const CALLS: u64 = 2000;
    let side = SidePool::start(1).unwrap();
    let mesh: Numbers = Mesh::new(MeshShape { core_count: 2, lane_count: 4 });
    let done = Arc::new(AtomicUsize::new(0));
    let cores: Vec<_> = (0..2)
        .map(|core| {
            let (mesh, done) = (mesh.clone(), done.clone());
            on_core(core, side.clone(), move |ports| async move {
                let link = mesh.connect(CoreId(core), ports.clone());
                let running = Rc::new(Cell::new(0_usize));
                let (handler_ports, peak) = (ports.clone(), Rc::new(Cell::new(0_usize)));
                let seen_peak = peak.clone();
                link.serve(Rc::new(move |lane: LaneId, number| {
                    let (ports, running, peak) = (handler_ports.clone(), running.clone(), seen_peak.clone());
                    Box::pin(async move {
                        running.set(running.get() + 1);
                        peak.set(peak.get().max(running.get()));
                        if number % 7 == 0 {
                            ports.sleep(Duration::from_micros(300)).await;
                        }
                        running.set(running.get() - 1);
                        (lane.0 * 10 + core, number * 2)
                    })
                }));
                let caller = MeshCaller(link.clone());
                let answers = join_all((0..CALLS).map(|number| caller.call(LaneId((number % 4) as u16), number))).await;
                for (number, answer) in (0..CALLS).zip(answers) {
                    let lane = (number % 4) as u16;
                    assert_eq!(answer, Ok((lane * 10 + lane % 2, number * 2)), "call {number}");
                }
                // Half of the 2000 calls of this core are local and not bounded here; the other core's are.
                let bound = kiseki_net::mesh::CALLS_IN_FLIGHT_MAX + CALLS as usize / 2;
                assert!(peak.get() <= bound, "I-O5: {} calls ran at once", peak.get());
                done.fetch_add(1, Ordering::SeqCst);
                while done.load(Ordering::SeqCst) < 2 {
                    ports.sleep(Duration::from_millis(1)).await;
                }
                link.stop();
                ports.sleep(Duration::from_millis(5)).await;
            })
        })
        .collect();
    cores.into_iter().for_each(|core| core.join().unwrap());
    side.stop();
}

#[test]
fn i_o5_unanswered_calls_to_one_core_are_bounded() {
    let side = SidePool::start(1).unwrap();
    let mesh: Numbers = Mesh::new(MeshShape { core_count: 2, lane_count: 2 });
    let running = Arc::new(AtomicUsize::new(0));
    let (release, released) = oneshot::channel::<()>();
    let server_mesh = mesh.clone();
    let server_running = running.clone();
    let server = on_core(1, side.clone(), move |ports| async move {
        let link = server_mesh.connect(CoreId(1), ports.clone());
        let gate = Rc::new(Cell::new(false));
        let (open, counted, handler_ports) = (gate.clone(), server_running, ports.clone());
        link.serve(Rc::new(move |_, number| {
            let (open, counted, ports) = (open.clone(), counted.clone(), handler_ports.clone());
            Box::pin(async move {
                counted.fetch_add(1, Ordering::SeqCst);
                while !open.get() {
                    ports.sleep(Duration::from_millis(1)).await;
                }
                (0, number)
            })
        }));
        released.await.unwrap();
        gate.set(true);
        ports.sleep(Duration::from_millis(300)).await;
        link.stop();
        ports.sleep(Duration::from_millis(5)).await;
    });
    let client = on_core(0, side.clone(), move |ports| async move {
        let link = mesh.connect(CoreId(0), ports.clone());
        link.serve(Rc::new(|_, _| Box::pin(async { (0, 0) })));
        let caller = Rc::new(MeshCaller(link.clone()));
        let answered = Rc::new(Cell::new(0));
        for number in 0..1000 {
            let (caller, answered) = (caller.clone(), answered.clone());
            let task = async move {
                caller.call(LaneId(1), number).await.unwrap();
                answered.set(answered.get() + 1);
            };
            ports.spawn("call", Box::pin(task));
        }
        ports.sleep(Duration::from_millis(200)).await;
        let at_once = running.load(Ordering::SeqCst);
        assert_eq!(at_once, kiseki_net::mesh::CALLS_IN_FLIGHT_MAX, "I-O5: as many as there are credits");
        release.send(()).unwrap();
        while answered.get() < 1000 {
            ports.sleep(Duration::from_millis(1)).await;
        }
        link.stop();
        ports.sleep(Duration::from_millis(5)).await;
    });
    client.join().unwrap();
    server.join().unwrap();
    side.stop();
}

#[test]
fn calls_to_a_core_that_stops_end_as_unreachable() {
    let side = SidePool::start(1).unwrap();
    let mesh: Numbers = Mesh::new(MeshShape { core_count: 2, lane_count: 2 });
    let server_mesh = mesh.clone();
    let server = on_core(1, side.clone(), move |ports| async move {
        let link = server_mesh.connect(CoreId(1), ports.clone());
        link.serve(Rc::new(|_, _| Box::pin(std::future::pending())));
        ports.sleep(Duration::from_millis(50)).await;
        link.stop();
        ports.sleep(Duration::from_millis(5)).await;
    });
    let client = on_core(0, side.clone(), move |ports| async move {
        let link = mesh.connect(CoreId(0), ports.clone());
        link.serve(Rc::new(|_, _| Box::pin(async { (0, 0) })));
        let caller = MeshCaller(link.clone());
        let unreachable = Err(LinkError::Unreachable { lane: LaneId(1) });
        assert_eq!(caller.call(LaneId(1), 1).await, unreachable, "in flight when it stopped");
        assert_eq!(caller.call(LaneId(1), 2).await, unreachable, "after it stopped");
        assert_eq!(caller.call(LaneId(0), 3).await, Ok((0, 0)), "this core goes on");
        link.stop();
        ports.sleep(Duration::from_millis(5)).await;
    });
    client.join().unwrap();
    server.join().unwrap();
    side.stop();
}
