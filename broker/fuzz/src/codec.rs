//! What holds for every byte string that is given to the codec.
//!
//! The first byte of an input chooses the end of the connection that reads: the server's, which learns the version from
//! CONNECT, or an end that knows it. The rest are the bytes of the connection.

use bytes::BytesMut;
use millwright_broker::codec::{DecodeError, Decoder, MessageProperties, Packet, Version, encode};

use crate::memory::peak_of;

/// The largest packet that the decoders of the targets take.
const PACKET_BYTES_MAX: usize = 4 * 1024;

/// What decoding may take beside the packet: the list of properties (21 KiB), of filters and of subscription identifiers, each
/// up to twice while it grows, and the topics that are remembered.
const DECODE_BYTES_MAX: usize = 192 * 1024;

/// Writing adds at most the length of a property section that was left out.
const LONGER_BY_MAX: usize = 1;

/// Checks all of it.
pub fn check(version: Version, input: &[u8]) {
    let Some((end, wire)) = input.split_first() else { return };
    let new = || match end & 1 {
        0 => Decoder::client(version, PACKET_BYTES_MAX),
        _ => Decoder::server(PACKET_BYTES_MAX),
    };
    let whole = decode_whole(new(), wire);
    let bytewise = decode_bytewise(new(), wire);
    assert_eq!(whole.packets, bytewise.packets, "the packets depend on how the bytes come");
    assert_eq!(whole.error, bytewise.error, "the error depends on how the bytes come");
    for packet in &whole.packets {
        check_packet(packet, whole.version.unwrap_or(version));
    }
    if let Some(error) = whole.error {
        assert!(error.reason.is_error(), "{error} has the reason {}", error.reason);
        assert!(error.clause.starts_with("MQTT-"), "{error} names no clause");
    }
}

struct Decoded {
    packets: Vec<Packet>,
    error: Option<DecodeError>,
    version: Option<Version>,
}

fn decode_whole(mut decoder: Decoder, wire: &[u8]) -> Decoded {
    let mut buffer = BytesMut::from(wire);
    let (mut packets, mut error) = (Vec::new(), None);
    loop {
        let before = buffer.len();
        let (decoded, peak) = peak_of(|| decoder.decode(&mut buffer));
        assert!(peak <= DECODE_BYTES_MAX, "{peak} bytes for a packet of at most {PACKET_BYTES_MAX}");
        match decoded {
            Ok(Some(packet)) => {
                let taken = before - buffer.len();
                assert!(taken <= PACKET_BYTES_MAX, "a packet of {taken} bytes was accepted");
                assert!(encoded(&packet, decoder.version()).len() <= taken + LONGER_BY_MAX, "{packet:?} grows");
                packets.push(packet);
            }
            Ok(None) => {
                assert_eq!(before, buffer.len(), "bytes of a packet that is not whole were taken");
                assert!(before < PACKET_BYTES_MAX, "more is asked for than a packet may have");
                break;
            }
            Err(wrong) => {
                error = Some(wrong);
                break;
            }
        }
    }
    Decoded { packets, error, version: decoder.version() }
}

fn decode_bytewise(mut decoder: Decoder, wire: &[u8]) -> Decoded {
    let mut buffer = BytesMut::new();
    let (mut packets, mut error) = (Vec::new(), None);
    for byte in wire {
        buffer.extend_from_slice(&[*byte]);
        match decoder.decode(&mut buffer) {
            Ok(Some(packet)) => {
                assert!(buffer.is_empty(), "a packet ended before its last byte");
                packets.push(packet);
            }
            Ok(None) => {}
            Err(wrong) => {
                error = Some(wrong);
                break;
            }
        }
    }
    Decoded { packets, error, version: decoder.version() }
}

fn encoded(packet: &Packet, version: Option<Version>) -> BytesMut {
    let mut wire = BytesMut::new();
    encode(packet, version.unwrap_or(Version::V5), &mut wire);
    wire
}

/// What was accepted can be written, and reads as the same packet.
fn check_packet(packet: &Packet, version: Version) {
    let mut wire = encoded(packet, Some(version));
    let len = wire.len();
    let mut decoder = Decoder::client(version, len);
    let again = decoder.decode(&mut wire);
    assert_eq!(again.as_ref(), Ok(&Some(packet.clone())), "it was written as {len} bytes");
    assert!(wire.is_empty(), "{} bytes are left of {packet:?}", wire.len());
    if let Packet::Publish(publish) = packet {
        assert!(publish.topic.is_some() || publish.topic_alias.is_some(), "a PUBLISH without a topic");
        if let Some((at, seconds)) = MessageProperties::read(&publish.properties).expiry {
            let field = publish.properties.get(at..at + 4).expect("the expiry interval is inside the properties");
            assert_eq!(field, seconds.to_be_bytes(), "the expiry interval is somewhere else");
        }
    }
}
