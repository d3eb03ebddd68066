//! What a request must be like, whoever sends it: meant for this gateway, and not made by another page.
//!
//! Owns the checks of `Host`, `Origin`, `Sec-Fetch-Site`, `Content-Type` and `X-CSRF-Token`. A name may have been made to lead
//! here by whoever owns it (DNS rebinding), so only addresses, `localhost` and the names of `[http] hosts` are served. Never
//! decides who asks.

use std::net::IpAddr;

use axum::http::{HeaderMap, HeaderName, Method, StatusCode, header};

use super::super::error::ApiError;
use super::token::Token;

/// Where an unsafe request repeats the token that only the gateway's own pages can have read.
const CSRF: HeaderName = HeaderName::from_static("x-csrf-token");
const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

/// Media types that bodies may have; a form of another page can send neither.
const BODIES: [&str; 2] = ["application/json", "application/octet-stream"];

/// Whether a request changes nothing. [RFC 9110 §9.2.1]
pub(super) fn is_safe(method: &Method) -> bool {
    matches!(*method, Method::GET | Method::HEAD | Method::OPTIONS)
}

/// The names that lead here.
pub(super) struct Hosts(Vec<String>);

impl Hosts {
    /// `names` in lower case, without ports.
    pub(super) fn new(names: Vec<String>) -> Hosts {
        Hosts(names)
    }

    /// The request is meant for this gateway.
    ///
    /// # Errors
    /// 421 if it names another host.
    pub(super) fn check(&self, headers: &HeaderMap) -> Result<(), ApiError> {
        // Every browser sends it.
        let Some(host) = headers.get(header::HOST) else { return Ok(()) };
        if host.to_str().is_ok_and(|host| self.are_known_by(host_of(host))) {
            return Ok(());
        }
        Err(ApiError::new(
            StatusCode::MISDIRECTED_REQUEST,
            "wrong-host",
            "the gateway is not known by the name in the request's Host",
            "use the gateway's IP address, or add the name to `hosts` in [http]",
        ))
    }

    fn are_known_by(&self, host: &str) -> bool {
        let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
        let is_known = |name: &str| host.eq_ignore_ascii_case(name);
        bare.parse::<IpAddr>().is_ok() || is_known("localhost") || self.0.iter().any(|name| is_known(name))
    }

    /// The request was made by a page of this gateway, or by no page at all.
    ///
    /// # Errors
    /// 403 if the browser says that another page made it.
    pub(super) fn check_origin(&self, headers: &HeaderMap) -> Result<(), ApiError> {
        let site = headers.get(SEC_FETCH_SITE).map(|site| site.as_bytes());
        let by_us = matches!(site, None | Some(b"same-origin" | b"none"));
        if by_us && self.allow_origin(headers) {
            return Ok(());
        }
        Err(ApiError::new(
            StatusCode::FORBIDDEN,
            "foreign-origin",
            "a page that is not the gateway's own made this request",
            "open the gateway's own pages; behind a proxy, add its name to `hosts` in [http]",
        ))
    }

    fn allow_origin(&self, headers: &HeaderMap) -> bool {
        let Some(origin) = headers.get(header::ORIGIN) else { return true };
        let origin = origin.to_str().ok().and_then(|origin| origin.split_once("://"));
        let Some((_, origin)) = origin else { return false };
        let host = headers.get(header::HOST).and_then(|host| host.to_str().ok());
        // A proxy may have put another name into Host.
        host.is_some_and(|host| host.eq_ignore_ascii_case(origin))
            || self.0.iter().any(|name| host_of(origin).eq_ignore_ascii_case(name))
    }
}

/// An unsafe request repeats the token, and has a body that no form can send.
///
/// # Errors
/// 403 without the token, 415 for another body.
pub(super) fn check_unsafe(headers: &HeaderMap, csrf: &Token) -> Result<(), ApiError> {
    if !headers.get(CSRF).is_some_and(|sent| csrf.is(sent.as_bytes())) {
        return Err(ApiError::new(
            StatusCode::FORBIDDEN,
            "csrf",
            "the header X-CSRF-Token is missing, or is not that of this session",
            "send the `csrf` that GET /api/v1/session gives",
        ));
    }
    match headers.get(header::CONTENT_TYPE) {
        Some(kind) if !kind.to_str().is_ok_and(|kind| BODIES.contains(&media_type(kind))) => Err(ApiError::new(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "wrong-content-type",
            "the request's Content-Type is not one that is taken",
            "send JSON, with Content-Type: application/json",
        )),
        _ => Ok(()),
    }
}

fn media_type(kind: &str) -> &str {
    kind.split(';').next().unwrap_or_default().trim()
}

/// A host without its port.
fn host_of(authority: &str) -> &str {
    match authority.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => host,
        _ => authority,
    }
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        pairs
            .iter()
            .map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_str(value).unwrap()))
            .collect()
    }

    // Addresses, localhost and the configured names are served, whatever the port; a name that somebody made lead here is not.
    #[test]
    fn other_hosts_are_refused() {
        let hosts = Hosts::new(vec!["gw-1.plant.local".to_owned()]);
        let check = |host: &str| hosts.check(&headers(&[("host", host)])).is_ok();
        for host in ["127.0.0.1:8080", "[::1]:80", "[2001:db8::7]", "localhost", "LOCALHOST:1", "GW-1.plant.local:8443"]
        {
            assert!(check(host), "{host}");
        }
        for host in
            ["evil.example", "evil.example:8080", "localhost.evil.example", "gw-1.plant.local.evil", "", "::1:80:x"]
        {
            assert!(!check(host), "{host}");
        }
        assert!(hosts.check(&headers(&[])).is_ok());
    }

    // A page of this gateway may ask, and a program; pages of other sites, ports and names may not.
    #[test]
    fn other_pages_are_refused() {
        let hosts = Hosts::new(vec!["gw-1.plant.local".to_owned()]);
        let check = |pairs: &[(&'static str, &str)]| {
            hosts.check_origin(&headers(&[&[("host", "10.0.0.7:8080")], pairs].concat())).is_ok()
        };
        assert!(check(&[]));
        assert!(check(&[("origin", "http://10.0.0.7:8080"), ("sec-fetch-site", "same-origin")]));
        assert!(check(&[("sec-fetch-site", "none")]));
        assert!(check(&[("origin", "https://gw-1.plant.local")]));
        for origin in ["null", "http://10.0.0.7", "http://10.0.0.7:8081", "https://evil.example", "10.0.0.7:8080", ""] {
            assert!(!check(&[("origin", origin)]), "{origin}");
        }
        for site in ["cross-site", "same-site", ""] {
            assert!(!check(&[("origin", "http://10.0.0.7:8080"), ("sec-fetch-site", site)]), "{site}");
        }
    }

    // An unsafe request needs the token itself and a body that no form can send; one without a body needs no type.
    #[test]
    fn forged_requests_are_refused() {
        let csrf = Token::new().unwrap();
        let other = Token::new().unwrap();
        let check = |pairs: &[(&'static str, &str)]| check_unsafe(&headers(pairs), &csrf).is_ok();
        let right = ("x-csrf-token", csrf.as_str());
        assert!(check(&[right]));
        assert!(check(&[right, ("content-type", "application/json; charset=utf-8")]));
        assert!(check(&[right, ("content-type", "application/octet-stream")]));
        assert!(!check(&[]));
        assert!(!check(&[("x-csrf-token", other.as_str()), ("content-type", "application/json")]));
        for kind in ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=a", ""] {
            assert!(!check(&[right, ("content-type", kind)]), "{kind}");
        }
    }
}
