//! Devices that fail the Nth operation, misdirect, and rot.

use super::*;
use crate::journal::PAGE_LEN_BYTES;

/// Bytes in front of the records of a frame (`docs/formats/journal.md`).
const FRAME_HEADER_BYTES: usize = 88;

/// Puts and releases, some at once; stops at the first refusal. Returns what is in doubt by its model.
async fn short_workload(store: &CoreFragmentStore, device: DeviceId, model: &RefCell<Model>) -> usize {
    let mut refused = 0;
    for round in 0..6_u64 {
        let chunks = [round * 10, round * 10 + 1, round * 10 + 2];
        let puts = chunks.map(|chunk| async move {
            let bytes = payload(chunk, 1 + chunk as usize % 7);
            model.borrow_mut().in_doubt.insert(chunk, bytes.clone());
            put(store, device, chunk, &bytes).await.map(|extent| (chunk, bytes, extent))
        });
        for result in join_all(puts).await {
            match result {
                Ok((chunk, bytes, extent)) => {
                    model.borrow_mut().in_doubt.remove(&chunk);
                    model.borrow_mut().there.insert(chunk, (bytes, extent));
                }
                Err(FragmentError::DeviceFailed { .. }) => refused += 1,
                Err(other) => panic!("{other}"),
            }
        }
        let target = round * 10 + 1;
        let Some((bytes, _)) = model.borrow_mut().there.remove(&target) else { continue };
        model.borrow_mut().in_doubt.insert(target, bytes);
        let found = find(store, target).await;
        match store.release(&found[0]).await {
            Ok(()) => drop(model.borrow_mut().in_doubt.remove(&target)),
            Err(FragmentError::DeviceFailed { .. }) => refused += 1,
            Err(other) => panic!("{other}"),
        }
        if round == 2 && store.core.device(device).is_ok() {
            // A device that fails while it is trimmed is met by the next operation on it.
            let _failed = store.fold().await;
        }
    }
    refused
}

#[test]
fn i_d6_whichever_write_or_flush_fails_nothing_is_acknowledged_after_it_and_nothing_before_it_is_lost() {
    let mut hit = [0, 0];
    for is_flush in [false, true] {
        for nth in 1.. {
            let rig = Rig::new(nth, 1, 1);
            let device = rig.disks[0].0;
            let model = RefCell::new(Model::default());
            let fenced = rig.run(async {
                let (stores, _) = rig.start().await;
                let disk = &rig.disks[0].1;
                if is_flush {
                    disk.fail_flush(nth)
                } else {
                    disk.fail_write(nth)
                };
                let refused = short_workload(&stores[0], device, &model).await;
                rig.sim.ports(NODE).sleep(Duration::from_secs(2)).await;
                if stores[0].devices()[0].state == DeviceState::Healthy {
                    assert_eq!(refused, 0, "I-D6: refused by a healthy device");
                    return false;
                }
                let writes = disk.counts().writes;
                let late = put(&stores[0], device, 9999, &payload(9999, 3)).await;
                assert!(matches!(late, Err(FragmentError::DeviceFailed { .. })), "I-D6: {late:?}");
                assert_eq!(disk.counts().writes, writes, "I-D6: nothing is written any more");
                let discards = disk.counts().discards;
                let opened = stores[0].core.devices.get(device).unwrap();
                for lane in opened.lanes.values() {
                    let run = lane.zones.borrow_mut().allocate(kiseki_types::BlockCount(1));
                    run.into_iter().for_each(|start| lane.zones.borrow_mut().free(start, kiseki_types::BlockCount(1)));
                }
                rig.sim.ports(NODE).sleep(Duration::from_secs(3)).await;
                assert_eq!(disk.counts().discards, discards, "I-D6: nor discarded");
                true
            });
            let what = if is_flush { "flush" } else { "write" };
            // A fault that the run did not reach is not for the next start.
            rig.disks[0].1.fail_flush(u64::MAX);
            rig.disks[0].1.fail_write(u64::MAX);
            rig.power_cut(&SeededRng::new(nth));
            rig.run(async {
                let (stores, reports) = rig.start().await;
                assert_eq!(reports[0].problem, None, "{what} {nth}");
                let checked = check(&stores, &model).await;
                assert_eq!(checked, Ok(()), "{what} {nth}");
            });
            if !fenced {
                break;
            }
            hit[usize::from(is_flush)] += 1;
        }
    }
    assert!(hit[0] > 30 && hit[1] > 10, "{hit:?}");
}

