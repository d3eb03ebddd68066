//! Reads the sections of `gateway.toml`: one line per key, with its default and its bounds.
//!
//! Owns the defaults and the relations between keys. Never touches a file.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use millwright_models::signature::PublicKey;

use super::reader::{Document, KeyInfo, Section, Spot};
use super::{
    AlarmSection, BrokerSection, CommissioningSection, Config, GatewaySection, HistorySection, HttpSection, LogSection,
    ModelsSection, PipelineSection, SOURCES_MAX, SourceConfig, UPSTREAMS_MAX, UpstreamConfig, WhenFull, broker, http,
    source, upstream,
};
use crate::clock::SECOND_US;
use crate::ids::{GatewayId, shorten};
use crate::models::judge::Bounds;

const MIB: u64 = 1024 * 1024;

/// The log holds at least this many of the largest packets, or one publisher could fill it between two commits.
const QUOTA_PACKETS_MIN: u64 = 64;

/// The smallest history: a day of 10-second buckets of ten assets.
const HISTORY_MB_MIN: u64 = 8;

/// What was read: everything but the gateway's identity, which has no default.
pub(super) struct Draft {
    pub(super) gateway: Option<GatewaySection>,
    broker: BrokerSection,
    log: LogSection,
    history: HistorySection,
    http: HttpSection,
    pipeline: PipelineSection,
    commissioning: CommissioningSection,
    alarm: AlarmSection,
    models: ModelsSection,
    sources: Vec<SourceConfig>,
    upstreams: Vec<UpstreamConfig>,
}

impl Draft {
    pub(super) fn complete(self, gateway: GatewaySection) -> Config {
        let Draft {
            gateway: _,
            broker,
            log,
            history,
            http,
            pipeline,
            commissioning,
            alarm,
            models,
            sources,
            upstreams,
        } = self;
        Config { gateway, broker, log, history, http, pipeline, commissioning, alarm, models, sources, upstreams }
    }
}

/// Reads every section below the root.
pub(super) fn read(root: &mut Section<'_, '_>) -> Draft {
    let gateway = root.read("gateway", "[gateway]", gateway);
    let (broker, broker_listen) = root.read("broker", "[broker]", broker::read);
    let (log, quota) = root.read("log", "[log]", log);
    let history = root.read("history", "[history]", history);
    let (http, http_listen) = root.read("http", "[http]", http::read);
    let pipeline = root.read("pipeline", "[pipeline]", pipeline);
    let commissioning = root.read("commissioning", "[commissioning]", commissioning);
    let alarm = root.read("alarm", "[alarm]", alarm);
    let models = root.read("models", "[models]", models);
    let sources = sources(root);
    let upstreams = upstreams(root);

    check_ports(root.document, &[broker_listen, vec![http_listen]].concat());
    let quota_bytes_min = QUOTA_PACKETS_MIN.saturating_mul(broker.limits.packet_bytes_max as u64);
    if log.quota_bytes < quota_bytes_min {
        let what = format!(
            "{} MB hold fewer than {QUOTA_PACKETS_MIN} packets of [broker] max_packet_bytes = {}",
            log.quota_bytes / MIB,
            broker.limits.packet_bytes_max
        );
        let remedy = format!("make it at least {}, or max_packet_bytes smaller", quota_bytes_min.div_ceil(MIB));
        root.document.mistake(&quota, what, remedy);
    }
    Draft { gateway, broker, log, history, http, pipeline, commissioning, alarm, models, sources, upstreams }
}

impl<'d> Section<'_, 'd> {
    /// Reads a sub-section with `read` and refuses what it did not ask for.
    pub(super) fn read<T>(
        &mut self,
        name: &'static str,
        label: &'static str,
        read: impl FnOnce(&mut Section<'_, 'd>) -> T,
    ) -> T {
        let mut section = self.section(name, label);
        let value = read(&mut section);
        section.finish(|key| sections_with(key, label));
        value
    }
}

/// An address and where it stands, for relations between sections.
#[derive(Clone)]
pub(super) struct Listen {
    pub(super) address: SocketAddr,
    pub(super) spot: Spot,
    pub(super) given: bool,
}

/// No two listeners want the same port.
fn check_ports(document: &mut Document<'_>, listeners: &[Listen]) {
    for (index, later) in listeners.iter().enumerate() {
        for earlier in listeners.iter().take(index).filter(|earlier| collide(earlier.address, later.address)) {
            // Whichever of the two the file gives is the one to change.
            let (wrong, other) = if later.given { (later, earlier) } else { (earlier, later) };
            let what = format!("port {} is also that of {}", wrong.address.port(), other.spot.place);
            document.mistake(&wrong.spot, what, "choose another port for one of the two");
        }
    }
}

fn gateway(s: &mut Section<'_, '_>) -> Option<GatewaySection> {
    let id = s.required("id", "name", "give the gateway a name, for example id = \"gw-1\"", GatewayId::parse);
    let data_dir = s.text("data_dir", "data", "path");
    Some(GatewaySection { id: id?, data_dir: PathBuf::from(data_dir) })
}

fn log(s: &mut Section<'_, '_>) -> (LogSection, Spot) {
    let quota_mb = s.integer("quota_mb", 1_024_u64, 16..=16_777_216);
    let words = [("refuse", WhenFull::Refuse), ("drop-oldest", WhenFull::DropOldest)];
    let when_full = s.choice("when_full", Some(WhenFull::Refuse), &words).unwrap_or(WhenFull::Refuse);
    let commit_delay_ms = s.integer("commit_delay_ms", 10_u64, 0..=1_000);
    let commit_delay = Duration::from_millis(commit_delay_ms);
    (LogSection { quota_bytes: quota_mb.saturating_mul(MIB), when_full, commit_delay }, s.spot("quota_mb"))
}

fn history(s: &mut Section<'_, '_>) -> HistorySection {
    let quota_mb = s.integer("quota_mb", 256_u64, 0..=1_048_576);
    if (1..HISTORY_MB_MIN).contains(&quota_mb) {
        let what = format!("{quota_mb} MB hold no history worth looking at");
        s.mistake("quota_mb", what, format!("make it at least {HISTORY_MB_MIN}, or 0 to keep none"));
    }
    let days = s.integer("days", 90_u32, 1..=3_650);
    HistorySection { quota_bytes: quota_mb.saturating_mul(MIB), days }
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

fn upstreams(root: &mut Section<'_, '_>) -> Vec<UpstreamConfig> {
    const LABEL: &str = "[[upstream]]";
    let mut upstreams: Vec<UpstreamConfig> = Vec::new();
    for entry in root.entries("upstream", LABEL, UPSTREAMS_MAX) {
        let mut s = Section::entry(root.document, LABEL, entry);
        let read = upstream::read(&mut s);
        s.finish(|key| sections_with(key, LABEL));
        let Some(read) = read else { continue };
        if upstreams.iter().any(|earlier| earlier.name == read.config.name) {
            let what = format!("another upstream is called \"{}\" too", shorten(&read.config.name));
            root.document.mistake(
                &read.name_spot,
                what,
                "its name is what it has confirmed is kept under: choose another",
            );
            continue;
        }
        upstreams.push(read.config);
    }
    upstreams
}

/// Keys that may vouch for models.
const TRUSTED_KEYS_MAX: usize = 16;

/// Every key, found by reading a document that has one of each list and nothing else.
pub(super) fn keys() -> Vec<KeyInfo> {
    let text = "[[broker.user]]\n[[broker.access]]\n[[http.user]]\n[[source]]\n[[upstream]]\n";
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
