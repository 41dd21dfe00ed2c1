//! Listings, checked page by page: what is listed may be there, what is not listed may be absent, in byte order.

use crate::client::Client;
use crate::model::{BUCKETS, KEYS, Model, Place};
use crate::register::{Tick, Value};
use kiseki_engine::api::{ListItem, ListPage, ListRequest, ObjectInfo};
use std::collections::BTreeMap;

/// Behind every key that starts with a common prefix.
const BEHIND: char = '\u{10ffff}';

/// Pages that one listing may take.
const PAGES_MAX: usize = 200;

impl Client {
    /// Lists a bucket with a drawn prefix, delimiter, start and page length.
    pub async fn list(&self) {
        let bucket = self.rng.index(BUCKETS.len());
        let prefix = *self.rng.pick(&["", "", "", "a", "a/", "d0/", "d1/e", "k", "nothing"]);
        let delimiter = *self.rng.pick(&[None, None, Some("/"), Some("//"), Some("k")]);
        let after = if self.rng.chance(1, 4) { Some((*self.rng.pick(&KEYS)).to_owned()) } else { None };
        let request = ListRequest {
            prefix: prefix.to_owned(),
            after: if delimiter.is_none() { after } else { None },
            delimiter: delimiter.map(str::to_owned),
            limit: self.rng.between(1..30) as usize,
        };
        self.list_checked(bucket, request).await;
    }

    /// Lists to the end and checks every page.
    pub async fn list_checked(&self, bucket: usize, mut request: ListRequest) {
        for _ in 0..PAGES_MAX {
            let start = self.tick();
            let page = match self.core.store.list(self.tenant, BUCKETS[bucket], request.clone()).await {
                Ok(page) => page,
                Err(error) => {
                    return self.model.borrow_mut().unexplained(&format!("list of {}", BUCKETS[bucket]), &error);
                }
            };
            let mut model = self.model.borrow_mut();
            let span = (start, model.tick());
            if let Err(wrong) = check_page(&mut model, bucket, &request, &page, span) {
                return model.violation(format!("list of {} ({request:?}): {wrong}", BUCKETS[bucket]));
            }
            match page.items.last() {
                Some(last) if page.truncated => request.after = Some(end_of(last)),
                None if page.truncated => {
                    return model.violation(format!("list of {}: truncated at nothing", BUCKETS[bucket]));
                }
                _ => return,
            }
        }
        self.violation(format!("list of {} does not end", BUCKETS[bucket]));
    }
}

/// The last key that an item covers.
fn end_of(item: &ListItem) -> String {
    match item {
        ListItem::Object(info) => info.key.clone(),
        ListItem::CommonPrefix(prefix) => format!("{prefix}{BEHIND}"),
    }
}

fn name_of(item: &ListItem) -> &str {
    match item {
        ListItem::Object(info) => &info.key,
        ListItem::CommonPrefix(prefix) => prefix,
    }
}

/// The common prefix that a key is rolled up into.
fn rolled<'a>(key: &'a str, request: &ListRequest) -> Option<&'a str> {
    let delimiter = request.delimiter.as_deref()?;
    let at = key[request.prefix.len()..].find(delimiter)?;
    Some(&key[..request.prefix.len() + at + delimiter.len()])
}

fn check_page(
    model: &mut Model,
    bucket: usize,
    request: &ListRequest,
    page: &ListPage,
    (start, end): (Tick, Tick),
) -> Result<(), String> {
    if page.items.len() > request.limit {
        return Err(format!("{} items", page.items.len()));
    }
    if !page.items.windows(2).all(|pair| name_of(&pair[0]) < name_of(&pair[1])) {
        return Err("not in order".to_owned());
    }
    let covered_to = if page.truncated { page.items.last().map(end_of) } else { None };
    let mut objects: BTreeMap<&str, &ObjectInfo> = BTreeMap::new();
    // Per common prefix, whether a key below it may be there.
    let mut prefixes: BTreeMap<&str, bool> = BTreeMap::new();
    for item in &page.items {
        match item {
            ListItem::Object(info) => drop(objects.insert(&info.key, info)),
            ListItem::CommonPrefix(prefix) => drop(prefixes.insert(prefix, false)),
        }
    }
    for (index, key) in KEYS.iter().copied().enumerate() {
        let is_behind = request.after.as_deref().is_none_or(|after| key > after);
        let is_covered = covered_to.as_deref().is_none_or(|to| key <= to);
        if !key.starts_with(&request.prefix) || !is_behind || !is_covered {
            continue;
        }
        let register = model.register(Place { bucket, key: index });
        match rolled(key, request) {
            Some(prefix) => match prefixes.get_mut(prefix) {
                Some(may_be) => *may_be |= register.may_be_present(start, end),
                None if register.may_be_absent(start, end) => {}
                None => return Err(format!("{prefix} is missing, possible was {}", register.describe(start, end))),
            },
            None => match objects.remove(key) {
                Some(info) => {
                    let fits = |value: &Value| *value != Value::Absent && value.len_bytes() == info.len_bytes;
                    if !register.possible(start, end).any(|write| fits(&write.value)) {
                        let possible = register.describe(start, end);
                        return Err(format!("{key} of {} bytes, possible was {possible}", info.len_bytes));
                    }
                }
                None if register.may_be_absent(start, end) => {}
                None => return Err(format!("{key} is missing, possible was {}", register.describe(start, end))),
            },
        }
    }
    if let Some(key) = objects.keys().next() {
        return Err(format!("{key} does not belong there"));
    }
    match prefixes.iter().find(|(_, may_be)| !**may_be) {
        Some((prefix, _)) => Err(format!("nothing below {prefix} can be there")),
        None => Ok(()),
    }
}
