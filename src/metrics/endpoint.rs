//! Metrics over HTTP, for the option `metrics`: one listener of the process for all of its databases.
//!
//! It lives on the uploader's thread, sleeps in the same `epoll`, and costs nothing while nobody asks. What it hands out is made when it is asked for, without waiting
//! for anything that a request to the store, or an open, holds. A few connections at a time, each for a moment: whoever hangs keeps nobody else out for long.

use std::convert::Infallible;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::AsRawFd;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::sync::Semaphore;

use super::CONTENT_TYPE;

/// Connections that are served at a time. Others wait in the kernel's queue.
const MOST_CONNECTIONS: usize = 4;
/// How long one may take, from its beginning to its end.
const LONGEST: Duration = Duration::from_secs(10);
/// What a request's head may have.
const HEAD_BYTES: usize = 16 * 1024;
/// After a failure of `accept`: no descriptors left, say.
const PAUSE: Duration = Duration::from_secs(1);
/// How often, and how long apart, it is looked whether what is told can be had without waiting.
const LOOKS: u32 = 100;
const LOOK_PAUSE: Duration = Duration::from_millis(10);

const NONE: i32 = -1;
/// The listener of this process. In the child of a fork nobody would ever answer those whom it keeps waiting once the parent has gone.
static LISTENING: AtomicI32 = AtomicI32::new(NONE);

/// To be called in the child of a fork, where it may make system calls and nothing else.
pub(crate) fn forked() {
    let descriptor = LISTENING.swap(NONE, Ordering::AcqRel);
    if descriptor != NONE {
        // What has it open is left alone for ever, so that nobody closes it again.
        let _ = nix::unistd::close(descriptor);
    }
}

/// Begins to listen; nobody is answered before `serve`. The address tells which port it is, where any would do.
pub(crate) fn listen(address: SocketAddr) -> io::Result<(TcpListener, SocketAddr)> {
    let listener = TcpListener::bind(address)?;
    listener.set_nonblocking(true)?;
    let address = listener.local_addr()?;
    // One for the process, for as long as it lives.
    LISTENING.store(listener.as_raw_fd(), Ordering::Release);
    Ok((listener, address))
}

/// Answers those who ask, for ever. `text` is what there is to tell, or `None` where that would have to be waited for now.
pub(crate) async fn serve(listener: TcpListener, text: impl Fn() -> Option<String> + 'static) -> io::Result<()> {
    let listener = tokio::net::TcpListener::from_std(listener)?;
    let (places, text) = (Arc::new(Semaphore::new(MOST_CONNECTIONS)), Rc::new(text));
    loop {
        // Taken before there is a connection, so that no more than these are open. It is never closed.
        let place = Arc::clone(&places).acquire_owned().await;
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(PAUSE).await;
            continue;
        };
        let text = Rc::clone(&text);
        tokio::task::spawn_local(async move {
            let _place = place;
            let connection = async move {
                let answer = service_fn(|request| answer(request, &*text));
                let mut http = hyper::server::conn::http1::Builder::new();
                // Whoever asks and goes away has the answer it wants.
                let _ = http.keep_alive(false).max_buf_size(HEAD_BYTES).serve_connection(TokioIo::new(stream), answer).await;
            };
            let _ = tokio::time::timeout(LONGEST, connection).await;
        });
    }
}

async fn answer(request: Request<Incoming>, text: &impl Fn() -> Option<String>) -> Result<Response<Full<Bytes>>, Infallible> {
    let (status, content_type, body) = match (request.method(), request.uri().path()) {
        (&Method::GET | &Method::HEAD, "/metrics") => match had(text).await {
            Some(text) => (StatusCode::OK, CONTENT_TYPE, text),
            None => (StatusCode::SERVICE_UNAVAILABLE, PLAIN, "a database is being opened; ask again\n".to_owned()),
        },
        (&Method::GET | &Method::HEAD, "/") => (StatusCode::OK, PLAIN, "replicated: see /metrics\n".to_owned()),
        (&Method::GET | &Method::HEAD, _) => (StatusCode::NOT_FOUND, PLAIN, "see /metrics\n".to_owned()),
        _ => (StatusCode::METHOD_NOT_ALLOWED, PLAIN, "only GET\n".to_owned()),
    };
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    response.headers_mut().insert(hyper::header::CONTENT_TYPE, hyper::header::HeaderValue::from_static(content_type));
    Ok(response)
}

const PLAIN: &str = "text/plain; charset=utf-8";

async fn had(text: &impl Fn() -> Option<String>) -> Option<String> {
    for _ in 0..LOOKS {
        if let Some(text) = text() {
            return Some(text);
        }
        tokio::time::sleep(LOOK_PAUSE).await;
    }
    None
}
