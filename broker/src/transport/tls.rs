//! TLS of the listeners: certificates from files, checked before they serve, and replaced while clients are connected.
//!
//! Owns the files' names and what was made of them. A file that changes is seen within [`LOOK_EVERY`]; what is wrong with it
//! is told once, and the certificates that worked go on working. Only TLS 1.2 and 1.3, without early data. Never logs
//! what a key file holds.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, SystemTime};

use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::{self, PemObject};
use tokio_rustls::rustls::pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer};
use tokio_rustls::rustls::server::danger::ClientCertVerifier;
use tokio_rustls::rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use tokio_rustls::rustls::{self, RootCertStore, ServerConfig, version};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use crate::clock;

/// How often the files are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// The largest file that is read, in bytes: a chain of certificates is some kilobytes, a list of revoked ones may be more.
const FILE_BYTES_MAX: u64 = 4 * 1024 * 1024;

/// The longest name of a client that is taken from its certificate, in bytes.
const NAME_BYTES_MAX: usize = 256;

/// Whether clients show certificates.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ClientCertificates {
    /// They are not asked.
    #[default]
    Off,
    /// They may, instead of a password.
    Optional,
    /// Without one there is no connection.
    Required,
}

/// The files that make up the TLS of the listeners. All are PEM.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TlsFiles {
    /// The gateway's certificate, and the intermediate ones behind it.
    pub certificate: PathBuf,
    /// The certificate's private key, not encrypted.
    pub key: PathBuf,
    /// The authorities whose client certificates are trusted.
    pub client_ca: Option<PathBuf>,
    /// Certificates that those authorities have revoked.
    pub client_crl: Option<PathBuf>,
    /// Whether clients show certificates; needs `client_ca`.
    pub clients: ClientCertificates,
    /// Refuse TLS 1.2.
    pub tls13_only: bool,
}

/// Why files cannot serve as TLS.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read.
    #[error("{} cannot be read: {source}; check the path and that the gateway's user may read it", file.display())]
    Unreadable {
        /// The file.
        file: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A file is not what it should be.
    #[error("{} is not {wanted}: {what}", file.display())]
    Malformed {
        /// The file.
        file: PathBuf,
        /// What it should hold.
        wanted: &'static str,
        /// What it holds.
        what: String,
    },
    /// The key belongs to another certificate.
    #[error("{} is not the key of {}: give the two files that were made together", key.display(), certificate.display())]
    Mismatch {
        /// The certificate's file.
        certificate: PathBuf,
        /// The key's file.
        key: PathBuf,
    },
    /// The certificate is not valid now.
    #[error("{} is valid from {from_s} to {until_s} (seconds since 1970), not now: renew it, or set the clock", file.display())]
    NotNow {
        /// The file.
        file: PathBuf,
        /// Seconds since 1970.
        from_s: i64,
        /// Seconds since 1970.
        until_s: i64,
    },
    /// The combination cannot be used.
    #[error("TLS cannot be set up with {}: {what}", certificate.display())]
    Setup {
        /// The certificate's file.
        certificate: PathBuf,
        /// What is wrong.
        what: String,
    },
}

impl TlsFiles {
    /// Whether the files could serve now.
    ///
    /// # Errors
    /// A [`TlsError`] that names the file.
    pub fn check(&self) -> Result<TlsState, TlsError> {
        let loaded = Loaded::read(self)?;
        loaded.check_dates(self, clock::now_s())?;
        Ok(TlsState { not_after_s: loaded.not_after_s, refused: None })
    }
}

/// How TLS stands; for whoever watches the gateway.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsState {
    /// When the gateway's certificate ends, in seconds since 1970 UTC.
    pub not_after_s: i64,
    /// Why files that changed were not taken; `None` if those that serve are the newest.
    pub refused: Option<String>,
}

/// The TLS of listeners that share their files.
#[derive(Debug)]
pub struct Tls {
    files: TlsFiles,
    current: RwLock<Arc<ServerConfig>>,
    state: Mutex<TlsState>,
    /// What the files looked like when they were last read.
    seen: Mutex<Vec<Stamp>>,
}

/// By what a file is seen to have changed: bytes, time of change. `None`: it is not there.
type Stamp = Option<(u64, Option<SystemTime>)>;

impl Tls {
    /// Reads and checks the files. An expired certificate serves nevertheless, with a loud word: clients refuse it, but the
    /// gateway's other listeners have to go on.
    ///
    /// # Errors
    /// A [`TlsError`] that names the file.
    pub fn load(files: TlsFiles) -> Result<Tls, TlsError> {
        let seen = stamps(&files);
        let loaded = Loaded::read(&files)?;
        if let Err(error) = loaded.check_dates(&files, clock::now_s()) {
            tracing::error!(%error, "the TLS listeners serve a certificate that clients will refuse");
        }
        warn_of_open_key(&files.key);
        Ok(Tls {
            state: Mutex::new(TlsState { not_after_s: loaded.not_after_s, refused: None }),
            current: RwLock::new(loaded.config),
            seen: Mutex::new(seen),
            files,
        })
    }

