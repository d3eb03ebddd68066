//! Reads `[broker]` and everything below it: listeners, limits, users, access rules.
//!
//! Owns what makes a broker safe to reach from the network. Never reads the files that it names.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use millwright_broker::topic::{TOPIC_BYTES_MAX, TOPIC_LEVELS_MAX};
use millwright_broker::{AccessPattern, AccessRule, ClientCertificates, Limits, TlsFiles, WebSocketRules};

use super::reader::Section;
use super::sections::{Listen, sections_with};
use super::{ACCESS_RULES_MAX, BrokerSection, PasswordHash, TlsSection, USERS_MAX, UserEntry, WebSocketSection};
use crate::ids::shorten;

/// The longest MQTT user name, in bytes; the protocol allows 65,535.
const USER_BYTES_MAX: usize = 256;

/// The smallest packet limit, in bytes: a model chunk of 64 KiB with its topic and properties must fit.
const PACKET_BYTES_MIN: usize = 72 * 1024;

/// Names or patterns in one list of a rule.
const LIST_MAX: usize = 256;

/// Reads the section; gives its listeners too.
pub(super) fn read(s: &mut Section<'_, '_>) -> (BrokerSection, Vec<Listen>) {
    let listen = s.address("listen", SocketAddr::from(([127, 0, 0, 1], 1883)));
    let mut listeners = vec![Listen { address: listen, spot: s.spot("listen"), given: s.has("listen") }];
    let allow_anonymous_on_network = s.boolean("allow_anonymous_on_network", false);
    let sys_interval_s = s.integer("sys_interval_s", 10_u64, 0..=86_400);
    let limits = limits(s);
    let sessions_max = s.integer("max_sessions", 10_000_usize, 0..=1_000_000);
    let users = users(s);
    let access = access(s, &users);
    let (tls, handshakes_per_s) = s.read("tls", "[broker.tls]", |s| tls(s, &mut listeners));
    let limits = Limits { tls_handshakes_per_s_max: handshakes_per_s, ..limits };
    let websocket =
        s.read("websocket", "[broker.websocket]", |s| websocket(s, tls.is_some(), !users.is_empty(), &mut listeners));
    let section = BrokerSection {
        listen,
        allow_anonymous_on_network,
        limits,
        sessions_max,
        sys_interval: Duration::from_secs(sys_interval_s),
        users,
        access,
        tls,
        websocket,
    };
    check_strangers(s, &section, &listeners);
    (section, listeners)
}

fn limits(s: &mut Section<'_, '_>) -> Limits {
    let inflight = s.integer("max_inflight", 1_000_u16, 1..=u16::MAX);
    Limits {
        connections_max: s.integer("max_connections", 1_000, 1..=100_000),
        connections_per_network_max: s.integer("max_connections_per_network", 500, 1..=100_000),
        connecting_max: s.integer("max_connecting", 128, 1..=10_000),
        connect_deadline: Duration::from_millis(s.integer("connect_timeout_ms", 10_000, 100..=600_000)),
        packet_bytes_max: s.integer("max_packet_bytes", 262_144, PACKET_BYTES_MIN..=16_777_216),
        topic_bytes_max: s.integer("max_topic_bytes", TOPIC_BYTES_MAX, 64..=TOPIC_BYTES_MAX),
        topic_levels_max: s.integer("max_topic_levels", TOPIC_LEVELS_MAX, 8..=TOPIC_LEVELS_MAX),
        subscriptions_max: s.integer("max_subscriptions", 1_000, 1..=100_000),
        subscriptions_total_max: s.integer("max_subscriptions_total", 100_000, 1..=10_000_000),
        publishes_per_s_max: s.integer("max_publishes_per_s", 100_000, 0..=10_000_000),
        inflight_max: inflight,
        receive_max: inflight,
        keep_alive_max_s: s.integer("max_keep_alive_s", 60, 0..=65_535),
        session_expiry_max_s: s.integer("max_session_expiry_s", 2_592_000, 0..=u32::MAX),
        buffered_bytes_max: s.integer("max_buffered_mb", 128_usize, 4..=65_536).saturating_mul(1 << 20),
        ..Limits::default()
    }
}

