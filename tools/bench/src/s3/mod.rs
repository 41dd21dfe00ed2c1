//! PUT and GET against any S3 endpoint.
//!
//! hyper's HTTP/1 client over rustls, on a few threads with a tokio runtime each: it keeps bodies without copies and
//! connections without locks, and costs a fraction of what servers spend on the same request, so that on a small
//! machine it measures the server and not itself. What it costs stands in every result.

mod admin_page;
mod body;
mod client;
mod connection;
pub mod content;
mod crew;
mod due;
mod endpoint;
pub mod objects;
mod operations;
mod run;
mod server_times;
mod sigv4;

use crate::cpus;
use crate::device::seconds;
use crate::output::{OutputArgs, Report};
use crate::stop::Stop;
use crate::units::{parse_bytes, parse_duration};
use crate::usage::usage;
use anyhow::Result;
use clap::{Args, ValueEnum};
use connection::Connection;
use content::Content;
use endpoint::Endpoint;
use objects::Naming;
use operations::Bucket;
use serde::Serialize;
use sigv4::{Credentials, Signer};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// Smallest part that S3 takes, except for the last one.
const PART_LEN_BYTES_MIN: u64 = 5 << 20;

/// Most parts of an upload.
const PARTS_MAX: u64 = 10_000;

/// Objects that are read by default: as many as hold this much, within the limits beside it.
const READ_SET_LEN_BYTES: u64 = 1 << 30;
const READ_OBJECTS_MIN: u64 = 8;
const READ_OBJECTS_MAX: u64 = 1000;

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
    let rate = text.parse().ok().filter(|rate: &f64| (0.001..=1e7).contains(rate));
    rate.ok_or_else(|| format!("{text:?} is no rate; give operations a second, such as 2000"))
}

/// Whether bodies are hashed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum PayloadMode {
    /// UNSIGNED-PAYLOAD: the signature covers the head only, as SDKs do over TLS
    Unsigned,
    /// The SHA-256 of the body is signed; it is computed before the clock runs
    Signed,
}

/// Arguments of `s3`.
#[derive(Args, Clone, Debug, Serialize)]
#[command(after_help = EXAMPLES)]
pub struct S3Args {
    /// put, get, or mixed:GET/PUT in percent
    #[arg(long, value_parser = parse_mix, default_value = "put")]
    #[serde(serialize_with = "mix_text")]
    pub op: Mix,
    /// Bytes of an object
    #[arg(long, value_parser = parse_bytes, default_value = "1m")]
    pub size: u64,
    /// Larger objects go up in parts of this
    #[arg(long, value_parser = parse_bytes, default_value = "16m")]
    pub part_size: u64,
    /// Parts of one object that are on their way at once, each on a connection of its own
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=256))]
    pub part_concurrency: u16,
    /// Clients, each with one operation at a time
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..=10_000))]
    pub clients: u16,
    /// Objects to read, and keys that PUTs write over and over (default: 1 GiB of objects to read, at least 8 and at
    /// most 1000; a new key for every PUT)
    #[arg(long)]
    pub objects: Option<u64>,
    /// How long to measure
    #[arg(long, value_parser = parse_duration, default_value = "10s")]
    #[serde(serialize_with = "seconds")]
    pub runtime: Duration,
    /// How long to run before measuring
    #[arg(long, value_parser = parse_duration, default_value = "2s")]
    #[serde(serialize_with = "seconds")]
    pub warmup: Duration,
    /// Operations a second that become due in an open loop, of all clients together; latencies count from then
    #[arg(long, value_parser = parse_rate, value_name = "OPS")]
    pub rate: Option<f64>,
    /// Check every byte of GETs; after the measurement, read back and check what was PUT
    #[arg(long)]
    pub verify: bool,
    /// Whether bodies are signed
    #[arg(long, value_enum, default_value = "unsigned")]
    pub payload: PayloadMode,
    /// Share of objects that all hold the same bytes; other objects have nothing in common
    #[arg(long, value_parser = parse_ratio, default_value = "0", value_name = "RATIO")]
    pub dedup_ratio: f64,
    /// Bucket; made when it is missing
    #[arg(long, default_value = "kiseki-bench")]
    pub bucket: String,
    /// In front of every key; below it every run has a directory of its own
    #[arg(long, default_value = "")]
    pub prefix: String,
    /// Remove the objects afterwards, and the bucket if it was made by this run
    #[arg(long)]
    pub cleanup: bool,
    /// Server process of this machine whose processor time is shown; repeatable
    #[arg(long, value_name = "PID")]
    pub server_pid: Vec<u32>,
    /// Admin port of a Kiseki node, such as http://127.0.0.1:9090: what it spent its time on is shown; repeatable
    #[arg(long, value_name = "URL")]
    pub server_admin: Vec<String>,
    /// An operation that takes longer has failed
    #[arg(long, value_parser = parse_duration, default_value = "60s")]
    #[serde(serialize_with = "seconds")]
    pub timeout: Duration,
    /// Threads (default: one for every two processors that may be used, so that a server beside us has as many)
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=256))]
    pub threads: Option<u16>,
    /// Seed of contents and choices; without it every run has its own. The same seed again stores the same objects
    #[arg(long)]
    pub seed: Option<u64>,
    /// Endpoint
    #[arg(long, env = "AWS_ENDPOINT_URL", value_name = "URL", hide_env_values = true)]
    pub endpoint: Option<String>,
    /// Region that requests are signed for (default: us-east-1)
    #[arg(long, env = "AWS_REGION", hide_env_values = true)]
    pub region: Option<String>,
    /// PEM file with the authorities to trust instead of the system's
    #[arg(long, env = "AWS_CA_BUNDLE", value_name = "FILE", hide_env_values = true)]
    pub ca_bundle: Option<PathBuf>,
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
        if self.runtime.is_zero() {
            return Err(usage("--runtime 0: measure for some time, such as 10s"));
        }
        if self.timeout.is_zero() {
            return Err(usage("--timeout 0: leave operations some time, such as 60s"));
        }
        if self.size > self.part_size {
            let parts = self.size.div_ceil(self.part_size);
            if self.part_size < PART_LEN_BYTES_MIN || parts > PARTS_MAX {
                let why = format!("{parts} parts of {} bytes", self.part_size);
                return Err(usage(format!("--part-size: {why}; parts have at least 5m, and an object at most 10000")));
            }
        }
        if self.objects == Some(0) {
            return Err(usage("--objects 0: name at least one object"));
        }
        if self.op.writes() && self.objects.is_some_and(|objects| objects < u64::from(self.clients)) {
            let clients = self.clients;
            return Err(usage(format!(
                "--objects: {clients} clients that write need a key each; give {clients} or more"
            )));
        }
        let is_name = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '.';
        if !(3..=63).contains(&self.bucket.len()) || !self.bucket.chars().all(is_name) {
            return Err(usage(format!("--bucket {:?}: give 3 to 63 of a-z, 0-9, '-' and '.'", self.bucket)));
        }
        Ok(())
    }

    fn about(&self) -> String {
        let rate = self.rate.map_or_else(String::new, |rate| format!(", rate={rate}"));
        format!("op={}, bs={}, clients={}{rate}", self.op.word(), crate::units::binary(self.size as f64), self.clients)
    }
}

