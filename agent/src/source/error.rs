//! Why a payload did not become a reading.
//!
//! Owns the words: what is wrong, on which topic, where in the payload, and what to do. A message repeats at most a
//! few characters of the payload.

use std::fmt;

use millwright_broker::topic::TopicName;
use millwright_wire::DecodeError;

use super::{CHANNELS_MAX, SAMPLES_MAX};

/// A payload that could not be decoded; it changes nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourceError {
    /// The topic it arrived on.
    pub topic: TopicName,
    /// The format it was to have.
    pub format: &'static str,
    /// Where in the payload.
    pub at: Place,
    /// What is wrong.
    pub fault: Fault,
}

/// Where in a payload something is wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// The payload as a whole.
    Whole,
    /// A line and a column, both from 1; a column of 0 is the whole line.
    Line(usize, usize),
    /// The element of the list, from 0.
    Sample(usize),
    /// A byte, from 0.
    Byte(usize),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::Whole => Ok(()),
            Place::Line(line, 0) => write!(f, ", line {line}"),
            Place::Line(line, column) => write!(f, ", line {line}, column {column}"),
            Place::Sample(index) => write!(f, ", sample {index}"),
            Place::Byte(offset) => write!(f, ", byte {offset}"),
        }
    }
}

/// What is wrong with a payload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// It has no bytes.
    Empty,
    /// It is not UTF-8.
    NotText,
    /// It is not JSON.
    NotJson {
        /// What the parser says.
        detail: String,
    },
    /// It is JSON, but neither an object nor a list of objects.
    NotAnObject {
        /// What was found.
        found: &'static str,
    },
    /// It is not a number.
    NotANumber {
        /// What was found, shortened.
        found: String,
    },
    /// It is not a telemetry frame.
    NotAFrame(DecodeError),
    /// The frame is about another asset than its topic.
    OtherAsset {
        /// The asset in the frame.
        frame: String,
    },
    /// It is not a Sparkplug B payload.
    NotSparkplug {
        /// What the decoder says.
        detail: String,
    },
    /// It names metrics by aliases that no birth message explained.
    UnknownAlias {
        /// The first of them.
        alias: u64,
    },
    /// Too many edge nodes and devices to remember.
    TooManyDevices {
        /// The limit.
        devices_max: usize,
    },
    /// A line has another number of cells than the source has columns.
    Columns {
        /// The cells of the line.
        found: usize,
        /// The columns of the source.
        expected: usize,
    },
    /// More channels than [`CHANNELS_MAX`].
    TooManyChannels,
    /// More samples than [`SAMPLES_MAX`].
    TooManySamples,
    /// Nothing in it is a number.
    NoValues,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Fault::Empty => f.write_str("it is empty; publish a value, or nothing"),
            Fault::NotText => f.write_str("it is not UTF-8 text; check the `format` of the source"),
            Fault::NotJson { detail } => write!(f, "it is not JSON: {detail}; check the `format` of the source"),
            Fault::NotAnObject { found } => write!(
                f,
                "expected an object or a list of objects, found {found}; for a plain number write format = \"number\""
            ),
            Fault::NotANumber { found } => {
                write!(f, "\"{found}\" is not a number; check the `format` and the `filter` of the source")
            }
            Fault::NotAFrame(error) => {
                write!(f, "it is not a telemetry frame: {error}; check the `format` of the source")
            }
            Fault::OtherAsset { frame } => {
                write!(f, "the frame is about asset \"{frame}\", its topic is not; publish it on that asset's topic")
            }
            Fault::NotSparkplug { detail } => {
                write!(f, "it is not a Sparkplug B payload: {detail}; check the `format` of the source")
            }
            Fault::UnknownAlias { alias } => {
                write!(f, "no birth message has explained alias {alias}; have the edge node publish its birth again")
            }
            Fault::TooManyDevices { devices_max } => {
                write!(f, "{devices_max} edge nodes and devices are known already; narrow the `filter` of the source")
            }
            Fault::Columns { found, expected } => {
                write!(f, "{found} cells, the source has {expected} columns; check its `columns` and `separator`")
            }
            Fault::TooManyChannels => {
                write!(f, "more than {CHANNELS_MAX} channels; publish parts of the machine as assets of their own")
            }
            Fault::TooManySamples => write!(f, "more than {SAMPLES_MAX} samples; publish them in several messages"),
            Fault::NoValues => f.write_str("no field is a number or a boolean; check the `values_field` of the source"),
        }
    }
}

impl fmt::Display for SourceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let SourceError { topic, format, at, fault } = self;
        write!(f, "topic `{topic}`, {format} payload{at}: {fault}")
    }
}

impl std::error::Error for SourceError {}

/// A fault before the topic is known to it.
pub(super) type Faulty<T> = Result<T, (Place, Fault)>;
