//! JSON telemetry: `{"ts": …, "seq": …, "values": {…}}`, flat objects, and lists of either.
//!
//! Owns the rules of which field becomes what. Decodes in one pass without building a tree, so that the memory it
//! takes is that of the fields it keeps. Objects within objects are flattened one level (`motor.temperature`); what
//! lies deeper, strings and lists are counted as ignored. Tolerates what JSON does not: `NaN`, `Infinity` and numbers
//! beyond the range of a double become missing values.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

use super::error::{Fault, Faulty, Place};
use super::rows::{Rows, channel_name};
use super::{CHANNELS_MAX, SAMPLES_MAX, StreamPosition, time};
use crate::config::{JsonFormat, TimeUnit};
use crate::ids::check_name;

/// The object with the values when no `values_field` is configured.
const VALUES: &str = "values";
/// The field with the number of the device's boot.
const BOOT: &str = "boot";

/// Decodes a payload. `device` names the stream of samples that carry a sequence number.
pub(super) fn decode(
    rows: &mut Rows<'_>,
    format: &JsonFormat,
    device: &Arc<str>,
    payload: &[u8],
    received_us: i64,
) -> Faulty<()> {
    if payload.is_empty() {
        return Err((Place::Whole, Fault::Empty));
    }
    let text = std::str::from_utf8(payload).map_err(|error| (Place::Byte(error.valid_up_to()), Fault::NotText))?;
    let start = rows.out.len();
    match attempt(rows, format, device, text, received_us) {
        Err((_, Fault::NotJson { .. })) if let Some(mended) = mend(text) => {
            rows.out.truncate(start);
            rows.report = super::DecodeReport::default();
            attempt(rows, format, device, &mended, received_us)
        }
        outcome => outcome,
    }
}

fn attempt(rows: &mut Rows<'_>, format: &JsonFormat, device: &Arc<str>, text: &str, received_us: i64) -> Faulty<()> {
    let mut decoder = Decoder { rows, format, device, received_us, samples: 0, fault: None };
    let mut json = serde_json::Deserializer::from_str(text);
    let outcome = (&mut decoder).deserialize(&mut json).and_then(|()| json.end());
    let Decoder { samples, fault, .. } = decoder;
    match (fault, outcome) {
        (Some((index, fault)), _) => Err((if index == 0 { Place::Whole } else { Place::Sample(index) }, fault)),
        (None, Err(error)) => {
            let full = error.to_string();
            let detail = full.split(" at line ").next().unwrap_or_default().to_owned();
            Err((Place::Line(error.line(), error.column()), Fault::NotJson { detail }))
        }
        (None, Ok(())) if rows.report.samples == 0 && samples > 0 => Err((Place::Whole, Fault::NoValues)),
        (None, Ok(())) if samples == 0 => Err((Place::Whole, Fault::Empty)),
        (None, Ok(())) => Ok(()),
    }
}

/// The payload as a whole: an object, or a list of objects.
struct Decoder<'d, 'r> {
    rows: &'d mut Rows<'r>,
    format: &'d JsonFormat,
    device: &'d Arc<str>,
    received_us: i64,
    samples: usize,
    /// A fault that is not one of syntax, with the sample it was found in.
    fault: Option<(usize, Fault)>,
}

impl Decoder<'_, '_> {
    /// Ends the decoding with a fault of ours; the parser's error is only the way out.
    fn fail<T, E: serde::de::Error>(&mut self, fault: Fault) -> Result<T, E> {
        self.fault = Some((self.samples.saturating_sub(1), fault));
        Err(E::custom("stopped"))
    }

