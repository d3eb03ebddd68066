//! The socket of a client library that works on a thread of its own.
//!
//! Owns the end of it: such a thread waits for its peer for as long as the socket is open, also when nobody wants its connection any more.
//! A peer that takes connections and never answers would leave a thread and a descriptor behind with every attempt.

use std::net::{Shutdown, TcpStream};
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Ends the socket when it is dropped, wherever the library has it.
#[derive(Debug, Default)]
pub(super) struct SocketEnd(Handle);

/// What the library's thread tells which socket it is.
#[derive(Debug, Clone, Default)]
pub(super) struct Handle(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    socket: Option<TcpStream>,
    is_over: bool,
}

impl SocketEnd {
    /// For the library's thread.
    pub(super) fn handle(&self) -> Handle {
        self.0.clone()
    }
}

impl Handle {
    /// This is the socket.
    ///
    /// # Errors
    /// Nobody wants it any more, or there are no more descriptors.
    pub(super) fn set(&self, socket: &impl AsFd) -> std::io::Result<()> {
        let socket = TcpStream::from(socket.as_fd().try_clone_to_owned()?);
        let mut state = self.state();
        if state.is_over {
            return Err(std::io::ErrorKind::ConnectionAborted.into());
        }
        state.socket = Some(socket);
        Ok(())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for SocketEnd {
    fn drop(&mut self) {
        let mut state = self.0.state();
        state.is_over = true;
        if let Some(socket) = state.socket.take() {
            // It may have ended by itself.
            let _ = socket.shutdown(Shutdown::Both);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
    use std::io::Read;
    use std::net::TcpListener;

    use super::*;

    // The socket ends with its owner, and one that comes too late is not taken.
    #[test]
    fn a_socket_ends_with_its_owner() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut socket = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let end = SocketEnd::default();
        let handle = end.handle();
        handle.set(&socket).unwrap();
        drop(end);
        assert_eq!(socket.read(&mut [0]).unwrap(), 0);
        assert!(handle.set(&socket).is_err());
    }
}
