//! What the gateway and its worker say to each other: length-prefixed postcard.
//!
//! Owns the messages and their framing: four bytes of length, little-endian, then the message. Neither side trusts a length beyond
//! [`MESSAGE_BYTES_MAX`].

use std::io::{Read, Write};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::models::judge::Comparison;
use crate::pipeline::tap::Feed;

/// The largest model, and what is around it.
pub const MESSAGE_BYTES_MAX: usize = 40 << 20;

/// To the worker.
#[derive(Debug, Serialize, Deserialize)]
pub enum Request {
    /// The first message: what the worker may use, and how scores become alarms.
    Begin(Begin),
    /// A model to load.
    Load {
        /// The ONNX file.
        file: Vec<u8>,
        /// The assets it is for.
        assets: Vec<String>,
    },
    /// What was folded; answered by [`Answer::Seen`].
    Feed(Feed),
}

/// What the worker may use.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Begin {
    /// Memory beyond what it needs itself.
    pub memory_bytes_max: u64,
    /// Longest time for loading, optimising and trying a model, seconds; the gateway's side holds it.
    pub load_s_max: u64,
    /// Largest file.
    pub file_bytes_max: u64,
    /// See [`crate::alarm::AlarmSettings`].
    pub raise_rows: u32,
    /// Microseconds.
    pub raise_after_us: i64,
    /// Rows.
    pub clear_rows: u32,
}

/// From the worker.
#[derive(Debug, Serialize, Deserialize)]
pub enum Answer {
    /// The model is loaded and has been tried.
    Loaded(Loaded),
    /// It was refused.
    Refused(String),
    /// A feed was folded; what has been seen since the beginning.
    Seen(Box<Comparison>),
}

/// A model as the worker found it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Loaded {
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: u64,
    /// SHA-256 of the file.
    pub sha256: String,
    /// Time for one window, the median of some, microseconds.
    pub latency_us: u64,
}

/// Encodes a message with its length.
///
/// # Errors
/// It is too large.
pub fn encode<T: Serialize>(message: &T) -> std::io::Result<Vec<u8>> {
    let wrong = |reason: String| std::io::Error::new(std::io::ErrorKind::InvalidData, reason);
    let mut bytes = vec![0; 4];
    bytes = postcard::to_extend(message, bytes).map_err(|error| wrong(error.to_string()))?;
    let length = bytes.len() - 4;
    if length > MESSAGE_BYTES_MAX {
        return Err(wrong(format!("a message of {length} bytes")));
    }
    let prefix = u32::try_from(length).unwrap_or(u32::MAX).to_le_bytes();
    bytes.splice(..4, prefix);
    Ok(bytes)
}

/// The length that a prefix says, if it may be.
///
/// # Errors
/// It is too large.
pub fn length(prefix: [u8; 4]) -> std::io::Result<usize> {
    let length = u32::from_le_bytes(prefix) as usize;
    if length > MESSAGE_BYTES_MAX {
        let reason = format!("a message of {length} bytes");
        return Err(std::io::Error::new(std::io::ErrorKind::InvalidData, reason));
    }
    Ok(length)
}

/// Decodes a message.
///
/// # Errors
/// It is none.
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> std::io::Result<T> {
    postcard::from_bytes(bytes).map_err(|error| std::io::Error::new(std::io::ErrorKind::InvalidData, error.to_string()))
}

/// Writes a message and flushes.
///
/// # Errors
/// The other side is gone.
pub fn write<T: Serialize>(out: &mut impl Write, message: &T) -> std::io::Result<()> {
    out.write_all(&encode(message)?)?;
    out.flush()
}

/// Reads a message; `None` when the other side has closed.
///
/// # Errors
/// What came is no message.
pub fn read<T: DeserializeOwned>(input: &mut impl Read) -> std::io::Result<Option<T>> {
    let mut prefix = [0; 4];
    match input.read_exact(&mut prefix) {
        Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => return Ok(None),
        other => other?,
    }
    let mut bytes = vec![0; length(prefix)?];
    input.read_exact(&mut bytes)?;
    decode(&bytes).map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;

    // A message comes out as it went in; a length beyond the limit and a message cut short are errors, an end is an end.
    #[test]
    fn messages_are_framed() {
        let mut bytes = Vec::new();
        write(&mut bytes, &Answer::Refused("no".to_owned())).unwrap();
        let whole = bytes.clone();
        let answer: Answer = read(&mut whole.as_slice()).unwrap().unwrap();
        assert!(matches!(answer, Answer::Refused(reason) if reason == "no"));
        assert!(read::<Answer>(&mut &bytes[..bytes.len() - 1]).is_err());
        assert!(read::<Answer>(&mut &[][..]).unwrap().is_none());
        assert!(read::<Answer>(&mut &[0xff, 0xff, 0xff, 0xff, 0][..]).is_err());
        assert!(read::<Answer>(&mut &[1, 0, 0, 0, 99][..]).is_err());
    }
}
