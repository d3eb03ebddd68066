//! Reads the data types of MQTT (§1.5) from the body of one packet.
//!
//! Every read is checked; strings and binary data are slices of the packet, not copies.

use bytes::{Buf, Bytes};

use super::error::DecodeError;

/// A UTF-8 encoded string of MQTT that has passed the checks of [MQTT-1.5.4]; a slice of the packet it came in.
#[derive(Clone, PartialEq, Eq, Hash, Default)]
pub struct Text(Bytes);

impl Text {
    /// Checks the bytes of a string: well-formed UTF-8 without U+0000. [MQTT-1.5.4-1], [MQTT-1.5.4-2]
    ///
    /// # Errors
    /// A [`DecodeError`] that names the clause.
    pub fn parse(bytes: Bytes) -> Result<Text, DecodeError> {
        if std::str::from_utf8(&bytes).is_err() {
            return Err(DecodeError::malformed("MQTT-1.5.4-1", "a string is not UTF-8"));
        }
        if bytes.contains(&0) {
            return Err(DecodeError::malformed("MQTT-1.5.4-2", "a string contains the null character"));
        }
        Ok(Text(bytes))
    }

    /// The string.
    pub fn as_str(&self) -> &str {
        // Checked by `parse`; the only other constructor takes a `str`.
        std::str::from_utf8(&self.0).unwrap_or_default()
    }

    /// The bytes of the string.
    pub fn as_bytes(&self) -> &Bytes {
        &self.0
    }
}

impl From<&str> for Text {
    fn from(text: &str) -> Text {
        Text(Bytes::copy_from_slice(text.as_bytes()))
    }
}

impl std::fmt::Debug for Text {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?}", self.as_str())
    }
}

const SHORT: DecodeError = DecodeError::malformed("MQTT-2.1.4", "the packet ends before its fields do");

/// Reads forward through the bytes of one packet.
pub(crate) struct Reader {
    bytes: Bytes,
}

impl Reader {
    pub(crate) fn new(bytes: Bytes) -> Reader {
        Reader { bytes }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// What has not been read yet.
    pub(crate) fn rest(self) -> Bytes {
        self.bytes
    }

    /// The bytes not read yet, without reading them.
    pub(crate) fn remaining(&self) -> &Bytes {
        &self.bytes
    }

    pub(crate) fn take(&mut self, len: usize) -> Result<Bytes, DecodeError> {
        if len > self.bytes.len() {
            return Err(SHORT);
        }
        Ok(self.bytes.split_to(len))
    }

    pub(crate) fn skip(&mut self, len: usize) -> Result<(), DecodeError> {
        if len > self.bytes.len() {
            return Err(SHORT);
        }
        self.bytes.advance(len);
        Ok(())
    }

    pub(crate) fn u8(&mut self) -> Result<u8, DecodeError> {
        let byte = *self.bytes.first().ok_or(SHORT)?;
        self.skip(1)?;
        Ok(byte)
    }

    pub(crate) fn u16(&mut self) -> Result<u16, DecodeError> {
        let bytes = *self.bytes.first_chunk::<2>().ok_or(SHORT)?;
        self.skip(2)?;
        Ok(u16::from_be_bytes(bytes))
    }

    pub(crate) fn u32(&mut self) -> Result<u32, DecodeError> {
        let bytes = *self.bytes.first_chunk::<4>().ok_or(SHORT)?;
        self.skip(4)?;
        Ok(u32::from_be_bytes(bytes))
    }

    pub(crate) fn varint(&mut self) -> Result<u32, DecodeError> {
        match varint(&self.bytes, true)? {
            Some((value, len)) => {
                self.skip(len)?;
                Ok(value)
            }
            None => Err(SHORT),
        }
    }

    pub(crate) fn binary(&mut self) -> Result<Bytes, DecodeError> {
        let len = usize::from(self.u16()?);
        self.take(len)
    }

    pub(crate) fn text(&mut self) -> Result<Text, DecodeError> {
        Text::parse(self.binary()?)
    }

    /// Refuses bytes after the last field.
    pub(crate) fn end(&self, what: &'static str) -> Result<(), DecodeError> {
        if self.bytes.is_empty() { Ok(()) } else { Err(DecodeError::malformed("MQTT-2.1.4", what)) }
    }
}

/// A variable byte integer at the start of `bytes` and its length, or `None` if it needs more bytes. [MQTT-1.5.5]
///
/// # Errors
/// Longer than four bytes or, if `minimal`, longer than the value needs [MQTT-1.5.5-1]; MQTT 3.1.1 has no such rule.
pub(crate) fn varint(bytes: &[u8], minimal: bool) -> Result<Option<(u32, usize)>, DecodeError> {
    let mut value = 0_u32;
    for (index, byte) in bytes.iter().take(4).enumerate() {
        value |= u32::from(byte & 0x7F) << (7 * index);
        if byte & 0x80 == 0 {
            if minimal && *byte == 0 && index > 0 {
                return Err(DecodeError::malformed("MQTT-1.5.5-1", "a variable byte integer is longer than needed"));
            }
            return Ok(Some((value, index + 1)));
        }
    }
    if bytes.len() >= 4 {
        return Err(DecodeError::malformed("MQTT-1.5.5", "a variable byte integer has more than four bytes"));
    }
    Ok(None)
}
