//! The names of things: assets, gateways, channels.
//!
//! Owns the rule of what a name may be, so that holding one is the proof that it fits one level of a topic and one
//! component of a path. Never looks anything up. A name has 1 to [`NAME_BYTES_MAX`] bytes.

use std::fmt;
use std::sync::Arc;

/// The longest name, in bytes: a topic of sixteen full levels still fits a topic's 1,024 bytes.
pub const NAME_BYTES_MAX: usize = 64;

/// How much of a refused name an error repeats; what is refused may be a megabyte of hostile bytes.
const SHOWN_CHARS_MAX: usize = 80;

/// What a name breaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NameFault {
    /// A name has at least one character.
    #[error("it is empty")]
    Empty,
    /// Longer than [`NAME_BYTES_MAX`].
    #[error("it has {bytes} bytes, at most {NAME_BYTES_MAX} are allowed")]
    TooLong {
        /// Its length.
        bytes: usize,
    },
    /// `/`, `+` and `#` mean something in a topic.
    #[error("it contains `{character}`, which has a meaning in topics")]
    TopicCharacter {
        /// The offending character.
        character: char,
    },
    /// Control characters, the null character among them, garble logs and terminals.
    #[error("it contains the control character U+{code:04X}")]
    Control {
        /// Its code point.
        code: u32,
    },
    /// `.` and `..` are directories.
    #[error("`.` and `..` mean directories")]
    Dots,
    /// A blank at either end cannot be seen.
    #[error("it begins or ends with a blank")]
    Blank,
}

/// Why a string is not a name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{shown}` is not {what}: {fault}")]
pub struct IdError {
    /// What the name was to be, with its article: "an asset name".
    pub what: &'static str,
    /// The refused string, shortened and escaped.
    pub shown: String,
    /// The rule it breaks.
    pub fault: NameFault,
}

/// Checks `name` against the rules that all names share.
///
/// # Errors
/// The first rule that it breaks.
pub fn check_name(name: &str) -> Result<(), NameFault> {
    if name.is_empty() {
        return Err(NameFault::Empty);
    }
    if name.len() > NAME_BYTES_MAX {
        return Err(NameFault::TooLong { bytes: name.len() });
    }
    for character in name.chars() {
        if matches!(character, '/' | '+' | '#') {
            return Err(NameFault::TopicCharacter { character });
        }
        if character.is_control() {
            return Err(NameFault::Control { code: u32::from(character) });
        }
    }
    if name == "." || name == ".." {
        return Err(NameFault::Dots);
    }
    if name.trim().len() != name.len() {
        return Err(NameFault::Blank);
    }
    Ok(())
}

/// `text` as an error may repeat it: escaped, and cut at [`SHOWN_CHARS_MAX`] characters.
pub(crate) fn shorten(text: &str) -> String {
    let mut shown: String = text.chars().take(SHOWN_CHARS_MAX).flat_map(char::escape_debug).collect();
    if text.chars().nth(SHOWN_CHARS_MAX).is_some() {
        shown.push('…');
    }
    shown
}

macro_rules! name {
    ($(#[$doc:meta])* $name:ident, $what:literal) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(Arc<str>);

        impl $name {
            /// Checks a name.
            ///
            /// # Errors
            /// A [`IdError`] that names the rule it breaks.
            pub fn parse(name: &str) -> Result<$name, IdError> {
                match check_name(name) {
                    Ok(()) => Ok($name(Arc::from(name))),
                    Err(fault) => Err(IdError { what: $what, shown: shorten(name), fault }),
                }
            }

            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:?}", &*self.0)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }

        impl std::str::FromStr for $name {
            type Err = IdError;
            fn from_str(name: &str) -> Result<$name, IdError> {
                $name::parse(name)
            }
        }

        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }

        impl std::borrow::Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }

        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(&self.0)
            }
        }

        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<$name, D::Error> {
                deserializer.deserialize_str(NameVisitor($name::parse, $what))
            }
        }
    };
}

/// Reads a name without a copy of the string in between.
struct NameVisitor<T>(fn(&str) -> Result<T, IdError>, &'static str);

impl<T> serde::de::Visitor<'_> for NameVisitor<T> {
    type Value = T;
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.1)
    }
    fn visit_str<E: serde::de::Error>(self, name: &str) -> Result<T, E> {
        (self.0)(name).map_err(E::custom)
    }
}

name! {
    /// A machine, or a part of one, that is watched as a whole. Cheap to clone.
    AssetId, "an asset name"
}
name! {
    /// One gateway of a fleet. Cheap to clone.
    GatewayId, "a gateway name"
}
name! {
    /// One measured quantity of an asset. Cheap to clone.
    ChannelName, "a channel name"
}

#[cfg(test)]
mod tests {
    use super::*;

    // A name is refused with the rule it breaks, and the longest allowed name is accepted.
    #[test]
    fn names_are_checked() {
        let check = |name: &str, expected: Result<(), NameFault>| assert_eq!(check_name(name), expected, "{name:?}");
        check("pump-1", Ok(()));
        check("Volume Flow RateRMS", Ok(()));
        check("Ü", Ok(()));
        check("a.b", Ok(()));
        check(&"a".repeat(NAME_BYTES_MAX), Ok(()));
        check(&"a".repeat(NAME_BYTES_MAX + 1), Err(NameFault::TooLong { bytes: NAME_BYTES_MAX + 1 }));
        check("", Err(NameFault::Empty));
        check("a/b", Err(NameFault::TopicCharacter { character: '/' }));
        check("+", Err(NameFault::TopicCharacter { character: '+' }));
        check("a#", Err(NameFault::TopicCharacter { character: '#' }));
        check("a\0", Err(NameFault::Control { code: 0 }));
        check("a\u{85}b", Err(NameFault::Control { code: 0x85 }));
        check("..", Err(NameFault::Dots));
        check(" a", Err(NameFault::Blank));
    }

    // An error says what the name was to be, repeats it, and says why it is refused.
    #[test]
    fn errors_say_what_and_why() {
        let error = AssetId::parse("hall/1").unwrap_err().to_string();
        assert_eq!(error, "`hall/1` is not an asset name: it contains `/`, which has a meaning in topics");
        let error = ChannelName::parse(&"\u{1}".repeat(1_000)).unwrap_err();
        assert!(error.shown.len() < 1_000, "a hostile name is not repeated whole");
    }

    // A name that arrives through serde passes the same checks.
    #[test]
    fn serde_checks_names() {
        assert_eq!(serde_json::from_str::<AssetId>("\"m\"").unwrap().as_str(), "m");
        assert!(serde_json::from_str::<AssetId>("\"a/b\"").is_err());
        assert_eq!(serde_json::to_string(&GatewayId::parse("gw-1").unwrap()).unwrap(), "\"gw-1\"");
    }
}
