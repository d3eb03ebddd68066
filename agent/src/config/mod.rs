//! The configuration: `gateway.toml` as plain data.
//!
//! Owns what the file may say. Every key is declared by one line of [`sections`] or [`source`], with its default and
//! its bounds; `docs/CONFIGURATION.md` is held to these by a test. All mistakes of a file are reported at once, each
//! with its line and a remedy; a [`Config`] that exists has none. Never opens a socket or a database. A file has at
//! most [`CONFIG_BYTES_MAX`] bytes.

mod broker;
pub mod files;
mod http;
mod mistake;
mod reader;
mod sections;
pub mod source;
pub mod template;
#[cfg(test)]
mod tests;
pub mod upstream;

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use millwright_broker::{AccessRule, ClientCertificates, Limits, TlsFiles, WebSocketRules};
use millwright_models::signature::PublicKey;

pub use http::{HTTP_USERS_MAX, HttpSection, HttpUser, Role};
pub use mistake::{ConfigError, Mistake, Mistakes};
pub use reader::KeyInfo;
pub use source::{CsvColumn, CsvFormat, Format, JsonFormat, NumberFormat, SourceConfig, TimeUnit};
pub use upstream::UpstreamConfig;

use self::reader::{Document, Section};
use crate::ids::GatewayId;
use crate::models::judge::Bounds;

/// The largest configuration, in bytes: 256 sources and 1,000 users at their longest fit into half of it.
pub const CONFIG_BYTES_MAX: u64 = 1024 * 1024;

/// The most `[[source]]` entries; every received topic is tried against them once.
pub const SOURCES_MAX: usize = 256;

/// The most `[[broker.user]]` entries; they are kept in memory.
pub const USERS_MAX: usize = 1_000;

/// The most `[[broker.access]]` entries; they are kept in memory.
pub const ACCESS_RULES_MAX: usize = 1_000;

/// The most `[[upstream]]` entries; each has a connection and reads the log for itself.
pub const UPSTREAMS_MAX: usize = 16;

/// Everything that `gateway.toml` says, with a default for what it does not.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// `[gateway]`
    pub gateway: GatewaySection,
    /// `[broker]` and `[[broker.user]]`
    pub broker: BrokerSection,
    /// `[log]`
    pub log: LogSection,
    /// `[history]`
    pub history: HistorySection,
    /// `[http]`
    pub http: HttpSection,
    /// `[pipeline]`
    pub pipeline: PipelineSection,
    /// `[commissioning]`
    pub commissioning: CommissioningSection,
    /// `[alarm]`
    pub alarm: AlarmSection,
    /// `[models]`
    pub models: ModelsSection,
    /// `[[source]]`, in the order of the file: the first that matches a topic takes it.
    pub sources: Vec<SourceConfig>,
    /// `[[upstream]]`
    pub upstreams: Vec<UpstreamConfig>,
}

/// Who this gateway is and where it keeps its data.
#[derive(Debug, Clone, PartialEq)]
pub struct GatewaySection {
    /// Its name in topics, alerts and fleet tools.
    pub id: GatewayId,
    /// Holds `log.db`, `state.db` and `models/`.
    pub data_dir: PathBuf,
}

/// The MQTT broker.
#[derive(Debug, Clone, PartialEq)]
pub struct BrokerSection {
    /// Where MQTT clients connect.
    pub listen: SocketAddr,
    /// Lets clients in without a password on an address that the network can reach.
    pub allow_anonymous_on_network: bool,
    /// What clients may take.
    pub limits: Limits,
    /// Sessions that are kept for clients, away or not.
    pub sessions_max: usize,
    /// How often `$SYS` is published; zero is never.
    pub sys_interval: Duration,
    /// `[[broker.user]]`; if there is one, every client must log in.
    pub users: Vec<UserEntry>,
    /// `[[broker.access]]`
    pub access: Vec<AccessRule>,
    /// `[broker.tls]`
    pub tls: Option<TlsSection>,
    /// `[broker.websocket]`
    pub websocket: Option<WebSocketSection>,
}

