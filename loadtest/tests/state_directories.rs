//! What happens to the state directory of an agent, on the whole system: a reboot that changes every device number, a move
//! to another disk, a copy that is started after the original went on, a cloned machine beside the original. The first two
//! go on as if nothing had happened; the last two are named, by the agent and by `collector seal status`. Real processes
//! and real file systems; every line at the destination is counted, and so is what each run of an agent published.
//!
//! What `edge-agent/docs/state-directory.md` says of these cases is what is asserted here.

#[path = "state_directories/disks.rs"]
mod disks;
mod scene;
#[path = "state_directories/system.rs"]
mod system;

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use loadtest::cluster::spec::Tier;
use serde_json::Value;

use disks::{Disk, can_mount, left_behind};
use scene::day::{PATIENCE, wait_for};
use system::{Log, NAME, System, unacked_events};

fn run_of(status: &Value) -> String {
    status["origin"].as_str().unwrap().to_owned()
}

fn copy(from: &Path, to: &Path) {
    let status = std::process::Command::new("cp").arg("-a").args([from, to]).status().unwrap();
    assert!(status.success());
}

/// Inode and device.
fn place(path: &Path) -> (u64, u64) {
    let metadata = fs::metadata(path).unwrap();
    (metadata.ino(), metadata.dev())
}

#[test]
fn a_disk_leaves_nothing_behind_even_when_a_test_panics() {
    if !can_mount("a_disk_leaves_nothing_behind_even_when_a_test_panics") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let failed = catch_unwind(AssertUnwindSafe(|| {
        let mut disk = Disk::make(&dir.path().join("image"), &dir.path().join("disk")).unwrap();
        fs::write(disk.at().join("file"), "kept").unwrap();
        let before = place(&disk.at().join("file"));
        disk.unmount();
        disk.mount().unwrap();
        let after = place(&disk.at().join("file"));
        assert!(before.0 == after.0 && before.1 != after.1, "{before:?} {after:?}");
        assert!(left_behind(dir.path()).len() >= 2, "the mount and its device");
        panic!("a test fails while a disk is mounted");
    }));
    assert_eq!(failed.unwrap_err().downcast_ref(), Some(&"a test fails while a disk is mounted"));
    wait_for("nothing to be left", || left_behind(dir.path()).is_empty().then_some(()));
}

/// A machine with two disks: both hold logs, one may hold the state directory too. After the reboot both are other
/// devices; where nobody else takes one, each has the number that the other had.
fn reboot(state_on_disk: bool) {
    let test = "a reboot that changes device numbers";
    if !can_mount(test) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let mut disks =
        ["a", "b"].map(|name| Disk::make(&dir.path().join(format!("{name}.img")), &dir.path().join(name)).unwrap());
    let globs = disks.iter().map(|disk| disk.at().join("*.log*").to_str().unwrap().to_owned()).collect();
    let mut system = System::new(dir.path(), vec![globs], 1);
    let mut logs = [0, 1].map(|disk: usize| Log::new(disks[disk].at().join("access.log"), disk));
    let mut equal = [0, 1].map(|disk: usize| Log::new(disks[disk].at().join("equal.log"), 2));
    logs[0].write(100);
    logs[1].write(60);
    equal.iter_mut().for_each(|log| log.write(50));
    let state = if state_on_disk { disks[1].at().join("state") } else { system.first_state() };
    system.keep_state_in(0, &state);
    system.start_servers();
    system.cluster.start_agent(0, false).unwrap();
    system.cut(0, 260);
    system.arrived(210);

    // Some is not acked, some not read, and a line has no end yet when the machine goes down.
    system.kill_all(Tier::Collector);
    logs.iter_mut().for_each(|log| log.write(50));
    system.cut(0, 360);
    logs.iter_mut().for_each(|log| log.write(25));
    let half = logs[0].text(1);
    let (begin, end) = half.split_at(half.len() / 2);
    logs[0].append(begin);
    system.cluster.kill(Tier::EdgeAgent, 0).unwrap();
    assert!(unacked_events(&state) >= 100);
    let files: Vec<PathBuf> = logs.iter().chain(&equal).map(|log| log.path.clone()).collect();
    let places =
        || -> Vec<(u64, u64)> { files.iter().chain([&state.join("outbox")]).map(|path| place(path)).collect() };
    let before = places();
    assert_eq!(before[0].0, before[1].0, "the same inode number on both disks is the harder case");
    disks.iter_mut().for_each(Disk::unmount);
    disks.iter_mut().for_each(|disk| disk.mount().unwrap());
    let on_disks = files.len() + usize::from(state_on_disk);
    for (before, after) in before.iter().zip(places()).take(on_disks) {
        assert!(before.0 == after.0 && before.1 != after.1, "(inode, device): {before:?}, {after:?}");
    }

    // The line is finished; one log was rotated before the agent is there again.
    logs[0].append(end);
    fs::rename(&logs[0].path, disks[0].at().join("access.log.1")).unwrap();
    logs.iter_mut().for_each(|log| log.write(30));
    system.start_servers();
    system.cluster.start_agent(0, false).unwrap();
    system.arrived(206 + 165 + 50);
    system.check_content(0);
    system.success();
    system.check_lines(&[(0, 0..206, 1), (1, 0..165, 1), (2, 0..50, 2)]);
    assert_eq!(system.published_by_run().len(), 2);
    system.cluster.stop_all(Tier::EdgeAgent, PATIENCE).unwrap();
}

