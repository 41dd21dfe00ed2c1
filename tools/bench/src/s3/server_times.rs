//! Where the time of requests went in the server, from `/stages` of the admin ports of its nodes.
//!
//! Two readings are subtracted. The phases of a request follow each other and the server sums them up for each class of latency,
//! so that what is told of p99.9 is what those requests waited for, and adds up.

use super::admin_page::AdminPage;
use anyhow::{Context, Result, anyhow};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;

/// Shares of requests that a column is about, in the order of latency: the middle, and the two tails.
const COLUMNS: [(&str, f64, f64); 3] = [("p50", 0.4, 0.6), ("p99", 0.985, 0.995), ("p999", 0.9985, 1.0)];

/// Operations that are fewer than this share of all are in JSON only.
const SHARE_MIN: f64 = 0.1;

/// Requests of one class of latency, and what they spent on each phase together.
#[derive(Clone, Debug, Default, PartialEq)]
struct Class {
    requests: u64,
    spent_ns: Vec<u64>,
}

/// Work of one kind.
#[derive(Clone, Debug, Default, PartialEq)]
struct Work {
    sum_ns: u64,
    /// Count by the end of the class.
    classes: BTreeMap<u64, u64>,
}

/// What all nodes have counted since their starts.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ServerTimes {
    phases: Vec<String>,
    /// Classes by their ends, by operation.
    operations: BTreeMap<String, BTreeMap<u64, Class>>,
    stages: BTreeMap<String, Work>,
}

impl ServerTimes {
    /// Of all nodes together.
    pub fn read(pages: &[AdminPage]) -> Result<ServerTimes> {
        let mut all = ServerTimes::default();
        for page in pages {
            let text = page.text()?;
            let value = serde_json::from_str(&text).context("--server-admin: /stages is no JSON")?;
            all.add(&value).ok_or_else(|| anyhow!("--server-admin: /stages is not of a form that is known here"))?;
        }
        Ok(all)
    }

    fn add(&mut self, node: &Value) -> Option<()> {
        let phases = node["phases"].as_array()?.iter().map(|name| name.as_str().map(str::to_owned));
        let phases: Vec<String> = phases.collect::<Option<_>>()?;
        if !self.phases.is_empty() && self.phases != phases {
            return None; // nodes of two versions
        }
        self.phases = phases;
        for core in node["cores"].as_object()?.values() {
            for (name, classes) in core["operations"].as_object()? {
                let ours = self.operations.entry(name.clone()).or_default();
                for class in classes.as_array()? {
                    let ours = ours.entry(class[0].as_u64()?).or_default();
                    ours.requests = ours.requests.saturating_add(class[1].as_u64()?);
                    ours.spent_ns.resize(self.phases.len(), 0);
                    for (sum, ns) in ours.spent_ns.iter_mut().zip(class[2].as_array()?) {
                        *sum = sum.saturating_add(ns.as_u64()?);
                    }
                }
            }
            for (name, work) in core["stages"].as_object()? {
                let ours = self.stages.entry(name.clone()).or_default();
                ours.sum_ns = ours.sum_ns.saturating_add(work["sum_ns"].as_u64()?);
                for class in work["classes"].as_array()? {
                    let count = ours.classes.entry(class[0].as_u64()?).or_default();
                    *count = count.saturating_add(class[1].as_u64()?);
                }
            }
        }
        Some(())
    }

    /// What was counted since `before`. A node that was started meanwhile counts from its start.
    #[must_use]
    pub fn since(&self, before: &ServerTimes) -> ServerTimes {
        let mut passed = self.clone();
        for (name, classes) in &mut passed.operations {
            for (end_ns, class) in classes.iter_mut() {
                let Some(old) = before.operations.get(name).and_then(|classes| classes.get(end_ns)) else { continue };
                class.requests = class.requests.saturating_sub(old.requests);
                class.spent_ns.iter_mut().zip(&old.spent_ns).for_each(|(sum, ns)| *sum = sum.saturating_sub(*ns));
            }
            classes.retain(|_, class| class.requests > 0);
        }
        passed.operations.retain(|_, classes| !classes.is_empty());
        for (name, work) in &mut passed.stages {
            let Some(old) = before.stages.get(name) else { continue };
            work.sum_ns = work.sum_ns.saturating_sub(old.sum_ns);
            for (end_ns, count) in &mut work.classes {
                *count = count.saturating_sub(old.classes.get(end_ns).copied().unwrap_or(0));
            }
            work.classes.retain(|_, count| *count > 0);
        }
        passed.stages.retain(|_, work| !work.classes.is_empty());
        passed
    }

