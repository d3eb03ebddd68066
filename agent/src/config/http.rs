//! Reads `[http]` and everything below it: the listener, who may come in, how long they stay.
//!
//! Owns what makes HTTP safe to reach from the network: users, and TLS here or in front of it. Never reads the files that it
//! names.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use millwright_broker::TlsFiles;
use serde::Serialize;

use super::PasswordHash;
use super::broker::{password_hash, path, user_name};
use super::reader::Section;
use super::sections::{Listen, sections_with};
use crate::descriptors::HTTP_CONNECTIONS_MAX;
use crate::ids::shorten;

/// The most `[[http.user]]` entries: people of one plant.
pub const HTTP_USERS_MAX: usize = 64;

/// The most names in `hosts`; every request's is compared with them.
const HOSTS_MAX: usize = 16;

/// The longest name of a host in DNS, in bytes.
const HOST_BYTES_MAX: usize = 253;

/// HTTP: dashboard, API, health and metrics.
#[derive(Debug, Clone, PartialEq)]
pub struct HttpSection {
    /// Where HTTP clients connect.
    pub listen: SocketAddr,
    /// Names by which the gateway is known to browsers, besides its addresses; lower case, without a port.
    pub hosts: Vec<String>,
    /// How long somebody stays signed in who does nothing.
    pub session_idle: Duration,
    /// How long somebody stays signed in at all.
    pub session: Duration,
    /// Connections of one network.
    pub connections_per_network_max: usize,
    /// `[http.tls]`
    pub tls: Option<TlsFiles>,
    /// `[[http.user]]`; without any, whoever reaches the listener may do everything.
    pub users: Vec<HttpUser>,
}

/// One `[[http.user]]`.
#[derive(Clone, PartialEq)]
pub struct HttpUser {
    /// The name to sign in with.
    pub name: String,
    /// The password's hash in PHC form.
    pub password_hash: PasswordHash,
    /// What the user may do.
    pub role: Role,
}

impl std::fmt::Debug for HttpUser {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("HttpUser").field("name", &self.name).field("role", &self.role).finish_non_exhaustive()
    }
}

/// What somebody may do; each may do what those before it may.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Sees everything, changes nothing.
    Viewer,
    /// Acknowledges, comments, silences, commissions, promotes.
    Engineer,
    /// Brings new models in.
    Admin,
}