#[test]
fn after_a_reboot_nothing_is_read_twice_where_the_logs_are_another_device() {
    reboot(false);
}

#[test]
fn after_a_reboot_nothing_is_read_twice_where_logs_and_state_are_another_device() {
    reboot(true);
}

/// What lies where when the state is moved or copied: lines up to `ACKED` are committed and acked, up to `STORED` an
/// aggregator has them and no collector, up to `UNSENT` they are in the outbox alone, up to `UNREAD` in the log alone.
const ACKED: u64 = 100;
const STORED: u64 = 150;
const UNSENT: u64 = 200;
const UNREAD: u64 = 230;

/// Brings the first agent there and stops its process without ending it; no server runs then. Returns its run.
fn at_the_moment(system: &mut System, log: &mut Log, state: &Path) -> String {
    log.write(ACKED);
    system.start_servers();
    system.cluster.start_agent(0, false).unwrap();
    system.arrived(ACKED as usize);
    wait_for("the acks", || (unacked_events(state) == 0).then_some(()));
    system.kill_all(Tier::Collector);
    log.write(STORED - ACKED);
    system.agent(0, "an aggregator stores it", |status| {
        status["published_events"] == STORED && status["undelivered_batches"] == 0
    });
    system.kill_all(Tier::Aggregator);
    log.write(UNSENT - STORED);
    system.cut(0, UNSENT);
    let run = run_of(&system.cluster.status(Tier::EdgeAgent, 0).unwrap());
    system.cluster.freeze(Tier::EdgeAgent, 0, true).unwrap();
    assert_eq!(unacked_events(state), UNSENT - ACKED);
    log.write(UNREAD - UNSENT);
    run
}

/// The state directory is copied to another file system, and the first one is deleted.
fn moved_to_another_disk(adopted: bool) {
    if !can_mount("a state directory moved to another disk") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let disk = Disk::make(&dir.path().join("image"), &dir.path().join("disk")).unwrap();
    let mut log = Log::new(dir.path().join("access.log"), 0);
    let mut system = System::new(dir.path(), vec![vec![log.path.to_str().unwrap().to_owned()]], 1);
    let (first, new) = (system.first_state(), disk.at().join("state"));
    let run = at_the_moment(&mut system, &mut log, &first);
    if adopted {
        let (refused, told) = system.tool(Tier::EdgeAgent, 0, &["outbox", "adopt"]);
        assert!(!refused.status.success() && told.contains("is in use by another process"), "{told}");
    }
    system.cluster.kill(Tier::EdgeAgent, 0).unwrap();

    copy(&first, &new);
    let (from, to) = (place(&first.join("outbox")), place(&new.join("outbox")));
    assert_ne!(from.1, to.1, "another file system");
    assert_ne!(from.0, to.0, "a new disk with the same inode number by chance, take another");
    system.keep_state_in(0, &new);
    let shown = system.tool_well(Tier::EdgeAgent, 0, &["status"]);
    assert!(shown.contains("it was moved, copied or restored: the next start says so"), "{shown}");
    if adopted {
        adopt(&system, &new, from.0, to.0);
    }
    fs::remove_dir_all(&first).unwrap();
    log.write(20);
    system.start_servers();
    system.cluster.start_agent(0, false).unwrap();
    system.arrived(UNREAD as usize + 20);
    if adopted {
        system.check_content(0);
        system.success();
    } else {
        system.check_named(0, "this state directory was restored or copied: the open says so", &run);
        // Too late: the start has said it, and the next one is not asked.
        system.cluster.stop_all(Tier::EdgeAgent, PATIENCE).unwrap();
        let told = system.tool_well(Tier::EdgeAgent, 0, &["outbox", "adopt"]);
        assert!(told.contains("nothing to adopt"), "{told}");
        system.cluster.start_agent(0, false).unwrap();
        system.abandon("restored", &run, &run);
        system.seal_names(&run);
    }
    // Moved or copied: nobody else went on, so nothing is there twice.
    system.check_lines(&[(0, 0..UNREAD + 20, 1)]);
    assert_eq!(system.published_by_run()[&run], UNSENT);
}

