//! Documents that the program carries compressed, as `build.rs` has packed them.
//!
//! Owns who gets them as they are: whoever takes gzip, which every browser does. For others they are unpacked.

use std::io::Read;

use axum::body::Bytes;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use flate2::read::GzDecoder;

/// A document, compressed with gzip.
#[derive(Clone, Copy)]
pub(super) struct Packed(pub(super) &'static [u8]);

impl Packed {
    /// It as a response of this media type, as whoever `asked` can read it.
    pub(super) fn respond(self, kind: &'static str, asked: &HeaderMap) -> Response {
        let about = [(header::CONTENT_TYPE, kind), (header::VARY, "Accept-Encoding")];
        if takes_gzip(asked) {
            return (about, [(header::CONTENT_ENCODING, "gzip")], Bytes::from_static(self.0)).into_response();
        }
        match self.unpack() {
            Ok(bytes) => (about, bytes).into_response(),
            Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
        }
    }

    /// Its text.
    pub(super) fn unpack(self) -> std::io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        GzDecoder::new(self.0).read_to_end(&mut bytes)?;
        Ok(bytes)
    }
}

/// Whether a request's `Accept-Encoding` names gzip and does not refuse it (RFC 9110, 12.5.3).
fn takes_gzip(asked: &HeaderMap) -> bool {
    let values = asked.get_all(header::ACCEPT_ENCODING).iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).any(|coding| {
        let (name, weight) = coding.split_once(';').unwrap_or((coding, ""));
        let weight: String = weight.chars().filter(|c| !c.is_whitespace()).collect();
        let refused = weight.strip_prefix("q=").is_some_and(|q| q.parse() == Ok(0.0_f32));
        name.trim().eq_ignore_ascii_case("gzip") && !refused
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asking(accept: &str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(header::ACCEPT_ENCODING, accept.parse().unwrap());
        headers
    }

    // Either way it is the same document, and says what it is.
    #[tokio::test]
    async fn both_ways_hold_the_same() {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
        std::io::Write::write_all(&mut encoder, b"the page").unwrap();
        let packed = Packed(Box::leak(encoder.finish().unwrap().into_boxed_slice()));
        for (accept, coding) in [("gzip", Some("gzip")), ("identity", None)] {
            let response = packed.respond("text/plain", &asking(accept));
            let told =
                response.headers().get(header::CONTENT_ENCODING).map(|coding| coding.to_str().unwrap().to_owned());
            let body = axum::body::to_bytes(response.into_body(), 1_000).await.unwrap();
            assert_eq!(told.as_deref(), coding);
            assert_eq!(&*body, if coding.is_some() { packed.0 } else { b"the page" }, "{accept}");
        }
    }

    // gzip is sent to who names it, with any weight but none.
    #[test]
    fn who_takes_gzip_gets_it() {
        for accept in ["gzip", "gzip, deflate, br, zstd", "br;q=1.0, GZIP; q=0.5"] {
            assert!(takes_gzip(&asking(accept)), "{accept}");
        }
        for accept in ["", "identity", "br", "gzip;q=0", "gzip; q=0.000, br", "xgzip"] {
            assert!(!takes_gzip(&asking(accept)), "{accept}");
        }
        assert!(!takes_gzip(&HeaderMap::new()));
    }
}
