//! Templates of names: how a topic becomes an asset or a channel.
//!
//! Owns the syntax: literal text, `{1}` for the level that the first `+` of the filter matched, `{2}` for the
//! second and so on, and for Sparkplug B `{group}`, `{node}` and `{device}`. Never parses a topic itself. A template
//! has at most [`PIECES_MAX`] pieces.

use std::fmt;

use crate::ids::{NameFault, check_name, shorten};

/// The most pieces of a template; a filter has at most 64 levels, a useful template has three or four pieces.
pub const PIECES_MAX: usize = 16;

/// A part of a Sparkplug B topic that a template may name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SparkplugPart {
    /// `{group}`: the second level.
    Group,
    /// `{node}`: the edge node, the fourth level.
    Node,
    /// `{device}`: the fifth level; for messages about the edge node itself, the node.
    Device,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Piece {
    Literal(String),
    /// The capture with this index, from 0.
    Capture(usize),
    Sparkplug(SparkplugPart),
}

/// A parsed template; only [`NameTemplate::parse`] makes one.
#[derive(Clone, PartialEq, Eq)]
pub struct NameTemplate {
    written: String,
    pieces: Vec<Piece>,
}

/// Why a string is not a template.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TemplateError {
    /// Nothing between the quotes.
    #[error("the template is empty")]
    Empty,
    /// `{` without `}`, or the other way round.
    #[error("a `{{` or `}}` in \"{template}\" has no partner")]
    Unbalanced {
        /// The template.
        template: String,
    },
    /// Braces with something unknown between them.
    #[error("\"{template}\" contains `{{{placeholder}}}`, which means nothing")]
    Unknown {
        /// The template.
        template: String,
        /// What stands between the braces.
        placeholder: String,
    },
    /// The literal part breaks the rules of names.
    #[error("\"{template}\" cannot become a name: {fault}")]
    Literal {
        /// The template.
        template: String,
        /// The broken rule.
        fault: NameFault,
    },
    /// More pieces than [`PIECES_MAX`].
    #[error("the template has more than {PIECES_MAX} pieces")]
    TooLong,
}

impl NameTemplate {
    /// Checks a template. Whether its captures exist depends on a filter: see [`NameTemplate::captures_needed`].
    ///
    /// # Errors
    /// A [`TemplateError`] that names the fault.
    pub fn parse(template: &str) -> Result<NameTemplate, TemplateError> {
        if template.is_empty() {
            return Err(TemplateError::Empty);
        }
        let unbalanced = || TemplateError::Unbalanced { template: shorten(template) };
        let mut pieces = Vec::new();
        let mut rest = template;
        while !rest.is_empty() {
            if pieces.len() >= PIECES_MAX {
                return Err(TemplateError::TooLong);
            }
            let (literal, tail) = rest.split_at(rest.find(['{', '}']).unwrap_or(rest.len()));
            if !literal.is_empty() {
                pieces.push(Piece::Literal(literal.to_owned()));
                rest = tail;
                continue;
            }
            let inner = tail.strip_prefix('{').ok_or_else(unbalanced)?;
            let (placeholder, after) = inner.split_once('}').ok_or_else(unbalanced)?;
            pieces.push(placeholder_piece(placeholder).ok_or_else(|| TemplateError::Unknown {
                template: shorten(template),
                placeholder: shorten(placeholder),
            })?);
            rest = after;
        }
        let parsed = NameTemplate { written: template.to_owned(), pieces };
        // With the shortest possible levels in place of the placeholders, what is left is the literal part's fault.
        match check_name(&parsed.fill(|_| Some("x")).unwrap_or_default()) {
            Ok(()) => Ok(parsed),
            Err(fault) => Err(TemplateError::Literal { template: shorten(template), fault }),
        }
    }

    /// How many captures the filter must give: 2 if `{2}` is the highest.
    pub fn captures_needed(&self) -> usize {
        let highest = |piece: &Piece| if let Piece::Capture(index) = piece { index.saturating_add(1) } else { 0 };
        self.pieces.iter().map(highest).max().unwrap_or(0)
    }

