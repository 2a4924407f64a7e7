//! A second masker, written by hand from the edge agent's `docs/masking.md` alone: it shares no pattern and no code with
//! the product's, so that the verifier cannot repeat its mistakes. The names here are the names of that page. It is made
//! to be read beside the page, not to be fast.

mod email;
mod phone;
mod symbols;

use std::borrow::Cow;

/// Masks as the agents are configured to, or not at all (`--no-mask`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Masker {
    /// Mode `replace`: `<email>` and `<phone>`.
    Replace,
    /// Every line stays as it is.
    Off,
}

impl Masker {
    /// The line as it must lie at the destination.
    pub fn mask<'a>(&self, line: &'a [u8]) -> Cow<'a, [u8]> {
        if *self == Self::Off {
            return Cow::Borrowed(line);
        }
        let once = email::mask(line);
        match phone::mask(&once) {
            Some(twice) => Cow::Owned(twice),
            None => once,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn masked(text: &str) -> String {
        String::from_utf8_lossy(&Masker::Replace.mask(text.as_bytes())).into_owned()
    }

    #[test]
    fn the_examples_of_the_page() {
        for (text, expected) in [
            ("jane%40example.com.html", "<email>.html"),
            ("logo@2x.png and getty@tty1.service stay", "logo@2x.png and getty@tty1.service stay"),
            ("u%3Djane@example.com", "u%3D<email>"),
            ("emailjane@example.com", "<email>"),
            ("lat=+52.520008", "lat=+52.520008"),
            ("call 415-666-7777, (415) 666-7777", "call 415-666-7777, (415) 666-7777"),
            ("root@localhost", "root@localhost"),
            ("?id=0012345678901&x=+12345678", "?id=<phone>&x=<phone>"),
            ("13:55:36 +1000", "13:55:36 +1000"),
        ] {
            assert_eq!(masked(text), expected, "{text}");
        }
    }

    #[test]
    fn addresses_in_their_encodings() {
        for (text, expected) in [
            ("to=a.b+c@mail.example.org&x", "to=<email>&x"),
            ("%252540: x%252540y.zz", "%252540: <email>"),
            (r#"{\"m\":\"jane\\u0040example.com\"}"#, r#"{\"m\":\"<email>\"}"#),
            ("\"jane doe\"@example.com", "<email>"),
            ("me@[10.0.0.1] me@[IPv6:2001:db8::1]", "<email> <email>"),
            ("x@foo.com.1a", "<email>.1a"),
            ("müller@exämple.de", "<email>"),
            ("a@b.png", "a@b.png"),
            ("a@example.xn--p1ai", "<email>"),
            ("a@example.c", "a@example.c"),
            ("nothing@", "nothing@"),
        ] {
            assert_eq!(masked(text), expected, "{text}");
        }
    }

    #[test]
    fn numbers_in_their_forms() {
        for (text, expected) in [
            ("tel:+49 (0)30 5550134 now", "tel:<phone> now"),
            ("phone=212-555-0134&y", "phone=<phone>&y"),
            ("phone%3D%2B4420794612345", "phone%3D<phone>"),
            ("\"mobile\": \"0171 5550134\"", "\"mobile\": \"<phone>\""),
            ("hotel=1234567 hotel=+4930123456", "hotel=1234567 hotel=<phone>"),
            ("+1-202-555-0100 555-0199 22", "<phone>-0199 22"),
            ("v1+12345678 1+12345678", "v1+12345678 1+12345678"),
            ("a@b.example+12345678", "<email><phone>"),
            ("+1234567", "+1234567"),
            ("n=001234567890123456", "n=001234567890123456"),
        ] {
            assert_eq!(masked(text), expected, "{text}");
        }
    }

    #[test]
    fn masking_twice_is_masking_once() {
        for text in ["a@b.cc+4930123456", "phone=<email> tel=0301234567", "%40%2B%25", "+49 30 1234567 12345678901"] {
            let once = masked(text);
            assert_eq!(masked(&once), once, "{text}");
        }
    }

    #[test]
    fn long_words_end_soon() {
        let mut text = "a".repeat(300_000);
        text.push_str("=40 x@y.zz ");
        text.push_str(&"1+".repeat(100_000));
        text.push_str(&"z".repeat(2_000_000));
        text.push_str(" a@b ");
        text.push_str(&"y".repeat(1_000_000));
        text.push_str("@nowhere %40");
        assert!(masked(&text).contains("<email>"));
    }

    #[test]
    fn off_changes_nothing() {
        assert_eq!(&*Masker::Off.mask(b"a@b.cc"), b"a@b.cc");
    }
}
