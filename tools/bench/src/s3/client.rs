//! One client: a connection (several for parts side by side), one operation after the other.

use super::body::{PieceMemory, Source};
use super::connection::Connection;
use super::due::DueQueue;
use super::objects::Written;
use super::operations::{Expected, PreparedPut};
use super::{Mix, Setup};
use crate::measure::{Course, ErrorLog, Latency, Meter, Timing};
use crate::noise::Noise;
use crate::units::ns;
use anyhow::{Result, anyhow};
use std::time::{Duration, Instant};

/// A client waits this long after a failure: a server that refuses is not to be stormed.
const FAILURE_PAUSE: Duration = Duration::from_millis(10);

/// A client.
pub struct Client<'a> {
    setup: &'a Setup,
    /// For single requests the first one.
    pub connections: Vec<Connection>,
    source: Source,
    noise: Noise,
    written: Written,
}

/// What a client measured.
pub struct ClientResult {
    /// GETs.
    pub read: Meter,
    /// PUTs.
    pub write: Meter,
    /// Until the head of a GET's answer.
    pub first_byte: Latency,
    /// Failures.
    pub errors: ErrorLog,
    /// Connections made.
    pub connects: u64,
    /// What it wrote.
    pub written: Written,
}

enum Operation {
    Get { index: u64 },
    Put { slot: u64, version: u32, put: PreparedPut },
}

impl<'a> Client<'a> {
    /// Client `number` of the run, not yet connected.
    pub fn new(setup: &'a Setup, number: usize) -> Client<'a> {
        let connections = (0..setup.connections_per_client()).map(|_| setup.target.connection()).collect();
        let source = Source { content: setup.content.clone(), memory: PieceMemory::default() };
        let number = setup.first_client + number;
        let noise = Noise::new(setup.seed ^ (number as u64).wrapping_mul(0x2545_f491_4f6c_dd1d));
        Client { setup, connections, source, noise, written: Written::new(number, setup.slots_per_client()) }
    }

    /// Opens all connections.
    pub async fn connect(&mut self) -> Result<()> {
        for connection in &mut self.connections {
            let connecting = tokio::time::timeout(self.setup.target.timeout, connection.ready());
            connecting.await.map_err(|_| anyhow!("connecting took longer than --timeout"))??;
        }
        Ok(())
    }

    /// Stores one of the objects that are read later.
    pub async fn put_read_object(&mut self, index: u64) -> Result<()> {
        let setup = self.setup;
        let id = setup.naming.read_content(&setup.content, index);
        let put =
            setup.target.bucket.prepare_put(&self.source, &setup.naming.read_key(index), id, setup.args.load.size);
        self.put(put).await
    }

    /// Reads back what a client wrote to a slot; its versions are those that may be found.
    pub async fn check_written(&mut self, client: usize, slot: u64, versions: &[u32]) -> Result<()> {
        let setup = self.setup;
        let content = |version: &u32| setup.naming.write_content(&setup.content, client, slot, *version);
        let contents = Some((&self.source.clone(), versions.iter().map(content).collect()));
        let expected = Expected { offset_bytes: 0, len_bytes: setup.args.load.size, contents };
        let key = setup.naming.write_key(client, slot);
        self.limited(async |client| {
            setup.target.bucket.get(&mut client.connections[0], &key, &expected).await.map(drop)
        })
        .await
    }

    /// Removes an object.
    pub async fn delete(&mut self, key: &str) -> Result<()> {
        self.limited(async |client| client.setup.target.bucket.delete(&mut client.connections[0], key).await).await
    }

    /// Gives up after `--timeout`; what is dropped then takes its connection with it.
    async fn limited<T>(&mut self, work: impl AsyncFnOnce(&mut Client<'a>) -> Result<T>) -> Result<T> {
        let target = &self.setup.target;
        target.limited(work(self)).await
    }

    async fn put(&mut self, put: PreparedPut) -> Result<()> {
        self.setup.target.put(&mut self.connections, &self.source, put).await
    }

    fn prepare(&mut self, mix: Mix) -> Operation {
        let setup = self.setup;
        if self.noise.below(100) < u64::from(mix.get_percent) {
            return Operation::Get { index: self.noise.below(setup.read_objects) };
        }
        let (slot, version) = self.written.begin();
        let client = self.written.client();
        let id = setup.naming.write_content(&setup.content, client, slot, version);
        let key = setup.naming.write_key(client, slot);
        Operation::Put {
            slot,
            version,
            put: setup.target.bucket.prepare_put(&self.source, &key, id, setup.args.load.size),
        }
    }

    async fn get(&mut self, index: u64) -> Result<Instant> {
        let setup = self.setup;
        let source = self.source.clone();
        let id = || setup.naming.read_content(&setup.content, index);
        let contents = setup.args.load.verify.then(|| (&source, vec![id()]));
        let expected = Expected { offset_bytes: 0, len_bytes: setup.args.load.size, contents };
        setup.target.bucket.get(&mut self.connections[0], &setup.naming.read_key(index), &expected).await
    }

    /// Works until the measurement ends.
    pub async fn run(mut self, course: &Course, queue: Option<&DueQueue>) -> ClientResult {
        let (window, mix) = (course.window(), self.setup.args.load.op);
        let mut result = ClientResult {
            read: Meter::new(window),
            write: Meter::new(window),
            first_byte: Latency::default(),
            errors: ErrorLog::default(),
            connects: 0,
            written: Written::new(0, None),
        };
        while !course.is_over() {
            let operation = self.prepare(mix);
            // In a closed loop the course ends the client; in an open one the queue does.
            let due_ns = match queue {
                None if course.may_begin() => None,
                None => break,
                Some(queue) => match queue.take().await {
                    None => break,
                    due => due,
                },
            };
            let start_ns = course.now_ns();
            let timing = |end_ns| Timing { intended_ns: due_ns.unwrap_or(start_ns), start_ns, end_ns };
            let done = match operation {
                Operation::Get { index } => {
                    let done = self.limited(async |client| client.get(index).await).await;
                    done.map(|first_byte| {
                        let (timing, window) = (timing(course.now_ns()), course.window());
                        result.read.set_window(window);
                        result.read.record(timing, self.setup.args.load.size);
                        if window.contains(start_ns) {
                            result.first_byte.record(ns(first_byte - course.epoch()) - start_ns);
                        }
                        timing
                    })
                }
                Operation::Put { slot, version, put } => {
                    let done = self.put(put).await;
                    match &done {
                        Ok(()) => self.written.acknowledge(slot, version),
                        Err(_) => self.written.doubt(slot, version),
                    }
                    done.map(|()| {
                        let timing = timing(course.now_ns());
                        result.write.set_window(course.window());
                        result.write.record(timing, self.setup.args.load.size);
                        timing
                    })
                }
            };
            match done {
                Ok(timing) => course.tally.done_in(self.setup.args.load.size, timing.end_ns - timing.intended_ns),
                Err(error) => {
                    result.errors.record(&format!("{error:#}"));
                    course.tally.failed();
                    tokio::time::sleep(FAILURE_PAUSE).await;
                }
            }
        }
        result.connects = self.connections.iter().map(Connection::connects).sum();
        result.written = self.written;
        result
    }
}
