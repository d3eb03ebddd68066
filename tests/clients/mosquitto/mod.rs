//! mosquitto_pub, mosquitto_sub and mosquitto_rr, the command-line clients.

mod plain;
mod refusals;
mod tools;
mod v5;

use crate::kind::{Kind, Missing, Turn};
use crate::scenarios::Version;
use crate::way::Way;

const REMEDY: &str = "`.ci/run` installs them; by hand, on Debian: apt-get install mosquitto-clients";

pub(crate) struct Mosquitto;

impl Kind for Mosquitto {
    fn name(&self) -> &'static str {
        "mosquitto"
    }

    fn find(&self) -> Result<String, Missing> {
        for tool in ["mosquitto_pub", "mosquitto_sub", "mosquitto_rr", "stdbuf"] {
            tools::version(tool).ok_or_else(|| Missing { reason: format!("there is no `{tool}`"), remedy: REMEDY })?;
        }
        Ok(tools::version("mosquitto_sub").unwrap_or_default())
    }

    fn ways(&self) -> &'static [Way] {
        &[Way::Tcp, Way::Tls, Way::MutualTls]
    }

    fn cannot(&self, scenario: &str, _version: Version) -> Option<&'static str> {
        Some(match scenario {
            "takeover" => "mosquitto_sub comes back by itself: two with one identifier would fight for ever",
            "redelivery" => "mosquitto_sub acknowledges everything",
            "no-local" => "none of the tools publishes and subscribes on one connection",
            "retain-handling" => "mosquitto_sub has no such option",
            "server-keep-alive" => "mosquitto_sub does not show it",
            "session-expiry" => "mosquitto_sub does not show whether a session was present",
            "disconnect-with-will" => "mosquitto_sub cannot set the reason of its DISCONNECT",
            _ => return None,
        })
    }

    fn play(&self, turn: &Turn) -> anyhow::Result<()> {
        match turn.scenario.name {
            "qos" => plain::qos(turn),
            "payloads" => plain::payloads(turn),
            "order" => plain::order(turn, &[]),
            "retained" => plain::retained(turn),
            "retained-restart" => plain::retained_restart(turn),
            "will" => plain::will(turn),
            "wildcards" => plain::wildcards(turn),
            "unsubscribe" => plain::unsubscribe(turn),
            "keep-alive" => plain::keep_alive(turn),
            "refused" => plain::refused(turn),
            "session" | "session-restart" => plain::session(turn),
            "session-clean" => plain::session_clean(turn),
            "sys-topics" => plain::sys_topics(turn),
            "properties" => v5::properties(turn),
            "request-response" => v5::request_response(turn),
            "message-expiry" => v5::message_expiry(turn),
            "topic-alias" => v5::topic_alias(turn),
            "subscription-identifier" => v5::subscription_identifier(turn),
            "retain-as-published" => v5::retain_as_published(turn),
            "shared" => v5::shared(turn),
            "assigned-id" => v5::assigned_id(turn),
            "receive-maximum" => plain::order(turn, &["-D", "connect", "receive-maximum", "1"]),
            "packet-size-max" => v5::packet_size_max(turn),
            "will-delay" => v5::will_delay(turn),
            "will-delay-session-end" => v5::will_delay_session_end(turn),
            "outside-rules" => refusals::outside_rules(turn),
            name if turn.is_refusal() => refusals::kept_out(turn, name),
            other => anyhow::bail!("no such scenario: {other}"),
        }
    }
}
