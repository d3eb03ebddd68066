//! The files that a configuration names: certificates, keys, passwords.
//!
//! Owns the list, and which of them are secret. Never reads them.

use std::path::Path;

use millwright_broker::TlsFiles;

use super::Config;

/// What a file is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileKind {
    /// A certificate that is shown.
    Certificate,
    /// The key of one: secret.
    Key,
    /// Certificates that are trusted.
    Authority,
    /// Certificates that were revoked.
    Revoked,
    /// A password: secret.
    Password,
}

impl FileKind {
    /// Whether nobody else may read it.
    pub fn is_secret(self) -> bool {
        matches!(self, FileKind::Key | FileKind::Password)
    }
}

/// A file that the configuration names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamedFile<'c> {
    /// Where the configuration names it: `[broker.tls] key`.
    pub place: String,
    /// What it is for.
    pub kind: FileKind,
    /// Where it is.
    pub path: &'c Path,
}

/// All files that `config` names, in the order of the sections.
pub fn named(config: &Config) -> Vec<NamedFile<'_>> {
    let mut found = Vec::new();
    let mqtt = config.broker.tls.as_ref().map(|tls| ("[broker.tls]", &tls.files));
    let http = config.http.tls.as_ref().map(|files| ("[http.tls]", files));
    for (section, files) in mqtt.into_iter().chain(http) {
        let TlsFiles { certificate, key, client_ca, client_crl, .. } = files;
        let mut add = |name: &str, kind, path| found.push(NamedFile { place: format!("{section} {name}"), kind, path });
        add("certificate", FileKind::Certificate, certificate.as_path());
        add("key", FileKind::Key, key.as_path());
        if let Some(path) = client_ca {
            add("client_ca", FileKind::Authority, path.as_path());
        }
        if let Some(path) = client_crl {
            add("client_crl", FileKind::Revoked, path.as_path());
        }
    }
    for upstream in &config.upstreams {
        let mut add = |name: &str, kind, path| {
            found.push(NamedFile { place: format!("[[upstream]] {}: {name}", upstream.name), kind, path });
        };
        if let Some(credentials) = &upstream.credentials {
            add("password_file", FileKind::Password, credentials.password_file.as_path());
        }
        let Some(tls) = &upstream.tls else { continue };
        if let Some(ca) = &tls.ca {
            add("ca", FileKind::Authority, ca.as_path());
        }
        if let Some((certificate, key)) = &tls.identity {
            add("certificate", FileKind::Certificate, certificate.as_path());
            add("key", FileKind::Key, key.as_path());
        }
    }
    found
}
