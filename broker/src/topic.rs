//! Topic names and topic filters: parsing and matching ([MQTT-4.7]).
//!
//! Owns the rules of what a topic may be. Never touches a session, a socket or the log. A topic is at most
//! [`TOPIC_BYTES_MAX`] bytes and [`TOPIC_LEVELS_MAX`] levels.

use std::fmt;
use std::sync::Arc;

/// The longest topic name or filter, in bytes; the protocol allows 65,535, no plant needs them.
pub const TOPIC_BYTES_MAX: usize = 1_024;

/// The most levels of a topic name or filter; it bounds the work of a match.
pub const TOPIC_LEVELS_MAX: usize = 64;

/// Why a string is not a topic name or not a topic filter.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TopicError {
    /// A topic has at least one character. [MQTT-4.7.3-1]
    #[error("the topic is empty")]
    Empty,
    /// Longer than [`TOPIC_BYTES_MAX`].
    #[error("the topic has {bytes} bytes, at most {TOPIC_BYTES_MAX} are allowed")]
    TooLong {
        /// Its length.
        bytes: usize,
    },
    /// More levels than [`TOPIC_LEVELS_MAX`].
    #[error("the topic has more than {TOPIC_LEVELS_MAX} levels")]
    TooDeep,
    /// U+0000 is not allowed anywhere. [MQTT-4.7.3-2]
    #[error("the topic contains the null character")]
    Null,
    /// A name to publish to has no wildcards. [MQTT-3.3.2-2]
    #[error("`{topic}` contains a wildcard, which a topic name must not")]
    WildcardInName {
        /// The offending topic.
        topic: String,
    },
    /// `#` stands alone in the last level. [MQTT-4.7.1-2]
    #[error("in `{filter}`, `#` must be the whole last level")]
    MultiLevelWildcard {
        /// The offending filter.
        filter: String,
    },
    /// `+` fills its level. [MQTT-4.7.1-3]
    #[error("in `{filter}`, `+` must be a whole level")]
    SingleLevelWildcard {
        /// The offending filter.
        filter: String,
    },
    /// `$share/<group>/<filter>` needs a group without wildcards and a filter. [MQTT-4.8.2-1], [MQTT-4.8.2-2]
    #[error("`{filter}` is not a shared subscription: write `$share/<group>/<filter>`")]
    Share {
        /// The offending filter.
        filter: String,
    },
}

/// A topic name that has passed the checks of [MQTT-4.7]; only [`TopicName::parse`] makes one. Cheap to clone.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TopicName(Arc<str>);

impl TopicName {
    /// Checks a topic to publish to.
    ///
    /// # Errors
    /// A [`TopicError`] that names the rule.
    pub fn parse(topic: &str) -> Result<TopicName, TopicError> {
        check_common(topic)?;
        if topic.contains(['+', '#']) {
            return Err(TopicError::WildcardInName { topic: topic.to_owned() });
        }
        Ok(TopicName(Arc::from(topic)))
    }

    /// The topic as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether it is a clone of the other. If not, they may be equal nevertheless.
    pub(crate) fn is_same(&self, other: &TopicName) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl std::borrow::Borrow<str> for TopicName {
    // `Hash` and `Eq` of the text, as the trait demands: the derived ones go through `Arc<str>`.
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for TopicName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", &*self.0)
    }
}

impl fmt::Display for TopicName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A topic filter that has passed the checks of [MQTT-4.7]; only [`TopicFilter::parse`] makes one. Cheap to clone.
///
/// A shared subscription (`$share/<group>/<filter>`) keeps its group apart: [`TopicFilter::as_str`] is the part
/// that matches topics.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TopicFilter {
    text: Arc<str>,
    /// Where the matching part begins; 0 unless shared.
    start: usize,
}

impl TopicFilter {
    /// Checks a filter to subscribe to.
    ///
    /// # Errors
    /// A [`TopicError`] that names the rule.
    pub fn parse(filter: &str) -> Result<TopicFilter, TopicError> {
        check_common(filter)?;
        let start = match filter.strip_prefix("$share/") {
            None => 0,
            Some(rest) => shared_filter_start(filter, rest)?,
        };
        let matching = filter.get(start..).unwrap_or_default();
        let mut levels = matching.split('/').peekable();
        while let Some(level) = levels.next() {
            if level.contains('#') && (level != "#" || levels.peek().is_some()) {
                return Err(TopicError::MultiLevelWildcard { filter: filter.to_owned() });
            }
            if level.contains('+') && level != "+" {
                return Err(TopicError::SingleLevelWildcard { filter: filter.to_owned() });
            }
        }
        Ok(TopicFilter { text: Arc::from(filter), start })
    }

    /// The part that matches topics, without `$share/<group>/`.
    pub fn as_str(&self) -> &str {
        self.text.get(self.start..).unwrap_or_default()
    }

    /// The filter as the client wrote it.
    pub fn as_written(&self) -> &str {
        &self.text
    }

    /// The group of a shared subscription.
    pub fn share_group(&self) -> Option<&str> {
        let prefix = self.text.get("$share/".len()..self.start.checked_sub(1)?)?;
        Some(prefix)
    }

