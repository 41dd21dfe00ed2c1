//! Listings against a plain sorted model.

use super::*;
use crate::composition::Entry;
use crate::names::{entry_key, split_key};
use kiseki_types::LocalBoxFuture;
use kiseki_types::ids::ShardId;
use kiseki_types::table::{TableError, TableId};
use std::collections::{BTreeMap, BTreeSet};

struct Rows(BTreeMap<Vec<u8>, Vec<u8>>);

impl TableReader for Rows {
    fn get(&self, _: u8, _: TableId, key: &[u8]) -> LocalBoxFuture<'static, Result<Option<Vec<u8>>, TableError>> {
        let value = self.0.get(key).cloned();
        Box::pin(async move { Ok(value) })
    }
    fn scan(&self, scan: Scan) -> LocalBoxFuture<'static, Result<Vec<Row>, TableError>> {
        let rows = self.0.range((scan.from, scan.to)).take(scan.limit).map(|(k, v)| (k.clone(), v.clone())).collect();
        Box::pin(async move { Ok(rows) })
    }
}

fn table_of(keys: &BTreeSet<String>) -> Rc<dyn TableReader> {
    let mut rows = BTreeMap::new();
    let mut directories = BTreeMap::<String, DirId>::new();
    for key in keys {
        let path = split_key(key);
        let mut at = DirId([0; 16]);
        let mut prefix = String::new();
        for name in path.directories {
            prefix.push_str(name);
            let next = directories.len() as u128 + 1;
            let id = *directories.entry(prefix.clone()).or_insert(DirId(next.to_be_bytes()));
            rows.insert(entry_key(at, name), Entry::Directory { id, shard: ShardId(1024) }.encode());
            at = id;
        }
        let file = FileEntry {
            len_bytes: key.len() as u64,
            modified_unix_ms: 0,
            etag: String::new(),
            attributes: Default::default(),
            part_lens_bytes: Vec::new(),
            pages: Vec::new(),
        };
        rows.insert(entry_key(at, path.name), Entry::File(file).encode());
    }
    Rc::new(Rows(rows))
}

fn model(keys: &BTreeSet<String>, request: &ListRequest) -> (Vec<String>, bool) {
    let mut items = Vec::<String>::new();
    for key in keys.iter().filter(|key| key.starts_with(&request.prefix)) {
        let rest = &key[request.prefix.len()..];
        let item = match request.delimiter.as_deref().and_then(|d| rest.find(d).map(|at| at + d.len())) {
            Some(len) => format!("{}{}", request.prefix, &rest[..len]),
            None => key.clone(),
        };
        // A common prefix goes on when keys behind `after` lie below it, and is done when `after` is that prefix.
        let behind = request.after.as_ref().is_none_or(|after| key > after && (item == *key || item != *after));
        if behind && items.last() != Some(&item) {
            items.push(item);
        }
    }
    let truncated = items.len() > request.limit;
    items.truncate(request.limit);
    (items, truncated)
}

#[test]
fn listings_match_a_sorted_model() {
    let names = [
        "a", "a/", "a//b", "a/b", "a/b/c", "a/b/d", "a!", "a0", "b/x", "b/y/z", "b/y0", "c", "é/ü", "/", "//",
        "z/z/z/z",
    ];
    let keys: BTreeSet<String> = names.iter().map(ToString::to_string).collect();
    let tables = table_of(&keys);
    let mut afters: Vec<Option<String>> = vec![None, Some("a/b/cc".to_owned()), Some("zz".to_owned())];
    afters.extend(names.iter().map(|name| Some((*name).to_owned())));
    for prefix in ["", "a", "a/", "a/b", "a/b/", "b/y", "q", "/", "é"] {
        for delimiter in [None, Some("/"), Some("b"), Some("/b")] {
            for after in &afters {
                for limit in [1, 2, 3, 100] {
                    let request = ListRequest {
                        prefix: prefix.to_owned(),
                        after: after.clone(),
                        delimiter: delimiter.map(str::to_owned),
                        limit,
                    };
                    let found = page_of(&tables, &Clip::default(), &request);
                    assert_eq!(found, model(&keys, &request), "{request:?}");
                    clipped(&tables, &keys, &request);
                }
            }
        }
    }
}

fn page_of(tables: &Rc<dyn TableReader>, clip: &Clip, request: &ListRequest) -> (Vec<String>, bool) {
    let page = futures::executor::block_on(list(tables.clone(), DirId([0; 16]), clip, request)).unwrap();
    let name = |item| match item {
        ListItem::Object(info) => info.key,
        ListItem::CommonPrefix(common) => common,
    };
    (page.items.into_iter().map(name).collect(), page.truncated)
}

/// I-L6: with a clip a page is that of the clip's keys alone.
fn clipped(tables: &Rc<dyn TableReader>, keys: &BTreeSet<String>, request: &ListRequest) {
    for (from, until) in [("a/b", None), ("", Some("a/b/d")), ("a/b/c", Some("b/y0")), ("b", Some("b"))] {
        let clip = Clip { from: from.to_owned(), until: until.map(str::to_owned) };
        let inside = |key: &&String| key.as_str() >= from && until.is_none_or(|until| key.as_str() < until);
        let held: BTreeSet<String> = keys.iter().filter(inside).cloned().collect();
        assert_eq!(page_of(tables, &clip, request), model(&held, request), "I-L6: {clip:?} of {request:?}");
    }
}

#[test]
fn behind_prefix_is_the_next_string() {
    for (prefix, behind) in [("a", Some("b")), ("a/", Some("a0")), ("", None), ("\u{10ffff}", None)] {
        assert_eq!(behind_prefix(prefix).as_deref(), behind, "{prefix:?}");
    }
    assert_eq!(behind_prefix("a\u{10ffff}").as_deref(), Some("b"));
}
