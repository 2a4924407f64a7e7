//! Lists the staging directories of all runs. Thin IO.

use std::collections::BTreeMap;

use futures::StreamExt;

use super::life::{Dir, Looked};
use super::seen;
use crate::log::layout;
use crate::store::{Store, StoreError};

/// Listings under way at once.
const PARALLEL: usize = 8;

/// Everything below `staging/` that says who lives; `own` is this run.
pub async fn look(store: &dyn Store, own: &str) -> Result<Looked, StoreError> {
    let now = || tokio::time::Instant::now().into_std();
    let begun = now();
    let entries = store.list(layout::STAGING).await?;
    let runs = entries.into_iter().filter(|entry| entry.is_dir).map(|entry| entry.name);
    let mut listings = futures::stream::iter(runs.map(|name| async move {
        let listed = store.list(&format!("{}/{name}", layout::STAGING)).await;
        (name, listed)
    }))
    .buffered(PARALLEL);
    let (mut dirs, mut names) = (BTreeMap::new(), Vec::new());
    while let Some((name, listed)) = listings.next().await {
        let dir = match listed {
            Ok(entries) => {
                let sign = seen::highest(entries.iter().map(|entry| entry.name.as_str()));
                if name == own {
                    names = entries.into_iter().map(|entry| entry.name).collect();
                }
                Dir::Shows(sign)
            }
            // Deleted since.
            Err(StoreError::NotFound { .. }) => continue,
            Err(error) => {
                tracing::info!(incarnation = name, %error, "staging directory cannot be listed now");
                Dir::Unknown
            }
        };
        dirs.insert(name, dir);
    }
    Ok(Looked { begun, ended: now(), dirs, own: names })
}
