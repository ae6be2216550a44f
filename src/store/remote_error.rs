//! What went wrong with a request, in the terms that decide what happens next.

use std::fmt;

use object_store::client::{HttpError, HttpErrorKind};

use super::credentials::CredentialsError;
use super::http::{Refusal, one_line};
use super::{StoreError, StoreErrorKind as Kind};

const CHECK_CREDENTIALS: &str = "Check the access key, its secret and the session token";
const NO_BUCKET: &str = "Create the bucket, or correct the replica URL";
const PERMISSION: &str = "Allow the credentials to list, read, write and delete below the replica's path";
const CLOCK: &str = "Set this machine's clock; the store refuses requests dated otherwise";
const REGION: &str = "Set the region of the bucket (?region=… or AWS_REGION)";
const NETWORK: &str = "Check the endpoint and the network";
const NAME: &str = "Check the host in the endpoint, or the region, and this machine's name service";
const REFUSED: &str = "Nothing listens there: check host and port of the endpoint, and whether the store runs";
const NO_TLS: &str = "What listens there speaks no TLS: check the port of the endpoint, or write http:// before it";
const CERTIFICATE: &str =
    "Give the authority's certificate as ca_bundle; look at this machine's certificates and clock, and at the name in the endpoint";
const NO_STORE: &str = "What answers there may be no store of this kind: check the endpoint (a console has another port than the store), then the bucket's name";
const BUSY: &str = "The store asks for fewer requests: try again later; where it goes on, look at its limits and at who else uses it";
const ITS_FAULT: &str = "That is the store's own failure, which mostly passes: try again; where it goes on, look at its status or its log";
const SLOW: &str = "Check the network; where it is only slow, allow requests more time (request_timeout)";

/// Which operation failed on what.
pub(super) struct Context<'a> {
    pub(super) operation: &'static str,
    pub(super) object: &'a (dyn fmt::Display + Sync),
    pub(super) url: &'a str,
    /// Where requests go.
    pub(super) endpoint: &'a str,
}

impl Context<'_> {
    /// An error of the operation.
    pub(super) fn error(&self, kind: Kind, cause: String, advice: &'static str) -> StoreError {
        let object = format!("{} in {}", self.object, self.url);
        StoreError { kind, operation: self.operation, object, cause, advice, retry_after: None }
    }

    /// What became of a request, from what `object_store` says and what the store answered.
    pub(super) fn failure(&self, error: &object_store::Error, refusal: Option<&Refusal>) -> StoreError {
        if let Some(error) = chain(error).find_map(|e| e.downcast_ref::<CredentialsError>()) {
            return self.error(error.kind, error.cause.clone(), error.advice);
        }
        if let Some(error) = chain(error).find_map(|e| e.downcast_ref::<HttpError>()) {
            let detail = detail(error);
            let (kind, advice) = transport(error, &detail);
            // Where a request went is not always in the URL.
            let host = self.endpoint.split('/').take(3).collect::<Vec<_>>().join("/");
            return self.error(kind, one_line(&format!("{host}: {detail}")), advice);
        }
        if let Some(refusal) = refusal {
            return self.refused(refusal);
        }
        match error {
            object_store::Error::NotFound { .. } => self.error(Kind::NotFound, "the store has no such object".to_owned(), ""),
            other => {
                let text = innermost(other);
                // Answers of status 200 that hold an error, and lists of what could not be deleted.
                let (kind, advice) = if self.operation == "get" && text.contains("Wanted range") {
                    // A store that answers what lies beyond the end with nothing, rather than with 416.
                    (Kind::Truncated, "")
                } else if text.contains("AccessDenied") {
                    (Kind::PermissionDenied, PERMISSION)
                } else if text.contains("SlowDown") {
                    (Kind::Throttled, BUSY)
                } else if text.contains("InternalError") {
                    (Kind::Server, ITS_FAULT)
                } else {
                    (Kind::Protocol, "")
                };
                self.error(kind, text, advice)
            }
        }
    }

    /// A response with an error status.
    pub(super) fn refused(&self, refusal: &Refusal) -> StoreError {
        let (kind, advice) = self.classify(refusal);
        let mut cause = format!("HTTP {}", refusal.status);
        for part in [&refusal.code, &refusal.message] {
            if !part.is_empty() {
                cause.push_str(if cause.contains(' ') && cause.len() > 8 { ": " } else { " " });
                cause.push_str(part);
            }
        }
        if let Some(region) = refusal.region.as_ref().filter(|_| advice == REGION) {
            cause.push_str(&format!(" (the bucket is in {region})"));
        }
        StoreError { retry_after: refusal.retry_after, ..self.error(kind, one_line(&cause), advice) }
    }

    fn classify(&self, refusal: &Refusal) -> (Kind, &'static str) {
        let code = refusal.code.as_str();
        match code {
            "InvalidAccessKeyId"
            | "NotSignedUp"
            | "SignatureDoesNotMatch"
            | "ExpiredToken"
            | "InvalidToken"
            | "TokenRefreshRequired"
            | "InvalidSecurity"
            | "AuthenticationFailed"
            | "NoAuthenticationInformation"
            | "InvalidAuthenticationInfo"
            | "AuthenticationRequired"
            | "ExpiredTokenException"
            | "InvalidIdentityToken"
            | "IDPRejectedClaim"
            | "invalid_client"
            | "invalid_grant" => {
                return (Kind::Credentials, CHECK_CREDENTIALS);
            }
            "RequestTimeTooSkewed" => return (Kind::Credentials, CLOCK),
            "NoSuchBucket" | "ContainerNotFound" | "ContainerBeingDeleted" => return (Kind::NoSuchBucket, NO_BUCKET),
            "NoSuchKey" | "BlobNotFound" => return (Kind::NotFound, ""),
            // The upload was given up, by us or by a lifecycle rule: beginning it anew helps.
            "NoSuchUpload" | "InvalidPart" | "InvalidBlockList" => return (Kind::Server, ""),
            // Another write of the same key is under way (409): the next attempt finds out what became of it.
            "ConditionalRequestConflict" | "OperationAborted" => return (Kind::Server, ""),
            "RequestTimeout" | "OperationTimedOut" => return (Kind::Timeout, SLOW),
            "AuthorizationHeaderMalformed" | "PermanentRedirect" | "IllegalLocationConstraintException" => return (Kind::Protocol, REGION),
            "SlowDown" | "ServerBusy" | "TooManyRequests" | "RequestLimitExceeded" => return (Kind::Throttled, BUSY),
            _ => {}
        }
        match refusal.status {
            _ if refusal.by_credentials_source => (Kind::Credentials, CHECK_CREDENTIALS),
            401 => (Kind::Credentials, CHECK_CREDENTIALS),
            403 if code.is_empty() => {
                (Kind::PermissionDenied, "Check the credentials, and that they may list, read, write and delete below the replica's path")
            }
            403 => (Kind::PermissionDenied, PERMISSION),
            // Only reading one object can miss just that object.
            404 if matches!(self.operation, "get" | "head") => (Kind::NotFound, ""),
            // Every store names what it has not, in XML.
            404 if code.is_empty() => (Kind::NoSuchBucket, NO_STORE),
            404 => (Kind::NoSuchBucket, NO_BUCKET),
            301 | 307 | 308 => (Kind::Protocol, REGION),
            408 | 504 => (Kind::Timeout, SLOW),
            416 => (Kind::Truncated, ""),
            429 | 503 => (Kind::Throttled, BUSY),
            // No attempt will ever succeed.
            501 | 505 => (Kind::Protocol, "The store lacks this operation: docs/stores.md says what it needs"),
            500..=599 => (Kind::Server, ITS_FAULT),
            _ if code.is_empty() => (Kind::Protocol, NO_STORE),
            _ => (Kind::Protocol, ""),
        }
    }
}

