//! Who may come in by HTTP, and what they may do.
//!
//! Owns the judgement who asks ([`Principal`]) and the extractors by which a route says whom it serves: a handler that has an
//! [`Engineer`] is proof that one asks. [`gate`] says what a request must be like, [`passwords`] and [`sessions`] who it comes
//! from, [`sign_in`] is the API of it. Never reads a file, never stores a password.

mod gate;
mod passwords;
mod sessions;
pub(super) mod sign_in;
mod token;

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::extract::{FromRequestParts, Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use self::gate::Hosts;
use self::passwords::{Outcome, Passwords};
use self::sessions::{Session, Sessions};
use self::token::Token;
use super::error::ApiError;
use super::listener::Guest;
use super::{HttpError, Site};
use crate::config::HttpSection;
pub(crate) use crate::config::Role;

/// The cookie of a session.
const COOKIE: &str = "mw_session";

/// How often somebody who watches is seen to be still signed in, at least.
const LOOK_EVERY: Duration = Duration::from_secs(60);
/// And at most.
const LOOK_EVERY_MIN: Duration = Duration::from_millis(100);

/// Who asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Principal {
    /// The user's name; `local` where nobody has to sign in.
    pub(crate) name: String,
    pub(crate) role: Role,
}

/// Who may come in.
pub(crate) struct Auth {
    hosts: Hosts,
    /// `None`: whoever reaches the listener may do everything.
    passwords: Option<Passwords>,
    sessions: Sessions,
    /// What unsafe requests repeat that belong to no session.
    csrf: Token,
    is_tls: bool,
}

/// Whom a request comes from.
#[derive(Clone)]
struct Visitor {
    principal: Option<Principal>,
    session: Option<Session>,
}

impl Auth {
    /// By what `[http]` says.
    ///
    /// # Errors
    /// A user's hash cannot be used, or the system has no random numbers.
    pub(super) fn new(http: &HttpSection) -> Result<Auth, HttpError> {
        Ok(Auth {
            hosts: Hosts::new(http.hosts.clone()),
            passwords: (!http.users.is_empty()).then(|| Passwords::new(&http.users)).transpose()?,
            sessions: Sessions::new(http.session_idle, http.session),
            csrf: Token::new()?,
            is_tls: http.tls.is_some(),
        })
    }

    /// Whether the listener speaks TLS.
    pub(super) fn is_tls(&self) -> bool {
        self.is_tls
    }

    /// Lets a request in, or says why not; what follows finds in it who asks.
    async fn admit(&self, request: &mut Request) -> Result<(), ApiError> {
        let headers = request.headers();
        self.hosts.check(headers)?;
        let is_safe = gate::is_safe(request.method());
        let path = request.uri().path();
        if !is_safe || path.starts_with("/api/") {
            self.hosts.check_origin(headers)?;
        }
        let guest = request.extensions().get::<Arc<Guest>>().cloned();
        let visitor = self.visitor(headers, request.method(), guest.as_deref()).await?;
        if !is_safe {
            if visitor.principal.is_none() && path != sign_in::PATH {
                return Err(ApiError::not_signed_in());
            }
            gate::check_unsafe(headers, self.csrf_of(&visitor))?;
        }
        if let Some(principal) = &visitor.principal {
            guest.iter().for_each(|guest| guest.greet());
            request.extensions_mut().insert(principal.clone());
        }
        request.extensions_mut().insert(visitor);
        Ok(())
    }

    async fn visitor(&self, headers: &HeaderMap, method: &Method, guest: Option<&Guest>) -> Result<Visitor, ApiError> {
        let nobody = Visitor { principal: None, session: None };
        let Some(passwords) = &self.passwords else {
            let local = Principal { name: "local".to_owned(), role: Role::Admin };
            return Ok(Visitor { principal: Some(local), ..nobody });
        };
        let session = cookies(headers).find_map(|sent| self.sessions.find(sent, Instant::now()));
        if let Some(session) = session {
            return Ok(Visitor { principal: Some(session.principal.clone()), session: Some(session) });
        }
        // What changes something takes a session: a browser repeats these credentials whatever page asks it to.
        let takes_basic = matches!(*method, Method::GET | Method::HEAD);
        let (Some(sent), Some(guest), true) = (headers.get(header::AUTHORIZATION), guest, takes_basic) else {
            return Ok(nobody);
        };
        match passwords.basic(guest.network(), sent.as_bytes()).await {
            None => Ok(nobody),
            Some(Outcome::Known(principal)) => Ok(Visitor { principal: Some(principal), ..nobody }),
            Some(outcome) => Err(sign_in::refusal(&outcome)),
        }
    }

