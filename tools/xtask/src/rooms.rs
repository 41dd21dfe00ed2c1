//! Which room may import which, read from the manifests and from `use` lines.

use crate::sources::Tree;

/// A room, where it lies, and what of ours it may import.
struct Room {
    path: &'static str,
    may: &'static [&'static str],
    never: &'static [&'static str],
}

/// Section 1 of the style guide. A crate outside this list may import everything (tools, benches) and nobody imports
/// it.
const ROOMS: [Room; 8] = [
    Room { path: "engine/types", may: &[], never: &["kiseki-executor", "openraft", "redb"] },
    Room { path: "engine/kernels", may: &["kiseki-types"], never: &["kiseki-executor", "openraft", "redb"] },
    Room { path: "engine", may: &["kiseki-types", "kiseki-kernels"], never: &["kiseki-executor", "openraft", "redb"] },
    Room { path: "devices/executor", may: &[], never: &["openraft", "redb"] },
    Room { path: "devices", may: &["kiseki-types", "kiseki-executor"], never: &["openraft"] },
    Room { path: "raft", may: &["kiseki-types"], never: &[] },
    Room { path: "net", may: &["kiseki-types", "kiseki-executor"], never: &["openraft", "redb"] },
    Room {
        path: "gateway",
        may: &["kiseki-types", "kiseki-engine", "kiseki-kernels"],
        never: &["kiseki-executor", "openraft", "redb"],
    },
];

/// Crates of ours that only tools may import.
const TOOLS: [&str; 4] = ["kiseki-sim", "kiseki-cli", "kiseki-bench", "kiseki-fuzz"];

/// Where the executor may be named in sources; everyone else has the ports.
const EXECUTOR: [&str; 5] = ["devices/", "net/", "tools/", "raft/tests/", "benches/"];

/// Reports every import that crosses the wrong way.
pub fn check(tree: &Tree) -> Vec<String> {
    let mut problems = Vec::new();
    for room in &ROOMS {
        let manifest = format!("{}/Cargo.toml", room.path);
        let Some(file) = tree.get(&manifest) else {
            problems.push(format!("{manifest} is missing"));
            continue;
        };
        for name in product_dependencies(&file.text) {
            if name.starts_with("kiseki-") && !room.may.contains(&name.as_str()) {
                problems.push(format!("{manifest}: {} must not import {name}", room.path));
            }
            if room.never.contains(&name.as_str()) {
                problems.push(format!("{manifest}: {} must not name {name}", room.path));
            }
        }
    }
    for file in tree.files.iter().filter(|file| file.path.ends_with("Cargo.toml") && !file.path.starts_with("tools/")) {
        for name in product_dependencies(&file.text) {
            if TOOLS.contains(&name.as_str()) && file.path != "Cargo.toml" {
                problems.push(format!("{}: nobody imports {name}", file.path));
            }
        }
    }
    for file in tree.rust().filter(|file| !EXECUTOR.iter().any(|place| file.path.starts_with(place))) {
        for (number, line) in file.text.lines().enumerate() {
            let code = line.split("//").next().unwrap_or_default();
            if code.contains("kiseki_executor::") && !code.contains("\"kiseki_executor") {
                problems.push(format!("{}:{}: the executor is named outside its rooms", file.path, number + 1));
            }
        }
    }
    problems
}

/// Names in `[dependencies]` and `[build-dependencies]`: what tests need is their own affair.
fn product_dependencies(manifest: &str) -> Vec<String> {
    let mut names = Vec::new();
    let mut counts = false;
    for line in manifest.lines().map(str::trim) {
        if let Some(section) = line.strip_prefix('[') {
            let section = section.trim_end_matches(']');
            counts = section.ends_with("dependencies") && !section.contains("dev-dependencies");
            continue;
        }
        let name: String = line.chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '-' || *c == '_').collect();
        if counts && !name.is_empty() {
            names.push(name);
        }
    }
    names
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sources::Source;

    fn with(extra: &[(&str, &str)]) -> Vec<String> {
        let mut files: Vec<Source> = ROOMS
            .iter()
            .map(|room| Source { path: format!("{}/Cargo.toml", room.path), text: "[dependencies]\n".to_owned() })
            .collect();
        for (path, text) in extra {
            files.retain(|file| file.path != *path);
            files.push(Source { path: (*path).to_owned(), text: (*text).to_owned() });
        }
        check(&Tree { files })
    }

    #[test]
    fn wrong_arrows_are_found() {
        assert!(with(&[]).is_empty());
        let wrong = "[dependencies]\nkiseki-engine.workspace = true\n";
        assert_eq!(with(&[("devices/Cargo.toml", wrong)]).len(), 1);
        assert!(with(&[("gateway/Cargo.toml", wrong)]).is_empty());
        let tests_only = "[dev-dependencies]\nkiseki-engine.workspace = true\n";
        assert!(with(&[("devices/Cargo.toml", tests_only)]).is_empty());
        assert_eq!(with(&[("engine/Cargo.toml", "[dependencies]\nopenraft = \"0.10\"\n")]).len(), 1);
        assert_eq!(with(&[("engine/src/x.rs", "use kiseki_executor::Executor;\n")]).len(), 1);
        assert!(with(&[("engine/src/x.rs", "//! runs on kiseki_executor::x\n")]).is_empty());
    }
}
