//! Compiles the `.proto` files with protox, so that no protoc has to be installed.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo::rerun-if-changed=catchment");
    let files = ["batch", "ingest", "collect", "log"].map(|name| format!("catchment/v1/{name}.proto"));
    let descriptors = protox::compile(files, ["."])?;
    tonic_prost_build::configure()
        // Payloads and headers are slices of the receive buffer, never copied out of it.
        .bytes(".")
        // Golden bytes: maps are encoded in key order.
        .btree_map(".")
        .compile_fds(descriptors)?;
    Ok(())
}