    /// For the next handshake.
    pub fn acceptor(&self) -> TlsAcceptor {
        TlsAcceptor::from(Arc::clone(&self.current.read().unwrap_or_else(PoisonError::into_inner)))
    }

    /// How it stands.
    pub fn state(&self) -> TlsState {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Reads the files again; connections that are open stay as they are.
    ///
    /// # Errors
    /// A [`TlsError`]; what served before goes on serving.
    fn reload(&self) -> Result<(), TlsError> {
        *self.seen.lock().unwrap_or_else(PoisonError::into_inner) = stamps(&self.files);
        let loaded = Loaded::read(&self.files)
            .and_then(|loaded| loaded.check_dates(&self.files, clock::now_s()).map(|()| loaded));
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        match loaded {
            Ok(loaded) => {
                *self.current.write().unwrap_or_else(PoisonError::into_inner) = loaded.config;
                *state = TlsState { not_after_s: loaded.not_after_s, refused: None };
                Ok(())
            }
            Err(error) => {
                state.refused = Some(error.to_string());
                Err(error)
            }
        }
    }

    /// Reads the files again, now, and tells the log what came of it.
    pub fn renew(&self) {
        match self.reload() {
            Ok(()) => tracing::info!("new certificates serve from now on"),
            Err(error) => tracing::error!(%error, "new certificates are not taken; those before go on serving"),
        }
    }

    /// Takes files that change, until `stop`.
    pub async fn watch(self: Arc<Tls>, mut stop: watch::Receiver<bool>) {
        loop {
            tokio::select! {
                _ = stop.wait_for(|stop| *stop) => return,
                () = tokio::time::sleep(LOOK_EVERY) => {}
            }
            let tls = Arc::clone(&self);
            let look = move || {
                if tls.has_changed() {
                    tls.renew();
                }
            };
            if let Err(error) = tokio::task::spawn_blocking(look).await {
                tracing::error!(%error, "the certificates could not be looked at");
            }
        }
    }

    fn has_changed(&self) -> bool {
        *self.seen.lock().unwrap_or_else(PoisonError::into_inner) != stamps(&self.files)
    }
}

fn stamps(files: &TlsFiles) -> Vec<Stamp> {
    let stamp = |file: &Path| fs::metadata(file).ok().map(|it| (it.len(), it.modified().ok()));
    let all = [Some(&files.certificate), Some(&files.key), files.client_ca.as_ref(), files.client_crl.as_ref()];
    all.into_iter().flatten().map(|file| stamp(file)).collect()
}

/// Files that belong together.
struct Loaded {
    config: Arc<ServerConfig>,
    not_before_s: i64,
    not_after_s: i64,
}

impl Loaded {
    fn read(files: &TlsFiles) -> Result<Loaded, TlsError> {
        const CERTIFICATES: &str = "a list of certificates in PEM";
        let chain: Vec<CertificateDer<'static>> = pem_items(&files.certificate, CERTIFICATES)?;
        let (not_before_s, not_after_s) = validity(chain.first(), &files.certificate)?;
        let key = private_key(&files.key)?;
        let versions: &[&rustls::SupportedProtocolVersion] =
            if files.tls13_only { &[&version::TLS13] } else { &[&version::TLS13, &version::TLS12] };
        let setup = |what: String| TlsError::Setup { certificate: files.certificate.clone(), what };
        let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_protocol_versions(versions)
            .map_err(|error| setup(error.to_string()))?
            .with_client_cert_verifier(client_verifier(files)?)
            .with_single_cert(chain, key)
            .map_err(|error| match error {
                rustls::Error::InconsistentKeys(_) => {
                    TlsError::Mismatch { certificate: files.certificate.clone(), key: files.key.clone() }
                }
                error => setup(error.to_string()),
            })?;
        let mut config = config;
        if files.clients != ClientCertificates::Off {
            // A resumed session would not be asked for its certificate again, which may be revoked or expired meanwhile.
            config.session_storage = Arc::new(NoServerSessionStorage {});
            config.send_tls13_tickets = 0;
        }
        Ok(Loaded { config: Arc::new(config), not_before_s, not_after_s })
    }