    /// Operations in it, the most frequent first.
    fn by_frequency(&self) -> Vec<(&String, u64)> {
        let count = |classes: &BTreeMap<u64, Class>| classes.values().map(|class| class.requests).sum();
        let mut all: Vec<(&String, u64)> = self.operations.iter().map(|(name, at)| (name, count(at))).collect();
        all.sort_by_key(|(name, count)| (std::cmp::Reverse(*count), (*name).clone()));
        all
    }

    /// The waterfall of the operation that came most often, phases in order; the other operations and the pieces of work
    /// stand beside it.
    #[must_use]
    pub fn json(&self) -> Value {
        let operations = self.by_frequency();
        let Some((first, _)) = operations.first() else { return Value::Null };
        let others: Map<String, Value> =
            operations.iter().map(|(name, _)| ((*name).clone(), Value::Array(self.phases_of(name)))).collect();
        json!({
            "source": format!("the server's phases of {first}"),
            "operation": first,
            "stages": self.phases_of(first),
            "operations": others,
            "work": self.stages.iter().map(|(name, work)| work.json(name)).collect::<Vec<_>>(),
        })
    }

    fn phases_of(&self, operation: &str) -> Vec<Value> {
        let classes = &self.operations[operation];
        let total: u64 = classes.values().map(|class| class.requests).sum();
        let columns = COLUMNS.map(|(_, from, to)| mean_spent(classes, total, from, to, self.phases.len()));
        let all = mean_spent(classes, total, 0.0, 1.0, self.phases.len());
        let row = |(index, name): (usize, &String)| {
            json!({
                "name": name,
                "count": total,
                "mean_ns": all[index],
                "p50_ns": columns[0][index],
                "p99_ns": columns[1][index],
                "p999_ns": columns[2][index],
            })
        };
        let rows = self.phases.iter().enumerate().map(row);
        rows.filter(|row| row["mean_ns"].as_f64().is_some_and(|mean| mean > 0.0)).collect()
    }

    /// The same for people.
    #[must_use]
    pub fn lines(&self) -> Vec<String> {
        let mut lines = Vec::new();
        let us = |value: &Value| value.as_f64().unwrap_or(0.0) / 1e3;
        let all: u64 = self.by_frequency().iter().map(|(_, count)| count).sum();
        // What a core told late of the time before is there too, and not worth a table.
        let is_told = |count: u64| count as f64 >= all as f64 * SHARE_MIN;
        for (operation, count) in self.by_frequency().into_iter().filter(|(_, count)| is_told(*count)) {
            lines.push(format!("server, {operation} ({count}), us at p50 / p99 / p99.9 of its latency:"));
            let mut sums = [0.0; 3];
            for row in self.phases_of(operation) {
                let values = ["p50_ns", "p99_ns", "p999_ns"].map(|key| us(&row[key]));
                sums.iter_mut().zip(values).for_each(|(sum, value)| *sum += value);
                lines.push(table_line(row["name"].as_str().unwrap_or_default(), values));
            }
            lines.push(table_line("sum", sums));
        }
        if !self.stages.is_empty() {
            lines.push(
                "server, work on chunks and names (several at once), us at p50 / p99 / p99.9 of each:".to_owned(),
            );
            for (name, work) in &self.stages {
                lines.push(table_line(name, [0.5, 0.99, 0.999].map(|share| work.at(share) as f64 / 1e3)));
            }
        }
        lines
    }
}

fn table_line(name: &str, [p50, p99, p999]: [f64; 3]) -> String {
    format!("  {name:<16} {p50:>10.1} {p99:>10.1} {p999:>10.1}")
}

impl Work {
    fn count(&self) -> u64 {
        self.classes.values().sum()
    }

    /// The middle of the class in which that share of all has ended: an eighth of a power of two wide.
    fn at(&self, share: f64) -> u64 {
        let wanted = ((self.count() as f64 * share).ceil() as u64).max(1);
        let mut seen = 0;
        for (end_ns, count) in &self.classes {
            seen += count;
            if seen >= wanted {
                return end_ns - end_ns / 18;
            }
        }
        0
    }

    fn json(&self, name: &str) -> Value {
        let count = self.count();
        json!({
            "name": name,
            "count": count,
            "mean_ns": self.sum_ns as f64 / count.max(1) as f64,
            "p50_ns": self.at(0.5),
            "p99_ns": self.at(0.99),
            "p999_ns": self.at(0.999),
        })
    }
}

