//! The admin endpoint: health, readiness, metrics, and what a tier adds. It runs on a thread and runtime of its own, so
//! that it answers while the data path is stuck. Loopback unless the configuration says otherwise; it has no secrets
//! and no event contents, and whatever changes anything (drain) is for the same host.

use std::fmt::Write;
use std::future::Future;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};

use axum::Router;
use axum::http::{StatusCode, header};
use axum::routing::get;
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use crate::telemetry::Telemetry;

/// The `[admin]` table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AdminConfig {
    /// Where to listen; port 0 takes a free one.
    pub listen: SocketAddr,
}

impl AdminConfig {
    /// Loopback with this port.
    pub const fn loopback(port: u16) -> Self {
        Self { listen: SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), port) }
    }
}

/// What the process says about itself. Cheap to clone; begins not ready, with the reason `starting`.
#[derive(Debug, Clone)]
pub struct Health {
    state: Arc<Mutex<State>>,
}

#[derive(Debug)]
struct State {
    /// Parts that are not ready, each with its reason. Ready when empty.
    waiting: Vec<(String, String)>,
    failed: Option<String>,
}

/// The part that [`Health::set_ready`] speaks for.
const PROCESS: &str = "process";

impl Default for Health {
    fn default() -> Self {
        let state = State { waiting: vec![(PROCESS.to_owned(), "starting".to_owned())], failed: None };
        Self { state: Arc::new(Mutex::new(state)) }
    }
}

impl Health {
    /// Not ready yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Is the process as a whole ready? If not, `reason` says why and what to do.
    pub fn set_ready(&self, ready: bool, reason: impl Into<String>) {
        self.set_part(PROCESS, ready, reason);
    }

    /// The same for one part; the process is ready when every part is.
    pub fn set_part(&self, part: &str, ready: bool, reason: impl Into<String>) {
        let mut state = self.lock();
        state.waiting.retain(|(name, _)| name != part);
        if !ready {
            state.waiting.push((part.to_owned(), reason.into()));
        }
    }

    /// The process cannot work any more and wants to be started again; the first reason stays.
    pub fn fail(&self, reason: impl Into<String>) {
        self.lock().failed.get_or_insert(reason.into());
    }

    /// Ready to take work?
    pub fn is_ready(&self) -> bool {
        let state = self.lock();
        state.failed.is_none() && state.waiting.is_empty()
    }

    /// Why it failed, if it did.
    pub fn failure(&self) -> Option<String> {
        self.lock().failed.clone()
    }

    fn live(&self) -> (StatusCode, String) {
        match self.failure() {
            None => (StatusCode::OK, "ok\n".to_owned()),
            Some(reason) => (StatusCode::SERVICE_UNAVAILABLE, format!("failed: {reason}\n")),
        }
    }

