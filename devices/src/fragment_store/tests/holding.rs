//! What a device holds, as those are told who empty it, and what stays possible on one that is full.

use super::*;
use futures::future::{Either, join, select};
use kiseki_types::fragment::DeviceUse;
use std::pin::pin;

#[test]
fn i_d5_a_device_is_empty_when_the_zones_of_all_lanes_are() {
    let rig = Rig::new(31, 1, 1);
    rig.run(async {
        let (stores, _) = rig.start().await;
        let (store, device, ports) = (&stores[0], rig.disks[0].0, rig.sim.ports(NODE));
        let used = || store.use_of(device).expect("its lanes are open");
        assert_eq!(used(), DeviceUse::default());
        for chunk in 0..2 {
            put(store, device, chunk, &payload(chunk, 3)).await.unwrap();
        }
        // In turn, so there is one in each lane; three pages and a header.
        assert_eq!(used(), DeviceUse { fragments: 2, bytes: 2 * 4 * 4096 }, "I-D5: of both lanes");
        let found = find(store, 0).await.remove(0);
        let read = store.core.pins.pin(found.extent);
        store.release(&found).await.unwrap();
        ports.sleep(Duration::from_secs(2)).await;
        assert_eq!(used().fragments, 2, "I-D5: somebody still reads it");
        drop(read);
        ports.sleep(Duration::from_secs(1)).await;
        assert_eq!(used(), DeviceUse { fragments: 1, bytes: 4 * 4096 });
        let bytes = payload(7, 3);
        let look = async {
            while used().fragments == 1 {
                ports.yield_now().await;
            }
            find(store, 7).await.len()
        };
        let (written, rows) = join(put(store, device, 7, &bytes), look).await;
        assert_eq!(rows, 0, "I-D5: what is being written counts before the index knows it");
        written.unwrap();
        for chunk in [1, 7] {
            store.release(&find(store, chunk).await[0]).await.unwrap();
        }
        ports.sleep(Duration::from_secs(1)).await;
        assert_eq!(used(), DeviceUse::default());
    });
}

#[test]
fn i_d5_a_core_that_could_not_open_its_lanes_does_not_say_that_nothing_is_there() {
    let rig = Rig::new(32, 1, 1);
    rig.run(async {
        let (stores, _) = rig.start().await;
        put(&stores[0], rig.disks[0].0, 1, &payload(1, 3)).await.unwrap();
    });
    rig.power_cut(&SeededRng::new(1));
    rig.run(async {
        let (device, noise) = (rig.disks[0].1.open(), IoBuf::copy_of(&[0xee; 8192]).freeze());
        device.write(rig.disks[0].2.journal_extent(LaneId(0)).0, vec![noise]).await.unwrap();
        device.flush().await.unwrap();
        let (stores, reports) = rig.start().await;
        assert!(reports[0].problem.is_some());
        assert_eq!(stores[0].use_of(rig.disks[0].0), None, "I-D5: nobody knows what the lane holds");
    });
}

#[test]
fn i_c5_releases_have_room_in_a_journal_that_puts_have_filled() {
    let rig = Rig::new(33, 1, 1);
    rig.run(async {
        let (stores, _) = rig.start().await;
        let (store, device, ports) = (&stores[0], rig.disks[0].0, rig.sim.ports(NODE));
        put(store, device, 0, &payload(0, 1)).await.unwrap();
        let found = find(store, 0).await.remove(0);
        // Folding waits for this lock, so the journals fill up until a put has to wait.
        let held = store.core.fold_lock.lock().await;
        let mut waits = 0;
        for chunk in 1.. {
            let bytes = payload(chunk, 1);
            let written = pin!(put(store, device, chunk, &bytes));
            match select(written, ports.sleep(Duration::from_secs(2))).await {
                Either::Left((written, _)) => drop(written.unwrap()),
                Either::Right(_) => waits += 1,
            }
            if waits == 2 {
                break; // one for each lane
            }
        }
        assert!(store.core.fullest_journal() > 0.7);
        match select(store.release(&found), ports.sleep(Duration::from_secs(5))).await {
            Either::Left((released, _)) => released.unwrap(),
            Either::Right(_) => panic!("I-C5: a delete waits for room that puts have taken"),
        }
        drop(held);
    });
}
