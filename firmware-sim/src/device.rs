//! What runs on a sensor node: samples go into frames, frames wait until the broker has them.
//!
//! Owns the frame being filled, the sequence numbers and the offline buffer. Has no clock, no socket and no
//! allocator: the caller says what was measured when, takes frames to publish, and reports what was acknowledged and
//! when the connection broke. The shell around it may be an interrupt handler or an async task.
//!
//! Every frame stays in the buffer until it is acknowledged. After a broken connection all of them are published
//! again, in order, with the sequence numbers and bytes they had. When the buffer is full the oldest frame is dropped
//! and counted. Frames are never reordered, and none is published twice on one connection.

use heapless::{Deque, Vec};
use millwright_wire::{EncodeError, FrameBuilder, Header};

/// The most frames that are published and not yet acknowledged: enough to hide a commit of 10 ms at 1,600 frames/s.
pub const IN_FLIGHT_MAX: usize = 16;

/// Who measures what, and how samples are grouped.
#[derive(Debug, Clone, Copy)]
pub struct Setup<'a> {
    /// The asset that the values describe.
    pub asset: &'a str,
    /// The device that measures them.
    pub device: &'a str,
    /// The names of the channels, in the order of a row.
    pub channels: &'a [&'a str],
    /// Drawn at random at each boot.
    pub boot_id: u32,
    /// The time between two samples, in microseconds.
    pub interval_us: u32,
    /// The samples of a full frame.
    pub samples_per_frame: usize,
}

/// What a device has done since it booted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counters {
    /// Samples taken.
    pub sampled: u64,
    /// Frames made of them.
    pub framed: u64,
    /// Frames handed out for publishing, repetitions included.
    pub published: u64,
    /// Of these, repetitions after a broken connection.
    pub resent: u64,
    /// Frames that the broker acknowledged.
    pub acknowledged: u64,
    /// Frames that were never acknowledged and had to make room. The broker may have received them all the same.
    pub dropped: u64,
    /// The samples in them.
    pub dropped_samples: u64,
}

/// A frame to publish.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Outgoing<'d> {
    /// What to call [`Device::acknowledged`] with.
    pub sequence: u64,
    /// The payload.
    pub bytes: &'d [u8],
}

#[derive(Debug, Clone)]
struct Stored<const FRAME_BYTES: usize> {
    sequence: u64,
    samples: usize,
    acknowledged: bool,
    bytes: Vec<u8, FRAME_BYTES>,
}

/// The device logic. It holds `FRAMES` frames of at most `FRAME_BYTES` each, and `VALUES` values (samples · channels)
/// of the frame being filled.
#[derive(Debug)]
pub struct Device<'a, const VALUES: usize, const FRAME_BYTES: usize, const FRAMES: usize> {
    setup: Setup<'a>,
    builder: FrameBuilder<VALUES>,
    first_sample_us: i64,
    next_sequence: u64,
    /// In order of their sequence numbers, which have no gap; the front is not acknowledged.
    buffer: Deque<Stored<FRAME_BYTES>, FRAMES>,
    /// So many frames at the front were published on this connection, or acknowledged.
    sent: usize,
    /// The frames published on this connection and not acknowledged, dropped ones included: their acknowledgements are
    /// still to come.
    in_flight: Vec<u64, IN_FLIGHT_MAX>,
    /// Frames below this sequence number were published before.
    published_before: u64,
    counters: Counters,
}

impl<'a, const VALUES: usize, const FRAME_BYTES: usize, const FRAMES: usize> Device<'a, VALUES, FRAME_BYTES, FRAMES> {
    /// A device that has just booted.
    ///
    /// # Errors
    /// [`EncodeError`] when the set-up breaks a rule of the format, or a full frame is larger than the buffers:
    /// better at the start than in the field.
    pub fn new(setup: Setup<'a>) -> Result<Self, EncodeError> {
        let builder = FrameBuilder::new(setup.channels.len());
        let mut device = Device {
            setup,
            builder,
            first_sample_us: 0,
            next_sequence: 0,
            buffer: Deque::new(),
            sent: 0,
            in_flight: Vec::new(),
            published_before: 0,
            counters: Counters::default(),
        };
        device.try_largest_frame()?;
        Ok(device)
    }

    /// Takes one sample: `row` has one value per channel and was measured at `now_us`, microseconds since 1970-01-01
    /// UTC. A sample more than half an interval away from where the frame expects it begins a new frame.
    ///
    /// # Errors
    /// [`EncodeError::RowLength`]: the row is not taken. Any other error says that the frame it completed, or the one
    /// it did not fit into, could not be written; its samples are counted as dropped.
    pub fn push(&mut self, row: &[f32], now_us: i64) -> Result<(), EncodeError> {
        let channels = self.setup.channels.len();
        if row.len() != channels {
            return Err(EncodeError::RowLength { values: row.len(), channels });
        }
        let finished = if self.continues(now_us) { Ok(()) } else { self.flush() };
        if self.builder.is_empty() {
            self.first_sample_us = now_us;
        }
        self.builder.push(row)?;
        self.counters.sampled += 1;
        if self.builder.rows() >= self.setup.samples_per_frame || self.builder.is_full() {
            self.flush()?;
        }
        finished
    }

    /// Ends the frame being filled, so that it can be published; does nothing when there is none.
    ///
    /// # Errors
    /// [`EncodeError`] when it could not be written; its samples are counted as dropped.
    pub fn flush(&mut self) -> Result<(), EncodeError> {
        if self.builder.is_empty() {
            return Ok(());
        }
        let samples = self.builder.rows();
        let written = self.write(self.next_sequence, self.first_sample_us);
        self.builder.clear();
        match written {
            Ok(bytes) => {
                self.store(Stored { sequence: self.next_sequence, samples, acknowledged: false, bytes });
                self.next_sequence += 1;
                Ok(())
            }
            Err(error) => {
                self.counters.dropped_samples += samples as u64;
                Err(error)
            }
        }
    }

