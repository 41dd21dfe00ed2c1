//! How long a load is measured besides `--runtime`: a count of operations, a steady state first, several steps.

use crate::measure::SteadyPlan;
use crate::sweep::Sweep;
use crate::units::parse_duration;
use crate::usage::usage;
use anyhow::Result;
use clap::Args;
use serde::Serialize;
use std::time::Duration;

/// Options of all loads that run for a time.
#[derive(Args, Clone, Debug, Serialize)]
pub struct LengthArgs {
    /// Operations to do instead of measuring for a time; all of them are measured, without a warm-up
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    #[arg(conflicts_with_all = ["runtime", "warmup", "steadystate"])]
    pub count: Option<u64>,
    /// Lengthen the warm-up until operations a second and mean latency are steady: in five parts of
    /// --steadystate-duration they differ by no more than LIMIT of their mean, and rise or fall by no more than half of it
    #[arg(long, alias = "ss", value_name = "LIMIT", num_args = 0..=1, require_equals = true)]
    #[arg(default_missing_value = "20%", value_parser = parse_limit)]
    pub steadystate: Option<f64>,
    /// Time that a steady state is looked for in
    #[arg(long, alias = "steadystate_duration", alias = "ss_dur", value_name = "TIME", requires = "steadystate")]
    #[arg(value_parser = parse_duration, default_value = "10s")]
    #[serde(serialize_with = "crate::device::seconds")]
    pub steadystate_duration: Duration,
    /// Longest wait for a steady state after --warmup; the measured part begins then all the same, and the result says so
    #[arg(long, value_name = "TIME", requires = "steadystate", value_parser = parse_duration, default_value = "2m")]
    #[serde(serialize_with = "crate::device::seconds")]
    pub steadystate_timeout: Duration,
    /// One measurement for each value: clients=1..64 doubles, rate=1000,2000,4000 lists; the knee is marked
    #[arg(long, value_name = "VARIABLE=VALUES", value_parser = crate::sweep::parse_sweep)]
    pub sweep: Option<Sweep>,
}

impl LengthArgs {
    /// Errors: `Usage`.
    pub fn check(&self) -> Result<()> {
        if self.steadystate_duration < Duration::from_millis(50) {
            return Err(usage("--steadystate-duration: give at least 50ms, better 10s"));
        }
        Ok(())
    }

    /// When the warm-up has led to a steady state.
    #[must_use]
    pub fn steady(&self) -> Option<SteadyPlan> {
        let (duration, timeout) = (self.steadystate_duration, self.steadystate_timeout);
        self.steadystate.map(|limit| SteadyPlan { limit, duration, timeout })
    }
}

/// Parses `20%`.
fn parse_limit(text: &str) -> std::result::Result<f64, String> {
    let percent = text.strip_suffix('%').and_then(|number| number.parse::<f64>().ok());
    let limit = percent.filter(|percent| (0.1..=100.0).contains(percent)).map(|percent| percent / 100.0);
    limit.ok_or_else(|| format!("{text:?} is no limit; give percent of the mean, such as 20%"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_percent() {
        assert_eq!((parse_limit("20%"), parse_limit("0.5%")), (Ok(0.2), Ok(0.005)));
        for text in ["", "20", "0%", "101%", "iops:1%", "nan%"] {
            assert!(parse_limit(text).is_err(), "{text:?}");
        }
    }
}
