//! Who may come in by HTTP, and what they may do.
//!
//! Owns the judgement who asks ([`Principal`]) and the extractors by which a route says whom it serves: a handler that has an
//! [`Engineer`] is proof that one asks. Never reads the configuration's file, never stores a password.

use std::sync::Arc;

use axum::extract::{FromRequestParts, Request, State};
use axum::http::request::Parts;
use axum::middleware::Next;
use axum::response::Response;
use serde::Serialize;

use super::Site;
use super::error::ApiError;

/// What somebody may do; each may do what those before it may.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Role {
    /// Sees everything, changes nothing.
    Viewer,
    /// Acknowledges, comments, silences, commissions, promotes.
    Engineer,
    /// Brings new models in.
    Admin,
}

/// Who asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Principal {
    /// The user's name; `local` where nobody has to sign in.
    pub(crate) name: String,
    pub(crate) role: Role,
}

/// Who may come in.
pub(crate) struct Auth {}

impl Auth {
    /// Everybody who can reach the listener is `local`, who may do everything.
    pub(crate) fn open() -> Auth {
        Auth {}
    }

    fn principal(&self) -> Option<Principal> {
        Some(Principal { name: "local".to_owned(), role: Role::Admin })
    }
}

/// The layer that finds out who asks.
pub(super) async fn layer(State(site): State<Arc<Site>>, mut request: Request, next: Next) -> Response {
    if let Some(principal) = site.auth.principal() {
        request.extensions_mut().insert(principal);
    }
    next.run(request).await
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

impl Role {
    /// As it is written in the configuration and the API.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Role::Viewer => "viewer",
            Role::Engineer => "engineer",
            Role::Admin => "admin",
        }
    }
}