/// The keys, from where every SDK takes them.
fn credentials(region: String) -> Result<Credentials> {
    let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    let needed = |name: &str| {
        variable(name)
            .ok_or_else(|| usage(format!("{name} is not set; set it, for a node of ours with: . .kiseki/env")))
    };
    Ok(Credentials {
        access_key_id: needed("AWS_ACCESS_KEY_ID")?,
        secret_access_key: needed("AWS_SECRET_ACCESS_KEY")?,
        session_token: variable("AWS_SESSION_TOKEN"),
        region,
    })
}

/// A run, made ready.
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
    pub bucket: Bucket,
    /// Objects that are stored first and then read.
    pub read_objects: u64,
    /// Clients.
    pub clients: usize,
    /// Threads.
    pub threads: usize,
    endpoint: Arc<Endpoint>,
    credentials: Credentials,
}

impl Setup {
    fn new(args: &S3Args) -> Result<Setup> {
        args.check()?;
        let url = args.endpoint.as_deref().filter(|url| !url.is_empty());
        let url = url.ok_or_else(|| usage("no endpoint; give --endpoint or set AWS_ENDPOINT_URL"))?;
        let region = args.region.clone().or_else(|| std::env::var("AWS_DEFAULT_REGION").ok());
        let region = region.filter(|region| !region.is_empty()).unwrap_or_else(|| "us-east-1".to_owned());
        let credentials = credentials(region)?;
        let ca_bundle = args.ca_bundle.as_deref().filter(|path| !path.as_os_str().is_empty());
        let endpoint = Arc::new(Endpoint::open(url, ca_bundle)?);
        let seed = args.seed.unwrap_or_else(crate::noise::fresh_seed);
        let by_default = (READ_SET_LEN_BYTES / args.size).clamp(READ_OBJECTS_MIN, READ_OBJECTS_MAX);
        let read_objects = if args.op.reads() { args.objects.unwrap_or(by_default) } else { 0 };
        let clients = usize::from(args.clients);
        let threads = args.threads.map_or_else(|| (cpus::allowed().len() / 2).max(1), usize::from).min(clients);
        let bucket = Bucket {
            name: args.bucket.clone(),
            part_len_bytes: args.part_size,
            signs_payload: args.payload == PayloadMode::Signed,
        };
        Ok(Setup {
            args: args.clone(),
            seed,
            content: Arc::new(Content::new(seed)),
            naming: Naming::new(&args.prefix, seed, args.dedup_ratio),
            bucket,
            read_objects,
            clients,
            threads,
            endpoint,
            credentials,
        })
    }

    /// A connection that is not yet made.
    pub fn connection(&self) -> Connection {
        Connection::new(self.endpoint.clone(), Signer::new(self.credentials.clone()))
    }

    /// More than one only for objects that go up in parts.
    pub fn connections_per_client(&self) -> usize {
        let in_parts = self.args.op.writes() || self.read_objects > 0;
        if in_parts && self.args.size > self.args.part_size { usize::from(self.args.part_concurrency) } else { 1 }
    }

    /// Keys of each client before it begins again.
    pub fn slots_per_client(&self) -> Option<u64> {
        self.args.objects.map(|objects| (objects / self.clients as u64).max(1))
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
