//! Passwords of HTTP users: verified one at a time, and not as often as somebody likes.
//!
//! Owns the users' roles, what is held against a user beyond what is held against a network, and the credentials that were
//! verified lately: HTTP Basic sends them with every request, and argon2id is slow on purpose. Never logs a password, nor a
//! name that is no user's: it may be a password in the wrong field.

use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use base64ct::{Base64, Encoding};
use millwright_broker::{Attempts, Network, Passwords as Verifier, UserError, Users, Verdict};

use super::token::Key;
use super::{Principal, Role};
use crate::config::{HTTP_USERS_MAX, HttpUser};

/// One at a time: 19 MiB and some 20 ms of one core, beside those of MQTT clients.
const VERIFICATIONS_MAX: usize = 1;

/// Wrong passwords for one name, from networks where that user has not signed in, before all such networks have to wait.
const USER_FAILURES_MAX: f64 = 50.0;

/// How many of them are forgiven per second: 360 guesses an hour.
const USER_FORGIVEN_PER_S: f64 = 0.1;

/// Names whose wrong passwords are counted, by their hash; 4,096 × about 80 bytes = 320 KiB. Those that are no user's too, or the
/// counting would tell which are.
const NAMES_MAX: usize = 4_096;

/// Networks that are remembered for having signed somebody in; 4,096 × 40 bytes = 160 KiB.
const FAMILIAR_MAX: usize = 4_096;

/// How long credentials that were verified need not be verified again.
const VERIFIED_FOR: Duration = Duration::from_secs(300);

/// Verified credentials that are remembered: one for each user.
const VERIFIED_MAX: usize = HTTP_USERS_MAX;

/// The longest `Authorization` that is looked at, in bytes: a name and a password at their longest, in base64.
const BASIC_BYTES_MAX: usize = 1_024;

/// The users.
pub(super) struct Passwords {
    verifier: Verifier,
    roles: HashMap<String, Role>,
    by_user: Attempts<Key>,
    familiar: Mutex<HashSet<(String, Network)>>,
    verified: Mutex<HashMap<Key, (Principal, Instant)>>,
}

/// What became of credentials.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Outcome {
    Known(Principal),
    Wrong,
    TooMany { wait: Duration },
}

impl Passwords {
    /// # Errors
    /// A hash is none that can be verified.
    pub(super) fn new(users: &[HttpUser]) -> Result<Passwords, UserError> {
        let mut hashes = Users::new();
        for user in users {
            hashes.insert(&user.name, user.password_hash.as_str())?;
        }
        Ok(Passwords {
            verifier: Verifier::new(hashes, VERIFICATIONS_MAX),
            roles: users.iter().map(|user| (user.name.clone(), user.role)).collect(),
            by_user: Attempts::new(USER_FAILURES_MAX, USER_FORGIVEN_PER_S, NAMES_MAX),
            familiar: Mutex::default(),
            verified: Mutex::default(),
        })
    }

    /// Verifies a name and a password that came from `network`.
    pub(super) async fn verify(&self, network: Network, name: &str, password: &[u8]) -> Outcome {
        let role = self.roles.get(name).copied();
        let (place, key) = ((name.to_owned(), network), Key::of(name.as_bytes()));
        let is_familiar = self.familiar.lock().unwrap_or_else(PoisonError::into_inner).contains(&place);
        if !is_familiar && let Some(wait) = self.by_user.wait(&key, Instant::now()) {
            return Outcome::TooMany { wait };
        }
        match (self.verifier.verify(network, name, password).await, role) {
            (Verdict::Right, Some(role)) => {
                self.make_familiar(place);
                Outcome::Known(Principal { name: name.to_owned(), role })
            }
            (Verdict::TooMany { wait }, _) => Outcome::TooMany { wait },
            (Verdict::Wrong | Verdict::Right, role) => {
                if !is_familiar {
                    self.by_user.failed(key, Instant::now());
                }
                let user = if role.is_some() { name } else { "somebody unknown" };
                tracing::warn!(user, network = %network, "a wrong password over HTTP");
                Outcome::Wrong
            }
        }
    }

    fn make_familiar(&self, place: (String, Network)) {
        let mut familiar = self.familiar.lock().unwrap_or_else(PoisonError::into_inner);
        if familiar.len() >= FAMILIAR_MAX {
            familiar.clear();
        }
        familiar.insert(place);
    }

    /// Verifies an `Authorization: Basic …`; `None` if it is none.
    pub(super) async fn basic(&self, network: Network, authorization: &[u8]) -> Option<Outcome> {
        let key = Key::of(authorization);
        if let Some(principal) = self.verified_lately(key, Instant::now()) {
            return Some(Outcome::Known(principal));
        }
        let (name, password) = decode(authorization)?;
        let outcome = self.verify(network, &name, &password).await;
        if let Outcome::Known(principal) = &outcome {
            self.remember(key, principal.clone(), Instant::now());
        }
        Some(outcome)
    }

