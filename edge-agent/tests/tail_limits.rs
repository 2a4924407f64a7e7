//! The tail source at its limits: long lines, many files with few descriptors, fairness, budgets, and
//! what cannot be read.

mod tail_world;

use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::time::{Duration, Instant};

use common::units::{Size, Span};
use edge_agent::tail::{Chunk, PieceKind, TOO_LONG_KEPT, TailConfig, TailSource};
use tail_world::World;

/// Set for the part of a test that runs again as another user.
const AS_NOBODY: &str = "TAIL_TEST_AS_NOBODY";

#[test]
fn a_restart_inside_a_long_line_does_not_emit_its_rest() {
    let mut world = World::with(|config, _| config.max_event_bytes = Size::kib(1));
    world.write("a.log", "one\n");
    world.append_bytes("a.log", &vec![b'x'; 600_000]);
    assert_eq!(world.read(), ["one"]);
    world.reopen();
    assert_eq!(world.read(), [""; 0]);
    world.append("a.log", "the rest\ntwo\n");
    let events = world.read();
    assert_eq!((events[0].len(), events[1].as_str(), events.len()), (TOO_LONG_KEPT, "two", 2));
    assert_eq!(world.pieces_of(PieceKind::TooLong { total_bytes: 600_008 }), 1);
}

#[test]
fn events_up_to_the_limit_are_whole_wherever_buffers_end() {
    let mut world = World::with(|config, _| {
        config.max_event_bytes = Size::kib(64);
        config.quantum = Size::kib(4);
    });
    let lengths = [65_536, 0, 4095, 4096, 4097, 65_537, 1, 10_000, 65_536];
    for (at, length) in lengths.iter().enumerate() {
        let fill = [b'a' + at as u8];
        world.append_bytes("a.log", &[fill.repeat(*length), b"\n".to_vec()].concat());
    }
    for budget in [1, 1000, 70_000, 1 << 20] {
        world.reopen();
        world.budget = budget;
        let events = world.read();
        if !events.is_empty() {
            let kept: Vec<_> = lengths.iter().map(|length| (*length).min(65_536)).collect();
            assert_eq!(events.iter().map(String::len).collect::<Vec<_>>(), kept);
        }
    }
    assert_eq!(world.pieces_of(PieceKind::TooLong { total_bytes: 65_537 }), 1);
}

#[test]
fn a_chunk_stays_within_its_budget() {
    let mut world = World::new();
    for n in 0..5000 {
        world.append("a.log", &format!("line {n} {}\n", "x".repeat(n % 200)));
    }
    let now = Instant::now();
    let mut lines = 0;
    loop {
        let mut chunk = Chunk::default();
        let outcome = world.source().poll(&mut chunk, 10_000, now);
        assert!(chunk.raw_bytes <= 10_000);
        lines += chunk.pieces.iter().map(|piece| piece.bytes.iter().filter(|b| **b == b'\n').count()).sum::<usize>();
        if outcome.at_end {
            break;
        }
        assert!(outcome.full || chunk.raw_bytes > 0);
    }
    assert_eq!(lines, 5000);
}

#[test]
fn a_busy_file_does_not_starve_a_quiet_one() {
    let mut world = World::new();
    let lines = "a line of the busy file\n".repeat(400_000);
    world.append("busy.log", &lines);
    world.append("quiet.log", "quiet\n");
    let first: Vec<_> = (0..3).flat_map(|_| world.poll().0).collect();
    assert!(first.contains(&b"quiet".to_vec()), "not among the first {} events", first.len());
    assert!(first.len() < 100_000);
}

#[test]
fn thousands_of_files_with_few_descriptors() {
    let mut world = World::with(|config, _| config.max_open_files = 32);
    for n in 0..2000 {
        world.write(&format!("{n}.log"), &format!("line of {n}\n"));
    }
    assert_eq!(world.read().len(), 2000);
    for n in 0..2000 {
        world.append(&format!("{n}.log"), &format!("more of {n}\n"));
    }
    assert_eq!(world.read().len(), 2000);
    let stats = world.source().stats();
    assert_eq!((stats.files, stats.unread_bytes), (2000, 0));
    assert!(stats.open_files <= 32, "{}", stats.open_files);
    world.reopen();
    assert_eq!(world.read(), [""; 0]);
    for n in 0..2000 {
        world.remove(&format!("{n}.log"));
    }
    for _ in 0..3 {
        world.pass(24 * 3600);
        world.read();
    }
    assert_eq!(world.saved_files(), 0);
}

