//! From CONNECT to CONNACK. [MQTT-3.1.4]

use super::{Ended, Event, Moment, Phase, Session, wire_properties};
use crate::auth::Identity;
use crate::codec::{Connect, Property, Reason, Text, Version};
use crate::message::Message;

/// The longest client identifier, in bytes: the standard asks for 23 at least, cloud services give up to 256.
const CLIENT_ID_BYTES_MAX: usize = 512;

impl Session {
    pub(super) fn on_connect(&mut self, connect: Connect) {
        self.version = connect.version;
        self.phase = Phase::Deciding;
        self.deadline = None;
        let id = connect.client_id.as_str();
        let takes_none = self.version == Version::V311 && !connect.clean_start;
        if (id.is_empty() && takes_none) || id.len() > CLIENT_ID_BYTES_MAX {
            return self.refuse(Reason::ClientIdentifierNotValid);
        }
        if connect.properties.iter().any(|property| matches!(property, Property::AuthenticationMethod(_))) {
            return self.refuse(Reason::BadAuthenticationMethod);
        }
        self.connect = Some(connect.clone());
        self.events.push_back(Event::Connect(Box::new(connect)));
    }

    /// The client may in, as session `number`; `assigned` is its identifier if it brought none.
    pub(crate) fn accept(&mut self, number: u32, assigned: Option<&str>, moment: Moment) {
        let Some(connect) = self.connect.take() else { return };
        if self.phase != Phase::Deciding {
            return;
        }
        self.phase = Phase::Open;
        self.number = number;
        self.identity = Identity {
            client_id: assigned.unwrap_or(connect.client_id.as_str()).into(),
            username: connect.username.as_ref().map(|name| name.as_str().into()),
        };
        if let Some(will) = &connect.will
            && !self.authorize.may_publish(&self.identity, &will.topic)
        {
            self.phase = Phase::Deciding;
            return self.refuse(Reason::NotAuthorized);
        }
        self.will = connect.will.as_ref().map(|will| Message {
            topic: will.topic.clone(),
            payload: will.payload.clone(),
            properties: wire_properties(&will.properties),
            qos: will.qos,
            retain: will.retain,
            origin: number,
        });
        for property in &connect.properties {
            match property {
                Property::ReceiveMaximum(max) => self.outbound.set_receive_max(*max),
                Property::MaximumPacketSize(max) => self.outbound.set_packet_bytes_max(*max),
                Property::TopicAliasMaximum(max) => self.outbound.set_topic_aliases_max(*max, &self.limits),
                _ => {}
            }
        }
        self.start_keep_alive(&connect, moment);
        let properties = self.connack_properties(&connect, assigned);
        self.send_connack(Reason::Success, properties);
    }

    /// The client must stay out.
    pub(crate) fn refuse(&mut self, reason: Reason) {
        if self.phase == Phase::Deciding {
            self.send_connack(reason, Vec::new());
            self.end(Ended::Refused(reason));
        }
    }

    /// What is granted: the client's wish, cut to the limit. 3.1.1 has no way to tell, so there the wish stands.
    fn granted_keep_alive_s(&self, connect: &Connect) -> u16 {
        match (self.limits.keep_alive_max_s, connect.keep_alive_s) {
            (0, wish) => wish,
            (_, wish) if self.version == Version::V311 => wish,
            (max, 0) => max,
            (max, wish) => wish.min(max),
        }
    }

    fn start_keep_alive(&mut self, connect: &Connect, moment: Moment) {
        let keep_alive_s = u64::from(self.granted_keep_alive_s(connect));
        if keep_alive_s > 0 {
            let silence = std::time::Duration::from_millis(keep_alive_s * 1_500);
            self.keep_alive = Some(silence);
            self.deadline = Some(moment.at + silence);
        }
    }

    fn connack_properties(&self, connect: &Connect, assigned: Option<&str>) -> Vec<Property> {
        if self.version == Version::V311 {
            return Vec::new();
        }
        let limits = &self.limits;
        let mut properties = vec![
            Property::ReceiveMaximum(limits.receive_max.max(1)),
            Property::MaximumPacketSize(u32::try_from(limits.packet_bytes_max).unwrap_or(u32::MAX)),
            Property::TopicAliasMaximum(limits.topic_aliases_max),
            Property::SharedSubscriptionAvailable(false),
        ];
        if let Some(id) = assigned {
            properties.push(Property::AssignedClientIdentifier(Text::from(id)));
        }
        let keep_alive_s = self.granted_keep_alive_s(connect);
        if keep_alive_s != connect.keep_alive_s {
            properties.push(Property::ServerKeepAlive(keep_alive_s));
        }
        // Sessions end with their connection; whoever asked for more is told. [MQTT-3.2.2.3.2]
        if connect.properties.iter().any(|property| matches!(property, Property::SessionExpiryInterval(1..))) {
            properties.push(Property::SessionExpiryInterval(0));
        }
        properties
    }
}
