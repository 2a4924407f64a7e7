//! What a run says and does when its state directory turns out to be restored or copied. The rules are in
//! [`crate::run::watch`].

use proto::ids::Origin;

use super::owner::{Owner, OwnerError};
use crate::run::watch::Noticed;

impl Owner {
    /// The open of this run will say *restored*: known at the start.
    pub(super) fn say_restored(&mut self, newest: Option<Origin>) {
        let Some(named) = newest else {
            tracing::error!("the outbox of this state directory is gone: this run begins anew");
            let text = "the outbox of this state directory was removed, its identity was not: this run begins anew, its \
                        marks count; what the runs before it had not sent is gone, and days wait for them until their \
                        origins are abandoned (`collector seal status` names them, `collector seal abandon`)";
            self.gauges.say("restored_or_copied", Some(text.to_owned()));
            return;
        };
        let text = format!(
            "at its start this state directory was found to be restored or copied: no mark of this agent counts before \
             origin {named} is abandoned (`collector seal abandon`), also if the directory was only moved: \
             `catchment-edge-agent outbox adopt` has to be said before the first start in the new place. If the original still \
             runs, stop this copy and abandon the origin of this run instead"
        );
        tracing::error!(previous = %named, "this state directory was restored or copied: the open says so");
        self.say_copied(text);
    }

    /// An aggregator knows an origin up to `end`.
    pub(super) fn known(&mut self, origin: Origin, end: u64) -> Result<(), OwnerError> {
        let own = self.origin();
        let next = self.outbox.index().row(own).map_or(0, |row| row.next);
        let Some(watch) = &mut self.watch else { return Ok(()) };
        match watch.seen(origin, end, next) {
            Noticed::Nothing => Ok(()),
            Noticed::Copied(origin) => {
                tracing::error!(
                    origin = %origin, end,
                    "aggregators know more of an earlier origin than this outbox: the state directory was restored or copied"
                );
                if let Some(run) = &mut self.run {
                    run.stop_marks();
                }
                self.say_copied(format!(
                    "aggregators hold seqs up to {end} of origin {origin} that this outbox never had: the state directory \
                     was copied from an agent that went on, or restored from a backup; this run makes no more marks. If \
                     the original still runs, stop this copy and abandon ITS origin {own}; else abandon {origin} and \
                     start this agent again (`collector seal abandon`)"
                ));
                Ok(())
            }
            Noticed::Twin => {
                tracing::error!(origin = %origin, end, "another process sends under this run's origin, ending");
                Err(OwnerError::Twin { origin })
            }
        }
    }

    fn say_copied(&mut self, text: String) {
        self.gauges.say("restored_or_copied", Some(text));
        self.gauges.restored_or_copied.set(1);
    }
}
