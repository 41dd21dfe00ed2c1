//! Formatting as the first step of `enroll` and `replace`: the same refusals, the same plan.

use super::format::format_devices;
use super::format_args::format_options;
use super::join::Joiner;
use super::node::ElsewhereArgs;
use super::plan;
use anyhow::{Result, bail};
use kiseki_server::format::plan_all;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Whether devices are formatted before they join.
#[derive(clap::Args)]
pub struct FormatFirst {
    /// Format what joins first; everything on it is lost.
    #[arg(long)]
    format: bool,
    /// With --format: names of signatures that may be overwritten, as `inspect` prints them; comma separated or several times.
    #[arg(long, requires = "format", value_delimiter = ',')]
    wipe: Vec<String>,
}

impl FormatFirst {
    /// A drive is formatted on the machine that it is in.
    pub fn check(&self, elsewhere: &ElsewhereArgs) -> Result<()> {
        match self.format && elsewhere.is_named() {
            true => {
                bail!("--format works on the machine that the device is in: run `kiseki-devctl format` there first")
            }
            false => Ok(()),
        }
    }

    /// Formats `devices` when that is asked for. An exit code ends the command: a dry run shows the plan of the format alone,
    /// since what has no superblock can't be tried out.
    pub fn run(self, devices: &[PathBuf], dir: &Path, joiner: &mut Joiner) -> Result<Option<ExitCode>> {
        if !self.format {
            return Ok(None);
        }
        if joiner.is_dry_run() {
            let options = format_options(dir, None, None, None, self.wipe)?;
            return Ok(Some(plan::show(&plan_all(devices, &options)?, &options, joiner.is_json())));
        }
        joiner.check_before_format(devices)?;
        let options = format_options(dir, None, None, None, self.wipe)?;
        format_devices(devices, &options, joiner.is_json())?;
        joiner.note_formatted();
        Ok(None)
    }
}