impl BrokerSection {
    /// Whether clients must say who they are: there are users, or certificates of clients are trusted.
    pub fn must_log_in(&self) -> bool {
        let asks = |tls: &TlsSection| tls.files.clients != ClientCertificates::Off;
        !self.users.is_empty() || self.tls.as_ref().is_some_and(asks)
    }
}

/// MQTT over TLS.
#[derive(Debug, Clone, PartialEq)]
pub struct TlsSection {
    /// Where clients connect; `None` if the certificate is for WebSocket alone.
    pub listen: Option<SocketAddr>,
    /// Certificates and keys.
    pub files: TlsFiles,
}

fn be_relative_to(files: &mut TlsFiles, folder: &Path) {
    let TlsFiles { certificate, key, client_ca, client_crl, .. } = files;
    for file in [Some(certificate), Some(key), client_ca.as_mut(), client_crl.as_mut()].into_iter().flatten() {
        *file = folder.join(&file);
    }
}

/// MQTT over WebSocket.
#[derive(Debug, Clone, PartialEq)]
pub struct WebSocketSection {
    /// Where clients connect without encryption.
    pub listen: Option<SocketAddr>,
    /// Where clients connect over TLS.
    pub tls_listen: Option<SocketAddr>,
    /// What their requests must be like.
    pub rules: WebSocketRules,
}

/// One `[[broker.user]]`.
#[derive(Clone, PartialEq)]
pub struct UserEntry {
    /// The MQTT user name.
    pub name: String,
    /// The password's hash in PHC form.
    pub password_hash: PasswordHash,
    /// The groups it is in.
    pub groups: Vec<String>,
}

impl std::fmt::Debug for UserEntry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("UserEntry").field("name", &self.name).finish_non_exhaustive()
    }
}

/// A password hash in PHC form (`$argon2id$v=19$m=…,t=…,p=…$salt$hash`); only parsing makes one.
#[derive(Clone, PartialEq)]
pub struct PasswordHash(String);

impl PasswordHash {
    /// The hash as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Debug for PasswordHash {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("PasswordHash(…)")
    }
}

/// The durable log.
#[derive(Debug, Clone, PartialEq)]
pub struct LogSection {
    /// How much of the disk the log may use, in bytes.
    pub quota_bytes: u64,
    /// What happens when the log is full of messages that are still needed.
    pub when_full: WhenFull,
    /// How long a commit waits for more messages.
    pub commit_delay: Duration,
}

/// The history for charts of the past.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HistorySection {
    /// How much of the disk it may use, in bytes; 0 keeps none.
    pub quota_bytes: u64,
    /// How long buckets of 5 minutes are kept, in days.
    pub days: u32,
}

/// What happens when the log is full of messages that a consumer still needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WhenFull {
    /// Hold acknowledgements and stop reading from publishers.
    Refuse,
    /// Drop the oldest messages and count them.
    DropOldest,
}

/// From readings to health.
#[derive(Debug, Clone, PartialEq)]
pub struct PipelineSection {
    /// How often an asset's health is published when it does not change.
    pub health_interval: Duration,
}

/// How a machine that has no model is learned.
#[derive(Debug, Clone, PartialEq)]
pub struct CommissioningSection {
    /// Samples to learn from.
    pub samples: usize,
    /// Whether learning goes on while the learned normal is not stable.
    pub extend: bool,
    /// Samples of the trailing mean.
    pub window: usize,
}

/// When a score becomes an alert.
#[derive(Debug, Clone, PartialEq)]
pub struct AlarmSection {
    /// Consecutive samples in alarm before an alert is raised.
    pub min_samples: u32,
    /// How long the score must stay in alarm before an alert is raised, in device time.
    pub min_duration: Duration,
    /// Consecutive samples back to normal before an alert is cleared.
    pub clear_samples: u32,
    /// The score from which an alert is critical; 1.0 is the alarm threshold.
    pub critical_score: f32,
}

