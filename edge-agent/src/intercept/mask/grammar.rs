//! The patterns of `docs/masking.md`, letter for letter. Scan, matcher and differential test all hang on these; change
//! the page first.

/// `ESC`: passed over whole.
const ESC: &str = r#"(?:%(?:25)*[0-9A-Fa-f]{2}|\\u[0-9A-Fa-f]{4}|\\x[0-9A-Fa-f]{2}|\\[bfnrt"\\/])"#;
const NA: &str = r"(?:[\x80-\xff]|%(?:25)*[89A-Fa-f][0-9A-Fa-f]|\\x[89A-Fa-f][0-9A-Fa-f])";
const AT: &str = r"(?:@|%(?:25)*40|\\+u0040|\\+x40)";
const DOT: &str = r"(?:\.|%(?:25)*2[Ee])";
const QUOTE: &str = r#"(?:\\*"|\\x22|%(?:25)*22)"#;
const PLUS: &str = r"(?:\+|%(?:25)*2[Bb]|\\+u002[Bb]|\\+x2[Bb])";
const OPEN: &str = r"(?:\(|%(?:25)*28)";
const SEP: &str =
    r"(?:[ .()/-]|\xc2\xa0|\xe2\x80[\x80-\x95\xaf]|%(?:25)*(?:20|28|29|2[DdEeFf])|%(?:25)*[Cc]2%(?:25)*[Aa]0)";
const EQ: &str = r"(?:[=:]|%(?:25)*3[DdAa])";
const SPACE: &str = r"(?: |%(?:25)*20)";
const Q: &str = r#"(?:\\*["']|\\x22|%(?:25)*22)"#;

/// Words that end file and unit names and are no top-level domains.
pub(super) const NO_TLD: [&str; 33] = [
    "service",
    "socket",
    "timer",
    "target",
    "mount",
    "automount",
    "swap",
    "slice",
    "scope",
    "device",
    "png",
    "jpg",
    "jpeg",
    "gif",
    "svg",
    "webp",
    "avif",
    "ico",
    "bmp",
    "css",
    "js",
    "mjs",
    "json",
    "xml",
    "html",
    "htm",
    "php",
    "txt",
    "pdf",
    "gz",
    "woff",
    "ttf",
    "eot",
];

/// The first atom of a local part.
fn first() -> String {
    format!(r"(?:[A-Za-z0-9_+]|%(?:25)*(?:2[Bb]|5[Ff])|{NA})")
}

/// A local part without quotes, or nothing.
pub(super) fn local_run() -> String {
    format!(r"(?-u)\A(?:{}{}*)?", first(), char())
}

/// One atom of a local part behind the first.
fn char() -> String {
    format!(r"(?:[A-Za-z0-9_+.'|-]|%(?:25)*(?:2[BbDdEe7]|5[Ff]|7[Cc])|%[0-9A-Fa-f]?[G-Zg-z_+.'|-]|{NA})")
}

fn tld() -> String {
    format!(r"(?:[Xx][Nn]--[A-Za-z0-9-]{{1,59}}|(?:[A-Za-z]|{NA}){{2,63}})")
}

/// A whole label is a TLD.
pub(super) fn whole_tld() -> String {
    format!(r"(?-u)\A{}\z", tld())
}

/// A DOT.
pub(super) fn dot() -> String {
    format!("(?-u){DOT}")
}

/// An AT.
pub(super) fn at() -> String {
    format!("(?-u){AT}")
}

/// Nothing but one ESC.
pub(super) fn whole_escape() -> String {
    format!(r"(?-u)\A{ESC}\z")
}

/// A PLUS at the beginning.
pub(super) fn begins_with_plus() -> String {
    format!(r"(?-u)\A{PLUS}")
}

/// Pass 1. Groups: 1 the address, 2 AT, 3 DOMAIN.
pub(super) fn email() -> String {
    let (first, char) = (first(), char());
    let local = format!(r"(?:{first}{char}*|{QUOTE}(?:[A-Za-z0-9 _+.'|-]|{NA}){{1,64}}{QUOTE})");
    let l = format!(r"(?:[A-Za-z0-9_]|{NA})");
    let domain = format!(r"(?:{l}(?:-|{l})*{DOT})+{}", tld());
    let lit = r"\[(?:[0-9]{1,3}(?:\.[0-9]{1,3}){3}|IPv6:[0-9A-Fa-f:.]{2,45})\]";
    format!("(?-u)({local}({AT})(?:({domain})|{lit}))|{ESC}")
}

/// Pass 2. Groups: 1 A, 2 its number; 3 B, 4 its number; 5 K, 6 SHORT, 7 its number; 8 the number of Z; none: copied.
pub(super) fn phone() -> String {
    let token = r"<(?:email|phone)(?::[0-9a-f]{16})?>";
    let clock = format!(r"[0-9]:[0-9]{{2}}(?:[.,][0-9]{{1,9}})? ?{PLUS}1(?:[0-3]00|030|245|345|400)");
    let sepq = format!(r"(?:\+|{SEP})");
    let a = format!(r"(\+({OPEN}?[1-9][0-9]*(?:{SEP}{{1,3}}[0-9]+)*))");
    let b = format!(r"({PLUS}({OPEN}?[1-9][0-9]*(?:{sepq}{{1,3}}[0-9]+)*))");
    let short = "((?i:tel|cell|fax|gsm))";
    let long = "(?i:telephone|cellphone|phone|mobile|msisdn|whatsapp)";
    let name_end = r"(?:[_.-]?(?i:number|num|no|nr))?(?:\[\])?";
    let number = format!(r"({PLUS}?{OPEN}?[0-9]+(?:{sepq}{{1,3}}[0-9]+)*)");
    let k = format!(r"((?:{short}|{long}){name_end}{Q}? ?{EQ}{SPACE}?{Q}?{number})");
    let z = format!(r"{EQ}{SPACE}?{Q}?(00[1-9][0-9]{{7,}})");
    format!("(?-u){token}|{clock}|{a}|{b}|{k}|{z}|{ESC}")
}

/// A digit group, or what may stand between groups (in a number that [`phone`] found).
pub(super) fn group_or_separator() -> String {
    format!(r"(?-u)\A(?:([0-9]+)|{PLUS}|{OPEN}|\+|{SEP})")
}
