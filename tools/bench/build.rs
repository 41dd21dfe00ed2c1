//! Notes the commit that the program is built from: a figure without it can't be traced to code.

use std::process::Command;

fn git(arguments: &[&str]) -> Option<String> {
    let output = Command::new("git").args(arguments).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?.trim().to_owned();
    (output.status.success() && !text.is_empty()).then_some(text)
}

fn main() {
    // Asked again when a commit is made, and when sources change, which makes the tree differ from the commit.
    if let Some(log) = git(&["rev-parse", "--path-format=absolute", "--git-path", "logs/HEAD"]) {
        println!("cargo::rerun-if-changed={log}");
    }
    for room in ["engine", "devices", "net", "tools/bench"] {
        println!("cargo::rerun-if-changed=../../{room}");
    }
    let commit = git(&["describe", "--always", "--dirty", "--abbrev=12", "--exclude", "*"]);
    println!("cargo::rustc-env=KISEKI_BENCH_COMMIT={}", commit.as_deref().unwrap_or("unknown"));
}
