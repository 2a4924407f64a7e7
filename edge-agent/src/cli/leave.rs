//! `leave`: this agent does not come back. A running agent is asked over its admin endpoint to read to the end, send
//! everything, say *left* and end; where none runs, this process does all that itself, under the lock of the state
//! directory.

use std::io::Write;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Result, bail};
use serde_json::Value;

use super::admin_client::{AskError, ask};
use crate::config::AgentConfig;
use crate::outbox::index::Ended;
use crate::outbox::look::look;
use crate::outbox::state_dir::adopt::{is_locked, own_user};

/// Between two questions to an agent that is leaving, and after its end, before it is looked for once more.
const PATIENCE: Duration = Duration::from_millis(500);

/// What is to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// No agent runs: this process reads to the end and leaves.
    Here,
    /// The running agent was asked and is leaving.
    Asked,
}

/// Asks the agent of this configuration, if it runs.
pub fn ask_running(config: &AgentConfig) -> Result<Way> {
    let (name, listen) = (config.agent_name()?, config.admin_listen());
    match ask(listen, "GET", "/status") {
        Ok(status) if status["agent"] == name.as_str() => {
            ask(listen, "POST", "/leave")?;
            Ok(Way::Asked)
        }
        Ok(status) => bail!(
            "the agent that answers at {listen} is {}, not {name}: set `admin.listen` to the address of {name}",
            status["agent"]
        ),
        Err(AskError::Nobody { .. }) if !is_locked(&config.state_dir) => {
            own_user(&config.state_dir)?;
            Ok(Way::Here)
        }
        Err(AskError::Nobody { at, .. }) => bail!(
            "an agent runs on {}, but nobody answers at {at}: set `admin.listen` to its address, or stop it first",
            config.state_dir.display()
        ),
        Err(error) => Err(error.into()),
    }
}

/// Waits until the agent that was asked has ended, and tells how. One that a service manager starts again at once has not
/// left for long.
pub fn wait(config: &AgentConfig, out: &mut dyn Write) -> Result<ExitCode> {
    let (name, listen) = (config.agent_name()?, config.admin_listen());
    let (mut told, mut asked) = (String::new(), None);
    while let Some(status) = status_of(listen, name.as_str()) {
        let origin = status["origin"].as_str().map(str::to_owned);
        if asked.is_some() && origin != asked {
            bail!(
                "{name} was started again after it was asked to leave, so days wait for it again: stop its unit (or set \
                 Restart=on-failure), then say `leave` once more"
            );
        }
        asked = asked.or(origin);
        let now = progress(&status);
        if now != told {
            writeln!(out, "{now}")?;
            told = now;
        }
        std::thread::sleep(PATIENCE);
    }
    let look = look(&config.state_dir.join("outbox"), false)?;
    let (kept, _) = look.index.kept();
    match look.index.rows().last() {
        Some(row) if row.ended == Ended::Left && kept == 0 => {
            writeln!(out, "{name} has left: origin {} is closed with left, everything is acked", row.origin)?;
            Ok(ExitCode::SUCCESS)
        }
        Some(row) if row.ended == Ended::Left => {
            writeln!(
                out,
                "{name} has left: origin {} is closed with left, but {kept} batches are not acked yet; keep the state \
                 directory and say `leave` again, else days wait for those batches",
                row.origin
            )?;
            Ok(ExitCode::FAILURE)
        }
        _ => {
            writeln!(out, "{name} has ended without left: its log says why; say `leave` again")?;
            Ok(ExitCode::FAILURE)
        }
    }
}

/// None: it has ended, and nobody has started it again within a moment.
fn status_of(listen: SocketAddr, name: &str) -> Option<Value> {
    let its_own = |status: Value| (status["agent"] == name).then_some(status);
    ask(listen, "GET", "/status").ok().and_then(its_own).or_else(|| {
        std::thread::sleep(PATIENCE);
        ask(listen, "GET", "/status").ok().and_then(its_own)
    })
}

fn progress(status: &Value) -> String {
    let number = |key: &str| status[key].as_u64().unwrap_or(0);
    format!(
        "{}: {} bytes unread, {} batches unacked",
        status["leaving"].as_str().unwrap_or("leaving"),
        number("unread_bytes"),
        number("unacked_batches")
    )
}
