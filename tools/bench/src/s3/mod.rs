//! PUT and GET against any S3 endpoint.
//!
//! hyper's HTTP/1 client over rustls, on a few threads with a tokio runtime each: it keeps bodies without copies and
//! connections without locks, and costs a fraction of what servers spend on the same request, so that on a small
//! machine it measures the server and not itself. What it costs stands in every result.

pub mod admin_page;
pub mod body;
pub mod cleanup;
mod client;
pub mod connection;
pub mod content;
pub mod crew;
mod due;
pub mod endpoint;
mod listing;
pub mod objects;
pub mod operations;
mod run;
pub mod server_times;
pub mod servers;
pub mod session;
pub mod sigv4;
pub mod target;

use crate::length::LengthArgs;
use crate::load_args::{LoadArgs, SpanArgs};
use crate::measure::Plan;
use crate::output::{OutputArgs, Report};
use crate::stop::Stop;
use crate::sweep::Variable;
use crate::usage::usage;
use anyhow::Result;
use clap::Args;
use content::Content;
use objects::Naming;
use serde::Serialize;
use servers::AdminArgs;
use std::sync::Arc;
use target::{Target, TargetArgs};

/// Smallest part that S3 takes, except for the last one.
pub const PART_LEN_BYTES_MIN: u64 = 5 << 20;

/// Most parts of an upload.
pub const PARTS_MAX: u64 = 10_000;

/// Most clients.
const CLIENTS_MAX: u16 = 10_000;

/// Operations a second that a schedule can have.
const RATE_MIN: f64 = 0.001;
const RATE_MAX: f64 = 1e7;

/// Objects that are read by default: as many as hold this much, within the limits beside it.
const READ_SET_LEN_BYTES: u64 = 1 << 30;

const EXAMPLES: &str = "\
Environment: AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN, AWS_REGION, AWS_CA_BUNDLE,
as every SDK reads them; `make run` writes them to .kiseki/env.

Examples:
  # 1 MiB PUTs by 8 clients, with the server's processor time beside our own
  . .kiseki/env; kiseki-bench s3 --op put --size 1m --clients 8 --server-pid $(pidof kiseki-server)
  # Where the time of a PUT goes in the server, at p50, p99 and p99.9
  kiseki-bench s3 --op put --size 4k --clients 16 --server-admin http://127.0.0.1:9090
  # GETs, every byte checked
  kiseki-bench s3 --op get --size 64k --clients 16 --runtime 30s --verify --cleanup
  # 70 % GET, 30 % PUT at 2000 operations a second, whether or not the server keeps up
  kiseki-bench s3 --op mixed:70/30 --size 4k --clients 64 --rate 2000 --hgrm out.hgrm --json
  # from 1 to 64 clients, and open loop at three rates; the knee is marked
  kiseki-bench s3 --op get --size 64k --sweep clients=1..64 --runtime 5s --cleanup
  kiseki-bench s3 --op put --size 4k --clients 64 --sweep rate=1000,2000,4000 --cleanup
  # measure once throughput and latency are steady, but wait no longer than five minutes
  kiseki-bench s3 --op put --size 1m --steadystate --steadystate-timeout 5m
  # 64 MiB objects in parts of 8 MiB, 4 connections for each of 2 clients
  kiseki-bench s3 --op put --size 64m --part-size 8m --part-concurrency 4 --clients 2";

/// How many operations are GETs; the others are PUTs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mix {
    /// Out of 100.
    pub get_percent: u8,
}

impl Mix {
    /// Whether there are GETs.
    pub fn reads(self) -> bool {
        self.get_percent > 0
    }

    /// Whether there are PUTs.
    pub fn writes(self) -> bool {
        self.get_percent < 100
    }

    /// As it is typed.
    pub fn word(self) -> String {
        match self.get_percent {
            100 => "get".to_owned(),
            0 => "put".to_owned(),
            get => format!("mixed:{get}/{}", 100 - get),
        }
    }
}

/// Parses `put`, `get` or `mixed:70/30`, GETs first.
pub fn parse_mix(text: &str) -> std::result::Result<Mix, String> {
    let wrong =
        || format!("{text:?} is none of put, get, mixed:GET/PUT with shares that make 100, such as mixed:70/30");
    match text {
        "put" => return Ok(Mix { get_percent: 0 }),
        "get" => return Ok(Mix { get_percent: 100 }),
        _ => {}
    }
    let shares = text.strip_prefix("mixed:").and_then(|shares| shares.split_once('/'));
    let shares = shares.and_then(|(get, put)| Some((get.parse::<u8>().ok()?, put.parse::<u8>().ok()?)));
    match shares {
        Some((get_percent, put)) if u16::from(get_percent) + u16::from(put) == 100 => Ok(Mix { get_percent }),
        _ => Err(wrong()),
    }
}

