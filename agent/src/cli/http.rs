//! A GET on a gateway, for the commands that ask one.
//!
//! Owns how a command says which gateway and who asks: over TLS, with a name and a password. The password comes from the
//! environment, which other users of the machine cannot read. Never logs it.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use base64ct::{Base64, Encoding};
use clap::Args;
use serde_json::Value;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::CertificateDer;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use ureq::tls::{Certificate, RootCerts, TlsConfig, TlsProvider};

/// How long the gateway may take to answer.
const ANSWER: Duration = Duration::from_secs(5);

/// Where the password is.
const PASSWORD: &str = "MILLWRIGHT_PASSWORD";

/// Which gateway, and who asks.
#[derive(Debug, Args)]
pub(super) struct Http {
    /// The gateway's HTTP address; https://HOST:PORT where it speaks TLS
    #[arg(long = "http", value_name = "HOST:PORT", default_value = "127.0.0.1:8080")]
    pub(super) address: String,
    /// The authority that vouches for the gateway's certificate
    #[arg(long, value_name = "FILE")]
    cafile: Option<PathBuf>,
    /// The [[http.user]] to ask as; the password is read from the environment variable MILLWRIGHT_PASSWORD
    #[arg(long)]
    user: Option<String>,
}

impl Http {
    /// What the gateway answers on `path` with `query`.
    ///
    /// # Errors
    /// It does not, or it is none.
    pub(super) fn get(&self, path: &str, query: &[(&str, &str)]) -> anyhow::Result<Value> {
        let gateway = match self.address.contains("://") {
            true => self.address.clone(),
            false => format!("http://{}", self.address),
        };
        let mut config = ureq::Agent::config_builder().timeout_global(Some(ANSWER)).http_status_as_error(false);
        if gateway.starts_with("https://") {
            config = config.tls_config(self.trust()?);
        }
        let agent = ureq::Agent::new_with_config(config.build());
        let mut request = agent.get(format!("{gateway}{path}")).query_pairs(query.iter().copied());
        if let Some(user) = &self.user {
            let password = std::env::var(PASSWORD).with_context(|| {
                format!("the password of {user} is missing: put it into the environment variable {PASSWORD}")
            })?;
            let credentials = Base64::encode_string(format!("{user}:{password}").as_bytes());
            request = request.header("Authorization", format!("Basic {credentials}"));
        }
        let mut answer = request.call().map_err(|error| {
            anyhow::anyhow!(
                "no gateway answers on {gateway}: {error}; is it running, and is this its [http] listen address? \
                 One with [http.tls] answers on https://HOST:PORT"
            )
        })?;
        let status = answer.status().as_u16();
        let body = answer.body_mut().read_to_string().with_context(|| format!("{gateway} broke off its answer"))?;
        let value: Value = serde_json::from_str(&body)
            .map_err(|error| anyhow::anyhow!("{gateway} is not a millwright gateway: {error}"))?;
        if status == 200 {
            return Ok(value);
        }
        let word = |key: &str| value.pointer(key).and_then(Value::as_str).unwrap_or("-").to_owned();
        let hint = if status == 401 { "; give --user, and its password in MILLWRIGHT_PASSWORD" } else { "" };
        anyhow::bail!("{gateway} answers {status}: {}; {}{hint}", word("/error/message"), word("/error/remedy"))
    }

    fn trust(&self) -> anyhow::Result<TlsConfig> {
        let file =
            self.cafile.as_ref().context("name the authority that vouches for the gateway's certificate: --cafile")?;
        let unreadable = || format!("{} holds no certificates in PEM", file.display());
        let roots: Vec<Certificate<'static>> = CertificateDer::pem_file_iter(file)
            .and_then(|certificates| {
                certificates.map(|it| it.map(|it| Certificate::from_der(&it).to_owned())).collect()
            })
            .with_context(unreadable)?;
        Ok(TlsConfig::builder()
            .provider(TlsProvider::Rustls)
            .root_certs(RootCerts::from(roots))
            .unversioned_rustls_crypto_provider(Arc::new(ring::default_provider()))
            .build())
    }
}
