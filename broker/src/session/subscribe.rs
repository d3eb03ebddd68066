//! SUBSCRIBE and UNSUBSCRIBE. [MQTT-3.8], [MQTT-3.10]
//!
//! The shell handles [`Event::Watch`] before it sends the SUBACK, and no packet is taken in between
//! ([`Session::wants_packets`]), so that what is published after it is delivered.

use super::persist::{Held, Persist};
use super::subscriptions::Subscription;
use super::{Event, Moment, Session};
use crate::codec::{
    Packet, Property, Reason, RetainHandling, SubAck, Subscribe, SubscribeFilter, UnsubAck, Unsubscribe, Version,
};
use crate::message::QoS;
use crate::topic::TopicFilter;

/// A SUBACK that waits until its subscriptions are stored, and the filters whose retained messages follow it.
#[derive(Debug)]
pub(super) struct PendingSubAck {
    suback: SubAck,
    retained: Vec<TopicFilter>,
}

impl PendingSubAck {
    pub(super) fn filters(&self) -> usize {
        self.retained.len()
    }
}

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
        let pending = PendingSubAck { suback, retained };
        match &mut self.persist {
            // A client that was told of a subscription finds it after a crash.
            Some(persist) => persist.hold(Held::SubAck(pending)),
            None => self.send_suback(pending),
        }
    }

    fn subscribe(
        &mut self,
        wish: &SubscribeFilter,
        identifier: Option<u32>,
        moment: Moment,
        retained: &mut Vec<TopicFilter>,
    ) -> Result<Reason, Reason> {
        let filter = TopicFilter::parse(wish.filter.as_str()).map_err(|_| Reason::TopicFilterInvalid)?;
        if !self.limits.fits_topic(filter.as_written()) {
            return Err(Reason::TopicFilterInvalid);
        }
        if !self.authorize.may_subscribe(&self.identity, &filter) {
            self.deny(filter.as_written());
            return Err(Reason::NotAuthorized);
        }
        let known = self.subscriptions.get(&filter).cloned();
        if known.is_none() && self.subscriptions.len() >= self.limits.subscriptions_max {
            return Err(Reason::QuotaExceeded);
        }
        if known.is_none() && !moment.subscriptions_fit {
            return Err(Reason::QuotaExceeded);
        }
        if known.is_none() && self.persists() && !moment.filters_fit {
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
        self.store_subscribed(&filter, before.is_none());
        self.outbound.follow_log(self.subscriptions.read_log(), moment.head);
        self.watch(&filter, before.is_none(), options.qos);
        let send_retained = match options.retain_handling {
            // [MQTT-4.8.2] says so of shared subscriptions.
            _ if filter.share_group().is_some() => false,
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

    /// Has live messages, or those of its group, come to a subscription.
    pub(super) fn watch(&mut self, filter: &TopicFilter, is_new: bool, qos: QoS) {
        if filter.share_group().is_some() {
            self.join_group(filter, is_new);
        } else {
            self.events.push_back(Event::Watch { filter: filter.clone(), qos: Some(qos) });
        }
    }

    pub(super) fn send_suback(&mut self, PendingSubAck { suback, mut retained }: PendingSubAck) {
        self.send(&Packet::SubAck(suback));
        // What was unsubscribed since is not wanted: no more wait than there are subscriptions.
        retained.retain(|filter| self.subscriptions.get(filter).is_some());
        self.outbound.want_retained(retained);
    }

    /// Whether a SUBACK waits until its subscriptions are stored.
    pub(super) fn awaits_suback(&self) -> bool {
        self.persist.as_ref().is_some_and(Persist::holds_subacks)
    }

    pub(super) fn on_unsubscribe(&mut self, unsubscribe: Unsubscribe) {
        let mut reasons = Vec::with_capacity(unsubscribe.filters.len());
        for filter in &unsubscribe.filters {
            let reason = match self.subscriptions.remove(filter.as_str()) {
                Some(gone) => {
                    self.outbound.forget_retained(&gone.filter);
                    self.store_unsubscribed(&gone.filter);
                    if gone.filter.share_group().is_some() {
                        self.leave_group(&gone.filter);
                    } else {
                        self.events.push_back(Event::Watch { filter: gone.filter, qos: None });
                    }
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
        let unsuback = UnsubAck { packet_id: unsubscribe.packet_id, properties: Vec::new(), reasons };
        match &mut self.persist {
            Some(persist) => persist.hold(Held::UnsubAck(unsuback)),
            None => self.send(&Packet::UnsubAck(unsuback)),
        }
    }

    fn store_subscribed(&mut self, filter: &TopicFilter, is_new: bool) {
        if let (Some(persist), Some(subscription)) = (&mut self.persist, self.subscriptions.get(filter)) {
            let update = persist.update();
            update.filter_bytes += if is_new { bytes_of(filter) } else { 0 };
            // The last one counts.
            update.unsubscribed.retain(|gone| **gone != *filter.as_written());
            update.subscribed.retain(|stored| stored.filter != *filter);
            update.subscribed.push(subscription.to_store());
        }
    }

    fn store_unsubscribed(&mut self, filter: &TopicFilter) {
        if let Some(persist) = &mut self.persist {
            let update = persist.update();
            update.filter_bytes -= bytes_of(filter);
            update.subscribed.retain(|subscription| subscription.filter != *filter);
            update.unsubscribed.push(filter.as_written().into());
        }
    }
}

/// What a filter counts in the book of sessions; a topic has at most 1,024 bytes.
fn bytes_of(filter: &TopicFilter) -> i64 {
    filter.as_written().len() as i64
}
