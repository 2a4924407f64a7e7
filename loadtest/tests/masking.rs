//! The product's masker against the verifier's, which was written from the documentation alone: they may never disagree.
//! Every line of the `pii` files of the sample data too: those beside the workspace, or in the folder that
//! `CATCHMENT_DATA` names.

use std::cell::RefCell;
use std::path::{Path, PathBuf};

use edge_agent::intercept::mask::{MaskConfig, Masker as Product};
use loadtest::verify::masker::Masker;
use proptest::prelude::*;

thread_local! {
    /// Compiled once: its patterns are large.
    static PRODUCT: RefCell<Product> = RefCell::new(Product::new(&MaskConfig::default()).unwrap());
}

fn product(text: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    if PRODUCT.with_borrow_mut(|masker| masker.mask(text, &mut out)) { out } else { text.to_vec() }
}

/// Pieces that the grammar knows, so that texts come close to its edges.
const PIECES: &[&str] = &[
    "jane",
    "j.d",
    "a@b.cc",
    "@",
    "%40",
    "%2540",
    "\\u0040",
    "\\x40",
    ".",
    "%2E",
    "example",
    "com",
    "png",
    "service",
    "xn--p1ai",
    "+",
    "%2B",
    "%252b",
    "\\u002B",
    "(",
    ")",
    "%28",
    "-",
    " ",
    "%20",
    "/",
    "49",
    "030",
    "1",
    "5550134",
    "00",
    "0012345678901",
    "tel",
    "phone",
    "mobile",
    "hotel",
    "fax",
    "number",
    "_no",
    "[]",
    "=",
    ":",
    "%3D",
    "\"",
    "\\\"",
    "'",
    "%22",
    "<email>",
    "<phone>",
    "<phone:0123456789abcdef>",
    "13:55:36",
    "+1000",
    "é",
    "\u{2009}",
    "\u{a0}",
    "%C3%A9",
    "%25",
    "%",
    "\\",
    "\\n",
    "x",
    "_",
    ",",
    ";",
    "&",
    "[10.0.0.1]",
    "[IPv6:::1]",
    "1234567890123456",
    "52.520008",
    "%c2%a0",
    "\\xe9",
    "|",
    "A",
    "f",
];

proptest! {
    #![proptest_config(ProptestConfig { cases: 4_000, ..ProptestConfig::default() })]

    #[test]
    fn both_maskers_agree(pieces in prop::collection::vec(prop::sample::select(PIECES), 0..14)) {
        let text = pieces.concat().into_bytes();
        let (first, second) = (product(&text), Masker::Replace.mask(&text).into_owned());
        let shown = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        prop_assert_eq!(shown(&first), shown(&second), "{}", shown(&text));
    }

    #[test]
    fn and_on_any_bytes(text in prop::collection::vec(prop_oneof![any::<u8>(), prop::sample::select(b"@%.+=:-0123456789abcdef ".to_vec())], 0..60)) {
        prop_assert_eq!(product(&text), Masker::Replace.mask(&text).into_owned());
    }
}

#[derive(serde::Deserialize)]
struct Sample {
    text: String,
    contains: Vec<String>,
    kind: String,
}

/// Every positive e-mail and every positive phone of the promised kinds is masked, no negative is touched.
#[allow(clippy::print_stderr, reason = "a test that does not run has to say so")]
#[test]
fn samples_of_personal_data() {
    let folder = match std::env::var_os("CATCHMENT_DATA") {
        Some(folder) => PathBuf::from(folder),
        None => Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/data"),
    }
    .join("pii");
    if !folder.is_dir() && std::env::var_os("CATCHMENT_DATA").is_none() {
        eprintln!("SKIPPED: no sample data at {}; CATCHMENT_DATA=FOLDER names another place", folder.display());
        return;
    }
    let (mut wrong, mut checked) = (Vec::new(), 0);
    for name in ["emails.jsonl", "phones.jsonl"] {
        let text = std::fs::read_to_string(folder.join(name)).unwrap();
        for line in text.lines() {
            checked += 1;
            let sample: Sample = serde_json::from_str(line).unwrap();
            let masked = product(sample.text.as_bytes());
            assert_eq!(
                masked,
                &*Masker::Replace.mask(sample.text.as_bytes()),
                "the maskers disagree on {}",
                sample.text
            );
            let masked = String::from_utf8_lossy(&masked).into_owned();
            let promised = ["e164", "international", "access-log"].iter().any(|kind| sample.kind.contains(kind));
            if sample.kind.starts_with("ambiguous")
                || (name == "phones.jsonl" && !sample.contains.is_empty() && !promised)
            {
                continue;
            }
            let survives = sample.contains.iter().any(|part| masked.contains(part.as_str()));
            if survives || (sample.contains.is_empty() && masked != sample.text) {
                wrong.push(format!("{}: {} -> {masked}", sample.kind, sample.text));
            }
        }
    }
    assert!(checked > 100, "only {checked} samples in {}", folder.display());
    assert!(wrong.is_empty(), "{} samples are wrong:\n{}", wrong.len(), wrong.join("\n"));
}
