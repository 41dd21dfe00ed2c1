//! Calls between two cores over the loopback: without content, with small messages, and with bulk bytes in both directions, beside
//! the same bytes through rustls alone.

pub mod buffers;
pub mod members;
mod plain;

use crate::cpus;
use crate::manifest::Manifest;
use crate::measure::{Meter, Spent, Timing, Window};
use crate::output::{Job, OutputArgs, Report, Side};
use crate::stop::Stop;
use crate::units::{binary, ns, parse_bytes, parse_duration};
use crate::usage::usage;
use anyhow::{Context, Result, anyhow};
use clap::{Args, ValueEnum};
use futures::future::join_all;
use kiseki_executor::{Executor, ExecutorOptions};
use kiseki_net::peer::{Callers, LinkInputs, PeerGate, PeerLinks, PeerServer, PeerServices};
use kiseki_net::{CoreRuntime, Listener, MeshShape, SidePool, StopSignal, Stopper};
use kiseki_types::buf::{BufferSource, plain_buffers};
use kiseki_types::ids::{CoreId, LaneId, NodeId};
use kiseki_types::peer::{BULK_LEN_BYTES_MAX, MESSAGE_LEN_BYTES_MAX, Parcel, PeerCalls, PeerLane, ServiceId};
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
/// Answers with as many bulk bytes as the message says.
const GIVE: ServiceId = ServiceId(1001);
/// Answers with a message of `--answer-bytes`.
const ANSWER: ServiceId = ServiceId(1002);

/// No call takes longer.
const DEADLINE: Duration = Duration::from_secs(10);

const EXAMPLES: &str = "\
Examples:
  # everything: round trip of a call without content, small messages, 1 MiB of bulk bytes at a time, four calls in flight
  kiseki-bench rpc --bs 1m --iodepth 4
  # 64 calls in flight on each of two links: 100 bytes there, 8 KiB back
  kiseki-bench rpc --part call --request-bytes 100 --answer-bytes 8k --iodepth 64 --links 2
  # on two processors of their own
  kiseki-bench rpc --cpus 2,3 --json";

/// What is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Part {
    /// Calls without content, one after the other on one link: the round trip
    Null,
    /// Messages of --request-bytes, answered by messages of --answer-bytes
    Call,
    /// Bulk bytes to the answering core
    Send,
    /// Bulk bytes from it
    Receive,
    /// The same bytes through rustls alone
    Rustls,
}

impl Part {
    fn name(self) -> &'static str {
        match self {
            Part::Null => "null call",
            Part::Call => "call",
            Part::Send => "bulk sent",
            Part::Receive => "bulk received",
            Part::Rustls => "rustls alone",
        }
    }
}

/// Arguments of `rpc`.
#[derive(Args, Clone, Debug, Serialize)]
#[command(after_help = EXAMPLES)]
pub struct RpcArgs {
    /// What to measure; repeatable (default: all, one after the other)
    #[arg(long, value_enum)]
    pub part: Vec<Part>,
    /// Bytes of a call's message, 0 to 2m
    #[arg(long, value_parser = parse_len, default_value = "256")]
    pub request_bytes: u64,
    /// Bytes of the answer's message, 0 to 2m
    #[arg(long, value_parser = parse_len, default_value = "4k")]
    pub answer_bytes: u64,
    /// Bulk bytes of a call, up to 8m
    #[arg(long, value_parser = parse_bytes, default_value = "1m")]
    pub bs: u64,
    /// Calls in flight on each link, 1 to 128
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..=128))]
    pub iodepth: u16,
    /// Links between the two cores, each a connection
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=64))]
    pub links: u16,
    /// Processors of the two cores, calling and answering; not pinned when absent
    #[arg(long, value_delimiter = ',')]
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

/// A length that may be nothing.
fn parse_len(text: &str) -> std::result::Result<u64, String> {
    if text == "0" { Ok(0) } else { parse_bytes(text) }
}

impl RpcArgs {
    fn window(&self) -> Window {
        let start_ns = ns(self.warmup);
        Window { start_ns, end_ns: start_ns + ns(self.runtime) }
    }

    fn bulk_about(&self, depth: u16) -> String {
        format!("bs={}, iodepth={depth}, tls=1.3, over loopback", binary(self.bs as f64))
    }

    fn about(&self, part: Part) -> String {
        let (depth, links) = (self.iodepth, self.links);
        match part {
            Part::Null => "iodepth=1, links=1, tls=1.3, over loopback".to_owned(),
            Part::Call => {
                let (request, answer) = (binary(self.request_bytes as f64), binary(self.answer_bytes as f64));
                format!("request={request}, answer={answer}, iodepth={depth}, links={links}, tls=1.3, over loopback")
            }
            Part::Send | Part::Receive => format!("links={links}, {}", self.bulk_about(depth)),
            Part::Rustls => self.bulk_about(1),
        }
    }

