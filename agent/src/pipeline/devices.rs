//! What is known of the devices that feed an asset, for people who look for a bad cable or a wrong clock.
//!
//! Owns the counts of each device since the gateway started: they are not saved and decide nothing. At most
//! [`super::stream::DEVICES_MAX`] devices of an asset; the one that was heard longest ago is forgotten first.

use std::sync::Arc;

use super::stream::{Arrival, DEVICES_MAX};
use crate::clock::SECOND_US;
use crate::source::Reading;

/// A rate is measured over at least this time.
const RATE_US_MIN: i64 = 5 * SECOND_US;

/// One device of an asset. Counts are since the gateway started.
#[derive(Debug, Clone, PartialEq)]
pub struct DeviceFigures {
    /// Its name; `None` where messages carry no sequence number, and so do not say from whom they are.
    pub device: Option<Arc<str>>,
    /// Which boot of it counted last.
    pub boot: Option<u32>,
    /// The highest sequence number of that boot.
    pub seq: Option<u64>,
    /// When it was last heard, gateway time, UTC microseconds.
    pub last_us: i64,
    /// Samples per second, over the last [`RATE_US_MIN`] or more; `None` before that.
    pub rate_hz: Option<f64>,
    /// Sequence numbers that never came.
    pub gaps: u64,
    /// Readings recognised as sent before.
    pub duplicates: u64,
    /// Readings older than what was already used.
    pub late: u64,
    /// Device time of the newest sample minus the gateway's time when it came: transport and the device's own buffer make it
    /// smaller, so a little below zero is a good clock. `None` where the device sends no time.
    pub skew_us: Option<i64>,
    counted: Counted,
}

/// Samples since the rate was last computed.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Counted {
    since_us: i64,
    samples: u64,
}

/// The devices of one asset.
#[derive(Debug, Clone, Default)]
pub struct Devices {
    /// The one heard last is last.
    figures: Vec<DeviceFigures>,
}

impl Devices {
    /// The device of the last reading.
    fn device(&mut self, name: Option<&Arc<str>>, now_us: i64) -> Option<&mut DeviceFigures> {
        let known = self.figures.iter().position(|figures| figures.device.as_ref() == name);
        let figures = match known {
            Some(index) => self.figures.remove(index),
            None => DeviceFigures::new(name.cloned(), now_us),
        };
        if self.figures.len() >= DEVICES_MAX {
            self.figures.remove(0);
        }
        self.figures.push(figures);
        self.figures.last_mut()
    }

    /// Takes a reading and what its sequence number said.
    pub fn note(&mut self, reading: &Reading, arrival: Arrival, received_us: i64) {
        let name = reading.stream.as_ref().map(|position| &position.device);
        if let Some(device) = self.device(name, received_us) {
            device.note(reading, arrival, received_us);
        }
    }

    /// The devices as they are at `now_us` (gateway time).
    pub fn at(&self, now_us: i64) -> Vec<DeviceFigures> {
        let at = |figures: &DeviceFigures| DeviceFigures { rate_hz: figures.rate_at(now_us), ..figures.clone() };
        self.figures.iter().map(at).collect()
    }
}

impl DeviceFigures {
    fn new(device: Option<Arc<str>>, now_us: i64) -> DeviceFigures {
        DeviceFigures {
            device,
            boot: None,
            seq: None,
            last_us: now_us,
            rate_hz: None,
            gaps: 0,
            duplicates: 0,
            late: 0,
            skew_us: None,
            counted: Counted { since_us: now_us, samples: 0 },
        }
    }

    fn note(&mut self, reading: &Reading, arrival: Arrival, received_us: i64) {
        self.last_us = received_us;
        match arrival {
            Arrival::Fresh => {}
            Arrival::Gap { missed } => self.gaps = self.gaps.saturating_add(missed),
            Arrival::Duplicate => self.duplicates += 1,
            Arrival::Late => self.late += 1,
        }
        if let Some(position) = &reading.stream {
            let same_boot = self.boot == position.boot;
            self.boot = position.boot;
            // A stream without boots that counts from the start again is fresh, and lower.
            let anew = !same_boot || matches!(arrival, Arrival::Fresh);
            self.seq = if anew { Some(position.seq) } else { self.seq.max(Some(position.seq)) };
        }
        let own_clock = reading.stream.as_ref().is_none_or(|position| position.device_time);
        if !matches!(arrival, Arrival::Duplicate) {
            let newest_us = reading.times_us.last().filter(|_| own_clock);
            self.skew_us = newest_us.map(|time_us| time_us.saturating_sub(received_us)).or(self.skew_us);
            self.count(reading.times_us.len() as u64, received_us);
        }
    }

    fn count(&mut self, samples: u64, received_us: i64) {
        self.counted.samples += samples;
        let elapsed_us = received_us.saturating_sub(self.counted.since_us);
        if elapsed_us < 0 {
            self.counted = Counted { since_us: received_us, samples: 0 };
        } else if elapsed_us >= RATE_US_MIN {
            self.rate_hz = Some(self.counted.samples as f64 * SECOND_US as f64 / elapsed_us as f64);
            self.counted = Counted { since_us: received_us, samples: 0 };
        }
    }

    /// A device that fell silent has no rate any more: it cannot be more than one sample in the time since.
    fn rate_at(&self, now_us: i64) -> Option<f64> {
        let idle_us = now_us.saturating_sub(self.counted.since_us);
        let so_far = (self.counted.samples + 1) as f64 * SECOND_US as f64 / idle_us.max(1) as f64;
        self.rate_hz.map(|rate| if idle_us > 2 * RATE_US_MIN { rate.min(so_far) } else { rate })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{AssetId, ChannelName};
    use crate::source::StreamPosition;

    fn reading(seq: u64, time_us: i64) -> Reading {
        Reading {
            asset: AssetId::parse("pump").unwrap(),
            stream: Some(StreamPosition { device: "plc".into(), boot: Some(1), seq, device_time: true }),
            channels: [ChannelName::parse("flow").unwrap()].into(),
            times_us: vec![time_us],
            values: vec![1.0],
        }
    }

    // A device at 2 Hz whose clock is a minute behind is shown with that rate and skew, and without a rate once it is silent.
    #[test]
    fn rate_and_skew_are_measured() {
        let mut devices = Devices::default();
        for k in 0..40_i64 {
            let received_us = k * SECOND_US / 2;
            devices.note(&reading(k as u64, received_us - 60 * SECOND_US), Arrival::Fresh, received_us);
        }
        let now_us = 20 * SECOND_US;
        let seen = &devices.at(now_us)[0];
        assert!((seen.rate_hz.unwrap() - 2.0).abs() < 0.21, "{seen:?}");
        assert_eq!((seen.skew_us, seen.seq), (Some(-60 * SECOND_US), Some(39)));
        let later = &devices.at(now_us + 3_600 * SECOND_US)[0];
        assert!(later.rate_hz.unwrap() < 0.01, "{later:?}");
    }

    // Devices beyond the limit push out the one heard longest ago.
    #[test]
    fn devices_are_bounded() {
        let mut devices = Devices::default();
        for device in 0..=DEVICES_MAX {
            let stream =
                Some(StreamPosition { device: device.to_string().into(), boot: None, seq: 0, device_time: false });
            devices.note(&Reading { stream, ..reading(0, 0) }, Arrival::Fresh, 0);
        }
        let seen = devices.at(0);
        assert_eq!((seen.len(), seen[0].device.as_deref()), (DEVICES_MAX, Some("1")));
    }
}
