//! What a client is told when a request is not served: a code for programs, a sentence and a remedy for people.
//!
//! Owns the shape of every error of the API, `{"error":{"code","message","remedy"}}`. Never says what only the log may know.

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;

/// A request that is not served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ApiError {
    status: StatusCode,
    code: &'static str,
    message: String,
    remedy: String,
    retry_after_s: Option<u64>,
}

impl ApiError {
    /// `code` is for programs and stays as it is; `message` says what is wrong and where, `remedy` what to do.
    pub(crate) fn new(
        status: StatusCode,
        code: &'static str,
        message: impl Into<String>,
        remedy: impl Into<String>,
    ) -> ApiError {
        ApiError { status, code, message: message.into(), remedy: remedy.into(), retry_after_s: None }
    }

    /// When the client may ask again.
    pub(crate) fn retry_after_s(self, seconds: u64) -> ApiError {
        ApiError { retry_after_s: Some(seconds), ..self }
    }

    /// 400: the request cannot be understood.
    pub(crate) fn bad_request(message: impl Into<String>, remedy: impl Into<String>) -> ApiError {
        ApiError::new(StatusCode::BAD_REQUEST, "bad-request", message, remedy)
    }

    /// 401: who asks has to sign in.
    pub(crate) fn not_signed_in() -> ApiError {
        let remedy = "sign in with POST /api/v1/session; a GET also takes HTTP Basic";
        ApiError::new(StatusCode::UNAUTHORIZED, "not-signed-in", "this needs somebody who has signed in", remedy)
    }

    /// 403: who asks may not.
    pub(crate) fn not_allowed(message: impl Into<String>) -> ApiError {
        let remedy = "sign in as a user with that role, or have it given in [[http.user]]";
        ApiError::new(StatusCode::FORBIDDEN, "not-allowed", message, remedy)
    }

    /// 405: what is there does not take this method; `Allow` says which it takes.
    pub(crate) fn wrong_method() -> ApiError {
        let remedy = "use a method that the header Allow names";
        ApiError::new(StatusCode::METHOD_NOT_ALLOWED, "wrong-method", "this address does not take the method", remedy)
    }

    /// 413: the request's body is longer than is taken.
    pub(crate) fn too_large(bytes_max: usize) -> ApiError {
        let message = format!("the request's body has more than {bytes_max} bytes");
        ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, "too-large", message, "send less")
    }

    /// 404: there is no such thing; `what` names it.
    pub(crate) fn not_found(what: impl std::fmt::Display) -> ApiError {
        let message = format!("there is no {what}");
        ApiError::new(StatusCode::NOT_FOUND, "not-found", message, "look at the list that it should be in")
    }

    /// 500: the gateway failed; the log says why.
    pub(crate) fn internal() -> ApiError {
        let remedy = "look at the gateway's log, and try again";
        ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", "the gateway failed to answer this", remedy)
    }
}

#[derive(Serialize)]
struct Told<'a> {
    error: Inner<'a>,
}

#[derive(Serialize)]
struct Inner<'a> {
    code: &'static str,
    message: &'a str,
    remedy: &'a str,
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let told = Told { error: Inner { code: self.code, message: &self.message, remedy: &self.remedy } };
        let mut response = (self.status, Json(told)).into_response();
        let headers = response.headers_mut();
        if let Some(seconds) = self.retry_after_s {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        response
    }
}
