//! Links between two cores over the loopback: a call without content, and bulk bytes in both directions, beside the same bytes
//! through rustls alone.

mod members;
mod plain;

use crate::manifest::Manifest;
use crate::measure::{Meter, ProcessCpu, Timing, Window};
use crate::output::{Job, OutputArgs, Report, Side};
use crate::stop::Stop;
use crate::units::{binary, ns, parse_bytes, parse_duration};
use crate::usage::usage;
use anyhow::{Context, Result, anyhow};
use clap::Args;
use futures::future::join_all;
use kiseki_executor::{Executor, ExecutorOptions};
use kiseki_net::peer::{Callers, LinkInputs, PeerGate, PeerLinks, PeerServer, PeerServices};
use kiseki_net::{CoreRuntime, Listener, MeshShape, SidePool, StopSignal, Stopper};
use kiseki_types::buf::{BufferSource, IoBuf, plain_buffers};
use kiseki_types::ids::{CoreId, LaneId, NodeId};
use kiseki_types::peer::{BULK_LEN_BYTES_MAX, Parcel, PeerCalls, PeerLane, ServiceId};
use kiseki_types::runtime::Ports;
use members::Member;
use serde::Serialize;
use serde_json::json;
use std::cell::RefCell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::mpsc;
use std::time::{Duration, Instant};

/// Answers with nothing.
const TAKE: ServiceId = ServiceId(1000);
/// Answers with as many bytes as the message says.
const GIVE: ServiceId = ServiceId(1001);

/// No call takes longer.
const DEADLINE: Duration = Duration::from_secs(10);

const EXAMPLES: &str = "\
Examples:
  # round trip of a call without content, and 1 MiB of bulk bytes at a time, four calls in flight
  kiseki-bench link --bs 1m --iodepth 4
  # on two processors of their own
  kiseki-bench link --cpus 2,3 --json";

/// Arguments of `link`.
#[derive(Args, Clone, Debug, Serialize)]
#[command(after_help = EXAMPLES)]
pub struct LinkArgs {
    /// Bulk bytes of a call, up to 8m
    #[arg(long, value_parser = parse_bytes, default_value = "1m")]
    pub bs: u64,
    /// Calls with bulk bytes in flight, 1 to 32; calls without content are made one after the other
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..=32))]
    pub iodepth: u16,
    /// Processors of the two cores, calling and answering; not pinned when absent
    #[arg(long, value_delimiter = ',', num_args = 2)]
    pub cpus: Vec<usize>,
    /// How long each part is measured
    #[arg(long, value_parser = parse_duration, default_value = "5s")]
    #[serde(serialize_with = "crate::device::seconds")]
    pub runtime: Duration,
    /// How long each part runs before it is measured
    #[arg(long, value_parser = parse_duration, default_value = "500ms")]
    #[serde(serialize_with = "crate::device::seconds")]
    pub warmup: Duration,
    /// How results are written.
    #[command(flatten)]
    pub output: OutputArgs,
}

impl LinkArgs {
    fn window(&self) -> Window {
        let start_ns = ns(self.warmup);
        Window { start_ns, end_ns: start_ns + ns(self.runtime) }
    }

    fn about(&self, depth: u16) -> String {
        format!("bs={}, iodepth={depth}, tls=1.3, over loopback", binary(self.bs as f64))
    }

    fn check(&self) -> Result<()> {
        if !(1..=BULK_LEN_BYTES_MAX as u64).contains(&self.bs) {
            return Err(usage(format!("--bs {}: give 1 to {BULK_LEN_BYTES_MAX} bytes", self.bs)));
        }
        if self.runtime.is_zero() {
            return Err(usage("--runtime 0: measure for some time, such as 5s"));
        }
        Ok(())
    }
}

/// Measures.
pub fn run(args: &LinkArgs, stop: Stop) -> Result<Report> {
    args.check()?;
    let manifest = Manifest::new("link", json!("loopback"), serde_json::to_value(args)?);
    let members = members::two()?;
    let mut jobs = Vec::new();
    for part in [Part::Null, Part::Send, Part::Receive] {
        jobs.push(measure(args, &members, part, &stop)?);
    }
    jobs.push(plain::run(args, &members, &stop)?);
    Ok(Report { manifest, jobs, warnings: Vec::new() })
}

/// What is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    Null,
    Send,
    Receive,
}

impl Part {
    fn name(self) -> &'static str {
        match self {
            Part::Null => "null call",
            Part::Send => "bulk sent",
            Part::Receive => "bulk received",
        }
    }
}

fn executor(args: &LinkArgs, which: usize) -> Result<Executor> {
    let options = ExecutorOptions { cpu: args.cpus.get(which).copied(), ..ExecutorOptions::default() };
    Executor::new(options).context("no executor can be made; `kiseki-server doctor` tells what hinders it")
}

