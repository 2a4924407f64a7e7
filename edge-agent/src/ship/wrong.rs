//! A batch whose stored copy contradicts its own header becomes a void at the first answer *wrong* or *retry*: it can be
//! taken nowhere.
//!
//! *Wrong* of a batch whose stored copy is sound: its header decodes, its payload is what the header says, and both are
//! within the limits of the protocol. Then the transfer or the aggregator is at fault, not the batch, and it goes
//! elsewhere; a void would give up good events.
//!
//! Invariant: such a batch becomes a void only after [`ANSWERS`] answers *wrong* over a time of patience, from two
//! aggregators where there are two. Aggregators that have not said it yet are asked first, so whoever can be reached has
//! been asked by then. Where one has said it, and no other has said it or taken the batch within [`LONGEST`] times that
//! patience, the one is believed: else an origin would wait for ever for aggregators that are configured and gone.

use std::time::{Duration, Instant};

use proto::header::Header;
use proto::wire;

use super::balance::{Node, Outcome};
use super::messages::FromShip;
use super::queue::Take;
use super::{Ship, retry};
use crate::outbox::index::Kind;
use crate::outbox::read::BatchBytes;

/// Answers *wrong* before they are believed against a sound copy.
const ANSWERS: u32 = 3;
/// Aggregators that must have said so, where there are as many.
const WITNESSES: usize = 2;
/// Times the patience after which one is enough, because no other took the batch all the while.
const LONGEST: u32 = 12;
/// Once no aggregator is left that has not said it, the batch is sent so many times more within the patience.
const TRIES_WITHIN_PATIENCE: u32 = 10;

/// Who said *wrong* of one batch.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Disputed {
    by: Vec<Node>,
    answers: u32,
    since: Option<Instant>,
}

impl Disputed {
    /// `node` has said it.
    pub fn said(&mut self, node: &Node, now: Instant) {
        self.answers += 1;
        self.since.get_or_insert(now);
        if !self.by.contains(node) {
            self.by.push(node.clone());
        }
    }

    /// Who has said it.
    pub fn by(&self) -> &[Node] {
        &self.by
    }

    /// Have enough said it for long enough? `nodes`: how many aggregators there are.
    pub fn is_believed(&self, nodes: usize, patience: Duration, now: Instant) -> bool {
        let lasted = self.since.map_or(Duration::ZERO, |since| now.saturating_duration_since(since));
        let enough = self.by.len() >= nodes.clamp(1, WITNESSES) || lasted >= patience * LONGEST;
        self.answers >= ANSWERS && enough && lasted >= patience
    }

    /// Is there somebody who may not have been asked yet? Not if one has said it twice: the others were not reached.
    fn is_open(&self, nodes: usize) -> bool {
        self.by.len() < nodes && self.answers as usize == self.by.len()
    }
}

/// Is this a batch that any aggregator of this protocol has to take?
pub fn is_sound(batch: &BatchBytes) -> bool {
    let header = Header::decode(batch.header.clone());
    header.is_ok_and(|header| {
        batch.payload.len() <= proto::MAX_PAYLOAD_BYTES && header.check_payload(&batch.payload).is_ok()
    })
}

impl Ship {
    /// An aggregator asks for it once more, but the copy that was sent is not what its own header says: every send of it
    /// would end like this one. False for a void: another would be no better.
    pub(super) fn unsound(&mut self, take: &Take, reason: &str) -> bool {
        if take.stored.place.kind == Kind::Void {
            return false;
        }
        let detail = format!("the stored copy is not what its own header says; the aggregator's answer: {reason}");
        if self.queue.replacing(take) {
            self.tell(FromShip::Wrong { stored: take.stored, detail });
        }
        true
    }

