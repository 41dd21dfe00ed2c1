//! Listings through whichever node is up: what they show and what they do not has to be possible for every key of its own.

use super::Worker;
use crate::model::{BUCKETS, KEYS, Place};
use crate::node::OpenNode;
use crate::register::WriteId;
use kiseki_engine::api::{ListItem, ListRequest, Store, StoreError};
use kiseki_types::ids::TenantId;
use std::collections::BTreeMap;

/// Keys and the ETags of what they hold, in the order in which they were listed.
type Listed = Vec<(String, String)>;

impl Worker {
    /// Lists the bucket in pages.
    pub(super) async fn list(&self, node: &OpenNode) {
        self.list_checked(node, false).await;
    }

    /// Lists the bucket in peace: it must answer.
    pub async fn check_listing(&self, node: &OpenNode) {
        self.list_checked(node, true).await;
    }

    async fn list_checked(&self, node: &OpenNode, is_peace: bool) {
        let start = self.book.tick();
        let (store, tenant) = (node.cores[0].store.clone(), node.tenant);
        let limit = 1 + self.rng.index(KEYS.len());
        let answer = self.ask(node, async move { list(store, tenant, limit).await }).await;
        let end = self.book.tick();
        let listed = match answer {
            Some(Ok(listed)) => listed,
            Some(Err(error)) if is_peace => return self.book.violation(format!("no listing in peace: {error}")),
            Some(Err(StoreError::Damaged { reason })) => {
                return self.book.violation(format!("a listing met damage: {reason}"));
            }
            _ => return self.book.unknown.set(self.book.unknown.get() + 1),
        };
        if !listed.is_sorted_by(|left, right| left.0 < right.0) {
            self.book.violation(format!("a listing is out of order or says a key twice: {listed:?}"));
        }
        let listed: BTreeMap<String, String> = listed.into_iter().collect();
        for key in 0..KEYS.len() {
            let place = Place { bucket: 0, key };
            let wrong = match listed.get(place.key()) {
                None => (!self.book.on(place, |register| register.may_be_absent(start, end))).then_some("lacks it"),
                Some(etag) => {
                    let id = WriteId::from_str_radix(etag, 16).ok();
                    let is_possible =
                        id.is_some_and(|id| self.book.on(place, |register| register.find(id, start, end).is_some()));
                    (!is_possible).then_some("shows what it did not hold")
                }
            };
            if let Some(wrong) = wrong {
                let possible = self.book.on(place, |register| register.describe(start, end));
                self.book.violation(format!("{place}: a listing {wrong}, possible was {possible}"));
            }
        }
        self.book.reads.set(self.book.reads.get() + 1);
    }
}

async fn list(store: Store, tenant: TenantId, limit: usize) -> Result<Listed, StoreError> {
    let (mut found, mut after) = (Vec::new(), None);
    loop {
        let request = ListRequest { after, limit, ..ListRequest::default() };
        let page = store.list(tenant, BUCKETS[0], request).await?;
        found.extend(page.items.into_iter().filter_map(|item| match item {
            ListItem::Object(info) => Some((info.key, info.etag)),
            ListItem::CommonPrefix(_) => None,
        }));
        match page.truncated {
            true => after = found.last().map(|(key, _): &(String, String)| key.clone()),
            false => return Ok(found),
        }
    }
}
