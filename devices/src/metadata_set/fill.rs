//! Copying between metadata directories: filling one anew, and bringing two that hold everything in line.

use super::{MEMBER_FILE, MEMBER_FILE_NEXT};
use kiseki_types::meta::{MetaDir, MetaFile};
use std::io;
use std::ops::Range;

/// Bytes compared or copied at once.
const COPY_LEN_BYTES: u64 = 1 << 20;

/// Files with this ending are journals: their owner reads all mirrors and decides, so they are not brought in line.
pub(super) const JOURNAL_ENDING: &str = ".journal";

/// Which side of a copy failed: the source is then not trusted, or the target.
#[derive(Debug)]
pub(super) enum CopyError {
    Source(io::Error),
    Target(io::Error),
}

/// The files of a directory that are the same in every member.
pub(super) fn mirrored_names(dir: &dyn MetaDir) -> io::Result<Vec<String>> {
    let mut names = dir.list()?;
    names.retain(|name| name != MEMBER_FILE && name != MEMBER_FILE_NEXT);
    Ok(names)
}

/// Makes `target` hold exactly the source's files. Its own `member` file stays, so a crash leaves it stale.
pub(super) fn fill(source: &dyn MetaDir, target: &dyn MetaDir) -> Result<(), CopyError> {
    for name in mirrored_names(target).map_err(CopyError::Target)? {
        target.remove(&name).map_err(CopyError::Target)?;
    }
    for name in mirrored_names(source).map_err(CopyError::Source)? {
        copy_file(source, target, &name)?;
    }
    Ok(())
}

/// What has to change in `target` so that it equals `source`. Only reads: a source that fails has changed nothing.
pub(super) fn differences(source: &dyn MetaDir, target: &dyn MetaDir) -> Result<Vec<Difference>, CopyError> {
    let wanted = mirrored_names(source).map_err(CopyError::Source)?;
    let found = mirrored_names(target).map_err(CopyError::Target)?;
    let mut all = Vec::new();
    all.extend(found.iter().filter(|name| !wanted.contains(name)).cloned().map(Difference::Surplus));
    for name in wanted {
        if !found.contains(&name) {
            all.push(Difference::Absent(name));
            continue;
        }
        let from = source.open(&name).map_err(CopyError::Source)?;
        let to = target.open(&name).map_err(CopyError::Target)?;
        let len = from.len().map_err(CopyError::Source)?;
        let same_len = to.len().map_err(CopyError::Target)? == len;
        if name.ends_with(JOURNAL_ENDING) {
            // Laid out once, at full length: a shorter one was cut off by a crash while it was made.
            all.extend((!same_len).then_some(Difference::Absent(name)));
            continue;
        }
        let blocks = differing_blocks(&*from, &*to, len)?;
        if !same_len || !blocks.is_empty() {
            all.push(Difference::Blocks { name, len_bytes: len, blocks });
        }
    }
    Ok(all)
}

/// One thing to change.
#[derive(Debug)]
pub(super) enum Difference {
    /// A file that the source does not have.
    Surplus(String),
    /// A file that has to be copied as a whole.
    Absent(String),
    /// Parts of a file, and its length.
    Blocks { name: String, len_bytes: u64, blocks: Vec<Range<u64>> },
}

/// Carries out what [`differences`] found; durable on return.
pub(super) fn apply(source: &dyn MetaDir, target: &dyn MetaDir, all: Vec<Difference>) -> Result<(), CopyError> {
    for difference in all {
        match difference {
            Difference::Surplus(name) => target.remove(&name).map_err(CopyError::Target)?,
            Difference::Absent(name) => {
                target.remove(&name).map_err(CopyError::Target)?;
                copy_file(source, target, &name)?;
            }
            Difference::Blocks { name, len_bytes, blocks } => {
                let from = source.open(&name).map_err(CopyError::Source)?;
                let to = target.open(&name).map_err(CopyError::Target)?;
                to.set_len(len_bytes).map_err(CopyError::Target)?;
                blocks.into_iter().try_for_each(|block| copy_block(&*from, &*to, block))?;
                to.sync().map_err(CopyError::Target)?;
            }
        }
    }
    Ok(())
}

fn differing_blocks(from: &dyn MetaFile, to: &dyn MetaFile, len: u64) -> Result<Vec<Range<u64>>, CopyError> {
    let found_len = to.len().map_err(CopyError::Target)?;
    let mut differing = Vec::new();
    for block in blocks_of(len) {
        let size = usize::try_from(block.end - block.start).expect("at most a mebibyte");
        let mut wanted = vec![0; size];
        from.read_at(block.start, &mut wanted).map_err(CopyError::Source)?;
        let mut found = vec![0; size];
        if block.end <= found_len {
            to.read_at(block.start, &mut found).map_err(CopyError::Target)?;
        }
        if block.end > found_len || wanted != found {
            differing.push(block);
        }
    }
    Ok(differing)
}

fn copy_file(source: &dyn MetaDir, target: &dyn MetaDir, name: &str) -> Result<(), CopyError> {
    let from = source.open(name).map_err(CopyError::Source)?;
    let to = target.create(name).map_err(CopyError::Target)?;
    let len = from.len().map_err(CopyError::Source)?;
    // Zeros are written too: a journal's blocks must be laid out, not merely allocated.
    blocks_of(len).try_for_each(|block| copy_block(&*from, &*to, block))?;
    to.sync().map_err(CopyError::Target)
}

fn copy_block(from: &dyn MetaFile, to: &dyn MetaFile, block: Range<u64>) -> Result<(), CopyError> {
    let mut bytes = vec![0; usize::try_from(block.end - block.start).expect("at most a mebibyte")];
    from.read_at(block.start, &mut bytes).map_err(CopyError::Source)?;
    to.write_at(block.start, &bytes).map_err(CopyError::Target)
}

fn blocks_of(len: u64) -> impl Iterator<Item = Range<u64>> {
    (0..len.div_ceil(COPY_LEN_BYTES)).map(move |block| {
        let start = block * COPY_LEN_BYTES;
        start..(start + COPY_LEN_BYTES).min(len)
    })
}
