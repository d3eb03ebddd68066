//! Certificates, made once a run by the program itself, as an operator makes them.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use anyhow::{Context, ensure};
use harness::gateway;
use tempfile::TempDir;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::{ClientConfig, RootCertStore, ServerConfig, crypto::ring};

use crate::stage::PROGRAM;

/// Who logs in, and with what.
pub(crate) const USER: &str = "gateway-1";
pub(crate) const PASSWORD: &str = "correct horse";

/// An authority and the certificate of a server at 127.0.0.1.
#[derive(Debug)]
pub(crate) struct Secrets {
    folder: PathBuf,
}

/// Statics are not dropped: who ends the run takes the folder away.
static FOLDER: Mutex<Option<TempDir>> = Mutex::new(None);

impl Secrets {
    /// Those of this run.
    pub(crate) fn get() -> anyhow::Result<&'static Secrets> {
        static MADE: OnceLock<Result<Secrets, String>> = OnceLock::new();
        let made = MADE.get_or_init(|| Secrets::make().map_err(|error| format!("{error:#}")));
        made.as_ref().map_err(|error| anyhow::anyhow!("{error}"))
    }

    fn make() -> anyhow::Result<Secrets> {
        let owner = tempfile::tempdir()?;
        let dir = owner.path().to_str().context("the folder's name is text")?;
        for what in [&["ca"] as &[&str], &["server", "--host", "127.0.0.1"]] {
            let output = gateway::run(PROGRAM, &[&["cert"], what, &["--dir", dir]].concat())?;
            ensure!(output.status.success(), "cert {what:?}: {}", String::from_utf8_lossy(&output.stderr));
        }
        let folder = owner.path().to_owned();
        *FOLDER.lock().unwrap_or_else(PoisonError::into_inner) = Some(owner);
        Ok(Secrets { folder })
    }

    /// `ca.crt`, `server.crt` or `server.key`.
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// How a client of these tests trusts the authority.
    pub(crate) fn client(&self) -> anyhow::Result<Arc<ClientConfig>> {
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_file_iter(self.file("ca.crt"))? {
            roots.add(certificate?)?;
        }
        let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()));
        let builder = builder.with_safe_default_protocol_versions()?;
        Ok(Arc::new(builder.with_root_certificates(roots).with_no_client_auth()))
    }

    /// How a server of these tests shows its certificate.
    pub(crate) fn server(&self) -> anyhow::Result<Arc<ServerConfig>> {
        let chain = CertificateDer::pem_file_iter(self.file("server.crt"))?.collect::<Result<Vec<_>, _>>()?;
        let key = PrivateKeyDer::from_pem_file(self.file("server.key"))?;
        let builder = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()));
        let builder = builder.with_safe_default_protocol_versions()?;
        Ok(Arc::new(builder.with_no_client_auth().with_single_cert(chain, key)?))
    }

    /// Takes the folder away at the end of a run.
    pub(crate) fn forget() {
        drop(FOLDER.lock().unwrap_or_else(PoisonError::into_inner).take());
    }
}
