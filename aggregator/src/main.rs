//! `catchment-aggregator`.

fn main() -> anyhow::Result<()> {
    aggregator::cli::main()
}
