//! TLS towards upstreams, and from commands to brokers.
//!
//! Owns how trust is set up: the system's certificates, or those of one file; our own certificate if there is one. Files are read anew
//! for each connection, so that a renewed certificate needs no restart.

use std::path::Path;
use std::sync::Arc;

use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::{ClientConfig, RootCertStore, crypto::ring};

use super::sink::{SinkError, text_file};
use crate::config::upstream::UpstreamTls;

/// The longest PEM file, bytes: a bundle of all public authorities is a quarter of it.
const PEM_BYTES_MAX: u64 = 1 << 20;

/// The configuration of a client.
///
/// # Errors
/// A file cannot be read or is not what it should be.
pub(crate) fn client(tls: &UpstreamTls) -> Result<Arc<ClientConfig>, SinkError> {
    let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|error| SinkError::setup(error.to_string(), "this is a fault of the program"))?
        .with_root_certificates(roots(tls.ca.as_deref())?);
    let config = match &tls.identity {
        None => builder.with_no_client_auth(),
        Some((certificate, key)) => {
            let wrong = |error| {
                let what = format!("{} and {} do not fit: {error}", certificate.display(), key.display());
                SinkError::setup(what, "name a certificate and its own key")
            };
            builder.with_client_auth_cert(certificates(certificate)?, private_key(key)?).map_err(wrong)?
        }
    };
    Ok(Arc::new(config))
}

fn roots(ca: Option<&Path>) -> Result<RootCertStore, SinkError> {
    let mut roots = RootCertStore::empty();
    match ca {
        Some(path) => {
            for certificate in certificates(path)? {
                roots.add(certificate).map_err(|error| {
                    let what = format!("{} holds a certificate that cannot be trusted: {error}", path.display());
                    SinkError::setup(what, "name the certificate of the authority")
                })?;
            }
        }
        None => {
            let found = rustls_native_certs::load_native_certs();
            roots.add_parsable_certificates(found.certs);
            if roots.is_empty() {
                let remedy =
                    "install the system's certificates, or name the authority (tls_ca, or --ca on the command line)";
                return Err(SinkError::setup("this system trusts nobody", remedy));
            }
        }
    }
    Ok(roots)
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, SinkError> {
    let text = text_file(path, PEM_BYTES_MAX)?;
    let wrong = || SinkError::setup(format!("{} holds no certificate", path.display()), "name a PEM file that does");
    let found = CertificateDer::pem_slice_iter(text.as_bytes()).collect::<Result<Vec<_>, _>>().map_err(|_| wrong())?;
    if found.is_empty() { Err(wrong()) } else { Ok(found) }
}

fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, SinkError> {
    let text = text_file(path, PEM_BYTES_MAX)?;
    let wrong = |_| SinkError::setup(format!("{} holds no private key", path.display()), "name a PEM file that does");
    PrivateKeyDer::from_pem_slice(text.as_bytes()).map_err(wrong)
}
