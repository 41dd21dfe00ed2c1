//! Direct I/O of a file through an io_uring and nothing else: how fast a disk answers whoever asks, in whichever program.
//!
//! `bare_ring FILE read|write BLOCK_BYTES DEPTH SECONDS`: random places, one thread, registered file and buffers, one system call
//! to hand over and to wait. Prints the keys of fio's JSON that `perf/device_compare.py` reads. WRITES OVER the file.

#![allow(unsafe_code)]

use io_uring::types::Fixed;
use io_uring::{IoUring, opcode};
use std::alloc::{Layout, alloc_zeroed};
use std::error::Error;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::time::{Duration, Instant};

const DEPTH_MAX: usize = 1024;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [path, direction, block, depth, seconds] = arguments.as_slice() else {
        return Err("usage: bare_ring FILE read|write BLOCK_BYTES DEPTH SECONDS".into());
    };
    let reads = match direction.as_str() {
        "read" => true,
        "write" => false,
        other => return Err(format!("{other}: it is read or write").into()),
    };
    let (block, depth): (usize, usize) = (block.parse()?, depth.parse()?);
    let span = Duration::from_secs(seconds.parse()?);
    if !block.is_power_of_two() || !(512..=1 << 24).contains(&block) || !(1..=DEPTH_MAX).contains(&depth) {
        return Err(format!("a block is a power of two from 512 to 16 MiB, the depth 1 to {DEPTH_MAX}").into());
    }
    let file = std::fs::File::options().read(true).write(!reads).custom_flags(libc::O_DIRECT).open(path)?;
    let places = file.metadata()?.len() / block as u64;
    if places == 0 {
        return Err(format!("{path}: not one block of {block} bytes").into());
    }

    let entries = depth.next_power_of_two() as u32;
    let mut ring: IoUring = IoUring::builder().setup_single_issuer().setup_defer_taskrun().build(entries)?;
    // SAFETY: the layout is not empty. The memory is never given back, so it outlives whatever the kernel still does with it.
    let memory = unsafe { alloc_zeroed(Layout::from_size_align(block * depth, block.max(4096))?) };
    if memory.is_null() {
        return Err(format!("no memory for {depth} blocks of {block} bytes").into());
    }
    let whole = libc::iovec { iov_base: memory.cast(), iov_len: block * depth };
    // SAFETY: as above; and nothing here looks into the memory, so the kernel may change it at any time.
    unsafe { ring.submitter().register_buffers(&[whole])? };
    ring.submitter().register_files(&[file.as_raw_fd()])?;

    let mut dice = std::time::UNIX_EPOCH.elapsed()?.as_nanos() as u64 | 1;
    let mut begun = vec![Instant::now(); depth];
    let mut latencies_ns: Vec<u64> = Vec::new();
    let mut free: Vec<usize> = (0..depth).collect();
    let (start, cpu_before) = (Instant::now(), processor_time());
    loop {
        while start.elapsed() < span
            && let Some(slot) = free.pop()
        {
            dice ^= dice << 13;
            dice ^= dice >> 7;
            dice ^= dice << 17;
            let offset = (dice >> 8) % places * block as u64;
            let at = memory.wrapping_add(slot * block);
            let entry = match reads {
                true => opcode::ReadFixed::new(Fixed(0), at, block as u32, 0).offset(offset).build(),
                false => opcode::WriteFixed::new(Fixed(0), at, block as u32, 0).offset(offset).build(),
            };
            begun[slot] = Instant::now();
            // SAFETY: the slot's block lies in the registered memory, which is never given back.
            unsafe { ring.submission().push(&entry.user_data(slot as u64))? };
        }
        if free.len() == depth {
            break;
        }
        ring.submit_and_wait(1)?;
        for answer in ring.completion() {
            let slot = answer.user_data() as usize;
            if answer.result() != block as i32 {
                return Err(format!("an operation ended with {} in place of {block}", answer.result()).into());
            }
            latencies_ns.push(begun[slot].elapsed().as_nanos() as u64);
            free.push(slot);
        }
    }
    let (took, cpu) = (start.elapsed(), processor_time() - cpu_before);
    latencies_ns.sort_unstable();
    let at = |part: usize| latencies_ns.get(latencies_ns.len() * part / 100).copied().unwrap_or(0);
    let count = latencies_ns.len();
    let mean_ns = latencies_ns.iter().sum::<u64>() / count.max(1) as u64;
    let (p50, p99) = (at(50), at(99));
    let iops = count as f64 / took.as_secs_f64();
    let cpu_percent = cpu.as_secs_f64() * 100.0 / took.as_secs_f64();
    println!(
        r#"{{"jobs": [{{"{direction}": {{"total_ios": {count}, "iops": {iops:.1}, "lat_ns": {{"mean": {mean_ns},
"percentile": {{"50.000000": {p50}, "99.000000": {p99}}}}}}}, "usr_cpu": {cpu_percent:.3}, "sys_cpu": 0}}]}}"#
    );
    Ok(())
}

/// Of this process, in user mode and in the kernel together.
fn processor_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}
