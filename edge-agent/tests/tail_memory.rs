//! The tail source's memory: measured on the process, so everything is in one test.

mod tail_world;

use std::time::Instant;

use edge_agent::tail::{Chunk, PieceKind, TOO_LONG_KEPT};
use tail_world::World;

fn status_bytes(key: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with(key)).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
}

#[test]
fn memory_is_bounded() {
    a_line_of_100_mb_takes_little_memory();
    a_small_rest_does_not_pin_a_large_buffer();
}

fn a_line_of_100_mb_takes_little_memory() {
    let mut world = World::new();
    world.write("a.log", "before\n");
    let block = vec![b'x'; 1 << 20];
    for _ in 0..100 {
        world.append_bytes("a.log", &block);
    }
    world.append("a.log", "\nafter\n");
    let resident = status_bytes("VmRSS");
    let mut highest = 0;
    let mut events = Vec::new();
    loop {
        world.pass(1);
        let (more, at_end) = world.poll();
        highest = highest.max(status_bytes("VmRSS"));
        events.extend(more);
        if at_end {
            break;
        }
    }
    assert_eq!(events.iter().map(Vec::len).collect::<Vec<_>>(), [6, TOO_LONG_KEPT, 5]);
    assert_eq!(world.pieces_of(PieceKind::TooLong { total_bytes: 100 << 20 }), 1);
    assert!(highest.saturating_sub(resident) < 8 << 20, "grew by {} bytes", highest - resident);
    world.reopen();
    assert_eq!(world.read(), [""; 0]);
}

fn a_small_rest_does_not_pin_a_large_buffer() {
    let mut world = World::new();
    for n in 0..200 {
        let name = format!("{n}.log");
        world.append(&name, &format!("short {n}\n"));
        world.append_bytes(&name, &vec![b'x'; 250_000]);
    }
    let resident = status_bytes("VmRSS");
    let mut chunk = Chunk::default();
    let now = Instant::now();
    while !world.source().poll(&mut chunk, 1 << 20, now).at_end {}
    assert_eq!(chunk.pieces.len(), 200);
    assert!(status_bytes("VmRSS").saturating_sub(resident) < 16 << 20);
}
