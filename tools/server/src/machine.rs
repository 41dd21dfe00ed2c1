//! What this machine offers: CPU features, and whether an executor can be made.

use glommio::LocalExecutorBuilder;

/// Which path each kernel takes on this CPU, for the start banner and the doctor.
#[must_use]
pub fn cpu_paths() -> Vec<(&'static str, &'static str)> {
    let avx512 = is_x86_feature(X86::Avx512);
    let gfni = is_x86_feature(X86::Gfni);
    let rabin = if avx512 && gfni {
        "AVX-512 + GFNI"
    } else if is_x86_feature(X86::Avx2) {
        "AVX2"
    } else {
        "plain"
    };
    let sha = if is_x86_feature(X86::Sha) { "SHA-NI" } else { "plain" };
    let aes = if is_x86_feature(X86::Vaes) {
        "VAES"
    } else if is_x86_feature(X86::Aes) {
        "AES-NI"
    } else {
        "plain"
    };
    vec![("cut", rabin), ("hash", sha), ("seal", aes), ("encode", if avx512 { "AVX-512" } else { "best of ISA-L" })]
}

enum X86 {
    Aes,
    Vaes,
    Sha,
    Avx2,
    Avx512,
    Gfni,
}

#[cfg(target_arch = "x86_64")]
fn is_x86_feature(feature: X86) -> bool {
    match feature {
        X86::Aes => std::is_x86_feature_detected!("aes"),
        X86::Vaes => std::is_x86_feature_detected!("vaes"),
        X86::Sha => std::is_x86_feature_detected!("sha"),
        X86::Avx2 => std::is_x86_feature_detected!("avx2"),
        X86::Avx512 => std::is_x86_feature_detected!("avx512f") && std::is_x86_feature_detected!("avx512bw"),
        X86::Gfni => std::is_x86_feature_detected!("gfni"),
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn is_x86_feature(_feature: X86) -> bool {
    false
}

/// Makes an executor and drops it: tells whether the kernel lets us use io_uring, and why not.
pub fn try_executor() -> Result<(), String> {
    LocalExecutorBuilder::default().make().map(drop).map_err(|error| error.to_string())
}
