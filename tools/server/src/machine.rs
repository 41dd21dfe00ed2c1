//! What this machine offers: CPU features, and whether an executor can be made.

use kiseki_engine::envelope::CipherLibrary;
use kiseki_executor::{Executor, ExecutorOptions};
use kiseki_kernels::{md5, rabin, sha256};

/// Which path each kernel takes on this CPU, for the start banner and the doctor.
#[must_use]
pub fn cpu_paths() -> Vec<(&'static str, String)> {
    let name = |kernel: Option<String>| kernel.unwrap_or_default().to_lowercase();
    let cut = name(rabin::Kernel::runnable().last().map(|kernel| format!("{kernel:?}")));
    let rejected: Vec<String> = rabin::Kernel::rejected().iter().map(|kernel| format!("{kernel:?}")).collect();
    let cut = match rejected.is_empty() {
        true => cut,
        false => format!("{cut} ({} cuts wrongly here and is not used; please report it)", rejected.join(", ")),
    };
    let hash = name(sha256::Kernel::runnable().last().map(|kernel| format!("{kernel:?}")));
    let etag = name(md5::Kernel::runnable().last().map(|kernel| format!("{kernel:?}")));
    let seal = name(Some(format!("{:?}", CipherLibrary::fastest())));
    vec![("cut", cut), ("hash", hash), ("etag", etag), ("seal", seal)]
}

/// Makes an executor and drops it: tells whether the kernel lets us use io_uring, and why not.
pub fn try_executor() -> Result<(), String> {
    Executor::new(ExecutorOptions::default()).map(drop).map_err(|error| error.to_string())
}
