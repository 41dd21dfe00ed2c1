//! Formats devices for a node; `init` and `kiseki-devctl format` both come here.

use crate::format_plan::{DevicePlan, DriveFormat, plan_device};
use kiseki_devices::DeviceError;
use kiseki_devices::device_tail::DeviceTail;
use kiseki_devices::file_device::{DeviceLock, open_device};
use kiseki_devices::format::namespace::{NamespaceChoice, NamespaceRefusal};
use kiseki_devices::format::{FormatProgress, FormatRequest, format, mark_begun};
use kiseki_devices::in_use::UsesOfMachine;
use kiseki_devices::nvme::PageError;
use kiseki_devices::ring::RingOptions;
use kiseki_devices::superblock::{DeviceClass, MetadataEpoch, Superblock};
use kiseki_devices::topology::KernelRoots;
use kiseki_engine::control_service::FIRST_POOL;
use kiseki_executor::{Executor, ExecutorOptions};
use kiseki_net::{CoreRuntime, SidePool};
use kiseki_types::ids::{ClusterId, CoreId, DeviceId};
use kiseki_types::runtime::{Ports, RuntimeExt};
use std::future::Future;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use thiserror::Error;

/// How devices are formatted.
#[derive(Clone, Debug)]
pub struct FormatOptions {
    /// Whose they will be.
    pub cluster: ClusterId,
    /// Lanes of the node.
    pub lanes: u16,
    /// Their class; `None` tells it from the device.
    pub class: Option<DeviceClass>,
    /// The node's metadata-set epoch, from a superblock of its other devices; the default for a new node.
    pub metadata: MetadataEpoch,
    /// Names of signatures that may be overwritten (I-D7).
    pub wipe: Vec<String>,
    /// What an NVMe drive is to do with its namespace first; the default: nothing.
    pub namespace: NamespaceChoice,
}

/// Why a device was not formatted.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum FormatError {
    /// The device refuses or fails.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// Its drive can't or must not do what is asked for.
    #[error("{device}: {refusal}")]
    Drive {
        /// Path of the device.
        device: String,
        /// Why.
        refusal: NamespaceRefusal,
    },
    /// There is no drive that could be told.
    #[error("{device} is no NVMe namespace: --nvme-format, --lbaf, --block-size and --secure-erase mean nothing to it")]
    NoDrive {
        /// Path of the device.
        device: String,
    },
    /// A drive describes itself in a way that makes no sense.
    #[error("{device} does not describe itself properly")]
    Page {
        /// Node of the drive.
        device: String,
        /// What is wrong.
        #[source]
        source: PageError,
    },
    /// The drive is done, and the kernel does not show it.
    #[error(
        "the drive has formatted {device}, and the kernel does not show its blocks of {block_len_bytes} bytes; reset the controller (nvme reset) and run the same command again"
    )]
    NotShown {
        /// Name of the device.
        device: String,
        /// Bytes of its blocks now.
        block_len_bytes: u32,
    },
    /// The kernel does not tell what is in use, so nothing is safe.
    #[error("can't tell what is in use on this machine ({reason}); nothing was changed")]
    Machine {
        /// Why.
        reason: String,
    },
    /// This machine lets us make no executor.
    #[error("no executor can be made ({reason}); `kiseki-server doctor` tells what to do")]
    Executor {
        /// Why.
        reason: String,
    },
}

