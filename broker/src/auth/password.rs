//! Who may connect: user names, passwords, certificates.
//!
//! Owns the users with their password hashes and the rate at which passwords may be tried. Never stores a password.
//! Verification is slow on purpose (argon2id), so it runs on blocking threads, two at a time.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use argon2::password_hash::phc::PasswordHash;
use argon2::{Argon2, PasswordHasher, PasswordVerifier};
use tokio::sync::Semaphore;

use super::{CERTIFICATE_MARK, Network};

/// Passwords verified at a time: each takes 19 MiB and some 20 ms of one core.
const VERIFICATIONS_MAX: usize = 2;

/// Wrong passwords that one network may send in a row before it has to wait.
const FAILURES_MAX: f64 = 10.0;

/// Wrong passwords per second that one network is forgiven.
const FAILURES_FORGIVEN_PER_S: f64 = 0.5;

/// Networks whose failures are remembered; 4,096 × about 50 bytes = 200 KiB. When it is full the table is emptied of
/// those that are forgiven, then of all.
const NETWORKS_MAX: usize = 4_096;

/// Why a user could not be added or a password not be hashed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UserError {
    /// Not a PHC string of argon2.
    #[error("the password hash of user `{username}` is not an argon2 PHC string: {what}")]
    Hash {
        /// Whose.
        username: String,
        /// What the parser said.
        what: String,
    },
    /// The hash could not be made.
    #[error("the password could not be hashed: {what}")]
    Hashing {
        /// What the hasher said.
        what: String,
    },
}

/// The users that may connect, with their password hashes.
#[derive(Clone, Default)]
pub struct Users {
    hashes: HashMap<Box<str>, PasswordHash>,
}

impl Users {
    /// No users: nobody may connect.
    pub fn new() -> Users {
        Users::default()
    }

    /// Adds a user or replaces the hash of one; `hash` is a PHC string such as [`hash_password`] gives.
    ///
    /// # Errors
    /// [`UserError::Hash`] if it is not.
    pub fn insert(&mut self, username: &str, hash: &str) -> Result<(), UserError> {
        let wrong = |what: String| UserError::Hash { username: username.to_owned(), what };
        let hash = PasswordHash::new(hash).map_err(|error| wrong(error.to_string()))?;
        if !hash.algorithm.as_str().starts_with("argon2") {
            return Err(wrong(format!("its algorithm is {}", hash.algorithm)));
        }
        self.hashes.insert(username.into(), hash);
        Ok(())
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.hashes.len()
    }

    /// Whether nobody may connect.
    pub fn is_empty(&self) -> bool {
        self.hashes.is_empty()
    }
}

impl fmt::Debug for Users {
    // Hashes do not belong into logs.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Users").field("len", &self.hashes.len()).finish()
    }
}

/// Hashes a password with argon2id and a random salt, as a PHC string for [`Users::insert`].
///
/// # Errors
/// [`UserError::Hashing`] if the password is longer than argon2 takes or the system has no random numbers.
pub fn hash_password(password: &[u8]) -> Result<String, UserError> {
    let failed = |what: String| UserError::Hashing { what };
    let mut salt = [0_u8; 16];
    getrandom::fill(&mut salt).map_err(|error| failed(error.to_string()))?;
    let hash = Argon2::default().hash_password_with_salt(password, &salt).map_err(|error| failed(error.to_string()))?;
    Ok(hash.to_string())
}

/// What became of a login.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Login {
    /// As what it says: a user whose password is right, or nobody in particular; anything where nobody has to log in.
    Accepted,
    /// By its certificate; its user name, if it gave one, was not verified.
    ByCertificate,
    Wrong,
    /// Too many wrong passwords came from this network.
    TooMany,
}

/// How a client says who it is.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Credentials<'a> {
    /// Where it comes from.
    pub(crate) network: Network,
    /// The name in its certificate, which the handshake has verified.
    pub(crate) certificate: Option<&'a str>,
    pub(crate) username: Option<&'a str>,
    pub(crate) password: Option<&'a [u8]>,
}