    /// Whether it names a part of a Sparkplug B topic.
    pub fn needs_sparkplug(&self) -> bool {
        self.pieces.iter().any(|piece| matches!(piece, Piece::Sparkplug(_)))
    }

    /// Whether it is the same for every topic.
    pub fn is_literal(&self) -> bool {
        self.pieces.iter().all(|piece| matches!(piece, Piece::Literal(_)))
    }

    /// The template filled in; `None` if a placeholder has no value.
    pub fn render<'v>(
        &self,
        captures: &[&'v str],
        sparkplug: impl Fn(SparkplugPart) -> Option<&'v str>,
    ) -> Option<String> {
        self.fill(|piece| match piece {
            Piece::Literal(_) => None,
            Piece::Capture(index) => captures.get(*index).copied(),
            Piece::Sparkplug(part) => sparkplug(*part),
        })
    }

    fn fill<'v>(&self, value: impl Fn(&Piece) -> Option<&'v str>) -> Option<String> {
        let mut name = String::new();
        for piece in &self.pieces {
            match piece {
                Piece::Literal(literal) => name.push_str(literal),
                placeholder => name.push_str(value(placeholder)?),
            }
        }
        Some(name)
    }
}

impl fmt::Debug for NameTemplate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.written)
    }
}

impl fmt::Display for NameTemplate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.written)
    }
}

fn placeholder_piece(placeholder: &str) -> Option<Piece> {
    match placeholder {
        "group" => Some(Piece::Sparkplug(SparkplugPart::Group)),
        "node" => Some(Piece::Sparkplug(SparkplugPart::Node)),
        "device" => Some(Piece::Sparkplug(SparkplugPart::Device)),
        number if number.bytes().all(|byte| byte.is_ascii_digit()) => {
            // `{0}` is refused: the first capture is `{1}`, as the first `+` is the first.
            number.parse::<u8>().ok()?.checked_sub(1).map(|index| Piece::Capture(usize::from(index)))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // Placeholders are filled from the captures and the Sparkplug topic, literals stay.
    #[test]
    fn templates_are_filled() {
        let render = |template: &str, captures: &[&'static str]| {
            let sparkplug = |part| match part {
                SparkplugPart::Group => Some("g"),
                SparkplugPart::Node => Some("n"),
                SparkplugPart::Device => None,
            };
            NameTemplate::parse(template).unwrap().render(captures, sparkplug)
        };
        assert_eq!(render("pump", &[]).as_deref(), Some("pump"));
        assert_eq!(render("{1}", &["a"]).as_deref(), Some("a"));
        assert_eq!(render("{2}-{1}.x", &["a", "b"]).as_deref(), Some("b-a.x"));
        assert_eq!(render("{2}", &["a"]), None);
        assert_eq!(render("{group}.{node}", &[]).as_deref(), Some("g.n"));
        assert_eq!(render("{device}", &[]), None);
    }

    // A string that is not a template is refused with its fault.
    #[test]
    fn malformed_templates_are_refused() {
        let fault = |template: &str| NameTemplate::parse(template).unwrap_err().to_string();
        assert_eq!(fault(""), "the template is empty");
        assert_eq!(fault("{1"), "a `{` or `}` in \"{1\" has no partner");
        assert_eq!(fault("1}"), "a `{` or `}` in \"1}\" has no partner");
        assert_eq!(fault("{asset}"), "\"{asset}\" contains `{asset}`, which means nothing");
        assert_eq!(fault("{0}"), "\"{0}\" contains `{0}`, which means nothing");
        assert_eq!(fault("{}"), "\"{}\" contains `{}`, which means nothing");
        assert_eq!(
            fault("hall/{1}"),
            "\"hall/{1}\" cannot become a name: it contains `/`, which has a meaning in topics"
        );
        assert_eq!(fault(&"{1}".repeat(PIECES_MAX + 1)), "the template has more than 16 pieces");
        assert_eq!(NameTemplate::parse("{3}{1}").unwrap().captures_needed(), 3);
    }
}
