//! Named tasks and the end of a process.
//!
//! A process runs its tasks until the first SIGTERM or SIGINT (or [`Shutdown::drain`]); then every task is *draining*:
//! it takes nothing new, finishes what it has, and returns. When the deadline is over, or a second signal comes, what
//! still runs is stopped *now*. A task that panics, fails or ends before anybody asked stops the whole process, and its
//! name is in the error: a process with a part missing looks alive and does nothing.

use std::collections::HashMap;
use std::future::Future;
use std::io;
use std::time::Duration;

use tokio::task::{Id, JoinError, JoinSet};
use tokio_util::sync::CancellationToken;

/// How long a task that is stopped may take to notice.
pub const GRACE: Duration = Duration::from_secs(5);

/// When to stop. Cheap to clone; every task holds one.
#[derive(Debug, Clone)]
pub struct Shutdown {
    draining: CancellationToken,
    now: CancellationToken,
    deadline: Duration,
}

impl Shutdown {
    /// Without signals: for tests, and for processes inside a process. `deadline`: longest drain.
    pub fn new(deadline: Duration) -> Self {
        Self { draining: CancellationToken::new(), now: CancellationToken::new(), deadline }
    }

    /// Listens for SIGTERM and SIGINT on a thread of its own, so that a busy runtime cannot delay the end. The first
    /// begins the drain; the second ends the process at once with exit code 128 + its number. So does, with code 1, a
    /// drain that is still there [`GRACE`] after its deadline, because a task blocks its thread.
    pub fn on_signals(deadline: Duration) -> io::Result<Self> {
        let shutdown = Self::new(deadline);
        let mine = shutdown.clone();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (mut terminate, mut interrupt) = {
            let _inside = runtime.enter();
            use tokio::signal::unix::{SignalKind, signal};
            (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?)
        };
        std::thread::Builder::new().name("signals".into()).spawn(move || {
            runtime.block_on(async {
                let mut next = async || {
                    tokio::select! {
                        _ = terminate.recv() => 15,
                        _ = interrupt.recv() => 2,
                    }
                };
                let signal = next().await;
                tracing::info!(signal, deadline_seconds = deadline.as_secs_f64(), "signal received, draining");
                mine.drain();
                let signal = tokio::select! {
                    signal = next() => signal,
                    () = tokio::time::sleep(deadline.saturating_add(GRACE)) => {
                        tracing::error!("a task blocks its thread past the deadline, ending at once");
                        std::process::exit(1);
                    }
                };
                tracing::warn!(signal, "second signal received, ending at once");
                std::process::exit(128 + signal);
            });
        })?;
        Ok(shutdown)
    }

    /// Begins the drain.
    pub fn drain(&self) {
        self.draining.cancel();
    }

    /// Ends the drain: whatever still runs is stopped.
    pub fn stop_now(&self) {
        self.draining.cancel();
        self.now.cancel();
    }

    /// Has the drain begun?
    pub fn is_draining(&self) -> bool {
        self.draining.is_cancelled()
    }

    /// Resolves when the drain begins. Cancel-safe.
    pub async fn draining(&self) {
        self.draining.cancelled().await;
    }

    /// Resolves when nothing may be waited for any longer: deadline over, or second signal. Cancel-safe.
    pub async fn now(&self) {
        self.now.cancelled().await;
    }

    /// Longest drain.
    pub fn deadline(&self) -> Duration {
        self.deadline
    }
}