    fn finish(&mut self, sample: Sample<'_>) {
        let Sample { time_us, had_time, seq, boot, mut flat, mut values, has_values, ignored } = sample;
        self.rows.report.ignored += ignored;
        if has_values {
            self.rows.report.ignored += flat.len() as u64;
        }
        let fields = if has_values { &mut values } else { &mut flat };
        for (name, _) in fields.iter_mut() {
            if check_name(name).is_err()
                && let Some(channel) = channel_name(name)
            {
                *name = Cow::Owned(channel.as_str().to_owned());
            }
        }
        let all = fields.len();
        fields.retain(|(name, _)| check_name(name).is_ok());
        self.rows.report.ignored += all.saturating_sub(fields.len()) as u64;
        if fields.is_empty() {
            return;
        }
        self.rows.report.times_replaced += u64::from(had_time && time_us.is_none());
        let stream = seq.map(|seq| StreamPosition {
            device: Arc::clone(self.device),
            boot,
            seq,
            device_time: time_us.is_some(),
        });
        self.rows.push(stream, time_us.unwrap_or(self.received_us), fields);
    }
}

impl<'de> DeserializeSeed<'de> for &mut Decoder<'_, '_> {
    type Value = ();
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

/// Refuses every kind of value that a payload or a sample may not be.
macro_rules! refuse {
    ($($visit:ident: $type:ty => $found:literal),*) => {
        $(fn $visit<E: serde::de::Error>(self, _: $type) -> Result<(), E> {
            self.fail(Fault::NotAnObject { found: $found })
        })*
        fn visit_unit<E: serde::de::Error>(self) -> Result<(), E> {
            self.fail(Fault::NotAnObject { found: "null" })
        }
    };
}

impl<'de> Visitor<'de> for &mut Decoder<'_, '_> {
    type Value = ();
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object or a list of objects")
    }
    refuse!(visit_i64: i64 => "a number", visit_u64: u64 => "a number", visit_f64: f64 => "a number",
            visit_bool: bool => "a boolean", visit_str: &str => "a string");

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<(), A::Error> {
        while list.next_element_seed(Element(self))?.is_some() {}
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<(), A::Error> {
        Element(self).visit_map(map)
    }
}

/// One sample.
struct Element<'e, 'd, 'r>(&'e mut Decoder<'d, 'r>);

impl Element<'_, '_, '_> {
    fn fail<T, E: serde::de::Error>(self, fault: Fault) -> Result<T, E> {
        self.0.fail(fault)
    }
}

impl<'de> DeserializeSeed<'de> for Element<'_, '_, '_> {
    type Value = ();
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Element<'_, '_, '_> {
    type Value = ();
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }
    refuse!(visit_i64: i64 => "a list of numbers", visit_u64: u64 => "a list of numbers",
            visit_f64: f64 => "a list of numbers", visit_bool: bool => "a list of booleans",
            visit_str: &str => "a list of strings");

    fn visit_seq<A: SeqAccess<'de>>(self, _: A) -> Result<(), A::Error> {
        self.fail(Fault::NotAnObject { found: "a list of lists" })
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let decoder = self.0;
        decoder.samples = decoder.samples.saturating_add(1);
        if decoder.samples > SAMPLES_MAX {
            return decoder.fail(Fault::TooManySamples);
        }
        let format = decoder.format;
        let mut sample = Sample::default();
        while let Some(Key(key)) = map.next_key::<Key<'de>>()? {
            if *key == *format.time_field {
                sample.had_time = true;
                sample.time_us = map.next_value_seed(Time(format.time_unit))?;
            } else if *key == *format.seq_field {
                sample.seq = map.next_value_seed(Count)?;
            } else if *key == *BOOT {
                sample.boot = map.next_value_seed(Count)?.and_then(|boot| u32::try_from(boot).ok());
            } else {
                let role = match &format.values_field {
                    Some(field) if *field == *key => Role::Values,
                    Some(_) => Role::Ignored,
                    None if key == VALUES => Role::Values,
                    None => Role::Flat,
                };
                map.next_value_seed(Field { sample: &mut sample, name: key, role })?;
            }
            if sample.flat.len() > CHANNELS_MAX || sample.values.len() > CHANNELS_MAX {
                return decoder.fail(Fault::TooManyChannels);
            }
        }
        decoder.finish(sample);
        Ok(())
    }
}

