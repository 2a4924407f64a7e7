//! `mask --show`: which lines of a file masking would change, before and after, for whoever decides whether to trust it.

use std::io::{self, BufRead, Write};

use super::Masker;
use crate::decode::without_cr;

/// What was shown.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Shown {
    /// Lines read.
    pub lines: u64,
    /// Lines that masking changes.
    pub changed: u64,
}

/// Writes each line of `input` that masking changes, as `<number>- <before>` and `<number>+ <after>`. Lines are held in
/// memory one at a time. Errors are those of `input` and `out`.
pub fn show(masker: &mut Masker, mut input: impl BufRead, mut out: impl Write) -> io::Result<Shown> {
    let (mut line, mut masked) = (Vec::new(), Vec::new());
    let mut shown = Shown::default();
    loop {
        line.clear();
        if input.read_until(b'\n', &mut line)? == 0 {
            out.flush()?;
            return Ok(shown);
        }
        shown.lines += 1;
        let end = line.len() - usize::from(line.ends_with(b"\n"));
        let event = &line[..without_cr(&line, 0, end)];
        if masker.mask(event, &mut masked) {
            shown.changed += 1;
            for (sign, text) in [('-', event), ('+', &masked)] {
                write!(out, "{}{sign} ", shown.lines)?;
                out.write_all(text)?;
                out.write_all(b"\n")?;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::MaskConfig;
    use super::*;

    #[test]
    fn only_changed_lines_with_their_numbers() {
        let mut out = Vec::new();
        let input = &b"GET /\nGET /?e=a@b.co\r\nGET /b\nto=+14156667777"[..];
        let shown = show(&mut Masker::new(&MaskConfig::default()).unwrap(), input, &mut out).unwrap();
        assert_eq!(shown, Shown { lines: 4, changed: 2 });
        assert_eq!(
            String::from_utf8(out).unwrap(),
            "2- GET /?e=a@b.co\n2+ GET /?e=<email>\n4- to=+14156667777\n4+ to=<phone>\n"
        );
    }
}