#[test]
fn i_c9_a_write_that_landed_elsewhere_is_never_taken_for_another() {
    // Block by block around the place of another fragment: whatever the stray write overwrites, what is returned is
    // either the right bytes or an error.
    for blocks_off in 1..12 {
        let rig = Rig::new(blocks_off, 1, 1);
        rig.run(async {
            let (stores, _) = rig.start().await;
            let (store, device) = (&stores[0], rig.disks[0].0);
            let lane = |extent: Extent| rig.disks[0].2.lane_of_zone(rig.disks[0].2.zone_of(extent.start).unwrap());
            let before: Vec<_> = (0..6).map(|chunk| payload(chunk, 4)).collect();
            let mut extents = Vec::new();
            for (chunk, bytes) in before.iter().enumerate() {
                extents.push(put(store, device, chunk as u64, bytes).await.unwrap());
            }
            // The next fragment goes behind the last one of its lane; release one and misdirect into the others.
            let next = BlockIndex(extents.iter().map(|extent| extent.end().0).max().unwrap());
            let stray = rig.disks[0].1.open();
            let bytes = payload(77, 4);
            let header = FragmentHeader::of(meta(77, 0, &bytes), &parts(&bytes)).encode(&stale_buffers()).freeze();
            let target = BlockIndex(next.0 - blocks_off);
            stray.write(target, [vec![header], parts(&bytes)].concat()).await.unwrap();
            let mut damaged = 0;
            for (chunk, bytes) in before.iter().enumerate() {
                let found = find(store, chunk as u64).await;
                match store.read(&found[0], 0..bytes.len() as u32).await {
                    Ok(read) => assert_eq!(read[..], bytes[..], "I-C9: chunk {chunk}"),
                    Err(FragmentError::Corrupt { .. }) => damaged += 1,
                    Err(other) => panic!("{other}"),
                }
            }
            assert!(damaged > 0, "{blocks_off} blocks before the end of {}", lane(extents[5]));
        });
    }
}

#[test]
fn i_c9_a_lost_or_misdirected_operation_is_an_error_never_other_bytes() {
    let rig = Rig::new(21, 1, 1);
    rig.run(async {
        let (stores, _) = rig.start().await;
        let (store, disk, device) = (&stores[0], &rig.disks[0].1, rig.disks[0].0);
        // Fragments of one length, index and generation apart: nothing but the header tells them apart.
        let bytes: Vec<_> = (0..4).map(|chunk| payload(chunk, 5)).collect();
        let mut extents = Vec::new();
        for (chunk, bytes) in bytes.iter().enumerate() {
            extents.push(put(store, device, chunk as u64, bytes).await.unwrap());
        }
        for from in 0..4_usize {
            for to in (0..4_usize).filter(|to| extents[*to].start > extents[from].start) {
                let found = find(store, from as u64).await;
                disk.misdirect_read(1, extents[to].start.0 - extents[from].start.0);
                let read = store.read(&found[0], 0..100).await;
                assert!(matches!(read, Err(FragmentError::Corrupt { .. })), "I-C9: {from} read as {to}: {read:?}");
                assert_eq!(store.read(&found[0], 0..100).await.unwrap()[..], bytes[from][..100]);
            }
        }
        // A write that reports success and lands elsewhere: the put is acknowledged, the read is an error.
        for misdirected in 1..3 {
            let chunk = 100 + misdirected;
            disk.misdirect_write(misdirected, 300);
            if put(store, device, chunk, &payload(chunk, 5)).await.is_err() {
                continue;
            }
            for found in find(store, chunk).await {
                let read = store.read(&found, 0..20_480).await;
                let right = matches!(&read, Ok(read) if read[..] == payload(chunk, 5)[..]);
                assert!(right || matches!(read, Err(FragmentError::Corrupt { .. })), "I-C9: {read:?}");
            }
        }
    });
}

#[test]
fn i_c9_the_header_binds_chunk_generation_and_index() {
    let rig = Rig::new(22, 3, 1);
    rig.run(async {
        let (stores, _) = rig.start().await;
        let (store, device) = (&stores[0], rig.disks[0].0);
        let bytes = payload(1, 5);
        let extent = put(store, device, 1, &bytes).await.unwrap();
        let good = find(store, 1).await.remove(0);
        assert_eq!(good.extent, extent);
        let change = |change: fn(&mut StoredFragment)| {
            let mut asked = good.clone();
            change(&mut asked);
            asked
        };
        for (what, asked) in [
            ("locator", change(|asked| asked.meta.key.locator.0[31] ^= 1)),
            ("generation", change(|asked| asked.meta.key.generation = Generation(2))),
            ("index", change(|asked| asked.meta.key.index = 1)),
            ("shape", change(|asked| asked.meta.shape.data = 4)),
            ("envelope", change(|asked| asked.meta.envelope_len_bytes -= 1)),
        ] {
            let read = store.read(&asked, 0..100).await;
            let refused = matches!(read, Err(FragmentError::Corrupt { .. } | FragmentError::Unknown { .. }));
            assert!(refused, "I-C9: another {what} was believed");
        }
        assert_eq!(store.read(&good, 0..100).await.unwrap()[..], bytes[..100]);
    });
}

