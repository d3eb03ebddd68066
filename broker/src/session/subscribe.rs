//! SUBSCRIBE and UNSUBSCRIBE. [MQTT-3.8], [MQTT-3.10]
//!
//! The shell handles [`Event::Watch`] before it sends the SUBACK, and no packet is taken in between
//! ([`Session::wants_packets`]), so that what is published after it is delivered.

use super::subscriptions::Subscription;
use super::{Event, Moment, Session};
use crate::codec::{
    Packet, Property, Reason, RetainHandling, SubAck, Subscribe, SubscribeFilter, UnsubAck, Unsubscribe, Version,
};
use crate::message::QoS;
use crate::topic::TopicFilter;

impl Session {
    pub(super) fn on_subscribe(&mut self, subscribe: Subscribe, moment: Moment) {
        let identifier = subscribe.properties.iter().find_map(|property| match property {
            Property::SubscriptionIdentifier(id) => Some(*id),
            _ => None,
        });
        let mut retained = Vec::new();
        let filters = &subscribe.filters;
        let reasons = filters
            .iter()
            .map(|wish| self.subscribe(wish, identifier, moment, &mut retained).unwrap_or_else(|reason| reason))
            .collect();
        let suback = SubAck { packet_id: subscribe.packet_id, properties: Vec::new(), reasons };
        self.send(&Packet::SubAck(suback));
        self.outbound.want_retained(retained);
    }

    fn subscribe(
        &mut self,
        wish: &SubscribeFilter,
        identifier: Option<u32>,
        moment: Moment,
        retained: &mut Vec<TopicFilter>,
    ) -> Result<Reason, Reason> {
        let filter = TopicFilter::parse(wish.filter.as_str()).map_err(|_| Reason::TopicFilterInvalid)?;
        if filter.share_group().is_some() {
            return Err(Reason::SharedSubscriptionsNotSupported);
        }
        if !self.authorize.may_subscribe(&self.identity, &filter) {
            return Err(Reason::NotAuthorized);
        }
        let known = self.subscriptions.get(&filter).cloned();
        if known.is_none() && self.subscriptions.len() >= self.limits.subscriptions_max {
            return Err(Reason::QuotaExceeded);
        }
        let options = wish.options;
        let before = known.as_ref().map(|known| known.qos);
        // A subscription that read the log goes on where it was. [MQTT-3.8.4-3]
        let since = known.as_ref().filter(|known| known.qos > QoS::AtMostOnce).map_or(moment.head, |known| known.since);
        self.subscriptions.insert(Subscription {
            filter: filter.clone(),
            qos: options.qos,
            no_local: options.no_local,
            retain_as_published: options.retain_as_published,
            identifier,
            since,
        });
        self.outbound.follow_log(self.subscriptions.read_log(), moment.head);
        self.events.push_back(Event::Watch { filter: filter.clone(), qos: Some(options.qos) });
        let send_retained = match options.retain_handling {
            RetainHandling::Always => true,
            RetainHandling::IfNew => before.is_none(),
            RetainHandling::Never => false,
        };
        if send_retained {
            retained.push(filter);
        }
        Ok(match options.qos {
            QoS::AtMostOnce => Reason::Success,
            QoS::AtLeastOnce => Reason::GrantedQoS1,
            QoS::ExactlyOnce => Reason::GrantedQoS2,
        })
    }

    pub(super) fn on_unsubscribe(&mut self, unsubscribe: Unsubscribe) {
        let mut reasons = Vec::with_capacity(unsubscribe.filters.len());
        for filter in &unsubscribe.filters {
            let reason = match self.subscriptions.remove(filter.as_str()) {
                Some(gone) => {
                    self.events.push_back(Event::Watch { filter: gone.filter, qos: None });
                    Reason::Success
                }
                None => Reason::NoSubscriptionExisted,
            };
            reasons.push(reason);
        }
        let reads = self.subscriptions.read_log();
        self.outbound.stop_following_log(reads);
        if self.version == Version::V311 {
            reasons.clear();
        }
        self.send(&Packet::UnsubAck(UnsubAck { packet_id: unsubscribe.packet_id, properties: Vec::new(), reasons }));
    }
}
