//! The notation in which the table writes packets, and its two readings: bytes to send, and what is expected to come.
//!
//! | written | means |
//! |---|---|
//! | `82` | a byte in hexadecimal |
//! | `"a/b"` | a string with its two bytes of length; `@` in it stands for the row's own name |
//! | `'abc'` | bytes of text without a length; `@` as above |
//! | `( … )` | two bytes of length and what is inside: strings that are not UTF-8, binary data |
//! | `{ … }` | Remaining Length and what is inside |
//! | `< … >` | in MQTT 5, a property section: its length and what is inside; in 3.1.1, nothing |
//! | `V` | the protocol level of the version |
//! | `5[ … ]`, `4[ … ]` | only in MQTT 5, only in 3.1.1 |
//! | `$a` | a packet identifier that the server chose: bound where it is first expected, then the same everywhere |
//! | `x*100` | `x` a hundred times |
//! | `??`, `~`, `<~>` | expected only: any byte, anything to the end of the packet, any properties |
//!
//! Expected properties may come in any order; properties with the same identifier keep theirs.

use std::collections::HashMap;
use std::iter::Peekable;
use std::str::Chars;

use anyhow::{Context, Result, bail, ensure};
use millwright_broker::codec::Version;

/// Packet identifiers that the server chose, by the letter that the table gives them.
pub type Ids = HashMap<char, [u8; 2]>;

/// What a notation is read with.
pub struct Env<'e> {
    pub version: Version,
    pub name: &'e str,
}

#[derive(Debug, Clone, PartialEq)]
enum Piece {
    Byte(u8),
    Id(char),
    Any,
    Rest,
    Properties(Vec<u8>),
    AnyProperties,
}

/// A packet that is expected.
pub struct Pattern {
    first: u8,
    body: Vec<Piece>,
}

/// The bytes of a notation.
pub fn bytes(text: &str, env: &Env<'_>, ids: &Ids) -> Result<Vec<u8>> {
    let mut reader = Reader { chars: text.chars().peekable(), env, expects: false };
    flat(&reader.pieces(None)?, ids).with_context(|| format!("in `{text}`"))
}

/// Only packet identifiers and bytes have a fixed form.
fn flat(pieces: &[Piece], ids: &Ids) -> Result<Vec<u8>> {
    let mut out = Vec::new();
    for piece in pieces {
        match piece {
            Piece::Byte(byte) => out.push(*byte),
            Piece::Id(letter) => out.extend(ids.get(letter).with_context(|| format!("${letter} is not bound"))?),
            _ => bail!("a placeholder cannot be sent, and has no length"),
        }
    }
    Ok(out)
}

pub fn pattern(text: &str, env: &Env<'_>) -> Result<Pattern> {
    let mut reader = Reader { chars: text.chars().peekable(), env, expects: true };
    reader.skip_space();
    let first = reader.hex()?;
    reader.skip_space();
    ensure!(reader.chars.next() == Some('{'), "`{text}`: an expected packet is a byte and {{ its body }}");
    let body = reader.pieces(Some('}'))?;
    reader.skip_space();
    ensure!(reader.chars.next().is_none(), "`{text}`: one packet at a time is expected");
    Ok(Pattern { first, body })
}

impl Pattern {
    /// Whether the packet is the one that is expected. Binds the identifiers that were not bound.
    pub fn matches(&self, first: u8, body: &[u8], ids: &mut Ids) -> bool {
        self.first == first && self.walk(body, ids).is_some()
    }

    fn walk(&self, mut body: &[u8], ids: &mut Ids) -> Option<()> {
        for piece in &self.body {
            match piece {
                Piece::Byte(expected) => {
                    let (byte, rest) = body.split_first()?;
                    (byte == expected).then_some(())?;
                    body = rest;
                }
                Piece::Any => body = body.get(1..)?,
                Piece::Id(letter) => {
                    let (id, rest) = body.split_first_chunk::<2>()?;
                    (*ids.entry(*letter).or_insert(*id) == *id && *id != [0, 0]).then_some(())?;
                    body = rest;
                }
                Piece::Properties(expected) => {
                    let (section, rest) = split_section(body)?;
                    (sorted(section)? == sorted(expected)?).then_some(())?;
                    body = rest;
                }
                Piece::AnyProperties => body = split_section(body)?.1,
                Piece::Rest => return Some(()),
            }
        }
        body.is_empty().then_some(())
    }
}

struct Reader<'t> {
    chars: Peekable<Chars<'t>>,
    env: &'t Env<'t>,
    expects: bool,
}