    fn check(&self) -> Result<()> {
        for (name, len) in [("--request-bytes", self.request_bytes), ("--answer-bytes", self.answer_bytes)] {
            if len > MESSAGE_LEN_BYTES_MAX as u64 {
                return Err(usage(format!("{name} {len}: a message has {MESSAGE_LEN_BYTES_MAX} bytes at most")));
            }
        }
        if !(1..=BULK_LEN_BYTES_MAX as u64).contains(&self.bs) {
            return Err(usage(format!("--bs {}: give 1 to {BULK_LEN_BYTES_MAX} bytes", self.bs)));
        }
        if self.runtime.is_zero() {
            return Err(usage("--runtime 0: measure for some time, such as 5s"));
        }
        if !self.cpus.is_empty() && self.cpus.len() != 2 {
            return Err(usage(format!(
                "--cpus: {} given; name two, of the calling and the answering core",
                self.cpus.len()
            )));
        }
        let allowed = cpus::allowed();
        if let Some(cpu) = self.cpus.iter().find(|cpu| !allowed.contains(cpu)) {
            return Err(usage(format!("--cpus {cpu}: this process may not use that processor")));
        }
        Ok(())
    }

    fn parts(&self) -> &[Part] {
        if self.part.is_empty() { Part::value_variants() } else { &self.part }
    }
}

/// Measures.
pub fn run(args: &RpcArgs, stop: Stop) -> Result<Report> {
    args.check()?;
    let manifest = Manifest::new("rpc", json!("loopback"), serde_json::to_value(args)?);
    let members = members::make(2)?;
    let jobs = args.parts().iter().map(|part| match part {
        Part::Rustls => plain::run(args, &members, &stop),
        part => measure(args, &members, *part, &stop),
    });
    Ok(Report { manifest, jobs: jobs.collect::<Result<_>>()?, warnings: Vec::new() })
}

fn executor(args: &RpcArgs, which: usize) -> Result<Executor> {
    let options = ExecutorOptions { cpu: args.cpus.get(which).copied(), ..ExecutorOptions::default() };
    Executor::new(options).context("no executor can be made; `kiseki-server doctor` tells what hinders it")
}

fn measure(args: &RpcArgs, members: &[Member], part: Part, stop: &Stop) -> Result<Job> {
    let side = SidePool::start(1)?;
    let (stopper, stopped) = Stopper::new();
    let (sender, bound) = mpsc::channel();
    let (server_args, member, server_side) = (args.clone(), members[0].clone(), side.clone());
    let server = std::thread::spawn(move || -> Result<()> {
        executor(&server_args, 1)?.run(answer(&server_args, &member, server_side, stopped, sender))
    });
    let address = bound.recv().map_err(|_| anyhow!("the answering core does not start"))?;
    let job = executor(args, 0)?.run(call(args, &members[1], part, address, side, stop))?;
    stopper.stop();
    server.join().map_err(|_| anyhow!("the answering core died"))??;
    Ok(job)
}