    /// An aggregator answered *wrong*. `sound`: the bytes that were sent are not. Returns what that says of the aggregator.
    pub(super) fn wrong(
        &mut self,
        take: &Take,
        node: &Node,
        wrong: &wire::Wrong,
        sound: bool,
        now: Instant,
    ) -> Outcome {
        self.gauges.sends.wrong.add(1);
        let detail = format!("{}: {}", wrong.reason().as_str_name(), wrong.detail);
        // Another void would be answered the same: the fault is over there, and nothing is left to give up.
        let is_void = take.stored.place.kind == Kind::Void;
        let nodes = self.balance.nodes().count();
        let disputed = self.queue.disputed(take, node, now);
        let believed = disputed.is_believed(nodes, self.options.wrong_patience, now);
        if !is_void && (!sound || believed) {
            if self.queue.replacing(take) {
                self.tell(FromShip::Wrong { stored: take.stored, detail });
            }
            return Outcome::Refused;
        }
        let seq = take.stored.seq;
        tracing::error!(%node, seq, detail, "aggregator calls a batch wrong that is sound here, it is sent elsewhere");
        let delay = match disputed.is_open(nodes) {
            true => retry::FIRST,
            false => self.options.wrong_patience / TRIES_WITHIN_PATIENCE,
        };
        self.queue.again(take, now + delay, Some(node.clone()));
        Outcome::Refused
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use proto::ids::Origin;

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(300);

    fn node(name: &str) -> Node {
        Node::from(name)
    }

    #[test]
    fn one_of_several_is_not_believed_alone() {
        let (now, mut disputed) = (Instant::now(), Disputed::default());
        (0..100).for_each(|_| disputed.said(&node("a"), now));
        assert!(!disputed.is_believed(3, PATIENCE, now + PATIENCE * 10), "one faulty aggregator voids good batches");
        disputed.said(&node("b"), now);
        assert!(disputed.is_believed(3, PATIENCE, now + PATIENCE));
        assert_eq!(disputed.by(), [node("a"), node("b")]);
    }

    #[test]
    fn one_of_several_is_believed_if_no_other_answers_for_long() {
        let (now, mut disputed) = (Instant::now(), Disputed::default());
        disputed.said(&node("a"), now);
        assert!(disputed.is_open(3), "the others are asked at once");
        disputed.said(&node("a"), now);
        assert!(!disputed.is_open(3), "the others cannot be reached: no hurry");
        assert!(!disputed.is_believed(3, PATIENCE, now + PATIENCE * LONGEST), "too few answers");
        disputed.said(&node("a"), now + PATIENCE);
        assert!(!disputed.is_believed(3, PATIENCE, now + PATIENCE * (LONGEST - 1)));
        assert!(disputed.is_believed(3, PATIENCE, now + PATIENCE * LONGEST), "the batch is sent for ever");
    }

    #[test]
    fn the_only_one_is_believed_after_several_answers_over_minutes() {
        let (now, mut disputed) = (Instant::now(), Disputed::default());
        disputed.said(&node("a"), now);
        assert!(!disputed.is_believed(1, PATIENCE, now + PATIENCE), "after one answer");
        disputed.said(&node("a"), now);
        disputed.said(&node("a"), now + PATIENCE / 2);
        assert!(!disputed.is_believed(1, PATIENCE, now + PATIENCE / 2), "too soon");
        assert!(disputed.is_believed(1, PATIENCE, now + PATIENCE));
    }

    #[test]
    fn a_copy_is_sound_if_its_header_says_what_its_payload_is() {
        let payload = Bytes::from_static(b"payload");
        let data = wire::Data {
            dataset: "clickstream".into(),
            partition: Some(wire::Partition { date: 20_000, hour: None }),
            codec: wire::Codec::None as i32,
            framing: wire::Framing::Lines as i32,
            events: 1,
            raw_bytes: payload.len() as u64,
            payload_bytes: payload.len() as u64,
            payload_crc32c: crc32c::crc32c(&payload),
            ..Default::default()
        };
        let kind = wire::batch_header::Kind::Data(data);
        let header = Header::encode(Origin::mint(1_793_500_000_000, 1), 1, kind).unwrap().bytes;
        let sound = BatchBytes { header, payload };
        assert!(is_sound(&sound));
        assert!(!is_sound(&BatchBytes { payload: Bytes::from_static(b"Payload"), ..sound.clone() }));
        assert!(!is_sound(&BatchBytes { payload: Bytes::new(), ..sound.clone() }));
        assert!(!is_sound(&BatchBytes { header: Bytes::from_static(b"\xff\xff"), ..sound }));
    }
}
