//! Ctrl-C ends the measurement early, not the program: what was measured is still reported, and cleaned up after.

use anyhow::{Context, Result};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Set by the first signal; the second one ends the process.
#[derive(Clone, Debug, Default)]
pub struct Stop(Arc<AtomicBool>);

impl Stop {
    /// Listens for SIGINT and SIGTERM.
    pub fn on_signals() -> Result<Stop> {
        let stop = Stop::default();
        for signal in [SIGINT, SIGTERM] {
            // The shutdown is registered first: it looks at the flag before the same signal sets it.
            flag::register_conditional_shutdown(signal, 130, stop.0.clone())
                .and_then(|_| flag::register(signal, stop.0.clone()))
                .context("can't listen for signals")?;
        }
        Ok(stop)
    }

    /// As a signal does.
    #[cfg(test)]
    pub fn set(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Whether to come to an end.
    #[must_use]
    pub fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}
