//! The grammar by example, the labelled cases where they are at hand, and the differential test.

use std::time::Duration;

use proptest::prelude::*;

use super::differential::{compare, mask_differential};
use super::passes::Passes;
use super::*;

fn mask(text: &str) -> String {
    let mut out = Vec::new();
    let changed = Masker::new(&MaskConfig::default()).unwrap().mask(text.as_bytes(), &mut out);
    if changed { String::from_utf8(out).unwrap() } else { text.to_owned() }
}

#[test]
fn addresses_in_every_dress() {
    for (text, expected) in [
        ("GET /x?e=jane.doe%2Btag%40example.com HTTP/1.1", "GET /x?e=<email> HTTP/1.1"),
        ("q=contact%3Ajane.doe%2540example.com%26x", "q=contact%3A<email>%26x"),
        (r#"{"email":"jane.doe\u0040example.com"}"#, r#"{"email":"<email>"}"#),
        (r"\x22jane@example.com\x22", r"\x22<email>\x22"),
        (r"a\njane@example.com", r"a\n<email>"),
        ("/u/jane.doe%40example.com.html", "/u/<email>.html"),
        ("contact=jsmith@[192.168.2.1];", "contact=<email>;"),
        ("rcpt \"foo bar\"@example.com end", "rcpt <email> end"),
        ("От: коля@пример.рф.", "От: <email>."),
        ("%D0%BA%D0%BE%40example.com", "<email>"),
        ("a@b.co,c@d.org", "<email>,<email>"),
        ("a@b@c.de", "a@<email>"),
    ] {
        assert_eq!(mask(text), expected, "{text}");
        assert_eq!(mask(expected), expected, "twice is once");
    }
}

#[test]
fn numbers_in_every_dress() {
    for (text, expected) in [
        ("to=+14156667777 HTTP/1.1", "to=<phone> HTTP/1.1"),
        ("to=%2B1%20415-666-7777&x", "to=<phone>&x"),
        ("to=%252B14156667777", "to=<phone>"),
        ("tel=%2B1+415-666-7777", "tel=<phone>"),
        ("tel%3D%28415%29%20666-7777", "tel%3D<phone>"),
        ("to=004930123456\"", "to=<phone>\""),
        (r#"{"mobile": "09990123456"}"#, r#"{"mobile": "<phone>"}"#),
        ("Phone: +33 1 23 45 67 89.", "Phone: <phone>."),
        ("call +1 (415) 666-7777 now", "call <phone> now"),
        ("+4930/123456", "<phone>"),
        ("+14156667777 200 512", "<phone> 200 512"),
        ("phoneNumber=415.666.7777", "phoneNumber=<phone>"),
        ("user@example.com+14156667777", "<email><phone>"),
    ] {
        assert_eq!(mask(text), expected, "{text}");
        assert_eq!(mask(expected), expected, "twice is once");
    }
}

#[test]
fn what_is_never_touched() {
    for text in [
        "logo@2x.png",
        "getty@tty1.service",
        "k8s.io/api@v0.30.1",
        "root@localhost",
        "2024-10-10 13:55:36 +1000 203.0.113.7 51234",
        "v1.2.3+20130313144700",
        "lat=+52.520008&lon=+13.404954",
        "hotel=12345678",
        "order=9711060203-1 ts=1728568536123",
        "650+253+1234 4012-8888-8888-1881",
        "203.0.113.7 - - [10/Oct/2024:13:55:36 +0000] \"GET /a HTTP/1.1\" 200 512",
        "call 415-666-7777",
    ] {
        assert_eq!(mask(text), text);
    }
}

#[test]
fn keyed_tokens_join() {
    let dir = tempfile::tempdir().unwrap();
    let key = dir.path().join("key");
    std::fs::write(&key, "0123456789abcdef0123456789abcdef\n").unwrap();
    let config = MaskConfig { mode: MaskMode::Hmac, key_file: Some(key.clone()), ..MaskConfig::default() };
    let mut masker = Masker::new(&config).unwrap();
    let mut token = |text: &str| {
        let mut out = Vec::new();
        assert!(masker.mask(text.as_bytes(), &mut out), "{text}");
        let again = out.clone();
        assert!(!masker.mask(&again, &mut Vec::new()), "twice is once: {text}");
        String::from_utf8(out).unwrap()
    };
    assert_eq!(token("Jane@Example.com"), token("jane%40example.com"));
    let number = token("+1 (415) 666-7777");
    assert_eq!(number.len(), "<phone:0123456789abcdef>".len());
    for other in ["+14156667777", "%2B1%20415%20666-7777"] {
        assert_eq!(token(other), number);
    }
    assert_eq!(token("to=0014156667777"), format!("to={number}"));
    assert_eq!(token("tel=14156667777"), format!("tel={number}"));
    std::fs::write(&key, "short").unwrap();
    assert!(matches!(Masker::new(&config), Err(MaskError::ShortKey { bytes: 5, .. })));
    let config = MaskConfig { mode: MaskMode::Hmac, ..MaskConfig::default() };
    assert!(matches!(Masker::new(&config), Err(MaskError::NoKeyFile)));
}

#[test]
fn lines_of_many_escapes_take_linear_time() {
    for unit in ["%C3%BC", "%C3a", "\\\\", "%2B1", "+1 ", "a@", "\"", "tel=1+", "%41", "@a.b1"] {
        let text = format!("{}@!", unit.repeat(200_000 / unit.len()));
        mask(&text);
    }
}

#[test]
#[allow(clippy::print_stderr, reason = "a test that does not run has to say so")]
fn the_labelled_cases_where_they_are_at_hand() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/data/pii");
    for file in ["emails.jsonl", "phones.jsonl"] {
        let Ok(cases) = std::fs::read_to_string(folder.join(file)) else {
            eprintln!("SKIPPED: no sample data at {}", folder.display());
            return;
        };
        for case in cases.lines() {
            let case: serde_json::Value = serde_json::from_str(case).unwrap();
            let (kind, text) = (case["kind"].as_str().unwrap(), case["text"].as_str().unwrap());
            let masked = mask(text);
            let promised = kind.starts_with("email/")
                || ["phone/e164", "phone/international", "phone/access-log", "phone/access-log-00"].contains(&kind);
            if kind.starts_with("neg/") {
                assert_eq!(masked, text, "{kind}");
            } else if promised {
                for part in case["contains"].as_array().unwrap() {
                    assert!(!masked.contains(part.as_str().unwrap()), "{kind}: {text} -> {masked}");
                }
            }
        }
    }
}

/// `CATCHMENT_FUZZ_SECONDS` makes it a long run.
#[test]
fn the_scan_never_changes_what_the_patterns_say() {
    let seconds = std::env::var("CATCHMENT_FUZZ_SECONDS").ok().and_then(|text| text.parse().ok()).unwrap_or(2);
    let seed = std::env::var("CATCHMENT_FUZZ_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or(seconds);
    match mask_differential(seed, Duration::from_secs(seconds)) {
        Ok(lines) => {
            use std::io::Write;
            writeln!(std::io::stdout(), "{lines} lines without a difference (seed {seed})").unwrap();
        }
        Err(difference) => panic!(
            "{:?}\n  plain   {:?}\n  scanned {:?}",
            String::from_utf8_lossy(&difference.line),
            String::from_utf8_lossy(&difference.plain),
            String::from_utf8_lossy(&difference.scanned)
        ),
    }
}

proptest! {
    #[test]
    fn any_bytes_are_masked_alike_with_and_without_the_scan(
        lines in proptest::collection::vec("[0-9+@%()=:.\"\\\\ a-fuxtlnmo-]{0,60}", 1..8)
    ) {
        let mut buffer = Vec::new();
        let mut ends = Vec::new();
        for line in &lines {
            buffer.extend_from_slice(line.as_bytes());
            ends.push(buffer.len());
            buffer.push(b'\n');
        }
        let mut masker = Masker::new(&MaskConfig::default()).unwrap();
        prop_assert_eq!(compare(&buffer, &ends, &Passes::new(), &mut masker), Ok(()));
    }

    #[test]
    fn masking_twice_is_masking_once(line in "[0-9+@%()=:. a-zA-Z<>-]{0,80}") {
        let once = mask(&line);
        prop_assert_eq!(mask(&once), once);
    }
}