    /// The next frame to publish at QoS 1 on the present connection, or `None` when there is none or
    /// [`IN_FLIGHT_MAX`] wait for their acknowledgement. Each call hands out another frame.
    pub fn poll_publish(&mut self) -> Option<Outgoing<'_>> {
        if self.in_flight.is_full() {
            return None;
        }
        // After a broken connection some frames behind the front may be acknowledged already.
        while self.buffer.get(self.sent).is_some_and(|frame| frame.acknowledged) {
            self.sent += 1;
        }
        let frame = self.buffer.get(self.sent)?;
        self.in_flight.push(frame.sequence).ok()?;
        self.sent += 1;
        self.counters.published += 1;
        if frame.sequence < self.published_before {
            self.counters.resent += 1;
        } else {
            self.published_before = frame.sequence + 1;
        }
        Some(Outgoing { sequence: frame.sequence, bytes: &frame.bytes })
    }

    /// The broker has the frame with this sequence number. Gives whether that was news: not when it was dropped or
    /// acknowledged before, nor when it was not published on this connection.
    pub fn acknowledged(&mut self, sequence: u64) -> bool {
        let Some(place) = self.in_flight.iter().position(|published| *published == sequence) else { return false };
        self.in_flight.swap_remove(place);
        let index = self.buffer.front().and_then(|front| sequence.checked_sub(front.sequence));
        let index = index.and_then(|index| usize::try_from(index).ok());
        let Some(frame) = index.and_then(|index| self.buffer.get_mut(index)) else { return false };
        frame.acknowledged = true;
        self.counters.acknowledged += 1;
        self.forget_acknowledged();
        true
    }

    /// The connection broke: what was not acknowledged will be handed out again, in order.
    pub fn disconnected(&mut self) {
        self.sent = 0;
        self.in_flight.clear();
    }

    /// What it has done so far.
    #[must_use]
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// The frames that wait for their acknowledgement, published or not.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.buffer.iter().filter(|frame| !frame.acknowledged).count()
    }

    /// Whether every sample is acknowledged or dropped.
    #[must_use]
    pub fn is_drained(&self) -> bool {
        self.builder.is_empty() && self.buffer.is_empty()
    }

    /// Whether a sample at this time belongs to the frame being filled.
    fn continues(&self, now_us: i64) -> bool {
        let interval_us = i64::from(self.setup.interval_us);
        let expected_us = i64::try_from(self.builder.rows())
            .ok()
            .and_then(|rows| rows.checked_mul(interval_us))
            .and_then(|offset| self.first_sample_us.checked_add(offset));
        self.builder.is_empty()
            || expected_us
                .and_then(|expected| now_us.checked_sub(expected))
                .is_some_and(|off| off.unsigned_abs() * 2 <= u64::from(self.setup.interval_us))
    }

    /// Keeps the rule that the front of the buffer is not acknowledged.
    fn forget_acknowledged(&mut self) {
        while self.buffer.front().is_some_and(|front| front.acknowledged) {
            self.buffer.pop_front();
            self.sent = self.sent.saturating_sub(1);
        }
    }

    fn store(&mut self, frame: Stored<FRAME_BYTES>) {
        self.counters.framed += 1;
        let oldest = if self.buffer.is_full() { self.buffer.pop_front() } else { None };
        if let Some(oldest) = oldest {
            self.counters.dropped += 1;
            self.counters.dropped_samples += oldest.samples as u64;
            self.sent = self.sent.saturating_sub(1);
            self.forget_acknowledged();
        }
        if let Err(frame) = self.buffer.push_back(frame) {
            // Only a buffer for no frame at all is full now.
            self.counters.dropped += 1;
            self.counters.dropped_samples += frame.samples as u64;
        }
    }

    fn write(&self, sequence: u64, first_sample_us: i64) -> Result<Vec<u8, FRAME_BYTES>, EncodeError> {
        let Setup { asset, device, channels, boot_id, interval_us, .. } = self.setup;
        let header = Header { asset, device, boot_id, sequence, first_sample_us, interval_us, channels };
        let mut bytes = Vec::new();
        let too_small = EncodeError::BufferTooSmall { buffer_bytes: FRAME_BYTES };
        bytes.resize_default(FRAME_BYTES).map_err(|_| too_small)?;
        let length = self.builder.encode(&header, &mut bytes)?.len();
        bytes.truncate(length);
        Ok(bytes)
    }

    /// Writes a full frame with the longest numbers, and forgets it.
    fn try_largest_frame(&mut self) -> Result<(), EncodeError> {
        let row: Vec<f32, { millwright_wire::CHANNELS_MAX }> =
            self.setup.channels.iter().take(millwright_wire::CHANNELS_MAX).map(|_| 0.0).collect();
        // No row fits without a channel or with too many: the format's check then says so.
        for _ in 0..self.setup.samples_per_frame {
            if self.builder.push(&row).is_err() {
                break;
            }
        }
        let complete = self.builder.rows() == self.setup.samples_per_frame;
        let written = self.write(u64::MAX, i64::MIN);
        self.builder.clear();
        written?;
        if complete { Ok(()) } else { Err(EncodeError::BufferTooSmall { buffer_bytes: VALUES * size_of::<f32>() }) }
    }
}
