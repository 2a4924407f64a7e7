//! The tail source on real files: every kind of rotation, one test each. Time is passed in, so nothing sleeps.

mod tail_world;

use std::fs;
use std::os::unix::fs::symlink;

use edge_agent::tail::{DestroyedBy, PieceKind, Start};
use tail_world::World;

#[test]
fn appended_lines_are_emitted_once() {
    let mut world = World::new();
    world.write("a.log", "one\ntwo\n");
    assert_eq!(world.read(), ["one", "two"]);
    world.append("a.log", "three\nfo");
    assert_eq!(world.read(), ["three"]);
    world.append("a.log", "ur\r\n\n\0\u{ff}\n");
    assert_eq!(world.read(), ["four\r", "", "\0\u{ff}"]);
    world.reopen();
    assert_eq!(world.read(), [""; 0]);
}

#[test]
fn a_rename_continues() {
    let mut world = World::new();
    world.write("a.log", "one\ntwo\n");
    world.read();
    world.append("a.log", "three\n");
    world.rename("a.log", "a.log.1");
    world.write("a.log", "four\n");
    assert_eq!(world.read(), ["three", "four"]);
    world.append("a.log.1", "late\n");
    world.append("a.log", "five\n");
    assert_eq!(world.read_sorted(), ["five", "late"]);
}

#[test]
fn a_rename_out_of_the_glob_is_read_to_its_end() {
    let mut world = World::new();
    world.write("a.log", "one\n");
    world.read();
    world.append("a.log", "two\nrest");
    world.rename("a.log", "elsewhere");
    assert_eq!(world.read(), ["two"]);
    world.append("elsewhere", " of it\nlast");
    assert_eq!(world.read(), ["rest of it"]);
    world.pass(6);
    assert_eq!(world.read(), ["last"]);
    assert_eq!(world.pieces_of(PieceKind::Partial), 1);
}

#[test]
fn a_rename_while_stopped_continues() {
    let mut world = World::new();
    world.write("a.log", "one\ntwo\n");
    world.read();
    world.close();
    world.rename("a.log", "a.log.1");
    world.append("a.log.1", "three\n");
    world.write("a.log", "four\n");
    world.open();
    assert_eq!(world.read_sorted(), ["four", "three"]);
}

#[test]
fn copytruncate_continues_in_the_copy() {
    for refill in ["", "x\n", "a new line that is longer than everything before\n"] {
        let mut world = World::new();
        world.write("a.log", "one\ntwo\n");
        world.read();
        world.append("a.log", "three\n");
        world.copy("a.log", "a.log.1");
        world.truncate("a.log");
        world.append("a.log", refill);
        let expected: Vec<&str> = ["three"].into_iter().chain(refill.strip_suffix('\n')).collect();
        let mut found = world.read();
        found.sort_by_key(|line| line != "three");
        assert_eq!(found, expected);
        world.pass(60);
        assert_eq!(world.read(), [""; 0]);
        assert_eq!(world.destroyed(), []);
    }
}

#[test]
fn copytruncate_seen_between_copy_and_truncate() {
    let mut world = World::new();
    world.write("a.log", "one\ntwo\n");
    world.read();
    world.append("a.log", "three\n");
    world.copy("a.log", "a.log.1");
    assert_eq!(world.read(), ["three"]);
    world.truncate("a.log");
    world.append("a.log", "four\n");
    assert_eq!(world.read(), ["four"]);
    world.pass(60);
    assert_eq!(world.read(), [""; 0]);
}

#[test]
fn copytruncate_with_a_slow_copy() {
    let mut world = World::new();
    let lines: Vec<String> = (0..1000).map(|n| format!("line number {n}")).collect();
    let text = lines.join("\n") + "\n";
    world.write("a.log", &text);
    assert_eq!(world.read(), lines);
    for part in text.as_bytes().chunks(1500) {
        world.append_bytes("a.log.1", part);
        world.pass(1);
        assert_eq!(world.read(), [""; 0]);
    }
    world.truncate("a.log");
    world.append("a.log", "new\n");
    world.pass(60);
    assert_eq!(world.read(), ["new"]);
}

#[test]
fn copytruncate_while_stopped() {
    let mut world = World::new();
    world.write("a.log", "one\ntwo\n");
    world.read();
    world.close();
    world.append("a.log", "three\n");
    world.copy("a.log", "a.log.1");
    world.write_in_place("a.log", "four\nfive\nsix\nseven\n");
    world.open();
    assert_eq!(world.read_sorted(), ["five", "four", "seven", "six", "three"]);
    world.pass(60);
    assert_eq!(world.read(), [""; 0]);
}

#[test]
fn copies_that_overwrite_older_copies() {
    let mut world = World::new();
    world.write("a.log", "one\n");
    world.read();
    for round in 0..5 {
        world.append("a.log", &format!("round {round}\n"));
        if round > 0 {
            world.copy("a.log.1", "a.log.2");
        }
        world.copy("a.log", "a.log.1");
        world.truncate("a.log");
        assert_eq!(world.read(), [format!("round {round}")]);
        world.pass(20);
        assert_eq!(world.read(), [""; 0]);
    }
}

