//! An authority, certificates of it, and clients that speak TLS.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use millwright_broker::codec::{Connect, Version};
use millwright_broker::{ClientCertificates, TlsFiles};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DnType, IsCa, Issuer, KeyIdMethod, KeyPair,
    KeyUsagePurpose, RevokedCertParams, SerialNumber, date_time_ymd,
};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore, SupportedProtocolVersion, version};

use crate::common::{Client, connect};

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// A certificate and its key, as PEM.
#[derive(Clone)]
pub struct Pair {
    pub certificate: String,
    pub key: String,
}

/// When a certificate is valid.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Valid {
    Now,
    Past,
    Future,
}

/// An authority with a folder for files.
pub struct Authority {
    params: CertificateParams,
    key: KeyPair,
    pub pem: String,
    pub dir: tempfile::TempDir,
}

fn days_from_now(days: i32) -> (i32, u8, u8) {
    // Years are exact enough for what is valid or not.
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap() + DAY;
    let year = 1970 + i32::try_from(now.as_secs() / 31_556_952).unwrap();
    (year + days / 365, 1, 1)
}

fn params(name: &str, valid: Valid) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.remove(DnType::CommonName);
    params.distinguished_name.push(DnType::CommonName, name);
    let at = |(year, month, day)| date_time_ymd(year, month, day);
    let (from, until) = match valid {
        Valid::Now => (days_from_now(-365), days_from_now(730)),
        Valid::Past => (days_from_now(-1_095), days_from_now(-365)),
        Valid::Future => (days_from_now(365), days_from_now(730)),
    };
    (params.not_before, params.not_after) = (at(from), at(until));
    params.use_authority_key_identifier_extension = true;
    params
}

impl Authority {
    pub fn new() -> Authority {
        let mut params = params("test authority", Valid::Now);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate().unwrap();
        let pem = params.self_signed(&key).unwrap().pem();
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("ca.crt"), &pem).unwrap();
        Authority { params, key, pem, dir }
    }

    pub fn issue(&self, name: &str, valid: Valid) -> Pair {
        self.issue_with(name, valid, 1)
    }

    /// With a serial number of one's own.
    pub fn issue_with(&self, name: &str, valid: Valid, serial: u64) -> Pair {
        let mut params = params(name, valid);
        params.serial_number = Some(SerialNumber::from(serial));
        params.subject_alt_names = CertificateParams::new(vec!["localhost".to_owned()]).unwrap().subject_alt_names;
        let key = KeyPair::generate().unwrap();
        let issuer = Issuer::from_params(&self.params, &self.key);
        let certificate = params.signed_by(&key, &issuer).unwrap();
        Pair { certificate: certificate.pem(), key: key.serialize_pem() }
    }

    /// A list of revoked certificates, by serial number.
    pub fn revoke(&self, serial: u64) -> PathBuf {
        let at = |(year, month, day)| date_time_ymd(year, month, day);
        let revoked = RevokedCertParams {
            serial_number: SerialNumber::from(serial),
            revocation_time: at(days_from_now(-365)),
            reason_code: None,
            invalidity_date: None,
        };
        let list = CertificateRevocationListParams {
            this_update: at(days_from_now(-365)),
            next_update: at(days_from_now(730)),
            crl_number: SerialNumber::from(1_u64),
            issuing_distribution_point: None,
            revoked_certs: vec![revoked],
            key_identifier_method: KeyIdMethod::Sha256,
        };
        let list = list.signed_by(&Issuer::from_params(&self.params, &self.key)).unwrap();
        self.file("revoked.crl", &list.pem().unwrap())
    }

    pub fn file(&self, name: &str, text: &str) -> PathBuf {
        let path = self.dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    }

    /// The files of a server, and how it asks for clients' certificates.
    pub fn server(&self, clients: ClientCertificates) -> TlsFiles {
        self.install(&self.issue("localhost", Valid::Now));
        let dir = self.dir.path();
        TlsFiles {
            certificate: dir.join("server.crt"),
            key: dir.join("server.key"),
            client_ca: Some(dir.join("ca.crt")),
            client_crl: None,
            clients,
            tls13_only: false,
        }
    }

    /// Puts a certificate where the server has its own.
    pub fn install(&self, pair: &Pair) {
        self.file("server.crt", &pair.certificate);
        self.file("server.key", &pair.key);
    }
}

/// A client of TLS.
#[derive(Clone)]
pub struct TlsClient {
    config: Arc<ClientConfig>,
}

impl TlsClient {
    /// Trusts an authority, and shows a certificate if it has one.
    pub fn new(trusted: &Authority, own: Option<&Pair>) -> TlsClient {
        TlsClient::with(trusted, own, &[&version::TLS13, &version::TLS12])
    }

    pub fn with(trusted: &Authority, own: Option<&Pair>, versions: &[&'static SupportedProtocolVersion]) -> TlsClient {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(trusted.pem.as_bytes()).unwrap()).unwrap();
        let provider = Arc::new(tokio_rustls::rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider).with_protocol_versions(versions).unwrap();
        let config = config.with_root_certificates(roots);
        let config = match own {
            None => config.with_no_client_auth(),
            Some(own) => {
                let chain = CertificateDer::pem_slice_iter(own.certificate.as_bytes()).map(Result::unwrap).collect();
                let key = PrivateKeyDer::from_pem_slice(own.key.as_bytes()).unwrap();
                config.with_client_auth_cert(chain, key).unwrap()
            }
        };
        TlsClient { config: Arc::new(config) }
    }

    /// The handshake, as far as the client sees it: in TLS 1.3 the server may refuse the client's certificate later.
    pub async fn shake(&self, addr: SocketAddr) -> std::io::Result<TlsStream<TcpStream>> {
        let stream = TcpStream::connect(addr).await?;
        stream.set_nodelay(true)?;
        let name = ServerName::try_from("localhost").unwrap();
        TlsConnector::from(Arc::clone(&self.config)).connect(name, stream).await
    }

    pub async fn open(&self, addr: SocketAddr, version: Version) -> Client {
        Client::on(self.shake(addr).await.unwrap(), version)
    }

    /// Whether the server lets the client come as far as CONNACK, whatever that says.
    pub async fn is_answered(&self, addr: SocketAddr) -> bool {
        let Ok(mut stream) = self.shake(addr).await else { return false };
        let mut out = bytes::BytesMut::new();
        let wish = connect(Version::V5, "c");
        millwright_broker::codec::encode(
            &millwright_broker::codec::Packet::Connect(Box::new(wish)),
            Version::V5,
            &mut out,
        );
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        if stream.write_all(&out).await.is_err() {
            return false;
        }
        let mut answer = [0; 1];
        matches!(stream.read(&mut answer).await, Ok(1)) && answer[0] == 0x20
    }
}

/// CONNECT with a user name and password.
pub fn login(version: Version, client_id: &str, username: &str, password: &str) -> Connect {
    Connect {
        username: Some(username.into()),
        password: Some(password.as_bytes().to_vec().into()),
        ..connect(version, client_id)
    }
}