/// What was read of a sample so far.
#[derive(Default)]
struct Sample<'p> {
    time_us: Option<i64>,
    had_time: bool,
    seq: Option<u64>,
    boot: Option<u32>,
    /// The sample's own numeric fields.
    flat: Vec<(Cow<'p, str>, f32)>,
    /// Those of its `values` object.
    values: Vec<(Cow<'p, str>, f32)>,
    has_values: bool,
    ignored: u64,
}

/// What a field of a sample is for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Role {
    /// A value of the sample itself; an object is flattened into it.
    Flat,
    /// The object with the values.
    Values,
    /// A value within the `values` object; an object is flattened into it.
    Value,
    /// A value within a flattened object.
    Nested,
    /// A value within a flattened object within the `values` object.
    NestedValue,
    /// Not used, since the values are elsewhere.
    Ignored,
}

/// Reads the value of one field into the sample.
struct Field<'s, 'p> {
    sample: &'s mut Sample<'p>,
    name: Cow<'p, str>,
    role: Role,
}

impl Field<'_, '_> {
    fn number<E>(self, value: f64) -> Result<(), E> {
        let value = value as f32;
        let list = match self.role {
            Role::Ignored => {
                self.sample.ignored += 1;
                return Ok(());
            }
            Role::Value | Role::NestedValue => &mut self.sample.values,
            Role::Flat | Role::Nested | Role::Values => &mut self.sample.flat,
        };
        // The name that comes twice has its last value, as in every JSON parser.
        match list.iter_mut().find(|(name, _)| *name == self.name) {
            Some((_, known)) => *known = value,
            None => list.push((self.name, value)),
        }
        Ok(())
    }
}

impl<'de> DeserializeSeed<'de> for Field<'_, 'de> {
    type Value = ();
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Field<'_, 'de> {
    type Value = ();
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }
    fn visit_f64<E>(self, value: f64) -> Result<(), E> {
        self.number(value)
    }
    fn visit_i64<E>(self, value: i64) -> Result<(), E> {
        self.number(value as f64)
    }
    fn visit_u64<E>(self, value: u64) -> Result<(), E> {
        self.number(value as f64)
    }
    fn visit_bool<E>(self, value: bool) -> Result<(), E> {
        self.number(f64::from(u8::from(value)))
    }
    fn visit_unit<E>(self) -> Result<(), E> {
        self.number(f64::NAN)
    }
    fn visit_str<E>(self, text: &str) -> Result<(), E> {
        // The only texts that parse as numbers without a digit are the spellings of NaN and of infinities.
        let spelled = !text.bytes().any(|byte| byte.is_ascii_digit()) && text.trim().parse::<f64>().is_ok();
        if spelled {
            return self.number(f64::NAN);
        }
        self.sample.ignored += 1;
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<(), A::Error> {
        while list.next_element::<IgnoredAny>()?.is_some() {}
        self.sample.ignored += 1;
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let role = match self.role {
            Role::Flat => Role::Nested,
            Role::Value => Role::NestedValue,
            Role::Values => Role::Value,
            Role::Nested | Role::NestedValue | Role::Ignored => {
                while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
                self.sample.ignored += 1;
                return Ok(());
            }
        };
        self.sample.has_values |= self.role == Role::Values;
        while let Some(Key(key)) = map.next_key::<Key<'de>>()? {
            if self.sample.flat.len() > CHANNELS_MAX || self.sample.values.len() > CHANNELS_MAX {
                // The sample is refused as soon as this object ends.
                map.next_value::<IgnoredAny>()?;
                continue;
            }
            let name = if role == Role::Value { key } else { Cow::Owned(format!("{}.{key}", self.name)) };
            map.next_value_seed(Field { sample: &mut *self.sample, name, role })?;
        }
        Ok(())
    }
}

/// A field's name, borrowed from the payload unless it contains escapes.
struct Key<'p>(Cow<'p, str>);

impl<'de> serde::Deserialize<'de> for Key<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Key<'de>, D::Error> {
        struct KeyVisitor;
        impl<'de> Visitor<'de> for KeyVisitor {
            type Value = Key<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a field name")
            }
            fn visit_borrowed_str<E>(self, key: &'de str) -> Result<Key<'de>, E> {
                Ok(Key(Cow::Borrowed(key)))
            }
            fn visit_str<E>(self, key: &str) -> Result<Key<'de>, E> {
                Ok(Key(Cow::Owned(key.to_owned())))
            }
        }
        deserializer.deserialize_str(KeyVisitor)
    }
}

