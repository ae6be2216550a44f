//! The URL, and the way to the store: its name, its port, and whether it speaks what it should.

use std::net::{IpAddr, SocketAddr, TcpStream, ToSocketAddrs};
use std::time::{Duration, Instant};

use replicated::store::url::Location;
use replicated::store::{ReplicaUrl, StoreError, StoreErrorKind};

use super::bounded::blocking;
use super::report::{Report, brief};

/// More addresses of one name are not tried.
const MOST_ADDRESSES: usize = 4;

/// Where requests go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Address {
    pub(super) is_tls: bool,
    pub(super) host: String,
    pub(super) port: u16,
}

impl Address {
    /// Of an endpoint such as `https://host:port/bucket`.
    pub(super) fn of(endpoint: &str) -> Option<Self> {
        let url = url::Url::parse(endpoint).ok()?;
        let host = url.host_str()?.trim_matches(['[', ']']).to_owned();
        Some(Self { is_tls: url.scheme() == "https", host, port: url.port_or_known_default()? })
    }

    fn is_here(&self) -> bool {
        self.host == "localhost" || self.host.parse::<IpAddr>().is_ok_and(|number| number.is_loopback())
    }

    /// The variable that names the proxy which its requests go through.
    fn proxy(&self) -> Option<&'static str> {
        let set = |name: &str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
        let passed_by = ["NO_PROXY", "no_proxy"].iter().filter_map(|name| std::env::var(name).ok()).any(|list| {
            let names = |entry: &str| {
                let entry = entry.trim().trim_start_matches('.');
                !entry.is_empty() && (entry == "*" || self.host == entry || self.host.ends_with(&format!(".{entry}")))
            };
            list.split(',').any(names)
        });
        let names: &[&'static str] =
            if self.is_tls { &["HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"] } else { &["http_proxy", "ALL_PROXY", "all_proxy"] };
        names.iter().copied().find(|name| set(name) && !passed_by)
    }
}

/// What the URL says.
pub(super) fn describe(url: &ReplicaUrl, endpoint: Option<&str>, region: Option<&str>) -> String {
    let path = |path: &str| if path.is_empty() { "its root".to_owned() } else { format!("path {path:?}") };
    let what = match url.location() {
        Location::S3 { bucket, path: at } => format!("S3, bucket {bucket:?}, {}", path(at)),
        Location::Gcs { bucket, path: at } => format!("Google Cloud Storage, bucket {bucket:?}, {}", path(at)),
        Location::Azure { container, path: at, .. } => format!("Azure Blob Storage, container {container:?}, {}", path(at)),
        Location::Folder { path } => return format!("the folder {}", path.display()),
    };
    let at = endpoint.map(|endpoint| format!(", at {endpoint}")).unwrap_or_default();
    let region = region.map(|region| format!(" ({region})")).unwrap_or_default();
    format!("{what}{at}{region}")
}

/// Whether the name leads to a port that takes connections. False where it does not: then nothing else can be asked.
pub(super) fn way(address: &Address, limit: Duration, report: &mut Report) -> bool {
    if let Some(variable) = address.proxy() {
        report.skipped("name", format!("requests go through the proxy of {variable}: {} is its to find", address.host));
        return true;
    }
    let Some(addresses) = resolve(address, limit, report) else { return false };
    connect(address, addresses, limit, report)
}

