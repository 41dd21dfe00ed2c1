//! Where objects go: endpoint, keys, bucket, and what every load on an endpoint can be told about them.

use super::PART_LEN_BYTES_MIN;
use super::body::Source;
use super::connection::Connection;
use super::crew::runtime;
use super::endpoint::Endpoint;
use super::operations::{Bucket, PreparedPut};
use super::sigv4::{Credentials, Signer};
use crate::cpus;
use crate::measure::ProcessCpu;
use crate::units::{parse_bytes, parse_duration};
use crate::usage::usage;
use anyhow::{Context, Result, anyhow};
use clap::{Args, ValueEnum};
use serde::Serialize;
use std::cell::RefCell;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// Whether bodies are hashed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum PayloadMode {
    /// UNSIGNED-PAYLOAD: the signature covers the head only, as SDKs do over TLS
    Unsigned,
    /// The SHA-256 of the body is signed; it is computed before the clock runs
    Signed,
}

/// Options of all loads on an S3 endpoint.
#[derive(Args, Clone, Debug, Serialize)]
pub struct TargetArgs {
    /// Larger objects go up in parts of this
    #[arg(long, value_parser = parse_bytes, default_value = "16m")]
    pub part_size: u64,
    /// Whether bodies are signed
    #[arg(long, value_enum, default_value = "unsigned")]
    pub payload: PayloadMode,
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
    /// An operation that takes longer has failed
    #[arg(long, value_parser = parse_duration, default_value = "60s")]
    #[serde(serialize_with = "crate::device::seconds")]
    pub timeout: Duration,
    /// Threads (default: one for every two processors that may be used, so that a server beside us has as many)
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=256))]
    pub threads: Option<u16>,
    /// Endpoint
    #[arg(long, env = "AWS_ENDPOINT_URL", value_name = "URL", hide_env_values = true)]
    pub endpoint: Option<String>,
    /// Region that requests are signed for (default: us-east-1)
    #[arg(long, env = "AWS_REGION", hide_env_values = true)]
    pub region: Option<String>,
    /// PEM file with the authorities to trust instead of the system's
    #[arg(long, env = "AWS_CA_BUNDLE", value_name = "FILE", hide_env_values = true)]
    pub ca_bundle: Option<PathBuf>,
}

impl TargetArgs {
    /// Errors: `Usage`.
    pub fn check(&self) -> Result<()> {
        if self.timeout.is_zero() {
            return Err(usage("--timeout 0: leave operations some time, such as 60s"));
        }
        let is_name = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '.';
        if !(3..=63).contains(&self.bucket.len()) || !self.bucket.chars().all(is_name) {
            return Err(usage(format!("--bucket {:?}: give 3 to 63 of a-z, 0-9, '-' and '.'", self.bucket)));
        }
        Ok(())
    }

    /// Whether objects of that length can go up in parts. Errors: `Usage`.
    pub fn check_parts(&self, len_bytes: u64) -> Result<()> {
        let parts = len_bytes.div_ceil(self.part_size);
        if len_bytes > self.part_size && (self.part_size < PART_LEN_BYTES_MIN || parts > super::PARTS_MAX) {
            let why = format!("{parts} parts of {} bytes", self.part_size);
            return Err(usage(format!("--part-size: {why}; parts have at least 5m, and an object at most 10000")));
        }
        Ok(())
    }

    /// Threads for so many clients.
    #[must_use]
    pub fn threads_for(&self, clients: usize) -> usize {
        self.threads.map_or_else(|| (cpus::allowed().len() / 2).max(1), usize::from).min(clients.max(1))
    }

    /// The authorities to trust, unless they are the system's.
    #[must_use]
    pub fn authorities(&self) -> Option<&std::path::Path> {
        self.ca_bundle.as_deref().filter(|path| !path.as_os_str().is_empty())
    }