/// Writes a block behind the store's back, durably.
async fn overwrite(rig: &Rig, block: BlockIndex, bytes: &[u8]) {
    let device = rig.disks[0].1.open();
    device.write(block, vec![IoBuf::copy_of(bytes).freeze()]).await.unwrap();
    device.flush().await.unwrap();
}

/// Pages of the journal of a lane that hold the start of a frame, in order.
fn frame_pages(rig: &Rig, lane: LaneId) -> Vec<BlockIndex> {
    let (start, len) = rig.disks[0].2.journal_extent(lane);
    let used = rig.disks[0].1.used_blocks();
    // Behind the two header pages.
    used.into_iter().filter(|block| block.0 >= start.0 + 2 && block.0 < start.0 + len.0).collect()
}

#[test]
fn i_l10_a_rotten_record_is_damage_wherever_it_lies_and_a_torn_tail_is_not() {
    assert_eq!(PAGE_LEN_BYTES, 4096, "a record a page: the puts below wait for each other");
    let prepared = |seed| {
        let rig = Rig::new(seed, 1, 1);
        let model = RefCell::new(Model::default());
        rig.run(async {
            let (stores, _) = rig.start().await;
            for chunk in 0..12 {
                let bytes = payload(chunk, 2);
                let extent = put(&stores[0], rig.disks[0].0, chunk, &bytes).await.unwrap();
                model.borrow_mut().there.insert(chunk, (bytes, extent));
            }
        });
        rig.power_cut(&SeededRng::new(seed));
        // Nothing was folded: the journal alone knows of the fragments.
        rig.tables.iter().for_each(|table| *table.borrow_mut() = TableMedium::default());
        (rig, model)
    };
    let lane = LaneId(0);
    let pages = frame_pages(&prepared(1).0, lane).len();
    assert!(pages >= 6, "{pages} frames");
    // In the header of the frame, and in its record: the rest of the page is not read.
    for (rotten, at) in (0..pages).flat_map(|rotten| [(rotten, 40), (rotten, FRAME_HEADER_BYTES + 20)]) {
        let (rig, model) = prepared(1);
        let page = frame_pages(&rig, lane)[rotten];
        let is_last = rotten == pages - 1;
        rig.run(async {
            let mut bytes = rig.disks[0].1.peek(page, kiseki_types::BlockCount(1));
            bytes[at] ^= 1;
            overwrite(&rig, page, &bytes).await;
            let (stores, reports) = rig.start().await;
            if is_last {
                // Nothing on the medium says that the last record was flushed: it counts as torn.
                assert_eq!(reports[0].problem, None);
                assert_eq!(stores[0].devices()[0].state, DeviceState::Healthy);
                return;
            }
            let problem = reports[0].problem.clone().unwrap_or_else(|| panic!("record {rotten} was silently dropped"));
            assert!(problem.contains("damaged") && problem.contains("scanned"), "{problem}");
            let refused = put(&stores[0], rig.disks[0].0, 500, &payload(500, 2)).await;
            assert!(matches!(refused, Err(FragmentError::DeviceFailed { .. })), "nothing is allocated: {refused:?}");
            // The device still explains itself.
            let scanned = explained::intact_extents(rig.disks[0].0, &rig.disks[0].2, rig.bytes(0));
            for (chunk, (_, extent)) in &model.borrow().there {
                assert!(scanned.contains(extent), "chunk {chunk}");
            }
        });
    }
    // A torn tail: the last frame was never whole.
    let (rig, _) = prepared(2);
    let last = *frame_pages(&rig, lane).last().unwrap();
    rig.run(async {
        let torn = rig.disks[0].1.peek(last, kiseki_types::BlockCount(1));
        let half = [&torn[..40], &[0; 4056]].concat();
        overwrite(&rig, last, &half).await;
        let (stores, reports) = rig.start().await;
        assert_eq!(reports[0].problem, None, "a torn tail is what power cuts leave");
        put(&stores[0], rig.disks[0].0, 500, &payload(500, 2)).await.unwrap();
    });
}

#[test]
fn i_c8_a_released_extent_is_given_out_again_only_when_its_reads_have_ended_on_every_core() {
    for reader in 0..2 {
        let rig = Rig::new(23, 1, 2);
        rig.run(async {
            let (stores, _) = rig.start().await;
            let (device, ports) = (rig.disks[0].0, rig.sim.ports(NODE));
            let extent = put(&stores[0], device, 1, &payload(1, 5)).await.unwrap();
            let is_used = || {
                let lanes = stores.iter().map(|store| store.core.device(device).unwrap());
                lanes.into_iter().any(|opened| {
                    opened.lanes.values().any(|lane| lane.zones.borrow().used_at(extent.start) == Some(extent.len))
                })
            };
            let read = stores[reader].core.pins.pin(extent);
            stores[1].release(&find(&stores[1], 1).await[0]).await.unwrap();
            assert_eq!(find(&stores[0], 1).await, [], "it is released");
            ports.sleep(Duration::from_secs(5)).await;
            assert!(is_used(), "I-C8: core {reader} still reads it");
            drop(read);
            ports.sleep(Duration::from_secs(1)).await;
            assert!(!is_used(), "I-C8: nobody reads it any more");
        });
    }
}

