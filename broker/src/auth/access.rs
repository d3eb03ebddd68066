//! Access rules: what a user, a group or a certificate may publish and subscribe to.
//!
//! Owns the patterns and their matching. Nothing is allowed unless a rule allows it; there are no rules that forbid, so
//! that their order does not matter. A subscription is allowed when one pattern covers every topic that its filter can
//! match, so that nothing has to be left out later. The number of rules is the configuration's to bound.

use std::collections::HashMap;

use super::{Authorize, Identity};
use crate::topic::{TopicError, TopicFilter, TopicName};

/// Stands for every name in a rule's lists.
const EVERYBODY: &str = "*";

/// One rule: the clients it is for, and what they may do. A client has what all rules for it allow together.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct AccessRule {
    /// Users by name; `*` is every user.
    pub users: Vec<String>,
    /// Groups; their members are [`AccessRules::new`]'s to know.
    pub groups: Vec<String>,
    /// Names in certificates; `*` is every certificate of a trusted authority.
    pub certificates: Vec<String>,
    /// Also for clients that say nothing about themselves.
    pub anonymous: bool,
    /// Topics they may publish to.
    pub publish: Vec<AccessPattern>,
    /// Topics they may subscribe to.
    pub subscribe: Vec<AccessPattern>,
}

/// Why a text is not an access pattern.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AccessPatternError {
    /// Not a topic filter.
    #[error(transparent)]
    Filter(#[from] TopicError),
    /// A group of subscribers has no rights of its own.
    #[error(
        "`{pattern}` names a shared subscription: write the filter behind `$share/<group>/` alone, it holds for both"
    )]
    Shared {
        /// The offending pattern.
        pattern: String,
    },
}

/// A topic filter in which `%u` stands for the client's user name (or the name in its certificate) and `%c` for its
/// client identifier. A name that contains `/`, `+` or `#` stands for nothing: the pattern then matches no topic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AccessPattern {
    text: Box<str>,
    levels: Box<[Level]>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Level {
    /// `#`
    Rest,
    /// `+`
    Any,
    /// The parts, one after the other.
    Name(Box<[Part]>),
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    Text(Box<str>),
    User,
    Client,
}

impl AccessPattern {
    /// Checks a pattern.
    ///
    /// # Errors
    /// An [`AccessPatternError`] that names the rule it breaks.
    pub fn parse(pattern: &str) -> Result<AccessPattern, AccessPatternError> {
        let filter = TopicFilter::parse(pattern)?;
        if filter.share_group().is_some() {
            return Err(AccessPatternError::Shared { pattern: pattern.to_owned() });
        }
        let levels = pattern.split('/').map(Level::parse).collect();
        Ok(AccessPattern { text: pattern.into(), levels })
    }

    /// The pattern as it was written.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    fn matches(&self, client: &Identity, topic: &TopicName) -> bool {
        self.covers_levels(client, topic.as_str(), |_| false)
    }

    fn covers(&self, client: &Identity, filter: &TopicFilter) -> bool {
        self.covers_levels(client, filter.as_str(), |level| level == "+")
    }

    /// Whether the pattern covers a topic or a filter, level by level; `is_any` says which levels are wildcards.
    fn covers_levels(&self, client: &Identity, text: &str, is_any: impl Fn(&str) -> bool) -> bool {
        // A wildcard in front does not reach topics that begin with `$`. [MQTT-4.7.2-1]
        if text.starts_with('$') && !matches!(self.levels.first(), Some(Level::Name(_))) {
            return false;
        }
        let mut levels = self.levels.iter();
        let mut wanted = text.split('/');
        loop {
            match (levels.next(), wanted.next()) {
                // `a/#` covers `a` too.
                (Some(Level::Rest), _) | (None, None) => return true,
                // More than one level: only `#` covers that.
                (_, Some("#")) => return false,
                (Some(Level::Any), Some(_)) => {}
                (Some(Level::Name(parts)), Some(level)) if !is_any(level) && names(parts, client, level) => {}
                _ => return false,
            }
        }
    }
}