fn resolve(address: &Address, limit: Duration, report: &mut Report) -> Option<Vec<SocketAddr>> {
    if let Ok(number) = address.host.parse::<IpAddr>() {
        return Some(vec![(number, address.port).into()]);
    }
    let (host, port) = (address.host.clone(), address.port);
    let began = Instant::now();
    let found = blocking(limit, move || (host.as_str(), port).to_socket_addrs().map(Iterator::collect::<Vec<_>>));
    let means = "Nothing is sent to the store and nothing can be restored from it while this lasts";
    let next = "Look for a typing error in the URL (endpoint, region, bucket), then at this machine's name service (`getent hosts`); in a container also at \
                its network";
    match found {
        Err(late) => report.problem("name", format!("{}: the name service gives {late}", address.host), means, next),
        Ok(Err(error)) => report.problem("name", format!("{} has no address: {error}", address.host), means, next),
        Ok(Ok(addresses)) if addresses.is_empty() => report.problem("name", format!("{} has no address", address.host), means, next),
        Ok(Ok(addresses)) => {
            let shown: Vec<String> = addresses.iter().take(MOST_ADDRESSES).map(|address| address.ip().to_string()).collect();
            report.ok("name", format!("{} is {} ({})", address.host, shown.join(", "), brief(began.elapsed())));
            return Some(addresses);
        }
    }
    None
}

fn connect(address: &Address, addresses: Vec<SocketAddr>, limit: Duration, report: &mut Report) -> bool {
    let each = limit / u32::try_from(addresses.len().clamp(1, MOST_ADDRESSES)).unwrap_or(1);
    let began = Instant::now();
    let mut failure = String::new();
    for one in addresses.iter().take(MOST_ADDRESSES) {
        match TcpStream::connect_timeout(one, each) {
            Ok(_) => {
                report.ok("connection", format!("{one} takes connections ({})", brief(began.elapsed())));
                return true;
            }
            Err(error) if error.kind() == std::io::ErrorKind::TimedOut => failure = format!("{one} does not answer"),
            Err(error) => failure = format!("{one}: {error}"),
        }
    }
    let next = if failure.contains("refused") {
        "Nothing listens there: look at host and port of the endpoint, and whether the store runs"
    } else {
        "Something on the way drops what is sent, or the machine is down: look at the endpoint, firewalls, security groups and routes, from this host and from the \
         container of the application"
    };
    report.problem(
        "connection",
        failure,
        format!("{} (port {}) cannot be reached: commits wait on the local disk meanwhile", address.host, address.port),
        next,
    );
    false
}

/// What the first request says of the connection itself: true where the store has answered, whatever it said.
pub(super) fn answered(address: Option<&Address>, answer: Result<(), &StoreError>, took: Duration, report: &mut Report) -> bool {
    let Some(address) = address else { return true };
    let speaks = |report: &mut Report| {
        if address.is_tls {
            report.ok("tls", format!("the certificate of {} is good, and it answers ({})", address.host, brief(took)));
        } else if address.is_here() {
            report.ok("tls", format!("it answers ({}); the connection is not encrypted, and does not leave this machine", brief(took)));
        } else {
            report.warning(
                "tls",
                "the connection is not encrypted (http://)",
                "Who is on the way can read and change what is sent: the whole database. Signatures keep the keys from being read, no more",
                "Use an endpoint with https:// unless that way is yours alone",
            );
        }
    };
    let Err(error) = answer else {
        speaks(report);
        return true;
    };
    let cause = error.cause.clone();
    let certificate = certificate_problem(&cause);
    match error.kind {
        StoreErrorKind::Unreachable | StoreErrorKind::Server | StoreErrorKind::Truncated if certificate.is_some() => {
            let (means, next) = certificate.unwrap_or_default();
            report.problem("tls", cause, means, next);
        }
        StoreErrorKind::Unreachable | StoreErrorKind::Server | StoreErrorKind::Truncated if speaks_no_tls(&cause) => report.problem(
            "tls",
            cause,
            "What listens there speaks no TLS: another port, or a store without it",
            "Correct the port of the endpoint, or write http:// before it where the store has no TLS",
        ),
        StoreErrorKind::Unreachable => report.problem(
            "tls",
            cause,
            "The connection was opened and then broke off",
            "Look at the endpoint's port, and at what stands between: a proxy, a firewall that inspects TLS",
        ),
        StoreErrorKind::Timeout => report.problem(
            "answer",
            cause,
            "The connection opens, and no answer comes: another port than the store's, or a store that hangs",
            "Look at the endpoint's port and at the store itself",
        ),
        StoreErrorKind::Server | StoreErrorKind::Truncated if !cause.starts_with("HTTP ") => report.problem(
            "answer",
            cause,
            "What listens there is no store, or wants TLS",
            if address.is_tls {
                "Correct the port of the endpoint"
            } else {
                "Correct the port of the endpoint, or write https:// before it"
            },
        ),
        StoreErrorKind::Protocol if !cause.starts_with("HTTP ") => {
            report.problem("answer", cause, "What answers is no store", "Correct the endpoint: its host, its port");
        }
        _ => {
            speaks(report);
            return true;
        }
    }
    false
}