#[test]
fn i_c5_a_put_waits_for_the_discard_that_stands_in_its_way() {
    let rig = Rig::new(24, 1, 1);
    rig.run(async {
        let (stores, _) = rig.start().await;
        let (store, device) = (stores[0].clone(), rig.disks[0].0);
        let opened = store.core.device(device).unwrap();
        let wish = crate::zones::DiscardWish { blocks_max: 1 << 20, granularity: 1, also_unknown: true };
        let mut taken = Vec::new();
        for lane in opened.lanes.values() {
            while let Some(run) = lane.zones.borrow_mut().take_discard(wish) {
                taken.push((lane, run));
            }
        }
        let waiting = store.put(device, meta(1, 0, &payload(1, 5)), parts(&payload(1, 5)));
        let waiting = match futures::future::select(waiting, rig.sim.ports(NODE).sleep(Duration::from_secs(1))).await {
            futures::future::Either::Left((early, _)) => panic!("no block is out of discards: {early:?}"),
            futures::future::Either::Right((_, waiting)) => waiting,
        };
        for (lane, (start, len)) in taken {
            lane.discarded(start, len);
        }
        waiting.await.expect("I-C5: there is room enough");
    });
}

#[test]
fn i_c8_replayed_records_are_trimmed_for_good_before_anything_is_appended() {
    // What was not flushed was judged by its fragment. Were the records still there when later frames state later
    // flushes, the next start would take them for flushed ones and believe what was disbelieved.
    for seed in 0..8 {
        let rig = Rig::new(seed, 1, 1);
        rig.switch.arm(60 + seed);
        let work = async {
            let (stores, _) = rig.start().await;
            for round in 0..20 {
                let puts = (0..4).map(|at| (round * 4 + at, payload(round * 4 + at, 2)));
                let puts: Vec<(u64, Vec<u8>)> = puts.collect();
                join_all(puts.iter().map(|(chunk, bytes)| put(&stores[0], rig.disks[0].0, *chunk, bytes))).await;
            }
        };
        assert!(rig.sim.block_on_or_cut(NODE, work, &rig.switch).is_err(), "the power is cut");
        rig.power_cut(&SeededRng::new(seed));
        rig.run(async {
            let (stores, reports) = rig.start().await;
            assert!(reports[0].replayed > 0, "seed {seed}: nothing was left to replay");
            let opened = stores[0].core.device(rig.disks[0].0).unwrap();
            for lane in opened.lanes.values() {
                assert!(lane.folded.get() > 0 || lane.journal.last() == 0, "seed {seed}");
                let (trimmed, folded) = (lane.journal.trimmed_through(), lane.folded.get());
                assert_eq!(trimmed, folded, "I-C8: seed {seed}: trimmed through {trimmed}, folded through {folded}");
            }
        });
    }
}

/// Puts, reads back a moment later, and releases, until the time is over; returns how many.
async fn churn(store: CoreFragmentStore, device: DeviceId, ports: Ports, first: u64) -> u64 {
    let end = ports.now() + Duration::from_secs(3);
    for chunk in first.. {
        if ports.now() > end {
            return chunk - first;
        }
        let bytes = payload(chunk, 3);
        put(&store, device, chunk, &bytes).await.unwrap();
        ports.sleep(Duration::from_millis(1)).await;
        let found = find(&store, chunk).await;
        let read = store.read(&found[0], 0..bytes.len() as u32).await;
        assert_eq!(read.as_deref(), Ok(&bytes[..]), "I-C8: chunk {chunk} was discarded after it was acknowledged");
        store.release(&found[0]).await.unwrap();
    }
    unreachable!("the time is over at some time")
}

#[test]
fn i_c8_what_is_being_discarded_is_given_to_nobody() {
    let (mut puts, mut discards) = (0, 0);
    for seed in 0..4 {
        let rig = Rig::new(seed, 1, 1);
        rig.run(async {
            let (stores, _) = rig.start().await;
            let ports = rig.sim.ports(NODE);
            let clients =
                (0..4).map(|client| churn(stores[0].clone(), rig.disks[0].0, ports.clone(), client * 1_000_000));
            puts += join_all(clients).await.iter().sum::<u64>();
        });
        discards += rig.disks[0].1.counts().discards;
    }
    assert!(puts > 1000 && discards > 10, "{puts} puts beside {discards} discards");
}