impl Level {
    fn parse(level: &str) -> Level {
        match level {
            "#" => Level::Rest,
            "+" => Level::Any,
            level => Level::Name(Part::parse(level).into()),
        }
    }
}

impl Part {
    fn parse(mut level: &str) -> Vec<Part> {
        let mut parts = Vec::new();
        while let Some((at, part)) = next_placeholder(level) {
            let (before, rest) = level.split_at(at);
            if !before.is_empty() {
                parts.push(Part::Text(before.into()));
            }
            parts.push(part);
            level = rest.get(PLACEHOLDER_BYTES..).unwrap_or_default();
        }
        if !level.is_empty() || parts.is_empty() {
            parts.push(Part::Text(level.into()));
        }
        parts
    }
}

const PLACEHOLDER_BYTES: usize = 2;

fn next_placeholder(level: &str) -> Option<(usize, Part)> {
    let user = level.find("%u").map(|at| (at, Part::User));
    let client = level.find("%c").map(|at| (at, Part::Client));
    user.into_iter().chain(client).min_by_key(|(at, _)| *at)
}

/// Whether the parts, for this client, make up the level.
fn names(parts: &[Part], client: &Identity, level: &str) -> bool {
    let rest = parts.iter().try_fold(level, |rest, part| {
        let text = match part {
            Part::Text(text) => text,
            Part::User => client.name().filter(|name| is_level(name))?,
            Part::Client => Some(&*client.client_id).filter(|id| is_level(id))?,
        };
        rest.strip_prefix(text)
    });
    rest == Some("")
}

/// A name that was chosen by a client must not change which levels a pattern has.
fn is_level(name: &str) -> bool {
    !name.is_empty() && !name.contains(['/', '+', '#', '\0'])
}

/// What some clients may do.
#[derive(Debug, Clone, Default)]
struct Rights {
    publish: Vec<AccessPattern>,
    subscribe: Vec<AccessPattern>,
}

impl Rights {
    fn add(&mut self, rule: &AccessRule) {
        self.publish.extend(rule.publish.iter().cloned());
        self.subscribe.extend(rule.subscribe.iter().cloned());
    }
}

/// All access rules, ordered by whom they are for.
#[derive(Debug, Clone, Default)]
pub struct AccessRules {
    users: HashMap<Box<str>, Rights>,
    every_user: Rights,
    certificates: HashMap<Box<str>, Rights>,
    every_certificate: Rights,
    anonymous: Rights,
}

impl AccessRules {
    /// Rules and the members of groups: pairs of a user's name and a group.
    pub fn new<'a>(rules: &[AccessRule], members: impl IntoIterator<Item = (&'a str, &'a str)>) -> AccessRules {
        let mut groups: HashMap<&str, Vec<&str>> = HashMap::new();
        for (user, group) in members {
            groups.entry(group).or_default().push(user);
        }
        let mut all = AccessRules::default();
        for rule in rules {
            let in_groups = rule.groups.iter().filter_map(|group| groups.get(&**group)).flatten().copied();
            let mut users: Vec<&str> = rule.users.iter().map(String::as_str).chain(in_groups).collect();
            users.sort_unstable();
            users.dedup();
            add(&mut all.users, &mut all.every_user, &users, rule);
            let certificates: Vec<&str> = rule.certificates.iter().map(String::as_str).collect();
            add(&mut all.certificates, &mut all.every_certificate, &certificates, rule);
            if rule.anonymous {
                all.anonymous.add(rule);
            }
        }
        all
    }

    /// Everything that holds for a client.
    fn rights<'a>(&'a self, client: &'a Identity) -> impl Iterator<Item = &'a Rights> {
        let user = client.username.as_deref().map(|name| (self.users.get(name), Some(&self.every_user)));
        let certificate =
            client.certificate.as_deref().map(|name| (self.certificates.get(name), Some(&self.every_certificate)));
        let anonymous = (user.is_none() && certificate.is_none()).then_some((Some(&self.anonymous), None));
        let found = [user, certificate, anonymous].into_iter().flatten();
        found.flat_map(|(own, of_all)| [own, of_all]).flatten()
    }
}

