//! HTTP: the dashboard, its API, `/healthz` and `/metrics`.
//!
//! Owns what HTTP clients see; nothing outside this folder names `axum`. [`listener`] bounds who may connect, [`auth`] says
//! who asks, [`api`] and [`pages`] answer. Never folds, never scores, never writes the log.

pub mod api;
mod auth;
mod body;
mod error;
mod headers;
mod listener;
mod live;
mod packed;
mod pages;
mod tls;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{DefaultBodyLimit, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Router, middleware};
use millwright_broker::{Tls, TlsError, TlsState, UserError};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use self::api::{Api, ApiParts};
use self::auth::{Auth, Viewer};
use self::body::BODY_BYTES_MAX;
use self::error::ApiError;
use self::listener::Door;
use crate::config::HttpSection;
use crate::descriptors;
use crate::metrics;
use crate::status::StatusSource;

/// How long the listener may take to end; it gives its connections half of that.
const STOP_MAX: Duration = Duration::from_secs(1);

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
        .nest("/api/v1", api::routes().merge(auth::sign_in::routes()))
        .merge(pages::routes())
        .fallback(async || ApiError::not_found("page at this address"))
        .method_not_allowed_fallback(async || ApiError::wrong_method())
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        .layer(middleware::from_fn_with_state(Arc::clone(&site), auth::layer))
        .layer(middleware::from_fn_with_state(Arc::clone(&site), headers::layer))
        .with_state(site)
}

/// The running HTTP server.
pub struct Dashboard {
    addr: SocketAddr,
    tls: Option<Arc<Tls>>,
    stop: watch::Sender<bool>,
    tasks: Vec<JoinHandle<()>>,
}

/// Why HTTP cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum HttpError {
    /// The address cannot be had.
    #[error("cannot listen for HTTP on {addr}: {error}; set another `listen` in [http], or stop what uses the port")]
    Listen {
        /// The address.
        addr: SocketAddr,
        /// What the system said.
        error: std::io::Error,
    },
    /// A user of `[[http.user]]`.
    #[error(transparent)]
    User(#[from] UserError),
    /// The files of `[http.tls]`.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// Nothing secret can be made.
    #[error("the system has no random numbers: {0}")]
    Random(#[from] getrandom::Error),
}

impl Dashboard {
    /// Listens and serves until [`Dashboard::stop`].
    ///
    /// # Errors
    /// The address cannot be had, or what `[http]` names cannot be used.
    pub async fn start(parts: DashboardParts) -> Result<Dashboard, HttpError> {
        let DashboardParts { http, status, api } = parts;
        let auth = Auth::new(&http)?;
        let tls = http.tls.map(|files| Tls::load(files).map(Arc::new)).transpose()?;
        let failed = |error| HttpError::Listen { addr: http.listen, error };
        let listener = TcpListener::bind(http.listen).await.map_err(failed)?;
        let addr = listener.local_addr().map_err(failed)?;
        let (stop, stopped) = watch::channel(false);
        let site = Arc::new(Site { status, auth, api: Api::new(api, stopped.clone()) });
        let door = Door {
            listener,
            tls: tls.clone(),
            routes: router(Arc::clone(&site)),
            connections_max: descriptors::http_connections_max(),
            per_network_max: http.connections_per_network_max,
        };
        let hub = tokio::spawn(live::run(site, stopped.clone()));
        let mut tasks = vec![tokio::spawn(listener::run(door, stopped.clone())), hub];
        tasks.extend(tls.clone().map(|tls| tokio::spawn(tls.watch(stopped))));
        Ok(Dashboard { addr, tls, stop, tasks })
    }

    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Reads the certificate again, now; connections that are open stay as they are. Without TLS there is nothing to do.
    pub fn reload_certificates(&self) {
        if let Some(tls) = &self.tls {
            tls.renew();
        }
    }

    /// Tells how TLS stands whenever it is asked.
    pub fn tls_view(&self) -> impl Fn() -> Option<TlsState> + Send + Sync + 'static {
        let tls = self.tls.clone();
        move || tls.as_ref().map(|tls| tls.state())
    }

    /// Stops listening. A client that holds its connection open does not hold the gateway up.
    pub async fn stop(self) {
        self.stop.send_replace(true);
        for mut task in self.tasks {
            if tokio::time::timeout(STOP_MAX, &mut task).await.is_err() {
                task.abort();
            }
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