fn adopt(system: &System, new: &Path, from: u64, to: u64) {
    let what = format!(
        "{} as the one and only state directory of agent {NAME}: outbox inode {from} becomes {to}",
        new.display()
    );
    let told = system.tool_well(Tier::EdgeAgent, 0, &["outbox", "adopt", "--dry-run"]);
    assert!(told.contains(&format!("would adopt {what}")), "{told}");
    let told = system.tool_well(Tier::EdgeAgent, 0, &["outbox", "adopt"]);
    assert!(told.contains(&format!("adopted {what}")), "{told}");
    assert!(!system.tool_well(Tier::EdgeAgent, 0, &["status"]).contains("moved, copied or restored"));
}

#[test]
fn a_state_directory_that_is_moved_and_adopted_goes_on() {
    moved_to_another_disk(true);
}

#[test]
fn a_state_directory_that_is_moved_and_not_adopted_is_named_and_nothing_is_twice() {
    moved_to_another_disk(false);
}

/// The machine is gone; its directory comes back from a copy that is older than what it sent last. The log is still
/// there. What the outbox of the copy held is sent again under its identity and is there once. Twice is exactly what the
/// original cut after the copy was made and could send: none of it was acked then, none of it even read.
#[test]
fn a_copy_that_is_started_after_the_original_went_on_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let mut log = Log::new(dir.path().join("access.log"), 0);
    let mut system = System::new(dir.path(), vec![vec![log.path.to_str().unwrap().to_owned()]], 1);
    let (state, backup) = (system.first_state(), dir.path().join("backup"));
    let run = at_the_moment(&mut system, &mut log, &state);
    copy(&state, &backup);
    system.start_servers();
    system.cluster.freeze(Tier::EdgeAgent, 0, false).unwrap();
    log.write(40);
    system.arrived(270);
    // The last lines leave with the machine.
    system.kill_all(Tier::Aggregator);
    log.write(20);
    system.cut(0, 290);
    system.cluster.kill(Tier::EdgeAgent, 0).unwrap();
    fs::remove_dir_all(&state).unwrap();

    copy(&backup, &state);
    log.write(10);
    system.start_servers();
    system.cluster.start_agent(0, false).unwrap();
    system.arrived(300);
    system.check_named(0, "this state directory was restored or copied: the open says so", &run);
    let second = run_of(&system.cluster.status(Tier::EdgeAgent, 0).unwrap());
    system.abandon("restored", &run, &run);
    system.seal_names(&run);
    system.check_lines(&[(0, 0..UNSENT, 1), (0, UNSENT..270, 2), (0, 270..300, 1)]);
    assert_eq!(system.published_by_run(), [(run, 270), (second, 300 - UNSENT)].into());
}

/// The same of a whole disk, logs and all: same inodes, same birth times. Here the log knows more than the disk.
#[test]
fn a_disk_that_is_set_back_to_a_snapshot_is_named() {
    if !can_mount("a disk that is set back to a snapshot") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let mut disk = Disk::make(&dir.path().join("image"), &dir.path().join("disk")).unwrap();
    let (mut log, state) = (Log::new(disk.at().join("access.log"), 0), disk.at().join("state"));
    let mut system = System::new(dir.path(), vec![vec![log.path.to_str().unwrap().to_owned()]], 1);
    system.keep_state_in(0, &state);
    let run = at_the_moment(&mut system, &mut log, &state);
    let (snapshot, before) = (dir.path().join("snapshot"), place(&state.join("outbox")));
    disk.copy_to(&snapshot);
    system.start_servers();
    system.cluster.freeze(Tier::EdgeAgent, 0, false).unwrap();
    log.write(40);
    system.arrived(270);
    system.cluster.kill(Tier::EdgeAgent, 0).unwrap();

    disk.set_back_to(&snapshot);
    assert_eq!(place(&state.join("outbox")).0, before.0);
    let mut after = Log::new(&log.path, 1);
    after.write(10);
    system.cluster.start_agent(0, false).unwrap();
    system.arrived(280);
    system.check_named(0, "this state directory was restored or copied: the open says so", &run);
    let second = run_of(&system.cluster.status(Tier::EdgeAgent, 0).unwrap());
    system.abandon("restored", &run, &run);
    system.seal_names(&run);
    system.check_lines(&[(0, 0..UNSENT, 1), (0, UNSENT..UNREAD, 2), (0, UNREAD..270, 1), (1, 0..10, 1)]);
    assert_eq!(system.published_by_run(), [(run, 270), (second, UNREAD - UNSENT + 10)].into());
}

