//! The device logic: frames, the offline buffer and sending again, against a model of what a broker saw.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;

use millwright_firmware_sim::device::{Counters, Device, IN_FLIGHT_MAX, Setup};
use millwright_wire::{EncodeError, Frame};
use proptest::prelude::*;

/// Frames that the small device under test holds.
const FRAMES: usize = 20;

type Small = Device<'static, 8, 128, FRAMES>;

const SETUP: Setup<'static> = Setup {
    asset: "pump-1",
    device: "node-1",
    channels: &["a", "b"],
    boot_id: 7,
    interval_us: 1_000,
    samples_per_frame: 3,
};

/// A device that has taken so many samples, one per interval.
fn sampled(setup: Setup<'static>, samples: u32) -> Small {
    let mut device = Small::new(setup).unwrap();
    for k in 0..samples {
        device.push(&[k as f32, -(k as f32)], i64::from(k) * 1_000).unwrap();
    }
    device
}

/// The sequence numbers that it hands out now.
fn publish_all(device: &mut Small) -> Vec<u64> {
    std::iter::from_fn(|| device.poll_publish().map(|frame| frame.sequence)).collect()
}

// A full frame carries its samples, the time of the first and the sequence number; a part of one waits until flushed.
#[test]
fn samples_become_frames() {
    let mut device = sampled(SETUP, 4);
    {
        let frame = device.poll_publish().unwrap();
        assert_eq!(frame.sequence, 0);
        let decoded = Frame::decode(frame.bytes).unwrap();
        assert_eq!((decoded.boot_id(), decoded.sequence(), decoded.first_sample_us()), (7, 0, 0));
        assert_eq!(decoded.samples().rows().flatten().collect::<Vec<f32>>(), [0.0, 0.0, 1.0, -1.0, 2.0, -2.0]);
    }
    assert_eq!(device.poll_publish(), None);
    device.flush().unwrap();
    let frame = device.poll_publish().unwrap();
    let decoded = Frame::decode(frame.bytes).unwrap();
    assert_eq!((decoded.sequence(), decoded.first_sample_us(), decoded.samples().len()), (1, 3_000, 1));
}

// A sample half an interval off its place still belongs to the frame; a microsecond more, and it begins another.
#[test]
fn gap_begins_a_new_frame() {
    let lengths = |times: &[i64]| {
        let mut device = Small::new(SETUP).unwrap();
        for time in times {
            device.push(&[0.0, 0.0], *time).unwrap();
        }
        device.flush().unwrap();
        let mut frames = Vec::new();
        while let Some(frame) = device.poll_publish() {
            let frame = Frame::decode(frame.bytes).unwrap();
            frames.push((frame.first_sample_us(), frame.samples().len()));
        }
        frames
    };
    assert_eq!(lengths(&[0, 1_500]), [(0, 2)]);
    assert_eq!(lengths(&[0, 1_501]), [(0, 1), (1_501, 1)]);
    assert_eq!(lengths(&[0, 500]), [(0, 2)]);
    assert_eq!(lengths(&[0, 499]), [(0, 1), (499, 1)]);
    assert_eq!(lengths(&[i64::MIN, i64::MAX]), [(i64::MIN, 1), (i64::MAX, 1)]);
}

// At most a window of frames is under way; each acknowledgement makes room for one.
#[test]
fn window_is_bounded() {
    let mut device = sampled(SETUP, 3 * 18);
    let window: Vec<u64> = (0..IN_FLIGHT_MAX as u64).collect();
    assert_eq!(publish_all(&mut device), window);
    assert!(device.acknowledged(5));
    assert_eq!(publish_all(&mut device), [16]);
    assert!(!device.acknowledged(5), "acknowledged before");
    assert!(!device.acknowledged(17), "not published");
    assert!(!device.acknowledged(u64::MAX), "never existed");
    assert_eq!(device.waiting(), 17);
}

