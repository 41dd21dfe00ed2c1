//! The state machine: what each writer said last.

use kiseki_types::group::{Applied, ApplyError, LogPosition, StateMachine};
use kiseki_types::runtime::LocalBoxFuture;
use kiseki_types::table::{TableReader, TableWrite};

/// Bytes of a command that name the writer.
pub const KEY_LEN_BYTES: usize = 8;

/// Keeps the last command of each writer.
pub struct Last;

impl StateMachine for Last {
    fn apply<'a>(
        &'a self,
        _at: LogPosition,
        command: &'a [u8],
        _tables: &'a dyn TableReader,
    ) -> LocalBoxFuture<'a, Result<Applied, ApplyError>> {
        let (key, value) = command.split_at(KEY_LEN_BYTES);
        let write = TableWrite { file: 0, table: 0, key: key.to_vec(), value: Some(value.to_vec()) };
        Box::pin(async move { Ok(Applied { response: Vec::new(), writes: vec![write] }) })
    }
}
