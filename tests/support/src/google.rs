//! Google Cloud Storage's XML interface, as far as a store client can tell: S3 with other names for the same headers.
//!
//! The emulators that can be had speak the JSON interface only, which `object_store` does not write through. So this is our reading of
//! Google's documentation, good for testing our side and not Google's.

use std::collections::HashMap;
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};

use hyper::header::{HeaderMap, HeaderName, HeaderValue};

const GENERATION_MATCH: &str = "x-goog-if-generation-match";

/// Turns a request to Google into one to S3, without its credentials.
pub(crate) fn translate_request(headers: &mut HeaderMap) {
    headers.remove("authorization");
    match headers.remove(GENERATION_MATCH) {
        Some(generation) if generation == "0" => drop(headers.insert("if-none-match", HeaderValue::from_static("*"))),
        // No object has had a generation that nobody was told of.
        Some(generation) => {
            let e_tag = told().get(&generation).cloned().unwrap_or(HeaderValue::from_static("\"none\""));
            headers.insert("if-match", e_tag);
        }
        None => {}
    }
    rename(headers, "x-goog-meta-", "x-amz-meta-");
}

/// Turns an answer of S3 into one of Google.
pub(crate) fn translate_response(headers: &mut HeaderMap) {
    rename(headers, "x-amz-meta-", "x-goog-meta-");
    if let Some(e_tag) = headers.get("etag").cloned()
        && let Some(generation) = generation_of(&e_tag)
    {
        told().insert(generation.clone(), e_tag);
        headers.insert("x-goog-generation", generation);
    }
}

/// The generations that clients were told of, and the contents that they stand for.
fn told() -> MutexGuard<'static, HashMap<HeaderValue, HeaderValue>> {
    static TOLD: LazyLock<Mutex<HashMap<HeaderValue, HeaderValue>>> = LazyLock::new(Mutex::default);
    TOLD.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A number for an ETag, which is the MD5 of a content.
fn generation_of(e_tag: &HeaderValue) -> Option<HeaderValue> {
    let digits: String = e_tag.to_str().ok()?.trim_matches('"').chars().take(12).collect();
    HeaderValue::try_from((u64::from_str_radix(&digits, 16).ok()? + 2).to_string()).ok()
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
