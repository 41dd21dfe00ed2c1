//! What the command line says.

use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

const HELP: &str = "raft_groups [OPTIONS]

  --seconds S       of the product's turn in each round (2); with --idle, of the measurement (20)
  --rounds N        turns of floor, flush and product (3)
  --groups A,B      numbers of groups (1,16,64); with --idle (64)
  --writers A,B     numbers of writers, each with one command under way (1,16,256)
  --dir DIRECTORY   where the files lie (the system's place for temporary files)
  --idle            what groups cost that nobody uses
  --product-only    without floor and flush, for a profiler; the ratio is 0 then
  --json            a line of JSON for each figure";

/// What to measure.
pub struct Options {
    /// Seconds of one turn.
    pub span: Duration,
    /// Turns.
    pub rounds: u32,
    /// Numbers of groups.
    pub groups: Vec<u64>,
    /// Numbers of writers.
    pub writers: Vec<usize>,
    /// Where files lie.
    pub dir: PathBuf,
    /// Idle groups alone.
    pub idle: bool,
    /// The product's turns alone.
    pub product_only: bool,
    /// JSON rather than text.
    pub json: bool,
}

fn number<T: FromStr>(text: &str) -> T {
    text.parse().unwrap_or_else(|_| refuse(&format!("{text} is no number here")))
}

fn refuse(what: &str) -> ! {
    eprintln!("{what}\n\n{HELP}");
    std::process::exit(2)
}

impl Options {
    /// Reads the arguments of the process; what makes no sense ends it.
    pub fn from_arguments() -> Options {
        let mut options = Options {
            span: Duration::ZERO,
            rounds: 3,
            groups: Vec::new(),
            writers: vec![1, 16, 256],
            dir: std::env::temp_dir(),
            idle: false,
            product_only: false,
            json: false,
        };
        let mut arguments = std::env::args().skip(1);
        while let Some(name) = arguments.next() {
            let mut value = || arguments.next().unwrap_or_else(|| refuse(&format!("{name} wants a value")));
            match name.as_str() {
                "--seconds" => options.span = Duration::from_secs_f64(number(&value())),
                "--rounds" => options.rounds = number(&value()),
                "--groups" => options.groups = value().split(',').map(number).collect(),
                "--writers" => options.writers = value().split(',').map(number).collect(),
                "--dir" => options.dir = PathBuf::from(value()),
                "--idle" => options.idle = true,
                "--product-only" => options.product_only = true,
                "--json" => options.json = true,
                "--bench" => {} // cargo says so
                "--help" => {
                    println!("{HELP}");
                    std::process::exit(0)
                }
                _ => refuse(&format!("{name} is no option")),
            }
        }
        if options.span.is_zero() {
            options.span = Duration::from_secs(if options.idle { 20 } else { 2 });
        }
        if options.groups.is_empty() {
            options.groups = if options.idle { vec![64] } else { vec![1, 16, 64] };
        }
        options
    }
}
