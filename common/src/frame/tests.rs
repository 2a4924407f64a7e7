//! Frames from outside: every way in which one can be wrong.

use proptest::prelude::*;

use super::*;

const CODECS: [Codec; 3] = [Codec::None, Codec::Zstd, Codec::Gzip];

fn made(codec: Codec, raw: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    FrameEncoder::new(codec, 0).encode(raw, &mut out).unwrap();
    out
}

/// Both ways of looking at a payload must refuse it.
fn refused(codec: Codec, payload: &[u8], raw_bytes: u64) -> FrameError {
    let mut out = Vec::new();
    let checked = check(codec, payload, raw_bytes).unwrap_err();
    assert_eq!(decode(codec, payload, raw_bytes, &mut out).unwrap_err(), checked);
    assert!(out.capacity() <= proto::MAX_RAW_BYTES as usize);
    checked
}

fn text(bytes: usize) -> Vec<u8> {
    (0..).flat_map(|n: u64| format!("GET /item/{} HTTP/1.1\n", n * n % 977).into_bytes()).take(bytes).collect()
}

proptest! {
    #[test]
    fn what_was_encoded_is_decoded(raw in prop::collection::vec(any::<u8>(), 0..5000), level in -12i32..30) {
        for codec in CODECS {
            let mut encoder = FrameEncoder::new(codec, level);
            let (mut frame, mut back) = (vec![9; 3], vec![9; 3]);
            encoder.encode(b"an earlier frame", &mut frame).unwrap();
            encoder.encode(&raw, &mut frame).unwrap();
            check(codec, &frame, raw.len() as u64).unwrap();
            decode(codec, &frame, raw.len() as u64, &mut back).unwrap();
            prop_assert_eq!(&back, &raw);
        }
    }

    #[test]
    fn no_bytes_make_a_decoder_panic_or_overrun(mut payload in prop::collection::vec(any::<u8>(), 0..200),
                                                 raw_bytes in 0u64..1000, magic in 0..3) {
        match magic {
            0 => payload.splice(0..0, [0x28, 0xB5, 0x2F, 0xFD]).for_each(drop),
            1 => payload.splice(0..0, [0x1f, 0x8b, 8, 0]).for_each(drop),
            _ => {}
        }
        for codec in CODECS {
            let mut out = Vec::new();
            let decoded = decode(codec, &payload, raw_bytes, &mut out);
            if decoded.is_ok() {
                prop_assert_eq!(out.len() as u64, raw_bytes);
                prop_assert_eq!(check(codec, &payload, raw_bytes), Ok(()));
            }
        }
    }
}

#[test]
fn large_frames_of_many_blocks() {
    let raw = text(3 * 1024 * 1024);
    for codec in CODECS {
        let frame = made(codec, &raw);
        check(codec, &frame, raw.len() as u64).unwrap();
        let mut back = Vec::new();
        decode(codec, &frame, raw.len() as u64, &mut back).unwrap();
        assert!(back == raw);
    }
    assert!(made(Codec::Zstd, &raw).len() * 5 < raw.len());
}

#[test]
fn buffers_are_used_again() {
    let raw = text(200_000);
    for codec in CODECS {
        let mut encoder = FrameEncoder::new(codec, 0);
        let (mut frame, mut back) = (Vec::new(), Vec::new());
        encoder.encode(&raw, &mut frame).unwrap();
        decode(codec, &frame, raw.len() as u64, &mut back).unwrap();
        let before = (frame.as_ptr(), back.as_ptr());
        encoder.encode(&raw[..150_000], &mut frame).unwrap();
        decode(codec, &frame, 150_000, &mut back).unwrap();
        assert_eq!(before, (frame.as_ptr(), back.as_ptr()), "{codec:?}");
    }
}

#[test]
fn frames_can_be_appended_to_each_other() {
    let both = [made(Codec::Zstd, b"one "), made(Codec::Zstd, b"two")].concat();
    assert_eq!(zstd::bulk::decompress(&both, 100).unwrap(), b"one two");
}

#[test]
fn truncated_frames() {
    let raw = text(300_000);
    for codec in [Codec::Zstd, Codec::Gzip] {
        let frame = made(codec, &raw);
        for len in (0..frame.len()).step_by(97).chain([frame.len() - 1]) {
            let error = refused(codec, &frame[..len], raw.len() as u64);
            match codec {
                Codec::Zstd => assert_eq!(error, FrameError::Truncated, "cut at {len}"),
                // Where the checksum should be, compressed data is: it may even decode to too many bytes.
                _ => assert!(
                    matches!(error, FrameError::NotAFrame | FrameError::Damaged | FrameError::ContentSize { .. }),
                    "cut at {len}: {error}"
                ),
            }
        }
    }
    refused(Codec::None, b"abc", 4);
}

#[test]
fn two_frames_or_garbage_behind_one() {
    for codec in [Codec::Zstd, Codec::Gzip] {
        let frame = made(codec, b"some text, some more text");
        for tail in [&frame[..], b"\0", b"garbage behind the frame", &frame[frame.len() - 8..]] {
            let two = [&frame[..], tail].concat();
            // libdeflate compares the sizes at the very end first: garbage may be found as damage.
            let error = refused(codec, &two, 25);
            assert!(matches!(error, FrameError::Trailing | FrameError::Damaged), "{codec:?} {error}");
        }
    }
    let empty = made(Codec::Zstd, b"");
    assert_eq!(refused(Codec::Zstd, &[&empty[..], &empty].concat(), 0), FrameError::Trailing);
}

