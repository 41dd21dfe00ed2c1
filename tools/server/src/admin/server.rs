//! The node's end of the admin socket: a side thread that reads lines and hands requests to core 0. What blocks (devices
//! that join) it answers itself.

use super::{AdminRequest, AdminResponse, LINE_LEN_BYTES_MAX};
use crate::device_admin::DeviceAnswer;
use crate::device_records::parse_id;
use crate::enroll;
use crate::executor::CoreShared;
use crate::health::HealthReport;
use crate::outcome::Outcome;
use crate::status::StatusBoard;
use futures::channel::mpsc;
use kiseki_types::ids::NodeId;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

/// Connections served at once; further ones are closed at once (I-O5).
const CONNECTIONS_MAX: usize = 32;
/// Requests that wait for core 0.
const CALLS_WAITING_MAX: usize = 64;
/// A connection that sends nothing for this long is closed.
const IDLE_MAX: Duration = Duration::from_secs(60);
/// An answer that core 0 has not given after this long will not come.
const ANSWER_MAX: Duration = Duration::from_secs(60);

/// A request on its way to core 0.
pub struct AdminCall {
    /// What is asked.
    pub request: AdminRequest,
    /// Where the answer goes.
    pub answer: std::sync::mpsc::SyncSender<AdminResponse>,
}

/// What is answered on the thread of the connection, without core 0.
pub trait Beside: Send + Sync + 'static {
    /// What the node says about itself.
    fn board(&self) -> &StatusBoard;
    /// Takes a device in; blocks.
    fn enroll(&self, request: AdminRequest) -> AdminResponse;
    /// Closes a device that core 0 has retired; blocks.
    fn release(&self, retired: &DeviceAnswer) -> Result<(), String>;
}

impl Beside for CoreShared {
    fn board(&self) -> &StatusBoard {
        &self.board
    }

    fn enroll(&self, request: AdminRequest) -> AdminResponse {
        let joined = match request {
            AdminRequest::DeviceEnroll { path, actor, mode } => enroll::enroll(self, &path, &actor, mode),
            AdminRequest::DeviceReplace { device, path, actor, mode } => {
                enroll::replace(self, &device, &path, &actor, mode)
            }
            other => return AdminResponse::refused(format!("{other:?} is for core 0")),
        };
        match joined {
            Ok(joined) => AdminResponse::Joined(Box::new(joined)),
            Err(error) => AdminResponse::not_done(error),
        }
    }

    fn release(&self, retired: &DeviceAnswer) -> Result<(), String> {
        match parse_id(&retired.device)
            .filter(|_| self.board.lock().devices.iter().any(|known| known.id == retired.device))
        {
            Some(id) => enroll::release(self, id, "an operator"),
            // It is not configured any more, so there is nothing to close.
            None => Ok(()),
        }
    }
}

/// Requests as core 0 receives them.
pub type AdminCalls = mpsc::Receiver<AdminCall>;

/// Where requests are answered, wherever they come from. Cheap to clone.
pub struct AdminDesk<B> {
    sender: mpsc::Sender<AdminCall>,
    beside: Arc<B>,
}

impl<B> Clone for AdminDesk<B> {
    fn clone(&self) -> AdminDesk<B> {
        AdminDesk { sender: self.sender.clone(), beside: self.beside.clone() }
    }
}

impl<B: Beside> AdminDesk<B> {
    /// A desk, and what it hands to core 0.
    pub fn new(beside: Arc<B>) -> (AdminDesk<B>, AdminCalls) {
        let (sender, calls) = mpsc::channel(CALLS_WAITING_MAX);
        (AdminDesk { sender, beside }, calls)
    }

    /// Whether the cluster would hold if this node left; blocks, for `within` at most.
    pub fn health(&mut self, within: Duration) -> HealthReport {
        let request = AdminRequest::Health { node: None, rack: None };
        match ask_core_within(&mut self.sender, request, within) {
            AdminResponse::Health(health) => health,
            AdminResponse::Error { message, .. } => {
                HealthReport::not_ok(NodeId(self.beside.board().lock().node), message)
            }
            _ => unreachable!("core 0 answers each request in kind"),
        }
    }

    /// The answer to a request as JSON, as JSON; blocks.
    pub fn answer(&mut self, request: &[u8]) -> serde_json::Result<Vec<u8>> {
        let response = match serde_json::from_slice(request) {
            Ok(AdminRequest::Status) => AdminResponse::Status(Box::new(self.beside.board().snapshot())),
            Ok(request @ (AdminRequest::DeviceEnroll { .. } | AdminRequest::DeviceReplace { .. })) => {
                self.beside.enroll(request)
            }
            Ok(request @ AdminRequest::DeviceRetire { .. }) => retire(&mut self.sender, &*self.beside, request),
            Ok(request) => ask_core(&mut self.sender, request),
            // serde names the field and the position, never a value that could be a secret.
            Err(error) => AdminResponse::refused(format!("not a request that this server knows: {error}")),
        };
        serde_json::to_vec(&response)
    }
}

