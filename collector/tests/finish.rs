//! `catchment-collector log replay --finish` where no collector runs: a marker is written when all files that it counts
//! are in their places, and not before.

use std::cell::RefCell;
use std::path::Path;
use std::sync::Arc;

use clap::Parser;
use collector::cli::findings::Ended;
use collector::cli::{Cli, execute};
use collector::commit::solo::{Solo, System};
use collector::log::view::PartitionKey;
use collector::publish::DirModes;
use collector::seal::marker::Text;
use collector::store::{DestinationConfig, Store, open};
use proto::ids::{DatasetName, Partition};
use proto::wire;
use proto::wire::commit_record::Action;

/// 2026-11-18.
const DATE: i32 = 20_775;

fn key(date: i32) -> PartitionKey {
    PartitionKey { dataset: DatasetName::new("clicks").unwrap(), partition: Partition::new(date, None).unwrap() }
}

async fn run(store: &Arc<dyn Store>) -> Solo {
    Solo::begin(Arc::clone(store), "c", DirModes::default(), Box::new(System), |_| {}).await.unwrap()
}

/// A staged file of two events.
async fn staged(store: &dyn Store, run: &Solo, name: &str, key: &PartitionKey, late: bool) -> wire::PublishedFile {
    let staged = format!("{}/{name}", run.layout().staging());
    let mut file = store.create(&staged).await.unwrap();
    file.append("a\nb\n".into()).await.unwrap();
    file.close().await.unwrap();
    wire::PublishedFile {
        kind: wire::FileKind::Data as i32,
        staged,
        r#final: format!("{}/{name}", key.dir()),
        dataset: key.dataset.to_string(),
        partition: Some(key.partition.into()),
        bytes: 4,
        raw_bytes: 4,
        crc32c: crc32c::crc32c(b"a\nb\n"),
        events: 2,
        mode: 0o640,
        late_of: if late { key.dataset.to_string() } else { String::new() },
        ..Default::default()
    }
}

async fn publish(run: &mut Solo, files: Vec<wire::PublishedFile>) -> u64 {
    let publish = wire::Publish { files, covers: Vec::new() };
    run.commit(|_, _| Ok(Action::Publish(publish.clone()))).await.unwrap()
}

async fn seal(run: &mut Solo, keys: &[PartitionKey]) -> u64 {
    let one = |key: &PartitionKey| wire::PartitionSeal {
        dataset: key.dataset.to_string(),
        partition: Some(key.partition.into()),
        complete: true,
        events: 2,
        files: 1,
        bytes: 4,
        ..Default::default()
    };
    let seal = wire::Seal { partitions: keys.iter().map(one).collect() };
    run.commit(|_, _| Ok(Action::Seal(seal.clone()))).await.unwrap()
}

/// Exit code and standard output.
async fn finish(root: &Path) -> (u8, String) {
    let url = format!("file://{}", root.display());
    let line = ["catchment-collector", "log", "replay", "--finish", "--dest", &url];
    let out = RefCell::new(String::new());
    match execute(Cli::try_parse_from(line).unwrap(), |text| out.borrow_mut().push_str(text)).await {
        Ok(()) => (0, out.into_inner()),
        Err(error) => {
            let ended: Ended = error.downcast().unwrap();
            (ended.code, out.into_inner() + &ended.message)
        }
    }
}

async fn marker(store: &dyn Store, key: &PartitionKey) -> Option<Text> {
    let bytes = store.read(&format!("{}/_SUCCESS", key.dir()), 1 << 26).await.ok()?;
    Some(serde_json::from_slice(&bytes).unwrap())
}

#[tokio::test]
async fn a_marker_waits_for_a_file_that_cannot_be_brought() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&DestinationConfig::new(format!("file://{}", dir.path().display()))).unwrap();
    let (held, free) = (key(DATE), key(DATE + 1));
    let mut solo = run(&store).await;
    let files =
        vec![staged(&*store, &solo, "1.log", &held, false).await, staged(&*store, &solo, "2.log", &free, false).await];
    publish(&mut solo, files).await;
    seal(&mut solo, &[held.clone(), free.clone()]).await;
    let files =
        vec![staged(&*store, &solo, "3.log", &held, true).await, staged(&*store, &solo, "4.log", &free, true).await];
    let late = publish(&mut solo, files).await;
    drop(solo);

    // Something that is not ours stands under its final name.
    let taken = dir.path().join(held.dir()).join("3.log");
    std::fs::create_dir_all(taken.parent().unwrap()).unwrap();
    std::fs::write(&taken, "x").unwrap();
    let (code, said) = finish(dir.path()).await;
    assert_eq!(code, 1, "{said}");
    assert!(said.contains(&format!("LEFT: {}/3.log", held.dir())), "{said}");
    assert!(said.contains(&format!("LEFT: marker of {held}")), "{said}");
    assert_eq!(marker(&*store, &held).await, None, "{said}");
    assert_eq!(marker(&*store, &free).await.map(|text| (text.seal, text.events)), Some((late, 4)), "{said}");

    std::fs::remove_file(&taken).unwrap();
    let (code, said) = finish(dir.path()).await;
    assert_eq!(code, 0, "{said}");
    assert_eq!(std::fs::read(&taken).unwrap(), b"a\nb\n");
    assert_eq!(marker(&*store, &held).await.map(|text| (text.seal, text.events)), Some((late, 4)), "{said}");
}

#[tokio::test]
async fn a_long_marker_is_read_and_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&DestinationConfig::new(format!("file://{}", dir.path().display()))).unwrap();
    let day = key(DATE);
    let mut solo = run(&store).await;
    let files = vec![staged(&*store, &solo, "1.log", &day, false).await];
    publish(&mut solo, files).await;
    let sealed = seal(&mut solo, std::slice::from_ref(&day)).await;
    drop(solo);
    let (code, said) = finish(dir.path()).await;
    assert_eq!(code, 0, "{said}");
    let mut text = marker(&*store, &day).await.unwrap();
    assert_eq!(text.seal, sealed);

    // As a thousand silent agents make it; of a lower number.
    text.message = "x".repeat(2 << 20);
    text.seal -= 1;
    std::fs::write(dir.path().join(day.dir()).join("_SUCCESS"), serde_json::to_vec(&text).unwrap()).unwrap();
    let (code, said) = finish(dir.path()).await;
    assert_eq!((code, marker(&*store, &day).await.map(|text| text.seal)), (0, Some(sealed)), "{said}");
}
