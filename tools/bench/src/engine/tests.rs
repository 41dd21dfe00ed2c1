//! Whole runs on small nodes, and arguments that make no sense.

use super::client::{BUCKET, Client};
use super::load::{CoreSide, Run, make_bucket};
use super::node_dir::NodeDir;
use super::reading::{Expected, read_all};
use super::*;
use crate::output::Job;
use crate::s3::content::Content;
use crate::usage::Usage;
use bytes::Bytes;
use clap::Parser;
use kiseki_engine::api::{FinishWrite, ObjectInfo, ObjectReader, StoreFuture};
use kiseki_server::executor::{CoreWork, OpenCore};
use std::collections::VecDeque;
use std::ops::Range;
use std::rc::Rc;
use std::sync::{Arc, Mutex};
use std::time::Instant;
use tempfile::TempDir;

#[derive(Parser)]
#[command(args_override_self = true)]
struct Line {
    #[command(flatten)]
    args: EngineArgs,
}

fn args(more: &[&str]) -> EngineArgs {
    Line::try_parse_from([&["engine"], more].concat()).unwrap().args
}

/// Beside the sources: a temporary file system in memory may have no direct I/O.
fn dir() -> TempDir {
    tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap()
}

/// A small node that measures for a moment.
fn short(dir: &TempDir, more: &[&str]) -> EngineArgs {
    let dir = dir.path().to_str().unwrap();
    let fixed = ["--dir", dir, "--runtime", "300ms", "--warmup", "0", "--devices", "3", "--device-size", "128m"];
    args(&[&fixed[..], &["--metadata-dirs", "1", "--lanes", "1", "--clients", "2", "--verify"], more].concat())
}

fn measure(args: &EngineArgs) -> Job {
    let mut report = run(args, Stop::default()).unwrap();
    report.jobs.remove(0)
}

#[test]
fn objects_go_in_and_come_out_whole_and_nothing_stays() {
    let dir = dir();
    // Several slices and chunks; then one object beside its name.
    for (size, inline) in [("600k", "on"), ("1000", "on"), ("1000", "off")] {
        let job = measure(&short(&dir, &["--op", "mixed:50/50", "--size", size, "--objects", "4", "--inline", inline]));
        assert_eq!(job.errors.count(), 0, "{size}: {:?}", job.errors.kinds());
        assert!(job.sides().all(|(_, side)| side.meter.ops() > 0 && side.meter.bytes() > 0), "{size}");
        assert!(job.extra["read_back_objects"].as_u64() >= Some(1), "{size}");
        let is_inline = job.extra["inline_writes"].as_u64() > Some(0);
        assert_eq!(is_inline, size == "1000" && inline == "on", "{size} {inline}: {:?}", job.extra);
        assert!(job.extra["journal_flushes"].as_u64() > Some(0), "{size}: a name is durable");
        assert_eq!(job.extra["device_flushes"].as_u64() == Some(0), is_inline, "{size} {inline}: {:?}", job.extra);
        assert_eq!(dir.path().read_dir().unwrap().count(), 0, "the node's directory stays");
    }
}

#[test]
fn an_open_loop_tells_what_it_never_began() {
    let dir = dir();
    let job = measure(&short(&dir, &["--size", "1000", "--rate", "1000000"]));
    assert!(job.is_open_loop && job.extra["never_begun_ios"].as_u64() > Some(0));
    let calm = measure(&short(&dir, &["--size", "1000", "--rate", "50", "--runtime", "600ms"]));
    assert_eq!(calm.ops() + calm.extra["never_begun_ios"].as_u64().unwrap(), 30);
}

