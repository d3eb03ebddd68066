//! The SHA-256 of a model file, as bytes and as 64 hexadecimal digits.
//!
//! Owns the text form: lower case when written, either case when read. Never reads a file.

use std::fmt;
use std::str::FromStr;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sha2::Digest as _;

/// A SHA-256 digest.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Digest([u8; 32]);

/// The text is not 64 hexadecimal digits.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "a SHA-256 is written as 64 hexadecimal digits; {found_bytes} characters were given, or one of them is no digit"
)]
pub struct DigestError {
    /// Length of what was given, in bytes.
    pub found_bytes: usize,
}

impl Digest {
    /// Hashes `bytes`.
    pub fn of(bytes: &[u8]) -> Digest {
        Digest(sha2::Sha256::digest(bytes).into())
    }

    /// Hashes the concatenation of `parts`.
    pub fn of_parts<'a>(parts: impl IntoIterator<Item = &'a [u8]>) -> Digest {
        let mut hasher = sha2::Sha256::new();
        for part in parts {
            hasher.update(part);
        }
        Digest(hasher.finalize().into())
    }

    /// The 32 bytes.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for byte in self.0 {
            write!(f, "{byte:02x}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Digest({self})")
    }
}

impl FromStr for Digest {
    type Err = DigestError;

    fn from_str(text: &str) -> Result<Digest, DigestError> {
        let error = DigestError { found_bytes: text.len() };
        if text.len() != 64 {
            return Err(error);
        }
        let mut bytes = [0_u8; 32];
        for (byte, pair) in bytes.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
            let digits = std::str::from_utf8(pair).map_err(|_| error.clone())?;
            // `from_str_radix` accepts a sign; a digest has none.
            if !pair.iter().all(u8::is_ascii_hexdigit) {
                return Err(error);
            }
            *byte = u8::from_str_radix(digits, 16).map_err(|_| error.clone())?;
        }
        Ok(Digest(bytes))
    }
}

impl Serialize for Digest {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Digest, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn matches_the_published_vector_and_reads_back() {
        // The digest of "abc" is the one published in FIPS 180-2, and its text form reads back in either case.
        let digest = Digest::of(b"abc");
        let text = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(digest.to_string(), text);
        assert_eq!(text.to_uppercase().parse::<Digest>(), Ok(digest));
        assert_eq!(Digest::of_parts([b"a".as_slice(), b"bc"]), digest);
    }

    #[test]
    fn refuses_anything_else() {
        // One digit too few, one too many, a sign, a letter outside the alphabet and a multi-byte character are refused.
        let text = Digest::of(b"abc").to_string();
        for bad in [
            &text[1..],
            &format!("{text}0"),
            &format!("+{}", &text[1..]),
            &format!("g{}", &text[1..]),
            &format!("é{}", &text[2..]),
        ] {
            assert!(bad.parse::<Digest>().is_err(), "{bad}");
        }
    }
}
