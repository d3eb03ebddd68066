//! The second table: statements that no row checks, and why.

use millwright_broker::codec::Version;

/// Why a server cannot break a statement, or nobody outside can see it.
const CLIENT: &str = "binds the client";
const QOS: &str = "a restriction that the server does not make: every QoS is supported";
const RETAIN: &str = "a restriction that the server does not make: retained messages are supported";
const WILDCARDS: &str = "a restriction that the server does not make: wildcards are supported";
const AUTH: &str = "optional feature not offered: enhanced authentication; no AUTH is ever sent";
const COPIES: &str = "a choice that the server does not make: overlapping subscriptions get one copy";
const WEBSOCKET: &str = "optional transport not offered: WebSocket";
const TRANSIENT: &str = "cannot be provoked from outside: no packet makes a sound server run into a transient error";
const BRIDGE: &str = "the server makes no connections to other servers";
const EXTENSIONS: &str = "cannot be observed in one exchange: every row is an exchange without extensions";

/// Number in 3.1.1, number in 5.0, reason.
const STATEMENTS: &[(&str, &str, &str)] = &[
    ("2.3.1-2", "-", CLIENT),
    ("2.3.1-3", "-", CLIENT),
    ("3.1.2-23", "3.1.2-20", CLIENT),
    ("-", "3.1.2-21", CLIENT),
    ("-", "3.1.2-30", CLIENT),
    ("3.1.3-7", "-", CLIENT),
    ("-", "3.2.2-4", CLIENT),
    ("-", "3.2.2-5", CLIENT),
    ("-", "3.2.2-9", QOS),
    ("-", "3.2.2-10", QOS),
    ("-", "3.2.2-11", CLIENT),
    ("-", "3.2.2-12", QOS),
    ("-", "3.2.2-13", RETAIN),
    ("-", "3.2.2-14", CLIENT),
    ("-", "3.2.2-15", CLIENT),
    ("-", "3.2.2-17", CLIENT),
    ("-", "3.2.2-18", CLIENT),
    ("-", "3.2.2-21", CLIENT),
    ("-", "3.3.2-9", CLIENT),
    ("-", "3.3.2-10", CLIENT),
    ("-", "3.3.4-5", COPIES),
    ("-", "3.3.4-7", CLIENT),
    ("-", "3.3.4-8", CLIENT),
    ("3.8.3-2", "-", WILDCARDS),
    ("3.14.4-1", "-", CLIENT),
    ("3.14.4-2", "-", CLIENT),
    ("-", "3.15.2-1", AUTH),
    ("-", "3.15.2-2", AUTH),
    ("-", "3.15.2-3", AUTH),
    ("4.5.0-2", "4.5.0-2", CLIENT),
    ("4.8.0-2", "-", TRANSIENT),
    ("-", "4.12.0-2", AUTH),
    ("-", "4.12.0-3", AUTH),
    ("-", "4.12.0-4", AUTH),
    ("-", "4.12.0-5", AUTH),
    ("-", "4.12.1-1", AUTH),
    ("-", "4.12.1-2", AUTH),
    ("6.0.0-1", "6.0.0-1", WEBSOCKET),
    ("6.0.0-2", "6.0.0-2", WEBSOCKET),
    ("6.0.0-3", "6.0.0-3", CLIENT),
    ("6.0.0-4", "6.0.0-4", WEBSOCKET),
    ("7.0.0-1", "-", BRIDGE),
    ("7.0.0-2", "-", EXTENSIONS),
    ("7.1.2-1", "-", CLIENT),
];

/// Those of a version, with their reasons.
pub fn all(version: Version) -> impl Iterator<Item = (&'static str, &'static str)> {
    STATEMENTS.iter().filter_map(move |(old, new, why)| {
        let number = if version == Version::V5 { *new } else { *old };
        (number != "-").then_some((number, *why))
    })
}
