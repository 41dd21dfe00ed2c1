//! One client: a task of a core, one operation after the other.

use super::load::{CoreSide, Run};
use super::reading::{Expected, read_all};
use crate::measure::{ErrorLog, Latency, Meter, Timing, thread_cpu_ns};
use crate::noise::Noise;
use crate::s3::content::ContentId;
use crate::s3::objects::Written;
use crate::units::ns;
use anyhow::{Context, Result};
use bytes::Bytes;
use kiseki_engine::api::FinishWrite;
use kiseki_types::runtime::RuntimeExt;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The bucket of all objects.
pub const BUCKET: &str = "kiseki-bench";

/// Bytes that a writer is given at once.
const SLICE_LEN_BYTES: u64 = 256 << 10;

/// A client waits this long after a failure: an engine that refuses is not to be stormed.
const FAILURE_PAUSE: Duration = Duration::from_millis(10);

/// What clients of a core measured.
pub struct Measured {
    /// GETs.
    pub read: Meter,
    /// PUTs.
    pub write: Meter,
    /// Until the first bytes of a GET.
    pub first_byte: Latency,
    /// Failures.
    pub errors: ErrorLog,
}

impl Measured {
    /// Nothing yet.
    pub fn new(run: &Run) -> Measured {
        let meter = || Meter::new(run.window);
        Measured { read: meter(), write: meter(), first_byte: Latency::default(), errors: ErrorLog::default() }
    }

    /// Adds what others measured.
    pub fn merge(&mut self, other: &Measured) {
        self.read.merge(&other.read);
        self.write.merge(&other.write);
        self.first_byte.merge(&other.first_byte);
        self.errors.merge(&other.errors);
    }
}

enum Operation {
    Get { index: u64 },
    Put { slot: u64, version: u32, key: String, slices: Vec<Bytes> },
}

/// A client.
pub struct Client {
    run: Arc<Run>,
    side: Rc<CoreSide>,
    noise: Noise,
    /// What it wrote.
    pub written: Written,
    /// What it measured.
    pub measured: Measured,
}

impl Client {
    /// Client `number` of the run.
    pub fn new(run: &Arc<Run>, side: &Rc<CoreSide>, number: usize) -> Client {
        let noise = Noise::new(run.seed ^ (number as u64).wrapping_mul(0x2545_f491_4f6c_dd1d));
        let written = Written::new(number, run.args.slots_per_client());
        Client { run: run.clone(), side: side.clone(), noise, written, measured: Measured::new(run) }
    }

    /// An object's content, made before any clock runs.
    fn slices(&self, id: ContentId) -> Vec<Bytes> {
        let (begin, len_bytes) = (thread_cpu_ns(), self.run.args.load.size);
        let starts = (0..len_bytes.div_ceil(SLICE_LEN_BYTES)).map(|number| number * SLICE_LEN_BYTES);
        let slices = starts.map(|start| {
            let mut slice = vec![0; SLICE_LEN_BYTES.min(len_bytes - start) as usize];
            self.run.content.fill(id, start, &mut slice);
            Bytes::from(slice)
        });
        let slices = slices.collect();
        self.side.add_load_cpu(thread_cpu_ns() - begin);
        slices
    }

    async fn put(&self, key: &str, slices: Vec<Bytes>) -> Result<()> {
        let (store, tenant) = (&self.side.store, self.side.tenant);
        let mut writer = store.put(tenant, BUCKET, key, Some(self.run.args.load.size)).await.context("PUT")?;
        for slice in slices {
            writer.write(slice).await.context("PUT")?;
        }
        writer.finish(FinishWrite::default()).await.context("PUT")?;
        Ok(())
    }

    /// Reads an object. Returns when its first bytes were there.
    async fn get(&self, key: &str, ids: Option<Vec<ContentId>>) -> Result<Option<Instant>> {
        let mut reader = self.side.store.get(self.side.tenant, BUCKET, key).await.context("GET")?;
        let expected = Expected { len_bytes: self.run.args.load.size, content: &self.run.content, ids };
        let read = read_all(reader.as_mut(), expected).await?;
        self.side.add_load_cpu(read.check_cpu_ns);
        Ok(read.first_bytes)
    }

    /// Stores one of the objects that are read later.
    pub async fn put_read_object(&self, index: u64) -> Result<()> {
        let id = self.run.naming.read_content(&self.run.content, index);
        self.put(&self.run.naming.read_key(index), self.slices(id)).await
    }

    /// Reads back what it wrote to a slot; its versions are those that may be found.
    pub async fn check_written(&self, slot: u64, versions: &[u32]) -> Result<()> {
        let (naming, number) = (&self.run.naming, self.written.client());
        let content = |version: &u32| naming.write_content(&self.run.content, number, slot, *version);
        self.get(&naming.write_key(number, slot), Some(versions.iter().map(content).collect())).await.map(drop)
    }

    fn prepare(&mut self) -> Operation {
        if self.noise.below(100) < u64::from(self.run.args.load.op.get_percent) {
            return Operation::Get { index: self.noise.below(self.run.read_objects) };
        }
        let ((slot, version), number) = (self.written.begin(), self.written.client());
        let id = self.run.naming.write_content(&self.run.content, number, slot, version);
        let key = self.run.naming.write_key(number, slot);
        Operation::Put { slot, version, key, slices: self.slices(id) }
    }

    /// Works until the window ends.
    pub async fn work(&mut self, epoch: Instant) {
        let (run, side) = (self.run.clone(), self.side.clone());
        let (window, now_ns) = (run.window, || ns(epoch.elapsed()));
        while !run.stop.is_set() && now_ns() < window.end_ns {
            let operation = self.prepare();
            let due_ns = match side.due(&run, epoch).await {
                Some(due_ns) => due_ns,
                None => break,
            };
            let start_ns = now_ns();
            let timing = |end_ns| Timing { intended_ns: due_ns.min(start_ns), start_ns, end_ns };
            let done = match operation {
                Operation::Get { index } => {
                    let ids = run.args.load.verify.then(|| vec![run.naming.read_content(&run.content, index)]);
                    let done = self.get(&run.naming.read_key(index), ids).await;
                    done.map(|first_bytes| {
                        self.measured.read.record(timing(now_ns()), run.args.load.size);
                        if let Some(first_bytes) = first_bytes.filter(|_| window.contains(start_ns)) {
                            self.measured.first_byte.record(ns(first_bytes - epoch).saturating_sub(start_ns));
                        }
                    })
                }
                Operation::Put { slot, version, key, slices } => {
                    let done = self.put(&key, slices).await;
                    match &done {
                        Ok(()) => self.written.acknowledge(slot, version),
                        Err(_) => self.written.doubt(slot, version),
                    }
                    done.map(|()| self.measured.write.record(timing(now_ns()), run.args.load.size))
                }
            };
            match done {
                Ok(()) => run.tally.done(run.args.load.size),
                Err(error) => {
                    self.measured.errors.record(&format!("{error:#}"));
                    run.tally.failed();
                    side.ports.sleep(FAILURE_PAUSE).await;
                }
            }
        }
    }
}