impl Role {
    /// Each, as it is written.
    const WORDS: [(&'static str, Role); 3] =
        [("viewer", Role::Viewer), ("engineer", Role::Engineer), ("admin", Role::Admin)];

    /// As it is written in the configuration and the API.
    pub fn word(self) -> &'static str {
        match self {
            Role::Viewer => "viewer",
            Role::Engineer => "engineer",
            Role::Admin => "admin",
        }
    }
}

/// Reads the section; gives its listener too.
pub(super) fn read(s: &mut Section<'_, '_>) -> (HttpSection, Listen) {
    let listen = s.address("listen", SocketAddr::from(([127, 0, 0, 1], 8080)));
    let allow_plain = s.boolean("allow_plain", false);
    s.retired(
        "allow_network",
        "nobody may come in from the network without signing in any more",
        "remove it; add a [[http.user]] and [http.tls], as docs/SECURITY.md shows",
    );
    let hosts = hosts(s);
    let session_idle_s = s.integer("session_idle_s", 43_200_u64, 1..=31_536_000);
    let session_s = s.integer("session_s", 604_800_u64, 1..=31_536_000);
    let connections_per_network_max = s.integer("max_connections_per_network", 200, 8..=HTTP_CONNECTIONS_MAX);
    let tls = s.read("tls", "[http.tls]", tls);
    let users = users(s);
    let section = HttpSection {
        listen,
        hosts,
        session_idle: Duration::from_secs(session_idle_s),
        session: Duration::from_secs(session_s),
        connections_per_network_max,
        tls,
        users,
    };
    check_strangers(s, &section, allow_plain);
    let listen_at = Listen { address: listen, spot: s.spot("listen"), given: s.has("listen") };
    (section, listen_at)
}

/// What others can reach is closed to strangers, and no password crosses a network that can be read along.
fn check_strangers(s: &mut Section<'_, '_>, section: &HttpSection, allow_plain: bool) {
    let listen = section.listen;
    let is_local = listen.ip().is_loopback();
    if section.users.is_empty() {
        let remedy = "add a [[http.user]] (`millwright passwd` makes the password_hash), or listen on 127.0.0.1";
        if !is_local {
            s.mistake("listen", format!("{listen} can be reached from the network, and nobody has to sign in"), remedy);
        } else if !section.hosts.is_empty() {
            let what = "a proxy would let everybody in by these names: nobody has to sign in";
            s.mistake("hosts", what, "add a [[http.user]], or remove the names");
        }
    }
    if !is_local && section.tls.is_none() && !allow_plain {
        let what = format!("passwords would cross the network as they are, on {listen}");
        let remedy = "name a certificate in [http.tls] (`millwright cert` makes one), or write allow_plain = true if \
                      nobody comes here but a proxy that speaks TLS";
        s.mistake("listen", what, remedy);
    }
    if allow_plain && (is_local || section.tls.is_some()) {
        let what = if is_local { "only this machine reaches the listener" } else { "the listener speaks TLS" };
        s.warning("allow_plain", format!("has no effect: {what}"), "remove it");
    }
}

fn tls(s: &mut Section<'_, '_>) -> Option<TlsFiles> {
    let certificate = path(s, "certificate");
    let key = path(s, "key");
    let min_version = s.choice("min_version", Some(false), &[("1.2", false), ("1.3", true)]);
    if !s.is_given() {
        return None;
    }
    for (key, path) in [("certificate", &certificate), ("key", &key)] {
        if path.is_none() {
            s.mistake(key, "is missing", "`millwright cert` makes a certificate and its key");
        }
    }
    let tls13_only = min_version.unwrap_or_default();
    Some(TlsFiles { certificate: certificate?, key: key?, tls13_only, ..TlsFiles::default() })
}

fn hosts(s: &mut Section<'_, '_>) -> Vec<String> {
    let written = s.list("hosts", "names", "[\"gw-1.plant.local\"]").unwrap_or_default();
    if written.len() > HOSTS_MAX {
        s.mistake("hosts", format!("{} names are too many", written.len()), format!("at most {HOSTS_MAX} are allowed"));
    }
    let mut hosts = Vec::new();
    for host in written {
        match host_name(&host) {
            Ok(host) => hosts.push(host),
            Err(what) => {
                let remedy = "write the name alone, as in \"gw-1.plant.local\"; addresses need no entry";
                s.mistake("hosts", format!("\"{}\" {what}", shorten(&host)), remedy);
            }
        }
    }
    hosts
}

fn host_name(host: &str) -> Result<String, &'static str> {
    if host.parse::<IpAddr>().is_ok() {
        return Err("is an address");
    }
    let of_a_name = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_');
    if host.is_empty() || host.len() > HOST_BYTES_MAX || !host.bytes().all(of_a_name) {
        return Err("is no name of a host");
    }
    Ok(host.to_ascii_lowercase())
}

fn users(s: &mut Section<'_, '_>) -> Vec<HttpUser> {
    const LABEL: &str = "[[http.user]]";
    let mut users: Vec<HttpUser> = Vec::new();
    let mut places: HashMap<String, usize> = HashMap::new();
    for (index, entry) in s.entries("user", LABEL, HTTP_USERS_MAX).into_iter().enumerate() {
        let mut s = Section::entry(s.document, LABEL, entry);
        let name = s.required("name", "text", "write the name to sign in with", sign_in_name);
        let hash_remedy = "`millwright passwd` makes one from a password";
        let password_hash = s.required("password_hash", "PHC string", hash_remedy, password_hash);
        let role = s.choice("role", None, &Role::WORDS);
        if let Some(name) = &name
            && let Some(earlier) = places.insert(name.clone(), index + 1)
        {
            let what = format!("\"{}\" is already the name of the {LABEL} number {earlier}", shorten(name));
            s.mistake("name", what, "remove one of the two");
        }
        s.finish(|key| sections_with(key, LABEL));
        if let (Some(name), Some(password_hash), Some(role)) = (name, password_hash, role) {
            users.push(HttpUser { name, password_hash, role });
        }
    }
    users
}

/// HTTP Basic ends the name at a colon; `local` is who nobody had to sign in as.
fn sign_in_name(name: &str) -> Result<String, String> {
    let name = user_name(name)?;
    match name.as_str() {
        "local" => Err("\"local\" is what everybody is called where nobody signs in".to_owned()),
        name if name.contains(':') => Err(format!("\"{}\" contains a colon", shorten(name))),
        _ => Ok(name),
    }
}
