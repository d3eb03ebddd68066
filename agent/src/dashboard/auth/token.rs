//! Secrets that are handed to a browser: 256 random bits, compared and kept by their hash.
//!
//! Owns their making and comparing. A [`Key`] says nothing about the token it was made of, so it may be kept and compared byte
//! by byte. Never logs a token.

use std::fmt;

use sha2::{Digest, Sha256};

/// Random bytes of a token.
const TOKEN_BYTES: usize = 32;

/// A token as it is sent: hexadecimal digits.
#[derive(Clone)]
pub(crate) struct Token(String);

/// The hash of a token or of credentials.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Key([u8; 32]);

impl Token {
    /// A new one.
    ///
    /// # Errors
    /// The system has no random numbers.
    pub(super) fn new() -> Result<Token, getrandom::Error> {
        let mut bytes = [0_u8; TOKEN_BYTES];
        getrandom::fill(&mut bytes)?;
        Ok(Token(bytes.iter().map(|byte| format!("{byte:02x}")).collect()))
    }

    pub(super) fn as_str(&self) -> &str {
        &self.0
    }

    pub(super) fn key(&self) -> Key {
        Key::of(self.0.as_bytes())
    }

    /// Whether somebody sent this one. Takes as long whatever is sent.
    pub(super) fn is(&self, sent: &[u8]) -> bool {
        self.key() == Key::of(sent)
    }
}

impl Key {
    pub(super) fn of(bytes: &[u8]) -> Key {
        Key(Sha256::digest(bytes).into())
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(…)")
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key(…)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // A token has 256 bits, is like no other, and is never shown.
    #[test]
    fn tokens_are_long_and_different() {
        let (one, other) = (Token::new().unwrap(), Token::new().unwrap());
        assert_eq!(one.as_str().len(), 64);
        assert!(one.is(one.as_str().as_bytes()) && !one.is(other.as_str().as_bytes()) && !one.is(b""));
        assert_eq!(format!("{one:?} {:?}", one.key()), "Token(…) Key(…)");
    }
}
