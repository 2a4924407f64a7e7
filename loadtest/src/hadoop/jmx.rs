//! What the NameNode says of itself over HTTP.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::Context;

const LIMIT: Duration = Duration::from_secs(5);

/// Part of `FSNamesystemState`.
#[derive(Debug)]
pub(super) struct State {
    pub operational: bool,
    pub live_datanodes: usize,
    pub remaining_bytes: u64,
}

pub(super) fn state(http_port: u16) -> anyhow::Result<State> {
    let address = SocketAddr::from(([127, 0, 0, 1], http_port));
    let mut stream = TcpStream::connect_timeout(&address, LIMIT)?;
    stream.set_read_timeout(Some(LIMIT))?;
    stream.write_all(b"GET /jmx?qry=Hadoop:service=NameNode,name=FSNamesystemState HTTP/1.0\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let body = answer.split_once("\r\n\r\n").context("the NameNode's answer has no body")?.1;
    let json: serde_json::Value = serde_json::from_str(body)?;
    let bean = &json["beans"][0];
    Ok(State {
        operational: bean["FSState"] == "Operational",
        live_datanodes: bean["NumLiveDataNodes"].as_u64().unwrap_or(0) as usize,
        remaining_bytes: bean["CapacityRemaining"].as_u64().unwrap_or(0),
    })
}