    fn csrf_of<'a>(&'a self, visitor: &'a Visitor) -> &'a Token {
        visitor.session.as_ref().map_or(&self.csrf, |session| &session.csrf)
    }
}

/// What the request says the session's cookie is. More than one may be there: another program on this host may set cookies too.
fn cookies(headers: &HeaderMap) -> impl Iterator<Item = &[u8]> {
    let pairs = headers.get_all(header::COOKIE).iter().filter_map(|cookie| cookie.to_str().ok());
    let pairs = pairs.flat_map(|cookie| cookie.split(';')).filter_map(|pair| pair.trim().split_once('='));
    pairs.filter(|(name, _)| *name == COOKIE).map(|(_, value)| value.as_bytes()).take(4)
}

/// The layer that finds out who asks, and ends requests that nobody may make.
pub(super) async fn layer(State(site): State<Arc<Site>>, mut request: Request, next: Next) -> Response {
    let asks_in_person = request.headers().contains_key(header::AUTHORIZATION) || request.uri().path() == "/metrics";
    let mut response = match site.auth.admit(&mut request).await {
        Ok(()) => next.run(request).await,
        Err(error) => error.into_response(),
    };
    if response.status() == StatusCode::UNAUTHORIZED {
        // A browser would ask for a password in a window of its own, over the page that has asked already.
        let challenge = if asks_in_person { "Basic realm=\"millwright\", charset=\"UTF-8\"" } else { "Session" };
        response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static(challenge));
    }
    response
}

/// A route that takes this serves whoever may see.
#[derive(Debug, Clone)]
pub(crate) struct Viewer(pub(crate) Principal);

/// A route that takes this serves engineers.
#[derive(Debug, Clone)]
pub(crate) struct Engineer(pub(crate) Principal);

/// A route that takes this serves administrators.
#[derive(Debug, Clone)]
pub(crate) struct Admin(pub(crate) Principal);

impl<S: Sync> FromRequestParts<S> for Viewer {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Viewer, ApiError> {
        with_role(parts, Role::Viewer).map(Viewer)
    }
}

impl<S: Sync> FromRequestParts<S> for Engineer {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Engineer, ApiError> {
        with_role(parts, Role::Engineer).map(Engineer)
    }
}

impl<S: Sync> FromRequestParts<S> for Admin {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Admin, ApiError> {
        with_role(parts, Role::Admin).map(Admin)
    }
}

fn with_role(parts: &Parts, role: Role) -> Result<Principal, ApiError> {
    let Some(principal) = parts.extensions.get::<Principal>() else { return Err(ApiError::not_signed_in()) };
    if principal.role < role {
        let Principal { name, role: has } = principal;
        let (has, role) = (has.word(), role.word());
        return Err(ApiError::not_allowed(format!("this needs the role {role}; {name} has {has}")));
    }
    Ok(principal.clone())
}

/// How long somebody may go on being shown what happens: as long as the session holds, which watching keeps in use.
pub(crate) struct Stay {
    site: Arc<Site>,
    session: Option<Session>,
}

impl FromRequestParts<Arc<Site>> for Stay {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, site: &Arc<Site>) -> Result<Stay, ApiError> {
        let session = parts.extensions.get::<Visitor>().and_then(|visitor| visitor.session.clone());
        Ok(Stay { site: Arc::clone(site), session })
    }
}

impl Stay {
    /// Waits until the session has ended: signed out, or over. Never, where there is no session.
    pub(crate) async fn over(self) {
        let Some(mut session) = self.session else { return std::future::pending().await };
        loop {
            let look = (session.left / 2).clamp(LOOK_EVERY_MIN, LOOK_EVERY);
            tokio::select! {
                _ = session.alive.changed() => return,
                () = tokio::time::sleep(look) => {}
            }
            match self.site.auth.sessions.keep(session.key, Instant::now()) {
                Some(kept) => session = kept,
                None => return,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // A role may do what those before it may, and nothing of those after it.
    #[test]
    fn roles_are_ordered() {
        assert!(Role::Viewer < Role::Engineer && Role::Engineer < Role::Admin);
    }

    // The session is found among other cookies, in one header or in several.
    #[test]
    fn the_cookie_is_found() {
        let mut headers = HeaderMap::new();
        headers.append(header::COOKIE, HeaderValue::from_static("theme=dark; mw_session=abc; xmw_session=no"));
        headers.append(header::COOKIE, HeaderValue::from_static("mw_session=def"));
        assert_eq!(cookies(&headers).collect::<Vec<_>>(), [b"abc", b"def"]);
    }
}
