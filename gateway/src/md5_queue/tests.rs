//! Bodies that share the lanes get their own digests, whatever the others do.

use super::*;
use futures::FutureExt;
use kiseki_simulator::{NodeId, Sim};
use s3s::crypto::{Checksum as _, Md5};

fn content(len: usize, seed: usize) -> Bytes {
    (0..len).map(|i| ((i + 7 * seed).wrapping_mul(0x9e37_79b9) >> 16) as u8).collect()
}

/// Hashes `content` in slices of `slice_len` and a third of that by turns, as a receiver does that stores them in between.
async fn digest(queue: &Rc<Md5Queue>, content: &Bytes, slice_len: usize) -> [u8; 16] {
    let mut md5 = queue.begin(content.len() as u64);
    let mut rest = content.clone();
    for len in [slice_len, slice_len / 3].into_iter().cycle() {
        if rest.is_empty() {
            break;
        }
        md5.update(&rest.split_to(len.min(rest.len()))).await;
        queue.ports.yield_now().await;
    }
    md5.finish().await
}

fn is_idle(queue: &Md5Queue) -> bool {
    !queue.is_running.get() && queue.open.get() == 0 && queue.waiting.borrow().is_empty()
}

#[test]
fn bodies_of_any_length_that_share_the_lanes_get_their_own_digests() {
    let sim = Sim::new(5);
    let queue = Md5Queue::new(sim.ports(NodeId(0)));
    let lens = [0, 1, 31_999, 32_768, 65_537, 100_000, 262_144, 1_000_003, 3 << 20];
    let slices = [1000, 16_384, 32_768, 65_535, 300_001, 5 << 20];
    let bodies: Vec<(Bytes, usize)> = lens
        .iter()
        .flat_map(|len| slices.iter().map(move |slice_len| (*len, *slice_len)))
        .enumerate()
        .map(|(seed, (len, slice_len))| (content(len, seed), slice_len))
        .collect();
    let digests = sim.block_on(NodeId(0), async {
        futures::future::join_all(bodies.iter().map(|(content, slice_len)| digest(&queue, content, *slice_len))).await
    });
    for ((content, slice_len), digest) in bodies.iter().zip(digests) {
        assert_eq!(digest, Md5::checksum(content), "{} bytes in slices of {slice_len}", content.len());
    }
    assert!(is_idle(&queue));
}

#[test]
fn a_body_alone_is_hashed_where_it_is_received() {
    let sim = Sim::new(6);
    let queue = Md5Queue::new(sim.ports(NodeId(0)));
    let content = content(100_000, 1);
    let mut md5 = queue.begin(content.len() as u64);
    assert!(md5.update(&content).now_or_never().is_some());
    assert!(matches!(md5.place, Place::Here(_)) && !queue.is_running.get());
    assert_eq!(md5.finish().now_or_never(), Some(Md5::checksum(&content)));
    assert!(is_idle(&queue));
}

#[test]
fn a_body_that_is_alone_again_goes_on_by_itself() {
    let sim = Sim::new(7);
    let queue = Md5Queue::new(sim.ports(NodeId(0)));
    let content = content(300_000, 1);
    let mut other = Some(queue.begin(content.len() as u64));
    let digest = sim.block_on(NodeId(0), async {
        let mut md5 = queue.begin(content.len() as u64);
        md5.update(&content.slice(..10_000)).await;
        md5.update(&content.slice(10_000..100_000)).await;
        assert_eq!(md5.gathered.len_bytes, 100_000);
        md5.update(&content.slice(100_000..150_000)).await;
        assert!(matches!(md5.place, Place::Queue(_)) && md5.gathered.len_bytes == 0);
        md5.update(&content.slice(150_000..160_000)).await;
        other.take();
        md5.update(&content.slice(160_000..)).await;
        assert!(matches!(md5.place, Place::Here(_)) && md5.gathered.len_bytes == 0);
        md5.finish().await
    });
    assert_eq!(digest, Md5::checksum(&content));
    assert!(is_idle(&queue));
}

#[test]
fn a_body_whose_client_goes_away_neither_stalls_nor_corrupts_the_others() {
    let sim = Sim::new(8);
    let queue = Md5Queue::new(sim.ports(NodeId(0)));
    let whole: Vec<Bytes> = (0..12).map(|seed| content(1_000_000 + 1000 * seed, seed)).collect();
    let cut_off = content(500_000, 99);
    let digests = sim.block_on(NodeId(0), async {
        let others = whole.iter().map(|content| digest(&queue, content, 65_536));
        let leaving = (1..20).map(async |turns: usize| {
            let mut md5 = queue.begin(5 << 30);
            md5.update(&cut_off).await;
            // It is gone before it was begun, in mid-slice, or behind it.
            for _ in 0..turns {
                queue.ports.yield_now().await;
            }
        });
        futures::future::join(futures::future::join_all(others), futures::future::join_all(leaving)).await.0
    });
    for (content, digest) in whole.iter().zip(digests) {
        assert_eq!(digest, Md5::checksum(content), "{} bytes", content.len());
    }
    assert!(is_idle(&queue));
}

#[test]
fn what_is_not_hashed_yet_of_a_body_is_bounded() {
    let sim = Sim::new(9);
    let queue = Md5Queue::new(sim.ports(NodeId(0)));
    sim.block_on(NodeId(0), async {
        let _other = queue.begin(5 << 30);
        let mut md5 = queue.begin(5 << 30);
        let slices: Vec<Bytes> = (0..200).map(|seed| content(1 + 317 * seed, seed)).collect();
        for slice in &slices {
            md5.update(slice).await;
            assert!(md5.gathered.len_bytes < HANDED_OVER_LEN_BYTES, "it is handed over");
            let handed_over: usize = queue.waiting.borrow().iter().flat_map(|job| &job.pieces).map(Bytes::len).sum();
            assert!(handed_over < HANDED_OVER_LEN_BYTES + slice.len(), "one hand-over at a time");
        }
        md5.finish().await;
        let kept = slices.iter().filter(|slice| !slice.is_unique()).count();
        assert_eq!(kept, 0, "slices that are still held when their digest is done");
    });
    assert_eq!((queue.wanting.get(), queue.is_running.get()), (0, false));
}

#[test]
fn bodies_that_come_side_by_side_are_hashed_together() {
    let sim = Sim::new(10);
    let queue = Md5Queue::new(sim.ports(NodeId(0)));
    sim.block_on(NodeId(0), async {
        let slice = content(HANDED_OVER_LEN_BYTES, 1);
        let mut bodies: Vec<BodyMd5> = (0..LANES_MAX).map(|_| queue.begin(5 << 30)).collect();
        for (index, body) in bodies.iter_mut().enumerate() {
            assert_eq!(queue.waiting.borrow().len(), index, "all lanes can be filled, so the queue waits a little");
            body.update(&slice).await;
            if index.is_multiple_of(3) {
                queue.ports.yield_now().await;
            }
        }
        // The first one waits and takes all others along.
        let digest = bodies.remove(0).finish().await;
        assert_eq!(digest, Md5::checksum(&slice));
        for mut body in bodies {
            let is_done = match &mut body.place {
                Place::Here(_) => panic!("it was handed over"),
                Place::Queue(hashed) => matches!(hashed.try_recv(), Ok(Some(_))),
            };
            assert!(is_done);
        }
    });
}