    /// The servers whose processor time is read.
    pub fn servers(&self) -> Result<Vec<(u32, ProcessCpu)>> {
        self.server_pid.iter().map(|pid| Ok((*pid, ProcessCpu::of(*pid)?))).collect()
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

/// A bucket of an endpoint, and how to get there.
#[derive(Clone)]
pub struct Target {
    /// Where objects are.
    pub bucket: Bucket,
    /// An operation that takes longer has failed.
    pub timeout: Duration,
    endpoint: Arc<Endpoint>,
    credentials: Credentials,
}

impl Target {
    /// Errors: `Usage`, for what is missing or can't be.
    pub fn open(args: &TargetArgs) -> Result<Target> {
        args.check()?;
        let url = args.endpoint.as_deref().filter(|url| !url.is_empty());
        let url = url.ok_or_else(|| usage("no endpoint; give --endpoint or set AWS_ENDPOINT_URL"))?;
        let region = args.region.clone().or_else(|| std::env::var("AWS_DEFAULT_REGION").ok());
        let region = region.filter(|region| !region.is_empty()).unwrap_or_else(|| "us-east-1".to_owned());
        let credentials = credentials(region)?;
        let bucket = Bucket {
            name: args.bucket.clone(),
            part_len_bytes: args.part_size,
            signs_payload: args.payload == PayloadMode::Signed,
        };
        let endpoint = Arc::new(Endpoint::open(url, args.authorities())?);
        Ok(Target { bucket, timeout: args.timeout, endpoint, credentials })
    }

    /// As it was given.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.endpoint.url
    }

    /// A connection that is not yet made.
    #[must_use]
    pub fn connection(&self) -> Connection {
        Connection::new(self.endpoint.clone(), Signer::new(self.credentials.clone()))
    }

    /// Gives up after the time that an operation has; what is dropped then takes its connection with it.
    pub async fn limited<T>(&self, work: impl Future<Output = Result<T>>) -> Result<T> {
        let limit = tokio::time::timeout(self.timeout, work);
        limit.await.map_err(|_| anyhow!("no answer within --timeout {}s", self.timeout.as_secs_f64()))?
    }

    /// Stores an object within the time that an operation has; with several connections, its parts go up side by side. An upload
    /// in parts that fails or is given up is aborted; the error told is the first one.
    pub async fn put(&self, connections: &mut [Connection], source: &Source, put: PreparedPut) -> Result<()> {
        let open = RefCell::new(None);
        let stored = self.limited(self.bucket.put(connections, source, put, &open)).await;
        if let Some(upload) = open.take() {
            let _ = self.limited(upload.abort(&mut connections[0])).await;
        }
        stored
    }

    /// Makes the bucket unless it is there. Returns whether it made it.
    pub fn ensure_bucket(&self) -> Result<bool> {
        let mut connection = self.connection();
        let ensuring = self.limited(self.bucket.ensure(&mut connection, &self.credentials.region));
        runtime()?.block_on(ensuring).with_context(|| format!("endpoint {}", self.url()))
    }

    /// Removes the bucket, which must be empty.
    pub fn remove_bucket(&self) -> Result<()> {
        let mut connection = self.connection();
        let removing = self.limited(self.bucket.remove(&mut connection));
        runtime()?.block_on(removing).context("the bucket can't be removed")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::s3::body::PieceMemory;
    use crate::s3::content::Content;
    use std::io::{BufRead, BufReader, Read, Write};
    use std::net::{TcpListener, TcpStream};
    use std::sync::mpsc::{self, Receiver, Sender};
    use std::thread;

    /// Answers one connection: an upload begins and is aborted, and `part` becomes of each part. Tells every request line.
    fn serve(stream: &TcpStream, asked: &Sender<String>, part: Option<&str>) -> std::io::Result<()> {
        let mut reader = BufReader::new(stream);
        loop {
            let (mut line, mut header, mut len_bytes) = (String::new(), String::new(), 0);
            reader.read_line(&mut line)?;
            while reader.read_line(&mut header)? > 2 {
                if let Some(value) = header.to_lowercase().strip_prefix("content-length:") {
                    len_bytes = value.trim().parse().unwrap_or(0);
                }
                header.clear();
            }
            reader.read_exact(&mut vec![0; len_bytes])?;
            if line.is_empty() || asked.send(line.clone()).is_err() {
                return Ok(());
            }
            let created = "<R><UploadId>u1</UploadId></R>";
            let created = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{created}", created.len());
            let answer = match line.split(' ').next() {
                Some("POST") => &created,
                Some("DELETE") => "HTTP/1.1 204 No Content\r\n\r\n",
                // Without an answer the client waits until it gives up, and closes.
                _ => match part {
                    Some(answer) => answer,
                    None => continue,
                },
            };
            let mut writer = stream;
            writer.write_all(answer.as_bytes())?;
        }
    }

    fn endpoint(part: Option<&'static str>) -> (String, Receiver<String>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let (asked, requests) = mpsc::channel();
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let asked = asked.clone();
                thread::spawn(move || serve(&stream, &asked, part));
            }
        });
        (url, requests)
    }

    /// Stores ten bytes in parts of six; what was asked of the endpoint, and the error.
    fn put_in_parts(part: Option<&'static str>) -> (Vec<String>, String) {
        let (url, requests) = endpoint(part);
        let key = || "k".to_owned();
        let (access_key_id, secret_access_key, region) = (key(), key(), key());
        let target = Target {
            bucket: Bucket { name: "b".to_owned(), part_len_bytes: 6, signs_payload: false },
            timeout: Duration::from_secs(2),
            endpoint: Arc::new(Endpoint::open(&url, None).unwrap()),
            credentials: Credentials { access_key_id, secret_access_key, session_token: None, region },
        };
        let source = Source { content: Arc::new(Content::new(1)), memory: PieceMemory::default() };
        let put = target.bucket.prepare_put(&source, "key", source.content.id([1, 2, 3], 0.0), 10);
        let stored = runtime().unwrap().block_on(target.put(&mut [target.connection()], &source, put));
        let lines = requests.try_iter().map(|line| line.split(' ').take(2).collect::<Vec<_>>().join(" "));
        (lines.collect(), format!("{:#}", stored.unwrap_err()))
    }

    #[test]
    fn an_upload_that_fails_or_is_given_up_is_aborted() {
        let refusal = "HTTP/1.1 503 Slow Down\r\ncontent-length: 0\r\n\r\n";
        for (part, error) in [(None, "--timeout"), (Some(refusal), "503")] {
            let (asked, told) = put_in_parts(part);
            let whole = ["POST /b/key?uploads=", "PUT /b/key?partNumber=1&uploadId=u1", "DELETE /b/key?uploadId=u1"];
            assert_eq!(asked, whole, "{told}");
            assert!(told.contains(error), "the first error is told: {told}");
        }
    }
}
