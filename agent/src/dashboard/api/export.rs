//! `GET /export`: what `millwright export` writes, as a download.
//!
//! Owns the way of an export to its client: a thread that may block makes it and hands it over in pieces through a channel of
//! [`PIECES_MAX`], so that it goes as fast as the client reads and holds no more than that. [`EXPORTS_MAX`] at a time. The answer begins once
//! it is known what is there, so that a mistake is answered as one; while the log is searched for that, the connection counts as one on which
//! something happens. Ends when the client goes away or the gateway stops; what is not whole then ends without its last chunk.

use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use axum::Extension;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::Response;
use futures_util::stream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot, watch};

use super::super::Site;
use super::super::error::ApiError;
use super::super::listener::Guest;
use super::ask::{Query, failed, missing, wrong};
use crate::config::Config;
use crate::export::{
    ExportError, Fault, Format, Place, Plan, Request, What, parse_every, parse_format, parse_time, parse_what,
};
use crate::ids::{AssetId, ChannelName};

/// Exports at a time: each takes a core while its client reads as fast.
const EXPORTS_MAX: usize = 2;
/// Pieces on their way to one client.
const PIECES_MAX: usize = 4;
/// Bytes of a piece: with [`PIECES_MAX`] a quarter of a megabyte for each export.
const PIECE_BYTES: usize = 64 * 1024;
/// When to come again, seconds.
const RETRY_S: u64 = 10;
/// Assets and channels that a query may name; its length is limited too.
const NAMED_MAX: usize = 1_024;

/// How many there are, and whether they are to end.
#[derive(Debug)]
pub(crate) struct Exports {
    places: Arc<Semaphore>,
    stop: watch::Receiver<bool>,
}

impl Exports {
    /// Exports end at `stop`.
    pub(super) fn new(stop: watch::Receiver<bool>) -> Exports {
        Exports { places: Arc::new(Semaphore::new(EXPORTS_MAX)), stop }
    }
}

/// Whether the client is still there: set when what waits for the export is dropped.
struct Gone(Arc<AtomicBool>);

impl Drop for Gone {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

pub(super) async fn export(
    State(site): State<Arc<Site>>,
    guest: Option<Extension<Arc<Guest>>>,
    Query(asked): Query<Vec<(String, String)>>,
) -> Result<Response, ApiError> {
    let request = read(asked)?;
    let exports = &site.api.exports;
    let place = Arc::clone(&exports.places).try_acquire_owned().map_err(|_| too_many())?;
    let (what, format) = (request.what, request.format);
    let gone = Gone(Arc::new(AtomicBool::new(false)));
    let (pieces, mut arriving) = mpsc::channel(PIECES_MAX);
    let (begun, begins) = oneshot::channel();
    let config = Arc::clone(&site.api.workshop.config);
    let work = Work {
        request,
        config: Arc::clone(&config),
        guest: guest.map(|guest| guest.0),
        gone: Arc::clone(&gone.0),
        stop: exports.stop.clone(),
        pieces,
        _place: place,
    };
    // The runtime waits for this thread at the end; it ends with the client or the gateway.
    tokio::task::spawn_blocking(move || work.run(begun));
    match begins.await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => return Err(refused(error)),
        Err(error) => return Err(failed("an export", &error)),
    }
    let body = stream::poll_fn(move |cx| {
        let _ = &gone;
        arriving.poll_recv(cx)
    });
    let mut response = Response::new(Body::from_stream(body));
    let kind = match format {
        Format::Csv => "text/csv; charset=utf-8; header=present",
        Format::Parquet => "application/vnd.apache.parquet",
    };
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    if let Ok(name) = HeaderValue::from_str(&disposition(config.gateway.id.as_str(), what, format)) {
        headers.insert(header::CONTENT_DISPOSITION, name);
    }
    Ok(response)
}

/// Names the download. Only what every system takes in a file's name.
fn disposition(gateway: &str, what: What, format: Format) -> String {
    let plain = |c: char| if c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.') { c } else { '_' };
    let gateway: String = gateway.chars().map(plain).collect();
    let what = match what {
        What::Readings => "readings",
        What::Alerts => "alerts",
        What::Feedback => "feedback",
    };
    format!("attachment; filename=\"{gateway}-{what}.{}\"", format.extension())
}

/// Reads the query: the options of the command, `asset` and `channel` as often as wanted.
fn read(asked: Vec<(String, String)>) -> Result<Request, ApiError> {
    let mut request = Request::new(What::Readings);
    let mut seen: Vec<String> = Vec::new();
    for (name, value) in asked {
        let repeats = matches!(name.as_str(), "asset" | "channel");
        if !repeats && seen.contains(&name) {
            return Err(bad(format!("`{}` is given twice", crate::ids::shorten(&name))));
        }
        let said = match name.as_str() {
            "what" => parse_what(&value).map(|what| request.what = what),
            "every" => parse_every(&value).map(|every| request.every = every),
            "format" => parse_format(&value).map(|format| request.format = format),
            "from" => parse_time(&value).map(|from_us| request.from_us = Some(from_us)),
            "to" => parse_time(&value).map(|to_us| request.to_us = Some(to_us)),
            "asset" => {
                request.assets.push(AssetId::parse(&value).map_err(|error| bad(error.to_string()))?);
                Ok(())
            }
            "channel" => {
                request.channels.push(ChannelName::parse(&value).map_err(|error| bad(error.to_string()))?);
                Ok(())
            }
            _ => return Err(bad(format!("there is no parameter `{}`", crate::ids::shorten(&name)))),
        };
        said.map_err(|error| bad(error.to_string()))?;
        if request.assets.len() > NAMED_MAX || request.channels.len() > NAMED_MAX {
            return Err(bad(format!("more than {NAMED_MAX} assets or channels are named")));
        }
        if !repeats {
            seen.push(name);
        }
    }
    Ok(request)
}

