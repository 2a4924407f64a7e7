//! Reasons for people that come from another process: cut and cleaned before they are stored, logged or shown.

/// Longest reason that is passed on, in bytes.
pub const MAX_REASON_BYTES: usize = 256;

/// The reason without characters that a terminal or a log line would obey instead of show, cut to
/// [`MAX_REASON_BYTES`].
pub fn clean(text: &str) -> String {
    let mut clean = String::new();
    for c in text.chars().filter(|c| !is_unseen(*c)) {
        if clean.len() + c.len_utf8() > MAX_REASON_BYTES {
            break;
        }
        clean.push(c);
    }
    clean
}

/// Control characters, line and paragraph separators, and marks that change the order of what is shown.
fn is_unseen(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{2069}' | '\u{feff}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_terminal_would_obey_goes_and_the_rest_is_cut() {
        assert_eq!(clean("bad\u{1b}[31m \r\nframe\u{202e}!\0"), "bad[31m frame!");
        assert_eq!(clean("zwölf – “ok”"), "zwölf – “ok”");
        let long = clean(&"é".repeat(500));
        assert_eq!(long.len(), MAX_REASON_BYTES);
        assert_eq!(clean(&format!("x{}", "é".repeat(500))).len(), MAX_REASON_BYTES - 1, "never inside a character");
    }
}