/// The answering core.
async fn answer(
    args: &RpcArgs,
    member: &Member,
    side: Arc<SidePool>,
    stop: StopSignal,
    bound: mpsc::Sender<SocketAddr>,
) -> Result<()> {
    let ports: Ports = Rc::new(CoreRuntime::new(CoreId(0), side));
    let (gate, mut arrivals) = PeerGate::new(member.trust()?, MeshShape { core_count: 1, lane_count: 1 });
    let services = Rc::new(PeerServices::default());
    services.serve(TAKE, Callers::Nodes, Rc::new(|_, _, _| Box::pin(async { Ok(Parcel::default()) })));
    let answer_len = args.answer_bytes as usize;
    services.serve(
        ANSWER,
        Callers::Nodes,
        Rc::new(move |_, _, _| Box::pin(async move { Ok(Parcel { message: vec![7; answer_len], bulk: Vec::new() }) })),
    );
    let reused = buffers::reused();
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

/// What is called, what goes along, and how many bytes count as answered.
fn question(args: &RpcArgs, part: Part, buffers: &BufferSource) -> (ServiceId, Parcel, u64) {
    let len = args.bs as usize;
    let message = |message| Parcel { message, bulk: Vec::new() };
    match part {
        // A call without content counts as a byte, so that there is a rate.
        Part::Null | Part::Rustls => (TAKE, Parcel::default(), 1),
        Part::Call => {
            let bytes = (args.request_bytes + args.answer_bytes).max(1);
            (ANSWER, message(vec![7; args.request_bytes as usize]), bytes)
        }
        Part::Send => (TAKE, Parcel { message: Vec::new(), bulk: vec![buffers(len)] }, args.bs),
        Part::Receive => (GIVE, message(len.to_le_bytes().to_vec()), args.bs),
    }
}

/// The calling core.
async fn call(
    args: &RpcArgs,
    member: &Member,
    part: Part,
    address: SocketAddr,
    side: Arc<SidePool>,
    stop: &Stop,
) -> Result<Job> {
    let ports: Ports = Rc::new(CoreRuntime::new(CoreId(0), side));
    let buffers = if matches!(part, Part::Null | Part::Call) { plain_buffers() } else { buffers::reused() };
    let (links_count, depth) = if part == Part::Null { (1, 1) } else { (args.links, args.iodepth) };
    let to = PeerLane { node: NodeId(1), lane: LaneId(0) };
    let mut links = Vec::new();
    for _ in 0..links_count {
        let trust = member.trust()?;
        let link = PeerLinks::new(LinkInputs { ports: ports.clone(), trust, buffers: buffers.clone() });
        link.set_address(NodeId(1), address);
        link.call(to, TAKE, Parcel::default(), DEADLINE).await?;
        links.push(link);
    }
    let window = args.window();
    let (meter, start) = (RefCell::new(Meter::new(window)), Instant::now());
    let before = RefCell::new(None);
    let caller = async |links: &Rc<PeerLinks>| -> Result<()> {
        loop {
            let start_ns = ns(start.elapsed());
            if start_ns >= window.start_ns && before.borrow().is_none() {
                *before.borrow_mut() = Some(Spent::now());
            }
            if start_ns >= window.end_ns || stop.is_set() {
                return Ok(());
            }
            let (service, parcel, bytes) = question(args, part, &buffers);
            let answer = links.call(to, service, parcel, DEADLINE).await?;
            if part == Part::Call && answer.message.len() as u64 != args.answer_bytes {
                return Err(anyhow!("the answer has {} bytes instead of {}", answer.message.len(), args.answer_bytes));
            }
            let timing = Timing { intended_ns: start_ns, start_ns, end_ns: ns(start.elapsed()) };
            meter.borrow_mut().record(timing, bytes);
        }
    };
    let callers = links.iter().flat_map(|link| (0..depth).map(move |_| link)).map(caller);
    join_all(callers).await.into_iter().collect::<Result<Vec<()>>>()?;
    let mut meter = meter.into_inner();
    meter.close(ns(start.elapsed()));
    let spent = Spent::now().since(&before.take().unwrap_or_default());
    let (cpu, machine, write) = (spent.own, spent.machine, Some(Side::of(meter)));
    Ok(Job { name: part.name().to_owned(), about: args.about(part), write, cpu, machine, ..Job::default() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::usage::Usage;
    use clap::Parser;

    #[derive(Parser)]
    #[command(args_override_self = true)]
    struct Line {
        #[command(flatten)]
        args: RpcArgs,
    }

    fn args(more: &[&str]) -> RpcArgs {
        Line::try_parse_from([&["rpc", "--runtime", "400ms", "--warmup", "0"], more].concat()).unwrap().args
    }

    #[test]
    fn calls_of_any_size_are_answered_on_every_link() {
        let cpu = cpus::allowed()[0];
        let both = format!("{cpu},{cpu}");
        for more in [
            &["--request-bytes", "0", "--answer-bytes", "0", "--cpus", &both][..],
            &["--request-bytes", "300", "--answer-bytes", "5000", "--iodepth", "16", "--links", "3"],
            &["--request-bytes", "100k", "--answer-bytes", "100k", "--links", "2"],
        ] {
            let report = run(&args(&[&["--part", "call"], more].concat()), Stop::default()).unwrap();
            let job = &report.jobs[0];
            assert!(report.jobs.len() == 1 && job.name == "call" && job.ops() > 0, "{more:?}");
            let bytes = job.bytes() / job.ops();
            let wanted = report.manifest.options["request_bytes"].as_u64().unwrap()
                + report.manifest.options["answer_bytes"].as_u64().unwrap();
            assert_eq!(bytes, wanted.max(1), "{more:?}");
        }
    }

    #[test]
    fn impossible_arguments_are_named_with_a_remedy() {
        for wrong in [
            ["--request-bytes", "3m"],
            ["--answer-bytes", "3m"],
            ["--bs", "9m"],
            ["--runtime", "0"],
            ["--cpus", "0"],
            ["--cpus", "9999,0"],
        ] {
            let error = run(&args(&wrong), Stop::default()).unwrap_err();
            assert!(error.is::<Usage>() && error.to_string().starts_with(wrong[0]), "{wrong:?}: {error:#}");
        }
        for wrong in [["--iodepth", "129"], ["--links", "0"], ["--part", "all"], ["--cpus", "x"], ["--bs", "0"]] {
            assert!(Line::try_parse_from([&["rpc"][..], &wrong].concat()).is_err(), "{wrong:?}");
        }
    }
}
