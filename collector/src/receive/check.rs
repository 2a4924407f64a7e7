//! Is a delivered batch what it says? Pure. Whoever it is from: nothing from outside is trusted.

use std::sync::Arc;

use prost::Message;
use proto::header::{Header, HeaderError};
use proto::ids::{AgentName, BatchId, Origin};
use proto::wire;

/// What is known of a delivered batch.
#[derive(Debug, Clone, PartialEq)]
pub enum Checked {
    /// It has an identity, and a good header and payload, or else the reason for quarantine.
    Usable(BatchId, Result<Box<Header>, Arc<str>>),
    /// A newer release made it: nothing is kept.
    Newer(wire::BatchKey),
    /// Not even an identity can be read: it cannot be answered.
    Unidentified(String),
}

/// Decodes the header and checks the payload against it. Costs one pass over the payload.
pub fn check(delivery: &wire::Delivery) -> Checked {
    let agent = match AgentName::new(&delivery.agent) {
        Ok(agent) => agent,
        Err(error) => return Checked::Unidentified(error.to_string()),
    };
    match Header::decode(delivery.header.clone()) {
        Ok(header) => {
            let id = BatchId { agent, origin: header.origin, seq: header.seq };
            if delivery.suspect {
                return Checked::Usable(id, Err("streams broke again and again while it was sent alone".into()));
            }
            match header.check_payload(&delivery.payload) {
                Ok(()) => Checked::Usable(id, Ok(Box::new(header))),
                Err(error) => Checked::Usable(id, Err(error.to_string().into())),
            }
        }
        Err(error) => {
            // What can be read of it without trusting it.
            let Ok(raw) = wire::BatchHeader::decode(delivery.header.clone()) else {
                return Checked::Unidentified(error.to_string());
            };
            let Ok(origin) = Origin::from_bytes(&raw.origin) else {
                return Checked::Unidentified(error.to_string());
            };
            let id = BatchId { agent, origin, seq: raw.seq };
            match error {
                HeaderError::Unsupported { .. } => Checked::Newer((&id).into()),
                _ if raw.seq >= u64::MAX - 1 => Checked::Unidentified(error.to_string()),
                other => Checked::Usable(id, Err(other.to_string().into())),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proto::wire::batch_header::Kind;

    use super::*;

    fn data(payload: &[u8]) -> wire::Data {
        wire::Data {
            dataset: "d".into(),
            partition: Some(wire::Partition { date: 1, hour: None }),
            codec: wire::Codec::None as i32,
            framing: wire::Framing::Lines as i32,
            events: 1,
            raw_bytes: payload.len() as u64,
            payload_bytes: payload.len() as u64,
            payload_crc32c: crc32c::crc32c(payload),
            ..Default::default()
        }
    }

    fn raw(change: fn(&mut wire::BatchHeader)) -> wire::Delivery {
        let origin = Origin::mint(5, 5).to_bytes();
        let mut header = wire::BatchHeader { format: 1, origin, seq: 3, kind: Some(Kind::Data(data(b"x\n"))) };
        change(&mut header);
        let (header, payload) = (header.encode_to_vec().into(), bytes::Bytes::from_static(b"x\n"));
        wire::Delivery { agent: "web-1".into(), header, payload, suspect: false }
    }

    fn reason(delivery: &wire::Delivery) -> String {
        match check(delivery) {
            Checked::Usable(id, Err(reason)) if id.seq == 3 => reason.to_string(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_good_batch_is_usable() {
        assert!(matches!(check(&raw(|_| ())), Checked::Usable(id, Ok(_)) if id.seq == 3));
    }

    #[test]
    fn what_has_an_identity_goes_into_quarantine_with_its_reason() {
        let mut wrong = raw(|_| ());
        wrong.payload = bytes::Bytes::from_static(b"y\n");
        assert!(reason(&wrong).contains("CRC32C"));
        wrong.payload = bytes::Bytes::from_static(b"yyy");
        assert!(reason(&wrong).contains("3 bytes"));
        let mut suspect = raw(|_| ());
        suspect.suspect = true;
        assert!(reason(&suspect).contains("again and again"));
        let date = |header: &mut wire::BatchHeader| {
            if let Some(Kind::Data(data)) = &mut header.kind {
                data.partition = Some(wire::Partition { date: 2_932_896, hour: None });
            }
        };
        assert!(reason(&raw(date)).contains("out of range"));
        assert!(reason(&raw(|header| header.kind = None)).contains("no known kind"));
    }

    #[test]
    fn newer_formats_and_unreadable_ones_are_told_apart() {
        assert!(matches!(check(&raw(|header| header.format = 9)), Checked::Newer(key) if key.seq == 3));
        assert!(matches!(check(&raw(|header| header.origin = vec![1].into())), Checked::Unidentified(_)));
        let mut garbage = raw(|_| ());
        garbage.header = bytes::Bytes::from_static(b"\xff\xff\xff");
        assert!(matches!(check(&garbage), Checked::Unidentified(_)));
        let mut nobody = raw(|_| ());
        nobody.agent = "../etc".into();
        assert!(matches!(check(&nobody), Checked::Unidentified(_)));
    }
}