#[test]
fn a_note_counts_what_took_the_place_of_a_file_that_was_closed_to_make_room() {
    let read = format!("begin\n{}", "a line that is read\n".repeat(50));
    let long = format!("new\n{}", "another line\n".repeat(200));
    type Replace = fn(&World, &str);
    let in_place: Replace = |world, text| world.write_in_place("a.log", text);
    // The inode goes to the new file, where the system reuses it at once.
    let anew: Replace = |world, text| {
        world.remove("a.log");
        world.write("a.log", text);
    };
    for (how, text) in [(in_place, "new\n"), (in_place, long.as_str()), (anew, "new\n"), (anew, long.as_str())] {
        let mut world = World::with(|config, _| config.max_open_files = 16);
        world.write("a.log", &read);
        world.read();
        for n in 0..40 {
            world.write(&format!("{n}.log"), &format!("line of {n}\n"));
            world.read();
        }
        let read_by_now = world.note();
        assert!(world.source().is_cut(&read_by_now));
        how(&world, text);
        world.pass(10);
        let note = world.note();
        assert!(!world.source().is_cut(&note), "{} bytes that nobody has read are said to be cut", text.len());
        assert!(world.read().contains(&"new".to_owned()));
        assert!(world.source().is_cut(&note), "the note of {} bytes never comes true", text.len());
    }
}

#[test]
fn thousands_of_equal_files_with_few_descriptors() {
    let mut world = World::with(|config, _| {
        config.max_open_files = 32;
        config.copy_wait = Span::secs(3600);
    });
    for n in 0..300 {
        world.write(&format!("{n}.log"), "# the same header\n");
    }
    assert_eq!(world.read().len(), 1);
    let stats = world.source().stats();
    assert_eq!((stats.files, stats.waiting_files), (1, 299));
    assert!(stats.open_files <= 32, "{}", stats.open_files);
    for n in 0..300 {
        world.append(&format!("{n}.log"), &format!("line of {n}\n"));
    }
    assert_eq!(world.read().len(), 599, "they are told apart as soon as they differ");
}

#[test]
fn updates_of_one_file_are_one_per_chunk() {
    let mut world = World::new();
    let mut chunk = Chunk::default();
    let mut now = Instant::now();
    for n in 0..10 {
        world.append("a.log", &format!("{n}\n"));
        world.append("b.log", &format!("b{n}\n"));
        now += Duration::from_secs(1);
        world.source().poll(&mut chunk, 1 << 20, now);
    }
    assert_eq!(chunk.raw_bytes, 50);
    assert_eq!(chunk.updates.len(), 3, "two files and the first start");
}

#[test]
fn what_matches_is_listed_with_first_lines() {
    let mut world = World::new();
    world.write("a.log", "one\ntwo\n");
    world.write("b.log", "");
    world.write("c.log.gz", "no");
    let config = TailConfig { paths: vec![world.path("*").display().to_string()], ..TailConfig::default() };
    let matched = TailSource::matched(&config).unwrap();
    let found: Vec<_> = matched.files.iter().map(|file| (file.bytes, file.first_line.as_deref())).collect();
    assert_eq!(found, [(8, Some(&b"one"[..])), (0, None)]);
    assert_eq!(world.read(), ["one", "two"]);
}

#[test]
fn what_cannot_be_read_is_a_problem_until_it_can() {
    if rustix::process::geteuid().is_root() {
        // Permissions do not stop root: the same test again as nobody.
        let mut again = std::process::Command::new(std::env::current_exe().unwrap());
        again.args(["--exact", "what_cannot_be_read_is_a_problem_until_it_can"]).env(AS_NOBODY, "1");
        let status = again.uid(65534).gid(65534).status().unwrap();
        assert!(status.success());
        return;
    }
    let mut world = World::with(|config, root| config.paths.push(format!("{root}/locked/**/*.log")));
    let mode = |world: &World, name: &str, mode| {
        std::fs::set_permissions(world.path(name), std::fs::Permissions::from_mode(mode)).unwrap();
    };
    world.write("a.log", "one\n");
    world.write("b.log", "two\n");
    std::fs::create_dir(world.path("locked")).unwrap();
    mode(&world, "b.log", 0o200);
    mode(&world, "locked", 0o000);
    assert_eq!(world.read(), ["one"]);
    let problems = world.source().stats().problems;
    let texts: Vec<String> = problems.iter().map(ToString::to_string).collect();
    assert_eq!(texts.len(), 2, "{texts:?}");
    assert!(texts[0].contains("b.log") && texts[0].contains("mode 0200") && texts[0].contains("owner "), "{texts:?}");
    assert!(texts[1].contains("locked") && texts[1].contains("chmod g+rx"), "{texts:?}");
    assert_eq!(world.try_note().unwrap_err(), problems);
    mode(&world, "b.log", 0o600);
    mode(&world, "locked", 0o700);
    assert_eq!(world.read(), ["two"]);
    assert_eq!(world.source().stats().problems, []);
    mode(&world, ".", 0o300);
    world.pass(3600);
    assert_eq!(world.read(), [""; 0]);
    mode(&world, ".", 0o700);
    world.append("a.log", "three\n");
    assert_eq!(world.read(), ["three"], "nothing was forgotten while the directory could not be listed");
}

#[test]
fn idle_emission_can_be_switched_off() {
    let mut world = World::with(|config, _| config.partial_idle = Span::secs(0));
    world.write("a.log", "half");
    world.read();
    world.pass(3600);
    assert_eq!(world.read(), [""; 0]);
    world.append("a.log", " line\nlast");
    assert_eq!(world.read(), ["half line"]);
    world.remove("a.log");
    world.read();
    world.pass(6);
    assert_eq!(world.read(), ["last"]);
}
