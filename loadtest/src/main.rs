//! `catchment-loadtest`: see the library's `cli` for its commands.

use std::io::Write;
use std::process::ExitCode;

fn main() -> ExitCode {
    match loadtest::cli::run_from_args(std::env::args_os().collect()) {
        Ok(code) => code,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "{error:#}");
            ExitCode::FAILURE
        }
    }
}