impl Credentials<'_> {
    /// Whether the certificate alone says it: no user name, or the one in the certificate without a password.
    fn by_certificate(&self) -> bool {
        self.certificate.is_some()
            && match self.username {
                None => self.password.is_none(),
                username => username == self.certificate && self.password.is_none(),
            }
    }
}

/// Verifies logins.
pub(crate) struct Authenticator {
    users: Option<Arc<Users>>,
    allow_anonymous: bool,
    /// Verified in place of the hash of a user that does not exist, so that it takes as long.
    nobody: Option<PasswordHash>,
    running: Semaphore,
    failures: Mutex<HashMap<Network, Failures>>,
}

#[derive(Debug, Clone, Copy)]
struct Failures {
    count: f64,
    at: Instant,
}

impl Failures {
    fn now(self, now: Instant) -> f64 {
        let forgiven = now.saturating_duration_since(self.at).as_secs_f64() * FAILURES_FORGIVEN_PER_S;
        (self.count - forgiven).max(0.0)
    }
}

impl fmt::Debug for Authenticator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authenticator").field("users", &self.users).finish_non_exhaustive()
    }
}

impl Authenticator {
    /// `None` lets everyone in; `allow_anonymous` lets in who brings neither a user name nor a certificate.
    pub(crate) fn new(users: Option<Users>, allow_anonymous: bool) -> Authenticator {
        // Any hash with the usual parameters will do: nobody knows its password.
        let some_hash = |users: &Users| users.hashes.values().next().cloned();
        Authenticator {
            nobody: users.as_ref().and_then(some_hash),
            users: users.map(Arc::new),
            allow_anonymous,
            running: Semaphore::new(VERIFICATIONS_MAX),
            failures: Mutex::new(HashMap::new()),
        }
    }

    /// Whether nobody has to log in, so that user names mean nothing.
    pub(crate) fn is_open(&self) -> bool {
        self.users.is_none()
    }

    /// Whether sessions of this owner ([`super::Identity::owner`]) are protected from others: it can still come.
    pub(crate) fn protects(&self, owner: &str) -> bool {
        self.users.as_ref().is_some_and(|users| owner.starts_with(CERTIFICATE_MARK) || users.hashes.contains_key(owner))
    }

    /// Verifies what a client says about itself.
    pub(crate) async fn login(&self, credentials: Credentials<'_>) -> Login {
        let Some(users) = &self.users else { return Login::Accepted };
        if credentials.by_certificate() {
            return Login::ByCertificate;
        }
        let (Some(username), Some(password)) = (credentials.username, credentials.password) else {
            let is_anonymous = credentials.username.is_none() && credentials.password.is_none();
            return if is_anonymous && self.allow_anonymous { Login::Accepted } else { Login::Wrong };
        };
        let network = credentials.network;
        if self.failures_of(network, Instant::now()) >= FAILURES_MAX {
            return Login::TooMany;
        }
        let known = users.hashes.get(username).cloned();
        let exists = known.is_some();
        let Some(hash) = known.or_else(|| self.nobody.clone()) else { return Login::Wrong };
        let password = password.to_vec();
        let Ok(_permit) = self.running.acquire().await else { return Login::Wrong };
        // Others may have failed from the same network while this one waited its turn.
        if self.failures_of(network, Instant::now()) >= FAILURES_MAX {
            return Login::TooMany;
        }
        let verify = move || Argon2::default().verify_password(&password, &hash).is_ok();
        let right = tokio::task::spawn_blocking(verify).await.unwrap_or(false);
        if right && exists {
            return Login::Accepted;
        }
        self.failed(network, Instant::now());
        Login::Wrong
    }

    fn failures_of(&self, network: Network, now: Instant) -> f64 {
        let failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        failures.get(&network).map_or(0.0, |failures| failures.now(now))
    }

    fn failed(&self, network: Network, now: Instant) {
        let mut failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        if failures.len() >= NETWORKS_MAX {
            failures.retain(|_, failures| failures.now(now) > 0.0);
        }
        if failures.len() >= NETWORKS_MAX {
            failures.clear();
        }
        let count = failures.get(&network).map_or(0.0, |failures| failures.now(now)) + 1.0;
        failures.insert(network, Failures { count, at: now });
    }
}
