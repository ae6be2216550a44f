//! Certificates are checked, against the system's authorities and those that the user adds.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

// The keys in tests/tls were made for this test and guard nothing.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::Path;
use std::sync::Arc;

use replicated::store::{Env, Level, ReplicaUrl, StoreError, StoreErrorKind, StoreOptions, open_with_env};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

const TLS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/tls");

/// Serves an empty listing over TLS, with a certificate that only `tests/tls/ca.pem` vouches for.
fn serve() -> String {
    let file = |name: &str| Path::new(TLS).join(name);
    let certificate = CertificateDer::from_pem_file(file("server.pem")).unwrap();
    let key = PrivateKeyDer::from_pem_file(file("server.key.pem")).unwrap();
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
            let mut request = [0; 4096];
            // A client that does not trust us breaks off here.
            if matches!(stream.read(&mut request), Ok(1..)) {
                let body = "<ListBucketResult></ListBucketResult>";
                let _ = write!(stream, "HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}", body.len());
            }
        }
    });
    endpoint
}

fn list(url: &str) -> Result<usize, StoreError> {
    let env: Env = [("AWS_ACCESS_KEY_ID", "id"), ("AWS_SECRET_ACCESS_KEY", "secret")].into_iter().collect();
    let store = open_with_env(&ReplicaUrl::parse(url).unwrap(), &StoreOptions::default(), &env)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(store.list(Level::ZERO, None)).map(|listed| listed.len())
}

#[test]
fn only_known_authorities_are_trusted() {
    let url = format!("s3://bkt/db?endpoint={}", serve());
    let error = list(&url).unwrap_err();
    assert_eq!(error.kind, StoreErrorKind::Unreachable, "{error}");
    assert!(error.cause.contains("certificate") && error.advice.contains("certificates"), "{error}");
    assert_eq!(list(&format!("{url}&ca_bundle={TLS}/ca.pem")).unwrap(), 0);
}