/// Models that are pushed to this gateway.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelsSection {
    /// The largest model, in bytes.
    pub size_bytes_max: u64,
    /// Memory that a model may take while it is tried and watched, in bytes.
    pub memory_bytes_max: u64,
    /// How long loading and trying a model may take, in seconds.
    pub load_s_max: u64,
    /// Who may vouch for a model; without any, everybody.
    pub trusted_keys: Vec<PublicKey>,
    /// What a new version must keep to.
    pub bounds: Bounds,
}

/// A configuration without mistakes, and what in it is probably not meant.
#[derive(Debug, Clone, PartialEq)]
pub struct Loaded {
    /// The configuration.
    pub config: Config,
    /// Allowed, but probably not meant; each is one line for the log.
    pub warnings: Vec<Mistake>,
}

impl Config {
    /// Every default, without a file: `data_dir` is used as it is given.
    pub fn with_defaults(id: GatewayId, data_dir: PathBuf) -> Config {
        let empty = toml::de::DeTable::new();
        let mut document = Document::new("");
        let draft = sections::read(&mut Section::root(&mut document, &empty));
        draft.complete(GatewaySection { id, data_dir })
    }

    /// Reads a file. A relative `data_dir` or file is relative to the configuration's folder.
    ///
    /// # Errors
    /// The file cannot be read, or holds mistakes: all of them.
    pub fn load(path: &Path) -> Result<Loaded, ConfigError> {
        let file = path.display().to_string();
        let unreadable = |source| ConfigError::Unreadable { file: file.clone(), source };
        let bytes = fs::metadata(path).map_err(unreadable)?.len();
        if bytes > CONFIG_BYTES_MAX {
            return Err(ConfigError::TooLarge { file, bytes, bytes_max: CONFIG_BYTES_MAX });
        }
        let text = fs::read_to_string(path).map_err(unreadable)?;
        let folder = path.parent().unwrap_or(Path::new(""));
        Config::parse(&text, &file, folder).map_err(ConfigError::Mistakes)
    }

    /// Reads a text that came from `file`, which only messages name. A relative `data_dir` is relative to `folder`.
    ///
    /// # Errors
    /// Every mistake, in the order of the text.
    pub fn parse(text: &str, file: &str, folder: &Path) -> Result<Loaded, Mistakes> {
        let (root, errors) = toml::de::DeTable::parse_recoverable(text);
        let mut document = Document::new(text);
        let draft = {
            let mut section = Section::root(&mut document, root.get_ref());
            let draft = sections::read(&mut section);
            section.finish(|key| sections::sections_with(key, ""));
            draft
        };
        if !errors.is_empty() {
            document.keep_sound(errors.iter().filter_map(toml::de::Error::span));
        }
        for error in &errors {
            document.syntax(error.span().map_or(0, |span| span.start), error.message());
        }
        document.mistakes.sort_by_key(|mistake| (mistake.line, mistake.column));
        document.warnings.sort_by_key(|warning| (warning.line, warning.column));
        let (mistakes, warnings) = (document.mistakes, document.warnings);
        match draft.gateway.clone() {
            Some(mut gateway) if mistakes.is_empty() => {
                gateway.data_dir = folder.join(gateway.data_dir);
                let mut config = draft.complete(gateway);
                let http = config.http.tls.as_mut();
                for files in config.broker.tls.as_mut().map(|tls| &mut tls.files).into_iter().chain(http) {
                    be_relative_to(files, folder);
                }
                config.upstreams.iter_mut().for_each(|entry| upstream::be_relative_to(entry, folder));
                Ok(Loaded { config, warnings })
            }
            _ => Err(Mistakes { file: file.to_owned(), mistakes, warnings }),
        }
    }
}

/// Every key that the configuration knows, in the order of the sections.
pub fn keys() -> Vec<KeyInfo> {
    sections::keys()
}