/// Why a process ended other than by a finished drain.
#[derive(Debug, thiserror::Error)]
pub enum SuperviseError {
    /// A task panicked.
    #[error("task {name} panicked: {message}")]
    Panicked {
        /// Which.
        name: &'static str,
        /// What it said.
        message: String,
    },
    /// A task failed.
    #[error("task {name} failed: {reason}")]
    Failed {
        /// Which.
        name: &'static str,
        /// Its error with all causes.
        reason: String,
    },
    /// A task returned before the drain began.
    #[error("task {name} ended although the process was not draining")]
    EndedEarly {
        /// Which.
        name: &'static str,
    },
    /// The drain took too long.
    #[error("the drain was not finished within {deadline:?}; still running: {}; nothing is lost, the next start goes on from what is stored", names.join(", "))]
    Deadline {
        /// The limit.
        deadline: Duration,
        /// Tasks that had not returned.
        names: Vec<&'static str>,
    },
}

/// What a task returns.
pub type TaskResult = anyhow::Result<()>;

/// The tasks of a process. Dropping it aborts them.
#[derive(Debug)]
pub struct Tasks {
    shutdown: Shutdown,
    work: JoinSet<TaskResult>,
    services: JoinSet<TaskResult>,
    /// Of each running task: its name, and whether it is a service.
    names: HashMap<Id, (&'static str, bool)>,
}

impl Tasks {
    /// None yet.
    pub fn new(shutdown: Shutdown) -> Self {
        Self { shutdown, work: JoinSet::new(), services: JoinSet::new(), names: HashMap::new() }
    }

    /// What the tasks listen to.
    pub fn shutdown(&self) -> &Shutdown {
        &self.shutdown
    }

    /// A task that returns by itself once the process drains.
    pub fn spawn(&mut self, name: &'static str, task: impl Future<Output = TaskResult> + Send + 'static) {
        let id = self.work.spawn(task).id();
        self.names.insert(id, (name, false));
    }

    /// A task that is needed until all others have ended (admin endpoint, telemetry), and is stopped then.
    pub fn spawn_service(&mut self, name: &'static str, task: impl Future<Output = TaskResult> + Send + 'static) {
        let id = self.services.spawn(task).id();
        self.names.insert(id, (name, true));
    }

    /// Waits for the end of all tasks. The first failure begins the drain and is what is returned.
    pub async fn join(mut self) -> Result<(), SuperviseError> {
        let mut first = None;
        let shutdown = self.shutdown.clone();
        let deadline = async {
            shutdown.draining().await;
            tokio::select! {
                () = tokio::time::sleep(shutdown.deadline) => {}
                () = shutdown.now() => {}
            }
        };
        tokio::pin!(deadline);
        while !self.work.is_empty() {
            let ended = tokio::select! {
                Some(ended) = self.work.join_next_with_id() => Some(ended),
                Some(ended) = self.services.join_next_with_id() => Some(ended),
                () = &mut deadline => None,
            };
            let Some(ended) = ended else {
                self.shutdown.stop_now();
                let names = self.running();
                stop(&mut self.work).await;
                first.get_or_insert(SuperviseError::Deadline { deadline: self.shutdown.deadline, names });
                break;
            };
            if let Some(error) = self.judge(ended) {
                tracing::error!(error = %error, "a task ended the process");
                first.get_or_insert(error);
                self.shutdown.drain();
            }
        }
        self.shutdown.stop_now();
        stop(&mut self.services).await;
        first.map_or(Ok(()), Err)
    }

    fn judge(&mut self, ended: Result<(Id, TaskResult), JoinError>) -> Option<SuperviseError> {
        let id = ended.as_ref().map_or_else(JoinError::id, |(id, _)| *id);
        let (name, service) = self.names.remove(&id).unwrap_or(("unnamed", false));
        match ended {
            Ok((_, Ok(()))) if self.shutdown.is_draining() && !service => None,
            Ok((_, Ok(()))) => Some(SuperviseError::EndedEarly { name }),
            Ok((_, Err(error))) => Some(SuperviseError::Failed { name, reason: format!("{error:#}") }),
            Err(error) => match error.try_into_panic() {
                Ok(payload) => Some(SuperviseError::Panicked { name, message: panic_message(&*payload) }),
                Err(cancelled) => Some(SuperviseError::Failed { name, reason: cancelled.to_string() }),
            },
        }
    }

