//! The task of one group: commands in, one after the other, until it is abandoned or nobody holds its handle.
//!
//! Invariant: the first error of the store, or a panic of the encoder, poisons the group. From then on its files are not
//! touched any more, except to be deleted when it is abandoned. The batch that an encoder panicked over is refused, so
//! that it goes to quarantine and does not poison one group after the other.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use jiff::Timestamp;
use proto::wire::PublishedFile;
use tokio::sync::mpsc;

use super::memory::Held;
use super::names::{Which, published};
use super::outlet::{Outlet, Written};
use super::{AppendError, Appended, ClosedGroup, Command, GroupSpec, MemoryBudget, Poisoned, Shared};
use crate::format::{Counts, EncodeError, GroupEncoder, Output};
use crate::store::Store;

const PANICKED: &str = "its encoder panicked";

struct Group {
    spec: GroupSpec,
    store: Arc<dyn Store>,
    memory: MemoryBudget,
    shared: Arc<Shared>,
    held: Held,
    /// None while it works on a thread, and once the group is poisoned or closed.
    encoder: Option<Box<GroupEncoder>>,
    main: Outlet,
    dead: Outlet,
    /// Why nothing is taken any more.
    ended: Option<Poisoned>,
}

pub(super) async fn run(
    spec: GroupSpec,
    store: Arc<dyn Store>,
    memory: MemoryBudget,
    shared: Arc<Shared>,
    mut inbox: mpsc::UnboundedReceiver<Command>,
) {
    let mut group = Group::new(spec, store, memory, shared);
    while let Some(command) = inbox.recv().await {
        if group.shared.abandoned.load(Ordering::Acquire) {
            // What is left in the inbox is answered by being dropped.
            group.forget(&command);
            inbox.close();
            while let Some(command) = inbox.recv().await {
                group.forget(&command);
            }
            group.delete().await;
            return;
        }
        group.carry_out(command).await;
    }
}

impl Group {
    fn new(spec: GroupSpec, store: Arc<dyn Store>, memory: MemoryBudget, shared: Arc<Shared>) -> Self {
        let main = Outlet::new(published(&spec, Which::Main).staged);
        let dead = Outlet::new(published(&spec, Which::Dead).staged);
        let (encoder, ended) = match GroupEncoder::new(spec.kind, &spec.dataset) {
            Ok(encoder) => (Some(Box::new(encoder)), None),
            Err(e) => (None, Some(Poisoned(e.to_string()))),
        };
        let held = Held::new(memory.clone());
        Self { spec, store, memory, shared, held, encoder, main, dead, ended }
    }

    async fn carry_out(&mut self, command: Command) {
        self.forget(&command);
        match command {
            Command::Append(batch, reply) => {
                let light = self.encoder.as_ref().is_some_and(|encoder| encoder.is_light(&batch));
                let now = Timestamp::now();
                reply.answer(self.append(light, move |encoder| encoder.append(&batch, now)).await);
            }
            Command::Quarantine(batch, reply) => {
                reply.answer(self.append(true, move |encoder| encoder.append_quarantined(&batch)).await);
            }
            Command::Close(reply) => reply.answer(self.close().await),
            Command::Abandon => {}
        }
        self.account();
    }

    /// A command has left the queue: its bytes are counted there no more.
    fn forget(&self, command: &Command) {
        let bytes = match command {
            Command::Append(batch, _) => batch.payload.len() + batch.header.bytes.len(),
            Command::Quarantine(batch, _) => batch.payload.len() + batch.header.len(),
            Command::Close(_) | Command::Abandon => 0,
        } as u64;
        self.shared.queued_bytes.fetch_sub(bytes, Ordering::Relaxed);
        self.memory.sub(bytes);
    }

    async fn append(
        &mut self,
        light: bool,
        work: impl FnOnce(&mut GroupEncoder) -> Result<Appended, EncodeError> + Send + 'static,
    ) -> Result<Appended, AppendError> {
        if let Some(ended) = &self.ended {
            return Err(ended.clone().into());
        }
        let appended = match self.encode(light, work).await {
            Some(Ok(appended)) => appended,
            Some(Err(EncodeError::Refused(reason))) => return Err(AppendError::Refused(reason)),
            Some(Err(EncodeError::Broken(reason))) => return Err(self.poison(reason).into()),
            None => {
                self.poison(PANICKED.into());
                return Err(AppendError::Refused("the encoder of its group panicked over it".into()));
            }
        };
        self.account();
        let store = self.store.clone();
        let mut advanced = self.main.advance(&*store, &self.shared.given_up).await;
        if advanced.is_ok() {
            advanced = self.dead.advance(&*store, &self.shared.given_up).await;
        }
        match advanced {
            Ok(()) => Ok(appended),
            Err(e) => Err(self.poison(e.to_string()).into()),
        }
    }

