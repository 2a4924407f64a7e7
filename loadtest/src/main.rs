//! `catchment-loadtest`: see the library's `cli` for its commands, and `tier` for what it is under other names.

use std::io::Write;
use std::process::ExitCode;

fn main() -> ExitCode {
    let args: Vec<_> = std::env::args_os().collect();
    let result = match args.first().and_then(|program| loadtest::tier::called_as(program)) {
        Some(tier) => loadtest::tier::main(tier),
        None => loadtest::cli::run_from_args(args),
    };
    match result {
        Ok(code) => code,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "{error:#}");
            ExitCode::FAILURE
        }
    }
}
