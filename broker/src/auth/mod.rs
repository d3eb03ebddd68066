//! Who may connect, and what they may do.
//!
//! [`password`] decides who a client is, [`access`] what it may publish and subscribe to. Never reads a file and never
//! sees a socket: the handshake has verified a certificate before its name comes here.

mod access;
mod attempts;
mod password;

use std::borrow::Cow;
use std::fmt;
use std::net::{IpAddr, Ipv6Addr};

use crate::topic::{TopicFilter, TopicName};

pub use access::{AccessPattern, AccessPatternError, AccessRule, AccessRules};
pub use attempts::Attempts;
pub(crate) use password::{Authenticator, Credentials, Login};
pub use password::{Passwords, UserError, Users, Verdict, hash_password};

/// Who a client is, once it was accepted.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Identity {
    /// Its client identifier.
    pub client_id: Box<str>,
    /// The user it authenticated as; `None` if it has none.
    pub username: Option<Box<str>>,
    /// The name in the certificate that it showed; `None` if it showed none.
    pub certificate: Option<Box<str>>,
}

impl Identity {
    /// The name that `%u` stands for in access rules: the user, else the certificate.
    pub fn name(&self) -> Option<&str> {
        self.username.as_deref().or(self.certificate.as_deref())
    }

    /// To whom sessions belong. A certificate is never taken for a user of the same name: the unit separator that marks
    /// it is in no user name.
    pub fn owner(&self) -> Option<Cow<'_, str>> {
        match (&self.username, &self.certificate) {
            (Some(username), _) => Some(Cow::Borrowed(username)),
            (None, Some(certificate)) => Some(Cow::Owned(format!("{CERTIFICATE_MARK}{certificate}"))),
            (None, None) => None,
        }
    }
}

/// In front of a certificate's name where a session's owner is stored.
pub(crate) const CERTIFICATE_MARK: char = '\u{1f}';

/// Decides what a client may do; asked for every publish and every subscription.
pub trait Authorize: fmt::Debug + Send + Sync {
    /// Whether the client may publish to this topic.
    fn may_publish(&self, client: &Identity, topic: &TopicName) -> bool;
    /// Whether the client may subscribe to this filter.
    fn may_subscribe(&self, client: &Identity, filter: &TopicFilter) -> bool;
}

/// Everyone who may connect may publish and subscribe to everything.
#[derive(Debug, Clone, Copy, Default)]
pub struct AllowAll;

impl Authorize for AllowAll {
    fn may_publish(&self, _: &Identity, _: &TopicName) -> bool {
        true
    }

    fn may_subscribe(&self, _: &Identity, _: &TopicFilter) -> bool {
        true
    }
}

/// Where a client comes from, as far as one client can choose its address: an IPv4 address, or the /64 that IPv6 gives to a
/// single host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Network(IpAddr);

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let prefix = if self.0.is_ipv6() { "/64" } else { "" };
        write!(f, "{}{prefix}", self.0)
    }
}

impl From<IpAddr> for Network {
    fn from(address: IpAddr) -> Network {
        match address.to_canonical() {
            IpAddr::V6(address) => {
                let prefix = address.to_bits() >> 64 << 64;
                Network(IpAddr::V6(Ipv6Addr::from_bits(prefix)))
            }
            address => Network(address),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    // A host cannot look like many by choosing other addresses of its own network.
    #[test]
    fn a_host_is_one_network() {
        let network = |address: &str| Network::from(address.parse::<IpAddr>().unwrap());
        assert_eq!(network("2001:db8::1"), network("2001:db8::ffff:2"));
        assert_ne!(network("2001:db8::1"), network("2001:db8:0:1::1"));
        assert_eq!(network("::ffff:192.0.2.7"), network("192.0.2.7"));
        assert_ne!(network("192.0.2.7"), network("192.0.2.8"));
    }

    // A certificate does not open the sessions of a user who has its name.
    #[test]
    fn a_certificate_is_not_the_user_of_its_name() {
        let user = Identity { username: Some("press-7".into()), ..Identity::default() };
        let certificate = Identity { certificate: Some("press-7".into()), ..Identity::default() };
        assert_ne!(user.owner(), certificate.owner());
        assert_eq!(user.name(), certificate.name());
    }
}
