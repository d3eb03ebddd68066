//! Certificates: valid now and for a while, made for the names they serve, with their own key, and signed by whom others trust.

use std::fs::File;
use std::io::Read;
use std::net::IpAddr;
use std::path::Path;

use millwright_broker::TlsFiles;
use tokio_rustls::rustls::pki_types::CertificateDer;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use super::{Finding, Patient};
use crate::clock;
use crate::config::files::{self, FileKind};
use crate::upstream::tls;

const CHECK: &str = "certificates";
const DAY_S: i64 = 24 * 3_600;
/// Time to order, sign and bring a new one; the running gateway warns from then on too.
const DAYS_WARN: i64 = 30;
/// A bundle of all public authorities is a quarter of it.
const FILE_BYTES_MAX: u64 = 1 << 20;

pub(super) fn check(patient: &Patient<'_>, show: &mut dyn FnMut(Finding)) {
    let config = patient.config;
    let now_s = clock::utc_us().div_euclid(clock::SECOND_US);
    let mqtt = config.broker.tls.as_ref().map(|tls| ("[broker.tls]", &tls.files, tls.listen.map(|listen| listen.ip())));
    let http = config.http.tls.as_ref().map(|files| ("[http.tls]", files, Some(config.http.listen.ip())));
    for (section, files, ip) in mqtt.into_iter().chain(http) {
        let hosts = if section == "[http.tls]" { config.http.hosts.as_slice() } else { &[] };
        show(server(section, files, ip, hosts));
    }
    for upstream in &config.upstreams {
        // The client reads all of them, and compares the key with its certificate.
        if let Some(Err(error)) = upstream.tls.as_ref().map(tls::client) {
            let place = format!("[[upstream]] {}", upstream.name);
            show(Finding::fail(CHECK, format!("{place}: {error}"), "give the files that were made together"));
        }
    }
    for file in files::named(config) {
        if matches!(file.kind, FileKind::Certificate | FileKind::Authority)
            && let Some(finding) = dates(&file.place, file.path, now_s)
        {
            show(finding);
        }
    }
}

/// What a listener serves with.
fn server(section: &str, files: &TlsFiles, ip: Option<IpAddr>, hosts: &[String]) -> Finding {
    if let Err(error) = files.check() {
        return Finding::fail(CHECK, format!("{section} {error}"), "`millwright cert server` makes both files");
    }
    let shown = files.certificate.display();
    let names = first(&files.certificate).map(|certificate| Names::of(&certificate)).unwrap_or_default();
    let mut missing: Vec<String> = hosts.iter().filter(|host| !names.covers_name(host)).cloned().collect();
    missing.extend(
        ip.filter(|ip| !ip.is_unspecified() && !ip.is_loopback() && !names.ips.contains(ip)).map(|ip| ip.to_string()),
    );
    if names.is_empty() {
        let text = format!("{section} {shown} names no host (subject alternative name)");
        return Finding::warn(CHECK, text, "have it made again with the names by which clients reach the gateway");
    }
    if !missing.is_empty() {
        let text = format!("{section} {shown} is for {names}, not for {}", missing.join(", "));
        return Finding::warn(CHECK, text, "clients that use these names refuse it: have it made again with them");
    }
    Finding::ok(CHECK, format!("{section} {shown} is for {names}, and the key fits"))
}

/// The days of the certificates in a file; `None` if there are enough. What cannot be read has been told of.
fn dates(place: &str, path: &Path, now_s: i64) -> Option<Finding> {
    let validity = |der: &CertificateDer<'_>| {
        let (_, certificate) = X509Certificate::from_der(der.as_ref()).ok()?;
        let validity = certificate.validity();
        Some((validity.not_before.timestamp(), validity.not_after.timestamp()))
    };
    let ends: Vec<(i64, i64)> = read(path)?.iter().filter_map(validity).collect();
    let (from_s, until_s) =
        (ends.iter().map(|(from_s, _)| *from_s).max()?, ends.iter().map(|(_, until_s)| *until_s).min()?);
    let day = |time_s: i64| clock::rfc3339(time_s.saturating_mul(clock::SECOND_US));
    let shown = path.display();
    if now_s < from_s {
        let text = format!("{place}: {shown} is valid from {} on only", day(from_s));
        return Some(Finding::fail(CHECK, text, "set the clock, or have it made again"));
    }
    let days = (until_s - now_s).div_euclid(DAY_S);
    match days {
        days if days < 0 => {
            Some(Finding::fail(CHECK, format!("{place}: {shown} has expired on {}", day(until_s)), "renew it"))
        }
        days if days < DAYS_WARN => {
            Some(Finding::warn(CHECK, format!("{place}: {shown} expires in {days} days"), "renew it"))
        }
        days => Some(Finding::ok(CHECK, format!("{place}: {shown} is valid for {days} days"))),
    }
}

fn read(path: &Path) -> Option<Vec<CertificateDer<'static>>> {
    let mut bytes = Vec::new();
    File::open(path).ok()?.take(FILE_BYTES_MAX).read_to_end(&mut bytes).ok()?;
    CertificateDer::pem_slice_iter(&bytes).collect::<Result<_, _>>().ok()
}

fn first(path: &Path) -> Option<CertificateDer<'static>> {
    read(path)?.into_iter().next()
}

/// Whom a certificate is for.
#[derive(Debug, Default)]
struct Names {
    names: Vec<String>,
    ips: Vec<IpAddr>,
}

impl Names {
    fn of(der: &CertificateDer<'_>) -> Names {
        let mut found = Names::default();
        let Ok((_, certificate)) = X509Certificate::from_der(der.as_ref()) else { return found };
        let Ok(Some(alternatives)) = certificate.subject_alternative_name() else { return found };
        for name in &alternatives.value.general_names {
            match name {
                GeneralName::DNSName(name) => found.names.push(name.to_ascii_lowercase()),
                GeneralName::IPAddress(bytes) => {
                    let v4 = <[u8; 4]>::try_from(*bytes).map(IpAddr::from).ok();
                    found.ips.extend(v4.or_else(|| <[u8; 16]>::try_from(*bytes).map(IpAddr::from).ok()));
                }
                _ => {}
            }
        }
        found
    }

    fn is_empty(&self) -> bool {
        self.names.is_empty() && self.ips.is_empty()
    }

    /// `*` stands for one whole level, the first.
    fn covers_name(&self, host: &str) -> bool {
        let rest = host.split_once('.').map(|(_, rest)| rest);
        let matches =
            |name: &String| name == host || (name.strip_prefix("*.").is_some() && name.strip_prefix("*.") == rest);
        self.names.iter().any(matches)
    }
}

impl std::fmt::Display for Names {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let all: Vec<String> = self.names.iter().cloned().chain(self.ips.iter().map(IpAddr::to_string)).collect();
        f.write_str(&all.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // A name is covered by itself and by a wildcard for exactly one level.
    #[test]
    fn names_are_covered() {
        let names = Names { names: vec!["gw.local".to_owned(), "*.plant.local".to_owned()], ips: Vec::new() };
        for (host, covered) in [
            ("gw.local", true),
            ("a.plant.local", true),
            ("a.b.plant.local", false),
            ("plant.local", false),
            ("local", false),
        ] {
            assert_eq!(names.covers_name(host), covered, "{host}");
        }
    }
}