    /// Runs `work` on the encoder, on a thread of its own unless it is light, and takes what comes out. None when it
    /// panicked: the encoder is gone then.
    async fn encode<T: Send + 'static>(
        &mut self,
        light: bool,
        work: impl FnOnce(&mut GroupEncoder) -> T + Send + 'static,
    ) -> Option<T> {
        let mut encoder = self.encoder.take()?;
        let work = move || {
            let result = work(&mut encoder);
            (result, encoder.take(), encoder)
        };
        let worked = if light {
            catch_unwind(AssertUnwindSafe(work)).ok()
        } else {
            let permit = self.memory.workers().acquire().await;
            let worked = tokio::task::spawn_blocking(work).await;
            drop(permit);
            worked.ok()
        };
        let (result, Output { data, dead }, encoder) = worked?;
        self.encoder = Some(encoder);
        self.main.push(data);
        self.dead.push(dead);
        Some(result)
    }

    async fn close(&mut self) -> Result<ClosedGroup, Poisoned> {
        if let Some(ended) = &self.ended {
            return Err(ended.clone());
        }
        match self.encode(false, GroupEncoder::finish).await {
            Some(Ok(())) => {}
            Some(Err(e)) => return Err(self.poison(e.to_string())),
            None => return Err(self.poison(PANICKED.into())),
        }
        let (data_counts, dead_counts) = self.encoder.as_ref().map(|encoder| encoder.counts()).unwrap_or_default();
        let store = self.store.clone();
        // The two are closed at once: a close may take half a second.
        let (main, dead) = tokio::join!(
            self.main.close(&*store, &self.shared.given_up),
            self.dead.close(&*store, &self.shared.given_up)
        );
        let (main, dead) = match (main, dead) {
            (Ok(main), Ok(dead)) => (main, dead),
            (Err(e), _) | (_, Err(e)) => return Err(self.poison(e.to_string())),
        };
        self.encoder = None;
        self.ended = Some(Poisoned("it is closed".into()));
        let main = main.map(|written| describe(&self.spec, Which::Main, &self.main, written, data_counts));
        let dead = dead.map(|written| describe(&self.spec, Which::Dead, &self.dead, written, dead_counts));
        Ok(ClosedGroup { files: main.into_iter().chain(dead).collect() })
    }

    fn poison(&mut self, reason: String) -> Poisoned {
        tracing::warn!(
            group = self.spec.number,
            dataset = self.spec.dataset.name,
            partition = %self.spec.partition,
            reason,
            "group poisoned"
        );
        let poisoned = Poisoned(reason);
        self.ended = Some(poisoned.clone());
        self.encoder = None;
        self.main.drop_all();
        self.dead.drop_all();
        self.account();
        poisoned
    }

    fn account(&mut self) {
        let encoder = self.encoder.as_ref().map_or(0, |encoder| encoder.memory_bytes());
        let held = self.main.waiting_bytes() + self.dead.waiting_bytes() + encoder;
        self.held.set(held);
        self.shared.held_bytes.store(held, Ordering::Relaxed);
        let written = self.main.written_bytes() + self.dead.written_bytes();
        self.shared.file_bytes.store(written, Ordering::Relaxed);
    }

    async fn delete(mut self) {
        self.main.drop_all();
        self.dead.drop_all();
        self.encoder = None;
        self.account();
        for path in [self.main.paths(), self.dead.paths()].concat() {
            if let Err(error) = self.store.delete(&path, false).await {
                tracing::warn!(path, %error, "staged file not deleted");
            }
        }
    }
}

fn describe(spec: &GroupSpec, which: Which, outlet: &Outlet, written: Written, counts: Counts) -> PublishedFile {
    let named = published(spec, which);
    PublishedFile {
        staged: outlet.paths().last().cloned().unwrap_or(named.staged),
        bytes: written.bytes,
        crc32c: written.crc32c,
        events: counts.events,
        raw_bytes: counts.raw_bytes,
        batches: counts.batches,
        ..named
    }
}

#[cfg(test)]
mod tests {
    use super::super::GroupKind;
    use super::*;
    use crate::config::dataset::DatasetConfig;
    use crate::store::{DestinationConfig, open};

    #[tokio::test]
    async fn a_batch_that_the_encoder_panics_over_is_refused_and_the_group_is_given_up() {
        for light in [true, false] {
            let dir = tempfile::tempdir().unwrap();
            let url = format!("file://{}", dir.path().display());
            let store = open(&DestinationConfig::new(url)).unwrap();
            let spec = GroupSpec {
                number: 1,
                incarnation: "col-1-run".into(),
                kind: GroupKind::Data,
                dataset: Arc::new(DatasetConfig::named("d")),
                partition: proto::ids::Partition::new(1, None).unwrap(),
                opened_day_utc: 1,
            };
            let mut group = Group::new(spec, store, MemoryBudget::new(1 << 20), Arc::default());
            let appended = group.append(light, |_| panic!("as the test says")).await;
            assert!(matches!(appended, Err(AppendError::Refused(_))), "{appended:?}");
            let next = group.append(light, |_| unreachable!("the group is dead")).await;
            assert!(matches!(next, Err(AppendError::Poisoned(_))), "{next:?}");
            assert!(group.close().await.is_err(), "it is never named by a draft");
        }
    }
}
