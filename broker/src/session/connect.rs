//! From CONNECT to CONNACK. [MQTT-3.1.4]

use super::persist::Persist;
use super::subscriptions::Subscription;
use super::{Ended, Event, Moment, Phase, Session, wire_properties};
use crate::auth::Identity;
use crate::codec::{ConnAck, Connect, Packet, Property, Reason, Text, Version};
use crate::log::sessions::{
    NewSession, Presence, Progress, SessionId, SessionUpdate, StoredSession, StoredSubscription, StoredWill,
};
use crate::message::Message;

/// The longest client identifier, in bytes: the standard asks for 23 at least, cloud services give up to 256.
const CLIENT_ID_BYTES_MAX: usize = 512;

/// How a client is let in.
#[derive(Debug, Default)]
pub(crate) struct Acceptance {
    /// Of the session, in the messages it publishes.
    pub(crate) number: u32,
    /// The number under which the session is stored, if it outlives its connection.
    pub(crate) id: Option<SessionId>,
    /// What an earlier connection left.
    pub(crate) stored: Option<StoredSession>,
    /// Messages that retention dropped while the client was away.
    pub(crate) lost: u64,
}

impl Session {
    pub(super) fn on_connect(&mut self, connect: Connect) {
        self.version = connect.version;
        self.phase = Phase::Deciding;
        self.deadline = None;
        // A refusal, too, has to fit into what the client takes. [MQTT-3.1.2-24]
        for property in &connect.properties {
            match property {
                Property::ReceiveMaximum(max) => self.outbound.set_receive_max(*max),
                Property::MaximumPacketSize(max) => self.outbound.set_packet_bytes_max(*max),
                Property::TopicAliasMaximum(max) => self.outbound.set_topic_aliases_max(*max, &self.limits),
                _ => {}
            }
        }
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

    /// Who the client is. False if it was refused, for its will.
    pub(crate) fn identify(&mut self, identity: Identity) -> bool {
        self.identity = identity;
        let Some(connect) = &self.connect else { return false };
        let refusal = connect.will.as_ref().and_then(|will| self.check_topic(&will.topic).err());
        if let Some(reason) = refusal {
            self.refuse(reason);
        }
        refusal.is_none()
    }

    /// How long the session is to outlive its connection, in seconds: the client's wish, cut to the limit. In 3.1.1 a
    /// session that is not clean has no end of its own.
    pub(crate) fn granted_expiry_s(&self) -> u32 {
        let Some(connect) = &self.connect else { return 0 };
        let wish = match connect.version {
            Version::V311 => u32::from(!connect.clean_start) * u32::MAX,
            Version::V5 => expiry_s_of(connect),
        };
        wish.min(self.limits.session_expiry_max_s)
    }

    /// What the store has to know before CONNACK of a session that outlives its connection; `stored` if it was there.
    pub(crate) fn first_update(&self, id: SessionId, stored: Option<&StoredSession>, moment: Moment) -> SessionUpdate {
        let (read_from, position) = stored.map_or((moment.head, moment.head), |it| (it.read_from, it.position()));
        let client_id = &self.identity.client_id;
        let owner = self.identity.owner().map(|owner| owner.into_owned().into_boxed_str());
        SessionUpdate {
            begin: stored.is_none().then(|| NewSession { client_id: client_id.clone(), username: owner }),
            presence: Some(Presence { expiry_s: self.granted_expiry_s(), ended_us: None }),
            progress: Some(Progress { read_from, position }),
            will: Some(self.connect.as_ref().and_then(|connect| will_of(connect, 0))),
            ..SessionUpdate::of(id)
        }
    }

    /// The client may in.
    pub(crate) fn accept(&mut self, acceptance: Acceptance, moment: Moment) {
        let expiry_s = self.granted_expiry_s();
        let Some(connect) = self.connect.take() else { return };
        if self.phase != Phase::Deciding {
            return;
        }
        let Acceptance { number, id, stored, lost } = acceptance;
        self.phase = Phase::Open;
        self.number = number;
        self.will = will_of(&connect, number);
        self.start_keep_alive(&connect, moment);
        let session_present = stored.is_some();
        if let Some(id) = id {
            let read_from = stored.as_ref().map_or(moment.head, |stored| stored.read_from);
            self.persist = Some(Persist::new(id, expiry_s, read_from, moment.at));
        }
        if let Some(stored) = stored {
            self.resume(stored);
        }
        let properties = self.connack_properties(&connect, expiry_s, lost);
        self.send(&Packet::ConnAck(ConnAck { session_present, reason: Reason::Success, properties }));
    }

    /// Takes up what an earlier connection left. Subscriptions that the client may no longer have are dropped.
    fn resume(&mut self, stored: StoredSession) {
        self.inbound.resume(&stored.incoming);
        for subscription in &stored.subscriptions {
            if !self.authorize.may_subscribe(&self.identity, &subscription.filter) {
                continue;
            }
            let StoredSubscription { filter, qos, no_local, retain_as_published, identifier, since } =
                subscription.clone();
            // Its group has counted it since it was stored.
            self.watch(&filter, false, qos);
            self.subscriptions.insert(Subscription { filter, qos, no_local, retain_as_published, identifier, since });
        }
        self.outbound.resume(&stored, self.subscriptions.read_log());
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

    fn connack_properties(&self, connect: &Connect, expiry_s: u32, lost: u64) -> Vec<Property> {
        if self.version == Version::V311 {
            return Vec::new();
        }
        let limits = &self.limits;
        let mut properties = vec![
            Property::ReceiveMaximum(limits.receive_max.max(1)),
            Property::MaximumPacketSize(u32::try_from(limits.packet_bytes_max).unwrap_or(u32::MAX)),
            Property::TopicAliasMaximum(limits.topic_aliases_max),
        ];
        if connect.client_id.as_str().is_empty() {
            properties.push(Property::AssignedClientIdentifier(Text::from(&*self.identity.client_id)));
        }
        let keep_alive_s = self.granted_keep_alive_s(connect);
        if keep_alive_s != connect.keep_alive_s {
            properties.push(Property::ServerKeepAlive(keep_alive_s));
        }
        if expiry_s != expiry_s_of(connect) {
            properties.push(Property::SessionExpiryInterval(expiry_s));
        }
        if lost > 0 {
            let text = format!("up to {lost} messages were dropped while this session was away");
            properties.push(Property::ReasonString(Text::from(&*text)));
        }
        properties
    }
}

/// The session expiry interval that CONNECT asks for.
fn expiry_s_of(connect: &Connect) -> u32 {
    let wish = connect.properties.iter().find_map(|property| match property {
        Property::SessionExpiryInterval(expiry_s) => Some(*expiry_s),
        _ => None,
    });
    wish.unwrap_or(0)
}

/// The will of CONNECT, with its delay.
fn will_of(connect: &Connect, origin: u32) -> Option<StoredWill> {
    let will = connect.will.as_ref()?;
    let delay_s = will.properties.iter().find_map(|property| match property {
        Property::WillDelayInterval(delay_s) => Some(*delay_s),
        _ => None,
    });
    let message = Message {
        topic: will.topic.clone(),
        payload: will.payload.clone(),
        properties: wire_properties(&will.properties),
        qos: will.qos,
        retain: will.retain,
        origin,
    };
    Some(StoredWill { message, delay_s: delay_s.unwrap_or(0), due_us: None })
}