/// An error and its causes.
pub(super) fn chain<'a>(error: &'a (dyn std::error::Error + 'static)) -> impl Iterator<Item = &'a (dyn std::error::Error + 'static)> {
    std::iter::successors(Some(error), |e| (*e).source())
}

/// What `object_store` wraps last: the outer texts repeat it, with the request's URL.
fn innermost(error: &object_store::Error) -> String {
    chain(error).last().map(|e| one_line(&e.to_string())).unwrap_or_default()
}

/// The causes of a broken request, outermost first, without the URL.
fn detail(error: &HttpError) -> String {
    let mut text = String::new();
    for cause in chain(error).skip(1) {
        let cause = cause.to_string();
        if !text.contains(&cause) {
            if !text.is_empty() {
                text.push_str(": ");
            }
            text.push_str(&cause);
        }
    }
    // What every one of them begins with, and says nothing.
    let rest = text.strip_prefix("error sending request: ").unwrap_or(&text);
    rest.strip_prefix("client error (Connect): ").unwrap_or(rest).to_owned()
}

fn transport(error: &HttpError, detail: &str) -> (Kind, &'static str) {
    let is_certificate = detail.contains("certificate");
    match error.kind() {
        HttpErrorKind::Timeout => (Kind::Timeout, SLOW),
        HttpErrorKind::Connect if is_certificate => (Kind::Unreachable, CERTIFICATE),
        HttpErrorKind::Connect if detail.contains("dns error") => (Kind::Unreachable, NAME),
        HttpErrorKind::Connect if detail.contains("refused") => (Kind::Unreachable, REFUSED),
        HttpErrorKind::Connect if detail.contains("InvalidContentType") => (Kind::Unreachable, NO_TLS),
        HttpErrorKind::Connect => (Kind::Unreachable, NETWORK),
        HttpErrorKind::Decode => (Kind::Truncated, ""),
        _ if is_certificate => (Kind::Unreachable, CERTIFICATE),
        _ => (Kind::Server, ""),
    }
}

impl fmt::Debug for Context<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} in {}", self.operation, self.object, self.url)
    }
}
