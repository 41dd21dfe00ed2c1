//! `kiseki-devctl`: formats, inspects, lists and verifies devices. All of it is in the library, a verb a file.

fn main() -> std::process::ExitCode {
    kiseki_cli::devctl::main()
}