#[test]
fn truncation_to_the_same_size() {
    let mut world = World::new();
    world.write("a.log", "one\ntwo\n");
    world.read();
    world.write_in_place("a.log", "six\nten\n");
    assert_eq!(world.read(), ["six", "ten"]);
}

#[test]
fn truncation_without_a_copy_counts_what_was_destroyed() {
    let mut world = World::new();
    world.write("a.log", "one\n");
    world.read();
    world.append("a.log", "12345\n");
    world.look();
    world.truncate("a.log");
    world.pass(60);
    assert_eq!(world.read(), [""; 0]);
    world.pass(60);
    world.read();
    assert_eq!(world.destroyed(), [("a.log".to_owned(), 6, DestroyedBy::Truncation)]);
}

#[test]
fn delete_and_recreate() {
    let mut world = World::new();
    world.write("a.log", "one\ntwo\n");
    world.read();
    world.append("a.log", "three\n");
    world.remove("a.log");
    world.write("a.log", "four\nfive\n");
    assert_eq!(world.read_sorted(), ["five", "four", "three"]);
}

#[test]
fn delete_and_recreate_while_stopped_with_the_same_inode() {
    let mut world = World::new();
    world.write("a.log", "one\ntwo\n");
    world.read();
    world.close();
    world.write_in_place("a.log", "four\nfive\nsix\n");
    world.open();
    assert_eq!(world.read(), ["four", "five", "six"]);
}

#[test]
fn a_link_that_is_switched() {
    let mut world = World::with(|config, root| config.paths = vec![format!("{root}/current")]);
    world.write("one", "a\n");
    world.write("two", "b\n");
    symlink("one", world.path("current")).unwrap();
    assert_eq!(world.read(), ["a"]);
    world.append("one", "late\n");
    symlink("two", world.path("next")).unwrap();
    world.rename("next", "current");
    world.append("two", "c\n");
    assert_eq!(world.read_sorted(), ["b", "c", "late"]);
    world.append("one", "later\n");
    assert_eq!(world.read(), ["later"]);
}

#[test]
fn two_equal_files_are_two_files() {
    let mut world = World::new();
    world.write("a.log", "same\n");
    assert_eq!(world.read(), ["same"]);
    world.write("b.log", "same\n");
    assert_eq!(world.read(), [""; 0], "it may be a copy whose original is truncated next");
    world.pass(6);
    assert_eq!(world.read(), ["same"]);
    world.append("a.log", "x\n");
    world.append("b.log", "y\n");
    assert_eq!(world.read_sorted(), ["x", "y"]);
    world.reopen();
    assert_eq!(world.read(), [""; 0]);
}

#[test]
fn equal_files_that_are_old_are_read_at_once() {
    let mut world = World::with(|config, _| config.copy_wait = common::units::Span::millis(1));
    world.write("a.log", "same\n");
    world.write("b.log", "same\n");
    world.pass(1);
    assert_eq!(world.read(), ["same", "same"]);
}

#[test]
fn a_partial_last_line_is_emitted_when_idle_and_at_close() {
    let mut world = World::new();
    world.write("a.log", "one\ntwo");
    assert_eq!(world.read(), ["one"]);
    world.pass(3);
    world.append("a.log", "-and");
    assert_eq!(world.read(), [""; 0]);
    world.pass(4);
    assert_eq!(world.read(), [""; 0]);
    world.pass(2);
    assert_eq!(world.read(), ["two-and"]);
    world.append("a.log", " a rest\nthree");
    assert_eq!(world.read(), [" a rest"]);
    world.reopen();
    assert_eq!(world.finish(), ["three"]);
    world.reopen();
    assert_eq!(world.finish(), [""; 0]);
}

#[test]
fn directories_that_appear_later_and_files_that_vanish() {
    let mut world = World::with(|config, root| config.paths = vec![format!("{root}/later/**/*.log")]);
    assert_eq!(world.read(), [""; 0]);
    fs::create_dir_all(world.path("later/x/y")).unwrap();
    world.write("later/x/y/a.log", "one\n");
    assert_eq!(world.read(), ["one"]);
    fs::remove_dir_all(world.path("later")).unwrap();
    assert_eq!(world.read(), [""; 0]);
    assert!(world.source().stats().problems.is_empty());
}

#[test]
fn start_at_the_end_is_for_the_first_start_only() {
    let mut world = World::with(|config, _| config.start = Start::End);
    world.write("a.log", "old\nhalf");
    world.write("empty.log", "");
    world.open();
    world.append("a.log", " line\n");
    assert_eq!(world.read(), ["half line"]);
    world.write("b.log", "new file\n");
    assert_eq!(world.read(), ["new file"]);
    world.close();
    world.write("c.log", "came while stopped\n");
    world.open();
    assert_eq!(world.read(), ["came while stopped"]);
}

#[test]
fn start_at_the_end_is_remembered_without_any_file() {
    let mut world = World::with(|config, _| config.start = Start::End);
    world.open();
    world.read();
    world.close();
    world.write("a.log", "one\n");
    world.open();
    assert_eq!(world.read(), ["one"]);
}

