//! What a process that serves asks of its heap (`docs/decisions/heap.md`). Each program names the allocator itself.

/// Keeps this process on small pages from here on: mimalloc asks for huge ones, and a buffer in one of these is one long piece for a
/// device.
///
/// Errors: kernels that know no huge pages; there is nothing to keep away then.
pub fn keep_pages_small() -> std::io::Result<()> {
    Ok(rustix::thread::disable_transparent_huge_pages(true)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn huge_pages_are_off_afterwards() {
        keep_pages_small().unwrap();
        assert!(rustix::thread::transparent_huge_pages_are_disabled().unwrap());
    }
}