/// What goes on in a format.
#[derive(Debug)]
pub enum FormatEvent<'a> {
    /// The drive formats its namespace.
    Drive {
        /// What is left, where it tells.
        remaining_percent: Option<u8>,
    },
    /// The device is written to.
    Writing(FormatProgress),
    /// A device is formatted.
    Done(&'a Superblock),
    /// It was already, by an earlier run of the same command; nothing was done.
    AlreadyDone(&'a Superblock),
}

/// Runs one task on an executor of its own, on the calling thread: for tools.
pub fn on_executor<T, F: Future<Output = T>>(body: impl FnOnce(Ports) -> F) -> Result<T, FormatError> {
    let failed = |reason: String| FormatError::Executor { reason };
    let side = SidePool::start(1).map_err(|error| failed(error.to_string()))?;
    let executor = Executor::new(ExecutorOptions::default()).map_err(|error| failed(error.to_string()))?;
    let result = executor.run(body(Rc::new(CoreRuntime::new(CoreId(0), side.clone()))));
    side.stop();
    Ok(result)
}

/// Formats devices one after the other and tells `progress` what goes on. All are looked at before the first is touched;
/// then the first error stops: those done before are formatted.
pub fn format_all(
    paths: &[PathBuf],
    options: &FormatOptions,
    mut progress: impl FnMut(&Path, FormatEvent<'_>),
) -> Result<(), FormatError> {
    let plans = plan_all(paths, options)?;
    plans.iter().try_for_each(DevicePlan::check)?;
    on_executor(async |ports| {
        for first in &plans {
            // I-D7: the ones before may have taken hours, and a drive may take other namespaces along: what was decided
            // then is decided again.
            let now = plan_all(std::slice::from_ref(&first.path), options)?;
            for plan in &now {
                plan.check()?;
                format_one(plan, options, &ports, |event| progress(&plan.path, event)).await?;
            }
        }
        Ok(())
    })?
}

/// What formatting these devices would do, in their order. Nothing is changed.
pub fn plan_all(paths: &[PathBuf], options: &FormatOptions) -> Result<Vec<DevicePlan>, FormatError> {
    let machine = UsesOfMachine::read(&KernelRoots::default());
    let machine = machine.map_err(|error| FormatError::Machine { reason: error.to_string() })?;
    paths.iter().map(|path| plan_device(path, options, &machine)).collect()
}

async fn format_one(
    plan: &DevicePlan,
    options: &FormatOptions,
    ports: &Ports,
    mut progress: impl FnMut(FormatEvent<'_>),
) -> Result<(), FormatError> {
    if let Some(superblock) = &plan.done {
        progress(FormatEvent::AlreadyDone(superblock));
        return Ok(());
    }
    let lock = DeviceLock::acquire(&plan.path)?;
    let request = FormatRequest {
        cluster: options.cluster,
        device: DeviceId(ports.random()),
        pool: FIRST_POOL,
        class: plan.class,
        lanes: options.lanes,
        metadata: options.metadata.clone(),
        wipe_confirmed: options.wipe.clone(),
    };
    if let Some(drive) = &plan.drive {
        format_drive(plan, drive, &request, |remaining_percent| progress(FormatEvent::Drive { remaining_percent }))
            .await?;
    }
    let device = open_device(&plan.path, RingOptions::default(), None)?;
    let tail = DeviceTail::open(&plan.path)?;
    let superblock = format(ports, &device, tail.as_ref(), &request, |at| progress(FormatEvent::Writing(at))).await?;
    // A table that is gone leaves nodes of its partitions behind otherwise.
    lock.reread_partitions();
    progress(FormatEvent::Done(&superblock));
    Ok(())
}

/// Has the drive format the namespace, which then carries nothing.
async fn format_drive(
    plan: &DevicePlan,
    drive: &DriveFormat,
    request: &FormatRequest,
    progress: impl FnMut(Option<u8>),
) -> Result<(), FormatError> {
    let _others = drive.lock_others()?;
    if drive.is_usable_before && !drive.is_resumed {
        // Should it be interrupted, the device says so.
        let device = open_device(&plan.path, RingOptions::default(), None)?;
        mark_begun(&*device, request).await?;
    }
    // The executor has nothing else to do meanwhile: this is a tool.
    drive.run(progress)
}

#[cfg(test)]
mod tests {
    use super::*;
    use kiseki_devices::file_device::create_image;
    use std::fs::OpenOptions;
    use std::os::unix::fs::FileExt;
    use std::process::Command;

    fn options() -> FormatOptions {
        FormatOptions {
            cluster: ClusterId([1; 16]),
            lanes: 4,
            class: None,
            metadata: MetadataEpoch::default(),
            wipe: Vec::new(),
            namespace: NamespaceChoice::default(),
        }
    }

    #[test]
    fn i_d7_a_device_that_is_refused_keeps_those_before_it_from_being_formatted() {
        let dir = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        let paths = ["a.img", "b.img"].map(|name| dir.path().join(name));
        paths.iter().for_each(|path| create_image(path, 16 << 20).unwrap());
        let swap = OpenOptions::new().write(true).open(&paths[1]).unwrap();
        swap.write_all_at(b"SWAPSPACE2", 4096 - 10).unwrap();
        drop(swap);
        let mut done = 0;
        let result =
            format_all(&paths, &options(), |_, event| done += u32::from(matches!(event, FormatEvent::Done(_))));
        assert!(result.expect_err("I-D7: swap space was formatted").to_string().contains("b.img"));
        assert!(
            done == 0 && std::fs::read(&paths[0]).unwrap().iter().all(|byte| *byte == 0),
            "I-D7: the first one was"
        );
    }

    #[test]
    fn i_d7_what_came_into_use_while_others_were_formatted_is_refused() {
        let dir = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        let paths = ["a.img", "b.img"].map(|name| dir.path().join(name));
        paths.iter().for_each(|path| create_image(path, 16 << 20).unwrap());
        let options = options();
        let (mut done, mut user) = (Vec::new(), None);
        let result = format_all(&paths, &options, |path, event| {
            if let FormatEvent::Done(_) = event {
                done.push(path.to_owned());
                // Somebody begins to use the other one, which was free when everything was looked at.
                let file = OpenOptions::new().write(true).open(&paths[1]).unwrap();
                user = Some(Command::new("sleep").arg("600").stdout(file).spawn().unwrap());
            }
        });
        let mut user = user.expect("the first one was formatted");
        user.kill().unwrap();
        user.wait().unwrap();
        let error = result.expect_err("I-D7: a device in use was formatted").to_string();
        assert!(error.contains("b.img") && error.contains("open for writing"), "{error}");
        assert_eq!(done, [paths[0].clone()]);
        assert!(std::fs::read(&paths[1]).unwrap().iter().all(|byte| *byte == 0), "I-D7: it was written to");
    }
}