/// Listens on `path` (0600) and serves it from side threads until the process ends. A socket that a crash left behind
/// is replaced; the caller holds the directory's lock, so no living node is behind it.
pub fn start<B: Beside>(path: &Path, desk: AdminDesk<B>) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    // Bound under another name, made private, then renamed: there is no moment in which others can connect.
    let unready = path.with_extension("sock.new");
    let _left_by_a_crash = std::fs::remove_file(&unready);
    let listener = UnixListener::bind(&unready)?;
    std::fs::set_permissions(&unready, std::fs::Permissions::from_mode(0o600))?;
    std::fs::rename(&unready, path)?;
    std::thread::Builder::new().name("kiseki-admin".to_owned()).spawn(move || accept(&listener, &desk))?;
    Ok(())
}

fn accept<B: Beside>(listener: &UnixListener, desk: &AdminDesk<B>) {
    let open = Arc::new(AtomicUsize::new(0));
    for stream in listener.incoming() {
        let Ok(stream) = stream else {
            std::thread::sleep(Duration::from_millis(50));
            continue;
        };
        if open.load(Ordering::Relaxed) >= CONNECTIONS_MAX {
            continue;
        }
        open.fetch_add(1, Ordering::Relaxed);
        let (desk, count) = (desk.clone(), open.clone());
        let spawned = std::thread::Builder::new().name("kiseki-admin-call".to_owned()).spawn(move || {
            // A client that goes away in the middle is its own affair.
            let _gone = converse(stream, desk);
            count.fetch_sub(1, Ordering::Relaxed);
        });
        if spawned.is_err() {
            open.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

fn converse<B: Beside>(stream: UnixStream, mut desk: AdminDesk<B>) -> io::Result<()> {
    stream.set_read_timeout(Some(IDLE_MAX))?;
    stream.set_write_timeout(Some(IDLE_MAX))?;
    let mut writer = stream.try_clone()?;
    let mut reader = BufReader::new(stream);
    loop {
        let mut line = Vec::new();
        reader.by_ref().take(LINE_LEN_BYTES_MAX as u64).read_until(b'\n', &mut line)?;
        if line.is_empty() {
            return Ok(());
        }
        let mut text = desk.answer(&line).map_err(io::Error::other)?;
        text.push(b'\n');
        writer.write_all(&text)?;
    }
}

/// Core 0 sees to it that nothing lives on the device, and records that it is removed; then its files are closed here.
fn retire(sender: &mut mpsc::Sender<AdminCall>, beside: &dyn Beside, request: AdminRequest) -> AdminResponse {
    match ask_core(sender, request) {
        AdminResponse::Device(retired) if !retired.is_dry_run => match beside.release(&retired) {
            Ok(()) => AdminResponse::Device(retired),
            Err(reason) => AdminResponse::Error {
                message: format!(
                    "{} is removed: nothing lives on it and no core uses it; but it could not be closed: {reason}; restart the \
                     node before it is pulled",
                    retired.path
                ),
                outcome: Outcome::Partly,
            },
        },
        other => other,
    }
}

fn ask_core(sender: &mut mpsc::Sender<AdminCall>, request: AdminRequest) -> AdminResponse {
    ask_core_within(sender, request, ANSWER_MAX)
}

fn ask_core_within(sender: &mut mpsc::Sender<AdminCall>, request: AdminRequest, within: Duration) -> AdminResponse {
    let (answer, receiver) = std::sync::mpsc::sync_channel(1);
    let busy = || AdminResponse::failed("the node is starting, stopping or overloaded; try again".to_owned());
    if sender.try_send(AdminCall { request, answer }).is_err() {
        return busy();
    }
    receiver.recv_timeout(within).unwrap_or_else(|_| busy())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin_client::AdminClient;
    use futures::{FutureExt, StreamExt};

    #[derive(Default)]
    struct Board(StatusBoard);

    impl Beside for Board {
        fn board(&self) -> &StatusBoard {
            &self.0
        }
        fn enroll(&self, request: AdminRequest) -> AdminResponse {
            AdminResponse::refused(format!("{request:?}"))
        }
        fn release(&self, retired: &DeviceAnswer) -> Result<(), String> {
            Err(format!("{retired:?}"))
        }
    }

    #[test]
    fn a_request_reaches_the_core_and_status_needs_no_core() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("admin.sock");
        let board = Arc::new(Board::default());
        board.0.lock().endpoint = "here".to_owned();
        board.0.lock().core_reports.insert("0".to_owned(), crate::status::CoreReport::default());
        let (desk, mut calls) = AdminDesk::new(board);
        start(&path, desk).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let core = std::thread::spawn(move || {
            let call = loop {
                match calls.next().now_or_never() {
                    Some(call) => break call.unwrap(),
                    None => std::thread::sleep(Duration::from_millis(1)),
                }
            };
            assert_eq!(call.request, AdminRequest::TenantList);
            call.answer.send(AdminResponse::Tenants { tenants: Vec::new() }).unwrap();
        });
        let mut client = AdminClient::connect(&path).unwrap();
        assert!(
            matches!(client.call(&AdminRequest::Status), Ok(AdminResponse::Status(report)) if report.endpoint == "here")
        );
        assert!(matches!(client.call(&AdminRequest::TenantList), Ok(AdminResponse::Tenants { .. })));
        core.join().unwrap();
        let stopped = client.call(&AdminRequest::TenantList);
        assert!(matches!(stopped, Ok(AdminResponse::Error { .. })), "a core that is gone is an answer, not a hang");
        start(&path, AdminDesk::new(Arc::<Board>::default()).0).expect("a socket left behind is replaced");
    }
}