// After a broken connection everything that was not acknowledged comes again, in order, with the same bytes.
#[test]
fn broken_connection_sends_again() {
    let mut device = sampled(SETUP, 3 * 4);
    let first = device.poll_publish().unwrap().bytes.to_vec();
    assert_eq!(publish_all(&mut device), [1, 2, 3]);
    assert!(device.acknowledged(1) && device.acknowledged(2));
    device.disconnected();
    assert!(!device.acknowledged(0), "an acknowledgement of the connection before");
    let again = device.poll_publish().unwrap();
    assert_eq!((again.sequence, again.bytes), (0, &first[..]));
    assert_eq!(publish_all(&mut device), [3]);
    assert!(device.acknowledged(0) && device.acknowledged(3));
    assert!(device.is_drained());
    let Counters { published, resent, acknowledged, dropped, .. } = device.counters();
    assert_eq!((published, resent, acknowledged, dropped), (6, 2, 4, 0));
}

// A full buffer drops the oldest frame and counts it; one frame less, and nothing is dropped.
#[test]
fn full_buffer_drops_the_oldest() {
    let mut device = sampled(SETUP, 3 * FRAMES as u32);
    assert_eq!(device.counters().dropped, 0);
    assert_eq!(device.poll_publish().unwrap().sequence, 0);
    for k in 0..3 {
        device.push(&[0.0, 0.0], (60 + k) * 1_000).unwrap();
    }
    let counters = device.counters();
    assert_eq!((counters.dropped, counters.dropped_samples), (1, 3));
    assert_eq!((counters.sampled, counters.framed), (63, 21));
    assert!(!device.acknowledged(0), "dropped");
    assert_eq!(device.poll_publish().unwrap().sequence, 1);
    assert_eq!(device.waiting(), FRAMES);
}

// A frame that was dropped while under way keeps its place in the window until the broker has answered: a broker that
// withholds its acknowledgements is not sent more and more.
#[test]
fn dropped_frames_stay_in_the_window() {
    let mut device = sampled(SETUP, 3 * FRAMES as u32);
    assert_eq!(publish_all(&mut device).len(), IN_FLIGHT_MAX);
    for k in 60..90 {
        device.push(&[0.0, 0.0], k * 1_000).unwrap();
    }
    assert_eq!(device.counters().dropped, 10);
    assert_eq!(device.poll_publish(), None);
    assert!(!device.acknowledged(3), "dropped");
    assert_eq!(publish_all(&mut device), [16]);
    assert!(device.acknowledged(12));
    assert_eq!(publish_all(&mut device), [17]);
    device.disconnected();
    assert_eq!(publish_all(&mut device)[..3], [10, 11, 13]);
}

// A set-up that cannot make frames is refused at the start, not in the field.
#[test]
fn impossible_setups_are_refused() {
    assert!(Small::new(SETUP).is_ok());
    assert!(matches!(Small::new(Setup { asset: "a/b", ..SETUP }), Err(EncodeError::Invalid(_))));
    assert!(matches!(Small::new(Setup { channels: &["a", "a"], ..SETUP }), Err(EncodeError::Invalid(_))));
    assert!(matches!(Small::new(Setup { channels: &[], ..SETUP }), Err(EncodeError::Invalid(_))));
    assert!(matches!(Small::new(Setup { samples_per_frame: 0, ..SETUP }), Err(EncodeError::Invalid(_))));
    assert!(matches!(Small::new(Setup { interval_us: 0, ..SETUP }), Err(EncodeError::Invalid(_))));
    // 4 samples of 2 channels are the 8 values that it holds.
    assert!(Small::new(Setup { samples_per_frame: 4, ..SETUP }).is_ok());
    let too_small = |result: Result<Small, EncodeError>| matches!(result, Err(EncodeError::BufferTooSmall { .. }));
    assert!(too_small(Small::new(Setup { samples_per_frame: 5, ..SETUP })));
    // The names and values of a frame are more than its 128 bytes.
    let channels = &["a-name-of-thirty-two-characters-", "another-name-that-is-quite-long"];
    assert!(too_small(Small::new(Setup { channels, ..SETUP })));
}

