//! A shard of registers: each command writes one; the reply says where in the log it stands.

use crate::cluster::judge::Judge;
use crate::register::WriteId;
use kiseki_simulator::seed::mix64;
use kiseki_types::ShardId;
use kiseki_types::group::{Applied, ApplyError, LogPosition, StateMachine};
use kiseki_types::runtime::LocalBoxFuture;
use kiseki_types::table::{TableReader, TableWrite};
use std::rc::Rc;

/// File of the registers, sealed.
pub const FILE_REGISTERS: u8 = 0;
/// File of the chain, clear and the last: decisions rest on it alone.
pub const FILE_CHAIN: u8 = 1;

/// Key of the hash over all commands applied.
const KEY_CHAIN: &[u8] = b"chain";

/// A command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Put {
    /// The register.
    pub key: u64,
    /// The write.
    pub id: WriteId,
}

impl Put {
    /// The command's bytes, `padding` longer than they must be.
    #[must_use]
    pub fn encode(self, padding: usize) -> Vec<u8> {
        let mut bytes = [self.key.to_be_bytes(), self.id.to_be_bytes()].concat();
        bytes.resize(bytes.len() + padding, self.id as u8);
        bytes
    }

    /// Reads a command.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Option<Put> {
        let (key, rest) = bytes.split_first_chunk::<8>()?;
        let (id, _) = rest.split_first_chunk::<8>()?;
        Some(Put { key: u64::from_be_bytes(*key), id: u64::from_be_bytes(*id) })
    }
}

fn hash(seed: u64, bytes: &[u8]) -> u64 {
    bytes.iter().fold(seed, |hash, byte| mix64(hash ^ u64::from(*byte)))
}

/// One replica's logic; it tells the judge what it applies.
pub struct Registers {
    /// The shard.
    pub shard: ShardId,
    /// Who compares replicas.
    pub judge: Rc<Judge>,
}

impl StateMachine for Registers {
    fn apply<'a>(
        &'a self,
        at: LogPosition,
        command: &'a [u8],
        tables: &'a dyn TableReader,
    ) -> LocalBoxFuture<'a, Result<Applied, ApplyError>> {
        Box::pin(async move {
            let damaged = |reason: &str| ApplyError::Damaged { index: at.index, reason: reason.to_owned() };
            let put = Put::decode(command).ok_or_else(|| damaged("no command"))?;
            let before = chain(tables).await.map_err(ApplyError::Table)?;
            let after = hash(mix64(before ^ at.index) ^ at.term.0, command);
            self.judge.applied(self.shard, at, put, after);
            let write = |file, key: Vec<u8>, value: u64| TableWrite {
                file,
                table: 0,
                key,
                value: Some(value.to_be_bytes().to_vec()),
            };
            let writes = vec![
                write(FILE_REGISTERS, put.key.to_be_bytes().to_vec(), put.id),
                write(FILE_CHAIN, KEY_CHAIN.to_vec(), after),
            ];
            Ok(Applied { response: at.index.to_be_bytes().to_vec(), writes })
        })
    }
}

fn number(value: Option<Vec<u8>>) -> u64 {
    value.and_then(|bytes| bytes.try_into().ok()).map_or(0, u64::from_be_bytes)
}

/// The hash over all commands that a replica applied.
pub async fn chain(tables: &dyn TableReader) -> Result<u64, kiseki_types::table::TableError> {
    tables.get(FILE_CHAIN, 0, KEY_CHAIN).await.map(number)
}

/// The last write to a register; 0 for none.
pub async fn register(tables: &dyn TableReader, key: u64) -> Result<WriteId, kiseki_types::table::TableError> {
    tables.get(FILE_REGISTERS, 0, &key.to_be_bytes()).await.map(number)
}
