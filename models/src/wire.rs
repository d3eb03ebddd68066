//! Walks protobuf framing without allocating.
//!
//! Owns splitting a message into its fields as slices. Never interprets a payload: the schema is with the callers. A length
//! that points past the end is an error, so no slice is longer than the input.

/// The protobuf framing of a file breaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// A field runs past the end of its message.
    #[error("a field at byte {at} runs past the end, so the file is truncated or not protobuf")]
    Truncated {
        /// Offset within the message that was walked.
        at: usize,
    },
    /// A tag that protobuf does not allow, or a group, which ONNX does not use.
    #[error("byte {at} is not the start of a protobuf field")]
    Tag {
        /// Offset within the message that was walked.
        at: usize,
    },
}

/// One field of a message.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Field<'a> {
    /// The field number.
    pub(crate) number: u32,
    /// Payload of a length-delimited field (message, string, bytes, packed numbers); `None` for a plain number.
    pub(crate) payload: Option<&'a [u8]>,
    /// The whole field with its tag, as it is in the file.
    pub(crate) bytes: &'a [u8],
}

/// The fields of `message`, in order; the first error ends the iteration.
pub(crate) fn fields(message: &[u8]) -> Fields<'_> {
    Fields { message, at: 0 }
}

/// Walks the top level once.
///
/// # Errors
/// The first [`WireError`].
pub(crate) fn check_top_level(message: &[u8]) -> Result<(), WireError> {
    fields(message).try_for_each(|field| field.map(|_| ()))
}

/// See [`fields`].
pub(crate) struct Fields<'a> {
    message: &'a [u8],
    at: usize,
}

impl<'a> Fields<'a> {
    fn varint(&mut self) -> Option<u64> {
        let mut value = 0_u64;
        // Ten groups of seven bits hold 64 bits.
        for shift in (0..70).step_by(7) {
            let byte = *self.message.get(self.at)?;
            self.at += 1;
            value |= u64::from(byte & 0x7f).checked_shl(shift).unwrap_or(0);
            if byte & 0x80 == 0 {
                return Some(value);
            }
        }
        None
    }

    fn take(&mut self, len: usize) -> Option<&'a [u8]> {
        let end = self.at.checked_add(len)?;
        let slice = self.message.get(self.at..end)?;
        self.at = end;
        Some(slice)
    }

    fn field(&mut self) -> Result<Field<'a>, WireError> {
        let start = self.at;
        let truncated = WireError::Truncated { at: start };
        let tag = self.varint().ok_or(truncated)?;
        let number = u32::try_from(tag >> 3).ok().filter(|n| (1..1 << 29).contains(n));
        let number = number.ok_or(WireError::Tag { at: start })?;
        let payload = match tag & 7 {
            0 => self.varint().map(|_| None),
            1 => self.take(8).map(|_| None),
            2 => {
                let len = self.varint().and_then(|len| usize::try_from(len).ok());
                len.and_then(|len| self.take(len)).map(Some)
            }
            5 => self.take(4).map(|_| None),
            _ => return Err(WireError::Tag { at: start }),
        };
        let payload = payload.ok_or(truncated)?;
        let bytes = self.message.get(start..self.at).ok_or(truncated)?;
        Ok(Field { number, payload, bytes })
    }
}

impl<'a> Iterator for Fields<'a> {
    type Item = Result<Field<'a>, WireError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.at >= self.message.len() {
            return None;
        }
        let field = self.field();
        if field.is_err() {
            self.at = self.message.len();
        }
        Some(field)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn splits_fields_and_stops_at_the_first_break() {
        // A varint, a fixed64, bytes and a fixed32 are told apart; a length past the end is an error and the end.
        let message =
            [0x08, 0x96, 0x01, 0x11, 1, 2, 3, 4, 5, 6, 7, 8, 0x1a, 2, b'o', b'k', 0x25, 1, 2, 3, 4, 0x2a, 9, 0];
        let all: Vec<_> = fields(&message).collect();
        assert_eq!(all.len(), 5);
        assert_eq!(all[2].unwrap().payload, Some(b"ok".as_slice()));
        assert_eq!(all[2].unwrap().bytes, [0x1a, 2, b'o', b'k']);
        assert_eq!(all[4].unwrap_err(), WireError::Truncated { at: 21 });
    }

    proptest! {
        #[test]
        fn never_panics_and_covers_what_it_accepts(message in proptest::collection::vec(any::<u8>(), 0..200)) {
            // Whatever the bytes, walking ends; when nothing breaks, the fields are the message.
            let parts: Result<Vec<_>, _> = fields(&message).collect();
            if let Ok(parts) = parts {
                let joined: Vec<u8> = parts.iter().flat_map(|f| f.bytes.iter().copied()).collect();
                prop_assert_eq!(joined, message);
            }
        }
    }
}
