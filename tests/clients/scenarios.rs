//! What every client plays, in one place: the scenarios, what each claims, and which versions of MQTT have it.
//!
//! How a client plays a scenario is its own affair; one that it cannot play it names in [`crate::kind::Kind::cannot`],
//! with the reason.

use std::fmt;

use crate::way::Way;

/// A version of the protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Version {
    /// MQTT 3.1.1
    V311,
    /// MQTT 5
    V5,
}

impl Version {
    /// Both.
    pub(crate) const ALL: [Version; 2] = [Version::V311, Version::V5];

    /// The part of a test's name.
    pub(crate) fn slug(self) -> &'static str {
        match self {
            Version::V311 => "v311",
            Version::V5 => "v5",
        }
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Version::V311 => "3.1.1",
            Version::V5 => "5",
        })
    }
}

/// Which part of a scenario is played; the parts share no connection and no process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    /// All of it.
    Whole,
    /// What comes before the clients have gone.
    Before,
    /// What comes after.
    After,
}

/// What happens around the steps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Course {
    /// One step, nothing between.
    Once,
    /// All clients go and come back.
    Return,
    /// All clients go, the gateway is killed with SIGKILL and started again, they come back.
    Crash,
}

impl Course {
    /// The steps in order.
    pub(crate) fn steps(self) -> &'static [Step] {
        match self {
            Course::Once => &[Step::Whole],
            Course::Return | Course::Crash => &[Step::Before, Step::After],
        }
    }
}

/// A scenario.
#[derive(Debug)]
pub(crate) struct Scenario {
    /// Its name, also on the command line of the scripts.
    pub(crate) name: &'static str,
    /// What holds if it is played to its end.
    pub(crate) claim: &'static str,
    /// The first version that has what it is about.
    pub(crate) since: Version,
    /// What happens around its steps.
    pub(crate) course: Course,
    /// The ways to the gateway that it is played over.
    pub(crate) ways: &'static [Way],
}

const TCP: &[Way] = &[Way::Tcp];

/// For what shows that a way carries everything: small and large, both directions, sessions, a cut.
const EVERY_WAY: &[Way] = &[Way::Tcp, Way::Tls, Way::MutualTls, Way::WebSocket, Way::WebSocketTls];

const fn both(name: &'static str, claim: &'static str) -> Scenario {
    Scenario { name, claim, since: Version::V311, course: Course::Once, ways: TCP }
}

const fn v5(name: &'static str, claim: &'static str) -> Scenario {
    Scenario { name, claim, since: Version::V5, course: Course::Once, ways: TCP }
}

const fn in_two(course: Course, name: &'static str, claim: &'static str) -> Scenario {
    Scenario { name, claim, since: Version::V311, course, ways: TCP }
}

impl Scenario {
    const fn over_every_way(self) -> Scenario {
        Scenario { ways: EVERY_WAY, ..self }
    }
}

/// All scenarios.
pub(crate) const SCENARIOS: &[Scenario] = &[
    both("qos", "in every pair of QoS a message comes with its topic and payload, at the lower QoS of the two")
        .over_every_way(),
    both("payloads", "empty, binary and large payloads and topics beyond ASCII come as they were sent")
        .over_every_way(),
    both("order", "100 messages in flight come once each and in order, at QoS 1 and 2").over_every_way(),
    both("retained", "a new subscriber gets the last retained message, marked as such; an empty one clears the topic")
        .over_every_way(),
    in_two(Course::Crash, "retained-restart", "retained messages outlive a killed gateway, cleared ones stay cleared"),
    both("will", "a killed client leaves its will, one that says DISCONNECT does not").over_every_way(),
    both("wildcards", "`+` matches one level, `#` the rest and its parent, nothing else comes"),
    both("unsubscribe", "after UNSUBACK nothing comes on the filter, and what else is subscribed goes on"),
    both("takeover", "a second client with the same identifier takes over, and the first is told so"),
    both("keep-alive", "a client that only pings stays connected"),
    both(
        "refused",
        "a subscription beyond the limit is refused with its code, and granted when another was given back",
    ),
    in_two(Course::Return, "session", "a kept session collects what comes at QoS 1 and 2 while its client is away")
        .over_every_way(),
    in_two(Course::Crash, "session-restart", "so it does when the gateway is killed in between"),
    both("session-clean", "a clean start discards the kept session and what it collected"),
    both("redelivery", "what a client did not acknowledge comes again, marked as a duplicate, when it returns"),
    both("sys-topics", "`$SYS/#` gives the broker's figures, `#` does not"),
    v5("properties", "user properties, content type, response topic, correlation data and format come unaltered"),
    v5("request-response", "an answer finds its way by response topic and correlation data"),
    v5("message-expiry", "a message carries what is left of its expiry, and is not delivered after it"),
    v5("topic-alias", "a publisher's aliases stand for their topics, also when they are given anew"),
    v5("subscription-identifier", "a message carries the identifiers of the subscriptions that it matches"),
    v5("no-local", "a client that asks for it does not get its own messages"),
    v5("retain-as-published", "the retain flag is kept for who asks for it, and cleared for others"),
    v5("retain-handling", "retained messages are sent always, to new subscriptions only, or never, as asked"),
    v5("shared", "two members of a shared subscription share its messages: each comes once"),
    v5("server-keep-alive", "a keep-alive that the broker shortens is told in CONNACK"),
    v5("assigned-id", "a client without an identifier is assigned one of its own"),
    v5("receive-maximum", "with a receive maximum of 1 all messages come, in order"),
    v5("packet-size-max", "a message beyond the client's limit is left out, the next one comes"),
    v5("session-expiry", "a session ends when its expiry has passed, or at once if DISCONNECT says so"),
    v5("will-delay", "a will waits for its delay, and is not sent if the client comes back in time"),
    v5("will-delay-session-end", "the end of the session ends the will's delay"),
    v5("disconnect-with-will", "DISCONNECT with reason 0x04 sends the will"),
];