fn measure(args: &LinkArgs, members: &[Member; 2], part: Part, stop: &Stop) -> Result<Job> {
    let side = SidePool::start(1)?;
    let (stopper, stopped) = Stopper::new();
    let (sender, bound) = mpsc::channel();
    let (server_args, member, server_side) = (args.clone(), members[0].clone(), side.clone());
    let server = std::thread::spawn(move || -> Result<()> {
        executor(&server_args, 1)?.run(answer(&member, server_side, stopped, sender))
    });
    let address = bound.recv().map_err(|_| anyhow!("the answering core does not start"))?;
    let job = executor(args, 0)?.run(call(args, &members[1], part, address, side, stop))?;
    stopper.stop();
    server.join().map_err(|_| anyhow!("the answering core died"))??;
    Ok(job)
}

/// The answering core.
async fn answer(member: &Member, side: Arc<SidePool>, stop: StopSignal, bound: mpsc::Sender<SocketAddr>) -> Result<()> {
    let ports: Ports = Rc::new(CoreRuntime::new(CoreId(0), side));
    let (gate, mut arrivals) = PeerGate::new(member.trust()?, MeshShape { core_count: 1, lane_count: 1 });
    let services = Rc::new(PeerServices::default());
    services.serve(TAKE, Callers::Nodes, Rc::new(|_, _, _| Box::pin(async { Ok(Parcel::default()) })));
    let reused = reused_buffers();
    let give = reused.clone();
    services.serve(
        GIVE,
        Callers::Nodes,
        Rc::new(move |_, _, parcel: Parcel| {
            let len = parcel.message.try_into().map(usize::from_le_bytes).unwrap_or_default();
            let bulk = vec![give(len)];
            Box::pin(async move { Ok(Parcel { message: Vec::new(), bulk }) })
        }),
    );
    let listener = Listener::bind(SocketAddr::from(([127, 0, 0, 1], 0)))?;
    bound.send(listener.address())?;
    let server = PeerServer::new(ports.clone(), CoreId(0), gate.clone(), reused, services, stop.clone());
    ports.spawn("accept", Box::pin(gate.accept(listener, ports.clone(), stop)));
    server.run(arrivals.remove(0)).await;
    Ok(())
}

/// Buffers that are used again, as those of a node's pool are: memory that is new each time costs more than the bytes in it.
fn reused_buffers() -> BufferSource {
    struct Shelf(RefCell<Vec<Vec<u8>>>);
    impl kiseki_types::buf::BufHome for Shelf {
        fn take_back(&self, slab: Vec<u8>, _slot: u16) {
            self.0.borrow_mut().push(slab);
        }
    }
    let shelf = Rc::new(Shelf(RefCell::default()));
    Rc::new(move |len| {
        let slab_len = IoBuf::slab_len_bytes(len);
        let slab = shelf.0.borrow_mut().pop().filter(|slab| slab.len() >= slab_len);
        IoBuf::in_slab(slab.unwrap_or_else(|| vec![0; slab_len]), Some((shelf.clone(), 0))).resized(len)
    })
}

/// The calling core.
async fn call(
    args: &LinkArgs,
    member: &Member,
    part: Part,
    address: SocketAddr,
    side: Arc<SidePool>,
    stop: &Stop,
) -> Result<Job> {
    let ports: Ports = Rc::new(CoreRuntime::new(CoreId(0), side));
    let buffers = if part == Part::Null { plain_buffers() } else { reused_buffers() };
    let links = PeerLinks::new(LinkInputs { ports, trust: member.trust()?, buffers: buffers.clone() });
    links.set_address(NodeId(1), address);
    let to = PeerLane { node: NodeId(1), lane: LaneId(0) };
    links.call(to, TAKE, Parcel::default(), DEADLINE).await?;
    let (window, depth) = (args.window(), if part == Part::Null { 1 } else { args.iodepth });
    let (meter, start) = (RefCell::new(Meter::new(window)), Instant::now());
    let (cpu_before, own) = (RefCell::new(None), ProcessCpu::own());
    let caller = async || -> Result<()> {
        loop {
            let start_ns = ns(start.elapsed());
            if start_ns >= window.start_ns && cpu_before.borrow().is_none() {
                *cpu_before.borrow_mut() = own.read();
            }
            if start_ns >= window.end_ns || stop.is_set() {
                return Ok(());
            }
            let len = args.bs as usize;
            let (service, parcel) = match part {
                Part::Null => (TAKE, Parcel::default()),
                Part::Send => (TAKE, Parcel { message: Vec::new(), bulk: vec![buffers(len)] }),
                Part::Receive => (GIVE, Parcel { message: len.to_le_bytes().to_vec(), bulk: Vec::new() }),
            };
            links.call(to, service, parcel, DEADLINE).await?;
            let bytes = if part == Part::Null { 1 } else { args.bs };
            let timing = Timing { intended_ns: start_ns, start_ns, end_ns: ns(start.elapsed()) };
            meter.borrow_mut().record(timing, bytes);
        }
    };
    join_all((0..depth).map(|_| caller())).await.into_iter().collect::<Result<Vec<()>>>()?;
    let mut meter = meter.into_inner();
    meter.close(ns(start.elapsed()));
    let cpu = own.read().unwrap_or_default().since(&cpu_before.take().unwrap_or_default());
    let write = Some(Side::of(meter));
    let about = if part == Part::Null { "iodepth=1, tls=1.3, over loopback".to_owned() } else { args.about(depth) };
    Ok(Job { name: part.name().to_owned(), about, write, cpu, ..Job::default() })
}
