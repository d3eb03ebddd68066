//! What a request says in its path and its query; [`super::super::body`] reads its body.
//!
//! Owns that every mistake in them is answered in JSON, with what is wrong and what to do; the extractors of the library answer in
//! plain text.

use axum::extract::rejection::PathRejection;
use axum::extract::{FromRequestParts, Path};
use axum::http::StatusCode;
use axum::http::request::Parts;
use serde::de::DeserializeOwned;

use super::super::error::ApiError;

/// The query of a request; unknown parameters are mistakes, so that a typing error is not taken for everything.
pub(in super::super) struct Query<T>(pub(in super::super) T);

impl<T: DeserializeOwned, S: Sync> FromRequestParts<S> for Query<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Query<T>, ApiError> {
        axum::extract::Query::try_from_uri(&parts.uri).map(|query| Query(query.0)).map_err(|error| {
            let cause = std::error::Error::source(&error).map_or_else(|| error.to_string(), ToString::to_string);
            wrong(
                "bad-query",
                format!("the query cannot be read: {cause}"),
                "see /api/v1/openapi.json for its parameters",
            )
        })
    }
}

/// The variable parts of a path.
pub(super) struct Named<T>(pub(super) T);

impl<T: DeserializeOwned + Send, S: Send + Sync> FromRequestParts<S> for Named<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Named<T>, ApiError> {
        let named: Result<Path<T>, PathRejection> = Path::from_request_parts(parts, state).await;
        named.map(|path| Named(path.0)).map_err(|error| {
            let text = format!("the path cannot be read: {}", error.body_text());
            wrong("bad-path", text, "names are percent-encoded UTF-8, numbers are written in digits")
        })
    }
}

/// What the client got wrong.
pub(super) fn wrong(code: &'static str, message: String, remedy: &str) -> ApiError {
    ApiError::new(StatusCode::BAD_REQUEST, code, message, remedy)
}

/// What is not there.
pub(super) fn missing(code: &'static str, message: String, remedy: &str) -> ApiError {
    ApiError::new(StatusCode::NOT_FOUND, code, message, remedy)
}

/// What cannot be done as things stand.
pub(super) fn conflict(code: &'static str, message: String, remedy: &str) -> ApiError {
    ApiError::new(StatusCode::CONFLICT, code, message, remedy)
}

/// What should not happen; the log has the cause, the client need not know it.
pub(super) fn failed(what: &str, error: &dyn std::fmt::Display) -> ApiError {
    tracing::error!(%error, "{what} failed");
    ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "failed", format!("{what} failed"), "the gateway's log says why")
}
