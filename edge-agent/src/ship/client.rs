//! Requests to one aggregator: a lazily connected channel under tower layers. How a channel is made is passed in.
//!
//! Invariant: a request ends. It is answered, or it fails within the time-out; what became of it at the other side is
//! not known then, and it is sent again under the same identity.

use std::sync::Arc;
use std::time::{Duration, Instant};

use proto::ids::{AgentName, Origin};
use proto::intervals::IntervalSet;
use proto::wire::append_response::Answer;
use proto::wire::ingest_client::IngestClient;
use proto::wire::{
    AppendRequest, AppendResponse, IntervalSet as IntervalSetMessage, ProgressRequest, ProgressResponse,
};
use proto::{AGENT_HEADER, MAX_MESSAGE_BYTES, PAYLOAD_BYTES_HEADER};
use tonic::body::Body;
use tonic::metadata::{MetadataMap, MetadataValue};
use tonic::transport::Endpoint;
use tower::timeout::Timeout;
use tower::util::BoxCloneSyncService;
use tower::{ServiceBuilder, ServiceExt};

use super::balance::{Node, Outcome};
use crate::outbox::read::{BatchReadError, BatchReader};
use crate::ship::queue::Take;
use crate::ship::wrong::is_sound;

/// What carries requests to one aggregator.
pub type Channel = BoxCloneSyncService<http::Request<Body>, http::Response<Body>, tonic::Status>;

/// Makes the channel to an aggregator; nothing is sent by that. The error says why its address cannot be one.
pub type Dial = Arc<dyn Fn(&Node) -> Result<Channel, String> + Send + Sync>;

/// Channels over TCP: connected when first used, and again whenever the connection was lost.
pub fn network(timeout: Duration) -> Dial {
    Arc::new(move |node| {
        let endpoint = Endpoint::from_shared(format!("http://{node}"))
            .map_err(|error| format!("aggregator address {node:?} is not HOST:PORT ({error})"))?
            .connect_timeout(timeout.min(Duration::from_secs(5)))
            .http2_keep_alive_interval(Duration::from_secs(10))
            .keep_alive_timeout(Duration::from_secs(10))
            .tcp_keepalive(Some(Duration::from_secs(30)));
        Ok(Channel::new(endpoint.connect_lazy().map_err(|error| tonic::Status::from_error(error.into()))))
    })
}

/// The time, by the clock that this task's timers go by.
pub(super) fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

/// One aggregator; cheap to clone.
#[derive(Debug, Clone)]
pub struct Client {
    node: Node,
    agent: AgentName,
    ingest: IngestClient<Timeout<Channel>>,
}

/// What came of one batch.
#[derive(Debug)]
pub struct Sent {
    /// The batch.
    pub take: Take,
    /// To whom it went.
    pub node: Node,
    /// When it was sent.
    pub started: Instant,
    /// The bytes that were sent are a batch by their own header; looked at only where the answer is *wrong* or *retry*.
    pub sound: bool,
    /// What came of it.
    pub result: Result<AppendResponse, SendError>,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum SendError {
    /// The stored batch could not be read: nothing was sent.
    #[error(transparent)]
    Read(#[from] BatchReadError),
    /// Transport or time-out.
    #[error("{0}")]
    Transport(String),
}

/// What came of a question.
#[derive(Debug)]
pub struct Asked {
    /// Who was asked.
    pub node: Node,
    /// About which origin; none: status only.
    pub origin: Option<Origin>,
    /// When.
    pub started: Instant,
    /// The answer.
    pub result: Result<ProgressResponse, String>,
}

impl Asked {
    /// For the balance.
    pub fn outcome(&self, now: Instant) -> Outcome {
        match &self.result {
            Ok(_) => Outcome::Answered(now - self.started),
            Err(_) => Outcome::Failed,
        }
    }
}

impl Client {
    /// Requests over `channel`, each within `timeout`.
    pub fn new(node: &Node, agent: &AgentName, channel: Channel, timeout: Duration) -> Self {
        let service = ServiceBuilder::new().timeout(timeout).service(channel);
        let ingest = IngestClient::new(service).max_decoding_message_size(MAX_MESSAGE_BYTES);
        Self { node: node.clone(), agent: agent.clone(), ingest }
    }

    /// Reads one batch from the outbox and sends it, with the seqs of its origin that are known to be quarantined.
    pub async fn send(
        mut self,
        take: Take,
        reader: BatchReader,
        declarations_version: u64,
        quarantined_known: Option<IntervalSetMessage>,
    ) -> Sent {
        let (place, node) = (take.stored.place, self.node.clone());
        let read = tokio::task::spawn_blocking(move || reader.read(place)).await;
        let started = now();
        let mut sound = true;
        let result = match read {
            Ok(Ok(batch)) => {
                let sent = batch.clone();
                let request = AppendRequest {
                    agent: self.agent.to_string(),
                    header: batch.header,
                    payload: batch.payload,
                    declarations_version,
                    quarantined_known,
                };
                let result = self.append(request).await;
                // An aggregator to which a payload came that is not what its header says asks for it once more: only
                // a look at what was sent tells a bad transfer from a bad copy.
                if matches!(&result, Ok(AppendResponse { answer: Some(Answer::Wrong(_) | Answer::Retry(_)), .. })) {
                    sound = is_sound(&sent);
                }
                result
            }
            Ok(Err(error)) => Err(SendError::Read(error)),
            Err(error) => Err(SendError::Transport(format!("reading was given up: {error}"))),
        };
        Sent { take, node, started, sound, result }
    }

    async fn append(&mut self, message: AppendRequest) -> Result<AppendResponse, SendError> {
        let bytes = prost::Message::encoded_len(&message);
        let mut request = tonic::Request::new(message);
        self.name(request.metadata_mut());
        request.metadata_mut().insert(PAYLOAD_BYTES_HEADER, MetadataValue::from(bytes as u64));
        let answer = self.ingest.append(request).await;
        answer.map(tonic::Response::into_inner).map_err(|status| SendError::Transport(describe(&status)))
    }

    /// Asks for status, and for what is known of an origin beside the seqs already known to be quarantined.
    pub async fn ask(
        mut self,
        origin: Option<Origin>,
        declarations_version: u64,
        quarantined_known: Option<IntervalSetMessage>,
    ) -> Asked {
        let started = now();
        let mut request = tonic::Request::new(ProgressRequest {
            agent: self.agent.to_string(),
            origin: origin.map(Origin::to_bytes).unwrap_or_default(),
            declarations_version,
            quarantined_known,
        });
        self.name(request.metadata_mut());
        let answer = self.ingest.progress(request).await;
        let result = answer.map(tonic::Response::into_inner).map_err(|status| describe(&status));
        Asked { node: self.node, origin, started, result }
    }

    fn name(&self, metadata: &mut MetadataMap) {
        if let Ok(value) = MetadataValue::try_from(self.agent.as_str()) {
            metadata.insert(AGENT_HEADER, value);
        }
    }
}

/// A status with the causes that tonic keeps apart from its message.
fn describe(status: &tonic::Status) -> String {
    let mut text = format!("{}: {}", status.code(), status.message());
    let mut cause = std::error::Error::source(status);
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

/// Intervals of an answer; malformed ones count as none.
pub fn intervals(set: Option<&proto::wire::IntervalSet>) -> IntervalSet {
    set.and_then(|set| IntervalSet::try_from(set).ok()).unwrap_or_default()
}
