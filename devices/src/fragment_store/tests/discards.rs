//! Discards that fail, and that take very long.

use super::*;
use kiseki_types::BlockCount;
use kiseki_types::device::DeviceGeometry;
use std::io;

/// What becomes of a discard.
#[derive(Clone, Copy)]
enum Fate {
    /// It is taken back, and the drive may still do it.
    TakenBack,
    /// It does not end.
    Hangs,
}

/// A device whose discards have another fate.
struct Discarding {
    inner: Rc<dyn Device>,
    fate: Fate,
    asked: Rc<RefCell<Vec<(u64, u64)>>>,
}

impl Device for Discarding {
    fn name(&self) -> &str {
        self.inner.name()
    }

    fn geometry(&self) -> DeviceGeometry {
        self.inner.geometry()
    }

    fn read(&self, start: BlockIndex, buf: IoBuf) -> LocalBoxFuture<'static, io::Result<IoBuf>> {
        self.inner.read(start, buf)
    }

    fn write(&self, start: BlockIndex, parts: Vec<IoBytes>) -> LocalBoxFuture<'static, io::Result<()>> {
        self.inner.write(start, parts)
    }

    fn flush(&self) -> LocalBoxFuture<'static, io::Result<()>> {
        self.inner.flush()
    }

    fn discard(&self, start: BlockIndex, len: BlockCount) -> LocalBoxFuture<'static, io::Result<()>> {
        self.asked.borrow_mut().push((start.0, start.0 + len.0));
        match self.fate {
            Fate::TakenBack => Box::pin(std::future::ready(Err(io::ErrorKind::TimedOut.into()))),
            Fate::Hangs => Box::pin(std::future::pending()),
        }
    }
}

impl Rig {
    /// Starts the only core with such a device for the first one; the ranges that it is asked to discard.
    async fn start_discarding(&self, fate: Fate) -> (CoreFragmentStore, Rc<RefCell<Vec<(u64, u64)>>>) {
        let asked = Rc::<RefCell<Vec<(u64, u64)>>>::default();
        let mut config = self.config(0, &SimLink::new(&self.sim));
        let inner = config.devices[0].device.clone();
        config.devices[0].device = Rc::new(Discarding { inner, fate, asked: asked.clone() });
        let (store, _) = CoreFragmentStore::open(config).await.unwrap();
        store.publish_recovered().await.unwrap();
        (store, asked)
    }

    async fn pause(&self, seconds: u64) {
        self.sim.ports(NODE).sleep(Duration::from_secs(seconds)).await;
    }
}

/// Puts fragments until the device has no room; where they lie.
async fn fill(store: &CoreFragmentStore, device: DeviceId, first: u64) -> Vec<Extent> {
    let mut extents = Vec::new();
    for chunk in first.. {
        match put(store, device, chunk, &payload(chunk, 3)).await {
            Ok(extent) => extents.push(extent),
            Err(FragmentError::Full { .. } | FragmentError::PoolCritical { .. }) => break,
            Err(error) => panic!("{error}"),
        }
    }
    extents
}

#[test]
fn i_c8_what_a_failed_discard_was_about_is_given_to_nobody_until_the_device_is_opened_again() {
    let rig = Rig::new(31, 1, 1);
    let device = rig.disks[0].0;
    let (held, before) = rig.run(async {
        let (store, asked) = rig.start_discarding(Fate::TakenBack).await;
        rig.pause(5).await;
        assert_eq!(asked.borrow().len(), 1, "none follows the one that failed");
        assert_eq!(store.counters().discard_errors.get(), 1);
        let (from, to) = asked.borrow()[0];
        let extents = fill(&store, device, 0).await;
        assert!(!extents.is_empty(), "the rest of the device is in use");
        for extent in &extents {
            let is_apart = extent.end().0 <= from || extent.start.0 >= to;
            assert!(is_apart, "I-C8: {extent:?} lies in {from}..{to}, which the drive may still forget");
        }
        for extent in &extents {
            let found = store.held_on(device, None, usize::MAX).await.unwrap();
            let fragment = found.into_iter().find(|fragment| fragment.extent == *extent).unwrap();
            store.release(&fragment).await.unwrap();
        }
        rig.pause(1).await;
        assert_eq!(store.use_of(device), Some(DeviceUse::default()), "I-D5: nothing lives there");
        ((from, to), extents.len())
    });
    rig.sim.kill(NODE);
    rig.run(async {
        let (stores, _) = rig.start().await;
        let extents = fill(&stores[0], device, 1000).await;
        assert!(extents.len() > before, "I-C8: blocks {held:?} are lost for good");
    });
}

#[test]
fn a_device_whose_discard_takes_long_holds_up_those_of_no_other() {
    let rig = Rig::new(32, 2, 1);
    rig.run(async {
        let (store, asked) = rig.start_discarding(Fate::Hangs).await;
        rig.pause(3).await;
        let discards = || rig.disks[1].1.counts().discards;
        for chunk in 0..3 {
            let before = discards();
            put(&store, rig.disks[1].0, chunk, &payload(chunk, 3)).await.unwrap();
            store.release(&find(&store, chunk).await[0]).await.unwrap();
            rig.pause(3).await;
            assert!(discards() > before, "what was freed is discarded");
        }
        assert_eq!(asked.borrow().len(), 1, "the slow one is not asked again before it answers");
    });
}