#[test]
fn skippable_frames() {
    let skippable = [&0x184D_2A50_u32.to_le_bytes()[..], &4u32.to_le_bytes(), b"abcd"].concat();
    let frame = made(Codec::Zstd, b"text");
    assert_eq!(refused(Codec::Zstd, &[&skippable[..], &frame].concat(), 4), FrameError::NotAFrame);
    assert_eq!(refused(Codec::Zstd, &[&frame[..], &skippable].concat(), 4), FrameError::Trailing);
}

/// A frame header with the given descriptor, and fields, then one stored block.
fn by_hand(descriptor: u8, fields: &[u8], stored: &[u8]) -> Vec<u8> {
    let block = ((stored.len() as u32) << 3 | 1).to_le_bytes();
    [&[0x28, 0xB5, 0x2F, 0xFD, descriptor][..], fields, &block[..3], stored].concat()
}

#[test]
fn claims_are_not_believed() {
    let ten_gb = 10_000_000_000u64;
    // Content size of 8 bytes, single segment.
    let claims = by_hand(0xE0, &ten_gb.to_le_bytes(), b"x");
    assert_eq!(
        refused(Codec::Zstd, &claims, ten_gb),
        FrameError::TooLarge { raw_bytes: ten_gb, limit: proto::MAX_RAW_BYTES }
    );
    assert!(matches!(refused(Codec::Zstd, &claims, 1), FrameError::Window { .. }));
    // Within the limits, but the blocks cannot hold it.
    let claims = by_hand(0xA0, &1_000_000u32.to_le_bytes(), b"x");
    assert_eq!(refused(Codec::Zstd, &claims, 1_000_000), FrameError::ContentSize { found: 1, declared: 1_000_000 });
    // A gzip bomb stops at the declared size.
    let bomb = made(Codec::Gzip, &vec![0; 10_000_000]);
    assert_eq!(refused(Codec::Gzip, &bomb, 1000), FrameError::ContentSize { found: 1001, declared: 1000 });
    assert!(matches!(refused(Codec::Gzip, &bomb, 10_000_001), FrameError::ContentSize { found: 10_000_000, .. }));
}

#[test]
fn windows_and_dictionaries() {
    // Window descriptor 13 << 3 is 8 MiB, 14 << 3 is 16 MiB; content size of 4 bytes.
    let fits = by_hand(0x80, &[13 << 3, 3, 0, 0, 0], b"abc");
    check(Codec::Zstd, &fits, 3).unwrap();
    let mut out = Vec::new();
    decode(Codec::Zstd, &fits, 3, &mut out).unwrap();
    assert_eq!(out, b"abc");
    let wide = by_hand(0x80, &[14 << 3, 3, 0, 0, 0], b"abc");
    assert_eq!(refused(Codec::Zstd, &wide, 3), FrameError::Window { bytes: 16 * 1024 * 1024 });
    assert!(matches!(
        refused(Codec::Zstd, &by_hand(0x80, &[(13 << 3) | 1, 3, 0, 0, 0], b"abc"), 3),
        FrameError::Window { .. }
    ));
    assert_eq!(refused(Codec::Zstd, &by_hand(0x21, &[7, 3], b"abc"), 3), FrameError::Dictionary);
    assert_eq!(refused(Codec::Zstd, &by_hand(0x00, &[0], b"abc"), 3), FrameError::NoContentSize);
    assert_eq!(refused(Codec::Zstd, &by_hand(0x28, &[3], b"abc"), 3), FrameError::Damaged);
}

#[test]
fn wrong_sizes_and_codecs() {
    let frame = made(Codec::Zstd, b"abc");
    assert_eq!(refused(Codec::Zstd, &frame, 4), FrameError::ContentSize { found: 3, declared: 4 });
    assert_eq!(refused(Codec::Gzip, &frame, 3), FrameError::NotAFrame);
    assert_eq!(refused(Codec::Unspecified, &frame, 3), FrameError::Codec);
    assert_eq!(FrameEncoder::new(Codec::Unspecified, 0).encode(b"", &mut Vec::new()), Err(FrameError::Codec));
    let too_large = vec![0; proto::MAX_RAW_BYTES as usize + 1];
    for codec in CODECS {
        let error = FrameEncoder::new(codec, 0).encode(&too_large, &mut Vec::new()).unwrap_err();
        assert!(matches!(error, FrameError::TooLarge { .. }));
    }
}

#[test]
fn damage_inside_a_block_is_found_by_decoding() {
    let raw = text(100_000);
    for codec in [Codec::Zstd, Codec::Gzip] {
        let mut frame = made(codec, &raw);
        let middle = frame.len() / 2;
        frame[middle] ^= 0x40;
        let mut out = Vec::new();
        let decoded = decode(codec, &frame, raw.len() as u64, &mut out);
        assert!(decoded.is_err() || out != raw);
    }
}