/// Parses a share from 0 to 1.
pub fn parse_ratio(text: &str) -> std::result::Result<f64, String> {
    let ratio = text.parse().ok().filter(|ratio| (0.0..=1.0).contains(ratio));
    ratio.ok_or_else(|| format!("{text:?} is no ratio; give 0 to 1, such as 0.3"))
}

/// Parses operations a second.
pub fn parse_rate(text: &str) -> std::result::Result<f64, String> {
    let rate = text.parse().ok().filter(|rate: &f64| (RATE_MIN..=RATE_MAX).contains(rate));
    rate.ok_or_else(|| format!("{text:?} is no rate; give operations a second, such as 2000"))
}

/// Arguments of `s3`.
#[derive(Args, Clone, Debug, Serialize)]
#[command(after_help = EXAMPLES)]
pub struct S3Args {
    /// What is done.
    #[command(flatten)]
    #[serde(flatten)]
    pub load: LoadArgs,
    /// For how long.
    #[command(flatten)]
    #[serde(flatten)]
    pub span: SpanArgs,
    /// Parts of one object that are on their way at once, each on a connection of its own
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=256))]
    pub part_concurrency: u16,
    /// Clients, each with one operation at a time
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..=i64::from(CLIENTS_MAX)))]
    pub clients: u16,
    /// Count, steady state, steps.
    #[command(flatten)]
    #[serde(flatten)]
    pub length: LengthArgs,
    /// Who tells where the time went.
    #[command(flatten)]
    #[serde(flatten)]
    pub admin: AdminArgs,
    /// Where objects go.
    #[command(flatten)]
    #[serde(flatten)]
    pub target: TargetArgs,
    /// How results are written.
    #[command(flatten)]
    pub output: OutputArgs,
}

/// Operations stand in the manifest as they are typed.
pub fn mix_text<S: serde::Serializer>(mix: &Mix, serializer: S) -> std::result::Result<S::Ok, S::Error> {
    serializer.serialize_str(&mix.word())
}

impl S3Args {
    fn check(&self) -> Result<()> {
        self.span.check()?;
        self.target.check()?;
        self.target.check_parts(self.load.size)?;
        self.length.check()?;
        self.check_sweep()?;
        let clients = self.steps().iter().map(|step| step.clients).max().unwrap_or(self.clients);
        self.load.check(clients)
    }

    fn check_sweep(&self) -> Result<()> {
        let Some(sweep) = &self.length.sweep else { return Ok(()) };
        let last = sweep.values.last().copied().unwrap_or(0.0);
        match sweep.variable {
            Variable::Clients if self.load.rate.is_some() => {
                Err(usage("--sweep clients=...: with --rate more clients bring no more load; sweep rate=... instead"))
            }
            Variable::Clients if last > f64::from(CLIENTS_MAX) => {
                Err(usage(format!("--sweep: at most {CLIENTS_MAX} clients, such as clients=1..64")))
            }
            Variable::Rate if last > RATE_MAX || sweep.values[0] < RATE_MIN => {
                Err(usage(format!("--sweep: rates are {RATE_MIN} to {RATE_MAX}, such as rate=1000,2000,4000")))
            }
            Variable::Rate if self.load.rate.is_some() => Err(usage("--sweep rate=...: leave out --rate")),
            Variable::Iodepth => Err(usage("--sweep: endpoints are swept by clients or rate, such as clients=1..64")),
            Variable::Clients | Variable::Rate => Ok(()),
        }
    }

    fn plan(&self) -> Plan {
        let (warmup, runtime) = (self.span.warmup, self.span.runtime);
        Plan { warmup, runtime, count: self.length.count, steady: self.length.steady() }
    }

    /// The loads to run one after the other: one, or the steps of a sweep.
    fn steps(&self) -> Vec<S3Args> {
        let Some(sweep) = &self.length.sweep else { return vec![self.clone()] };
        let step = |value: &f64| match sweep.variable {
            Variable::Rate => S3Args { load: LoadArgs { rate: Some(*value), ..self.load.clone() }, ..self.clone() },
            _ => S3Args { clients: *value as u16, ..self.clone() },
        };
        sweep.values.iter().map(step).collect()
    }

    fn about(&self) -> String {
        let rate = self.load.rate.map_or_else(String::new, |rate| format!(", rate={rate}"));
        format!(
            "op={}, bs={}, clients={}{rate}",
            self.load.op.word(),
            crate::units::binary(self.load.size as f64),
            self.clients
        )
    }
}

