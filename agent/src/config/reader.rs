//! Reads a TOML document section by section and remembers which keys were read.
//!
//! Owns the position of every mistake and the rule that what nobody asked for is a mistake. Every key is declared
//! by the one line that reads it: its default and its bounds stand there and nowhere else, and [`Document::keys`]
//! lists what was declared. A value that is wrong is reported and replaced by the default, so that reading goes on
//! and every mistake is found in one run. Never gives a key a meaning.

use std::fmt::Display;
use std::net::SocketAddr;
use std::ops::RangeInclusive;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::mistake::{Mistake, suggestion};
use crate::ids::shorten;

/// A key as the code declares it: what `docs/CONFIGURATION.md` must say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyInfo {
    /// The section as it is written: `[broker]`, `[[source]]`.
    pub section: &'static str,
    /// The key.
    pub key: &'static str,
    /// Its default as it would be written, or `required`, or empty if it is simply absent.
    pub default: String,
    /// What is allowed: bounds, choices or the kind of value.
    pub allowed: String,
}

/// Where something stands in the document, for mistakes that are found later.
#[derive(Debug, Clone)]
pub(super) struct Spot {
    offset: usize,
    pub(super) place: String,
}

/// One document being read, and everything found wrong with it so far.
pub(super) struct Document<'d> {
    text: &'d str,
    pub(super) mistakes: Vec<Mistake>,
    pub(super) warnings: Vec<Mistake>,
    pub(super) keys: Vec<KeyInfo>,
}

impl<'d> Document<'d> {
    pub(super) fn new(text: &'d str) -> Document<'d> {
        Document { text, mistakes: Vec::new(), warnings: Vec::new(), keys: Vec::new() }
    }

    pub(super) fn mistake(&mut self, spot: &Spot, what: impl Into<String>, remedy: impl Into<String>) {
        let mistake = self.at(spot, what.into(), remedy.into());
        self.mistakes.push(mistake);
    }

    pub(super) fn warning(&mut self, spot: &Spot, what: impl Into<String>, remedy: impl Into<String>) {
        let warning = self.at(spot, what.into(), remedy.into());
        self.warnings.push(warning);
    }

    /// A syntax error at a byte offset.
    pub(super) fn syntax(&mut self, offset: usize, what: &str) {
        let spot = Spot { offset, place: String::new() };
        let what = what.lines().collect::<Vec<_>>().join(", ");
        self.mistake(&spot, format!("not TOML: {what}"), "");
    }

    /// Drops what was found on lines that are not TOML, and what seemed to be missing: it may stand there.
    pub(super) fn keep_sound(&mut self, broken: impl Iterator<Item = std::ops::Range<usize>>) {
        let spot = |offset| Spot { offset, place: String::new() };
        let lines: Vec<(usize, usize)> = broken
            .map(|span| (self.at(&spot(span.start), String::new(), String::new()).line, span.end))
            .map(|(first, end)| (first, self.at(&spot(end), String::new(), String::new()).line))
            .collect();
        let sound = |mistake: &Mistake| {
            !mistake.what.starts_with("is missing")
                && !lines.iter().any(|(first, last)| (*first..=*last).contains(&mistake.line))
        };
        self.mistakes.retain(sound);
        self.warnings.retain(sound);
    }

    fn at(&self, spot: &Spot, what: String, remedy: String) -> Mistake {
        let before = self.text.get(..spot.offset).unwrap_or(self.text);
        let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
        Mistake {
            line: before.bytes().filter(|byte| *byte == b'\n').count() + 1,
            column: before.get(line_start..).unwrap_or_default().chars().count() + 1,
            place: spot.place.clone(),
            what,
            remedy,
        }
    }
}

/// One table of the document while its keys are read.
pub(super) struct Section<'r, 'd> {
    pub(super) document: &'r mut Document<'d>,
    label: &'static str,
    table: Option<&'d DeTable<'d>>,
    offset: usize,
    asked: Vec<&'static str>,
}

impl<'r, 'd> Section<'r, 'd> {
    /// The document's root; its keys are the sections.
    pub(super) fn root(document: &'r mut Document<'d>, table: &'d DeTable<'d>) -> Section<'r, 'd> {
        Section { document, label: "", table: Some(table), offset: 0, asked: Vec::new() }
    }

    /// The sub-table `name`, which `label` names in messages; absent is as good as empty.
    pub(super) fn section(&mut self, name: &'static str, label: &'static str) -> Section<'_, 'd> {
        let mut offset = self.offset;
        let table = self.take(name).and_then(|value| {
            offset = value.span().start;
            match value.get_ref() {
                DeValue::Table(table) => Some(table),
                other => {
                    let what = format!("expected a section, found {}", describe(other));
                    let remedy = format!("write {label} on a line of its own and its keys below");
                    let spot = Spot { offset, place: label.to_owned() };
                    self.document.mistake(&spot, what, remedy);
                    None
                }
            }
        });
        Section { document: &mut *self.document, label, table, offset, asked: Vec::new() }
    }

