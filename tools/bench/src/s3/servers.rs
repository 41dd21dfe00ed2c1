//! Servers that are looked at when the measured part begins and ends: their processor time, and what they spent their time on.

use super::admin_page::{self, AdminPage};
use super::server_times::ServerTimes;
use super::target::TargetArgs;
use crate::measure::{Course, Edge, Plan, ProcessCpu, Watched, watch};
use crate::output::Job;
use anyhow::Result;
use clap::Args;
use serde::Serialize;
use std::sync::mpsc::Receiver;
use std::thread;
use std::time::Duration;

/// Nodes that say what they spent their time on.
#[derive(Args, Clone, Debug, Serialize)]
pub struct AdminArgs {
    /// Admin port of a Kiseki node, such as http://127.0.0.1:9090: what it spent its time on is shown; repeatable
    #[arg(long, value_name = "URL")]
    pub server_admin: Vec<String>,
}

/// What they spent their time on; `None` where nobody was asked.
pub type Times = Option<Result<ServerTimes>>;

/// The servers.
pub struct Servers {
    processes: Vec<(u32, ProcessCpu)>,
    nodes: Vec<AdminPage>,
}

impl Servers {
    /// Errors: `Usage`.
    pub fn open(admin: &AdminArgs, target: &TargetArgs) -> Result<Servers> {
        let page = |url: &String| AdminPage::open("--server-admin", url, "/stages", target.authorities());
        let nodes = admin.server_admin.iter().map(page).collect::<Result<Vec<_>>>()?;
        ServerTimes::read(&nodes)?; // not to learn after the run that it can't be done
        Ok(Servers { processes: target.servers()?, nodes })
    }

    /// Waits until the nodes have told of everything that was asked of them before the run, unless they do so during the warm-up.
    pub fn settle(&self, warmup: Duration) {
        if !self.nodes.is_empty() && warmup < admin_page::BEHIND {
            thread::sleep(admin_page::BEHIND);
        }
    }

    /// [`watch`], with a look at the servers at both ends of the measured part.
    pub fn watch(&self, plan: &Plan, course: &Course, ended: &Receiver<()>) -> (Watched, Times) {
        let (mut begin, mut times) = (None, None);
        let watched = watch(plan, course, &self.processes, ended, &mut |edge| match edge {
            Edge::Begin => begin = (!self.nodes.is_empty()).then(|| ServerTimes::read(&self.nodes)),
            Edge::End => {
                times = begin.take().map(|begin| {
                    thread::sleep(admin_page::BEHIND);
                    Ok(ServerTimes::read(&self.nodes)?.since(&begin?))
                });
            }
        });
        (watched, times)
    }
}

/// Puts what servers spent their time on beside a job.
pub fn tell(times: Times, job: &mut Job, warnings: &mut Vec<String>) {
    match times {
        None => {}
        Some(Err(error)) => warnings.push(format!("what servers spent their time on is not known: {error:#}")),
        Some(Ok(times)) => {
            job.extra.insert("waterfall".to_owned(), times.json());
            job.notes.extend(times.lines());
        }
    }
}
