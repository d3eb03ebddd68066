//! rumqttc, the Rust client: the scenarios in the test's own process.

mod peer;
mod plain;
mod v5;

use anyhow::Context;

use crate::kind::{Kind, Missing, Turn};
use crate::scenarios::Version;
use crate::way::Way;

pub(crate) struct Rumqttc;

impl Kind for Rumqttc {
    fn name(&self) -> &'static str {
        "rumqttc"
    }

    fn find(&self) -> Result<String, Missing> {
        Ok("rumqttc".to_owned())
    }

    fn ways(&self) -> &'static [Way] {
        &[Way::Tcp]
    }

    fn cannot(&self, scenario: &str, _version: Version) -> Option<&'static str> {
        match scenario {
            "disconnect-with-will" => Some("rumqttc always disconnects with reason 0x00"),
            _ => None,
        }
    }

    fn play(&self, turn: &Turn) -> anyhow::Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("a runtime")?;
        runtime.block_on(async {
            match turn.scenario.name {
                "qos" => plain::qos(turn).await,
                "payloads" => plain::payloads(turn).await,
                "order" => plain::order(turn).await,
                "retained" => plain::retained(turn).await,
                "retained-restart" => plain::retained_restart(turn).await,
                "will" => plain::will(turn).await,
                "wildcards" => plain::wildcards(turn).await,
                "unsubscribe" => plain::unsubscribe(turn).await,
                "takeover" => plain::takeover(turn).await,
                "keep-alive" => plain::keep_alive(turn).await,
                "refused" => plain::refused(turn).await,
                "session" | "session-restart" => plain::session(turn).await,
                "session-clean" => plain::session_clean(turn).await,
                "redelivery" => plain::redelivery(turn).await,
                "sys-topics" => plain::sys_topics(turn).await,
                "properties" => v5::properties(turn).await,
                "request-response" => v5::request_response(turn).await,
                "message-expiry" => v5::message_expiry(turn).await,
                "topic-alias" => v5::topic_alias(turn).await,
                "subscription-identifier" => v5::subscription_identifier(turn).await,
                "no-local" => v5::no_local(turn).await,
                "retain-as-published" => v5::retain_as_published(turn).await,
                "retain-handling" => v5::retain_handling(turn).await,
                "shared" => v5::shared(turn).await,
                "server-keep-alive" => v5::server_keep_alive(turn).await,
                "assigned-id" => v5::assigned_id(turn).await,
                "receive-maximum" => v5::receive_maximum(turn).await,
                "packet-size-max" => v5::packet_size_max(turn).await,
                "session-expiry" => v5::session_expiry(turn).await,
                "will-delay" => v5::will_delay(turn).await,
                "will-delay-session-end" => v5::will_delay_session_end(turn).await,
                other => anyhow::bail!("no such scenario: {other}"),
            }
        })
    }
}