    /// The entries of the array of tables `name`, with their offsets: at most `entries_max`.
    pub(super) fn entries(
        &mut self,
        name: &'static str,
        label: &'static str,
        entries_max: usize,
    ) -> Vec<(usize, &'d DeTable<'d>)> {
        let Some(value) = self.take(name) else { return Vec::new() };
        let spot = Spot { offset: value.span().start, place: label.to_owned() };
        let DeValue::Array(array) = value.get_ref() else {
            let what = format!("expected a list of sections, found {}", describe(value.get_ref()));
            self.document.mistake(&spot, what, format!("write {label}, with two brackets, above each entry"));
            return Vec::new();
        };
        if array.len() > entries_max {
            let what = format!("there are {} entries, at most {entries_max} are allowed", array.len());
            self.document.mistake(&spot, what, "remove some");
        }
        let mut tables = Vec::new();
        for entry in array.iter().take(entries_max) {
            match entry.get_ref() {
                DeValue::Table(table) => tables.push((entry.span().start, table)),
                other => {
                    let spot = Spot { offset: entry.span().start, place: label.to_owned() };
                    let what = format!("expected a section, found {}", describe(other));
                    self.document.mistake(&spot, what, format!("write {label} above each entry"));
                }
            }
        }
        tables
    }

    /// One entry of [`Section::entries`].
    pub(super) fn entry(
        document: &'r mut Document<'d>,
        label: &'static str,
        (offset, table): (usize, &'d DeTable<'d>),
    ) -> Section<'r, 'd> {
        Section { document, label, table: Some(table), offset, asked: Vec::new() }
    }

    /// Whether the document gives this section.
    pub(super) fn is_given(&self) -> bool {
        self.table.is_some()
    }

    /// Whether the document gives `key`.
    pub(super) fn has(&self, key: &str) -> bool {
        self.table.is_some_and(|table| table.contains_key(key))
    }

    /// Where `key` stands, or where its section does if it is absent.
    pub(super) fn spot(&self, key: &str) -> Spot {
        let offset = self.table.and_then(|table| table.get(key)).map_or(self.offset, |value| value.span().start);
        let place = match (self.label, key) {
            (label, "") => label.to_owned(),
            ("", key) => key.to_owned(),
            (label, key) => format!("{label} {key}"),
        };
        Spot { offset, place }
    }

    /// Reports a mistake at `key`.
    pub(super) fn mistake(&mut self, key: &str, what: impl Into<String>, remedy: impl Into<String>) {
        let spot = self.spot(key);
        self.document.mistake(&spot, what, remedy);
    }

    /// Reports a warning at `key`.
    pub(super) fn warning(&mut self, key: &str, what: impl Into<String>, remedy: impl Into<String>) {
        let spot = self.spot(key);
        self.document.warning(&spot, what, remedy);
    }

    fn take(&mut self, key: &'static str) -> Option<&'d Spanned<DeValue<'d>>> {
        self.asked.push(key);
        self.table.and_then(|table| table.get(key))
    }

    fn declare(&mut self, key: &'static str, default: impl Into<String>, allowed: impl Into<String>) {
        let info = KeyInfo { section: self.label, key, default: default.into(), allowed: allowed.into() };
        if !self.document.keys.contains(&info) {
            self.document.keys.push(info);
        }
    }

    fn wrong_type(&mut self, key: &str, expected: &str, found: &DeValue<'_>, example: &str) {
        let what = format!("expected {expected}, found {}", describe(found));
        let remedy = if example.is_empty() { String::new() } else { format!("write for example {key} = {example}") };
        self.mistake(key, what, remedy);
    }

