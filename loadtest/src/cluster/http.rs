//! The little HTTP that is needed to ask a process on loopback how it is: one request per connection, small answers.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

const TIMEOUT: Duration = Duration::from_secs(2);
/// Largest answer that is read.
const MAX_ANSWER_BYTES: u64 = 16 << 20;

/// An answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// E.g. 200.
    pub status: u16,
    /// Its text.
    pub body: String,
}

/// Asks `GET path`.
pub fn get(address: SocketAddr, path: &str) -> Result<Answer> {
    let mut stream = TcpStream::connect_timeout(&address, TIMEOUT)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.set_write_timeout(Some(TIMEOUT))?;
    write!(stream, "GET {path} HTTP/1.0\r\nHost: {address}\r\nConnection: close\r\n\r\n")?;
    let mut raw = Vec::new();
    stream.take(MAX_ANSWER_BYTES).read_to_end(&mut raw)?;
    parse(&String::from_utf8_lossy(&raw))
}

fn parse(text: &str) -> Result<Answer> {
    let (head, body) = text.split_once("\r\n\r\n").context("the answer is cut short")?;
    let mut words = head.split_whitespace();
    ensure!(words.next().is_some_and(|word| word.starts_with("HTTP/1.")), "the answer is not HTTP");
    let status = words.next().context("the answer has no status")?.parse()?;
    Ok(Answer { status, body: body.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn status_and_body_are_read() {
        let answer = parse("HTTP/1.1 503 Service Unavailable\r\ncontent-length: 2\r\n\r\nno").unwrap();
        assert_eq!(answer, Answer { status: 503, body: "no".into() });
        assert!(parse("HTTP/1.1 200 OK\r\n").is_err());
        assert!(parse("SSH-2.0\r\n\r\n").is_err());
    }
}