fn bad(message: String) -> ApiError {
    wrong("bad-query", message, "see /api/v1/openapi.json for its parameters")
}

fn too_many() -> ApiError {
    let text = format!("{EXPORTS_MAX} exports are being made, and no more at a time");
    let remedy = "come again when one is done, or run `millwright export` beside the gateway";
    ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "too-many-exports", text, remedy).retry_after_s(RETRY_S)
}

/// Why there is no export.
fn refused(error: ExportError) -> ApiError {
    match error.fault() {
        Fault::Words => bad(error.to_string()),
        Fault::Missing => match error {
            // Where the gateway's files are is not for clients to know.
            ExportError::Log(_) => {
                missing("nothing-there", "the gateway has recorded nothing yet".to_owned(), "come again later")
            }
            error => missing("nothing-there", error.to_string(), "ask for what is there, or for another span"),
        },
        Fault::Files => match error {
            ExportError::Ended => super::desk::busy("the gateway is stopping"),
            error => failed("an export", &error),
        },
    }
}

/// What the thread does.
struct Work {
    request: Request,
    config: Arc<Config>,
    guest: Option<Arc<Guest>>,
    gone: Arc<AtomicBool>,
    stop: watch::Receiver<bool>,
    pieces: mpsc::Sender<io::Result<Bytes>>,
    _place: OwnedSemaphorePermit,
}

impl Work {
    fn run(self, begun: oneshot::Sender<Result<(), ExportError>>) {
        let Work { request, config, guest, gone, stop, pieces, _place } = self;
        let mut tell = |_done: f64| {
            if let Some(guest) = &guest {
                guest.is_served();
            }
            !gone.load(Ordering::Relaxed) && !*stop.borrow()
        };
        let place = Place { data_dir: &config.gateway.data_dir, sources: &config.sources };
        let plan = match Plan::make(place, request, &mut tell) {
            Ok(plan) => plan,
            Err(error) => {
                // Who asked may be gone.
                let _ = begun.send(Err(error));
                return;
            }
        };
        if begun.send(Ok(())).is_err() {
            return;
        }
        let mut out = Pieces { gathered: Vec::with_capacity(PIECE_BYTES), pieces };
        let written = plan.write(&mut out, &mut tell).map_err(|error| match error {
            ExportError::Write(error) => error,
            error => io::Error::other(error),
        });
        if let Err(error) = written.and_then(|_| out.flush()) {
            if error.kind() != io::ErrorKind::BrokenPipe && !*stop.borrow() {
                tracing::warn!(%error, "an export broke off");
            }
            // The client is to see that it is not whole: the connection ends without the last chunk.
            let _ = out.pieces.blocking_send(Err(error));
        }
    }
}

/// Cuts what is written into pieces, and waits while the client has enough of them.
struct Pieces {
    gathered: Vec<u8>,
    pieces: mpsc::Sender<io::Result<Bytes>>,
}

impl Write for Pieces {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let room = PIECE_BYTES.saturating_sub(self.gathered.len()).max(1);
        let taken = bytes.get(..room).unwrap_or(bytes);
        self.gathered.extend_from_slice(taken);
        if self.gathered.len() >= PIECE_BYTES {
            self.flush()?;
        }
        Ok(taken.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.gathered.is_empty() {
            return Ok(());
        }
        let piece = Bytes::from(std::mem::replace(&mut self.gathered, Vec::with_capacity(PIECE_BYTES)));
        self.pieces.blocking_send(Ok(piece)).map_err(|_| io::ErrorKind::BrokenPipe.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn query(pairs: &[(&str, &str)]) -> Result<Request, ApiError> {
        read(pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect())
    }

    // A query says what the command's options say, and assets and channels as often as wanted, in their order.
    #[test]
    fn a_query_is_read() {
        let asked =
            query(&[("asset", "pump-1"), ("channel", "b"), ("channel", "a"), ("asset", "fan"), ("every", "5m")])
                .unwrap();
        assert_eq!(asked.assets.iter().map(AssetId::as_str).collect::<Vec<_>>(), ["pump-1", "fan"]);
        assert_eq!(asked.channels.iter().map(ChannelName::as_str).collect::<Vec<_>>(), ["b", "a"]);
        assert_eq!(asked.every, crate::export::Every::Step(300_000_000));
        assert!(query(&[]).unwrap().assets.is_empty());
    }

    // Whatever is not understood is refused rather than passed over.
    #[test]
    fn mistakes_are_refused() {
        let too_many = vec![("asset", "a"); NAMED_MAX + 1];
        let mistakes: [&[(&str, &str)]; 9] = [
            &[("assets", "a")],
            &[("what", "everything")],
            &[("every", "7s")],
            &[("every", "10s"), ("every", "10s")],
            &[("format", "xlsx")],
            &[("from", "yesterday")],
            &[("asset", "a/b")],
            &[("channel", "")],
            &too_many,
        ];
        for mistake in mistakes {
            assert!(query(mistake).is_err(), "{:?}", mistake.first());
        }
    }

    // A download's name has nothing in it that a header or a file system takes amiss.
    #[test]
    fn names_of_downloads_are_plain() {
        let name = disposition("gw \"1\"\\ü", What::Alerts, Format::Parquet);
        assert_eq!(name, "attachment; filename=\"gw__1___-alerts.parquet\"");
    }
}
