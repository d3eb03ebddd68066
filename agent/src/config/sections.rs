//! Reads the sections of `gateway.toml`: one line per key, with its default and its bounds.
//!
//! Owns the defaults and the relations between keys. Never touches a file.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use millwright_models::signature::PublicKey;

use super::reader::{Document, KeyInfo, Section, Spot};
use super::{
    AlarmSection, BrokerSection, CommissioningSection, Config, GatewaySection, HttpSection, LogSection, ModelsSection,
    PasswordHash, PipelineSection, SOURCES_MAX, SourceConfig, USERS_MAX, UserEntry, WhenFull, source,
};
use crate::clock::SECOND_US;
use crate::ids::{GatewayId, shorten};
use crate::models::judge::Bounds;

const MIB: u64 = 1024 * 1024;

/// The longest MQTT user name, in bytes; the protocol allows 65,535.
const USER_BYTES_MAX: usize = 256;

/// The smallest packet limit, in bytes: a model chunk of 64 KiB with its topic and properties must fit.
const PACKET_BYTES_MIN: usize = 72 * 1024;

/// The log holds at least this many of the largest packets, or one publisher could fill it between two commits.
const QUOTA_PACKETS_MIN: u64 = 64;

/// What was read: everything but the gateway's identity, which has no default.
pub(super) struct Draft {
    pub(super) gateway: Option<GatewaySection>,
    broker: BrokerSection,
    log: LogSection,
    http: HttpSection,
    pipeline: PipelineSection,
    commissioning: CommissioningSection,
    alarm: AlarmSection,
    models: ModelsSection,
    sources: Vec<SourceConfig>,
}

impl Draft {
    pub(super) fn complete(self, gateway: GatewaySection) -> Config {
        let Draft { gateway: _, broker, log, http, pipeline, commissioning, alarm, models, sources } = self;
        Config { gateway, broker, log, http, pipeline, commissioning, alarm, models, sources }
    }
}

/// Reads every section below the root.
pub(super) fn read(root: &mut Section<'_, '_>) -> Draft {
    let gateway = root.read("gateway", "[gateway]", gateway);
    let (broker, broker_listen) = root.read("broker", "[broker]", broker);
    let (log, quota) = root.read("log", "[log]", log);
    let (http, http_listen) = root.read("http", "[http]", http);
    let pipeline = root.read("pipeline", "[pipeline]", pipeline);
    let commissioning = root.read("commissioning", "[commissioning]", commissioning);
    let alarm = root.read("alarm", "[alarm]", alarm);
    let models = root.read("models", "[models]", models);
    let sources = sources(root);

    if collide(broker.listen, http.listen) {
        // Whichever of the two the file gives is the one to change.
        let (spot, other) = match http_listen.given {
            true => (&http_listen.spot, "[broker]"),
            false => (&broker_listen.spot, "[http]"),
        };
        let what = format!("port {} is also that of {other} listen", http.listen.port());
        root.document.mistake(spot, what, "choose another port for one of the two");
    }
    let quota_bytes_min = QUOTA_PACKETS_MIN.saturating_mul(broker.max_packet_bytes as u64);
    if log.quota_bytes < quota_bytes_min {
        let what = format!(
            "{} MB hold fewer than {QUOTA_PACKETS_MIN} packets of [broker] max_packet_bytes = {}",
            log.quota_bytes / MIB,
            broker.max_packet_bytes
        );
        let remedy = format!("make it at least {}, or max_packet_bytes smaller", quota_bytes_min.div_ceil(MIB));
        root.document.mistake(&quota, what, remedy);
    }
    Draft { gateway, broker, log, http, pipeline, commissioning, alarm, models, sources }
}

impl<'d> Section<'_, 'd> {
    /// Reads a sub-section with `read` and refuses what it did not ask for.
    fn read<T>(&mut self, name: &'static str, label: &'static str, read: impl FnOnce(&mut Section<'_, 'd>) -> T) -> T {
        let mut section = self.section(name, label);
        let value = read(&mut section);
        section.finish(|key| sections_with(key, label));
        value
    }
}

/// An address and where it stands, for relations between sections.
struct Listen {
    spot: Spot,
    given: bool,
}

fn gateway(s: &mut Section<'_, '_>) -> Option<GatewaySection> {
    let id = s.required("id", "name", "give the gateway a name, for example id = \"gw-1\"", GatewayId::parse);
    let data_dir = s.text("data_dir", "data", "path");
    Some(GatewaySection { id: id?, data_dir: PathBuf::from(data_dir) })
}

