//! Pages, and what a write brings of them.

use super::WireError;
use super::field::{array, id_of_words, id_words, ids_len, put_ids, take_ids};
use super::frame::{count, fits, malformed, within};
use crate::composition::{Entry, FileEntry, PAGE_LEN_BYTES_MAX, PAGE_REFERENCES_MAX, PAGES_MAX, Page, PageReference};
use crate::engine_capnp::written;
use crate::message::WrittenPages;
use kiseki_types::ids::{PageId, PinEpoch};

/// The row of a page.
pub(super) fn page_row(page: &Page) -> Result<Vec<u8>, WireError> {
    fits("references of a page", page.references.len(), PAGE_REFERENCES_MAX)?;
    Ok(page.encode())
}

/// The row of a file's entry.
pub(super) fn file_row(file: &FileEntry) -> Result<Vec<u8>, WireError> {
    fits("pages of an entry", file.pages.len(), PAGES_MAX)?;
    super::object::check_attributes(&file.attributes)?;
    super::field::row("bytes of an entry", file.encode())
}

/// A file's entry from its row.
pub(super) fn take_file(row: &[u8]) -> Result<FileEntry, WireError> {
    match Entry::decode(row)? {
        Entry::File(file) => Ok(FileEntry { attributes: super::object::came(file.attributes)?, ..file }),
        Entry::Directory { .. } => Err(malformed("the entry of a directory where a file's is needed")),
    }
}

/// Writes the pages of a write.
pub(super) fn put_written(mut out: written::Builder<'_>, written: &WrittenPages) -> Result<(), WireError> {
    out.set_pin_epoch(written.pin_epoch.0);
    fits("pages of a write", written.pages.len(), PAGES_MAX)?;
    if !written.pages.is_empty() {
        let mut pages = out.reborrow().init_pages(count(written.pages.len()));
        for (at, page) in written.pages.iter().enumerate() {
            let mut out = pages.reborrow().get(count(at));
            let [low, high] = id_words(&page.page.0);
            out.set_low(low);
            out.set_high(high);
            out.set_len_bytes(page.len_bytes);
        }
    }
    if !written.loose.is_empty() {
        let len = ids_len("loose pages of a write", written.loose.len(), PAGES_MAX)?;
        put_ids(out.reborrow().init_loose(len), written.loose.iter().map(|page| &page.0));
    }
    if let Some((id, page)) = &written.last {
        out.set_last_id(&id.0);
        out.set_last_page(&page_row(page)?);
    }
    Ok(())
}

/// The pages of a write.
pub(super) fn take_written(written: written::Reader<'_>) -> Result<WrittenPages, WireError> {
    let list = written.get_pages()?;
    within("pages of a write", u64::from(list.len()), PAGES_MAX as u64)?;
    let page = |page: crate::engine_capnp::page_reference::Reader<'_>| {
        let len_bytes = within("bytes of a page", page.get_len_bytes(), PAGE_LEN_BYTES_MAX)?;
        Ok(PageReference { page: PageId(id_of_words(page.get_low(), page.get_high())), len_bytes })
    };
    let pages = list.iter().map(page).collect::<Result<Vec<_>, WireError>>()?;
    let loose = take_ids("loose pages of a write", PAGES_MAX, written.get_loose(), PageId)?;
    let last = match written.has_last_id() {
        true => {
            let id = PageId(array("a page id", written.get_last_id())?);
            Some((id, Page::decode(written.get_last_page()?)?))
        }
        false => None,
    };
    Ok(WrittenPages { pages, loose, last, pin_epoch: PinEpoch(written.get_pin_epoch()) })
}
