//! `kiseki-server`: runs a node, makes one ready, examines a machine.

use clap::{Args, CommandFactory, Parser, Subcommand};
use clap_complete::Shell;
use kiseki_engine::racks::{RACK_NAMES, is_rack_name};
use kiseki_server::config::{Config, DEFAULT_LANES, Overrides};
use kiseki_server::doctor::{self, Severity};
use kiseki_server::init::{self, DEFAULT_DEVICE_COUNT, DEFAULT_DEVICE_LEN_BYTES, InitOptions};
use kiseki_server::paths::{DEFAULT_DIR, KisekiDir};
use kiseki_server::pool_shape::PoolShape;
use kiseki_server::{heap, join, logging, node, outcome};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

/// A Kiseki node: S3 in, sealed and coded fragments on devices.
#[derive(Parser)]
#[command(
    name = "kiseki-server",
    version,
    about,
    after_help = "First steps:\n  kiseki-server init\n  kiseki-server run\n  . .kiseki/env\n\n\
                  Exit codes: 0 done and nothing wrong, 1 refused or a problem found, 2 wrong usage, 3 failed, 4 partly done."
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Runs the node in the foreground until SIGINT or SIGTERM.
    Run(Overrides),
    /// Makes a directory ready for a node: configuration, certificates, keys, metadata, devices. Makes only what is
    /// missing and never formats what exists.
    Init(InitArgs),
    /// Tells what on this machine hinders the node, and what mends it.
    Doctor {
        #[command(flatten)]
        overrides: Overrides,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Prints completions for a shell.
    Completion {
        /// The shell.
        shell: Shell,
    },
    /// Writes the manual pages into a directory.
    #[command(hide = true)]
    Man {
        /// The directory.
        dir: PathBuf,
    },
}

#[derive(Args)]
struct InitArgs {
    /// The node's directory.
    #[arg(long, env = "KISEKI_DIR", default_value = DEFAULT_DIR)]
    dir: PathBuf,
    /// File with the passphrase of the key store, instead of a new random one below keys/.
    #[arg(long, env = "KISEKI_PASSPHRASE_FILE")]
    passphrase_file: Option<PathBuf>,
    /// Image files to make.
    #[arg(long, default_value_t = DEFAULT_DEVICE_COUNT)]
    devices: u16,
    /// Size of each, in GiB; they are sparse.
    #[arg(long, default_value_t = DEFAULT_DEVICE_LEN_BYTES >> 30, value_parser = clap::value_parser!(u64).range(1..=1 << 20))]
    device_gib: u64,
    /// Metadata directories to make.
    #[arg(long, default_value_t = 2)]
    metadata_dirs: u16,
    /// Lanes to format with: at least as many as the node will ever have cores.
    #[arg(long, default_value_t = DEFAULT_LANES)]
    lanes: u16,
    /// A further host name or address for the server certificate; may be given several times.
    #[arg(long = "name")]
    names: Vec<String>,
    /// Join the cluster of this bundle, made by `kiseki node add`, instead of making a new one.
    #[arg(long, value_name = "BUNDLE", conflicts_with = "pool")]
    join: Option<PathBuf>,
    /// Address and port where other nodes and administration from elsewhere connect.
    #[arg(long, env = "KISEKI_PEER_LISTEN", value_name = "ADDR:PORT")]
    peer_listen: Option<SocketAddr>,
    /// Where other nodes reach this one, HOST:PORT; needed where it listens at any address. May be given several times.
    #[arg(long = "peer-address", value_name = "HOST:PORT")]
    peer_addresses: Vec<String>,
    /// The rack that the node is in: what fails together.
    #[arg(long, env = "KISEKI_RACK")]
    rack: Option<String>,
    /// How the first pool of a new cluster protects chunks, such as 4+2 or "2 copies"; by the number of devices when absent.
    #[arg(long)]
    pool: Option<PoolShape>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

#[global_allocator]
static HEAP: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let result = match outcome::parse::<Cli>().command {
        Command::Run(overrides) => run(&overrides),
        Command::Init(arguments) => make(arguments),
        Command::Doctor { overrides, json } => return examine(&overrides, json),
        Command::Completion { shell } => {
            clap_complete::generate(shell, &mut Cli::command(), "kiseki-server", &mut std::io::stdout());
            Ok(())
        }
        Command::Man { dir } => clap_mangen::generate_to(Cli::command(), dir).map_err(anyhow::Error::from),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => outcome::fail("kiseki-server", &error),
    }
}

fn run(overrides: &Overrides) -> anyhow::Result<()> {
    let small_pages = heap::keep_pages_small();
    let config = Config::load(overrides)?;
    logging::start(&config.log)?;
    if let Err(error) = small_pages {
        tracing::debug!(%error, "huge pages can't be kept away");
    }
    logging::abort_on_panic(kiseki_raft::in_guarded_task);
    node::run(config)
}

fn make(arguments: InitArgs) -> anyhow::Result<()> {
    let rack = arguments.rack.clone().unwrap_or_default();
    if !rack.is_empty() && !is_rack_name(&rack) {
        anyhow::bail!("--rack {rack}: {RACK_NAMES}");
    }
    let options = InitOptions {
        dir: KisekiDir::at(&arguments.dir)?,
        passphrase_file: arguments.passphrase_file,
        device_count: arguments.devices,
        device_len_bytes: arguments.device_gib << 30,
        metadata_dir_count: arguments.metadata_dirs,
        lanes: arguments.lanes,
        names: arguments.names,
        peer_listen: arguments.peer_listen,
        peer_addresses: arguments.peer_addresses,
        rack,
        first_pool: arguments.pool,
    };
    let made = match &arguments.join {
        Some(bundle) => join::run(&options, bundle)?,
        None => init::run(&options)?,
    };
    if let Ok(config) = Config::load(&Overrides { dir: arguments.dir.clone(), ..Overrides::default() })
        && !options.rack.is_empty()
        && config.peer.rack != options.rack
    {
        // A flag or the environment of `run` may say it.
        eprintln!(
            "kiseki.toml was there before and is not changed: write rack = \"{}\" into its [peer], or give --rack to `run`",
            options.rack
        );
    }
    match arguments.json {
        true => println!("{:#}", serde_json::json!({ "made": made })),
        false => made.iter().for_each(|thing| println!("made {thing}")),
    }
    Ok(())
}

fn examine(overrides: &Overrides, json: bool) -> ExitCode {
    let findings = doctor::examine(overrides);
    match json {
        true => println!("{}", serde_json::to_string_pretty(&findings).expect("findings are plain data")),
        false => print!("{}", doctor::render(&findings)),
    }
    let hindered = findings.iter().any(|finding| finding.severity == Severity::Error);
    if hindered { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}