fn broker(s: &mut Section<'_, '_>) -> (BrokerSection, Listen) {
    let listen = s.address("listen", SocketAddr::from(([127, 0, 0, 1], 1883)));
    let allow_anonymous_on_network = s.boolean("allow_anonymous_on_network", false);
    let max_connections = s.integer("max_connections", 1_000_usize, 1..=100_000);
    let max_packet_bytes = s.integer("max_packet_bytes", 262_144_usize, PACKET_BYTES_MIN..=16_777_216);
    let connect_timeout_ms = s.integer("connect_timeout_ms", 10_000_u64, 100..=600_000);
    let max_keep_alive_s = s.integer("max_keep_alive_s", 60_u16, 0..=65_535);
    let max_session_expiry_s = s.integer("max_session_expiry_s", 2_592_000_u32, 0..=u32::MAX);
    let max_sessions = s.integer("max_sessions", 10_000_usize, 0..=1_000_000);
    let sys_interval_s = s.integer("sys_interval_s", 10_u64, 0..=86_400);
    let users = users(s);

    let has_users = s.has("user");
    if !listen.ip().is_loopback() && !has_users && !allow_anonymous_on_network {
        let what = format!("{listen} can be reached from the network, and no [[broker.user]] has a password");
        let remedy = "add a user (`millwright passwd` makes the password_hash), listen on 127.0.0.1, or write \
                      allow_anonymous_on_network = true to let everybody in";
        s.mistake("listen", what, remedy);
    }
    if allow_anonymous_on_network && has_users {
        let what = "has no effect: there are users, so every client must log in";
        s.warning("allow_anonymous_on_network", what, "remove it");
    }
    let listen_at = Listen { spot: s.spot("listen"), given: s.has("listen") };
    let connect_timeout = Duration::from_millis(connect_timeout_ms);
    let section = BrokerSection {
        listen,
        allow_anonymous_on_network,
        max_connections,
        max_packet_bytes,
        connect_timeout,
        max_keep_alive_s,
        max_session_expiry_s,
        max_sessions,
        sys_interval: Duration::from_secs(sys_interval_s),
        users,
    };
    (section, listen_at)
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
        s.finish(|key| sections_with(key, LABEL));
        if let (Some(name), Some(password_hash)) = (name, password_hash) {
            users.push(UserEntry { name, password_hash });
        }
    }
    users
}

fn log(s: &mut Section<'_, '_>) -> (LogSection, Spot) {
    let quota_mb = s.integer("quota_mb", 1_024_u64, 16..=16_777_216);
    let words = [("refuse", WhenFull::Refuse), ("drop-oldest", WhenFull::DropOldest)];
    let when_full = s.choice("when_full", Some(WhenFull::Refuse), &words).unwrap_or(WhenFull::Refuse);
    let commit_delay_ms = s.integer("commit_delay_ms", 10_u64, 0..=1_000);
    let commit_delay = Duration::from_millis(commit_delay_ms);
    (LogSection { quota_bytes: quota_mb.saturating_mul(MIB), when_full, commit_delay }, s.spot("quota_mb"))
}

fn http(s: &mut Section<'_, '_>) -> (HttpSection, Listen) {
    let listen = s.address("listen", SocketAddr::from(([127, 0, 0, 1], 8080)));
    let allow_network = s.boolean("allow_network", false);
    if !listen.ip().is_loopback() && !allow_network {
        let what = format!("{listen} can be reached from the network, and the status asks for no password");
        s.mistake("listen", what, "listen on 127.0.0.1, or write allow_network = true to show it to everybody");
    }
    let listen_at = Listen { spot: s.spot("listen"), given: s.has("listen") };
    (HttpSection { listen, allow_network }, listen_at)
}

fn pipeline(s: &mut Section<'_, '_>) -> PipelineSection {
    let health_interval_s = s.integer("health_interval_s", 60_u64, 1..=86_400);
    PipelineSection { health_interval: Duration::from_secs(health_interval_s) }
}

fn commissioning(s: &mut Section<'_, '_>) -> CommissioningSection {
    let samples = s.integer("samples", 3_600_usize, 50..=100_000);
    let extend = s.boolean("extend", true);
    let window = s.integer("window", 20_usize, 1..=1_024);
    if samples < window.saturating_mul(4) {
        let what =
            format!("{samples} samples are fewer than four windows of {window}: nothing can be learned from them");
        s.mistake("samples", what, format!("make it at least {}", window.saturating_mul(4)));
    }
    CommissioningSection { samples, extend, window }
}

