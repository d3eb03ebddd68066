//! The messages of one channel as one payload of the router.
//!
//! Layout, numbers in little endian: `u64` messages and `u64` bytes that the channel had before; then for each message `u8` flags (QoS
//! in bits 0–1, retain in bit 2), `u32` origin, `u16` length of the topic, `u32` of the properties, `u32` of the payload,
//! and the three. The broker alone writes and reads it.

use bytes::{Buf, BufMut, Bytes, BytesMut};

use super::Space;
use crate::codec::TopicCache;
use crate::message::{Message, QoS};
use crate::session::Slot;

/// A batch is sent when it has this many bytes; a larger message is a batch of its own.
pub(super) const BATCH_BYTES_MAX: usize = 32 * 1024;

const HEADER_BYTES: usize = 16;
const MESSAGE_HEADER_BYTES: usize = 15;

/// A batch that is being filled.
#[derive(Debug)]
pub(super) struct Building {
    pub(super) space: Space,
    pub(super) slot: Slot,
    /// Messages in it.
    pub(super) count: u64,
    bytes: BytesMut,
}

impl Building {
    fn push(&mut self, message: &Message) {
        self.count += 1;
        let out = &mut self.bytes;
        let (topic, properties, payload) = (message.topic.as_str(), &message.properties, &message.payload);
        out.reserve(MESSAGE_HEADER_BYTES + topic.len() + properties.len() + payload.len());
        out.put_u8(message.qos as u8 | u8::from(message.retain) << 2);
        out.put_u32_le(message.origin);
        // Topics are at most 1,024 bytes, packets at most 256 MiB.
        out.put_u16_le(topic.len() as u16);
        out.put_u32_le(properties.len() as u32);
        out.put_u32_le(payload.len() as u32);
        out.put_slice(topic.as_bytes());
        out.put_slice(properties);
        out.put_slice(payload);
    }

    pub(super) fn len(&self) -> usize {
        self.bytes.len()
    }

    /// The payload, with the messages and bytes that the channel had before.
    pub(super) fn finish(mut self, before: u64, bytes_before: u64) -> Bytes {
        if let Some(header) = self.bytes.first_chunk_mut::<HEADER_BYTES>() {
            *header = (u128::from(bytes_before) << 64 | u128::from(before)).to_le_bytes();
        }
        self.bytes.freeze()
    }
}

/// Batches by channel; there are few at a time.
#[derive(Debug, Default)]
pub(super) struct Builder {
    open: Vec<Building>,
}

impl Builder {
    /// Adds a message to its channel's batch; gives the batch if it is full.
    pub(super) fn add(&mut self, space: Space, slot: Slot, message: &Message) -> Option<Building> {
        let known = self.open.iter().position(|building| (building.space, building.slot) == (space, slot));
        let index = known.unwrap_or_else(|| {
            let mut bytes = BytesMut::with_capacity(HEADER_BYTES + MESSAGE_HEADER_BYTES + message.payload.len() + 64);
            bytes.put_u128_le(0);
            self.open.push(Building { space, slot, count: 0, bytes });
            self.open.len() - 1
        });
        let building = self.open.get_mut(index)?;
        building.push(message);
        (building.bytes.len() >= BATCH_BYTES_MAX).then(|| self.open.swap_remove(index))
    }

    /// The batches that are not full.
    pub(super) fn finish(self) -> Vec<Building> {
        self.open
    }
}

/// The messages of a batch, in order.
#[derive(Debug)]
pub(crate) struct Batch {
    bytes: Bytes,
    /// Messages that the channel had before these.
    before: u64,
    /// Bytes that the channel had with these.
    bytes_after: u64,
}

impl Batch {
    pub(super) fn new(mut bytes: Bytes) -> Option<Batch> {
        let len = bytes.len() as u64;
        let before = bytes.try_get_u64_le().ok()?;
        let bytes_before = bytes.try_get_u64_le().ok()?;
        Some(Batch { bytes, before, bytes_after: bytes_before.saturating_add(len) })
    }

    /// Messages that the channel had before.
    pub(super) fn before(&self) -> u64 {
        self.before
    }

    /// Bytes that the channel had with these.
    pub(super) fn bytes_after(&self) -> u64 {
        self.bytes_after
    }

    /// The next message; slices of the batch.
    pub(crate) fn next(&mut self, topics: &mut TopicCache) -> Option<Message> {
        let flags = self.bytes.try_get_u8().ok()?;
        let origin = self.bytes.try_get_u32_le().ok()?;
        let topic_len = usize::from(self.bytes.try_get_u16_le().ok()?);
        let properties_len = self.bytes.try_get_u32_le().ok()? as usize;
        let payload_len = self.bytes.try_get_u32_le().ok()? as usize;
        if self.bytes.len() < topic_len + properties_len + payload_len {
            return None;
        }
        let topic = topics.parse(self.bytes.get(..topic_len)?).ok()?;
        self.bytes.advance(topic_len);
        let properties = self.bytes.split_to(properties_len);
        let payload = self.bytes.split_to(payload_len);
        let qos = match flags & 0b11 {
            0 => QoS::AtMostOnce,
            1 => QoS::AtLeastOnce,
            _ => QoS::ExactlyOnce,
        };
        Some(Message { topic, payload, properties, qos, retain: flags & 0b100 != 0, origin })
    }

    /// How many messages are left.
    pub(super) fn count(&self) -> u64 {
        let mut rest = self.bytes.clone();
        let mut count = 0;
        while rest.len() >= MESSAGE_HEADER_BYTES {
            rest.advance(5);
            let len = usize::from(rest.get_u16_le()) + rest.get_u32_le() as usize + rest.get_u32_le() as usize;
            if rest.len() < len {
                break;
            }
            rest.advance(len);
            count += 1;
        }
        count
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::topic::TopicName;

    // What goes into a batch comes out of it, in order, and a full batch is handed over.
    #[test]
    fn batches_carry_messages() {
        let message = |number: u32| Message {
            topic: TopicName::parse(&format!("ä/{number}")).unwrap(),
            payload: Bytes::from(vec![number as u8; number as usize]),
            properties: Bytes::from(vec![1, (number % 2) as u8]),
            qos: QoS::AtLeastOnce,
            retain: number.is_multiple_of(3),
            origin: number,
        };
        let mut builder = Builder::default();
        let mut batches = Vec::new();
        for number in 0..600 {
            batches.extend(builder.add(Space::Durable, 7, &message(number)));
        }
        batches.extend(builder.finish());
        assert!(batches.len() > 2);
        let mut expected = 0;
        let mut topics = TopicCache::default();
        for building in batches {
            let count = building.count;
            let mut batch = Batch::new(building.finish(u64::from(expected), 7)).unwrap();
            assert_eq!((batch.before(), batch.count()), (u64::from(expected), count));
            while let Some(got) = batch.next(&mut topics) {
                assert_eq!(got, message(expected));
                expected += 1;
            }
        }
        assert_eq!(expected, 600);
    }
}