/// What can be reached from the network must be closed to strangers, or open to them by the operator's own word.
fn check_strangers(s: &mut Section<'_, '_>, section: &BrokerSection, listeners: &[Listen]) {
    let is_closed = section.must_log_in();
    for listener in listeners.iter().filter(|listener| !listener.address.ip().is_loopback()) {
        if is_closed || section.allow_anonymous_on_network {
            continue;
        }
        let address = listener.address;
        let what = format!("{address} can be reached from the network, and no [[broker.user]] has a password");
        let remedy = "add a user (`millwright passwd` makes the password_hash), listen on 127.0.0.1, or write \
                      allow_anonymous_on_network = true to let everybody in";
        s.document.mistake(&listener.spot, what, remedy);
    }
    if section.allow_anonymous_on_network && is_closed {
        let what = "has no effect: there are users, so every client must log in";
        s.warning("allow_anonymous_on_network", what, "remove it");
    }
    if !section.users.is_empty() && !section.listen.ip().is_loopback() {
        let what = format!("passwords cross the network as they are, on {}", section.listen);
        s.warning("listen", what, "let clients use [broker.tls], and listen on 127.0.0.1 here");
    }
}

/// The section, if the file has it, and the handshakes per second of one network.
fn tls(s: &mut Section<'_, '_>, listeners: &mut Vec<Listen>) -> (Option<TlsSection>, u32) {
    let listen = optional_address(s, "listen", listeners);
    let certificate = path(s, "certificate");
    let key = path(s, "key");
    let client_ca = path(s, "client_ca");
    let client_crl = path(s, "client_crl");
    let words = [
        ("off", ClientCertificates::Off),
        ("optional", ClientCertificates::Optional),
        ("required", ClientCertificates::Required),
    ];
    let clients = s.choice("client_certificate", Some(ClientCertificates::Off), &words).unwrap_or_default();
    let min_version = s.choice("min_version", Some(false), &[("1.2", false), ("1.3", true)]);
    let handshakes_per_s = s.integer("max_handshakes_per_s", 50_u32, 0..=100_000);
    if !s.is_given() {
        return (None, handshakes_per_s);
    }
    for (key, path) in [("certificate", &certificate), ("key", &key)] {
        if path.is_none() {
            s.mistake(key, "is missing", "`millwright cert` makes a certificate and its key");
        }
    }
    match (clients, &client_ca) {
        (ClientCertificates::Off, Some(_)) => {
            let what = "has no effect: clients are not asked for certificates";
            s.warning("client_ca", what, "write client_certificate = \"optional\" or \"required\"");
        }
        (ClientCertificates::Off, None) | (_, Some(_)) => {}
        (_, None) => {
            let what = "needs client_ca: the authorities whose certificates are trusted";
            s.mistake("client_certificate", what, "name their file in client_ca");
        }
    }
    let (Some(certificate), Some(key)) = (certificate, key) else { return (None, handshakes_per_s) };
    let tls13_only = min_version.unwrap_or_default();
    let files = TlsFiles { certificate, key, client_ca, client_crl, clients, tls13_only };
    (Some(TlsSection { listen, files }), handshakes_per_s)
}

fn websocket(
    s: &mut Section<'_, '_>,
    has_tls: bool,
    has_users: bool,
    listeners: &mut Vec<Listen>,
) -> Option<WebSocketSection> {
    let listen = optional_address(s, "listen", listeners);
    let tls_listen = optional_address(s, "tls_listen", listeners);
    let path = s.text("path", "/mqtt", "path");
    if !path.starts_with('/') {
        s.mistake("path", format!("\"{}\" is not a path", shorten(&path)), "write it with a slash in front");
    }
    let origins = names(s, "origins", "origins, or *", "[\"https://plant.example\"]");
    for origin in &origins {
        if let Err(what) = check_origin(origin) {
            let remedy = "write it as browsers do: https://plant.example, or https://plant.example:8443";
            s.mistake("origins", format!("\"{}\" {what}", shorten(origin)), remedy);
        }
    }
    if !s.is_given() {
        return None;
    }
    if listen.is_none() && tls_listen.is_none() {
        s.mistake("listen", "is missing, and tls_listen too", "write where WebSocket clients connect");
    }
    if tls_listen.is_some() && !has_tls {
        s.mistake("tls_listen", "needs a certificate", "name its files in [broker.tls]");
    }
    if let Some(address) = listen.filter(|address| has_users && !address.ip().is_loopback()) {
        let what = format!("passwords cross the network as they are, on {address}");
        s.warning("listen", what, "let clients use tls_listen, and listen on 127.0.0.1 here");
    }
    Some(WebSocketSection { listen, tls_listen, rules: WebSocketRules { path, origins } })
}

