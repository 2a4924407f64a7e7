//! Ports for processes that must come back under the same address after a kill. They lie below the range from which the
//! kernel takes ports for outgoing connections: there a client that tries again and again to reach a dead server would
//! some day connect to itself and hold the port.

use std::collections::HashSet;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::sync::Mutex;

use anyhow::{Result, bail};

/// Lowest port that is tried.
const LOWEST: u16 = 10_000;
/// Where outgoing connections usually begin.
const USUAL_OUTGOING: u16 = 32_768;

static TAKEN: Mutex<Option<HashSet<u16>>> = Mutex::new(None);

/// An address on loopback that nobody listens on, never given twice by this process.
pub fn free_address() -> Result<SocketAddr> {
    let outgoing = fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").ok();
    let first = outgoing.and_then(|text| text.split_whitespace().next()?.parse().ok()).unwrap_or(USUAL_OUTGOING);
    let range = if first > LOWEST + 1_000 { LOWEST..first } else { LOWEST..u16::MAX };
    let mut taken = TAKEN.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let taken = taken.get_or_insert_with(HashSet::new);
    for _ in 0..1_000 {
        let port = rand::random_range(range.clone());
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        if !taken.contains(&port) && TcpListener::bind(address).is_ok() {
            taken.insert(port);
            return Ok(address);
        }
    }
    bail!("found no free port on loopback between {} and {}", range.start, range.end)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_differ_and_can_be_bound() {
        let addresses: HashSet<_> = (0..20).map(|_| free_address().unwrap()).collect();
        assert_eq!(addresses.len(), 20);
        for address in addresses {
            TcpListener::bind(address).unwrap();
        }
    }
}
