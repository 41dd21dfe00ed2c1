//! Removing all that a run left, by listing it: also what nobody knows to be there.

use super::content::Content;
use super::crew::{Crew, for_all, runtime};
use super::session::Session;
use super::target::Target;
use anyhow::{Context, Result, bail};
use std::sync::Arc;

/// Removes every object below a prefix that only this run has used.
pub fn remove_all(target: &Target, prefix: &str, crew: Crew) -> Result<()> {
    let content = Arc::new(Content::new(0));
    let session = || Session::new(target, &content, false);
    let mut before = Vec::new();
    loop {
        // From the beginning each time: what the last page named is gone.
        let page = runtime()?.block_on(session().list_page(prefix, None)).context("what to remove can't be listed")?;
        if page.keys.is_empty() {
            return Ok(());
        }
        if page.keys == before {
            bail!("objects below {prefix} are still listed after they were removed");
        }
        let remove =
            async |session: &mut Session<'_>, index: usize| session.delete(&page.keys[index]).await.map(|()| 0);
        for_all(crew, "removing objects", page.keys.len(), None, |_| session(), remove)?;
        before = page.keys;
    }
}
