//! What compaction does about a store that fails and about files that are not what the log says.

use std::time::Duration;

use super::*;

fn path(name: &str) -> String {
    format!("{DIR}/{name}")
}

#[tokio::test]
async fn a_store_that_fails_at_any_call_leaves_everything_as_it_was() {
    for way in [Way::Refuse, Way::LoseAnswer] {
        for kind in ["log.zst", "new.parquet"] {
            let mut bed = Bed::new().await;
            for at in 0..3 {
                bed.add(at, kind, 20).await;
            }
            let before = bed.events().await;
            let mut failures = 0;
            for after in 0.. {
                let faulty = Faulty::new(bed.store.clone(), after, way);
                let store: Arc<dyn Store> = Arc::new(faulty);
                let ended = bed.run_on(&store, bed.plan().unwrap()).await;
                assert_eq!(bed.events().await, before, "{way:?} {after}");
                match ended {
                    Err(error @ CompactError::Store { .. }) => assert!(error.is_transient()),
                    Err(error) => panic!("{error}"),
                    Ok(compact) => {
                        abandon(&*store, &compact).await;
                        break;
                    }
                }
                assert_eq!(bed.staged().await, [""; 0], "{way:?} {after}");
                failures += 1;
            }
            // Three stats, three reads at least, create, append, close.
            assert!(failures >= 9, "{failures}");
            assert_eq!(bed.progress.snapshot().totals.given_up, failures);
            assert_eq!(bed.progress.snapshot().refused, []);
        }
    }
}