    /// Whether a message on this topic is wanted. Wildcards in the first level do not match topics that begin
    /// with `$`. [MQTT-4.7.2-1]
    pub fn matches(&self, topic: &TopicName) -> bool {
        self.walk(topic, |_| {})
    }

    /// The levels that the `+` wildcards matched, in order, or `None` if the topic does not match. `a/+/c/+` on
    /// `a/b/c/d` gives `["b", "d"]`; `#` captures nothing.
    pub fn captures<'t>(&self, topic: &'t TopicName) -> Option<Vec<&'t str>> {
        let mut captured = Vec::new();
        self.walk(topic, |level| captured.push(level)).then_some(captured)
    }

    /// Compares level by level and hands over what each `+` matched.
    fn walk<'t>(&self, topic: &'t TopicName, mut capture: impl FnMut(&'t str)) -> bool {
        let filter = self.as_str();
        if topic.as_str().starts_with('$') && filter.starts_with(['+', '#']) {
            return false;
        }
        let mut wanted = filter.split('/');
        let mut levels = topic.as_str().split('/');
        loop {
            match (wanted.next(), levels.next()) {
                // `a/#` matches `a` too.
                (Some("#"), _) => return true,
                (Some("+"), Some(level)) => capture(level),
                (Some(wanted), Some(level)) if wanted == level => {}
                (None, None) => return true,
                _ => return false,
            }
        }
    }
}

impl fmt::Debug for TopicFilter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", &*self.text)
    }
}

impl fmt::Display for TopicFilter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

fn check_common(topic: &str) -> Result<(), TopicError> {
    if topic.is_empty() {
        return Err(TopicError::Empty);
    }
    if topic.len() > TOPIC_BYTES_MAX {
        return Err(TopicError::TooLong { bytes: topic.len() });
    }
    if topic.contains('\0') {
        return Err(TopicError::Null);
    }
    if topic.bytes().filter(|byte| *byte == b'/').count() >= TOPIC_LEVELS_MAX {
        return Err(TopicError::TooDeep);
    }
    Ok(())
}

fn shared_filter_start(filter: &str, rest: &str) -> Result<usize, TopicError> {
    let wrong = || TopicError::Share { filter: filter.to_owned() };
    let (group, matching) = rest.split_once('/').ok_or_else(wrong)?;
    if group.is_empty() || group.contains(['+', '#']) || matching.is_empty() {
        return Err(wrong());
    }
    Ok(filter.len() - matching.len())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn check(filter: &str, topic: &str, expected: Option<&[&str]>) {
        let filter = TopicFilter::parse(filter).unwrap();
        let topic = TopicName::parse(topic).unwrap();
        assert_eq!(filter.captures(&topic).as_deref(), expected, "{filter} on {topic}");
    }

    // Wildcards match as [MQTT-4.7.1] says, and `+` captures its level.
    #[test]
    fn filters_match_topics() {
        check("a/b", "a/b", Some(&[]));
        check("a/b", "a/b/c", None);
        check("a/+", "a/b", Some(&["b"]));
        check("a/+", "a", None);
        check("a/+", "a/", Some(&[""]));
        check("a/#", "a", Some(&[]));
        check("a/#", "a/b/c", Some(&[]));
        check("#", "a", Some(&[]));
        check("+/+", "/x", Some(&["", "x"]));
        check("/+", "/x", Some(&["x"]));
        check("+/b/+", "a/b/c", Some(&["a", "c"]));
        check("ä/+", "ä/ö", Some(&["ö"]));
        check("$share/g/a/+", "a/b", Some(&["b"]));
    }

    // Wildcards at the front do not see topics that begin with `$`. [MQTT-4.7.2-1]
    #[test]
    fn dollar_topics_are_hidden_from_leading_wildcards() {
        check("#", "$SYS/x", None);
        check("+/x", "$SYS/x", None);
        check("$SYS/#", "$SYS/x", Some(&[]));
    }

    // Strings that are not filters are refused with the rule they break.
    #[test]
    fn malformed_filters_are_refused() {
        for bad in ["", "a/#/b", "a#", "a/b+", "+a", "a\0b", "$share/g", "$share//a", "$share/+/a", "$share/g/"] {
            assert!(TopicFilter::parse(bad).is_err(), "{bad:?}");
        }
        assert!(TopicName::parse("a/+").is_err());
        assert!(TopicName::parse(&"a".repeat(TOPIC_BYTES_MAX)).is_ok());
        assert!(TopicName::parse(&"a".repeat(TOPIC_BYTES_MAX + 1)).is_err());
        assert!(TopicName::parse(&"/".repeat(TOPIC_LEVELS_MAX - 1)).is_ok());
        assert!(TopicName::parse(&"/".repeat(TOPIC_LEVELS_MAX)).is_err());
    }

    // The group of a shared subscription is kept apart from what matches.
    #[test]
    fn shared_filters_name_their_group() {
        let filter = TopicFilter::parse("$share/night/a/+").unwrap();
        assert_eq!(filter.share_group(), Some("night"));
        assert_eq!(filter.as_str(), "a/+");
        assert_eq!(TopicFilter::parse("a/+").unwrap().share_group(), None);
    }
}
