//! Asks the admin endpoint of an agent on this host. One request per connection, small answers, short time-outs: all
//! that `status` and `leave` need.

use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::time::Duration;

const TIMEOUT: Duration = Duration::from_secs(5);
/// An answer is never longer.
const MAX_ANSWER_BYTES: u64 = 16 * 1024 * 1024;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// Nobody listens.
    #[error("nobody answers at {at}: {reason}")]
    Nobody {
        /// Where.
        at: SocketAddr,
        /// The system's reason.
        reason: io::Error,
    },
    /// Something listens that is no agent of this release.
    #[error("what answers at {at} is no edge agent of this release ({detail}): check `admin.listen`")]
    Stranger {
        /// Where.
        at: SocketAddr,
        /// What it said.
        detail: String,
    },
}

/// `GET` or `POST` a path; the JSON of the answer.
pub fn ask(listen: SocketAddr, method: &str, path: &str) -> Result<serde_json::Value, AskError> {
    let at = reachable(listen);
    let nobody = |reason| AskError::Nobody { at, reason };
    let mut stream = TcpStream::connect_timeout(&at, TIMEOUT).map_err(nobody)?;
    stream.set_read_timeout(Some(TIMEOUT)).map_err(nobody)?;
    stream.set_write_timeout(Some(TIMEOUT)).map_err(nobody)?;
    let request = format!("{method} {path} HTTP/1.1\r\nhost: {at}\r\nconnection: close\r\ncontent-length: 0\r\n\r\n");
    stream.write_all(request.as_bytes()).map_err(nobody)?;
    let mut answer = Vec::new();
    stream.take(MAX_ANSWER_BYTES).read_to_end(&mut answer).map_err(nobody)?;
    parse(&answer).map_err(|detail| AskError::Stranger { at, detail })
}

/// An endpoint that listens on all addresses is asked on loopback.
fn reachable(listen: SocketAddr) -> SocketAddr {
    match listen.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => SocketAddr::new(Ipv4Addr::LOCALHOST.into(), listen.port()),
        IpAddr::V6(ip) if ip.is_unspecified() => SocketAddr::new(Ipv6Addr::LOCALHOST.into(), listen.port()),
        _ => listen,
    }
}

fn parse(answer: &[u8]) -> Result<serde_json::Value, String> {
    let text = String::from_utf8_lossy(answer);
    let (head, body) = text.split_once("\r\n\r\n").ok_or("no HTTP answer")?;
    let status = head.lines().next().unwrap_or_default();
    if status.split(' ').nth(1) != Some("200") {
        return Err(status.chars().take(100).collect());
    }
    serde_json::from_str(body).map_err(|error| format!("no JSON: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_read_and_strangers_are_told() {
        let good = parse(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n\r\n{\"agent\":\"a\"}").unwrap();
        assert_eq!(good["agent"], "a");
        assert!(parse(b"HTTP/1.1 404 Not Found\r\n\r\n").unwrap_err().contains("404"));
        assert!(parse(b"SSH-2.0-x\r\n").is_err());
        assert_eq!(reachable("0.0.0.0:9464".parse().unwrap()), "127.0.0.1:9464".parse().unwrap());
    }

    #[test]
    fn nobody_is_an_error_of_its_own() {
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        assert!(matches!(ask(free, "GET", "/status"), Err(AskError::Nobody { .. })));
    }
}
