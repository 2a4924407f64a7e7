//! `Ingest`: what agents call. Checks a batch, hands it to the channel, waits for its answer.
//!
//! Invariants: *durable* is answered only after the channel's owner said so (I1); nothing durable is done in here, since
//! the transport may drop these futures at any time; every refusal names its reason; *wrong*, which makes an agent give a
//! batch up for good, is answered only to what can never be right: over a protocol limit, or without a decodable header.
//! What may have been damaged or misnamed on its way is to be sent again, elsewhere.

pub mod permits;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use bytes::Bytes;
use proto::header::{Header, HeaderError, PayloadError};
use proto::ids::{AgentName, Origin};
use proto::intervals::IntervalSet;
use proto::wire::{self, AppendRequest, AppendResponse, BusyReason, WrongReason, append_response, ingest_server};
use tokio::sync::{OwnedSemaphorePermit, oneshot, watch};
use tonic::{Request, Response, Status};

use crate::channel::{AppendJob, Appended, ChannelHandle};
use crate::declarations::Declarations;
use permits::PermitSlot;

/// Delays told to agents, in milliseconds.
const FULL_DELAY_MS: u64 = 2000;
const SHARE_DELAY_MS: u64 = 5000;
const UNDECLARED_DELAY_MS: u64 = 2000;
const DRAINING_DELAY_MS: u64 = 1000;
const NO_PERMIT_DELAY_MS: u64 = 200;

/// Most characters of a name that a peer gave, in a log or an answer.
const NAME_CHARS: usize = 128;

/// Answers by kind, since the start.
#[derive(Debug, Default)]
pub struct IngestStats {
    /// Stored, or known to be.
    pub durable: AtomicU64,
    /// Busy, by reason: index = the reason's number on the wire.
    pub busy: [AtomicU64; 6],
    /// Nothing stored, elsewhere, by reason: index = the [`RetryReason`].
    pub retry: [AtomicU64; RetryReason::ALL.len()],
    /// Over a limit, or not decodable.
    pub wrong: AtomicU64,
    /// A newer format.
    pub unsupported: AtomicU64,
    /// Appends handed to the channel and not answered.
    pub in_flight: AtomicU64,
}

/// Why nothing was stored though another time, or another aggregator, may store it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RetryReason {
    /// The storage failed, or the channel has stopped.
    Storage = 0,
    /// The payload does not match its CRC.
    Crc = 1,
    /// The payload is shorter or longer than its header says.
    Length = 2,
    /// The transport names another agent than the batch, or none.
    Identity = 3,
}

impl RetryReason {
    /// All of them, in the order of their numbers.
    pub const ALL: [Self; 4] = [Self::Storage, Self::Crc, Self::Length, Self::Identity];

    /// As metrics name it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Storage => "storage",
            Self::Crc => "crc",
            Self::Length => "length",
            Self::Identity => "identity",
        }
    }
}

/// What answers need of this process. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Node {
    name: Arc<str>,
    declarations: watch::Receiver<Arc<Declarations>>,
    draining: Arc<AtomicBool>,
    stats: Arc<IngestStats>,
}

impl Node {
    /// A node that takes batches.
    pub fn new(name: &str, declarations: watch::Receiver<Arc<Declarations>>) -> Self {
        Self { name: name.into(), declarations, draining: Arc::default(), stats: Arc::default() }
    }

    /// From now on every append is answered *busy (draining)*.
    pub fn drain(&self) {
        self.draining.store(true, Ordering::SeqCst);
    }

    /// Has that begun?
    pub fn is_draining(&self) -> bool {
        self.draining.load(Ordering::SeqCst)
    }

    /// Its counters.
    pub fn stats(&self) -> &IngestStats {
        &self.stats
    }

    fn status(&self, known: u64) -> wire::NodeStatus {
        let unix_ms = common::clock::unix_ms();
        self.declarations.borrow().status(&self.name, known, unix_ms)
    }

    /// An answer with the node's status; `known` is the version of the declarations that the agent holds.
    fn answer(&self, answer: append_response::Answer, known: u64, origin: OfOrigin) -> AppendResponse {
        self.count(&answer);
        let OfOrigin { committed, quarantined } = origin;
        AppendResponse {
            answer: Some(answer),
            status: Some(self.status(known)),
            committed: Some(committed),
            quarantined,
        }
    }

    /// An answer given before the request was read: its sender's declarations are unknown, so none are sent along.
    fn early(&self, answer: append_response::Answer) -> AppendResponse {
        let version = self.declarations.borrow().version;
        self.answer(answer, version, OfOrigin::default())
    }

    /// Nothing stored: send it again, elsewhere.
    fn retry(&self, because: RetryReason, reason: String) -> append_response::Answer {
        self.stats.retry[because as usize].fetch_add(1, Ordering::Relaxed);
        append_response::Answer::Retry(wire::Retry { reason })
    }

