//! Which aggregators an agent talks to, and the connections to them. A change of the list moves only its share.
//!
//! Invariant: an aggregator that holds batches of ours stays reachable for questions after it has left the list.

use std::collections::HashSet;

use super::balance::{Node, Policy};
use super::client::{Client, now};
use super::{FAN_OUT, Ship};

impl Ship {
    /// The aggregators of this agent: the first of the ring by its name, or all in the order given.
    pub(super) fn use_peers(&mut self) {
        let peers = self.peers.borrow_and_update().clone();
        let chosen: Vec<Node> = match self.options.policy {
            Policy::Priority => {
                let place = |peer: &&String| self.options.order.iter().position(|one| one == *peer);
                let mut ordered: Vec<&String> = peers.iter().collect();
                ordered.sort_by_key(|peer| place(peer).unwrap_or(usize::MAX));
                ordered.into_iter().take(FAN_OUT).map(|peer| Node::from(peer.as_str())).collect()
            }
            Policy::Home | Policy::Spread => {
                let ring = common::ring::Ring::new(&peers);
                let successors = ring.successors(self.options.agent.as_str().as_bytes());
                successors.take(FAN_OUT).map(Node::from).collect()
            }
        };
        let mut needed: HashSet<Node> = chosen.iter().cloned().collect();
        needed.extend(self.queue.questions(usize::MAX).into_iter().map(|(node, _)| node));
        self.clients.retain(|node, _| needed.contains(node));
        self.balance.set_nodes(chosen);
        self.next_status = now();
    }

    pub(super) fn client(&mut self, node: &Node) -> Option<Client> {
        if let Some(client) = self.clients.get(node) {
            return Some(client.clone());
        }
        match (self.dial)(node) {
            Ok(channel) => {
                let client = Client::new(node, &self.options.agent, channel, self.options.timeout);
                self.clients.insert(node.clone(), client.clone());
                Some(client)
            }
            Err(error) => {
                tracing::error!(node = %node, error, "aggregator address is not usable");
                None
            }
        }
    }
}
