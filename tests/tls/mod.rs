//! A server that speaks TLS with a certificate of this directory. The keys here were made for tests and guard nothing.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::Path;
use std::sync::Arc;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

/// This directory. What `server.pem` says only `ca.pem` vouches for.
pub(crate) const TLS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/tls");

/// Answers every request with this status and body, with the certificate of that name. Its endpoint.
pub(crate) fn serve(name: &str, status: &'static str, body: &'static str) -> String {
    let file = |suffix: &str| Path::new(TLS).join(format!("{name}{suffix}"));
    let certificate = CertificateDer::from_pem_file(file(".pem")).unwrap();
    let key = PrivateKeyDer::from_pem_file(file(".key.pem")).unwrap();
    let config = rustls::ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key)
        .unwrap();
    let config = Arc::new(config);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("https://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = rustls::StreamOwned::new(rustls::ServerConnection::new(Arc::clone(&config)).unwrap(), stream.unwrap());
            // A client that does not trust us breaks off here.
            if matches!(stream.read(&mut [0; 4096]), Ok(1..)) {
                let _ = write!(stream, "HTTP/1.1 {status}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}", body.len());
            }
        }
    });
    endpoint
}
