//! What the owner thread and the shipping task say to each other.

use std::sync::mpsc::Sender;
use std::time::Instant;

use proto::ids::Origin;
use proto::intervals::IntervalSet;
use proto::wire;
use tokio::sync::mpsc::UnboundedReceiver;

use super::balance::Node;
use crate::outbox::Stored;

/// When a drain is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DrainUntil {
    /// An aggregator has stored every batch.
    Delivered,
    /// Every batch is acked.
    Acked,
}

/// To the shipping task.
#[derive(Debug)]
pub enum ToShip {
    /// Durable batches to send.
    Send(Vec<Stored>),
    /// Of this origin only the open is sent until the gate opens.
    CloseGate(Origin),
    /// Everything may be sent.
    OpenGate,
    /// Batches that are not kept any more.
    LetGo(Vec<(Origin, u64)>),
    /// A dataset is not declared: ask for news more often (or no longer).
    Hurry(bool),
    /// Say [`FromShip::Drained`] when this is reached.
    Drain(DrainUntil),
}

/// To the owner thread.
#[derive(Debug)]
pub enum FromShip {
    /// The first round of questions at start has ended, with an answer: `known_end` is the exclusive end of what any aggregator knows of
    /// the newest origin.
    Contact {
        /// End of what is known of the newest origin.
        known_end: u64,
    },
    /// Time, roll age and declarations of an aggregator.
    Status {
        /// The message.
        status: wire::NodeStatus,
        /// When it was received.
        received: Instant,
    },
    /// An aggregator has stored a batch.
    Durable {
        /// Its origin.
        origin: Origin,
        /// Its number.
        seq: u64,
        /// That releases it.
        released: bool,
    },
    /// Batches that an aggregator had stored, and that are sent again.
    SentAgain {
        /// Which.
        batches: Vec<Stored>,
        /// The aggregator that lost them or was given up.
        node: Node,
    },
    /// Seqs seen committed.
    Committed {
        /// Their origin.
        origin: Origin,
        /// Which.
        seqs: IntervalSet,
    },
    /// An aggregator holds seqs of an origin, or has seen them committed, up to `end` (exclusive).
    Known {
        /// The origin.
        origin: Origin,
        /// End of what it knows.
        end: u64,
    },
    /// An aggregator answered *wrong*: keep the bytes, replace the batch by a void.
    Wrong {
        /// The batch as it was sent.
        stored: Stored,
        /// What it said.
        detail: String,
    },
    /// The stored copy is damaged: replace the batch by a void.
    Damaged {
        /// The batch.
        stored: Stored,
        /// What is wrong.
        detail: String,
    },
    /// A dataset of a stored batch is not declared, or this agent may not write it.
    Refused {
        /// What the aggregator said.
        detail: String,
    },
    /// What [`ToShip::Drain`] asked for is reached.
    Drained,
    /// The process is to end: drain.
    Stop,
    /// Read to the end, send everything, say *left*, and end.
    Leave,
}

/// How the shipping task talks with the owner thread.
pub struct Talk {
    /// From the owner.
    pub commands: UnboundedReceiver<ToShip>,
    /// To the owner.
    pub owner: Sender<FromShip>,
    /// Of the declarations that it holds already.
    pub declarations_version: u64,
}
