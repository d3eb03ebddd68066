//! Recognises what a device has sent before.
//!
//! Owns the highest sequence number of every device of one asset and a bitmap of the 64 below it, so that a
//! frame sent again after a lost acknowledgement changes nothing, and a late one is told from a repeated one.
//! Never looks at samples. Keeps at most [`DEVICES_MAX`] devices with [`BOOTS_MAX`] boots each, the least recently
//! seen is forgotten first.

use serde::{Deserialize, Serialize};

use crate::source::StreamPosition;

/// Devices that may feed one asset.
pub const DEVICES_MAX: usize = 16;
/// Boots remembered per device: a buffer that survived a restart may still be resending the boot before.
pub const BOOTS_MAX: usize = 4;
/// Sequence numbers below the highest that are told apart.
const BITMAP_BITS: u64 = 64;

/// What a sequence number says about a reading.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Arrival {
    /// Next in line.
    Fresh,
    /// Newer, but `missed` sequence numbers before it have not arrived.
    Gap {
        /// How many are missing.
        missed: u64,
    },
    /// Seen before.
    Duplicate,
    /// Older than what was already used, and not seen before.
    Late,
}

/// The stream positions of all devices of one asset.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Streams {
    /// Most recently seen last.
    devices: Vec<Device>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Device {
    name: String,
    /// Most recently seen last.
    boots: Vec<Boot>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Boot {
    /// `None` for streams that count without naming their boot.
    id: Option<u32>,
    highest: u64,
    /// Bit `n` is set when `highest - n` has arrived.
    seen: u64,
    last_time_us: i64,
}

impl Streams {
    /// Places a reading whose first sample is at `time_us` and remembers it.
    pub fn observe(&mut self, position: &StreamPosition, time_us: i64) -> Arrival {
        let device = self.device(&position.device);
        let Some(index) = device.boots.iter().position(|boot| boot.id == position.boot) else {
            push_bounded(
                &mut device.boots,
                Boot { id: position.boot, highest: position.seq, seen: 1, last_time_us: time_us },
                BOOTS_MAX,
            );
            return Arrival::Fresh;
        };
        let mut boot = device.boots.remove(index);
        let arrival = boot.observe(position, time_us);
        device.boots.push(boot);
        arrival
    }

    fn device(&mut self, name: &str) -> &mut Device {
        let device = match self.devices.iter().position(|device| device.name == name) {
            Some(index) => self.devices.remove(index),
            None => Device { name: name.to_owned(), boots: Vec::new() },
        };
        push_bounded(&mut self.devices, device, DEVICES_MAX);
        self.devices.last_mut().expect("the device was pushed on the line above")
    }
}

impl Boot {
    fn observe(&mut self, position: &StreamPosition, time_us: i64) -> Arrival {
        if let Some(ahead) = position.seq.checked_sub(self.highest).filter(|ahead| *ahead > 0) {
            self.seen = if ahead < BITMAP_BITS { self.seen << ahead | 1 } else { 1 };
            self.highest = position.seq;
            self.last_time_us = self.last_time_us.max(time_us);
            return if ahead == 1 { Arrival::Fresh } else { Arrival::Gap { missed: ahead - 1 } };
        }
        let behind = self.highest.saturating_sub(position.seq);
        if self.id.is_none() && self.counts_anew(position, time_us, behind) {
            *self = Boot { id: None, highest: position.seq, seen: 1, last_time_us: time_us };
            return Arrival::Fresh;
        }
        if behind >= BITMAP_BITS {
            return Arrival::Late;
        }
        let bit = 1 << behind;
        if self.seen & bit != 0 {
            return Arrival::Duplicate;
        }
        self.seen |= bit;
        Arrival::Late
    }

    /// Whether a device without boot ids has restarted: its clock went on while its count fell, or, without a
    /// clock, its count fell further than any resend does.
    fn counts_anew(&self, position: &StreamPosition, time_us: i64, behind: u64) -> bool {
        if position.device_time { time_us > self.last_time_us } else { behind >= BITMAP_BITS }
    }
}

fn push_bounded<T>(list: &mut Vec<T>, item: T, most: usize) {
    if list.len() >= most {
        list.remove(0);
    }
    list.push(item);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(boot: u32, seq: u64) -> StreamPosition {
        StreamPosition { device: "plc".into(), boot: Some(boot), seq, device_time: true }
    }

    fn check(streams: &mut Streams, boot: u32, seq: u64, expected: Arrival) {
        let time_us = i64::try_from(seq).unwrap();
        assert_eq!(streams.observe(&at(boot, seq), time_us), expected, "boot {boot}, seq {seq}");
    }

    // A frame that comes again is a duplicate, one that fills a hole is late, a hole is counted.
    #[test]
    fn repeated_late_and_missing_frames_are_told_apart() {
        let mut streams = Streams::default();
        check(&mut streams, 1, 10, Arrival::Fresh);
        check(&mut streams, 1, 10, Arrival::Duplicate);
        check(&mut streams, 1, 11, Arrival::Fresh);
        check(&mut streams, 1, 14, Arrival::Gap { missed: 2 });
        check(&mut streams, 1, 13, Arrival::Late);
        check(&mut streams, 1, 13, Arrival::Duplicate);
        check(&mut streams, 1, 14 + 63, Arrival::Gap { missed: 62 });
        check(&mut streams, 1, 14, Arrival::Duplicate);
        check(&mut streams, 1, 13, Arrival::Late);
    }

    // A new boot starts its own count, and the old boot's last frames may still come.
    #[test]
    fn a_reboot_starts_a_new_count() {
        let mut streams = Streams::default();
        check(&mut streams, 1, 100, Arrival::Fresh);
        check(&mut streams, 2, 0, Arrival::Fresh);
        check(&mut streams, 1, 101, Arrival::Fresh);
        check(&mut streams, 2, 0, Arrival::Duplicate);
        check(&mut streams, 2, 1, Arrival::Fresh);
    }

    // A stream without boot ids that counts from the start again, with newer device time, has restarted.
    #[test]
    fn a_stream_without_boot_id_restarts_by_its_clock() {
        let mut streams = Streams::default();
        let position = |seq| StreamPosition { device: "plc".into(), boot: None, seq, device_time: true };
        assert_eq!(streams.observe(&position(5), 1_000), Arrival::Fresh);
        assert_eq!(streams.observe(&position(5), 1_000), Arrival::Duplicate);
        assert_eq!(streams.observe(&position(0), 2_000), Arrival::Fresh);
        assert_eq!(streams.observe(&position(1), 3_000), Arrival::Fresh);
    }

    // Devices beyond the limit push out the least recently seen one.
    #[test]
    fn devices_are_bounded() {
        let mut streams = Streams::default();
        for device in 0..=DEVICES_MAX {
            let position =
                StreamPosition { device: device.to_string().into(), boot: Some(1), seq: 7, device_time: true };
            assert_eq!(streams.observe(&position, 0), Arrival::Fresh);
        }
        assert_eq!(streams.devices.len(), DEVICES_MAX);
    }
}
