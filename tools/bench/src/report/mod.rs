//! `report`: a page and pictures from results that are there already, ours or fio's.

mod html;

use crate::output::check_file;
use crate::plot::{self, Plots};
use crate::results::RunResult;
use crate::usage::usage;
use anyhow::{Context, Result};
use clap::Args;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

const EXAMPLES: &str = "\
Examples:
  # one page with plots, tables and manifests of two results
  kiseki-bench report before.json after.json --html compared.html
  # the plots alone, for a paper
  kiseki-bench report sweep.json --svg figures";

/// Arguments of `report`.
#[derive(Args, Clone, Debug)]
#[command(after_help = EXAMPLES)]
pub struct ReportArgs {
    /// Results: what --json printed, or fio's --output-format=json or json+ (which has the whole distribution)
    #[arg(required = true, value_name = "RESULT.json")]
    pub results: Vec<PathBuf>,
    /// Write a page, complete in one file
    #[arg(long, value_name = "FILE")]
    pub html: Option<PathBuf>,
    /// Write each plot as an SVG file into this directory, which is made when it is missing
    #[arg(long, value_name = "DIRECTORY")]
    pub svg: Option<PathBuf>,
}

/// Reads the results and writes what was asked for.
pub fn run(args: &ReportArgs) -> Result<()> {
    if args.html.is_none() && args.svg.is_none() {
        return Err(usage("report writes files: name one with --html FILE, or a directory with --svg DIRECTORY"));
    }
    if let Some(path) = &args.html {
        check_file(("--html", path))?;
    }
    let mut results = args.results.iter().map(|path| RunResult::read(path)).collect::<Result<Vec<_>>>()?;
    tell_apart(&mut results);
    let plots = plot::of(&results)?;
    if let Some(directory) = &args.svg {
        write_pictures(&plots, directory)?;
    }
    if let Some(path) = &args.html {
        write(path, &html::page(&results, &plots))?;
        println!("{}", path.display());
    }
    plots.left_out.iter().for_each(|line| eprintln!("not shown: {line}"));
    Ok(())
}

/// Writes the page of results.
pub fn write_page(results: &[RunResult], path: &Path) -> Result<()> {
    write(path, &html::page(results, &plot::of(results)?))
}

fn write_pictures(plots: &Plots, directory: &Path) -> Result<()> {
    std::fs::create_dir_all(directory).map_err(|error| usage(format!("--svg {}: {error}", directory.display())))?;
    for plot in &plots.plots {
        let path = directory.join(format!("{}.svg", plot.file));
        write(&path, &plot.svg)?;
        println!("{}", path.display());
    }
    Ok(())
}

fn write(path: &Path, text: &str) -> Result<()> {
    std::fs::write(path, text).with_context(|| format!("can't write {}", path.display()))
}

/// Files of one name in different directories get a number.
fn tell_apart(results: &mut [RunResult]) {
    let mut seen: BTreeMap<String, u32> = BTreeMap::new();
    for result in results {
        let times = seen.entry(result.name.clone()).or_default();
        *times += 1;
        if *times > 1 {
            result.name = format!("{} #{times}", result.name);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn results_of_one_name_are_told_apart() {
        let one = || RunResult::parse("a".to_owned(), &json!({"jobs": []})).unwrap();
        let mut results = [one(), one(), one()];
        tell_apart(&mut results);
        assert_eq!(results.map(|result| result.name), ["a", "a #2", "a #3"]);
    }
}