impl Reader<'_> {
    fn skip_space(&mut self) {
        while self.chars.next_if(|letter| letter.is_whitespace()).is_some() {}
    }

    fn hex(&mut self) -> Result<u8> {
        let mut digit = || self.chars.next().and_then(|letter| letter.to_digit(16)).context("not a byte");
        Ok((digit()? << 4 | digit()?) as u8)
    }

    fn pieces(&mut self, end: Option<char>) -> Result<Vec<Piece>> {
        let mut pieces = Vec::new();
        loop {
            self.skip_space();
            match self.chars.peek() {
                None => {
                    ensure!(end.is_none(), "{end:?} is missing");
                    return Ok(pieces);
                }
                Some(letter) if Some(*letter) == end => {
                    self.chars.next();
                    return Ok(pieces);
                }
                Some(_) => {}
            }
            let element = self.element()?;
            pieces.extend(std::iter::repeat_n(element, self.times()?).flatten());
        }
    }

    fn times(&mut self) -> Result<usize> {
        if self.chars.next_if_eq(&'*').is_none() {
            return Ok(1);
        }
        let mut digits = String::new();
        while let Some(digit) = self.chars.next_if(char::is_ascii_digit) {
            digits.push(digit);
        }
        Ok(digits.parse()?)
    }

    fn element(&mut self) -> Result<Vec<Piece>> {
        let v5 = self.env.version == Version::V5;
        let letter = self.chars.peek().copied().unwrap_or_default();
        let mut ahead = self.chars.clone();
        ahead.next();
        if let ('4' | '5', Some('[')) = (letter, ahead.next()) {
            self.chars.nth(1);
            let inside = self.pieces(Some(']'))?;
            return Ok(if (letter == '5') == v5 { inside } else { Vec::new() });
        }
        if letter.is_ascii_hexdigit() {
            return Ok(vec![Piece::Byte(self.hex()?)]);
        }
        self.chars.next();
        Ok(match letter {
            'V' => vec![Piece::Byte(if v5 { 5 } else { 4 })],
            '$' => vec![Piece::Id(self.chars.next().context("$ needs a letter")?)],
            '~' => vec![Piece::Rest],
            '?' => {
                self.chars.next();
                vec![Piece::Any]
            }
            '"' | '\'' => {
                let mut text = String::new();
                loop {
                    match self.chars.next().context("a string does not end")? {
                        end if end == letter => break,
                        '@' => text.push_str(self.env.name),
                        other => text.push(other),
                    }
                }
                let text: Vec<Piece> = text.into_bytes().into_iter().map(Piece::Byte).collect();
                if letter == '"' { with_length(text)? } else { text }
            }
            '(' => with_length(self.pieces(Some(')'))?)?,
            '{' => counted(self.pieces(Some('}'))?),
            '<' => {
                let inside = self.pieces(Some('>'))?;
                match (v5, self.expects) {
                    (false, _) => Vec::new(),
                    (true, false) => counted(inside),
                    (true, true) if inside == [Piece::Rest] => vec![Piece::AnyProperties],
                    (true, true) => vec![Piece::Properties(flat(&inside, &Ids::new())?)],
                }
            }
            other => bail!("what is `{other}`?"),
        })
    }
}

/// A packet identifier is two bytes, whichever it is.
fn len(pieces: &[Piece]) -> usize {
    pieces.iter().map(|piece| if matches!(piece, Piece::Id(_)) { 2 } else { 1 }).sum()
}

fn with_length(inside: Vec<Piece>) -> Result<Vec<Piece>> {
    let [high, low] = u16::try_from(len(&inside))?.to_be_bytes();
    Ok([vec![Piece::Byte(high), Piece::Byte(low)], inside].concat())
}

fn counted(inside: Vec<Piece>) -> Vec<Piece> {
    let mut left = len(&inside);
    let mut pieces = Vec::new();
    loop {
        let more = if left > 0x7F { 0x80 } else { 0 };
        pieces.push(Piece::Byte((left & 0x7F) as u8 | more));
        left >>= 7;
        if left == 0 {
            return [pieces, inside].concat();
        }
    }
}

/// A variable byte integer at the start and how long it is; `None` if it is cut off or has more than four bytes.
pub fn varint(bytes: &[u8]) -> Option<(usize, usize)> {
    let mut value = 0;
    for (index, byte) in bytes.iter().take(4).enumerate() {
        value |= usize::from(byte & 0x7F) << (7 * index);
        if byte & 0x80 == 0 {
            return Some((value, index + 1));
        }
    }
    None
}

/// Cuts the property section off the front.
pub fn split_section(body: &[u8]) -> Option<(&[u8], &[u8])> {
    let (length, width) = varint(body)?;
    body.get(width..)?.split_at_checked(length)
}

/// The properties of a section: identifier and value. `None` if it is not one.
pub fn properties(mut section: &[u8]) -> Option<Vec<(u8, &[u8])>> {
    let mut found = Vec::new();
    while let Some((id, rest)) = section.split_first() {
        let text = |at: usize| Some(at + 2 + usize::from(u16::from_be_bytes(*rest.get(at..)?.first_chunk()?)));
        let length = match id {
            0x01 | 0x17 | 0x19 | 0x24 | 0x25 | 0x28..=0x2A => 1,
            0x13 | 0x21..=0x23 => 2,
            0x02 | 0x11 | 0x18 | 0x27 => 4,
            0x0B => varint(rest)?.1,
            0x26 => text(text(0)?)?,
            0x03 | 0x08 | 0x09 | 0x12 | 0x15 | 0x16 | 0x1A | 0x1C | 0x1F => text(0)?,
            _ => return None,
        };
        let (value, after) = rest.split_at_checked(length)?;
        found.push((*id, value));
        section = after;
    }
    Some(found)
}

fn sorted(section: &[u8]) -> Option<Vec<(u8, &[u8])>> {
    let mut found = properties(section)?;
    found.sort_by_key(|(id, _)| *id);
    Some(found)
}