fn add(by_name: &mut HashMap<Box<str>, Rights>, everybody: &mut Rights, names: &[&str], rule: &AccessRule) {
    for name in names {
        match *name {
            EVERYBODY => everybody.add(rule),
            name => by_name.entry(name.into()).or_default().add(rule),
        }
    }
}

impl Authorize for AccessRules {
    fn may_publish(&self, client: &Identity, topic: &TopicName) -> bool {
        self.rights(client).any(|rights| rights.publish.iter().any(|pattern| pattern.matches(client, topic)))
    }

    fn may_subscribe(&self, client: &Identity, filter: &TopicFilter) -> bool {
        self.rights(client).any(|rights| rights.subscribe.iter().any(|pattern| pattern.covers(client, filter)))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;

    fn client(username: &str, client_id: &str) -> Identity {
        Identity { client_id: client_id.into(), username: Some(username.into()), certificate: None }
    }

    fn patterns(patterns: &[&str]) -> Vec<AccessPattern> {
        patterns.iter().map(|pattern| AccessPattern::parse(pattern).unwrap()).collect()
    }

    fn covers(pattern: &str, filter: &str) -> bool {
        let pattern = AccessPattern::parse(pattern).unwrap();
        pattern.covers(&client("u", "c"), &TopicFilter::parse(filter).unwrap())
    }

    fn matches(pattern: &str, client: &Identity, topic: &str) -> bool {
        AccessPattern::parse(pattern).unwrap().matches(client, &TopicName::parse(topic).unwrap())
    }

    // A filter is covered only by a pattern that matches at least as much.
    #[test]
    fn filters_are_covered_by_wider_patterns() {
        for (pattern, filter) in [
            ("a/b", "a/b"),
            ("a/+", "a/b"),
            ("a/+", "a/+"),
            ("a/#", "a"),
            ("a/#", "a/#"),
            ("a/#", "a/+/c"),
            ("a/#", "a/b/#"),
            ("#", "#"),
            ("#", "+/x"),
            ("a/+", "$share/g/a/+"),
            ("$SYS/#", "$SYS/broker/#"),
        ] {
            assert!(covers(pattern, filter), "{pattern} covers {filter}");
        }
        for (pattern, filter) in [
            ("a/b", "a/+"),
            ("a/b", "a/#"),
            ("a/+", "a/#"),
            ("a/+", "a/b/c"),
            ("a/+/#", "a/#"),
            ("a/b", "#"),
            ("+", "#"),
            ("+/+", "#"),
            ("#", "$SYS/#"),
            ("+/x", "$SYS/x"),
            ("a/+", "$share/g/a/#"),
        ] {
            assert!(!covers(pattern, filter), "{pattern} does not cover {filter}");
        }
    }

    // `%u` and `%c` stand for the client's names, as a level or a part of one, and no name can reach another level.
    #[test]
    fn placeholders_stand_for_names() {
        let press = client("press-7", "plc-1");
        assert!(matches("t/%u/+", &press, "t/press-7/x"));
        assert!(!matches("t/%u/+", &press, "t/press-8/x"));
        assert!(matches("t/%c", &press, "t/plc-1"));
        assert!(matches("t/x-%u-%c", &press, "t/x-press-7-plc-1"));
        assert!(!matches("t/x-%u", &press, "t/x-press-7-more"));
        assert!(matches("t/100%/%d", &press, "t/100%/%d"));
        for name in ["", "a/b", "+", "#", "a#"] {
            assert!(!matches("t/%u", &client(name, "c"), "t/b"), "{name}");
            assert!(!matches("t/%u/#", &client(name, "c"), "t/a/b"), "{name}");
            let pattern = AccessPattern::parse("t/%u").unwrap();
            assert!(!pattern.covers(&client(name, "c"), &TopicFilter::parse("t/+").unwrap()), "{name}");
        }
        let nobody = Identity { client_id: "c".into(), ..Identity::default() };
        assert!(!matches("t/%u", &nobody, "t/"));
    }

    // Patterns that are no filters, or name a group, are refused with the reason.
    #[test]
    fn malformed_patterns_are_refused() {
        for bad in ["", "a/#/b", "a+", "%u#", "$share/g/a"] {
            assert!(AccessPattern::parse(bad).is_err(), "{bad}");
        }
    }

    // A client has what the rules for its name, its groups, its certificate and everybody of its kind allow, and no more.
    #[test]
    fn rules_add_up() {
        let rule = |publish: &[&str]| AccessRule { publish: patterns(publish), ..AccessRule::default() };
        let rules = [
            AccessRule { users: vec!["ann".into()], ..rule(&["ann/#"]) },
            AccessRule { groups: vec!["fitters".into()], ..rule(&["fitters/#"]) },
            AccessRule { users: vec!["*".into()], ..rule(&["users/%u"]) },
            AccessRule { certificates: vec!["press-7".into()], ..rule(&["press/#"]) },
            AccessRule { certificates: vec!["*".into()], ..rule(&["devices/%u"]) },
            AccessRule { anonymous: true, ..rule(&["guests"]) },
        ];
        let rules = AccessRules::new(&rules, [("ann", "fitters"), ("bob", "other")]);
        let may = |client: &Identity, topic: &str| rules.may_publish(client, &TopicName::parse(topic).unwrap());
        let ann = client("ann", "1");
        let bob = client("bob", "2");
        let press = Identity { certificate: Some("press-7".into()), ..Identity::default() };
        let nobody = Identity::default();
        for topic in ["ann/x", "fitters/x", "users/ann"] {
            assert!(may(&ann, topic), "{topic}");
        }
        assert!(may(&bob, "users/bob") && may(&press, "press/x") && may(&press, "devices/press-7"));
        assert!(may(&nobody, "guests"));
        for (who, topic) in [(&bob, "ann/x"), (&bob, "fitters/x"), (&bob, "users/ann"), (&bob, "guests")] {
            assert!(!may(who, topic), "{topic}");
        }
        for topic in ["users/press-7", "guests", "ann/x"] {
            assert!(!may(&press, topic), "{topic}");
        }
        assert!(!may(&nobody, "users/") && !may(&ann, "press/x"));
        // A user whose name is a certificate's has not its rights.
        assert!(!may(&client("press-7", "3"), "press/x"));
    }

    // Whatever a covered filter matches, the pattern matches too.
    #[test]
    fn nothing_slips_through_a_covered_filter() {
        let level = prop_oneof![Just("a"), Just("b"), Just("+"), Just("$x"), Just("")];
        let filter = (prop::collection::vec(level, 1..4), any::<bool>()).prop_map(|(levels, rest)| {
            let text = levels.join("/");
            if rest { format!("{text}/#") } else { text }
        });
        let name = prop_oneof![Just("a"), Just("b"), Just("c"), Just("$x"), Just("")];
        let topic = prop::collection::vec(name, 1..5).prop_map(|levels| levels.join("/"));
        proptest!(|(pattern in filter.clone(), filter in filter, topic in topic)| {
            let (Ok(pattern), Ok(filter), Ok(topic)) =
                (AccessPattern::parse(&pattern), TopicFilter::parse(&filter), TopicName::parse(&topic))
            else { return Ok(()) };
            let nobody = Identity::default();
            if pattern.covers(&nobody, &filter) && filter.matches(&topic) {
                prop_assert!(pattern.matches(&nobody, &topic), "{pattern:?} {filter} {topic}");
            }
        });
    }
}