    /// One that a good batch of our agents gets only when something between them and us is broken.
    fn refuse(&self, agent: &str, Refusal { because, reason }: Refusal) -> append_response::Answer {
        let agent: String = agent.chars().take(NAME_CHARS).collect();
        tracing::warn!(agent, because = because.name(), reason, "an append was refused, to be sent again");
        self.retry(because, reason)
    }

    fn count(&self, answer: &append_response::Answer) {
        use append_response::Answer;
        let counter = match answer {
            Answer::Durable(_) => &self.stats.durable,
            Answer::Busy(busy) => self.stats.busy.get(busy.reason as usize).unwrap_or(&self.stats.busy[0]),
            // Counted where its reason is known.
            Answer::Retry(_) => return,
            Answer::Wrong(wrong) => {
                tracing::warn!(detail = wrong.detail, "an append was refused as wrong");
                &self.stats.wrong
            }
            Answer::Unsupported(_) => &self.stats.unsupported,
        };
        counter.fetch_add(1, Ordering::Relaxed);
    }
}

/// What an answer says of the request's origin.
#[derive(Debug, Default)]
struct OfOrigin {
    committed: wire::IntervalSet,
    quarantined: Vec<wire::QuarantinedBatch>,
}

/// Without the batches of which the agent knows already. A set that makes no sense counts as none.
fn untold(mut batches: Vec<wire::QuarantinedBatch>, known: Option<&wire::IntervalSet>) -> Vec<wire::QuarantinedBatch> {
    if let Some(known) = known.and_then(|set| IntervalSet::try_from(set).ok()) {
        batches.retain(|batch| !known.contains(batch.seq));
    }
    batches
}

/// Counts an append while the channel has it.
struct InFlight<'a>(&'a AtomicU64);

impl<'a> InFlight<'a> {
    fn begin(counter: &'a AtomicU64) -> Self {
        counter.fetch_add(1, Ordering::SeqCst);
        Self(counter)
    }
}

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

/// The service.
#[derive(Debug, Clone)]
pub struct Ingest {
    node: Node,
    channel: ChannelHandle,
}

impl Ingest {
    /// Appends go to this channel.
    pub fn new(node: Node, channel: ChannelHandle) -> Self {
        Self { node, channel }
    }

    async fn append_checked(
        &self,
        agent: AgentName,
        header: Header,
        payload: Bytes,
        permit: Option<OwnedSemaphorePermit>,
    ) -> (append_response::Answer, OfOrigin) {
        let _in_flight = InFlight::begin(&self.node.stats.in_flight);
        // Looked at after it is counted, so that a drain that sees nothing in flight misses nothing.
        if self.node.is_draining() {
            return (draining(), OfOrigin::default());
        }
        let (reply, answered) = oneshot::channel();
        self.channel.append(AppendJob { agent, header, payload, permit, reply });
        match answered.await {
            Ok(answer) => {
                let told = match answer.appended {
                    Appended::Durable => append_response::Answer::Durable(wire::Durable {}),
                    Appended::Full => busy(BusyReason::ChannelFull, FULL_DELAY_MS, "the channel is full"),
                    Appended::Share => busy(
                        BusyReason::AgentShare,
                        SHARE_DELAY_MS,
                        "the channel is more than half full and more than a quarter of it is this agent's",
                    ),
                    Appended::Failed(reason) => self.node.retry(RetryReason::Storage, reason),
                };
                (told, OfOrigin { committed: answer.committed, quarantined: answer.quarantined })
            }
            Err(_) => {
                let reason = "the channel has stopped".to_owned();
                (self.node.retry(RetryReason::Storage, reason), OfOrigin::default())
            }
        }
    }

    /// May this agent write where the batch goes?
    fn check_dataset(&self, agent: &AgentName, header: &Header) -> Result<(), append_response::Answer> {
        let Some(data) = header.data() else { return Ok(()) };
        let checked = self.node.declarations.borrow().check(&data.dataset, agent);
        checked.map_err(|reason| busy(BusyReason::Undeclared, UNDECLARED_DELAY_MS, &reason))
    }
}

#[tonic::async_trait]
impl ingest_server::Ingest for Ingest {
    async fn append(&self, mut request: Request<AppendRequest>) -> Result<Response<AppendResponse>, Status> {
        let permit = request.extensions_mut().get_mut::<PermitSlot>().and_then(|slot| slot.take());
        let named =
            request.metadata().get(proto::AGENT_HEADER).and_then(|value| value.to_str().ok()).map(str::to_owned);
        let AppendRequest { agent, header, payload, declarations_version, quarantined_known } = request.into_inner();
        let checked = check_identity(named.as_deref(), &agent).map_err(|refusal| self.node.refuse(&agent, refusal));
        let checked = checked
            .and_then(|name| Ok((name, check_batch(header, &payload)?)))
            .and_then(|(name, header)| {
                check_payload(&header, &payload).map_err(|refusal| self.node.refuse(&agent, refusal))?;
                Ok((name, header))
            })
            .and_then(|(agent, header)| self.check_dataset(&agent, &header).map(|()| (agent, header)));
        let (answer, mut origin) = match checked {
            Err(refused) => (refused, OfOrigin::default()),
            Ok((agent, header)) => self.append_checked(agent, header, payload, permit).await,
        };
        origin.quarantined = untold(origin.quarantined, quarantined_known.as_ref());
        Ok(Response::new(self.node.answer(answer, declarations_version, origin)))
    }

