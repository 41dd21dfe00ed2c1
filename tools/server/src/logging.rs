//! What is logged, and what a panic does.

use crate::config::ConfigError;
use crate::log_section::{LogFormat, LogSection};
use std::io::IsTerminal;
use tracing_subscriber::EnvFilter;

/// Libraries that tell every election at INFO; the configured filter may ask for it by name.
const QUIET: &str = "openraft=warn";

/// Sends log lines to standard error. Called once.
///
/// The gateway's directives come last and win: what they silence would name objects (I-K1).
pub fn start(log: &LogSection) -> Result<(), ConfigError> {
    let refused = |reason| ConfigError::Value { key: "log.filter", value: log.filter.clone(), reason };
    let mut filter = EnvFilter::try_new(format!("{QUIET},{}", log.filter))
        .map_err(|_| refused("give a level, or target=level pairs with commas"))?;
    for directive in kiseki_gateway::LOG_DIRECTIVES {
        filter = filter.add_directive(directive.parse().expect("the gateway's directives parse"));
    }
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal());
    // A second start in one process (tests) keeps the first subscriber.
    let _already_set = match log.format {
        LogFormat::Text => builder.with_target(true).try_init(),
        LogFormat::Json => builder.json().try_init(),
    };
    Ok(())
}

/// A panic ends the process: one dead core must not leave its siblings half alive. The exception is a task that
/// `is_supervised` vouches for (a Raft group, which is caught, logged and rebuilt from disk).
pub fn abort_on_panic(is_supervised: fn() -> bool) {
    let print = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        print(info);
        if !is_supervised() {
            std::process::abort();
        }
    }));
}