#[tokio::test]
async fn a_stop_ends_it_wherever_it_is() {
    let mut bed = Bed::new().await;
    for at in 0..2 {
        bed.add(at, "log.gz", 20).await;
    }
    let before = bed.events().await;
    for after in 0..5 {
        let stop = CancellationToken::new();
        let faulty = Faulty::new(bed.store.clone(), after, Way::Hang);
        let (left, store): (_, Arc<dyn Store>) = (faulty.left.clone(), Arc::new(faulty));
        let (plan, progress, token, limits) =
            (bed.plan().unwrap(), bed.progress.clone(), stop.clone(), bed.limits.clone());
        let numbers = move || after + 1000;
        let task = tokio::spawn(async move {
            run(&store, &Layout::new(RUN), plan, numbers, &Budget::alone(&limits), &progress, token).await
        });
        // Below zero: the call that hangs has come.
        while left.load(Ordering::SeqCst) <= after {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        assert_eq!(bed.progress.snapshot().running[0].partition, DIR);
        stop.cancel();
        assert!(matches!(task.await.unwrap(), Err(CompactError::Stopped { .. })));
        assert!(bed.progress.snapshot().running.is_empty());
        assert_eq!((bed.staged().await, bed.events().await), (vec![], before.clone()));
    }
}

#[tokio::test]
async fn a_file_that_its_users_removed_is_named_and_blocks_nothing() {
    for kind in ["log.gz", "old.parquet"] {
        let mut bed = Bed::new().await;
        for at in 0..4 {
            bed.add(at, kind, 9).await;
        }
        let gone = format!("web-col-01.{kind}");
        let plan = bed.plan().unwrap();
        bed.store.delete(&path(&gone), false).await.unwrap();
        let compact = bed.run_on(&bed.store, plan).await.unwrap();
        assert_eq!(compact.missing, [path(&gone)]);
        assert_eq!((compact.replaced.len(), compact.files.len(), compact.files[0].events), (3, 1, 27));
        assert!(!bed.progress.is_refused(&path(&gone)));
        bed.commit(&compact).await;
        bed.events().await;
    }
}

/// Erasure that meets a compaction: whenever it comes before the last look, what was erased is in no output.
#[tokio::test]
async fn what_users_delete_while_it_is_joined_does_not_come_back() {
    const GONE: &str = "clickstream/event_date=2024-10-04/web-col-01.log.gz";
    let run = async |after: u64| {
        let mut bed = Bed::new().await;
        for at in 0..4 {
            bed.add(at, "log.gz", 9).await;
        }
        let faulty = Faulty::new(bed.store.clone(), after, Way::Erase(GONE));
        let (left, store): (_, Arc<dyn Store>) = (faulty.left.clone(), Arc::new(faulty));
        let compact = bed.run_on(&store, bed.plan().unwrap()).await.unwrap();
        (after.wrapping_sub(left.load(Ordering::SeqCst)), compact, bed)
    };
    let (calls, whole, _) = run(u64::MAX / 2).await;
    assert_eq!((whole.replaced.len(), whole.missing.len()), (4, 0));
    // The last calls look at the four inputs, all at once: none of them is known to come before that of this one.
    for after in 0..calls - 4 {
        let (_, compact, mut bed) = run(after).await;
        assert_eq!(compact.missing, [GONE], "after call {after} of {calls}");
        assert!(!compact.replaced.contains(&GONE.to_owned()));
        assert!(compact.files.iter().all(|file| file.events == 27), "after call {after} of {calls}: {compact:?}");
        bed.commit(&compact).await;
        assert_eq!(bed.events().await.len(), 27);
        assert_eq!(bed.staged().await, [""; 0]);
    }
}

#[tokio::test]
async fn a_file_alone_with_missing_ones_stays_and_they_are_named() {
    let mut bed = Bed::new().await;
    for at in 0..3 {
        bed.add(at, "log.gz", 9).await;
    }
    for at in 0..2 {
        bed.store.delete(&path(&format!("web-col-0{at}.log.gz")), false).await.unwrap();
    }
    let compact = bed.run().await.unwrap();
    assert_eq!((compact.missing.len(), compact.replaced.len(), compact.files.len()), (2, 0, 0));
    bed.commit(&compact).await;
    assert_eq!(bed.events().await.len(), 9);
    assert_eq!(bed.staged().await, [""; 0]);
}

type Damage = (&'static str, &'static str, fn(&mut Vec<u8>));

#[tokio::test]
async fn a_file_that_differs_from_the_log_stays_as_it_is_and_is_named_once() {
    let flip: fn(&mut Vec<u8>) = |bytes| bytes[11] ^= 1;
    let cut: fn(&mut Vec<u8>) = |bytes| bytes.truncate(bytes.len() - 1);
    let end: fn(&mut Vec<u8>) = |bytes| {
        let at = bytes.len() - 2;
        bytes[at] ^= 1;
    };
    let cases: [Damage; 7] = [
        ("log.zst", "checksum", flip),
        ("log", "checksum", flip),
        ("log", "bytes", |bytes| bytes.push(b'\n')),
        ("log.gz", "bytes", cut),
        ("new.parquet", "", flip),
        ("new.parquet", "Parquet", end),
        ("old.parquet", "bytes", cut),
    ];
    for (kind, reason, damage) in cases {
        let mut bed = Bed::new().await;
        for at in 0..5 {
            bed.add(at, kind, 9).await;
        }
        let whole = bed.events().await;
        let bad = format!("web-col-02.{kind}");
        bed.damage(&bad, damage);
        let compact = bed.run().await.unwrap();
        assert_eq!((compact.replaced.len(), compact.files.len()), (4, 1), "{kind}");
        assert!(compact.missing.is_empty() && !compact.replaced.contains(&path(&bad)));
        let refused = bed.progress.snapshot().refused;
        assert_eq!(refused[0].file, path(&bad));
        assert!(refused[0].reason.contains(reason), "{kind}: {refused:?}");
        bed.commit(&compact).await;
        let entry = bed.open.files.remove(&bad).unwrap();
        let rest = bed.events().await;
        assert_eq!(rest.len(), 36);
        assert!(rest.iter().all(|(event, times)| whole.get(event) == Some(times)));
        assert_eq!(bed.staged().await, [""; 0]);
        // The next round meets it again, together with the new file, and leaves both.
        bed.open.files.insert(bad.clone(), entry);
        let next = bed.run().await.unwrap_err();
        assert!(matches!(next, CompactError::Nothing { .. }) && !next.is_transient(), "{next}");
        let known = |path: &str| bed.progress.is_refused(path);
        assert!(plan_except(&bed.dataset, &Bed::key(), &bed.open, &bed.limits, known).is_none());
    }
}

#[tokio::test]
async fn several_bad_files_of_one_output_cost_one_more_try() {
    let mut bed = Bed::new().await;
    for at in 0..6 {
        bed.add(at, "log.zst", 9).await;
    }
    for at in [1, 2, 4] {
        bed.damage(&format!("web-col-0{at}.log.zst"), |bytes| bytes[11] ^= 1);
    }
    let compact = bed.run().await.unwrap();
    assert_eq!((compact.replaced.len(), compact.files.len()), (3, 1));
    assert_eq!(bed.next.load(Ordering::SeqCst), 102, "two names were used");
    assert_eq!(bed.staged().await, ["101.log.zst"]);
}

#[tokio::test]
async fn rows_that_are_not_as_many_as_the_log_says_or_do_not_fit_are_left_out() {
    let mut bed = Bed::new().await;
    for at in 0..4 {
        bed.add(at, "new.parquet", 9).await;
    }
    bed.open.files.get_mut("web-col-03.new.parquet").unwrap().events = 10;
    let other = parquet_file(9, "$other [$time_local]", &["x [10/Oct/2024:13:55:36 +0000]".to_owned()]);
    bed.put("web-col-09.parquet", other, 1).await;
    let compact = bed.run().await.unwrap();
    assert_eq!(compact.replaced.len(), 3);
    let refused = bed.progress.snapshot().refused;
    let [rows, columns] = refused.as_slice() else { panic!("{refused:?}") };
    assert!(rows.reason.contains("9 rows") && columns.reason.contains("column other"), "{refused:?}");
}

#[tokio::test]
async fn it_waits_while_others_need_the_machine_and_can_be_stopped_then() {
    let mut bed = Bed::new().await;
    for at in 0..2 {
        bed.add(at, "log.gz", 20).await;
    }
    let (busy, watched) = watch::channel(true);
    let budget = Budget::new(&bed.limits, watched);
    let (stop, layout) = (CancellationToken::new(), Layout::new(RUN));
    let plan = bed.plan().unwrap();
    let mut running = Box::pin(run(&bed.store, &layout, plan.clone(), || 1, &budget, &bed.progress, stop.clone()));
    assert!(tokio::time::timeout(Duration::from_millis(200), &mut running).await.is_err());
    assert_eq!(bed.progress.snapshot().totals.read_bytes, 0);
    stop.cancel();
    assert!(matches!(running.await, Err(CompactError::Stopped { .. })));
    busy.send(false).unwrap();
    let running = run(&bed.store, &layout, plan, || 2, &budget, &bed.progress, CancellationToken::new());
    assert_eq!(running.await.unwrap().files.len(), 1);
}
