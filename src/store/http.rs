//! What passes between `object_store` and the network: one HTTP client, wrapped so that failures can be told apart.
//!
//! `object_store` keeps the status and the body of an error to itself, and cannot make the end of a multipart upload conditional. Both
//! are seen and done here, for the operation that the request belongs to.

use std::cell::RefCell;
use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use futures_util::future::BoxFuture;
use futures_util::{FutureExt, StreamExt};
use object_store::client::{HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpResponse, HttpService, ReqwestConnector};
use object_store::{ClientOptions, HeaderValue};
use parking_lot::Mutex;

use super::about::Told;
use super::credentials::Secrets;
use crate::types::TimestampMs;

/// Error bodies are read up to this; what a store has to say stands at the beginning.
const ERROR_BODY_BYTES: usize = 16 * 1024;

tokio::task_local! {
    static TRACE: RefCell<Trace>;
}

#[derive(Default)]
struct Trace {
    complete_conditionally: bool,
    refusal: Option<Refusal>,
}

/// A response with an error status.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Refusal {
    pub(super) status: u16,
    /// The store's code, such as `NoSuchBucket`; empty where it gives none.
    pub(super) code: String,
    /// The store's explanation in one line.
    pub(super) message: String,
    pub(super) retry_after: Option<Duration>,
    /// The region that the bucket is in, where S3 says so.
    pub(super) region: Option<String>,
    /// Whether a source of credentials answered so, rather than the store.
    pub(super) by_credentials_source: bool,
}

/// Runs an operation and tells what the last refused request of it was refused with.
pub(super) async fn traced<T>(operation: impl Future<Output = T>) -> (T, Option<Refusal>) {
    trace(Trace::default(), operation).await
}

/// As `traced`; a multipart upload that is completed meanwhile does not replace an object.
pub(super) async fn traced_conditionally<T>(operation: impl Future<Output = T>) -> (T, Option<Refusal>) {
    trace(Trace { complete_conditionally: true, refusal: None }, operation).await
}

async fn trace<T>(trace: Trace, operation: impl Future<Output = T>) -> (T, Option<Refusal>) {
    let inner = async {
        let result = operation.await;
        (result, TRACE.with(|trace| trace.borrow_mut().refusal.take()))
    };
    TRACE.scope(RefCell::new(trace), inner).await
}

/// What the last refused request of the operation under way was refused with.
pub(super) fn last_refusal() -> Option<Refusal> {
    TRACE.try_with(|trace| trace.borrow().refusal.clone()).ok().flatten()
}

/// HTTP clients that several stores share, and with them their connections. To make one takes some milliseconds and half a MiB, since the system's
/// certificates are read for it.
///
/// Only for stores whose requests all run on one runtime: a connection is served by the runtime that opened it.
#[derive(Default)]
pub(crate) struct HttpClients {
    made: Mutex<Vec<Made>>,
}

struct Made {
    settings: String,
    at: Instant,
    client: HttpClient,
}

impl std::fmt::Debug for HttpClients {
    /// Without the settings: a proxy's URL may hold a password.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("HttpClients").finish_non_exhaustive()
    }
}

impl HttpClients {
    /// Kinds of settings in one process; more than these are no fault, but are not shared.
    const MOST: usize = 32;
    /// A newer store gets a client that has read the system's certificates again.
    const LIFE: Duration = Duration::from_secs(3600);

    fn get(&self, settings: String, make: impl FnOnce() -> object_store::Result<HttpClient>) -> object_store::Result<HttpClient> {
        let mut made = self.made.lock();
        made.retain(|one| one.at.elapsed() < Self::LIFE);
        if let Some(one) = made.iter().find(|one| one.settings == settings) {
            return Ok(one.client.clone());
        }
        let client = make()?;
        if made.len() >= Self::MOST {
            made.remove(0);
        }
        made.push(Made { settings, at: Instant::now(), client: client.clone() });
        Ok(client)
    }
}

