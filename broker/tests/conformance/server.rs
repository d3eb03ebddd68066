//! The broker as the rows need it.

use millwright_broker::topic::{TopicFilter, TopicName};
use millwright_broker::{Authorize, BrokerConfig, Identity};

use crate::common::Gateway;

/// Small, so that a row can exceed it.
pub const RECEIVE_MAX: u16 = 10;

/// Everything is allowed but what ends in `/denied`.
#[derive(Debug)]
struct Rules;

impl Authorize for Rules {
    fn may_publish(&self, _: &Identity, topic: &TopicName) -> bool {
        !topic.as_str().ends_with("/denied")
    }

    fn may_subscribe(&self, _: &Identity, filter: &TopicFilter) -> bool {
        !filter.as_str().ends_with("/denied")
    }
}

fn settings(config: &mut BrokerConfig) {
    config.authorize = std::sync::Arc::new(Rules);
    config.limits.receive_max = RECEIVE_MAX;
    config.limits.topic_aliases_max = 16;
}

pub async fn start() -> Gateway {
    with(|_| {}).await
}

pub async fn with(change: impl FnOnce(&mut BrokerConfig)) -> Gateway {
    Gateway::with(|config| {
        settings(config);
        change(config);
    })
    .await
}

/// Stops the server and starts another on what it left.
pub async fn restart(gateway: Gateway) -> Gateway {
    Gateway::on(gateway.stop().await, settings, |_| {}).await
}
