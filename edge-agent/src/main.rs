//! The edge agent's process.

fn main() -> std::process::ExitCode {
    edge_agent::cli::main()
}
