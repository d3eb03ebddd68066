//! `/api/v1/session`: who has signed in, signing in, signing out.
//!
//! Owns the cookie and what of a session is told. Never tells which of name and password was wrong.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Extension, Json, Router};
use serde::{Deserialize, Serialize};

use super::super::body::Sent;
use super::super::error::ApiError;
use super::super::listener::Guest;
use super::passwords::Outcome;
use super::{Auth, COOKIE, Role, Site, Visitor};
use crate::clock;

/// The whole path; everybody may go there.
pub(super) const PATH: &str = "/api/v1/session";

/// The longest name and password that are looked at, in bytes; `millwright passwd` makes no longer ones.
const CREDENTIAL_BYTES_MAX: usize = 256;

/// The routes, below `/api/v1`.
pub(in super::super) fn routes() -> Router<Arc<Site>> {
    Router::new().route("/session", get(show).post(sign_in).delete(sign_out))
}

/// What a page needs to know first.
#[derive(Serialize)]
struct Shown<'a> {
    sign_in_required: bool,
    user: Option<User<'a>>,
    /// What unsafe requests repeat.
    csrf: &'a str,
    /// When the session ends if nothing happens.
    expires_us: Option<i64>,
    gateway: String,
    version: &'static str,
}

#[derive(Serialize)]
struct User<'a> {
    name: &'a str,
    role: Role,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SignIn {
    user: String,
    password: String,
}

async fn show(State(site): State<Arc<Site>>, Extension(visitor): Extension<Visitor>) -> Response {
    shown(&site, &visitor)
}

fn shown(site: &Site, visitor: &Visitor) -> Response {
    let auth = &site.auth;
    let expires_us = visitor
        .session
        .as_ref()
        .map(|session| clock::utc_us().saturating_add(i64::try_from(session.left.as_micros()).unwrap_or(i64::MAX)));
    Json(Shown {
        sign_in_required: auth.passwords.is_some(),
        user: visitor.principal.as_ref().map(|principal| User { name: &principal.name, role: principal.role }),
        csrf: auth.csrf_of(visitor).as_str(),
        expires_us,
        gateway: site.status.gateway.to_string(),
        version: env!("CARGO_PKG_VERSION"),
    })
    .into_response()
}

async fn sign_in(
    State(site): State<Arc<Site>>,
    Extension(visitor): Extension<Visitor>,
    Extension(guest): Extension<Arc<Guest>>,
    headers: HeaderMap,
    Sent(SignIn { user, password }): Sent<SignIn>,
) -> Result<Response, ApiError> {
    let Some(passwords) = &site.auth.passwords else {
        let message = "nobody has to sign in here";
        return Err(ApiError::new(StatusCode::CONFLICT, "not-required", message, "go on without a session"));
    };
    if user.len().max(password.len()) > CREDENTIAL_BYTES_MAX {
        return Err(refusal(&Outcome::Wrong));
    }
    let outcome = passwords.verify(guest.network(), &user, password.as_bytes()).await;
    let Outcome::Known(principal) = outcome else { return Err(refusal(&outcome)) };
    guest.greet();
    // One browser has one session, and no token that was there before is signed in by a password.
    visitor.session.iter().for_each(|before| site.auth.sessions.end(before.key));
    let (token, session) =
        site.auth.sessions.begin(principal.clone(), Instant::now()).map_err(|error| no_random_numbers(&error))?;
    tracing::info!(user = principal.name, network = %guest.network(), "signed in over HTTP");
    let mut response = shown(&site, &Visitor { principal: Some(principal), session: Some(session) });
    set_cookie(&mut response, &site.auth.cookie(token.as_str(), site.auth.sessions.whole(), &headers));
    Ok(response)
}

async fn sign_out(
    State(site): State<Arc<Site>>,
    Extension(visitor): Extension<Visitor>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    visitor.session.iter().for_each(|session| site.auth.sessions.end(session.key));
    let mut response = StatusCode::NO_CONTENT.into_response();
    set_cookie(&mut response, &site.auth.cookie("", Duration::ZERO, &headers));
    Ok(response)
}

/// Why credentials are not taken.
pub(super) fn refusal(outcome: &Outcome) -> ApiError {
    match outcome {
        Outcome::TooMany { wait } => {
            let wait_s = wait.as_secs().saturating_add(1);
            let message = "too many wrong passwords were tried";
            let remedy = format!("try again in {wait_s} s");
            ApiError::new(StatusCode::TOO_MANY_REQUESTS, "too-many-attempts", message, remedy).retry_after_s(wait_s)
        }
        Outcome::Wrong | Outcome::Known(_) => ApiError::new(
            StatusCode::UNAUTHORIZED,
            "wrong-login",
            "the user or the password is wrong",
            "try again; `millwright passwd` makes the hash of a new password for [[http.user]]",
        ),
    }
}

fn no_random_numbers(error: &getrandom::Error) -> ApiError {
    tracing::error!(%error, "nobody can sign in: the system has no random numbers");
    ApiError::internal()
}

impl Auth {
    /// [RFC 6265bis §4.1]. A proxy that speaks TLS says so.
    fn cookie(&self, value: &str, max_age: Duration, headers: &HeaderMap) -> String {
        let by_proxy = headers.get("x-forwarded-proto").is_some_and(|proto| proto.as_bytes() == b"https");
        let secure = if self.is_tls || by_proxy { "; Secure" } else { "" };
        format!("{COOKIE}={value}; Path=/; Max-Age={}; HttpOnly; SameSite=Strict{secure}", max_age.as_secs())
    }
}

fn set_cookie(response: &mut Response, cookie: &str) {
    // Digits and words: always a header's value.
    if let Ok(cookie) = HeaderValue::from_str(cookie) {
        response.headers_mut().insert(header::SET_COOKIE, cookie);
    }
}
