//! The telemetry frame that devices send: what its bytes are, how they are written and how they are read back.
//!
//! Owns the format and its limits. Never allocates, never reads a clock, knows neither MQTT nor what a channel
//! means. Works without `std`: the same code runs on the microcontroller and in the gateway.
//!
//! # Layout, version 1
//!
//! One version byte, then [postcard](https://postcard.jamesmunns.com/wire-format) values one after another,
//! nothing after the last:
//!
//! | field | encoding | limits |
//! |---|---|---|
//! | version | one byte | 1 |
//! | asset | string | 1 to [`ID_BYTES_MAX`] bytes; no `/`, `+`, `#`, no control character |
//! | device | string | 1 to [`ID_BYTES_MAX`] bytes; no control character |
//! | boot id | varint `u32` | drawn at random at each boot of the device |
//! | sequence | varint `u64` | counts the frames of this boot |
//! | first sample | zigzag varint `i64` | device time, microseconds since 1970-01-01 UTC |
//! | interval | varint `u32` | microseconds between samples; 0 only if there is one sample |
//! | channels | varint count, then a string each | 1 to [`CHANNELS_MAX`]; 1 to [`CHANNEL_BYTES_MAX`] bytes, no control character, no two alike |
//! | samples | varint length in bytes, then little-endian `f32`, row by row | 1 to [`SAMPLES_MAX`] rows of one value per channel |
//!
//! A string is a varint length in bytes and its UTF-8; a varint carries seven bits a byte, least significant
//! first. (boot id, sequence) names a frame of a device for good: a frame sent again has the same bytes.
//! A value may be NaN or infinite: what that says about a sensor is for the reader to judge.
//!
//! # Reading hostile bytes
//!
//! [`Frame::decode`] borrows from its input: it allocates nothing, and every length is compared with the bytes
//! that are there before it is used. It accepts what the table above allows and nothing else, and its
//! [`DecodeError`] names the field and the rule.
#![no_std]

mod builder;
mod decode;
mod encode;
mod error;
mod samples;

pub use builder::FrameBuilder;
pub use decode::Frame;
pub use encode::{Header, encode};
pub use error::{DecodeError, EncodeError, Field};
pub use samples::{Row, Rows, Samples};

/// The format that this crate writes and reads; the first byte of every frame.
pub const VERSION: u8 = 1;

/// The longest asset or device id, in bytes: an asset id is one level of a topic.
pub const ID_BYTES_MAX: usize = 64;

/// The most channels of a frame.
pub const CHANNELS_MAX: usize = 64;

/// The longest channel name, in bytes.
pub const CHANNEL_BYTES_MAX: usize = 32;

/// The most samples (rows) of a frame.
pub const SAMPLES_MAX: usize = 1_024;

/// The bytes of one value.
const VALUE_BYTES: usize = size_of::<f32>();

/// The largest frame: version 1, two ids of 64 + a 1-byte length, boot id 5, sequence 10, time 10, interval 5,
/// channel count 1, 64 names of 32 + a 1-byte length, samples 3 + 1,024 · 64 · 4 = 264,421 bytes.
pub const FRAME_BYTES_MAX: usize = 1
    + 2 * (1 + ID_BYTES_MAX)
    + 5
    + 10
    + 10
    + 5
    + 1
    + CHANNELS_MAX * (1 + CHANNEL_BYTES_MAX)
    + 3
    + SAMPLES_MAX * CHANNELS_MAX * VALUE_BYTES;