/// An entry that no browser ever sends would let nobody in, without a word.
fn check_origin(origin: &str) -> Result<(), &'static str> {
    if origin == "*" {
        return Ok(());
    }
    let Some((scheme, host)) = origin.split_once("://") else { return Err("is no origin: it has no scheme") };
    if scheme.is_empty() || host.is_empty() || host.contains(['/', '?', '#', '@', '*', ' ']) {
        return Err("is no origin: that is a scheme and a host, and a port if it is not the usual one");
    }
    let usual_port = match scheme {
        "https" => ":443",
        "http" => ":80",
        _ => return Ok(()),
    };
    if host.ends_with(usual_port) { Err("has the usual port, which browsers leave out") } else { Ok(()) }
}

fn optional_address(s: &mut Section<'_, '_>, key: &'static str, listeners: &mut Vec<Listen>) -> Option<SocketAddr> {
    let remedy = "write an IP address and a port, for example \"0.0.0.0:8883\"";
    let parse = |text: &str| {
        text.parse::<SocketAddr>().map_err(|_| format!("\"{}\" is not an address with a port", shorten(text)))
    };
    let address = s.optional(key, "address:port", remedy, parse)?;
    listeners.push(Listen { address, spot: s.spot(key), given: true });
    Some(address)
}

pub(super) fn path(s: &mut Section<'_, '_>, key: &'static str) -> Option<PathBuf> {
    let parse = |text: &str| if text.is_empty() { Err("is empty") } else { Ok(PathBuf::from(text)) };
    s.optional(key, "path", "write the path of a PEM file", parse)
}

/// A list of names; empty if it is absent.
fn names(s: &mut Section<'_, '_>, key: &'static str, allowed: &str, example: &str) -> Vec<String> {
    let names = s.list(key, allowed, example).unwrap_or_default();
    if names.len() > LIST_MAX {
        s.mistake(key, format!("{} entries are too many", names.len()), format!("at most {LIST_MAX} are allowed"));
    }
    names
}

fn access(s: &mut Section<'_, '_>, users: &[UserEntry]) -> Vec<AccessRule> {
    const LABEL: &str = "[[broker.access]]";
    let mut rules = Vec::new();
    for entry in s.entries("access", LABEL, ACCESS_RULES_MAX) {
        let mut s = Section::entry(s.document, LABEL, entry);
        let rule = AccessRule {
            users: names(&mut s, "users", "names, or *", "[\"press-7\"]"),
            groups: names(&mut s, "groups", "names", "[\"fitters\"]"),
            certificates: names(&mut s, "certificates", "names, or *", "[\"press-7\"]"),
            anonymous: s.boolean("anonymous", false),
            publish: patterns(&mut s, "publish"),
            subscribe: patterns(&mut s, "subscribe"),
        };
        check_subjects(&mut s, &rule, users);
        s.finish(|key| sections_with(key, LABEL));
        rules.push(rule);
    }
    warn_powerless(s, &rules, users);
    rules
}

/// A rule that is for nobody, or for somebody who does not exist, is a slip of the pen.
fn check_subjects(s: &mut Section<'_, '_>, rule: &AccessRule, users: &[UserEntry]) {
    if rule.users.is_empty() && rule.groups.is_empty() && rule.certificates.is_empty() && !rule.anonymous {
        s.mistake("", "is for nobody", "name users, groups or certificates, or write anonymous = true");
    }
    for name in rule.users.iter().filter(|name| *name != "*" && !users.iter().any(|user| user.name == **name)) {
        let what = format!("\"{}\" is not the name of a [[broker.user]]", shorten(name));
        s.mistake("users", what, "add the user, or correct the name");
    }
    for group in rule.groups.iter().filter(|group| !users.iter().any(|user| user.groups.contains(group))) {
        let what = format!("no [[broker.user]] is in the group \"{}\"", shorten(group));
        s.mistake("groups", what, "give a user this group in its `groups`, or correct the name");
    }
}

