//! HTTP: `/healthz`, `/metrics`, `/api/v1/status` and `/api/v1/models`.
//!
//! Owns what HTTP clients see; with its listener the only file that names `axum`. Reads what others publish in memory and never touches the
//! log or the pipeline, so that a slow client slows nobody.

mod listener;

use std::net::SocketAddr;
use std::sync::Arc;

use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::metrics;
use crate::status::StatusSource;
use listener::Bounded;

/// The running HTTP server.
pub struct Dashboard {
    addr: SocketAddr,
    stop: watch::Sender<bool>,
    task: JoinHandle<()>,
}

/// Why HTTP cannot be served.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen for HTTP on {addr}: {error}; set another `listen` in [http], or stop what uses the port")]
pub struct HttpError {
    addr: SocketAddr,
    error: std::io::Error,
}

impl Dashboard {
    /// Listens on `addr` and serves until [`Dashboard::stop`].
    ///
    /// # Errors
    /// The address cannot be had.
    pub async fn start(addr: SocketAddr, source: Arc<StatusSource>) -> Result<Dashboard, HttpError> {
        let failed = |error| HttpError { addr, error };
        let listener = TcpListener::bind(addr).await.map_err(failed)?;
        let addr = listener.local_addr().map_err(failed)?;
        let (stop, mut stopped) = watch::channel(false);
        let routes = Router::new()
            .route("/healthz", get(healthz))
            .route("/metrics", get(figures))
            .route("/api/v1/status", get(status))
            .route("/api/v1/models", get(models))
            .with_state(source);
        let task = tokio::spawn(async move {
            let until = async move {
                // An error means that the owner is gone, which is a reason to stop too.
                let _ = stopped.wait_for(|stop| *stop).await;
            };
            if let Err(error) = axum::serve(Bounded::new(listener), routes).with_graceful_shutdown(until).await {
                tracing::error!(%error, "HTTP is no longer served");
            }
        });
        Ok(Dashboard { addr, stop, task })
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
    }
}

async fn healthz(State(source): State<Arc<StatusSource>>) -> Response {
    match source.trouble() {
        None => {
            let warnings = source.warnings().into_iter().map(|warning| format!("warning: {warning}\n"));
            (StatusCode::OK, std::iter::once("ok\n".to_owned()).chain(warnings).collect::<String>()).into_response()
        }
        Some(reason) => (StatusCode::SERVICE_UNAVAILABLE, format!("{reason}\n")).into_response(),
    }
}

async fn figures(State(source): State<Arc<StatusSource>>) -> Response {
    match metrics::text(&source) {
        Ok(text) => ([(header::CONTENT_TYPE, metrics::CONTENT_TYPE)], text).into_response(),
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

async fn models(State(source): State<Arc<StatusSource>>) -> Response {
    Json(source.models.borrow().as_ref()).into_response()
}

async fn status(State(source): State<Arc<StatusSource>>) -> Response {
    Json(source.status()).into_response()
}