// A row of another length is refused and changes nothing; a sample whose place would be beyond the last microsecond
// begins a frame of its own.
#[test]
fn bad_samples_are_refused() {
    let mut device = Small::new(SETUP).unwrap();
    assert_eq!(device.push(&[1.0], 0), Err(EncodeError::RowLength { values: 1, channels: 2 }));
    assert!(device.is_drained());
    assert_eq!(device.counters(), Counters::default());
    let early_us = [i64::MAX - 1_999, i64::MAX - 999, i64::MAX];
    device.push(&[1.0, 2.0], early_us[0]).unwrap();
    device.push(&[1.0, 2.0], early_us[1]).unwrap();
    // Its place is a microsecond beyond what 64 bits hold.
    device.push(&[1.0, 2.0], early_us[2]).unwrap();
    device.flush().unwrap();
    assert_eq!((device.counters().framed, device.counters().dropped_samples), (2, 0));
}

#[derive(Debug, Clone)]
enum Step {
    Sample,
    Gap,
    Flush,
    Publish,
    Acknowledge(u8),
    Disconnect,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        8 => Just(Step::Sample),
        1 => Just(Step::Gap),
        1 => Just(Step::Flush),
        4 => Just(Step::Publish),
        3 => any::<u8>().prop_map(Step::Acknowledge),
        1 => Just(Step::Disconnect),
    ];
    proptest::collection::vec(step, 0..400)
}

proptest! {
    // Whatever happens, every sample is acknowledged, dropped or still there; frames come in order within a
    // connection, and a sequence number always names the same bytes.
    #[test]
    fn nothing_is_lost_uncounted(steps in steps()) {
        let mut device = Small::new(SETUP).unwrap();
        let mut now_us = 0;
        let mut seen: BTreeMap<u64, Vec<u8>> = BTreeMap::new();
        let mut under_way: Vec<u64> = Vec::new();
        let mut last_published = None;
        let mut acknowledged_samples = 0;
        for step in steps {
            match step {
                Step::Sample => {
                    now_us += 1_000;
                    device.push(&[now_us as f32, 1.0], now_us).unwrap();
                }
                Step::Gap => now_us += 10_000,
                Step::Flush => device.flush().unwrap(),
                Step::Publish => if let Some(frame) = device.poll_publish() {
                    prop_assert!(last_published < Some(frame.sequence));
                    last_published = Some(frame.sequence);
                    let first = seen.entry(frame.sequence).or_insert_with(|| frame.bytes.to_vec());
                    prop_assert_eq!(&first[..], frame.bytes);
                    under_way.push(frame.sequence);
                },
                Step::Acknowledge(which) => if !under_way.is_empty() {
                    let sequence = under_way.remove(usize::from(which) % under_way.len());
                    if device.acknowledged(sequence) {
                        acknowledged_samples += Frame::decode(&seen[&sequence]).unwrap().samples().len() as u64;
                    }
                },
                Step::Disconnect => {
                    device.disconnected();
                    under_way.clear();
                    last_published = None;
                }
            }
            prop_assert!(device.waiting() <= FRAMES);
        }
        device.flush().unwrap();
        device.disconnected();
        let mut left_samples = 0;
        while let Some((sequence, samples)) = device.poll_publish().map(|frame| {
            (frame.sequence, Frame::decode(frame.bytes).unwrap().samples().len() as u64)
        }) {
            left_samples += samples;
            prop_assert!(device.acknowledged(sequence));
        }
        prop_assert!(device.is_drained());
        let counters = device.counters();
        prop_assert_eq!(counters.sampled, acknowledged_samples + left_samples + counters.dropped_samples);
        prop_assert_eq!(counters.framed, counters.acknowledged + counters.dropped);
    }
}
