//! Invariants: each that `docs/invariants.md` calls covered and writes bold has a test named after it.

use crate::sources::Tree;
use std::collections::BTreeSet;

/// Where they are listed.
const LIST: &str = "docs/invariants.md";

/// Reports covered bold invariants without a test, and tests named after invariants that are not listed.
pub fn check(tree: &Tree) -> Vec<String> {
    let Some(list) = tree.get(LIST) else { return vec![format!("{LIST} is missing")] };
    let tests = test_names(tree);
    let has_test = |id: &str| {
        let stem = id.to_lowercase().replace('-', "_");
        tests.iter().any(|name| {
            let parts = format!("_{name}_");
            parts.contains(&format!("_{stem}_"))
        })
    };
    let mut problems = Vec::new();
    let mut found = 0;
    for (number, line) in list.text.lines().enumerate() {
        let Some(id) = bold_id(line) else { continue };
        found += 1;
        if line.to_lowercase().contains("covered") && !line.to_lowercase().contains("not covered") && !has_test(&id) {
            problems.push(format!("{LIST}:{}: {id} is called covered, and no test is named after it", number + 1));
        }
    }
    if found == 0 {
        problems.push(format!("{LIST} lists no bold invariant"));
    }
    problems
}

/// The id of a line that begins with a bold one, behind list or table marks: `**I-D4**`.
fn bold_id(line: &str) -> Option<String> {
    let rest = line.trim_start_matches(['-', '|', ' ', '*']);
    let bold = line.contains(&format!("**{}", rest.split("**").next()?));
    let id: String = rest.chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '-').collect();
    (bold && id.starts_with("I-") && id.len() > 3).then_some(id)
}

/// Names of all functions that stand below a test attribute.
fn test_names(tree: &Tree) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for file in tree.rust() {
        let mut is_test = false;
        for line in file.text.lines().map(str::trim) {
            if line.starts_with("#[test]") || line.starts_with("#[cfg_attr") && line.contains("test") {
                is_test = true;
            } else if let Some(rest) = line.strip_prefix("fn ").or_else(|| line.strip_prefix("async fn ")) {
                let name: String = rest.chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '_').collect();
                // Inside a `proptest!` block the attribute stands there too.
                if is_test {
                    names.insert(name);
                }
                is_test = false;
            }
        }
    }
    names
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sources::Source;

    fn problems(list: &str, code: &str) -> usize {
        let file = |path: &str, text: &str| Source { path: path.to_owned(), text: text.to_owned() };
        check(&Tree { files: vec![file(LIST, list), file("x.rs", code)] }).len()
    }

    #[test]
    fn a_covered_bold_invariant_needs_a_test_of_its_name() {
        let list = "- **I-D4** No two fragments share a device. Covered: devices.\n- I-C1 Chunks. Covered: x.\n";
        assert_eq!(problems(list, ""), 1);
        assert_eq!(problems(list, "#[test]\nfn i_d4_never_twice() {}\n"), 0);
        assert_eq!(problems(list, "fn i_d4_never_twice() {}\n"), 1, "not a test");
        assert_eq!(problems(list, "#[test]\nfn i_d40_other() {}\n"), 1, "another id");
        assert_eq!(problems("| **I-K1** | text | covered |\n", ""), 1, "in a table too");
        assert_eq!(problems("- **I-K1** text. Not covered yet.\n", ""), 0);
    }
}
