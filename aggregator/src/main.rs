//! `catchment-aggregator`.

fn main() -> anyhow::Result<std::process::ExitCode> {
    aggregator::cli::main()
}