fn alarm(s: &mut Section<'_, '_>) -> AlarmSection {
    let min_samples = s.integer("min_samples", 5_u32, 1..=100_000);
    let min_duration_ms = s.integer("min_duration_ms", 0_u64, 0..=86_400_000);
    let clear_samples = s.integer("clear_samples", 20_u32, 1..=100_000);
    let critical_score = s.float("critical_score", 3.0, 1.0..=1_000_000.0);
    let min_duration = Duration::from_millis(min_duration_ms);
    AlarmSection { min_samples, min_duration, clear_samples, critical_score: critical_score as f32 }
}

fn models(s: &mut Section<'_, '_>) -> ModelsSection {
    let max_mb = s.integer("max_mb", 32_u64, 1..=32);
    let memory_mb = s.integer("memory_mb", 256_u64, 32..=4_096);
    let load_s_max = s.integer("load_s", 60_u64, 1..=600);
    let example = "[\"ed25519:…\"]";
    let keys =
        s.list("trusted_keys", "public keys, as millwright model keygen prints them", example).unwrap_or_default();
    if keys.len() > TRUSTED_KEYS_MAX {
        s.mistake(
            "trusted_keys",
            format!("{} keys are too many", keys.len()),
            format!("at most {TRUSTED_KEYS_MAX} are allowed"),
        );
    }
    let mut trusted_keys = Vec::new();
    for key in &keys {
        match key.parse::<PublicKey>() {
            Ok(key) => trusted_keys.push(key),
            Err(error) => {
                s.mistake("trusted_keys", format!("\"{}\" is no public key", shorten(key)), error.to_string())
            }
        }
    }
    let shadow_s = s.integer("shadow_s", 600_u32, 0..=2_592_000);
    let trial_s = s.integer("trial_s", 3_600_u32, 0..=2_592_000);
    let rows_min = s.integer("rows_min", 100_u64, 1..=10_000_000);
    let error_rate_max = s.float("error_rate_max", 0.001, 0.0..=1.0);
    let alarm_margin = s.float("alarm_margin", 0.02, 0.0..=1.0);
    let agreement_min = s.float("agreement_min", 0.9, 0.0..=1.0);
    let latency_ms_max = s.float("latency_ms_max", 50.0, 0.01..=60_000.0);
    let bounds = Bounds {
        shadow_us: i64::from(shadow_s) * SECOND_US,
        trial_us: i64::from(trial_s) * SECOND_US,
        rows_min,
        error_rate_max,
        alarm_margin,
        agreement_min,
        latency_us_max: (latency_ms_max * 1000.0) as u64,
    };
    let (size_bytes_max, memory_bytes_max) = (max_mb.saturating_mul(MIB), memory_mb.saturating_mul(MIB));
    ModelsSection { size_bytes_max, memory_bytes_max, load_s_max, trusted_keys, bounds }
}

fn sources(root: &mut Section<'_, '_>) -> Vec<SourceConfig> {
    const LABEL: &str = "[[source]]";
    let mut sources = Vec::new();
    for entry in root.entries("source", LABEL, SOURCES_MAX) {
        let mut s = Section::entry(root.document, LABEL, entry);
        sources.extend(source::read(&mut s));
        s.finish(|key| sections_with(key, LABEL));
    }
    source::check_together(root.document, &sources);
    sources.into_iter().map(|source| source.config).collect()
}

/// Keys that may vouch for models.
const TRUSTED_KEYS_MAX: usize = 16;

/// Every key, found by reading a document that has one of each list and nothing else.
pub(super) fn keys() -> Vec<KeyInfo> {
    let text = "[[broker.user]]\n[[source]]\n";
    let (table, _) = toml::de::DeTable::parse_recoverable(text);
    let mut document = Document::new(text);
    read(&mut Section::root(&mut document, table.get_ref()));
    document.keys
}

/// The sections other than `here` that know `key`.
pub(super) fn sections_with(key: &str, here: &str) -> Vec<&'static str> {
    keys().into_iter().filter(|info| info.key == key && info.section != here).map(|info| info.section).collect()
}

/// Whether two listeners want the same port of the same interface.
fn collide(left: SocketAddr, right: SocketAddr) -> bool {
    let same_interface = left.ip() == right.ip() || left.ip().is_unspecified() || right.ip().is_unspecified();
    left.port() != 0 && left.port() == right.port() && same_interface
}

fn user_name(name: &str) -> Result<String, String> {
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
fn password_hash(text: &str) -> Result<PasswordHash, &'static str> {
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