    fn ready(&self) -> (StatusCode, String) {
        let state = self.lock();
        let mut text = String::new();
        if let Some(reason) = &state.failed {
            let _ = writeln!(text, "failed: {reason}");
        }
        for (part, reason) in &state.waiting {
            let _ = writeln!(text, "{part}: {reason}");
        }
        match text.is_empty() {
            true => (StatusCode::OK, "ready\n".to_owned()),
            false => (StatusCode::SERVICE_UNAVAILABLE, text),
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Why there is no admin endpoint.
#[derive(Debug, thiserror::Error)]
pub enum AdminError {
    /// The address is taken, or not of this host.
    #[error("the admin endpoint cannot listen on {listen}: {reason}; set another `admin.listen`")]
    Bind {
        /// As configured.
        listen: SocketAddr,
        /// The system's reason.
        reason: std::io::Error,
    },
    /// It ran and stopped.
    #[error("the admin endpoint stopped: {0}")]
    Stopped(String),
}

/// Binds, and begins to answer `/healthz` (alive), `/readyz` (ready), `/metrics` and `extra`. Gives the address bound,
/// and a future that ends only if the endpoint does; dropping it ends the endpoint.
pub fn serve(
    listen: SocketAddr,
    telemetry: Telemetry,
    health: Health,
    extra: Router,
) -> Result<(SocketAddr, impl Future<Output = Result<(), AdminError>> + Send + 'static), AdminError> {
    let failed = |reason| AdminError::Bind { listen, reason };
    let listener = std::net::TcpListener::bind(listen).map_err(failed)?;
    listener.set_nonblocking(true).map_err(failed)?;
    let bound = listener.local_addr().map_err(failed)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(failed)?;
    let routes = routes(telemetry, health).merge(extra);
    let stop = CancellationToken::new();
    let (ended, has_ended) = oneshot::channel();
    let stopping = stop.clone();
    let run = move || {
        let result = runtime.block_on(async {
            let listener = tokio::net::TcpListener::from_std(listener)?;
            tokio::select! {
                result = axum::serve(listener, routes) => result,
                () = stopping.cancelled() => Ok(()),
            }
        });
        // Nobody listens any more when the future was dropped.
        let _ = ended.send(result);
    };
    std::thread::Builder::new().name("admin".into()).spawn(run).map_err(failed)?;
    let guard = stop.drop_guard();
    let finished = async move {
        let _guard = guard;
        match has_ended.await {
            Ok(Ok(())) => Err(AdminError::Stopped("it was asked to".to_owned())),
            Ok(Err(error)) => Err(AdminError::Stopped(error.to_string())),
            Err(_) => Err(AdminError::Stopped("its thread panicked".to_owned())),
        }
    };
    Ok((bound, finished))
}

fn routes(telemetry: Telemetry, health: Health) -> Router {
    let live = health.clone();
    Router::new()
        .route("/healthz", get(move || async move { live.live() }))
        .route("/readyz", get(move || async move { health.ready() }))
        .route(
            "/metrics",
            get(move || async move { ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], telemetry.render()) }),
        )
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::TcpStream;

    use super::*;

    fn fetch(at: SocketAddr, path: &str) -> String {
        let mut stream = TcpStream::connect(at).unwrap();
        write!(stream, "GET {path} HTTP/1.1\r\nhost: admin\r\nconnection: close\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }

    #[test]
    fn health_follows_the_process_and_needs_no_runtime_of_it() {
        // No runtime of ours turns here at all: the endpoint answers on its own thread.
        let telemetry = Telemetry::new("collector").unwrap();
        telemetry.meter().u64_counter("commits").build().add(1, &[]);
        let health = Health::new();
        let extra = Router::new().route("/status", get(|| async { "{}" }));
        let (at, running) = serve(AdminConfig::loopback(0).listen, telemetry, health.clone(), extra).unwrap();
        assert!(fetch(at, "/readyz").starts_with("HTTP/1.1 503") && fetch(at, "/readyz").contains("process: starting"));
        health.set_ready(true, "");
        assert!(fetch(at, "/readyz").starts_with("HTTP/1.1 200"));
        health.set_part("tail", false, "access.log cannot be opened");
        assert!(!health.is_ready() && fetch(at, "/readyz").contains("tail: access.log cannot be opened"));
        assert!(fetch(at, "/healthz").starts_with("HTTP/1.1 200"));
        health.set_part("tail", true, "");
        health.fail("disk error");
        health.fail("a later one");
        assert!(
            fetch(at, "/healthz").starts_with("HTTP/1.1 503") && fetch(at, "/healthz").contains("failed: disk error")
        );
        assert!(fetch(at, "/metrics").contains("catchment_commits_total 1"));
        assert!(fetch(at, "/status").ends_with("{}"));
        assert!(fetch(at, "/other").starts_with("HTTP/1.1 404"));
        let taken = serve(at, Telemetry::new("collector").unwrap(), health, Router::new());
        assert!(taken.err().unwrap().to_string().contains("admin.listen"));
        drop(running);
    }
}