#[test]
fn a_byte_that_changed_is_seen_by_verify() {
    let dir = dir();
    for (verify, errors_expected) in [(true, true), (false, false)] {
        let mut args = short(&dir, &["--op", "get", "--size", "300k", "--objects", "1"]);
        args.load.verify = verify;
        let node_dir = NodeDir::make(&args).unwrap();
        let run = Arc::new(Run::new(&args, 7, &Stop::default()));
        let (seen, shared) = (Arc::new(Mutex::new(None)), run.clone());
        let told = seen.clone();
        let work: CoreWork = Arc::new(move |open: OpenCore| {
            let (run, told) = (shared.clone(), told.clone());
            Box::pin(async move {
                let tenant = make_bucket(&open).await?;
                let mut client = Client::new(&run, &Rc::new(CoreSide::new(&run, &open, tenant)), 0);
                let mut content = vec![0; 300 << 10];
                run.content.fill(run.naming.read_content(&run.content, 0), 0, &mut content);
                content[290 << 10] ^= 1;
                let store = open.node.store();
                let mut writer = store.put(tenant, BUCKET, &run.naming.read_key(0), None).await?;
                writer.write(content.into()).await?;
                writer.finish(FinishWrite::default()).await?;
                client.work(Instant::now()).await;
                *told.lock().unwrap() = Some((client.measured.errors.count(), client.measured.read.ops()));
                Ok(())
            })
        });
        kiseki_server::node::work(node_dir.config(&args).unwrap(), &work).unwrap();
        let (errors, reads) = seen.lock().unwrap().unwrap();
        assert_eq!((errors > 0, reads > 0), (errors_expected, !errors_expected), "{errors} errors, {reads} reads");
    }
}

/// Hands out what it is given.
struct Pieces(VecDeque<Bytes>);

impl ObjectReader for Pieces {
    fn info(&self) -> &ObjectInfo {
        unreachable!("nobody asks")
    }

    fn seek(&mut self, _range: Range<u64>) {
        unreachable!("nobody seeks")
    }

    fn next(&mut self) -> StoreFuture<'_, Option<Bytes>> {
        let next = self.0.pop_front();
        Box::pin(async move { Ok(next) })
    }
}

#[test]
fn every_byte_and_the_length_are_looked_at() {
    let content = Content::new(3);
    let (id, other) = (content.id([1, 2, 3], 0.0), content.id([1, 2, 4], 0.0));
    let bytes = |id, len| {
        let mut bytes = vec![0; len];
        content.fill(id, 0, &mut bytes);
        bytes
    };
    let changed = |at: usize| {
        let mut bytes = bytes(id, 10_000);
        bytes[at] ^= 1;
        bytes
    };
    for (what, stored, is_good) in [
        ("as stored", bytes(id, 10_000), true),
        ("an unsettled version", bytes(other, 10_000), true),
        ("the first byte", changed(0), false),
        ("the last byte", changed(9_999), false),
        ("too short", bytes(id, 9_999), false),
        ("too long", bytes(id, 10_001), false),
        ("half of each", [bytes(id, 5_000), bytes(other, 10_000)[5_000..].to_vec()].concat(), false),
    ] {
        let mut reader = Pieces(stored.chunks(3_000).map(Bytes::copy_from_slice).collect());
        let expected = Expected { len_bytes: 10_000, content: &content, ids: Some(vec![id, other]) };
        let read = futures::executor::block_on(read_all(&mut reader, expected));
        assert_eq!(read.is_ok(), is_good, "{what}");
    }
}

#[test]
fn impossible_arguments_are_named_with_a_remedy() {
    let dir = dir();
    let place = dir.path().to_str().unwrap();
    for wrong in [
        &["--runtime", "0"][..],
        &["--size", "6g"],
        &["--objects", "0", "--op", "get"],
        &["--objects", "4", "--clients", "5"],
        &["--lanes", "1", "--cores", "2"],
        &["--cores", "256"],
        &["--shape", "4+2", "--devices", "5"],
        &["--device-size", "1m"],
        &["--device-size", "4096t"],
        &["--dir", "/nowhere/at/all"],
    ] {
        let error = run(&args(&[&["--dir", place], wrong].concat()), Stop::default()).unwrap_err();
        assert!(error.is::<Usage>() && error.to_string().starts_with(wrong[0]), "{wrong:?}: {error:#}");
    }
    assert_eq!(dir.path().read_dir().unwrap().count(), 0, "nothing was made");
    for wrong in [["--op", "head"], ["--inline", "maybe"], ["--shape", "4"], ["--rate", "0"], ["--clients", "0"]] {
        assert!(Line::try_parse_from([&["engine"][..], &wrong].concat()).is_err(), "{wrong:?}");
    }
}
