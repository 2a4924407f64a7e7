//! From a format string to a list of literals and fields. nginx and Apache are told apart by what stands in it: `$name`
//! or `%x`.

use super::{Column, FieldKind, LogFormat, LogFormatError, Part, variables};

const COMMON: &str = r#"%h %l %u %t "%r" %>s %b"#;
const COMBINED: &str = r#"%h %l %u %t "%r" %>s %b "%{Referer}i" "%{User-Agent}i""#;
const VHOST_COMBINED: &str = r#"%v:%p %h %l %u %t "%r" %>s %O "%{Referer}i" "%{User-Agent}i""#;

/// A piece of the format string.
enum Piece {
    Literal(String),
    Field { name: String, kind: FieldKind, known: bool },
}

pub(super) fn compile(text: &str) -> Result<LogFormat, LogFormatError> {
    let format = match text {
        "common" => COMMON,
        "combined" => COMBINED,
        "vhost_combined" => VHOST_COMBINED,
        other => other,
    };
    let error = |reason: String| LogFormatError { format: text.to_owned(), reason };
    if format.contains(['\n', '\r']) {
        return Err(error("it spans lines; write it as one line".into()));
    }
    let pieces = if format.contains('$') { nginx_pieces(format) } else { apache_pieces(format) }.map_err(error)?;
    assemble(text, pieces).map_err(error)
}

/// `$name` and `${name}`; everything else is literal.
fn nginx_pieces(format: &str) -> Result<Vec<Piece>, String> {
    let mut pieces = Vec::new();
    let mut rest = format;
    while let Some(at) = rest.find('$') {
        push_literal(&mut pieces, &rest[..at]);
        let (name, behind) = match rest[at + 1..].strip_prefix('{') {
            Some(braced) => braced.split_once('}').ok_or("a `${` is not closed")?,
            None => {
                let name = &rest[at + 1..];
                let end = name.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(name.len());
                name.split_at(end)
            }
        };
        if name.is_empty() {
            return Err("a `$` stands without a name".into());
        }
        let (column, kind) = variables::nginx(name);
        pieces.push(Piece::Field { name: column, kind, known: variables::nginx_is_known(name) });
        rest = behind;
    }
    push_literal(&mut pieces, rest);
    Ok(pieces)
}

/// `%x`, `%>s`, `%{arg}x`, `%!200,304{arg}x`, `%%`, and Apache's own escapes of the configuration (`\"`, `\t`).
fn apache_pieces(format: &str) -> Result<Vec<Piece>, String> {
    let mut pieces = Vec::new();
    let mut chars = format.chars().peekable();
    let mut literal = String::new();
    while let Some(c) = chars.next() {
        match c {
            '\\' => match chars.next() {
                Some('t') => literal.push('\t'),
                Some(other) => literal.push(other),
                None => return Err("it ends in a backslash".into()),
            },
            '%' if chars.peek() == Some(&'%') => {
                chars.next();
                literal.push('%');
            }
            '%' => {
                push_literal(&mut pieces, &std::mem::take(&mut literal));
                while chars.peek().is_some_and(|c| *c == '!' || *c == ',' || c.is_ascii_digit()) {
                    chars.next();
                }
                let mut argument = None;
                if chars.peek() == Some(&'{') {
                    chars.next();
                    let inner: String = chars.by_ref().take_while(|c| *c != '}').collect();
                    argument = Some(inner);
                }
                let mut letter = String::new();
                letter.extend(chars.next_if(|c| *c == '>' || *c == '<'));
                letter.extend(chars.next_if(|c| *c == '^'));
                let directive = chars.next().ok_or("it ends in a `%`")?;
                letter.push(directive);
                let (name, kind) = variables::apache(&letter, argument.as_deref())
                    .or_else(|| variables::apache(letter.trim_start_matches(['<', '>']), argument.as_deref()))
                    .ok_or_else(|| format!("the directive `%{letter}` is not known"))?;
                if letter == "t" && argument.is_none() {
                    // Apache writes the brackets itself.
                    push_literal(&mut pieces, "[");
                    pieces.push(Piece::Field { name, kind, known: true });
                    push_literal(&mut pieces, "]");
                } else {
                    pieces.push(Piece::Field { name, kind, known: true });
                }
            }
            other => literal.push(other),
        }
    }
    push_literal(&mut pieces, &literal);
    Ok(pieces)
}

fn push_literal(pieces: &mut Vec<Piece>, text: &str) {
    match pieces.last_mut() {
        _ if text.is_empty() => {}
        Some(Piece::Literal(last)) => last.push_str(text),
        _ => pieces.push(Piece::Literal(text.to_owned())),
    }
}

fn assemble(text: &str, mut pieces: Vec<Piece>) -> Result<LogFormat, String> {
    join_path_and_query(&mut pieces);
    let last_known = pieces.iter().rposition(|p| matches!(p, Piece::Field { known: true, .. }));
    let first_of_rest = pieces.iter().enumerate().position(|(at, p)| {
        matches!(p, Piece::Field { known: false, .. }) && last_known.is_none_or(|known| at > known)
    });
    let mut format =
        LogFormat { text: text.to_owned(), parts: Vec::new(), columns: Vec::new(), rest_from: None, time: None };
    let mut quotes = 0;
    let mut after_field = false;
    for (at, piece) in pieces.into_iter().enumerate() {
        match piece {
            Piece::Literal(literal) => {
                quotes += literal.matches('"').count();
                format.parts.push(Part::Literal(literal.into_bytes()));
                after_field = false;
            }
            Piece::Field { name, kind, .. } => {
                if after_field {
                    return Err(format!(
                        "two fields stand side by side before {name:?}, so where one ends cannot be told"
                    ));
                }
                if Some(at) == first_of_rest {
                    format.rest_from = Some(format.parts.len());
                }
                let in_rest = format.rest_from.is_some();
                add_field(&mut format, name, kind, quotes % 2 == 1, in_rest);
                after_field = true;
            }
        }
    }
    if format.columns.is_empty() && format.time.is_none() {
        return Err("it holds no field".into());
    }
    Ok(format)
}

fn add_field(format: &mut LogFormat, name: String, kind: FieldKind, quoted: bool, in_rest: bool) {
    let column = format.columns.len();
    // A second time field is kept as text: only one can be the event time.
    let kind = match kind {
        FieldKind::Time(_) if format.time.is_some() => FieldKind::Text,
        other => other,
    };
    if let FieldKind::Time(_) = kind {
        format.time = Some(format.parts.len());
    }
    if !in_rest {
        for (name, kind) in variables::columns(&name, kind) {
            let taken = |candidate: &str| format.columns.iter().any(|c| c.name == candidate);
            let unique = (1..).map(|n| if n == 1 { name.clone() } else { format!("{name}_{n}") }).find(|c| !taken(c));
            format.columns.push(Column { name: unique.unwrap_or(name), kind });
        }
    }
    format.parts.push(Part::Field { kind, quoted, column });
}

/// `%U%q` is one path with its query.
fn join_path_and_query(pieces: &mut Vec<Piece>) {
    let named =
        |piece: Option<&Piece>, wanted: &str| matches!(piece, Some(Piece::Field { name, .. }) if name == wanted);
    let mut at = 0;
    while at + 1 < pieces.len() {
        if named(pieces.get(at), "path") && named(pieces.get(at + 1), "query") {
            pieces.remove(at + 1);
        }
        at += 1;
    }
}