/// Reads a value of any kind with one function per kind of scalar, and nothing from objects and lists.
macro_rules! scalar {
    ($seed:ty, $value:ty, $self:ident, $integer:expr, $float:expr, $text:expr) => {
        impl<'de> DeserializeSeed<'de> for $seed {
            type Value = Option<$value>;
            fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
                deserializer.deserialize_any(self)
            }
        }
        impl<'de> Visitor<'de> for $seed {
            type Value = Option<$value>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a value")
            }
            fn visit_i64<E>($self, value: i64) -> Result<Self::Value, E> {
                Ok($integer(i128::from(value)))
            }
            fn visit_u64<E>($self, value: u64) -> Result<Self::Value, E> {
                Ok($integer(i128::from(value)))
            }
            fn visit_f64<E>($self, value: f64) -> Result<Self::Value, E> {
                Ok($float(value))
            }
            fn visit_str<E>($self, value: &str) -> Result<Self::Value, E> {
                Ok($text(value))
            }
            fn visit_bool<E>(self, _: bool) -> Result<Self::Value, E> {
                Ok(None)
            }
            fn visit_unit<E>(self) -> Result<Self::Value, E> {
                Ok(None)
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
                while list.next_element::<IgnoredAny>()?.is_some() {}
                Ok(None)
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
                Ok(None)
            }
        }
    };
}

/// A sample's time, as microseconds; `None` if it is none.
struct Time(TimeUnit);

impl Time {
    /// A recognised unit must give a plausible time; a configured one is taken at its word.
    fn usable(&self, time_us: Option<i64>) -> Option<i64> {
        time_us.filter(|time_us| self.0 != TimeUnit::Auto || time::is_plausible(*time_us))
    }
}

scalar!(
    Time,
    i64,
    self,
    |value| self.usable(time::from_integer(value, self.0)),
    |value| self.usable(time::from_float(value, self.0)),
    |value| self.usable(time::from_text(value, self.0))
);

/// A count: a whole number from 0.
struct Count;

scalar!(
    Count,
    u64,
    self,
    |value| u64::try_from(value).ok(),
    // Some writers know no integers; up to 2^53 a double is exact.
    |value: f64| ((0.0..=9_007_199_254_740_992.0).contains(&value) && value.fract() == 0.0).then_some(value as u64),
    |value: &str| value.parse().ok()
);

/// The payload with what is not JSON but commonly written replaced by `null`: bare `NaN` and `Infinity`, and numbers
/// beyond the range of a double. `None` if there is nothing of the kind. At most a third longer than the payload (`null` for `NaN`).
fn mend(text: &str) -> Option<String> {
    let mut mended = String::with_capacity(text.len());
    let mut changed = false;
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let length = match first {
            '"' => string_length(rest),
            '-' | 'N' | 'I' | 'n' | 'i' | '0'..='9' => {
                let end = |c: char| !(c.is_ascii_alphanumeric() || matches!(c, '-' | '+' | '.'));
                let length = rest.find(end).unwrap_or(rest.len());
                let token = rest.get(..length).unwrap_or_default();
                if token.len() >= 3 && token.parse::<f64>().is_ok_and(|number| !number.is_finite()) {
                    mended.push_str("null");
                    changed = true;
                    rest = rest.get(length..).unwrap_or_default();
                    continue;
                }
                length
            }
            other => other.len_utf8(),
        };
        let (copied, tail) = rest.split_at_checked(length.max(1)).unwrap_or((rest, ""));
        mended.push_str(copied);
        rest = tail;
    }
    changed.then_some(mended)
}

/// The bytes of the string that `text` begins with, with both quotes; all of them if it does not end.
fn string_length(text: &str) -> usize {
    let mut escaped = false;
    for (index, byte) in text.bytes().enumerate().skip(1) {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            b'"' => return index + 1,
            _ => {}
        }
    }
    text.len()
}
