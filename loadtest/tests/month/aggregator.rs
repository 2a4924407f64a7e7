//! An aggregator in memory, behind the real messages of `Ingest`: it stores what it is sent, answers like one, and fails
//! now and then. What arrived is handed on to [`crate::world`], which delivers it to the collectors.
//!
//! It holds agents to their side of the protocol: the same bytes under the same identity (I2), and nothing beside an open
//! that goes alone.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::convert::Infallible;
use std::sync::{Arc, Mutex, MutexGuard};

use bytes::Bytes;
use edge_agent::ship::client::{Channel, Dial};
use proto::header::{Header, Kind};
use proto::ids::{AgentName, BatchId, Origin};
use proto::intervals::IntervalSet;
use proto::wire;
use proto::wire::append_response::Answer;
use proto::wire::ingest_server::{Ingest, IngestServer};
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use tonic::{Request, Response, Status};
use tower::util::MapErr;

use crate::part::MINUTE;
use crate::world::Clock;

/// How long a run waits for the commit of an open that goes alone.
const GATE: i64 = MINUTE;

/// One batch as it arrived.
#[derive(Debug, Clone)]
pub struct Batch {
    pub id: BatchId,
    pub header: Header,
    pub payload: Bytes,
}

/// What an open said.
#[derive(Debug, Clone)]
pub struct Open {
    pub origin: Origin,
    pub previous: Option<(Origin, u64)>,
    pub restored_from: Option<Origin>,
    pub restored: bool,
    pub after_left: bool,
}

impl Open {
    pub fn of(origin: Origin, open: &wire::Open) -> Self {
        Self {
            origin,
            previous: open.previous.as_ref().map(|named| (Origin::from_bytes(&named.origin).unwrap(), named.end)),
            restored_from: Origin::from_bytes(&open.restored_from).ok(),
            restored: open.restored,
            after_left: open.after_left,
        }
    }

    fn goes_alone(&self) -> bool {
        self.previous.is_none() || self.after_left || self.restored
    }
}

/// What is remembered of an origin.
#[derive(Debug, Clone, Default)]
struct Known {
    committed: IntervalSet,
    held: BTreeSet<u64>,
    /// CRC of header and payload, by seq.
    sums: BTreeMap<u64, u32>,
    /// Its open goes alone, and nothing else of it was sent yet.
    alone: bool,
}

/// Everything that it remembers; it grows with the month and is no part of what is measured.
#[derive(Debug, Clone, Default)]
pub struct Memory {
    origins: HashMap<(String, Origin), Known>,
    /// By agent, in the order of arrival.
    pub opens: BTreeMap<String, Vec<Open>>,
    /// Gates that a commit opened, and that time opened.
    pub gates: (u64, u64),
    /// Requests that were made to fail, and appends of what was here already.
    pub failed: u64,
    pub repeated: u64,
}

struct State {
    clock: Clock,
    declarations: Vec<wire::DatasetDeclaration>,
    version: u64,
    roll_age_ms: u64,
    rng: SmallRng,
    arrived: Vec<Batch>,
    /// What an agent did that it must not do: said in the test's own task.
    broken: Option<String>,
    memory: Memory,
}

#[derive(Clone)]
pub struct Aggregator(Arc<Mutex<State>>);

impl Aggregator {
    pub fn new(clock: Clock, config: &collector::config::Config, seed: u64) -> Self {
        Self(Arc::new(Mutex::new(State {
            clock,
            declarations: config.datasets.iter().map(|dataset| dataset.declaration()).collect(),
            version: config.declarations_version(),
            roll_age_ms: 20 * MINUTE as u64,
            rng: SmallRng::seed_from_u64(seed),
            arrived: Vec::new(),
            broken: None,
            memory: Memory::default(),
        })))
    }

    /// How agents reach it.
    pub fn dial(&self) -> Dial {
        let server = IngestServer::new(self.clone());
        Arc::new(move |_| Ok(Channel::new(MapErr::new(server.clone(), |never: Infallible| match never {}))))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }

    /// What arrived since.
    pub fn take(&self) -> Vec<Batch> {
        let broken = self.state().broken.take();
        assert!(broken.is_none(), "{}", broken.unwrap_or_default());
        std::mem::take(&mut self.state().arrived)
    }

    /// A collector has answered *committed*.
    pub fn committed(&self, id: &BatchId) {
        let mut state = self.state();
        let known = state.memory.origins.get_mut(&(id.agent.to_string(), id.origin)).unwrap();
        known.committed.insert(id.seq);
        known.held.remove(&id.seq);
    }