/// A machine below `original` at [`at_the_moment`], and its clone below `clone`, agent 1 by the same name: a copy of the
/// whole disk, or of its files. Returns the disks, too, and the run.
fn two_machines(dir: &Path, [original, clone]: [&Path; 2], whole_disk: bool) -> (Vec<Disk>, Log, System, String) {
    let image = dir.join("image");
    let mut disks: Vec<Disk> = whole_disk.then(|| Disk::make(&image, original).unwrap()).into_iter().collect();
    fs::create_dir_all(original).unwrap();
    let mut log = Log::new(original.join("access.log"), 0);
    let globs = [original, clone].map(|machine| vec![machine.join("access.log").to_str().unwrap().to_owned()]);
    let mut system = System::new(dir, globs.to_vec(), 2);
    system.keep_state_in(0, &original.join("state"));
    system.keep_state_in(1, &clone.join("state"));
    system.configure(1, "name = ", &format!("\"{NAME}\""));
    let run = at_the_moment(&mut system, &mut log, &original.join("state"));
    if let Some(disk) = disks.first() {
        let other = dir.join("other-image");
        disk.copy_to(&other);
        disks.push(Disk::of(&other, clone).unwrap());
    } else {
        copy(original, clone);
    }
    let inodes = [original, clone].map(|machine| place(&machine.join("state/outbox")).0);
    assert_eq!(inodes[0] == inodes[1], whole_disk);
    (disks, log, system, run)
}

/// Both machines run, each with its own copy of the log, under one name. Twice is exactly what the log held unread when
/// the machine was cloned; the rest of what was not acked is sent by both, under one identity.
fn cloned(whole_disk: bool) {
    if whole_disk && !can_mount("a cloned machine") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (original, clone) = (dir.path().join("original"), dir.path().join("clone"));
    let (_disks, mut log, mut system, run) = two_machines(dir.path(), [&original, &clone], whole_disk);
    // The clone is there first; then the original goes on with its run.
    system.start_servers();
    system.cluster.start_agent(1, false).unwrap();
    system.arrived(UNREAD as usize);
    let marking = system.agent(1, "a mark of the clone", |status| status["marks"].as_u64() > Some(0));
    let second = run_of(&marking);
    let noticed = match whole_disk {
        true => {
            assert!(marking["restored_or_copied"].is_null(), "nothing tells them apart yet: {marking}");
            "aggregators know more of an earlier origin than this outbox"
        }
        false => "this state directory was restored or copied: the open says so",
    };
    system.cluster.freeze(Tier::EdgeAgent, 0, false).unwrap();
    let mut own = Log::new(clone.join("access.log"), 1);
    log.write(30);
    own.write(30);
    system.arrived(UNREAD as usize + 60);
    system.check_named(1, noticed, &run);
    system.check_content(0);
    let marks = || system.cluster.status(Tier::EdgeAgent, 1).unwrap()["marks"].clone();
    let before = marks();
    log.write(10);
    own.write(10);
    system.arrived(UNREAD as usize + 80);
    assert!(!whole_disk || marks() == before, "a copy says that something is complete");
    if whole_disk {
        // All it has cut is there and its run is closed, but it never says that it read everything.
        let (refused, told) = system.tool(Tier::EdgeAgent, 1, &["leave"]);
        assert!(!refused.status.success() && told.contains("has ended without left: its log says why"), "{told}");
        let log = system.cluster.join(Tier::EdgeAgent, 1, PATIENCE).unwrap();
        assert!(log.contains("not left: this state directory is a copy"), "{log}");
        system.abandon("contradicted", "the run of the clone", &second);
        system.success();
    } else {
        system.cluster.kill(Tier::EdgeAgent, 1).unwrap();
        system.abandon("restored", &second, &second);
        system.seal_names(&second);
    }
    system.check_content(0);
    let (lines, own_lines) = (UNREAD + 40, 40);
    system.check_lines(&[(0, 0..UNSENT, 1), (0, UNSENT..UNREAD, 2), (0, UNREAD..lines, 1), (1, 0..own_lines, 1)]);
    assert_eq!(system.published_by_run(), [(run, lines), (second, UNREAD - UNSENT + own_lines)].into());
}

#[test]
fn a_machine_that_is_cloned_with_its_disk_is_named_once_the_original_goes_on() {
    cloned(true);
}

#[test]
fn a_copied_directory_that_runs_beside_the_original_is_named_at_its_start() {
    cloned(false);
}
