//! The operator's end of the admin socket.

use crate::admin::{AdminRequest, AdminResponse, LINE_LEN_BYTES_MAX};
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
}

/// A connection to a node's admin socket.
pub struct AdminClient {
    reader: BufReader<UnixStream>,
}

impl AdminClient {
    /// Connects to the socket at `path`.
    pub fn connect(path: &Path) -> Result<AdminClient, AdminClientError> {
        let stream = UnixStream::connect(path)
            .map_err(|source| AdminClientError::NotRunning { path: path.to_owned(), source })?;
        stream.set_read_timeout(Some(ANSWER_MAX))?;
        Ok(AdminClient { reader: BufReader::new(stream) })
    }

    /// Waits so long for answers from now on: some changes take their time.
    pub fn be_patient(&mut self, answer_max: Duration) -> Result<(), AdminClientError> {
        Ok(self.reader.get_ref().set_read_timeout(Some(answer_max))?)
    }

    /// Asks and waits for the answer.
    pub fn call(&mut self, request: &AdminRequest) -> Result<AdminResponse, AdminClientError> {
        let mut text = serde_json::to_vec(request).map_err(AdminClientError::Strange)?;
        text.push(b'\n');
        self.reader.get_mut().write_all(&text)?;
        let mut line = Vec::new();
        self.reader.by_ref().take(LINE_LEN_BYTES_MAX as u64).read_until(b'\n', &mut line)?;
        if line.is_empty() {
            return Err(AdminClientError::Broken(io::ErrorKind::UnexpectedEof.into()));
        }
        serde_json::from_slice(&line).map_err(AdminClientError::Strange)
    }
}
