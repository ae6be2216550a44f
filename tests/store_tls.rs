//! Certificates are checked, against the system's authorities and those that the user adds.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use replicated::store::{Env, Level, ReplicaUrl, StoreError, StoreErrorKind, StoreOptions, open_with_env};

mod tls;

use tls::TLS;

/// Serves an empty listing over TLS, with a certificate that only `ca.pem` vouches for.
fn serve() -> String {
    tls::serve("server", "200 OK", "<ListBucketResult></ListBucketResult>")
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
