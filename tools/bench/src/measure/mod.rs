//! What is counted and how: latencies, rates over a window of time, errors, processor time.
//!
//! Times are nanoseconds since the run began and come in as arguments, so that tests need no clock.

mod course;
mod cpu;
mod error_log;
mod interval;
mod machine_cpu;
mod meter;
mod schedule;
mod steady;
mod watch;

pub use course::{Course, Plan, SteadyPlan};
pub use cpu::{CpuTime, ProcessCpu, Spent, thread_cpu_ns};
pub use error_log::ErrorLog;
pub use kiseki_measure::latency::{Latency, PERCENTILES};
pub use machine_cpu::{MachineCpu, processes};
pub use meter::{Meter, Slice, Spread, Timing, Window};
pub use schedule::Schedule;
pub use watch::{Edge, Watched, watch};
