//! Entity tags: a client that has the answer already is told so instead of being sent it again.
//!
//! A tag is the beginning of the SHA-256 of the JSON, so that it is the same after a restart. Never looks at anything but GETs that are
//! answered with JSON. [RFC 9110, 8.8.3 and 13.1.2]

use axum::body::{Body, Bytes};
use axum::extract::Request;
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use millwright_models::Digest;

/// Hexadecimal digits of a tag: 64 bits tell the states of one resource apart.
const TAG_DIGITS: usize = 16;
/// Largest answer: a chart of 2,000 points and 64 channels takes a tenth.
const ANSWER_BYTES_MAX: usize = 16 << 20;

/// Gives JSON answers their tags and answers 304 to who has them.
pub(super) async fn tag(request: Request, next: Next) -> Response {
    let known = request.headers().get(header::IF_NONE_MATCH).cloned();
    let is_get = request.method() == Method::GET;
    let response = next.run(request).await;
    if !is_get || response.status() != StatusCode::OK || !is_json(response.headers()) {
        return response;
    }
    let (mut parts, body) = response.into_parts();
    // The body is in memory already.
    let Ok(bytes) = axum::body::to_bytes(body, ANSWER_BYTES_MAX).await else {
        return StatusCode::INTERNAL_SERVER_ERROR.into_response();
    };
    let tag = tag_of(&bytes);
    let unchanged = known.is_some_and(|known| names(&known, &tag));
    if let Ok(value) = HeaderValue::from_str(&tag) {
        parts.headers.insert(header::ETAG, value);
    }
    if unchanged {
        parts.status = StatusCode::NOT_MODIFIED;
        parts.headers.remove(header::CONTENT_TYPE);
        parts.headers.remove(header::CONTENT_LENGTH);
        return Response::from_parts(parts, Body::empty());
    }
    Response::from_parts(parts, Body::from(bytes))
}

fn is_json(headers: &HeaderMap) -> bool {
    headers.get(header::CONTENT_TYPE).is_some_and(|kind| kind.as_bytes().starts_with(b"application/json"))
}

fn tag_of(bytes: &Bytes) -> String {
    let digest = Digest::of(bytes).to_string();
    format!("\"{}\"", digest.get(..TAG_DIGITS).unwrap_or_default())
}

/// Whether a list of tags names this one; weak tags compare as strong ones.
fn names(known: &HeaderValue, tag: &str) -> bool {
    let Ok(known) = known.to_str() else { return false };
    known.split(',').map(str::trim).any(|one| one == "*" || one.strip_prefix("W/").unwrap_or(one) == tag)
}

#[cfg(test)]
mod tests {
    use super::*;

    // A tag is found in a list, weak or not, and `*` is every tag.
    #[test]
    fn tags_are_compared() {
        let names = |known: &'static str| super::names(&HeaderValue::from_static(known), "\"ab\"");
        assert!(names("\"ab\"") && names("W/\"ab\"") && names("\"x\", \"ab\"") && names("*"));
        assert!(!names("ab") && !names("\"abc\"") && !names(""));
    }
}