    /// A whole number between both bounds.
    pub(super) fn integer<T>(&mut self, key: &'static str, default: T, range: RangeInclusive<T>) -> T
    where
        T: Copy + PartialOrd + Display + TryFrom<i128>,
    {
        let (low, high) = (*range.start(), *range.end());
        self.declare(key, default.to_string(), format!("{low} to {high}"));
        let Some(value) = self.take(key) else { return default };
        let DeValue::Integer(integer) = value.get_ref() else {
            self.wrong_type(key, "a whole number", value.get_ref(), &default.to_string());
            return default;
        };
        let number = i128::from_str_radix(integer.as_str(), integer.radix()).ok();
        match number.and_then(|number| T::try_from(number).ok()).filter(|number| range.contains(number)) {
            Some(number) => number,
            None => {
                let what = format!("{} is out of range: {low} to {high} is allowed", shorten(&integer.to_string()));
                self.mistake(key, what, format!("the default is {default}"));
                default
            }
        }
    }

    /// A number between both bounds, with or without a fraction.
    pub(super) fn float(&mut self, key: &'static str, default: f64, range: RangeInclusive<f64>) -> f64 {
        let (low, high) = (*range.start(), *range.end());
        self.declare(key, format!("{default:?}"), format!("{low:?} to {high:?}"));
        let Some(value) = self.take(key) else { return default };
        let text = match value.get_ref() {
            DeValue::Float(float) => float.as_str().to_owned(),
            DeValue::Integer(integer) if integer.radix() == 10 => integer.as_str().to_owned(),
            other => {
                self.wrong_type(key, "a number", other, &format!("{default:?}"));
                return default;
            }
        };
        match text.parse::<f64>().ok().filter(|number| range.contains(number)) {
            Some(number) => number,
            None => {
                let what = format!("{} is out of range: {low:?} to {high:?} is allowed", shorten(&text));
                self.mistake(key, what, format!("the default is {default:?}"));
                default
            }
        }
    }

    /// `true` or `false`.
    pub(super) fn boolean(&mut self, key: &'static str, default: bool) -> bool {
        self.declare(key, default.to_string(), "true, false");
        match self.take(key).map(Spanned::get_ref) {
            None => default,
            Some(DeValue::Boolean(value)) => *value,
            Some(other) => {
                self.wrong_type(key, "true or false", other, &default.to_string());
                default
            }
        }
    }

    /// A key that had a meaning once: who writes it is told what became of it.
    pub(super) fn retired(&mut self, key: &'static str, what: &str, remedy: &str) {
        if self.has(key) {
            self.asked.push(key);
            self.mistake(key, what, remedy);
        }
    }

    /// One of several words; `None` only if `default` is and the key is absent or wrong.
    pub(super) fn choice<T>(
        &mut self,
        key: &'static str,
        default: Option<T>,
        choices: &[(&'static str, T)],
    ) -> Option<T>
    where
        T: Copy + PartialEq,
    {
        let word = |value: T| choices.iter().find(|(_, choice)| *choice == value).map_or("", |(word, _)| word);
        let words: Vec<&str> = choices.iter().map(|(word, _)| *word).collect();
        let shown = default.map_or("required".to_owned(), |value| format!("\"{}\"", word(value)));
        self.declare(key, shown, words.join(", "));
        let example = format!("\"{}\"", default.map_or(words.first().copied().unwrap_or_default(), word));
        let Some(value) = self.take(key) else {
            if default.is_none() {
                self.mistake(key, "is missing", format!("choose one of {}", words.join(", ")));
            }
            return default;
        };
        let DeValue::String(text) = value.get_ref() else {
            self.wrong_type(key, "a string", value.get_ref(), &example);
            return default;
        };
        if let Some((_, choice)) = choices.iter().find(|(word, _)| word == text) {
            return Some(*choice);
        }
        let remedy = match suggestion(text, words.iter().copied()) {
            Some(meant) => format!("did you mean \"{meant}\"?"),
            None => format!("choose one of {}", words.join(", ")),
        };
        self.mistake(key, format!("\"{}\" is not known", shorten(text)), remedy);
        default
    }

    /// A string that `parse` turns into its type; `None` when it is absent or wrong. `default` is only declared.
    fn parsed<T>(
        &mut self,
        key: &'static str,
        default: &str,
        allowed: &str,
        example: &str,
        parse: impl FnOnce(&str) -> Result<T, (String, String)>,
    ) -> Option<T> {
        self.declare(key, default, allowed);
        let value = self.take(key)?;
        let DeValue::String(text) = value.get_ref() else {
            self.wrong_type(key, "a string", value.get_ref(), example);
            return None;
        };
        match parse(text) {
            Ok(value) => Some(value),
            Err((what, remedy)) => {
                self.mistake(key, what, remedy);
                None
            }
        }
    }

    /// A string that must be there and that `parse` accepts. `remedy` says what to write.
    pub(super) fn required<T, E: Display>(
        &mut self,
        key: &'static str,
        allowed: &str,
        remedy: &str,
        parse: impl FnOnce(&str) -> Result<T, E>,
    ) -> Option<T> {
        let absent = !self.has(key);
        let value = self.parsed(key, "required", allowed, "", |text| {
            parse(text).map_err(|error| (error.to_string(), remedy.to_owned()))
        });
        if absent {
            self.mistake(key, "is missing", remedy);
        }
        value
    }

    /// A string that may be absent and that `parse` accepts.
    pub(super) fn optional<T, E: Display>(
        &mut self,
        key: &'static str,
        allowed: &str,
        remedy: &str,
        parse: impl FnOnce(&str) -> Result<T, E>,
    ) -> Option<T> {
        self.parsed(key, "", allowed, "", |text| parse(text).map_err(|error| (error.to_string(), remedy.to_owned())))
    }

    /// A string that is not empty.
    pub(super) fn text(&mut self, key: &'static str, default: &str, allowed: &str) -> String {
        let shown = format!("\"{default}\"");
        let parse = |text: &str| match text.is_empty() {
            true => Err(("is empty".to_owned(), format!("remove it to get the default, {shown}"))),
            false => Ok(text.to_owned()),
        };
        self.parsed(key, &shown, allowed, &shown, parse).unwrap_or_else(|| default.to_owned())
    }

    /// An IP address with a port.
    pub(super) fn address(&mut self, key: &'static str, default: SocketAddr) -> SocketAddr {
        let shown = format!("\"{default}\"");
        self.parsed(key, &shown, "address:port", &shown, |text| {
            text.parse()
                .map_err(|_| (format!("\"{}\" is not an address with a port", shorten(text)), hint(text, default)))
        })
        .unwrap_or(default)
    }

    /// A list of strings; `None` when it is absent or wrong.
    pub(super) fn list(&mut self, key: &'static str, allowed: &str, example: &str) -> Option<Vec<String>> {
        self.declare(key, "", allowed);
        let value = self.take(key)?;
        let DeValue::Array(array) = value.get_ref() else {
            self.wrong_type(key, "a list of strings", value.get_ref(), example);
            return None;
        };
        let mut strings = Vec::new();
        for entry in array.iter() {
            let DeValue::String(text) = entry.get_ref() else {
                let spot = Spot { offset: entry.span().start, ..self.spot(key) };
                let what = format!("expected a string in the list, found {}", describe(entry.get_ref()));
                self.document.mistake(&spot, what, format!("write for example {key} = {example}"));
                return None;
            };
            strings.push(text.clone().into_owned());
        }
        Some(strings)
    }

    /// Ends the section: what the document gives and nobody asked for is a mistake. `elsewhere` names the sections
    /// that know a key.
    pub(super) fn finish(self, elsewhere: impl Fn(&str) -> Vec<&'static str>) {
        let Some(table) = self.table else { return };
        for (key, value) in table {
            let name: &str = key.get_ref();
            if self.asked.contains(&name) {
                continue;
            }
            let shown = shorten(name);
            let place = match (self.label, value.get_ref()) {
                ("", DeValue::Table(_)) => format!("[{shown}]"),
                ("", DeValue::Array(array)) if array.iter().any(|v| matches!(v.get_ref(), DeValue::Table(_))) => {
                    format!("[[{shown}]]")
                }
                ("", _) => shown.clone(),
                (label, _) => format!("{label} {shown}"),
            };
            let kind = if place.starts_with('[') && self.label.is_empty() { "section" } else { "key" };
            let remedy = match (suggestion(name, self.asked.iter().copied()), elsewhere(name)) {
                (_, sections) if kind == "key" && !sections.is_empty() => {
                    format!("it belongs to {}", sections.join(" or "))
                }
                (Some(meant), _) => format!("did you mean `{meant}`?"),
                (None, _) if self.asked.is_empty() => "remove it".to_owned(),
                (None, _) => format!("remove it; known here: {}", self.asked.join(", ")),
            };
            let spot = Spot { offset: key.span().start, place };
            self.document.mistake(&spot, format!("unknown {kind}"), remedy);
        }
    }
}

/// What is wrong with an address that did not parse, in the cases that happen.
fn hint(text: &str, default: SocketAddr) -> String {
    let port = text.rsplit(':').next().and_then(|port| port.parse::<u16>().ok());
    match port {
        Some(port) if text.starts_with("localhost:") => format!("write \"127.0.0.1:{port}\""),
        Some(port) if text.starts_with("*:") || text.starts_with(':') => {
            format!("write \"0.0.0.0:{port}\" for all interfaces, \"127.0.0.1:{port}\" for this machine alone")
        }
        None if text.parse::<std::net::IpAddr>().is_ok() => format!("add a port: \"{text}:{}\"", default.port()),
        _ => format!("write an IP address and a port, for example \"{default}\""),
    }
}

/// A value as a message names it.
fn describe(value: &DeValue<'_>) -> String {
    match value {
        DeValue::String(text) => format!("the string \"{}\"", shorten(text)),
        DeValue::Integer(integer) => format!("the number {}", shorten(&integer.to_string())),
        DeValue::Float(float) => format!("the number {}", shorten(float.as_str())),
        DeValue::Boolean(value) => value.to_string(),
        DeValue::Datetime(datetime) => format!("the date {datetime}"),
        DeValue::Array(_) => "a list".to_owned(),
        DeValue::Table(_) => "a section".to_owned(),
    }
}