    fn verified_lately(&self, key: Key, now: Instant) -> Option<Principal> {
        let verified = self.verified.lock().unwrap_or_else(PoisonError::into_inner);
        let (principal, until) = verified.get(&key)?;
        (now < *until).then(|| principal.clone())
    }

    fn remember(&self, key: Key, principal: Principal, now: Instant) {
        let mut verified = self.verified.lock().unwrap_or_else(PoisonError::into_inner);
        verified.retain(|_, (_, until)| now < *until);
        if verified.len() >= VERIFIED_MAX {
            verified.clear();
        }
        verified.insert(key, (principal, now + VERIFIED_FOR));
    }
}

/// Name and password. [RFC 7617]
fn decode(authorization: &[u8]) -> Option<(String, Vec<u8>)> {
    if authorization.len() > BASIC_BYTES_MAX {
        return None;
    }
    let (scheme, encoded) = std::str::from_utf8(authorization).ok()?.split_once(' ')?;
    if !scheme.eq_ignore_ascii_case("basic") {
        return None;
    }
    let bytes = Base64::decode_vec(encoded.trim()).ok()?;
    let colon = bytes.iter().position(|byte| *byte == b':')?;
    let (name, password) = bytes.split_at_checked(colon)?;
    Some((String::from_utf8(name.to_vec()).ok()?, password.get(1..)?.to_vec()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ada() -> Passwords {
        let hash = millwright_broker::hash_password(b"nine red tractors").unwrap();
        let text = format!(
            "[gateway]\nid = \"gw\"\n[[http.user]]\nname = \"ada\"\npassword_hash = \"{hash}\"\nrole = \"viewer\"\n"
        );
        let loaded = crate::config::Config::parse(&text, "f", std::path::Path::new("")).unwrap();
        Passwords::new(&loaded.config.http.users).unwrap()
    }

    // Guesses at one name from many networks end in a wait, whether it is a user's or not; where the user has signed in before,
    // the user is let in all the same.
    #[tokio::test]
    async fn a_user_is_not_locked_out() {
        let passwords = ada();
        let network = |n: u8| Network::from(std::net::IpAddr::from([10, 0, 0, n]));
        let known = Outcome::Known(Principal { name: "ada".to_owned(), role: Role::Viewer });
        assert_eq!(passwords.verify(network(0), "ada", b"nine red tractors").await, known);
        let now = Instant::now();
        for name in ["ada", "bob"] {
            for _ in 0..60 {
                passwords.by_user.failed(Key::of(name.as_bytes()), now);
            }
            let outcome = passwords.verify(network(1), name, b"nine red tractors").await;
            assert!(matches!(outcome, Outcome::TooMany { .. }), "{name}: {outcome:?}");
        }
        assert_eq!(passwords.verify(network(0), "ada", b"nine red tractors").await, known);
    }

    // Credentials that were right are remembered for as long as the constant says, and no longer.
    #[tokio::test]
    async fn credentials_are_remembered_for_a_while() {
        let passwords = ada();
        let sent = format!("Basic {}", Base64::encode_string(b"ada:nine red tractors"));
        let network = Network::from(std::net::IpAddr::from([10, 0, 0, 1]));
        assert!(matches!(passwords.basic(network, sent.as_bytes()).await, Some(Outcome::Known(_))));
        let (key, now) = (Key::of(sent.as_bytes()), Instant::now());
        assert!(passwords.verified_lately(key, now).is_some());
        assert!(passwords.verified_lately(key, now + VERIFIED_FOR).is_none());
        assert_eq!(passwords.basic(network, b"Basic YWRhOg==").await, Some(Outcome::Wrong));
    }

    // Credentials are a name and a password around the first colon; anything else is none.
    #[test]
    fn basic_credentials() {
        let basic = |text: &str| decode(format!("Basic {}", Base64::encode_string(text.as_bytes())).as_bytes());
        assert_eq!(basic("ada:nine:red"), Some(("ada".to_owned(), b"nine:red".to_vec())));
        assert_eq!(basic("ada:"), Some(("ada".to_owned(), Vec::new())));
        assert_eq!(decode(b"bAsIc YTpi"), Some(("a".to_owned(), b"b".to_vec())));
        for none in [&b"Basic YTpi!"[..], b"Basic", b"Bearer YTpi", b"Basic YWJj", b"\xff \xff", b""] {
            assert_eq!(decode(none), None, "{none:?}");
        }
        assert_eq!(basic(&"a:b".repeat(1_000)), None);
    }
}