/// A run, made ready.
#[derive(Clone)]
pub struct Setup {
    /// What was asked for.
    pub args: S3Args,
    /// Seed of the run.
    pub seed: u64,
    /// What objects hold.
    pub content: Arc<Content>,
    /// What they are called.
    pub naming: Naming,
    /// Where they are.
    pub target: Target,
    /// Objects that are stored first and then read.
    pub read_objects: u64,
    /// Clients.
    pub clients: usize,
    /// Number of the first of them: those of a sweep's steps are numbered through, so that none writes what another wrote.
    pub first_client: usize,
    /// Threads.
    pub threads: usize,
}

impl Setup {
    fn new(args: &S3Args) -> Result<Setup> {
        args.check()?;
        let target = Target::open(&args.target)?;
        let seed = args.load.seed.unwrap_or_else(crate::noise::fresh_seed);
        let read_objects = args.load.read_objects(READ_SET_LEN_BYTES);
        let clients = usize::from(args.clients);
        Ok(Setup {
            args: args.clone(),
            seed,
            content: Arc::new(Content::new(seed)),
            naming: Naming::new(&args.target.prefix, seed, args.load.dedup_ratio),
            target,
            read_objects,
            clients,
            first_client: 0,
            threads: args.target.threads_for(clients),
        })
    }

    /// What is run one after the other, over the same objects to read.
    fn steps(&self) -> Vec<Setup> {
        let mut first_client = 0;
        let step = |args: S3Args| {
            let clients = usize::from(args.clients);
            let threads = args.target.threads_for(clients);
            let step = Setup { args, clients, first_client, threads, ..self.clone() };
            first_client += clients;
            step
        };
        self.args.steps().into_iter().map(step).collect()
    }

    /// More than one only for objects that go up in parts.
    pub fn connections_per_client(&self) -> usize {
        let in_parts = self.args.load.op.writes() || self.read_objects > 0;
        let is_large = self.args.load.size > self.args.target.part_size;
        if in_parts && is_large { usize::from(self.args.part_concurrency) } else { 1 }
    }

    /// Keys of each client before it begins again.
    pub fn slots_per_client(&self) -> Option<u64> {
        self.args.load.objects.map(|objects| (objects / self.clients as u64).max(1))
    }
}

/// Measures.
pub fn run(args: &S3Args, stop: Stop) -> Result<Report> {
    run::run(&Setup::new(args)?, &stop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::usage::Usage;
    use clap::Parser;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: S3Args,
    }

    fn args(more: &[&str]) -> S3Args {
        Line::try_parse_from([&["s3"], more].concat()).unwrap().args
    }

    #[test]
    fn mixes_name_gets_first() {
        for (text, get_percent) in [("put", 0), ("get", 100), ("mixed:70/30", 70), ("mixed:0/100", 0)] {
            assert_eq!(parse_mix(text), Ok(Mix { get_percent }), "{text}");
            assert_eq!(parse_mix(&Mix { get_percent }.word()), Ok(Mix { get_percent }));
        }
        for text in ["", "PUT", "mixed", "mixed:70", "mixed:70/31", "mixed:-1/101", "mixed:a/b"] {
            assert!(parse_mix(text).is_err_and(|why| why.contains("mixed:70/30")), "{text:?}");
        }
    }

    #[test]
    fn impossible_arguments_are_named_with_a_remedy() {
        args(&["--size", "64m", "--part-size", "5m"]).check().unwrap();
        for wrong in [
            &["--size", "64m", "--part-size", "1m"][..],
            &["--runtime", "0"],
            &["--timeout", "0"],
            &["--objects", "0", "--op", "get"],
            &["--objects", "4", "--clients", "5"],
            &["--bucket", "No_Bucket"],
            &["--bucket", "x"],
            &["--sweep", "iodepth=1..4"],
            &["--sweep", "clients=1..4", "--rate", "5"],
            &["--sweep", "rate=1,2", "--rate", "5"],
            &["--sweep", "rate=1,1e8"],
            &["--sweep", "clients=1..65536"],
        ] {
            let error = args(wrong).check().unwrap_err();
            assert!(
                error.is::<Usage>()
                    && error.to_string().contains(wrong[0].trim_start_matches("--size").trim_start_matches("64m")),
                "{error}"
            );
        }
        assert!(parse_ratio("1.5").is_err() && parse_ratio("0.3") == Ok(0.3));
        assert!(parse_rate("0").is_err() && parse_rate("nan").is_err() && parse_rate("2000") == Ok(2000.0));
    }
}