/// What requests between two shares of all, in the order of latency, spent on each phase, on average. A class counts with the
/// part of it that lies between.
fn mean_spent(classes: &BTreeMap<u64, Class>, total: u64, from: f64, to: f64, phases: usize) -> Vec<f64> {
    let (from, to) = (from * total as f64, to * total as f64);
    let (mut begin, mut taken, mut spent) = (0.0, 0.0, vec![0.0; phases]);
    for class in classes.values() {
        let end = begin + class.requests as f64;
        let inside = (end.min(to) - begin.max(from)).max(0.0);
        if inside > 0.0 {
            taken += inside;
            let part = inside / class.requests as f64;
            spent.iter_mut().zip(&class.spent_ns).for_each(|(sum, ns)| *sum += *ns as f64 * part);
        }
        begin = end;
    }
    spent.into_iter().map(|sum| if taken > 0.0 { sum / taken } else { 0.0 }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A node that answered `fast` requests in 100 us and `slow` ones in 10 ms, of which all but 100 us went into the commit.
    fn node(fast: u64, slow: u64) -> Value {
        json!({
            "phases": ["authenticate", "commit"],
            "cores": {
                "0": {
                    "operations": {"PutObject": [[106_496, fast, [fast * 40_000, fast * 60_000]]]},
                    "stages": {"name": {"sum_ns": fast * 50_000, "classes": [[53_248, fast]]}},
                },
                "1": {
                    "operations": {"PutObject": [[10_485_760, slow, [slow * 40_000, slow * 9_960_000]]], "GetObject": []},
                    "stages": {"name": {"sum_ns": slow * 9_000_000, "classes": [[9_437_184, slow]]}},
                },
            },
        })
    }

    fn times(nodes: &[Value]) -> ServerTimes {
        let mut all = ServerTimes::default();
        nodes.iter().for_each(|node| all.add(node).unwrap());
        all
    }

    #[test]
    fn the_tail_says_what_it_waited_for_and_adds_up() {
        let passed = times(&[node(9_990 + 500, 10 + 7)]).since(&times(&[node(500, 7)]));
        let waterfall = passed.json();
        assert_eq!(
            (waterfall["operation"].as_str(), waterfall["stages"][1]["count"].as_u64()),
            (Some("PutObject"), Some(10_000))
        );
        let at = |phase: usize, key: &str| waterfall["stages"][phase][key].as_f64().unwrap();
        assert!((at(1, "p50_ns") - 60_000.0).abs() < 1.0 && (at(1, "p99_ns") - 60_000.0).abs() < 1.0);
        // Of the slowest fifteen ten were slow.
        let expected = (10.0 * 9_960_000.0 + 5.0 * 60_000.0) / 15.0;
        assert!((at(1, "p999_ns") - expected).abs() < 1.0, "{}", at(1, "p999_ns"));
        assert!((at(0, "p999_ns") - 40_000.0).abs() < 1.0, "signatures took no longer");
        let work = &waterfall["work"][0];
        assert_eq!((work["name"].as_str(), work["count"].as_u64()), (Some("name"), Some(10_000)));
        assert!(work["p50_ns"].as_u64().unwrap() < 60_000 && passed.lines().len() > 4);
    }

    #[test]
    fn nodes_add_up_and_what_did_not_happen_is_not_there() {
        let two = times(&[node(10, 1), node(20, 2)]);
        assert_eq!(two.json()["stages"][0]["count"], 33);
        assert_eq!(two.since(&two).json(), Value::Null);
        assert!(two.since(&two).lines().is_empty());
        assert!(
            !two.since(&ServerTimes::default()).json()["operations"].as_object().unwrap().contains_key("ListObjects")
        );
    }

    #[test]
    fn what_is_not_of_a_known_form_is_an_error_not_a_panic() {
        let other = json!({"phases": ["a"], "cores": {}});
        let mut all = times(&[node(1, 1)]);
        for wrong in
            [json!(null), json!({}), json!({"phases": [1], "cores": {}}), json!({"phases": [], "cores": 1}), other]
        {
            assert!(all.add(&wrong).is_none(), "{wrong}");
        }
        let mut broken = node(1, 1);
        broken["cores"]["0"]["stages"]["name"]["classes"] = json!([["x", 1]]);
        assert!(times(&[]).add(&broken).is_none());
    }
}
