//! Starts a real HDFS on free loopback ports and keeps it until the process is ended: for trying out
//! `loadtest run --dest hdfs://...` by hand.
//!
//!     cargo run --release -p loadtest --example hdfs -- [DATANODES]
//!
//! prints the URL. Lines on its standard input are commands: `stop` and `start` kill and start the NameNode,
//! anything else goes to Hadoop's file system shell, e.g. `-ls -R /`.

use std::io::{BufRead, Write};

use anyhow::Context;
use loadtest::hadoop::{Hdfs, Options};

#[allow(clippy::print_stdout, clippy::print_stderr)]
fn main() -> anyhow::Result<()> {
    let datanodes = std::env::args().nth(1).map_or(Ok(1), |text| text.parse()).context("DATANODES is a number")?;
    let mut hdfs = Hdfs::start(&Options { datanodes, replication: datanodes.min(3), dir: None })?;
    println!("{}", hdfs.url());
    for line in std::io::stdin().lock().lines() {
        let line = line?;
        let words: Vec<&str> = line.split_whitespace().collect();
        let done = match words.as_slice() {
            [] => continue,
            ["stop"] => {
                hdfs.stop_namenode();
                Ok(Vec::new())
            }
            ["start"] => hdfs.start_namenode().map(|()| Vec::new()),
            command => hdfs.shell(command),
        };
        match done {
            Ok(output) => std::io::stdout().write_all(&output)?,
            Err(error) => eprintln!("{error:#}"),
        }
        println!("done: {line}");
    }
    loop {
        std::thread::park();
    }
}
