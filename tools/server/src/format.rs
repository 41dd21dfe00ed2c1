//! Formats devices for a node; `init` and `kiseki-devctl format` both come here.

use kiseki_devices::DeviceError;
use kiseki_devices::file_device::{DeviceLock, open_device};
use kiseki_devices::format::{FormatRequest, format};
use kiseki_devices::ring::RingOptions;
use kiseki_devices::superblock::{DeviceClass, MetadataEpoch, Superblock};
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
    /// Their class; `None` tells it from the path.
    pub class: Option<DeviceClass>,
    /// The node's metadata-set epoch, from a superblock of its other devices; the default for a new node.
    pub metadata: MetadataEpoch,
    /// Names of signatures that may be overwritten (I-D7).
    pub wipe: Vec<String>,
}

/// Why a device was not formatted.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum FormatError {
    /// The device refuses or fails.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// This machine lets us make no executor.
    #[error("no executor can be made ({reason}); `kiseki-server doctor` tells what to do")]
    Executor {
        /// Why.
        reason: String,
    },
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

/// Formats devices one after the other and tells `progress` of each that is done. Stops at the first error; those done
/// before are formatted.
pub fn format_all(
    paths: &[PathBuf],
    options: &FormatOptions,
    mut progress: impl FnMut(&Path, &Superblock),
) -> Result<(), FormatError> {
    on_executor(async |ports| {
        for path in paths {
            let superblock = format_one(path, options, &ports).await?;
            progress(path, &superblock);
        }
        Ok(())
    })?
}

async fn format_one(path: &Path, options: &FormatOptions, ports: &Ports) -> Result<Superblock, FormatError> {
    let _lock = DeviceLock::acquire(path)?;
    let device = open_device(path, RingOptions::default(), None)?;
    let request = FormatRequest {
        cluster: options.cluster,
        device: DeviceId(ports.random()),
        pool: FIRST_POOL,
        class: options.class.unwrap_or_else(|| class_of(path)),
        lanes: options.lanes,
        metadata: options.metadata.clone(),
        wipe_confirmed: options.wipe.clone(),
    };
    Ok(format(ports, &device, &request).await?)
}

/// A guess that an operator can overrule.
fn class_of(path: &Path) -> DeviceClass {
    let name = path.to_string_lossy();
    match () {
        () if name.starts_with("/dev/nvme") || name.starts_with("/dev/ng") => DeviceClass::Nvme,
        () if name.starts_with("/dev/") => DeviceClass::Ssd,
        () => DeviceClass::File,
    }
}
