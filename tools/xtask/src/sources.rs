//! The tree's own text files, and what is asked of each.

use anyhow::{Context, Result};
use std::path::{Path, PathBuf};

/// Longest source file.
const LINES_MAX: usize = 800;

/// Directories that hold nothing of ours.
const SKIPPED: [&str; 4] = ["target", ".git", ".kiseki", "perf"];

/// Words that mean nothing to a reader of this project: leftovers, and promises nobody keeps. In parts, so that this
/// file passes its own check.
const WORDS: [(&str, &str); 6] =
    [("TO", "DO"), ("FIX", "ME"), ("X", "XX"), ("HA", "CK"), ("black", "list"), ("white", "list")];

/// One text file.
pub struct Source {
    /// Path from the top of the tree, with '/'.
    pub path: String,
    /// Its text.
    pub text: String,
}

/// All text files of the tree, by path.
pub struct Tree {
    /// The files.
    pub files: Vec<Source>,
}

impl Tree {
    /// Reads Rust, TOML, Markdown, Python and shell files below `root`.
    pub fn read(root: &Path) -> Result<Tree> {
        let mut files = Vec::new();
        let mut waiting = vec![PathBuf::new()];
        while let Some(dir) = waiting.pop() {
            let full = root.join(&dir);
            for entry in std::fs::read_dir(&full).with_context(|| format!("can't list {}", full.display()))? {
                let entry = entry?;
                let name = entry.file_name().to_string_lossy().into_owned();
                let path = dir.join(&name);
                if entry.file_type()?.is_dir() {
                    if !SKIPPED.contains(&name.as_str()) {
                        waiting.push(path);
                    }
                    continue;
                }
                let extension = path.extension().and_then(|extension| extension.to_str()).unwrap_or_default();
                if ["rs", "toml", "md", "py", "sh"].contains(&extension) {
                    let text = std::fs::read_to_string(root.join(&path))
                        .with_context(|| format!("can't read {}", path.display()))?;
                    files.push(Source { path: path.to_string_lossy().into_owned(), text });
                }
            }
        }
        files.sort_by(|a, b| a.path.cmp(&b.path));
        Ok(Tree { files })
    }

    /// The Rust files.
    pub fn rust(&self) -> impl Iterator<Item = &Source> {
        self.files.iter().filter(|file| file.path.ends_with(".rs"))
    }

    /// A file by its path.
    #[must_use]
    pub fn get(&self, path: &str) -> Option<&Source> {
        self.files.iter().find(|file| file.path == path)
    }
}

/// Every Rust file says first what it is for.
pub fn openings(tree: &Tree) -> Vec<String> {
    let opens = |text: &str| text.lines().next().is_some_and(|line| line.starts_with("//! ") && line.len() > 12);
    tree.rust().filter(|file| !opens(&file.text)).map(|file| format!("{} does not open with //!", file.path)).collect()
}

/// A file that gets too long hides a noun that wants a file of its own.
pub fn lengths(tree: &Tree) -> Vec<String> {
    let long = |file: &&Source| file.text.lines().count() > LINES_MAX;
    tree.rust()
        .filter(long)
        .map(|file| format!("{} has {} lines, over {LINES_MAX}", file.path, file.text.lines().count()))
        .collect()
}

/// No leftovers.
pub fn words(tree: &Tree) -> Vec<String> {
    let mut problems = Vec::new();
    for file in &tree.files {
        for (number, line) in file.text.lines().enumerate() {
            for (head, tail) in WORDS {
                let word = format!("{head}{tail}");
                if has_word(line, &word) {
                    problems.push(format!("{}:{}: {word}", file.path, number + 1));
                }
            }
        }
    }
    problems
}

/// Whether `word` stands in `line`, not as a part of a longer word.
fn has_word(line: &str, word: &str) -> bool {
    line.match_indices(word).any(|(at, _)| {
        let before = line[..at].chars().next_back();
        let after = line[at + word.len()..].chars().next();
        let inside = |neighbor: Option<char>| neighbor.is_some_and(|c| c.is_alphanumeric() || c == '_');
        !inside(before) && !inside(after)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(path: &str, text: &str) -> Tree {
        Tree { files: vec![Source { path: path.to_owned(), text: text.to_owned() }] }
    }

    #[test]
    fn each_check_finds_what_it_is_for() {
        let good = tree("a.rs", "//! What this is for.\n");
        let left = format!("//! What this is for.\n// {}{}: later\n", "TO", "DO");
        assert!(openings(&good).is_empty() && words(&good).is_empty() && lengths(&good).is_empty());
        assert_eq!(openings(&tree("a.rs", "use x;\n")).len(), 1);
        assert_eq!(words(&tree("a.rs", &left)).len(), 1);
        assert_eq!(lengths(&tree("a.rs", &"x\n".repeat(LINES_MAX + 1))).len(), 1);
    }

    #[test]
    fn a_word_inside_a_longer_one_does_not_count() {
        assert!(has_word("a HIT b", "HIT") && has_word("HIT:", "HIT"));
        assert!(!has_word("a_HIT", "HIT") && !has_word("HITS", "HIT"));
    }
}