fn speaks_no_tls(cause: &str) -> bool {
    ["InvalidContentType", "corrupt message", "InvalidMessage"].iter().any(|part| cause.contains(part))
}

/// What is wrong with a certificate, told apart: what it means and what to do.
fn certificate_problem(cause: &str) -> Option<(&'static str, &'static str)> {
    let lower = cause.to_ascii_lowercase();
    if !lower.contains("certificate") {
        return None;
    }
    let has = |parts: &[&str]| parts.iter().any(|part| lower.contains(part));
    Some(if has(&["not valid after", "expired"]) {
        (
            "The store's certificate has run out, or this machine's clock is ahead",
            "Renew the certificate; look at this machine's date first",
        )
    } else if has(&["not valid before", "notvalidyet", "not valid yet"]) {
        ("The store's certificate is not good yet: this machine's clock is behind, most likely", "Set this machine's clock")
    } else if has(&["not valid for name", "notvalidforname"]) {
        (
            "The certificate is for another name than the one in the URL: another host answers, or the bucket's name has dots",
            "Write the name that the certificate has; with a bucket in the host name, path_style=true",
        )
    } else if has(&["unknownissuer", "self-signed", "selfsigned", "causedasendentity"]) {
        (
            "Nobody that this machine trusts vouches for the certificate: it is self-signed, or of an own authority, or something between inspects TLS",
            "Give the authority's certificate as ca_bundle (?ca_bundle=/path/ca.pem, --ca-bundle), or SSL_CERT_FILE; in a slim container install ca-certificates",
        )
    } else {
        ("The store's certificate is not accepted", "Look at it: openssl s_client -connect HOST:PORT")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_leads_to_a_host_and_a_port() {
        let of = |endpoint: &str| Address::of(endpoint).map(|address| (address.is_tls, address.host, address.port));
        assert_eq!(of("https://b.s3.eu-central-1.amazonaws.com"), Some((true, "b.s3.eu-central-1.amazonaws.com".to_owned(), 443)));
        assert_eq!(of("http://127.0.0.1:9000/bucket"), Some((false, "127.0.0.1".to_owned(), 9000)));
        assert_eq!(of("http://[::1]:9000"), Some((false, "::1".to_owned(), 9000)));
        assert_eq!(of("nothing"), None);
        let is_here = |endpoint: &str| Address::of(endpoint).unwrap().is_here();
        assert_eq!(["http://[::1]:1", "http://127.0.0.2", "http://localhost:9", "http://10.0.0.1"].map(is_here), [true, true, true, false]);
    }

    #[test]
    fn what_is_wrong_with_a_certificate_is_told_apart() {
        let means = |cause: &str| certificate_problem(cause).map(|(means, _)| means).unwrap_or_default();
        assert!(
            means("invalid peer certificate: certificate expired: verification time 1 (UNIX), but certificate is not valid after 0")
                .contains("run out")
        );
        assert!(means("invalid peer certificate: certificate not valid yet: ...").contains("not good yet"));
        assert!(means("invalid peer certificate: certificate not valid for name \"a\"").contains("another name"));
        assert!(means("invalid peer certificate: UnknownIssuer").contains("vouches"));
        assert!(means("invalid peer certificate: CaUsedAsEndEntity").contains("vouches"));
        assert!(means("connection refused").is_empty());
        assert!(speaks_no_tls("received corrupt message of type InvalidContentType"));
    }
}
