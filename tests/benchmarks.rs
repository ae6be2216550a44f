//! What the benchmark stands on, without measuring anything: its page is what its results say, and its network between client and server changes no byte.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

fn python(script: &str) -> Command {
    let mut command = Command::new("python3");
    command.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("benches").join(script)).env("PYTHONDONTWRITEBYTECODE", "1");
    command
}

/// Ends it when the test does, however it does.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn the_page_has_what_the_results_say() {
    let folder = tempfile::tempdir().unwrap();
    let rendered = folder.path().join("performance.md");
    let done = python("run.py").arg("--render").arg("--page").arg(&rendered).output().unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    let page = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("docs/performance.md");
    let (there, wanted) = (std::fs::read_to_string(page).unwrap(), std::fs::read_to_string(rendered).unwrap());
    assert!(there.contains("<!-- table -->"), "the page has no place for the first table");
    assert!(there == wanted, "docs/performance.md is not what benches/results say: run `python3 benches/run.py --render`");
}

#[test]
fn a_part_that_is_not_there_is_refused_by_its_name() {
    let done = python("run.py").args(["comits"]).output().unwrap();
    assert!(!done.status.success());
    let told = String::from_utf8_lossy(&done.stderr).into_owned();
    assert!(told.contains("comits") && told.contains("commits"), "{told}");
}

#[test]
fn what_crosses_the_delay_arrives_whole_and_in_order() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    // An echo, from the first byte on, until the client has no more to say.
    let echo = std::thread::spawn(move || {
        let (stream, _) = listener.accept().unwrap();
        let (mut from, mut to) = (stream.try_clone().unwrap(), stream);
        std::io::copy(&mut from, &mut to).unwrap();
        to.shutdown(Shutdown::Write).unwrap();
    });
    let mut proxy = Ended(python("delay.py").args([&port.to_string(), "10"]).stdout(Stdio::piped()).spawn().unwrap());
    let mut told = String::new();
    BufReader::new(proxy.0.stdout.take().unwrap()).read_line(&mut told).unwrap();
    let stream = TcpStream::connect(("127.0.0.1", told.trim().parse::<u16>().unwrap())).unwrap();

    let sent: Vec<u8> = (0..3_000_000_u32).flat_map(u32::to_le_bytes).collect();
    let mut to = stream.try_clone().unwrap();
    let writing = std::thread::spawn({
        let sent = sent.clone();
        move || {
            // In pieces, so that many are under way at a time.
            sent.chunks(10_000).try_for_each(|piece| to.write_all(piece)).unwrap();
            to.shutdown(Shutdown::Write).unwrap();
        }
    });
    let mut received = Vec::with_capacity(sent.len());
    let mut from = stream;
    from.read_to_end(&mut received).unwrap();
    writing.join().unwrap();
    echo.join().unwrap();
    assert_eq!(received.len(), sent.len());
    assert!(received == sent, "the bytes are not those that were sent");
}