#[test]
fn files_that_are_gone_and_read_are_forgotten() {
    let mut world = World::new();
    world.write("a.log", "one\n");
    world.read();
    assert_eq!(world.saved_files(), 1);
    world.remove("a.log");
    for _ in 0..60 {
        world.pass(1);
        world.read();
    }
    assert_eq!(world.saved_files(), 0);
    assert_eq!(world.source().stats().open_files, 0);
}

#[test]
fn holding_is_limited_in_bytes_and_age() {
    let mut world = World::with(|config, _| config.hold_deleted.bytes = common::units::Size::new(20));
    for name in ["a.log", "b.log", "c.log"] {
        world.write(name, &format!("{name}.....\n"));
        world.look();
        world.pass(1);
    }
    for name in ["a.log", "b.log"] {
        world.remove(name);
        world.pass(1);
        world.look();
    }
    assert_eq!(world.source().stats().held_bytes, 11);
    assert_eq!(world.destroyed(), [("a.log".to_owned(), 11, DestroyedBy::HoldLimit)]);
    world.pass(25 * 3600);
    world.look();
    assert_eq!(world.destroyed(), [("b.log".to_owned(), 11, DestroyedBy::HoldLimit)]);
    assert_eq!(world.read(), ["c.log....."]);
}

#[test]
fn unread_deleted_files_are_held() {
    let mut world = World::new();
    world.write("a.log", "one\n");
    world.look();
    world.remove("a.log");
    world.pass(3600);
    world.look();
    world.pass(3600);
    assert_eq!(world.read(), ["one"]);
    assert_eq!(world.destroyed(), []);
}

#[test]
fn a_directory_that_is_away_for_a_while_is_not_read_twice() {
    let mut world = World::with(|config, root| config.paths = vec![format!("{root}/logs/*.log")]);
    fs::create_dir(world.path("logs")).unwrap();
    world.write("logs/a.log", "one\n");
    assert_eq!(world.read(), ["one"]);
    world.rename("logs", "unmounted");
    for _ in 0..20 {
        world.pass(60);
        world.read();
    }
    world.rename("unmounted", "logs");
    world.append("logs/a.log", "two\n");
    assert_eq!(world.read(), ["two"]);
}

#[test]
fn a_note_is_cut_when_all_that_was_there_is_handed_out() {
    let mut world = World::new();
    world.write("a.log", "one\n");
    world.write("b.log", "x\nunfinished");
    let note = world.note();
    assert!(!world.source().is_cut(&note));
    world.append("a.log", "later\n");
    assert_eq!(world.read_sorted(), ["later", "one", "x"]);
    assert!(world.source().is_cut(&note));
    let note = world.note();
    assert!(world.source().is_cut(&note), "an unfinished last line blocks nothing");
    world.append("a.log", "more\n");
    let note = world.note();
    world.truncate("a.log");
    world.pass(60);
    world.read();
    world.pass(60);
    world.read();
    assert!(world.source().is_cut(&note), "what is destroyed blocks nothing");
}

#[test]
fn a_link_that_is_switched_back_later_continues() {
    let mut world = World::with(|config, root| config.paths = vec![format!("{root}/current")]);
    world.write("one", "a\n");
    world.write("two", "b\n");
    let switch = |world: &World, to: &str| {
        symlink(to, world.path("next")).unwrap();
        world.rename("next", "current");
    };
    switch(&world, "one");
    assert_eq!(world.read(), ["a"]);
    switch(&world, "two");
    assert_eq!(world.read(), ["b"]);
    for _ in 0..20 {
        world.pass(60);
        world.read();
    }
    assert_eq!(world.source().stats().open_files, 1);
    world.append("one", "c\n");
    world.reopen();
    switch(&world, "one");
    assert_eq!(world.read(), ["c"]);
    for seconds in [60, 25 * 3600] {
        world.pass(seconds);
        world.read();
    }
    assert_eq!(world.saved_files(), 1, "the other is forgotten after a day");
}

#[test]
fn a_writer_that_does_not_append_leaves_a_hole() {
    use std::os::unix::fs::FileExt;
    let mut world = World::new();
    let file = fs::File::create(world.path("a.log")).unwrap();
    let mut at = 0;
    for round in 0..3 {
        let text = format!("{round} {}\n", "x".repeat(20_000));
        file.write_all_at(text.as_bytes(), at).unwrap();
        at += text.len() as u64;
        assert_eq!(world.read(), [text.trim_end()]);
        world.copy("a.log", "a.log.1");
        world.truncate("a.log");
    }
}

#[test]
fn a_restart_saves_nothing_that_did_not_change() {
    let mut world = World::new();
    world.write("a.log", "one\n");
    world.write("b.log", "two\n");
    world.read();
    world.reopen();
    world.append("a.log", "three\n");
    let mut chunk = edge_agent::tail::Chunk::default();
    let now = std::time::Instant::now();
    world.source().poll(&mut chunk, 1 << 20, now + std::time::Duration::from_secs(60));
    assert_eq!((chunk.raw_bytes, chunk.updates.len()), (6, 1));
}
