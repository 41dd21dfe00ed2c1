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

/// Bytes that are not hashed yet.
fn backlog(md5: &BodyMd5) -> usize {
    md5.body.borrow().backlog_len_bytes
}

fn is_idle(queue: &Md5Queue) -> bool {
    !queue.is_running.get() && queue.open.get() == 0 && queue.wanting.get() == 0 && queue.queued.borrow().is_empty()
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
    assert_eq!((backlog(&md5), queue.is_running.get()), (0, false));
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
        assert_eq!(backlog(&md5), 100_000);
        md5.update(&content.slice(100_000..150_000)).await;
        assert_eq!((backlog(&md5), queue.queued.borrow().len()), (150_000, 1));
        md5.update(&content.slice(150_000..160_000)).await;
        other.take();
        md5.update(&content.slice(160_000..)).await;
        assert_eq!((backlog(&md5), queue.queued.borrow().len()), (0, 0));
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
            assert!(backlog(&md5) < BACKLOG_LEN_BYTES_MAX, "the body waits");
            let held: usize = slices.iter().filter(|slice| !slice.is_unique()).map(Bytes::len).sum();
            assert!(held < BACKLOG_LEN_BYTES_MAX + slice.len(), "what is hashed is let go");
        }
        md5.finish().await;
        let kept = slices.iter().filter(|slice| !slice.is_unique()).count();
        assert_eq!(kept, 0, "slices that are still held when their digest is done");
        for _ in 0..100 {
            queue.ports.yield_now().await; // until the hashing task has ended
        }
    });
    assert_eq!((queue.wanting.get(), queue.is_running.get()), (0, false));
}

#[test]
fn bodies_that_come_side_by_side_are_hashed_together() {
    let sim = Sim::new(10);
    let queue = Md5Queue::new(sim.ports(NodeId(0)));
    sim.block_on(NodeId(0), async {
        let slice = content(128 * 1024, 1);
        let mut bodies: Vec<BodyMd5> = (0..LANES_MAX).map(|_| queue.begin(5 << 30)).collect();
        let mut late = bodies.pop().unwrap();
        for body in &mut bodies {
            body.update(&slice).await;
            for _ in 0..20 {
                queue.ports.yield_now().await;
            }
        }
        assert_eq!(queue.queued.borrow().len(), LANES_MAX - 1, "nobody wants a digest, and a lane is free");
        // The first one that wants its digest takes the others along.
        let digest = bodies.remove(0).finish().await;
        assert_eq!(digest, Md5::checksum(&slice));
        assert!(bodies.iter().all(|body| backlog(body) == 0));
        // So does the one that fills the last lane; what it has more is left until it wants its digest.
        bodies.push(queue.begin(5 << 30));
        for body in &mut bodies {
            body.update(&slice.slice(..64 * 1024)).await;
        }
        late.update(&slice).await;
        for _ in 0..20 {
            queue.ports.yield_now().await;
        }
        assert!(bodies.iter().all(|body| backlog(body) == 0));
        assert_eq!((backlog(&late), queue.is_running.get()), (64 * 1024, false));
        assert_eq!(late.finish().await, Md5::checksum(&slice));
    });
}

#[test]
fn a_body_to_which_more_comes_all_the_time_keeps_nobody_from_the_lanes() {
    let sim = Sim::new(11);
    let queue = Md5Queue::new(sim.ports(NodeId(0)));
    let slice = content(200_000, 1);
    sim.block_on(NodeId(0), async {
        let mut busy: Vec<BodyMd5> = (0..2 * LANES_MAX).map(|_| queue.begin(5 << 30)).collect();
        let mut last = queue.begin(5 << 30);
        last.update(&slice).await;
        queue.withdraw(&last.body); // it comes to the end of the queue
        for body in &mut busy {
            body.update(&slice).await;
        }
        let wanted = last.finish();
        futures::pin_mut!(wanted);
        for turn in 0.. {
            assert!(turn < 20, "the lanes are never free for it");
            if let Some(digest) = wanted.as_mut().now_or_never() {
                assert_eq!(digest, Md5::checksum(&slice));
                break;
            }
            for body in &mut busy {
                body.body.borrow_mut().push(&slice);
                queue.enter(&body.body);
            }
            queue.ports.yield_now().await;
        }
    });
}
