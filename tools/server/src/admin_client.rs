//! The operator's end of administration: the admin socket of a node here, or a link to a node elsewhere.

use crate::admin::{AdminRequest, AdminResponse, LINE_LEN_BYTES_MAX};
use crate::admin_remote::{RemoteAdmin, RemoteError};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;
use thiserror::Error;

/// How long an answer may take: a little longer than the server gives up after.
const ANSWER_MAX: Duration = Duration::from_secs(90);

/// Why a node did not answer.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum AdminClientError {
    /// Nobody listens.
    #[error("no node answers at {path}: {source}; start it with `kiseki-server run`, or name its directory with --dir")]
    NotRunning {
        /// The socket.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The connection broke.
    #[error("the node closed the connection: {0}")]
    Broken(#[from] io::Error),
    /// The answer makes no sense.
    #[error("the node's answer is not understood ({0}); use the `kiseki` of the same release")]
    Strange(serde_json::Error),
    /// A node elsewhere.
    #[error(transparent)]
    Remote(#[from] RemoteError),
}

/// A way to a node's administration.
pub struct AdminClient {
    way: Way,
    answer_max: Duration,
}

enum Way {
    Socket(BufReader<UnixStream>),
    Link(RemoteAdmin),
}

impl AdminClient {
    /// Connects to the socket at `path`.
    pub fn connect(path: &Path) -> Result<AdminClient, AdminClientError> {
        let stream = UnixStream::connect(path)
            .map_err(|source| AdminClientError::NotRunning { path: path.to_owned(), source })?;
        stream.set_read_timeout(Some(ANSWER_MAX))?;
        Ok(AdminClient { way: Way::Socket(BufReader::new(stream)), answer_max: ANSWER_MAX })
    }

    /// Makes ready to call the node at `node` (HOST:PORT) with the certificate in `certificate_dir`; the first call connects.
    pub fn remote(node: &str, certificate_dir: &Path) -> Result<AdminClient, AdminClientError> {
        let link = RemoteAdmin::new(node, certificate_dir)?;
        Ok(AdminClient { way: Way::Link(link), answer_max: ANSWER_MAX })
    }

    /// Waits so long for answers from now on: some changes take their time.
    pub fn be_patient(&mut self, answer_max: Duration) -> Result<(), AdminClientError> {
        self.answer_max = answer_max;
        match &self.way {
            Way::Socket(reader) => Ok(reader.get_ref().set_read_timeout(Some(answer_max))?),
            Way::Link(_) => Ok(()),
        }
    }

    /// Asks and waits for the answer.
    pub fn call(&mut self, request: &AdminRequest) -> Result<AdminResponse, AdminClientError> {
        let reader = match &mut self.way {
            Way::Socket(reader) => reader,
            Way::Link(link) => return Ok(link.call(request, self.answer_max)?),
        };
        let mut text = serde_json::to_vec(request).map_err(AdminClientError::Strange)?;
        text.push(b'\n');
        reader.get_mut().write_all(&text)?;
        let mut line = Vec::new();
        reader.by_ref().take(LINE_LEN_BYTES_MAX as u64).read_until(b'\n', &mut line)?;
        if line.is_empty() {
            return Err(AdminClientError::Broken(io::ErrorKind::UnexpectedEof.into()));
        }
        serde_json::from_slice(&line).map_err(AdminClientError::Strange)
    }
}
