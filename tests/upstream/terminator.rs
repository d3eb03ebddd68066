//! TLS in front of a server that speaks none: what clients send is decrypted here and handed on.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};

use tokio::io::copy_bidirectional;
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;

use crate::secrets::Secrets;

/// The front; it ends with its connections when dropped.
#[derive(Debug)]
pub(crate) struct Terminator {
    address: SocketAddr,
    _stop: tokio::sync::oneshot::Sender<()>,
}

impl Terminator {
    /// Takes connections over TLS with the server's certificate of `secrets`, for `server`.
    pub(crate) fn start(secrets: &Secrets, server: SocketAddr) -> anyhow::Result<Terminator> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let acceptor = TlsAcceptor::from(secrets.server()?);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (stop, stopped) = tokio::sync::oneshot::channel();
        std::thread::spawn(move || {
            runtime.block_on(async {
                let Ok(listener) = tokio::net::TcpListener::from_std(listener) else { return };
                tokio::select! {
                    () = serve(listener, acceptor, server) => {}
                    _ = stopped => {}
                }
            });
        });
        Ok(Terminator { address, _stop: stop })
    }

    /// Where clients connect.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }
}

async fn serve(listener: tokio::net::TcpListener, acceptor: TlsAcceptor, server: SocketAddr) {
    while let Ok((client, _)) = listener.accept().await {
        let acceptor = acceptor.clone();
        tokio::spawn(async move {
            // A client that does not trust the certificate, or a server that is not there, ends the connection.
            let mut client = acceptor.accept(client).await?;
            let mut server = TcpStream::connect(server).await?;
            copy_bidirectional(&mut client, &mut server).await
        });
    }
}
