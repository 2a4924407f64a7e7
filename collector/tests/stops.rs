//! What ends a run: its directory is gone, a record retired it, a newer release was here, or the log is damaged. Each with
//! a clear sentence, and nothing changed.

use std::path::{Path, PathBuf};
use std::time::Duration;

use collector::config::Config;
use collector::run::Collector;
use common::supervise::Shutdown;
use proto::record::{encode_record, number_name};
use proto::wire;

const PATIENCE: Duration = Duration::from_secs(30);

fn config(root: &Path) -> Config {
    let text = format!(
        "name = \"col-1\"\nlisten = \"127.0.0.1:0\"\n[destination]\nurl = \"file://{}\"\n[admin]\nlisten = \"127.0.0.1:0\"\n\
         [housekeeping]\nheartbeat = \"1s\"\nretire_after = \"4s\"\n\
         [[datasets]]\nname = \"d\"\n",
        root.display()
    );
    common::config::parse(&text).unwrap()
}

/// Runs a collector until it stops by itself; its sentence.
async fn reason(root: &Path) -> String {
    let collector = Collector::start(config(root), Shutdown::new(Duration::from_secs(5))).await.unwrap();
    let end = tokio::time::timeout(PATIENCE, collector.join()).await.expect("it stops");
    format!("{:#}", end.expect_err("it does not end as if nothing were wrong"))
}

fn commits(root: &Path) -> PathBuf {
    let dir = root.join("_catchment/commits");
    std::fs::create_dir_all(&dir).unwrap();
    dir
}

#[tokio::test]
async fn a_newer_format_of_the_destination_stops_it() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir_all(dir.path().join("_catchment")).unwrap();
    std::fs::write(dir.path().join("_catchment/format"), "2\n").unwrap();
    let reason = reason(dir.path()).await;
    assert!(reason.contains("newer release") && reason.contains("_catchment/format"), "{reason}");
}

#[tokio::test]
async fn a_record_with_an_unknown_action_stops_it() {
    let dir = tempfile::tempdir().unwrap();
    let record = wire::CommitRecord { format: 1, commit_id: vec![1; 16].into(), ..Default::default() };
    std::fs::write(commits(dir.path()).join(number_name(0)), encode_record(&record)).unwrap();
    let reason = reason(dir.path()).await;
    assert!(reason.contains("newer release") && reason.contains("record 0"), "{reason}");
}

#[tokio::test]
async fn a_damaged_record_stops_it() {
    let dir = tempfile::tempdir().unwrap();
    let mut record = encode_record(&wire::CommitRecord { format: 1, ..Default::default() });
    *record.last_mut().unwrap() ^= 1;
    std::fs::write(commits(dir.path()).join(number_name(0)), record).unwrap();
    let reason = reason(dir.path()).await;
    assert!(reason.contains("commit log cannot be used"), "{reason}");
}

#[tokio::test]
async fn a_run_whose_directory_is_gone_is_retired() {
    let dir = tempfile::tempdir().unwrap();
    let shutdown = Shutdown::new(Duration::from_secs(5));
    let mut collector = Collector::start(config(dir.path()), shutdown).await.unwrap();
    collector.status.wait_for(|snapshot| !snapshot.incarnation.is_empty()).await.unwrap();
    std::fs::remove_dir_all(dir.path().join("_catchment/staging")).unwrap();
    let end = tokio::time::timeout(PATIENCE, collector.join()).await.expect("it stops").unwrap_err();
    let reason = format!("{end:#}");
    assert!(reason.contains("retired") && reason.contains("_catchment/staging/col-1-"), "{reason}");
    assert_eq!(std::fs::read_dir(commits(dir.path())).unwrap().count(), 0);
}

/// Nothing is staged in it, and its directory is where it was.
#[tokio::test]
async fn a_run_that_idles_reads_the_record_that_retires_it() {
    let dir = tempfile::tempdir().unwrap();
    let shutdown = Shutdown::new(Duration::from_secs(5));
    let mut collector = Collector::start(config(dir.path()), shutdown).await.unwrap();
    let begun = collector.status.wait_for(|snapshot| !snapshot.incarnation.is_empty()).await.unwrap();
    let incarnation = begun.incarnation.clone();
    drop(begun);
    let retire = wire::Retire { incarnation: incarnation.clone(), reason: "as the test says".into() };
    let record = wire::CommitRecord {
        format: 1,
        commit_id: vec![1; 16].into(),
        incarnation: "col-2-other".into(),
        action: Some(wire::commit_record::Action::Retire(retire)),
        ..Default::default()
    };
    std::fs::write(commits(dir.path()).join(number_name(0)), encode_record(&record)).unwrap();
    let end = tokio::time::timeout(PATIENCE, collector.join()).await.expect("it stops").unwrap_err();
    let reason = format!("{end:#}");
    assert!(reason.contains("this run is retired by record 0, written by col-2-other"), "{reason}");
    assert!(dir.path().join("_catchment/staging").join(incarnation).is_dir(), "it deletes nothing");
    assert_eq!(std::fs::read_dir(commits(dir.path())).unwrap().count(), 1);
}
