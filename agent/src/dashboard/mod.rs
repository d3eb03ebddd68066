//! HTTP: the dashboard, its API, `/healthz` and `/metrics`.
//!
//! Owns what HTTP clients see; nothing outside this folder names `axum`. [`listener`] bounds who may connect, [`auth`] says
//! who asks, [`api`] and [`pages`] answer. Never folds, never scores, never writes the log.

pub mod api;
mod auth;
mod error;
mod headers;
mod listener;
mod live;
mod pages;

use std::net::SocketAddr;
use std::sync::Arc;

use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Router, middleware};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use self::api::{Api, ApiParts};
use self::auth::{Auth, Viewer};
use self::error::ApiError;
use self::listener::Bounded;
use crate::config::HttpSection;
use crate::metrics;
use crate::status::StatusSource;

/// What HTTP is served from.
pub struct DashboardParts {
    /// `[http]`
    pub http: HttpSection,
    /// Everything that the gateway says about itself.
    pub status: Arc<StatusSource>,
    /// What the API works with.
    pub api: ApiParts,
}

/// What every route can reach.
pub(crate) struct Site {
    pub(crate) status: Arc<StatusSource>,
    pub(crate) auth: Auth,
    pub(crate) api: Api,
}

/// All routes, and the layers that hold for each. The last layer sees a request first.
fn router(site: Arc<Site>) -> Router {
    Router::new()
        .route("/healthz", get(healthz))
        .route("/metrics", get(figures))
        .nest("/api/v1", api::routes())
        .merge(pages::routes())
        .fallback(async || ApiError::not_found("page at this address"))
        .layer(middleware::from_fn_with_state(Arc::clone(&site), auth::layer))
        .layer(middleware::from_fn(headers::layer))
        .with_state(site)
}

/// The running HTTP server.
pub struct Dashboard {
    addr: SocketAddr,
    stop: watch::Sender<bool>,
    task: JoinHandle<()>,
    hub: JoinHandle<()>,
}

/// Why HTTP cannot be served.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen for HTTP on {addr}: {error}; set another `listen` in [http], or stop what uses the port")]
pub struct HttpError {
    addr: SocketAddr,
    error: std::io::Error,
}

impl Dashboard {
    /// Listens and serves until [`Dashboard::stop`].
    ///
    /// # Errors
    /// The address cannot be had.
    pub async fn start(parts: DashboardParts) -> Result<Dashboard, HttpError> {
        let addr = parts.http.listen;
        let failed = |error| HttpError { addr, error };
        let listener = TcpListener::bind(addr).await.map_err(failed)?;
        let addr = listener.local_addr().map_err(failed)?;
        let (stop, mut stopped) = watch::channel(false);
        let api = Api::new(parts.api, stopped.clone());
        let site = Arc::new(Site { status: parts.status, auth: Auth::open(), api });
        let hub = tokio::spawn(live::run(Arc::clone(&site), stopped.clone()));
        let routes = router(site);
        let task = tokio::spawn(async move {
            let until = async move {
                // An error means that the owner is gone, which is a reason to stop too.
                let _ = stopped.wait_for(|stop| *stop).await;
            };
            if let Err(error) = axum::serve(Bounded::new(listener), routes).with_graceful_shutdown(until).await {
                tracing::error!(%error, "HTTP is no longer served");
            }
        });
        Ok(Dashboard { addr, stop, task, hub })
    }

    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Stops listening. A client that holds its connection open does not hold the gateway up.
    pub async fn stop(mut self) {
        self.stop.send_replace(true);
        if tokio::time::timeout(std::time::Duration::from_secs(1), &mut self.task).await.is_err() {
            self.task.abort();
        }
        if let Err(error) = self.hub.await {
            tracing::error!(%error, "the hub of live views ended badly");
        }
    }
}

async fn healthz(State(site): State<Arc<Site>>) -> Response {
    match site.status.trouble() {
        None => {
            let warnings = site.status.warnings().into_iter().map(|warning| format!("warning: {warning}\n"));
            (StatusCode::OK, std::iter::once("ok\n".to_owned()).chain(warnings).collect::<String>()).into_response()
        }
        Some(reason) => (StatusCode::SERVICE_UNAVAILABLE, format!("{reason}\n")).into_response(),
    }
}

async fn figures(_: Viewer, State(site): State<Arc<Site>>) -> Response {
    match metrics::text(&site.status) {
        Ok(text) => ([(header::CONTENT_TYPE, metrics::CONTENT_TYPE)], text).into_response(),
        Err(_) => ApiError::internal().into_response(),
    }
}