    async fn progress(
        &self,
        request: Request<wire::ProgressRequest>,
    ) -> Result<Response<wire::ProgressResponse>, Status> {
        let named =
            request.metadata().get(proto::AGENT_HEADER).and_then(|value| value.to_str().ok()).map(str::to_owned);
        let asked = request.into_inner();
        let status = self.node.status(asked.declarations_version);
        if asked.origin.is_empty() {
            return Ok(Response::new(wire::ProgressResponse { status: Some(status), ..Default::default() }));
        }
        let agent = match check_identity(named.as_deref(), &asked.agent) {
            Ok(agent) => agent,
            Err(_) => return Err(Status::permission_denied("an agent may only ask for its own origins")),
        };
        let origin = Origin::from_bytes(&asked.origin).map_err(|error| Status::invalid_argument(error.to_string()))?;
        let progress = self
            .channel
            .progress(agent, origin)
            .await
            .ok_or_else(|| Status::unavailable("the channel's storage has failed and is not open again yet"))?;
        Ok(Response::new(wire::ProgressResponse {
            status: Some(status),
            committed: Some(progress.committed),
            held: Some(progress.held),
            quarantined: untold(progress.quarantined, asked.quarantined_known.as_ref()),
        }))
    }
}

/// An append that may be right the next time.
#[derive(Debug)]
struct Refusal {
    because: RetryReason,
    reason: String,
}

/// The agent as the transport names it; the body has to say the same.
fn check_identity(named: Option<&str>, claimed: &str) -> Result<AgentName, Refusal> {
    let refusal = |reason| Refusal { because: RetryReason::Identity, reason };
    match named {
        Some(named) if named == claimed => AgentName::new(claimed).map_err(|error| refusal(error.to_string())),
        Some(named) => {
            let claimed: String = claimed.chars().take(NAME_CHARS).collect();
            Err(refusal(format!("the transport names agent {named:?}, the batch {claimed:?}")))
        }
        None => Err(refusal(format!("the request has no metadata {}", proto::AGENT_HEADER))),
    }
}

/// Within the limits, and with a header that can be decoded?
fn check_batch(header: Bytes, payload: &[u8]) -> Result<Header, append_response::Answer> {
    if header.len() > proto::MAX_HEADER_BYTES || payload.len() > proto::MAX_PAYLOAD_BYTES {
        let detail = format!(
            "header of {} and payload of {} bytes, the limits are {} and {}",
            header.len(),
            payload.len(),
            proto::MAX_HEADER_BYTES,
            proto::MAX_PAYLOAD_BYTES
        );
        return Err(wrong(WrongReason::TooLarge, detail));
    }
    let claims = claimed_bytes(&header);
    Header::decode(header).map_err(|error| match error {
        HeaderError::Unsupported { .. } => {
            append_response::Answer::Unsupported(wire::Unsupported { newest_format: proto::FORMAT })
        }
        error if claims > proto::MAX_PAYLOAD_BYTES as u64 => wrong(WrongReason::TooLarge, error.to_string()),
        error => wrong(WrongReason::Header, error.to_string()),
    })
}

/// The payload is what its header says?
fn check_payload(header: &Header, payload: &[u8]) -> Result<(), Refusal> {
    header.check_payload(payload).map_err(|error| {
        let because = match error {
            PayloadError::Length { .. } => RetryReason::Length,
            PayloadError::Crc { .. } => RetryReason::Crc,
        };
        Refusal { because, reason: error.to_string() }
    })
}

/// The largest size that a header claims, whatever else is wrong with it.
fn claimed_bytes(header: &Bytes) -> u64 {
    let decoded = <wire::BatchHeader as prost::Message>::decode(header.clone());
    match decoded.map(|header| header.kind) {
        Ok(Some(wire::batch_header::Kind::Data(data))) => data.payload_bytes.max(data.raw_bytes),
        _ => 0,
    }
}

fn wrong(reason: WrongReason, detail: String) -> append_response::Answer {
    append_response::Answer::Wrong(wire::Wrong { reason: reason as i32, detail })
}

fn busy(reason: BusyReason, delay_ms: u64, detail: &str) -> append_response::Answer {
    append_response::Answer::Busy(wire::Busy { reason: reason as i32, delay_ms, detail: detail.to_owned() })
}

fn draining() -> append_response::Answer {
    busy(BusyReason::Draining, DRAINING_DELAY_MS, "this aggregator is going away")
}

fn no_permit() -> append_response::Answer {
    busy(BusyReason::NoPermit, NO_PERMIT_DELAY_MS, "no memory is free for the request")
}
