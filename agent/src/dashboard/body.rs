//! The body of a request, as JSON: bounded, within a deadline, and with errors in the API's shape.
//!
//! Owns the limits of every body but that of a model, whose route has its own. A request without a body is an empty object.

use std::time::Duration;

use axum::body::Bytes;
use axum::extract::{FromRequest, Request};
use axum::http::{StatusCode, header};
use serde::de::DeserializeOwned;

use super::error::ApiError;

/// The longest body, in bytes: a comment at its longest with room to spare.
pub(super) const BODY_BYTES_MAX: usize = 64 * 1024;

/// How long a body may take to arrive.
const ARRIVAL_MAX: Duration = Duration::from_secs(10);

/// What was sent.
pub(crate) struct Sent<T>(pub(crate) T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for Sent<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &S) -> Result<Sent<T>, ApiError> {
        let kind = request.headers().get(header::CONTENT_TYPE);
        let is_json = kind.is_none_or(|kind| kind.as_bytes().starts_with(b"application/json"));
        if !is_json {
            let message = "the request's body is not JSON";
            let remedy = "send JSON, with Content-Type: application/json";
            return Err(ApiError::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "wrong-content-type", message, remedy));
        }
        let arrived = tokio::time::timeout(ARRIVAL_MAX, Bytes::from_request(request, state)).await;
        let bytes = match arrived {
            Err(_) => {
                let message = format!("the request's body took longer than {} s to arrive", ARRIVAL_MAX.as_secs());
                return Err(ApiError::new(StatusCode::REQUEST_TIMEOUT, "too-slow", message, "try again"));
            }
            Ok(Err(refused)) if refused.status() == StatusCode::PAYLOAD_TOO_LARGE => {
                return Err(ApiError::too_large(BODY_BYTES_MAX));
            }
            Ok(Err(_)) => return Err(ApiError::bad_request("the request's body broke off", "try again")),
            Ok(Ok(bytes)) => bytes,
        };
        let text: &[u8] = if bytes.is_empty() { b"{}" } else { &bytes };
        serde_json::from_slice(text).map(Sent).map_err(|error| {
            let remedy = "send an object as docs/openapi.json describes it";
            ApiError::bad_request(format!("the request's body is not what is wanted here: {error}"), remedy)
        })
    }
}
