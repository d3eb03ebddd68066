//! Topic filters and names against an implementation that follows the words of the standard and nothing else.
//!
//! An input is a filter and, behind the first line feed, a topic.

use millwright_broker::topic::{TOPIC_BYTES_MAX, TOPIC_LEVELS_MAX, TopicFilter, TopicName};

/// Checks all of it.
pub fn check(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    let (filter_text, topic_text) = text.split_once('\n').unwrap_or((text, text));
    let filter = TopicFilter::parse(filter_text).ok();
    assert_eq!(filter.is_some(), is_filter(filter_text), "{filter_text:?} is a filter, or it is not");
    let topic = TopicName::parse(topic_text).ok();
    assert_eq!(topic.is_some(), is_name(topic_text), "{topic_text:?} is a topic name, or it is not");
    if let Some(topic) = &topic {
        assert_eq!(topic.as_str(), topic_text);
    }
    let Some(filter) = filter else { return };
    let (group, matching) = parts(filter_text);
    assert_eq!(filter.as_written(), filter_text);
    assert_eq!((filter.share_group(), filter.as_str()), (group, matching));
    let Some(topic) = topic else { return };
    let expected = captures(matching, topic_text);
    assert_eq!(filter.matches(&topic), expected.is_some(), "{filter_text:?} on {topic_text:?}");
    assert_eq!(filter.captures(&topic), expected, "{filter_text:?} on {topic_text:?}");
}

/// What holds for names and filters. [MQTT-4.7.3]
fn is_topic(text: &str) -> bool {
    let fits = text.len() <= TOPIC_BYTES_MAX && levels(text).len() <= TOPIC_LEVELS_MAX;
    !text.is_empty() && fits && text.chars().all(|character| character != '\0')
}

fn is_name(text: &str) -> bool {
    is_topic(text) && text.chars().all(|character| character != '+' && character != '#')
}

fn is_filter(text: &str) -> bool {
    if !is_topic(text) {
        return false;
    }
    if levels(text)[0] == "$share" && levels(text).len() > 1 {
        let group_is_good = parts(text).0.is_some_and(|group| !group.is_empty() && !group.contains(['+', '#']));
        return group_is_good && wildcards_are_good(parts(text).1);
    }
    wildcards_are_good(text)
}

/// The group of a shared subscription and what matches topics. [MQTT-4.8.2]
fn parts(filter: &str) -> (Option<&str>, &str) {
    match filter.splitn(3, '/').collect::<Vec<_>>()[..] {
        ["$share", group, matching] => (Some(group), matching),
        ["$share", group] => (Some(group), ""),
        _ => (None, filter),
    }
}

/// A wildcard is alone in its level, and `#` is the last. [MQTT-4.7.1]
fn wildcards_are_good(filter: &str) -> bool {
    let levels = levels(filter);
    let last = levels.len() - 1;
    let good = |(index, level): (usize, &&str)| match *level {
        "#" => index == last,
        "+" => true,
        level => !level.contains(['+', '#']),
    };
    !filter.is_empty() && levels.iter().enumerate().all(good)
}

fn levels(text: &str) -> Vec<&str> {
    text.split('/').collect()
}

/// What each `+` matched, if the topic matches. [MQTT-4.7.1], [MQTT-4.7.2-1]
fn captures<'t>(filter: &str, topic: &'t str) -> Option<Vec<&'t str>> {
    if topic.starts_with('$') && matches!(levels(filter)[0], "+" | "#") {
        return None;
    }
    captures_of(&levels(filter), &levels(topic))
}

fn captures_of<'t>(filter: &[&str], topic: &[&'t str]) -> Option<Vec<&'t str>> {
    match (filter, topic) {
        // The level before `#` matches too.
        (["#"], _) | ([], []) => Some(Vec::new()),
        (["+", filter @ ..], [level, topic @ ..]) => {
            let mut captured = vec![*level];
            captured.extend(captures_of(filter, topic)?);
            Some(captured)
        }
        ([wanted, filter @ ..], [level, topic @ ..]) if wanted == level => captures_of(filter, topic),
        _ => None,
    }
}
