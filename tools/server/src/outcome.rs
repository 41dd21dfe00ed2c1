//! How a command ends: its exit code, and with `--json` its error as one object. The same for every program of the project
//! that answers and ends; `docs/devctl.md` is the contract with scripts.
//!
//! An error goes to standard error, so that what stands on standard output is an answer and nothing else. For people it is a
//! sentence; with `--json` it is one line:
//!
//! ```text
//! {"error":{"outcome":"refused","exit_code":1,"message":"what, and what to do","causes":["why","and why that"]}}
//! ```

use crate::admin_client::AdminClientError;
use crate::admin_remote::RemoteError;
use crate::format::FormatError;
use kiseki_devices::DeviceError;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::io;
use std::process::ExitCode;

/// How a command ended that did not do what it was asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// It was refused, or is not possible; nothing was changed. Also: something was looked at, and is not as it should be.
    #[default]
    Refused,
    /// The command line makes no sense.
    Usage,
    /// Something failed on the way: an operation of a device or a file, the connection to the node, the node.
    Failed,
    /// A part of it is done, the rest is not.
    Partly,
}

impl Outcome {
    /// The exit code. Never changed once released.
    #[must_use]
    pub fn code(self) -> u8 {
        match self {
            Outcome::Refused => 1,
            Outcome::Usage => 2,
            Outcome::Failed => 3,
            Outcome::Partly => 4,
        }
    }

    /// The same for the end of `main`.
    #[must_use]
    pub fn exit_code(self) -> ExitCode {
        ExitCode::from(self.code())
    }

    /// How an error ends a command.
    #[must_use]
    pub fn of(error: &anyhow::Error) -> Outcome {
        if error.downcast_ref::<Partly>().is_some() {
            return Outcome::Partly;
        }
        if let Some(answer) = error.chain().find_map(|cause| cause.downcast_ref::<NodeError>()) {
            return answer.outcome;
        }
        let is_failure = |cause: &(dyn std::error::Error + 'static)| {
            // What is not there, or not ours to open, was not touched.
            let failed_io = cause.downcast_ref::<io::Error>().is_some_and(|error| {
                !matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied)
            });
            let failed_device = matches!(
                cause.downcast_ref::<DeviceError>(),
                Some(DeviceError::Journal(_) | DeviceError::Fenced { .. })
            );
            let failed_format = matches!(
                cause.downcast_ref::<FormatError>(),
                Some(FormatError::NotShown { .. } | FormatError::Executor { .. })
            );
            let failed_call = matches!(
                cause.downcast_ref::<AdminClientError>(),
                Some(
                    AdminClientError::Broken(_)
                        | AdminClientError::Strange(_)
                        | AdminClientError::Remote(RemoteError::Unanswered { .. } | RemoteError::Deadline { .. })
                )
            );
            failed_io || failed_device || failed_format || failed_call
        };
        // Nobody listening is a state of the node, not a failure on the way.
        let is_stopped = |cause: &(dyn std::error::Error + 'static)| {
            matches!(cause.downcast_ref::<AdminClientError>(), Some(AdminClientError::NotRunning { .. }))
        };
        match error.chain().any(is_failure) && !error.chain().any(is_stopped) {
            true => Outcome::Failed,
            false => Outcome::Refused,
        }
    }
}

/// What the node answered instead of doing it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct NodeError {
    /// What, and what to do.
    pub message: String,
    /// Whether it was refused, or failed.
    pub outcome: Outcome,
}

/// Context of an error: what was done before it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Partly(pub String);

