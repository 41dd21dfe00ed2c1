//! Walks a namespace's keys in S3's byte order, from any key on, through nested directories.
//!
//! The order of one directory's table is the order of its keys, because a directory's name ends in '/': so a walk is a
//! stack of scans, one per level, and seeks without reading what lies before.

use crate::api::{ListItem, ListPage, ListRequest, StoreError};
use crate::composition::{Entry, FileEntry};
use crate::key_ranges::is_below;
use crate::leader::{row_damaged, table_failed};
use crate::machine::ROWS_FILE;
use crate::message::Clip;
use crate::names::{entry_bound, name_of_entry_key};
use crate::shard_tables::ENTRIES;
use kiseki_types::ids::DirId;
use kiseki_types::table::{Direction, Row, Scan, TableReader, prefix_end};
use std::collections::VecDeque;
use std::ops::Bound;
use std::rc::Rc;

/// Rows that one scan fetches.
const BATCH_ROWS: usize = 256;

/// One directory on the way down.
struct Level {
    directory: DirId,
    /// Keys of this directory's entries start with this.
    path: String,
    rows: VecDeque<Row>,
    /// Where the next scan starts; `None` when the directory is exhausted.
    next: Option<Bound<Vec<u8>>>,
    /// Rows the next scan asks for: small at first, since most seeks look at few.
    batch: usize,
}

/// A position in the walk.
pub struct Walk {
    tables: Rc<dyn TableReader>,
    root: DirId,
    levels: Vec<Level>,
    /// Table key of the entry that was handed out last.
    place: Vec<u8>,
    /// Still to descend after a seek: the part of the target below the innermost level.
    descend: Option<String>,
}

impl Walk {
    /// A walk of the namespace below `root`, standing before its first key.
    #[must_use]
    pub fn new(tables: Rc<dyn TableReader>, root: DirId) -> Walk {
        let mut walk = Walk { tables, root, levels: Vec::new(), place: Vec::new(), descend: None };
        walk.seek("");
        walk
    }

    /// Table key of the entry that [`Walk::next`] has handed out last.
    #[must_use]
    pub fn place(&self) -> &[u8] {
        &self.place
    }

    /// Goes to the first key that is `target` or sorts behind it.
    pub fn seek(&mut self, target: &str) {
        self.levels.clear();
        self.push(self.root, String::new(), target);
    }

    fn push(&mut self, directory: DirId, path: String, rest: &str) {
        let component = rest.split_inclusive('/').next().unwrap_or("");
        let from = Bound::Included(entry_bound(directory, component.as_bytes()));
        self.levels.push(Level { directory, path, rows: VecDeque::new(), next: Some(from), batch: 8 });
        // Only an entry named exactly as this component can hold keys that lie before the target.
        self.descend = (component.ends_with('/')).then(|| rest.to_owned());
    }

    /// The next key and its file; `None` at the end.
    pub async fn next(&mut self) -> Result<Option<(String, FileEntry)>, StoreError> {
        loop {
            let Some(level) = self.levels.last_mut() else { return Ok(None) };
            let Some((key, value)) = level.rows.pop_front() else {
                if !refill(&self.tables, level).await? {
                    self.levels.pop();
                    self.descend = None;
                }
                continue;
            };
            let name = name_of_entry_key(&key)
                .ok_or_else(|| StoreError::Damaged { reason: "an entry's key is not well formed".to_owned() })?;
            let path = format!("{}{name}", level.path);
            let descend = self.descend.take();
            match Entry::decode(&value).map_err(row_damaged)? {
                Entry::File(file) => {
                    self.place = key;
                    return Ok(Some((path, file)));
                }
                Entry::Directory { id, .. } => {
                    let rest = descend.as_deref().and_then(|rest| rest.strip_prefix(name.as_str())).unwrap_or("");
                    self.push(id, path, rest);
                }
            }
        }
    }
}

/// Fetches more rows of a level; false at its end.
async fn refill(tables: &Rc<dyn TableReader>, level: &mut Level) -> Result<bool, StoreError> {
    let Some(from) = level.next.take() else { return Ok(false) };
    let to = prefix_end(&level.directory.0);
    let scan = Scan { file: ROWS_FILE, table: ENTRIES, from, to, limit: level.batch, direction: Direction::Forward };
    let rows = tables.scan(scan).await.map_err(table_failed)?;
    if rows.len() == level.batch {
        level.next = rows.last().map(|(key, _)| Bound::Excluded(key.clone()));
    }
    level.batch = BATCH_ROWS;
    level.rows = rows.into();
    Ok(!level.rows.is_empty())
}

/// The lowest string behind every string that starts with `prefix`; `None` when there is none.
#[must_use]
pub fn behind_prefix(prefix: &str) -> Option<String> {
    let mut chars: Vec<char> = prefix.chars().collect();
    while let Some(last) = chars.pop() {
        // UTF-8 keeps the order of code points, so the next code point is the next string.
        let next = match last {
            '\u{d7ff}' => Some('\u{e000}'),
            other => char::from_u32(other as u32 + 1),
        };
        if let Some(next) = next {
            chars.push(next);
            return Some(chars.into_iter().collect());
        }
    }
    None
}

/// Makes one page of a listing of the keys of `clip`. A common prefix is listed only with a live key below it.
pub async fn list(
    tables: Rc<dyn TableReader>,
    root: DirId,
    clip: &Clip,
    request: &ListRequest,
) -> Result<ListPage, StoreError> {
    let delimiter = request.delimiter.as_deref().filter(|delimiter| !delimiter.is_empty());
    let mut page = ListPage::default();
    let Some(start) = start_of(request, delimiter) else { return Ok(page) };
    if request.limit == 0 {
        return Ok(page);
    }
    let mut walk = Walk::new(tables, root);
    walk.seek(start.as_str().max(&clip.from));
    while let Some((key, file)) = walk.next().await? {
        if !is_below(&key, clip.until.as_deref()) {
            break;
        }
        let Some(rest) = key.strip_prefix(request.prefix.as_str()) else { break };
        if page.items.len() == request.limit {
            page.truncated = true;
            break;
        }
        let rolled = delimiter.and_then(|delimiter| rest.find(delimiter).map(|at| at + delimiter.len()));
        match rolled {
            None => {
                let mut info = file.info(key);
                info.attributes.clear();
                info.part_lens_bytes.clear();
                page.items.push(ListItem::Object(info));
            }
            Some(len) => {
                let common = format!("{}{}", request.prefix, &rest[..len]);
                let behind = behind_prefix(&common);
                page.items.push(ListItem::CommonPrefix(common));
                match behind {
                    Some(behind) => walk.seek(&behind),
                    None => break,
                }
            }
        }
    }
    Ok(page)
}

/// Where a listing starts: behind `after`, and behind the whole common prefix that `after` lies in.
fn start_of(request: &ListRequest, delimiter: Option<&str>) -> Option<String> {
    let Some(after) = request.after.as_deref().filter(|after| *after >= request.prefix.as_str()) else {
        return Some(request.prefix.clone());
    };
    let Some(rest) = after.strip_prefix(request.prefix.as_str()) else {
        return None; // `after` sorts behind every key with the prefix
    };
    match delimiter.and_then(|delimiter| rest.find(delimiter).map(|at| at + delimiter.len())) {
        Some(len) if len == rest.len() => behind_prefix(after),
        _ => Some(format!("{after}\0")),
    }
}

#[cfg(test)]
mod tests;