    /// Names of the work that has not ended, sorted.
    fn running(&self) -> Vec<&'static str> {
        let mut names: Vec<_> = self.names.values().filter(|(_, service)| !service).map(|(name, _)| *name).collect();
        names.sort_unstable();
        names
    }
}

/// Aborts what is left and waits for it, but not for a task that blocks its thread.
async fn stop(tasks: &mut JoinSet<TaskResult>) {
    let _ = tokio::time::timeout(GRACE, tasks.shutdown()).await;
}

fn panic_message(payload: &(dyn std::any::Any + Send)) -> String {
    let text = payload.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| payload.downcast_ref::<String>().cloned()).unwrap_or_else(|| "no message".to_owned())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    fn tasks() -> Tasks {
        Tasks::new(Shutdown::new(Duration::from_secs(30)))
    }

    #[tokio::test(start_paused = true)]
    async fn a_drain_waits_for_all_and_keeps_services_until_then() {
        let mut tasks = tasks();
        let shutdown = tasks.shutdown().clone();
        let service_alive = Arc::new(AtomicBool::new(true));
        struct OnDrop(Arc<AtomicBool>);
        impl Drop for OnDrop {
            fn drop(&mut self) {
                self.0.store(false, Ordering::SeqCst);
            }
        }
        let guard = OnDrop(service_alive.clone());
        tasks.spawn_service("admin", async move {
            let _guard = guard;
            std::future::pending().await
        });
        let (seen, mine) = (service_alive.clone(), shutdown.clone());
        tasks.spawn("worker", async move {
            mine.draining().await;
            tokio::time::sleep(Duration::from_secs(29)).await;
            anyhow::ensure!(seen.load(Ordering::SeqCst), "the service ended first");
            Ok(())
        });
        tokio::spawn(async move { shutdown.drain() });
        tasks.join().await.unwrap();
        assert!(!service_alive.load(Ordering::SeqCst));
    }

    #[tokio::test(start_paused = true)]
    async fn what_does_not_end_in_time_is_named() {
        let mut tasks = tasks();
        tasks.spawn("stuck", std::future::pending());
        tasks.spawn_service("admin", std::future::pending());
        let mine = tasks.shutdown().clone();
        tasks.spawn("quick", async move {
            mine.draining().await;
            Ok(())
        });
        tasks.shutdown().drain();
        let error = tasks.join().await.unwrap_err();
        assert!(matches!(&error, SuperviseError::Deadline { names, .. } if names == &["stuck"]), "{error}");
    }

    #[tokio::test(start_paused = true)]
    async fn the_second_signal_does_not_wait() {
        let mut tasks = tasks();
        tasks.spawn("stuck", std::future::pending());
        tasks.shutdown().stop_now();
        let before = tokio::time::Instant::now();
        assert!(matches!(tasks.join().await, Err(SuperviseError::Deadline { .. })));
        assert_eq!(before.elapsed(), Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn a_task_that_stops_stops_the_process_with_its_name() {
        type Ending = fn() -> TaskResult;
        let endings: [(Ending, &str); 3] = [
            (|| panic!("broken {}", 7), "task tail panicked: broken 7"),
            (|| Err(anyhow::anyhow!("disk").context("append")), "task tail failed: append: disk"),
            (|| Ok(()), "task tail ended although the process was not draining"),
        ];
        for (ending, expected) in endings {
            for as_service in [false, true] {
                let mut tasks = tasks();
                let mine = tasks.shutdown().clone();
                tasks.spawn("other", async move {
                    mine.draining().await;
                    Ok(())
                });
                match as_service {
                    true => tasks.spawn_service("tail", async move { ending() }),
                    false => tasks.spawn("tail", async move { ending() }),
                }
                assert_eq!(tasks.join().await.unwrap_err().to_string(), expected);
            }
        }
    }
}
