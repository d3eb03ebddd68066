//! Who may connect: user names, passwords, certificates.
//!
//! Owns the users with their password hashes and the rate at which passwords may be tried. Never stores a password.
//! Verification is slow on purpose (argon2id), so it runs on blocking threads, few at a time.

use std::collections::HashMap;
use std::fmt;
use std::time::{Duration, Instant};

use argon2::password_hash::phc::PasswordHash;
use argon2::{Argon2, PasswordHasher, PasswordVerifier};
use tokio::sync::Semaphore;

use super::attempts::Attempts;
use super::{CERTIFICATE_MARK, Network};

/// Passwords of MQTT clients verified at a time.
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

/// Users whose passwords can be verified, few at a time and not as often as somebody likes.
pub struct Passwords {
    users: Users,
    /// Verified in place of the hash of a user that does not exist, so that it takes as long.
    nobody: Option<PasswordHash>,
    running: Semaphore,
    failures: Attempts<Network>,
}

/// What became of a password.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It is that user's.
    Right,
    /// It is not, or there is no such user.
    Wrong,
    /// Too many wrong ones came from this network; it was not looked at.
    TooMany {
        /// When the next one will be.
        wait: Duration,
    },
}

impl fmt::Debug for Passwords {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Passwords").field("users", &self.users).finish_non_exhaustive()
    }
}

impl Passwords {
    /// Verifies `at_a_time` of them: each takes 19 MiB and some 20 ms of one core.
    pub fn new(users: Users, at_a_time: usize) -> Passwords {
        Passwords {
            // Any hash with the usual parameters will do: nobody knows its password.
            nobody: users.hashes.values().next().cloned(),
            users,
            running: Semaphore::new(at_a_time),
            failures: Attempts::new(FAILURES_MAX, FAILURES_FORGIVEN_PER_S, NETWORKS_MAX),
        }
    }

    /// Whether there is a user of this name.
    pub fn knows(&self, username: &str) -> bool {
        self.users.hashes.contains_key(username)
    }

    /// Verifies a password that came from `network`. Takes as long for a user that does not exist.
    pub async fn verify(&self, network: Network, username: &str, password: &[u8]) -> Verdict {
        if let Some(wait) = self.failures.wait(&network, Instant::now()) {
            return Verdict::TooMany { wait };
        }
        let known = self.users.hashes.get(username).cloned();
        let exists = known.is_some();
        let Some(hash) = known.or_else(|| self.nobody.clone()) else { return Verdict::Wrong };
        let password = password.to_vec();
        let Ok(_permit) = self.running.acquire().await else { return Verdict::Wrong };
        // Others may have failed from the same network while this one waited its turn.
        if let Some(wait) = self.failures.wait(&network, Instant::now()) {
            return Verdict::TooMany { wait };
        }
        let verify = move || Argon2::default().verify_password(&password, &hash).is_ok();
        let right = tokio::task::spawn_blocking(verify).await.unwrap_or(false);
        if right && exists {
            return Verdict::Right;
        }
        self.failures.failed(network, Instant::now());
        Verdict::Wrong
    }
}

/// Verifies logins.
#[derive(Debug)]
pub(crate) struct Authenticator {
    passwords: Option<Passwords>,
    allow_anonymous: bool,
}

impl Authenticator {
    /// `None` lets everyone in; `allow_anonymous` lets in who brings neither a user name nor a certificate.
    pub(crate) fn new(users: Option<Users>, allow_anonymous: bool) -> Authenticator {
        Authenticator { passwords: users.map(|users| Passwords::new(users, VERIFICATIONS_MAX)), allow_anonymous }
    }

    /// Whether nobody has to log in, so that user names mean nothing.
    pub(crate) fn is_open(&self) -> bool {
        self.passwords.is_none()
    }

    /// Whether sessions of this owner ([`super::Identity::owner`]) are protected from others: it can still come.
    pub(crate) fn protects(&self, owner: &str) -> bool {
        self.passwords.as_ref().is_some_and(|known| owner.starts_with(CERTIFICATE_MARK) || known.knows(owner))
    }

    /// Verifies what a client says about itself.
    pub(crate) async fn login(&self, credentials: Credentials<'_>) -> Login {
        let Some(passwords) = &self.passwords else { return Login::Accepted };
        if credentials.by_certificate() {
            return Login::ByCertificate;
        }
        let (Some(username), Some(password)) = (credentials.username, credentials.password) else {
            let is_anonymous = credentials.username.is_none() && credentials.password.is_none();
            return if is_anonymous && self.allow_anonymous { Login::Accepted } else { Login::Wrong };
        };
        match passwords.verify(credentials.network, username, password).await {
            Verdict::Right => Login::Accepted,
            Verdict::Wrong => Login::Wrong,
            Verdict::TooMany { .. } => Login::TooMany,
        }
    }
}