    pub fn memory(&self) -> Memory {
        self.state().memory.clone()
    }

    /// Puts a copy in the place of what is remembered; what was there is dropped.
    pub fn replace_memory(&self, memory: Memory) {
        self.state().memory = memory;
    }
}

impl State {
    fn status(&self, version: u64) -> Option<wire::NodeStatus> {
        Some(wire::NodeStatus {
            node: "aggregator".into(),
            time_unix_ms: self.clock.now(),
            roll_age_ms: self.roll_age_ms,
            declarations_version: self.version,
            declarations: if version == self.version { Vec::new() } else { self.declarations.clone() },
        })
    }

    fn append(&mut self, request: &wire::AppendRequest) -> Result<(), String> {
        let header = Header::decode(request.header.clone()).map_err(|error| error.to_string())?;
        let (origin, seq) = (header.origin, header.seq);
        header.check_payload(&request.payload).map_err(|error| error.to_string())?;
        let sum = crc32c::crc32c_append(crc32c::crc32c(&header.bytes), &request.payload);
        let now = self.clock.now();
        let known = self.memory.origins.entry((request.agent.clone(), origin)).or_default();
        if let Some(before) = known.sums.insert(seq, sum) {
            self.memory.repeated += 1;
            let same = (before == sum).then_some(());
            return same.ok_or_else(|| format!("I2: {} {origin} {seq} are other bytes than before", request.agent));
        }
        match &header.kind {
            Kind::Open(open) => {
                let open = Open::of(origin, open);
                known.alone = open.goes_alone();
                self.memory.opens.entry(request.agent.clone()).or_default().push(open);
            }
            _ => {
                if std::mem::take(&mut known.alone) {
                    let (open_is_in, waited) = (known.committed.contains(0), now - origin.unix_ms() as i64);
                    if !open_is_in && waited < GATE {
                        return Err(format!("{} sends {seq} beside its open", request.agent));
                    }
                    let (by_commit, by_time) = &mut self.memory.gates;
                    *(if open_is_in { by_commit } else { by_time }) += 1;
                }
            }
        }
        known.held.insert(seq);
        let id = BatchId { agent: AgentName::new(&request.agent).unwrap(), origin, seq };
        self.arrived.push(Batch { id, header, payload: request.payload.clone() });
        Ok(())
    }
}

#[tonic::async_trait]
impl Ingest for Aggregator {
    async fn append(&self, request: Request<wire::AppendRequest>) -> Result<Response<wire::AppendResponse>, Status> {
        let request = request.into_inner();
        let mut state = self.state();
        let status = state.status(request.declarations_version);
        let chance = state.rng.random_range(0..400);
        let answer = match chance {
            0 | 1 => {
                state.memory.failed += 1;
                return Err(Status::unavailable("nothing is stored"));
            }
            2 => Answer::Busy(wire::Busy { delay_ms: 3000, ..Default::default() }),
            3 => Answer::Retry(wire::Retry { reason: "elsewhere".into() }),
            _ => {
                if let Err(broken) = state.append(&request) {
                    state.broken.get_or_insert(broken);
                }
                Answer::Durable(wire::Durable {})
            }
        };
        if chance == 4 {
            state.memory.failed += 1;
            return Err(Status::unavailable("it is stored, and the answer is lost"));
        }
        let origin = Header::decode(request.header).map(|header| header.origin).unwrap_or(Origin([0; 16]));
        let known = state.memory.origins.get(&(request.agent, origin));
        let committed = known.map(|known| (&known.committed).into());
        Ok(Response::new(wire::AppendResponse { answer: Some(answer), status, committed, quarantined: Vec::new() }))
    }

    async fn progress(
        &self,
        request: Request<wire::ProgressRequest>,
    ) -> Result<Response<wire::ProgressResponse>, Status> {
        let request = request.into_inner();
        let mut state = self.state();
        if state.rng.random_range(0..200) == 0 {
            return Err(Status::unavailable("no answer"));
        }
        let status = state.status(request.declarations_version);
        let origin = Origin::from_bytes(&request.origin).ok();
        let known = origin.and_then(|origin| state.memory.origins.get(&(request.agent, origin)));
        Ok(Response::new(wire::ProgressResponse {
            status,
            committed: known.map(|known| (&known.committed).into()),
            held: known.map(|known| (&known.held.iter().copied().collect::<IntervalSet>()).into()),
            quarantined: Vec::new(),
        }))
    }
}