    fn check_dates(&self, files: &TlsFiles, now_s: i64) -> Result<(), TlsError> {
        if (self.not_before_s..=self.not_after_s).contains(&now_s) {
            return Ok(());
        }
        let (from_s, until_s) = (self.not_before_s, self.not_after_s);
        Err(TlsError::NotNow { file: files.certificate.clone(), from_s, until_s })
    }
}

fn client_verifier(files: &TlsFiles) -> Result<Arc<dyn ClientCertVerifier>, TlsError> {
    let Some(ca) = files.client_ca.as_ref().filter(|_| files.clients != ClientCertificates::Off) else {
        return Ok(WebPkiClientVerifier::no_client_auth());
    };
    const AUTHORITIES: &str = "a list of authorities' certificates in PEM";
    let mut roots = RootCertStore::empty();
    for certificate in pem_items::<CertificateDer<'static>>(ca, AUTHORITIES)? {
        roots.add(certificate).map_err(|error| malformed(ca, AUTHORITIES, &error))?;
    }
    let provider = Arc::new(ring::default_provider());
    let mut verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
    if let Some(crl) = &files.client_crl {
        const REVOKED: &str = "a list of revoked certificates (X509 CRL) in PEM";
        // Authorities without a list, such as intermediate ones, are trusted as they are.
        verifier = verifier
            .with_crls(pem_items::<CertificateRevocationListDer<'static>>(crl, REVOKED)?)
            .allow_unknown_revocation_status();
    }
    if files.clients == ClientCertificates::Optional {
        verifier = verifier.allow_unauthenticated();
    }
    let setup = |what: String| TlsError::Setup { certificate: files.certificate.clone(), what };
    verifier.build().map_err(|error| setup(error.to_string()))
}

fn read_file(file: &Path) -> Result<Vec<u8>, TlsError> {
    let unreadable = |source| TlsError::Unreadable { file: file.to_owned(), source };
    let bytes = fs::metadata(file).map_err(unreadable)?.len();
    if bytes > FILE_BYTES_MAX {
        let what = format!("it has {bytes} bytes, at most {FILE_BYTES_MAX} are read");
        return Err(TlsError::Malformed { file: file.to_owned(), wanted: "a PEM file", what });
    }
    fs::read(file).map_err(unreadable)
}

fn pem_items<T: PemObject>(file: &Path, wanted: &'static str) -> Result<Vec<T>, TlsError> {
    let bytes = read_file(file)?;
    let items: Result<Vec<T>, pem::Error> = T::pem_slice_iter(&bytes).collect();
    let items = items.map_err(|error| malformed(file, wanted, &error))?;
    match items.is_empty() {
        true => Err(malformed(file, wanted, &"nothing of the kind is in it")),
        false => Ok(items),
    }
}

fn private_key(file: &Path) -> Result<PrivateKeyDer<'static>, TlsError> {
    const KEY: &str = "a private key in PEM";
    let bytes = read_file(file)?;
    let is_encrypted = bytes.windows(b"ENCRYPTED".len()).any(|window| window == b"ENCRYPTED");
    PrivateKeyDer::from_pem_slice(&bytes).map_err(|_| {
        // What the parser would say quotes the file.
        let what = match is_encrypted {
            true => {
                "it is encrypted; the gateway starts without anybody to ask: give it the decrypted key (`openssl pkey`)"
            }
            false => "there is no PKCS#8, SEC1 or PKCS#1 key in it",
        };
        malformed(file, KEY, &what)
    })
}

fn malformed(file: &Path, wanted: &'static str, what: &dyn std::fmt::Display) -> TlsError {
    TlsError::Malformed { file: file.to_owned(), wanted, what: what.to_string() }
}

fn validity(certificate: Option<&CertificateDer<'_>>, file: &Path) -> Result<(i64, i64), TlsError> {
    const CERTIFICATE: &str = "a certificate";
    let der = certificate.map_or(&[][..], |certificate| certificate.as_ref());
    let (_, certificate) = X509Certificate::from_der(der).map_err(|error| malformed(file, CERTIFICATE, &error))?;
    let validity = certificate.validity();
    Ok((validity.not_before.timestamp(), validity.not_after.timestamp()))
}

fn warn_of_open_key(key: &Path) {
    use std::os::unix::fs::PermissionsExt;
    const OTHERS: u32 = 0o007;
    if fs::metadata(key).is_ok_and(|it| it.permissions().mode() & OTHERS != 0) {
        tracing::warn!(file = %key.display(), "everybody on this machine may read the private key: chmod 600 it");
    }
}

/// Who a client is by its certificate: the subject's common name, else the first DNS name. `None` if it has neither, or
/// one that cannot be a name.
pub(crate) fn name_in(certificate: &CertificateDer<'_>) -> Option<Box<str>> {
    let (_, certificate) = X509Certificate::from_der(certificate.as_ref()).ok()?;
    let common_name = certificate.subject().iter_common_name().find_map(|name| name.as_str().ok());
    let common_name = common_name.filter(|name| !name.is_empty());
    let alternatives = certificate.subject_alternative_name().ok().flatten();
    let dns = alternatives.as_ref().and_then(|names| {
        names.value.general_names.iter().find_map(|name| match name {
            GeneralName::DNSName(name) => Some(*name),
            _ => None,
        })
    });
    let name = common_name.or(dns)?;
    let sound = !name.is_empty() && name.len() <= NAME_BYTES_MAX && !name.chars().any(char::is_control);
    sound.then(|| name.into())
}
