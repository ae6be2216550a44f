//! Google Cloud Storage's XML interface, as far as a store client can tell: S3 with other names for the same headers.
//!
//! The emulators that can be had speak the JSON interface only, which `object_store` does not write through. So this is our reading of
//! Google's documentation, good for testing our side and not Google's.

use hyper::header::{HeaderMap, HeaderName, HeaderValue};

const GENERATION_MATCH: &str = "x-goog-if-generation-match";

/// Turns a request to Google into one to S3, without its credentials.
pub(crate) fn translate_request(headers: &mut HeaderMap) {
    headers.remove("authorization");
    if headers.remove(GENERATION_MATCH).is_some_and(|generation| generation == "0") {
        headers.insert("if-none-match", HeaderValue::from_static("*"));
    }
    rename(headers, "x-goog-meta-", "x-amz-meta-");
}

/// Turns an answer of S3 into one of Google.
pub(crate) fn translate_response(headers: &mut HeaderMap) {
    rename(headers, "x-amz-meta-", "x-goog-meta-");
}

fn rename(headers: &mut HeaderMap, from: &str, to: &str) {
    let found: Vec<_> =
        headers.iter().filter_map(|(name, value)| Some((name.as_str().strip_prefix(from)?.to_owned(), value.clone()))).collect();
    for (suffix, value) in found {
        if let Ok(name) = HeaderName::try_from(format!("{to}{suffix}")) {
            headers.insert(name, value);
        }
    }
}