/// The variables that a client heeds when it is made.
fn environment() -> Vec<Option<std::ffi::OsString>> {
    let names = ["HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "all_proxy", "no_proxy"];
    names.iter().chain(&["REQUEST_METHOD", "SSL_CERT_FILE", "SSL_CERT_DIR"]).map(std::env::var_os).collect()
}

/// Connects as `object_store` would, and watches.
#[derive(Clone, Debug)]
pub(super) struct Connector {
    /// Shared with other stores.
    pub(super) clients: Arc<HttpClients>,
    /// The certificates to trust beside the system's, which the options do not show.
    pub(super) ca_bundle: Arc<[u8]>,
    /// What error bodies must not repeat.
    pub(super) secrets: Secrets,
    /// Whether its requests fetch credentials.
    pub(super) for_credentials: bool,
    /// What answers have told.
    pub(super) told: Told,
}

impl HttpConnector for Connector {
    fn connect(&self, options: &ClientOptions) -> object_store::Result<HttpClient> {
        let ca_bundle = crc_fast::checksum(crc_fast::CrcAlgorithm::Crc64GoIso, &self.ca_bundle);
        let settings = format!("{options:?} {ca_bundle} {} {:?}", self.ca_bundle.len(), environment());
        let client = self.clients.get(settings, || ReqwestConnector::default().connect(options))?;
        Ok(HttpClient::new(Watched { client, connector: self.clone() }))
    }
}

#[derive(Debug)]
struct Watched {
    client: HttpClient,
    connector: Connector,
}

impl HttpService for Watched {
    fn call<'life0, 'async_trait>(&'life0 self, request: HttpRequest) -> BoxFuture<'async_trait, Result<HttpResponse, HttpError>>
    where
        'life0: 'async_trait,
        Self: 'async_trait,
    {
        self.execute(request).boxed()
    }
}

impl Watched {
    async fn execute(&self, mut request: HttpRequest) -> Result<HttpResponse, HttpError> {
        let conditional = TRACE.try_with(|trace| trace.borrow().complete_conditionally).unwrap_or(false);
        if conditional && completes_multipart(&request) {
            // Not among the signed headers, as the end of a multipart upload needs it nowhere.
            request.headers_mut().insert("if-none-match", HeaderValue::from_static("*"));
        }
        let (asked_ms, began) = (chrono::Utc::now().timestamp_millis(), Instant::now());
        let response = self.client.execute(request).await?;
        let status = response.status();
        let Connector { for_credentials, told, .. } = &self.connector;
        if let Some(date) = response.headers().get("date").and_then(|date| date.to_str().ok()).filter(|_| !for_credentials) {
            told.date(date, asked_ms, began.elapsed());
        }
        if status.is_success() && *for_credentials {
            let (parts, body) = response.into_parts();
            let body = body.bytes().await?;
            if let Some(at) = expiry(&String::from_utf8_lossy(&body), TimestampMs(asked_ms)) {
                told.credentials_expire(at);
            }
            return Ok(HttpResponse::from_parts(parts, body.into()));
        }
        if status.is_success() || status.as_u16() == 304 {
            return Ok(response);
        }
        let (parts, body) = response.into_parts();
        // A body that breaks off still leaves the status.
        let body = beginning(body.bytes_stream()).await?;
        let header = |name: &str| parts.headers.get(name).and_then(|value| value.to_str().ok());
        let (code, message) = explanation(&self.connector.secrets.redact(&String::from_utf8_lossy(&body)));
        let refusal = Refusal {
            status: status.as_u16(),
            // An answer to HEAD has no body; Azure repeats the code in a header.
            code: if code.is_empty() { header("x-ms-error-code").unwrap_or_default().to_owned() } else { code },
            message,
            retry_after: header("retry-after").and_then(retry_after),
            region: header("x-amz-bucket-region").map(str::to_owned),
            by_credentials_source: self.connector.for_credentials,
        };
        // Outside an operation there is nobody to tell.
        let _ = TRACE.try_with(|trace| trace.borrow_mut().refusal = Some(refusal));
        Ok(HttpResponse::from_parts(parts, body.into()))
    }
}

fn completes_multipart(request: &HttpRequest) -> bool {
    request.method().as_str() == "POST" && request.uri().query().is_some_and(|query| query.split('&').any(|p| p.starts_with("uploadId=")))
}

async fn beginning(mut body: impl futures_util::Stream<Item = Result<Bytes, HttpError>> + Unpin) -> Result<Bytes, HttpError> {
    let mut read = BytesMut::new();
    while let Some(chunk) = body.next().await {
        match chunk {
            Ok(chunk) => read.extend_from_slice(&chunk),
            // The request as a whole has timed out.
            Err(e) if e.kind() == HttpErrorKind::Timeout => return Err(e),
            Err(_) => break,
        }
        if read.len() >= ERROR_BODY_BYTES {
            break;
        }
    }
    read.truncate(ERROR_BODY_BYTES);
    Ok(read.freeze())
}

/// Seconds, or a date.
fn retry_after(value: &str) -> Option<Duration> {
    if let Ok(seconds) = value.trim().parse() {
        return Some(Duration::from_secs(seconds));
    }
    let at = chrono::DateTime::parse_from_rfc2822(value.trim()).ok()?;
    (at.to_utc() - chrono::Utc::now()).to_std().ok()
}

/// The code and the message of an error body. Nothing else of it: a signature error repeats the signed headers.
fn explanation(body: &str) -> (String, String) {
    let body = body.trim_start_matches('\u{feff}').trim_start();
    if body.starts_with('<') {
        let code = element(body, "Code").unwrap_or_default();
        // An HTML page by some proxy has a title at best.
        let message = element(body, "Message").or_else(|| element(body, "title")).unwrap_or_default();
        return (code, message);
    }
    if body.starts_with('{') {
        let message = json_string(body, "message").or_else(|| json_string(body, "error_description")).unwrap_or_default();
        let code = json_string(body, "code").or_else(|| json_string(body, "Code")).or_else(|| json_string(body, "error"));
        return (code.unwrap_or_default(), message);
    }
    (String::new(), one_line(body))
}

fn element(body: &str, name: &str) -> Option<String> {
    let (_, rest) = body.split_once(&format!("<{name}>"))?;
    let (text, _) = rest.split_once(&format!("</{name}>"))?;
    let text = text.replace("&quot;", "\"").replace("&apos;", "'").replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&");
    Some(one_line(&text)).filter(|text| !text.is_empty())
}

/// The first string of that name, wherever it stands. Good enough to quote, not to decide by.
fn json_string(body: &str, name: &str) -> Option<String> {
    let (_, rest) = body.split_once(&format!("\"{name}\""))?;
    let text = rest.trim_start().strip_prefix(':')?.trim_start().strip_prefix('"')?;
    let mut value = String::new();
    let mut characters = text.chars();
    while let Some(character) = characters.next() {
        match character {
            '"' => return Some(one_line(&value)),
            '\\' => value.push(characters.next().filter(|c| !matches!(c, 'n' | 'r' | 't')).unwrap_or(' ')),
            other => value.push(other),
        }
    }
    None
}

/// Until when the credentials of an answer are good, in the forms of Amazon's, Google's and Azure's services.
fn expiry(body: &str, asked: TimestampMs) -> Option<TimestampMs> {
    let seconds = |name: &str| {
        let (_, rest) = body.split_once(&format!("\"{name}\""))?;
        let digits: String = rest.trim_start_matches([' ', ':', '"']).chars().take_while(char::is_ascii_digit).collect();
        digits.parse::<i64>().ok()?.checked_mul(1000)
    };
    let at = json_string(body, "Expiration").or_else(|| element(body, "Expiration"));
    let at = at.and_then(|at| TimestampMs::from_rfc3339(&at));
    at.or_else(|| seconds("expires_on").map(TimestampMs))
        .or_else(|| seconds("expires_in").and_then(|in_ms| asked.0.checked_add(in_ms)).map(TimestampMs))
}

/// One line of at most 200 characters.
pub(super) fn one_line(text: &str) -> String {
    let mut line = String::new();
    for word in text.split(|c: char| c.is_whitespace() || c.is_control()).filter(|word| !word.is_empty()) {
        if !line.is_empty() {
            line.push(' ');
        }
        line.push_str(word);
        if let Some((cut, _)) = line.char_indices().nth(200) {
            line.truncate(cut);
            line.push('…');
            break;
        }
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_and_messages_are_found_and_nothing_else_is_repeated() {
        let xml = "<?xml version=\"1.0\"?>\n<Error><Code>SignatureDoesNotMatch</Code><Message>The request\n signature &lt;x&gt;</Message>\
                   <CanonicalRequest>x-amz-security-token:hush</CanonicalRequest></Error>";
        assert_eq!(explanation(xml), ("SignatureDoesNotMatch".into(), "The request signature <x>".into()));
        assert_eq!(explanation("<html><head><title>502 Bad Gateway</title>"), (String::new(), "502 Bad Gateway".into()));
        let json = r#"{"error": {"code": 403, "message": "no \"storage.objects.create\" access\n"}}"#;
        assert_eq!(explanation(json), (String::new(), "no \"storage.objects.create\" access".into()));
        let oauth = r#"{"error":"invalid_client","error_description":"AADSTS7000215: Invalid client secret"}"#;
        assert_eq!(explanation(oauth), ("invalid_client".into(), "AADSTS7000215: Invalid client secret".into()));
        assert_eq!(explanation(""), (String::new(), String::new()));
        assert_eq!(explanation("upstream\r\n  gone"), (String::new(), "upstream gone".into()));
        assert_eq!(one_line(&"x".repeat(500)).chars().count(), 201);
    }

    #[test]
    fn it_is_found_until_when_credentials_are_good() {
        let at = |body: &str| expiry(body, TimestampMs(1_000_000)).map(|at| at.0);
        assert_eq!(at(r#"{"AccessKeyId":"KEYID","Expiration":"2022-08-30T10:51:04Z","Token":"T"}"#), Some(1_661_856_664_000));
        assert_eq!(at("<Credentials><Expiration>2022-08-30T10:51:04Z</Expiration></Credentials>"), Some(1_661_856_664_000));
        assert_eq!(at(r#"{"access_token":"t","expires_in":3599,"token_type":"Bearer"}"#), Some(4_599_000));
        assert_eq!(at(r#"{"access_token":"t","expires_in":"3599","expires_on": "1661856664"}"#), Some(1_661_856_664_000));
        assert_eq!(at("a token of the metadata service"), None);
    }

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        assert_eq!(retry_after(" 7 "), Some(Duration::from_secs(7)));
        let later = (chrono::Utc::now() + chrono::Duration::seconds(100)).to_rfc2822();
        assert!(retry_after(&later).unwrap() > Duration::from_secs(90));
        assert_eq!(retry_after("Sun, 06 Nov 1994 08:49:37 GMT"), None);
        assert_eq!(retry_after("soon"), None);
    }
}