impl fmt::Display for Partly {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Whether the command line asks for JSON: known even when the rest of it makes no sense.
#[must_use]
pub fn wants_json() -> bool {
    std::env::args_os().take_while(|argument| argument != "--").any(|argument| argument == "--json")
}

/// An error for standard error: a line for people, or an object.
#[must_use]
pub fn error_text(program: &str, error: &anyhow::Error, json: bool) -> String {
    let outcome = Outcome::of(error);
    let (message, causes) = (error.to_string(), causes(error));
    match json {
        true => object(outcome, &message, &causes),
        false if causes.is_empty() => format!("{program}: {message}"),
        false => format!("{program}: {message}: {}", causes.join(": ")),
    }
}

/// The causes of an error, without those that the text before them has said already.
fn causes(error: &anyhow::Error) -> Vec<String> {
    let mut said = error.to_string();
    let mut causes = Vec::new();
    for cause in error.chain().skip(1).map(ToString::to_string) {
        if !said.contains(&cause) {
            said.push_str(&cause);
            causes.push(cause);
        }
    }
    causes
}

fn object(outcome: Outcome, message: &str, causes: &[String]) -> String {
    let code = outcome.code();
    serde_json::json!({ "error": { "outcome": outcome, "exit_code": code, "message": message, "causes": causes } })
        .to_string()
}

/// Says an error and gives its exit code.
pub fn fail(program: &str, error: &anyhow::Error) -> ExitCode {
    eprintln!("{}", error_text(program, error, wants_json()));
    Outcome::of(error).exit_code()
}

/// Parses a command line as [`clap::Parser::parse`] does; with `--json` what is wrong with it is an object too.
#[must_use]
pub fn parse<T: clap::Parser>() -> T {
    T::try_parse().unwrap_or_else(|error| {
        // Help and version are answers.
        if !error.use_stderr() || !wants_json() {
            error.exit()
        }
        let text = error.to_string();
        let message = text.trim_start_matches("error: ").trim_end();
        eprintln!("{}", object(Outcome::Usage, message, &[]));
        std::process::exit(i32::from(Outcome::Usage.code()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::anyhow;

    #[test]
    fn errors_end_in_the_code_that_is_documented() {
        let io = || io::Error::from_raw_os_error(5);
        let gone = || io::Error::from(io::ErrorKind::NotFound);
        let signed =
            || DeviceError::Signed { device: "d".to_owned(), found: "ext".to_owned(), confirm: "ext".to_owned() };
        let node = |outcome| NodeError { message: "no".to_owned(), outcome };
        let (at, reason) = (|| "n:1".to_owned(), || "it ended".to_owned());
        let unreachable = RemoteError::Unreachable { node: at(), reason: reason() };
        let unanswered = RemoteError::Unanswered { node: at(), reason: reason() };
        let not_running = AdminClientError::NotRunning { path: "s".into(), source: io() };
        for (error, outcome) in [
            (anyhow!("it works, so nothing has to be rebuilt"), Outcome::Refused),
            (anyhow!(signed()), Outcome::Refused),
            (anyhow!(FormatError::Device(signed())), Outcome::Refused),
            (anyhow!(DeviceError::io("d", "writing", io())), Outcome::Failed),
            (anyhow!(FormatError::Device(DeviceError::io("d", "writing", io()))), Outcome::Failed),
            (anyhow!(io()).context("can't list"), Outcome::Failed),
            (anyhow!(DeviceError::io("d", "opening", gone())), Outcome::Refused),
            (anyhow!(not_running).context("a node does that"), Outcome::Refused),
            (anyhow!(AdminClientError::Broken(io())), Outcome::Failed),
            (anyhow!(AdminClientError::Remote(unreachable)), Outcome::Refused),
            (anyhow!(AdminClientError::Remote(unanswered)), Outcome::Failed),
            (anyhow!(node(Outcome::Refused)), Outcome::Refused),
            (anyhow!(node(Outcome::Failed)), Outcome::Failed),
            (anyhow!(signed()).context(Partly("the first is formatted".to_owned())), Outcome::Partly),
        ] {
            assert_eq!(Outcome::of(&error), outcome, "{error:?}");
        }
        assert_eq!(
            [Outcome::Refused, Outcome::Usage, Outcome::Failed, Outcome::Partly].map(Outcome::code),
            [1, 2, 3, 4]
        );
    }

    #[test]
    fn an_error_is_one_line_of_json_that_says_everything_once() {
        let error =
            anyhow!(io::Error::other("a wire is loose")).context("d failed: a wire is loose").context("no format");
        let text = error_text("kiseki-devctl", &error, true);
        assert_eq!(text.lines().count(), 1);
        let value: serde_json::Value = serde_json::from_str(&text).unwrap();
        let wanted = serde_json::json!({
            "outcome": "failed", "exit_code": 3, "message": "no format", "causes": ["d failed: a wire is loose"]
        });
        assert_eq!(value["error"], wanted);
        assert_eq!(error_text("x", &error, false), "x: no format: d failed: a wire is loose");
    }
}
