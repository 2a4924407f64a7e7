//! What stands in place of personal data: a fixed word, or a keyed one that is the same for the same address or number, so
//! that events can still be joined by it.

use std::io::Write;

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

/// What was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Email,
    Phone,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::Email => "email",
            Self::Phone => "phone",
        }
    }
}

/// How tokens are made.
#[derive(Clone)]
pub(super) enum Tokens {
    /// `<email>`, `<phone>`.
    Replace,
    /// `<email:16 hex digits>` of HMAC-SHA256.
    Keyed(Box<Hmac<Sha256>>),
}

impl std::fmt::Debug for Tokens {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The keyed state is a secret.
        f.write_str(match self {
            Self::Replace => "Replace",
            Self::Keyed(_) => "Keyed",
        })
    }
}

impl Tokens {
    /// Tokens under a key of any length.
    pub(super) fn keyed(key: &[u8]) -> Self {
        Self::Keyed(Box::new(Hmac::new_from_slice(key).expect("HMAC takes keys of every length")))
    }

    /// Appends the token for something whose normal form `normal` writes to the buffer it is given.
    pub(super) fn push(&self, kind: Kind, normal: impl FnOnce(&mut Vec<u8>), out: &mut Vec<u8>) {
        out.push(b'<');
        out.extend_from_slice(kind.name().as_bytes());
        if let Self::Keyed(keyed) = self {
            let mut form = format!("{}:", kind.name()).into_bytes();
            normal(&mut form);
            let mut mac = keyed.clone();
            mac.update(&form);
            out.push(b':');
            for byte in &mac.finalize().into_bytes()[..8] {
                write!(out, "{byte:02x}").expect("a vector takes every byte");
            }
        }
        out.push(b'>');
    }
}

/// The normal form of an address: escapes decoded, ASCII lower-case.
pub(super) fn normal_email(address: &[u8], out: &mut Vec<u8>) {
    let mut at = 0;
    while let Some(&byte) = address.get(at) {
        let (value, bytes) = match byte {
            b'%' => percent(&address[at..]),
            b'\\' => backslash(&address[at..]),
            other => (other, 1),
        };
        out.push(value.to_ascii_lowercase());
        at += bytes;
    }
}

/// `%(?:25)*XX` as one byte.
fn percent(text: &[u8]) -> (u8, usize) {
    let mut at = 1;
    while text[at..].starts_with(b"25") && hex(text, at + 2).is_some() {
        at += 2;
    }
    hex(text, at).map_or((b'%', 1), |value| (value, at + 2))
}

/// Backslashes with `xXX` or `u00XX` as one byte.
fn backslash(text: &[u8]) -> (u8, usize) {
    let slashes = text.iter().take_while(|byte| **byte == b'\\').count();
    let behind = &text[slashes..];
    if behind.first() == Some(&b'x')
        && let Some(value) = hex(behind, 1)
    {
        return (value, slashes + 3);
    }
    if behind.starts_with(b"u00")
        && let Some(value) = hex(behind, 3)
    {
        return (value, slashes + 5);
    }
    (b'\\', 1)
}

fn hex(text: &[u8], at: usize) -> Option<u8> {
    let digit = |byte: &u8| (*byte as char).to_digit(16);
    Some((digit(text.get(at)?)? * 16 + digit(text.get(at + 1)?)?) as u8)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(tokens: &Tokens, address: &str) -> String {
        let mut out = Vec::new();
        tokens.push(Kind::Email, |form| normal_email(address.as_bytes(), form), &mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn one_address_has_one_token_in_every_encoding() {
        let tokens = Tokens::keyed(b"0123456789abcdef");
        let plain = token(&tokens, "jane.doe+a@example.com");
        // echo -n 'email:jane.doe+a@example.com' | openssl dgst -sha256 -hmac 0123456789abcdef
        assert_eq!(plain.len(), "<email:0123456789abcdef>".len());
        for other in [
            "JANE.DOE+A@Example.Com",
            "jane.doe%2Ba%40example.com",
            "jane.doe%2Ba%2540example.com",
            r"jane.doe+a\u0040example.com",
            r"jane.doe+a\\u0040example%2Ecom",
            r"jane.doe+a\x40example.com",
        ] {
            assert_eq!(token(&tokens, other), plain, "{other}");
        }
        assert_ne!(token(&tokens, "jane.doe@example.com"), plain);
        assert_ne!(token(&Tokens::keyed(b"another key 1234"), "jane.doe+a@example.com"), plain);
        assert_eq!(token(&Tokens::Replace, "jane.doe+a@example.com"), "<email>");
    }

    #[test]
    fn what_is_no_escape_stays() {
        let mut out = Vec::new();
        normal_email(br"100%ex\a%2525%", &mut out);
        assert_eq!(out, br"100%ex\a%%");
    }
}
