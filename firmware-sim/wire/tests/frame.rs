//! The frame's format: round trips, limits, and bytes that are not frames.
#![allow(clippy::unwrap_used)]

use millwright_wire::*;
use proptest::prelude::*;

fn header<'a>(channels: &'a [&'a str]) -> Header<'a> {
    Header {
        asset: "pump-1",
        device: "plc-7",
        boot_id: 0xdead_beef,
        sequence: 300,
        first_sample_us: 1_700_000_000_000_000,
        interval_us: 1_000_000,
        channels,
    }
}

fn encoded(header: &Header<'_>, values: &[f32]) -> Vec<u8> {
    let mut buffer = vec![0; FRAME_BYTES_MAX];
    encode(header, values, &mut buffer).unwrap().to_vec()
}

// The bytes of a frame are those of the documented layout, written here by hand.
#[test]
fn layout_is_the_documented_one() {
    let header =
        Header { boot_id: 5, sequence: 300, first_sample_us: -2, interval_us: 1_000, ..header(&["speed_rpm", "t"]) };
    let mut expected = vec![1, 6];
    expected.extend(b"pump-1");
    expected.push(5);
    expected.extend(b"plc-7");
    expected.push(5);
    expected.extend([0xac, 0x02]); // 300
    expected.push(3); // -2, zigzag
    expected.extend([0xe8, 0x07]); // 1,000
    expected.push(2);
    expected.push(9);
    expected.extend(b"speed_rpm");
    expected.extend(b"\x01t");
    expected.push(16);
    for value in [1.0f32, 2.0, -3.5, f32::NAN] {
        expected.extend(value.to_le_bytes());
    }
    assert_eq!(encoded(&header, &[1.0, 2.0, -3.5, f32::NAN]), expected);
}

// A decoded frame gives back every field, each sample's time, and values bit by bit, NaN included.
#[test]
fn decoded_frame_reads_back() {
    let bytes = encoded(&header(&["a", "b"]), &[1.0, f32::NAN, f32::NEG_INFINITY, 4.0, 5.0, -0.0]);
    let frame = Frame::decode(&bytes).unwrap();
    assert_eq!((frame.asset(), frame.device()), ("pump-1", "plc-7"));
    assert_eq!((frame.boot_id(), frame.sequence()), (0xdead_beef, 300));
    assert_eq!(frame.channels(), ["a", "b"]);
    assert_eq!(frame.samples().len(), 3);
    assert_eq!(frame.sample_us(0), Some(1_700_000_000_000_000));
    assert_eq!(frame.sample_us(2), Some(1_700_000_002_000_000));
    assert_eq!(frame.sample_us(3), None);
    let rows: Vec<Vec<u32>> = frame.samples().rows().map(|row| row.map(f32::to_bits).collect()).collect();
    let bits = |values: [f32; 2]| values.map(f32::to_bits).to_vec();
    assert_eq!(rows, [bits([1.0, f32::NAN]), bits([f32::NEG_INFINITY, 4.0]), bits([5.0, -0.0])]);
    assert_eq!(frame.samples().row(2).unwrap().collect::<Vec<f32>>(), [5.0, 0.0]);
    assert!(frame.samples().row(3).is_none());
    assert!(frame.samples().row(usize::MAX).is_none());
}

// A frame at every limit at once is written and read, and needs exactly `FRAME_BYTES_MAX` bytes.
#[test]
fn largest_frame_fits_its_bound() {
    let id = "x".repeat(ID_BYTES_MAX);
    let names: Vec<String> = (0..CHANNELS_MAX).map(|index| format!("{index:0>CHANNEL_BYTES_MAX$}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let header = Header {
        asset: &id,
        device: &id,
        boot_id: u32::MAX,
        sequence: u64::MAX,
        first_sample_us: i64::MIN,
        interval_us: u32::MAX,
        channels: &names,
    };
    let bytes = encoded(&header, &vec![1.5; SAMPLES_MAX * CHANNELS_MAX]);
    assert_eq!(bytes.len(), FRAME_BYTES_MAX);
    assert_eq!(Frame::decode(&bytes).unwrap().samples().len(), SAMPLES_MAX);
    let mut small = vec![0; FRAME_BYTES_MAX - 1];
    assert_eq!(
        encode(&header, &vec![1.5; SAMPLES_MAX * CHANNELS_MAX], &mut small),
        Err(EncodeError::BufferTooSmall { buffer_bytes: FRAME_BYTES_MAX - 1 })
    );
}

// Each rule of the format refuses its violation on the way out, and its neighbour that keeps the rule passes.
#[test]
fn headers_out_of_bounds_are_not_written() {
    let longest = "x".repeat(ID_BYTES_MAX);
    let too_long = "x".repeat(ID_BYTES_MAX + 1);
    let name = "n".repeat(CHANNEL_BYTES_MAX);
    let name_too_long = "n".repeat(CHANNEL_BYTES_MAX + 1);
    let names: Vec<String> = (0..=CHANNELS_MAX).map(|index| index.to_string()).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let good = header(&["a"]);
    let check = |header: Header<'_>, samples: usize| -> Result<(), DecodeError> {
        let values = vec![0.0; samples * header.channels.len()];
        let mut buffer = vec![0; FRAME_BYTES_MAX];
        let written = encode(&header, &values, &mut buffer).map(|bytes| bytes.to_vec());
        assert_eq!(header.check(samples).is_ok(), written.is_ok());
        match written {
            Ok(bytes) => Frame::decode(&bytes).map(|_| ()),
            Err(EncodeError::Invalid(error)) => Err(error),
            Err(other) => panic!("{other}"),
        }
    };
    let character = |field, at| Err(DecodeError::Character { field, at });
    assert_eq!(check(Header { asset: &longest, ..good }, 1), Ok(()));
    assert_eq!(
        check(Header { asset: &too_long, ..good }, 1),
        Err(DecodeError::TextTooLong { field: Field::Asset, bytes: 65, bytes_max: 64 })
    );
    assert_eq!(check(Header { asset: "", ..good }, 1), Err(DecodeError::EmptyText { field: Field::Asset }));
    for asset in ["ab/", "ab+", "ab#", "ab\0", "ab\n"] {
        assert_eq!(check(Header { asset, ..good }, 1), character(Field::Asset, 2));
    }
    assert_eq!(check(Header { device: "rack 3/plc+#", ..good }, 1), Ok(()));
    assert_eq!(check(Header { device: "\0", ..good }, 1), character(Field::Device, 0));
    assert_eq!(check(Header { channels: &[&name], ..good }, 1), Ok(()));
    assert_eq!(
        check(Header { channels: &["a", &name_too_long], ..good }, 1),
        Err(DecodeError::TextTooLong { field: Field::Channel(1), bytes: 33, bytes_max: 32 })
    );
    assert_eq!(check(Header { channels: &[""], ..good }, 1), Err(DecodeError::EmptyText { field: Field::Channel(0) }));
    assert_eq!(
        check(Header { channels: &["a", "b", "a"], ..good }, 1),
        Err(DecodeError::DuplicateChannel { first: 0, second: 2 })
    );
    assert_eq!(check(Header { channels: &[], ..good }, 1), Err(DecodeError::ChannelCount { channels: 0 }));
    assert_eq!(check(Header { channels: &names[..CHANNELS_MAX], ..good }, 1), Ok(()));
    assert_eq!(check(Header { channels: &names, ..good }, 1), Err(DecodeError::ChannelCount { channels: 65 }));
    assert_eq!(check(good, 0), Err(DecodeError::SampleCount { samples: 0 }));
    assert_eq!(check(good, SAMPLES_MAX), Ok(()));
    assert_eq!(check(good, SAMPLES_MAX + 1), Err(DecodeError::SampleCount { samples: 1_025 }));
    assert_eq!(check(Header { interval_us: 0, ..good }, 1), Ok(()));
    assert_eq!(check(Header { interval_us: 0, ..good }, 2), Err(DecodeError::ZeroInterval));
    assert_eq!(check(Header { first_sample_us: i64::MAX - 1_000_000, ..good }, 2), Ok(()));
    assert_eq!(check(Header { first_sample_us: i64::MAX - 999_999, ..good }, 2), Err(DecodeError::TimeOverflow));
}

// The same rules hold on the way in, where nobody has checked before.
#[test]
fn hostile_frames_are_refused_with_the_rule() {
    let mut start = vec![1, 1, b'a', 1, b'd', 0, 0, 0, 1];
    let decode = |tail: &[u8]| Frame::decode(&[&start[..], tail].concat()).map(|_| ());
    let one = 1.0f32.to_le_bytes();
    assert_eq!(decode(&[&[1, 1, b'c', 4], &one[..]].concat()), Ok(()));
    assert_eq!(decode(&[0, 0]), Err(DecodeError::ChannelCount { channels: 0 }));
    assert_eq!(decode(&[1, 1, b'c', 0]), Err(DecodeError::SampleCount { samples: 0 }));
    assert_eq!(decode(&[1, 1, b'c', 3, 0, 0, 0]), Err(DecodeError::UnevenSamples { bytes: 3, row_bytes: 4 }));
    assert_eq!(
        decode(&[2, 1, b'c', 1, b'c', 8, 0, 0, 0, 0, 0, 0, 0, 0]),
        Err(DecodeError::DuplicateChannel { first: 0, second: 1 })
    );
    assert_eq!(decode(&[1, 1, 0xff, 0]), Err(DecodeError::Malformed { field: Field::Channel(0) }));
    assert_eq!(decode(&[&[1, 1, b'c', 4], &one[..], &[0, 0]].concat()), Err(DecodeError::TrailingBytes { bytes: 2 }));
    // Lengths and counts of four billion are refused for what is not there, without looking for it.
    assert_eq!(decode(&[0xff, 0xff, 0xff, 0xff, 0x0f]), Err(DecodeError::ChannelCount { channels: u32::MAX }));
    assert_eq!(decode(&[1, 0xff, 0xff, 0xff, 0xff, 0x0f]), Err(DecodeError::Truncated { field: Field::Channel(0) }));
    assert_eq!(
        decode(&[1, 1, b'c', 0xff, 0xff, 0xff, 0xff, 0x0f]),
        Err(DecodeError::Truncated { field: Field::Samples })
    );
    let names: Vec<u8> = (0..65).flat_map(|index| [1, b'0' + index]).collect();
    assert_eq!(decode(&[&[65], &names[..]].concat()), Err(DecodeError::ChannelCount { channels: 65 }));
    start = vec![1, 3, b'a', b'/', b'b'];
    assert_eq!(Frame::decode(&start), Err(DecodeError::Character { field: Field::Asset, at: 1 }));
    assert_eq!(Frame::decode(&[]), Err(DecodeError::Empty));
    assert_eq!(Frame::decode(&[2, 1]), Err(DecodeError::Version { found: 2 }));
    // A boot id of more than 32 bits.
    assert_eq!(
        Frame::decode(&[1, 1, b'a', 1, b'd', 0xff, 0xff, 0xff, 0xff, 0x1f]),
        Err(DecodeError::Malformed { field: Field::BootId })
    );
}

// The builder takes exactly the rows that fit, refuses others without a change, and writes what `encode` writes.
#[test]
fn builder_writes_the_same_frame() {
    let header = header(&["a", "b"]);
    let mut builder = FrameBuilder::<5>::new(2);
    assert!(builder.is_empty());
    builder.push(&[1.0, 2.0]).unwrap();
    assert_eq!(builder.push(&[1.0]), Err(EncodeError::RowLength { values: 1, channels: 2 }));
    assert!(!builder.is_full());
    builder.push(&[3.0, 4.0]).unwrap();
    assert!(builder.is_full());
    assert_eq!(builder.push(&[5.0, 6.0]), Err(EncodeError::BufferTooSmall { buffer_bytes: 20 }));
    assert_eq!(builder.rows(), 2);
    let mut buffer = [0; 256];
    assert_eq!(builder.encode(&header, &mut buffer).unwrap(), encoded(&header, &[1.0, 2.0, 3.0, 4.0]));
    builder.clear();
    assert_eq!(
        builder.encode(&header, &mut buffer),
        Err(EncodeError::Invalid(DecodeError::SampleCount { samples: 0 }))
    );
    assert_eq!(encode(&header, &[1.0, 2.0, 3.0], &mut buffer), Err(EncodeError::RowLength { values: 1, channels: 2 }));
}

#[derive(Debug, Clone)]
struct Owned {
    asset: String,
    device: String,
    boot_id: u32,
    sequence: u64,
    first_sample_us: i64,
    interval_us: u32,
    channels: Vec<String>,
    values: Vec<f32>,
}

fn frames() -> impl Strategy<Value = Owned> {
    let channels = proptest::collection::hash_set("[a-z_0-9µ]{1,16}", 1..12);
    (channels, 1usize..40)
        .prop_flat_map(|(channels, samples)| {
            let values = proptest::collection::vec(any::<u32>().prop_map(f32::from_bits), samples * channels.len());
            (
                ("[a-zA-Z0-9 ._ß-]{1,32}", "[a-zA-Z0-9/+#-]{1,64}"),
                (any::<u32>(), any::<u64>(), i64::MIN..i64::MAX / 2, 1..u32::MAX),
                Just(channels),
                values,
            )
        })
        .prop_map(|((asset, device), (boot_id, sequence, first_sample_us, interval_us), channels, values)| Owned {
            asset,
            device,
            boot_id,
            sequence,
            first_sample_us,
            interval_us,
            channels: channels.into_iter().collect(),
            values,
        })
}

fn encode_owned(owned: &Owned) -> Vec<u8> {
    let channels: Vec<&str> = owned.channels.iter().map(String::as_str).collect();
    let header = Header {
        asset: &owned.asset,
        device: &owned.device,
        boot_id: owned.boot_id,
        sequence: owned.sequence,
        first_sample_us: owned.first_sample_us,
        interval_us: owned.interval_us,
        channels: &channels,
    };
    encoded(&header, &owned.values)
}

proptest! {
    // What is written is read back the same, bit by bit, and written again gives the same bytes.
    #[test]
    fn round_trip(owned in frames()) {
        let bytes = encode_owned(&owned);
        let frame = Frame::decode(&bytes).unwrap();
        prop_assert_eq!(frame.asset(), &owned.asset);
        prop_assert_eq!(frame.device(), &owned.device);
        prop_assert_eq!(frame.boot_id(), owned.boot_id);
        prop_assert_eq!(frame.sequence(), owned.sequence);
        prop_assert_eq!(frame.first_sample_us(), owned.first_sample_us);
        prop_assert_eq!(frame.interval_us(), owned.interval_us);
        prop_assert_eq!(frame.channels(), &owned.channels[..]);
        let values: Vec<u32> = frame.samples().rows().flatten().map(f32::to_bits).collect();
        let expected: Vec<u32> = owned.values.iter().map(|value| value.to_bits()).collect();
        prop_assert_eq!(values, expected);
        let mut again = vec![0; bytes.len()];
        prop_assert_eq!(&*frame.encode(&mut again).unwrap(), &bytes[..]);
        prop_assert!(frame.encode(&mut again[1..]).is_err());
    }

    // A frame cut off anywhere is refused, and so is one with a byte more.
    #[test]
    fn every_other_length_is_refused(owned in frames(), extra in any::<u8>()) {
        let mut bytes = encode_owned(&owned);
        for length in 0..bytes.len() {
            prop_assert!(Frame::decode(&bytes[..length]).is_err(), "{} of {} bytes", length, bytes.len());
        }
        bytes.push(extra);
        prop_assert_eq!(Frame::decode(&bytes), Err(DecodeError::TrailingBytes { bytes: 1 }));
    }

    // Arbitrary bytes never panic, and what is accepted keeps the rules.
    #[test]
    fn arbitrary_bytes_never_panic(mut bytes in proptest::collection::vec(any::<u8>(), 0..512), version in any::<bool>()) {
        if version && !bytes.is_empty() {
            bytes[0] = VERSION;
        }
        check_rules(&bytes);
    }

    // Nor do frames with some bytes changed, which get further into the decoder.
    #[test]
    fn damaged_frames_never_panic(owned in frames(), damage in proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>()), 1..4)) {
        let mut bytes = encode_owned(&owned);
        for (index, byte) in damage {
            let index = index.index(bytes.len().min(200));
            bytes[index] = byte;
        }
        check_rules(&bytes);
    }
}

fn check_rules(bytes: &[u8]) {
    if let Ok(frame) = Frame::decode(bytes) {
        let samples = frame.samples().len();
        assert!((1..=SAMPLES_MAX).contains(&samples));
        assert!((1..=CHANNELS_MAX).contains(&frame.channels().len()));
        assert!(frame.sample_us(samples - 1).is_some());
        assert!(!frame.asset().contains(['/', '+', '#', '\0']) && !frame.asset().is_empty());
        assert_eq!(frame.samples().rows().flatten().count(), samples * frame.channels().len());
    }
}
