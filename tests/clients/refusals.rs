//! What a client lacks, or claims, that keeps it out: one scenario each, played with papers that are spoiled here.

use crate::scenarios::{Course, Scenario, Version};
use crate::secrets::{Secrets, USER};
use crate::way::{Papers, Way, pair};

const ENCRYPTED: &[Way] = &[Way::Tls, Way::MutualTls, Way::WebSocketTls];
const MUTUAL: &[Way] = &[Way::MutualTls];
const BY_PASSWORD: &[Way] = &[Way::Tls, Way::WebSocket, Way::WebSocketTls];
const WEB: &[Way] = &[Way::WebSocket, Way::WebSocketTls];
const GUARDED: &[Way] = &[Way::Tls, Way::MutualTls, Way::WebSocket, Way::WebSocketTls];

const fn refusal(ways: &'static [Way], name: &'static str, claim: &'static str) -> Scenario {
    Scenario { name, claim, since: Version::V311, course: Course::Once, ways }
}

/// All refusals.
pub(crate) const REFUSALS: &[Scenario] = &[
    refusal(ENCRYPTED, "wrong-authority", "a client that trusts another authority does not talk to the gateway"),
    refusal(ENCRYPTED, "wrong-host", "a client that knows the gateway by another name does not talk to it"),
    refusal(MUTUAL, "no-certificate", "a client that has to show a certificate and has none is not let in"),
    refusal(MUTUAL, "other-certificate", "a certificate of another authority does not count, whatever name is in it"),
    refusal(BY_PASSWORD, "wrong-password", "a wrong password is refused with its code"),
    refusal(BY_PASSWORD, "no-login", "who says nothing about itself is refused with the code of a wrong password"),
    refusal(GUARDED, "outside-rules", "what no access rule allows is refused with its code, or the end in MQTT 3.1.1"),
    refusal(WEB, "other-origin", "a page of another origin is answered with 403"),
    refusal(WEB, "wrong-path", "another path than the configured one is answered with 404"),
    refusal(WEB, "no-subprotocol", "a WebSocket that does not name MQTT is answered with 400"),
];

/// Makes the papers lack what the refusal is about.
pub(crate) fn spoil(papers: &mut Papers, refusal: &str, secrets: &Secrets) {
    match refusal {
        "wrong-authority" => papers.authority = Some(secrets.others.join("ca.crt")),
        "wrong-host" => papers.host = "localhost".to_owned(),
        "no-certificate" => papers.certificate = None,
        "other-certificate" => papers.certificate = Some(pair(&secrets.others)),
        "wrong-password" => papers.login = Some((USER, "wrong horse")),
        "no-login" => papers.login = None,
        "other-origin" => papers.origin = Some("https://elsewhere.example"),
        "wrong-path" => papers.path = "/elsewhere",
        "no-subprotocol" => papers.subprotocol = false,
        _ => {}
    }
}
