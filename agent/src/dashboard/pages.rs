//! The pages of the dashboard and what they load, from the program itself.
//!
//! Owns the list of files in `web/` and how they are cached: a browser keeps them and asks each time whether they are still the
//! same, which costs no body. They hold no data, so everybody may have them; what they show comes from the API, which asks who
//! is there. Never reads a file at run time.

use std::sync::{Arc, LazyLock};

use axum::Router;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;

use super::Site;
use super::packed::Packed;

/// A file that is part of the program.
struct Page {
    /// Where it is served.
    path: &'static str,
    /// Its media type.
    kind: &'static str,
    /// What it holds.
    content: Packed,
}

const HTML: &str = "text/html; charset=utf-8";
const CSS: &str = "text/css; charset=utf-8";
const SCRIPT: &str = "text/javascript; charset=utf-8";
const SVG: &str = "image/svg+xml";
const WEB_MANIFEST: &str = "application/manifest+json";
const TEXT: &str = "text/plain; charset=utf-8";

/// Kept by the browser, and asked for again each time: an update of the gateway is seen at once.
const CACHING: &str = "no-cache";

macro_rules! pages {
    ($($path:literal, $file:literal, $kind:ident;)*) => {
        &[$(Page {
            path: $path,
            kind: $kind,
            content: Packed(include_bytes!(concat!(env!("OUT_DIR"), "/web/", $file, ".gz"))),
        },)*]
    };
}

/// Everything that is served.
static PAGES: &[Page] = pages! {
    "/", "index.html", HTML;
    "/web/manifest.webmanifest", "manifest.webmanifest", WEB_MANIFEST;
    "/web/icon.svg", "icon.svg", SVG;
    "/web/base.css", "base.css", CSS;
    "/web/plant.css", "plant.css", CSS;
    "/web/detail.css", "detail.css", CSS;
    "/web/theme.js", "theme.js", SCRIPT;
    "/web/app.js", "app.js", SCRIPT;
    "/web/api.js", "api.js", SCRIPT;
    "/web/chart.js", "chart.js", SCRIPT;
    "/web/dialog.js", "dialog.js", SCRIPT;
    "/web/dom.js", "dom.js", SCRIPT;
    "/web/format.js", "format.js", SCRIPT;
    "/web/live.js", "live.js", SCRIPT;
    "/web/shape.js", "shape.js", SCRIPT;
    "/web/store.js", "store.js", SCRIPT;
    "/web/views/alert.js", "views/alert.js", SCRIPT;
    "/web/views/asset.js", "views/asset.js", SCRIPT;
    "/web/views/commissioning.js", "views/commissioning.js", SCRIPT;
    "/web/views/devices.js", "views/devices.js", SCRIPT;
    "/web/views/history.js", "views/history.js", SCRIPT;
    "/web/views/models.js", "views/models.js", SCRIPT;
    "/web/views/plant.js", "views/plant.js", SCRIPT;
    "/web/views/sign-in.js", "views/sign-in.js", SCRIPT;
    "/web/views/silence.js", "views/silence.js", SCRIPT;
    "/web/views/wall.js", "views/wall.js", SCRIPT;
    "/web/vendor/uplot/uPlot.iife.min.js", "vendor/uplot/uPlot.iife.min.js", SCRIPT;
    "/web/vendor/uplot/uPlot.min.css", "vendor/uplot/uPlot.min.css", CSS;
    "/web/vendor/uplot/LICENSE", "vendor/uplot/LICENSE", TEXT;
};

/// One for all pages: it changes whenever one of them does. Weak, because it does not tell which of them is compressed.
static TAG: LazyLock<String> = LazyLock::new(|| {
    let mut all = Vec::new();
    for page in PAGES {
        all.extend_from_slice(page.content.0);
    }
    format!("W/\"{}\"", millwright_models::Digest::of(&all))
});

/// Everything outside `/api`.
pub(super) fn routes() -> Router<Arc<Site>> {
    let served = |page: &'static Page| get(async move |headers: HeaderMap| page.serve(&headers));
    PAGES.iter().fold(Router::new(), |router, page| router.route(page.path, served(page)))
}

impl Page {
    fn serve(&'static self, asked: &HeaderMap) -> Response {
        let known = asked.get(header::IF_NONE_MATCH).and_then(|tags| tags.to_str().ok());
        let caching = [(header::ETAG, TAG.as_str()), (header::CACHE_CONTROL, CACHING)];
        if known.is_some_and(|tags| tags.split(',').any(|tag| weak(tag.trim()) == weak(&TAG))) {
            return (StatusCode::NOT_MODIFIED, caching).into_response();
        }
        (caching, self.content.respond(self.kind, asked)).into_response()
    }
}

/// A tag to be compared as a weak one is (RFC 9110, 8.8.3.2).
fn weak(tag: &str) -> &str {
    tag.trim_start_matches("W/")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::Path;

    use super::*;

    /// What a browser may have to load in all.
    const WEIGHT_BYTES_MAX: usize = 300_000;

    // Every file of `web/` is served under its own name, but for the note on the version of what is vendored.
    #[test]
    fn every_file_is_served() {
        fn collect(folder: &Path, root: &Path, found: &mut BTreeSet<String>) {
            for entry in std::fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    collect(&path, root, found);
                } else {
                    found.insert(format!("/web/{}", path.strip_prefix(root).unwrap().display()));
                }
            }
        }
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/dashboard/web");
        let mut files = BTreeSet::new();
        collect(&root, &root, &mut files);
        files.remove("/web/vendor/uplot/VERSION");
        let served: BTreeSet<String> =
            PAGES.iter().map(|page| if page.path == "/" { "/web/index.html" } else { page.path }.to_owned()).collect();
        assert_eq!(files, served);
    }

    // A browser that has a page of this program gets no body again; one with another's does.
    #[test]
    fn pages_are_kept_until_they_change() {
        let page = PAGES.iter().find(|page| page.path == "/").unwrap();
        let asked = |tag: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::IF_NONE_MATCH, tag.parse().unwrap());
            page.serve(&headers).status()
        };
        assert_eq!(page.serve(&HeaderMap::new()).headers()[header::ETAG], TAG.as_str());
        assert_eq!(asked(&TAG), StatusCode::NOT_MODIFIED);
        assert_eq!(asked(&format!("\"another\", {}", weak(&TAG))), StatusCode::NOT_MODIFIED);
        assert_eq!(asked("\"another\""), StatusCode::OK);
    }

    // All pages together, uncompressed, weigh less than a phone in a hall can be asked to load.
    #[test]
    fn pages_are_light() {
        let weight: usize = PAGES.iter().map(|page| page.content.unpack().unwrap().len()).sum();
        assert!(weight <= WEIGHT_BYTES_MAX, "{weight} bytes");
    }

    // Nothing is loaded from elsewhere, nothing is inline, and no data is ever parsed as HTML: what an asset is called cannot
    // become a script.
    #[test]
    fn pages_load_only_what_is_served() {
        for page in PAGES.iter().filter(|page| !page.path.contains("/vendor/")) {
            let text = String::from_utf8(page.content.unpack().unwrap()).unwrap();
            let text = text.replace("http://www.w3.org/2000/svg", "");
            for word in
                ["http://", "https://", "innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval("]
            {
                assert!(!text.contains(word), "{} holds `{word}`", page.path);
            }
            if page.kind == HTML {
                for word in ["style=", "onclick=", "onload=", "<style", "<script>"] {
                    assert!(!text.contains(word), "{} holds `{word}`", page.path);
                }
            }
        }
    }
}