fn warn_powerless(s: &mut Section<'_, '_>, rules: &[AccessRule], users: &[UserEntry]) {
    let has_rule = |user: &UserEntry| {
        rules.iter().any(|rule| {
            rule.users.iter().any(|name| *name == user.name || name == "*")
                || rule.groups.iter().any(|group| user.groups.contains(group))
        })
    };
    for user in users.iter().filter(|user| !has_rule(user)) {
        let what = format!("\"{}\" may neither publish nor subscribe: no rule is for it", shorten(&user.name));
        s.warning("user", what, "add a [[broker.access]] with its name or a group of it");
    }
}

fn patterns(s: &mut Section<'_, '_>, key: &'static str) -> Vec<AccessPattern> {
    let texts = names(s, key, "topic filters with %u, %c", "[\"mw/v1/telemetry/%u/#\"]");
    let mut patterns = Vec::new();
    for text in texts {
        match AccessPattern::parse(&text) {
            Ok(pattern) => patterns.push(pattern),
            Err(error) => {
                let what = format!("\"{}\" is not a pattern: {error}", shorten(&text));
                s.mistake(key, what, "write a topic filter; %u is the user's name, %c the client identifier");
            }
        }
    }
    patterns
}

fn users(s: &mut Section<'_, '_>) -> Vec<UserEntry> {
    const LABEL: &str = "[[broker.user]]";
    let mut users: Vec<UserEntry> = Vec::new();
    let mut places: HashMap<String, usize> = HashMap::new();
    for (index, entry) in s.entries("user", LABEL, USERS_MAX).into_iter().enumerate() {
        let mut s = Section::entry(s.document, LABEL, entry);
        let name = s.required("name", "text", "write the name that the client logs in with", user_name);
        let hash_remedy = "`millwright passwd` makes one from a password";
        let password_hash = s.required("password_hash", "PHC string", hash_remedy, password_hash);
        if let Some(name) = &name
            && let Some(earlier) = places.insert(name.clone(), index + 1)
        {
            let what = format!("\"{}\" is already the name of the {LABEL} number {earlier}", shorten(name));
            s.mistake("name", what, "remove one of the two");
        }
        let groups = names(&mut s, "groups", "names", "[\"fitters\"]");
        s.finish(|key| sections_with(key, LABEL));
        if let (Some(name), Some(password_hash)) = (name, password_hash) {
            users.push(UserEntry { name, password_hash, groups });
        }
    }
    users
}

pub(super) fn user_name(name: &str) -> Result<String, String> {
    if name.is_empty() {
        return Err("is empty".to_owned());
    }
    if name.len() > USER_BYTES_MAX {
        return Err(format!("has {} bytes, at most {USER_BYTES_MAX} are allowed", name.len()));
    }
    if name.chars().any(char::is_control) {
        return Err(format!("\"{}\" contains a control character", shorten(name)));
    }
    Ok(name.to_owned())
}

/// The form of a PHC string with Argon2; whether the hash fits a password only a login shows.
pub(super) fn password_hash(text: &str) -> Result<PasswordHash, &'static str> {
    // An error never repeats the text: somebody may have written the password itself.
    let wrong = Err("is not a password hash in PHC form ($argon2id$v=19$m=…,t=…,p=…$salt$hash)");
    let mut fields = text.split('$');
    if fields.next() != Some("") || !matches!(fields.next(), Some("argon2id" | "argon2i" | "argon2d")) {
        return wrong;
    }
    let base64 = |field: &str, least: usize| {
        field.len() >= least && field.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'+' || byte == b'/')
    };
    let number = |field: Option<&str>, name: &str| {
        let value = field.and_then(|field| field.strip_prefix(name)).and_then(|value| value.strip_prefix('='));
        value.is_some_and(|value| value.parse::<u32>().is_ok_and(|value| value > 0))
    };
    let rest: Vec<&str> = fields.collect();
    let [version, parameters, salt, hash] = rest.as_slice() else { return wrong };
    let mut parameters = parameters.split(',');
    let cost = number(parameters.next(), "m") && number(parameters.next(), "t") && number(parameters.next(), "p");
    // Salts have at least 8 bytes, hashes at least 10: in base64, 11 and 14 characters.
    if *version != "v=19" || !cost || parameters.next().is_some() || !base64(salt, 11) || !base64(hash, 14) {
        return wrong;
    }
    Ok(PasswordHash(text.to_owned()))
}
