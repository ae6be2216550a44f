//! The harness's side of an actor.

use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Stdio};

use rustix::process::{Pid, Signal, kill_process};

use super::wire::{Answer, Op};
use crate::host::{self, PATIENCE};

/// A process that is told what to do. Killed when dropped.
pub struct Process {
    child: Child,
    to: UnixStream,
    from: BufReader<UnixStream>,
}

impl Process {
    /// Starts one.
    ///
    /// # Errors
    /// Where that cannot be done.
    pub fn start(env: &[(String, String)], log: &Path) -> std::io::Result<Self> {
        let (ours, theirs) = UnixStream::pair()?;
        ours.set_read_timeout(Some(PATIENCE))?;
        let mut env = env.to_vec();
        env.push(("REPLICATED_TEST_LOG".to_owned(), log.display().to_string()));
        let mut command = host::command(host::program("simulation-host"), &env);
        let input = OwnedFd::from(theirs.try_clone()?);
        let errors = std::fs::File::options().append(true).create(true).open(log)?;
        let child = command.stdin(Stdio::from(input)).stdout(Stdio::from(OwnedFd::from(theirs))).stderr(errors).spawn()?;
        Ok(Self { child, to: ours.try_clone()?, from: BufReader::new(ours) })
    }

    fn pid(&self) -> Option<Pid> {
        Pid::from_raw(self.child.id().cast_signed())
    }

    /// Asks without waiting for the answer.
    ///
    /// # Errors
    /// That it is gone.
    pub fn send(&mut self, op: &Op) -> Result<(), String> {
        let mut line = serde_json::to_vec(op).map_err(|error| error.to_string())?;
        line.push(b'\n');
        self.to.write_all(&line).map_err(|error| format!("the process is gone: {error}"))
    }

    /// The answer to what was asked.
    ///
    /// # Errors
    /// That it is gone, or hangs.
    pub fn answer(&mut self) -> Result<Answer, String> {
        let mut line = String::new();
        match self.from.read_line(&mut line) {
            Ok(1..) => serde_json::from_str(&line).map_err(|error| format!("{line}: {error}")),
            Ok(0) => Err(format!("the process ended by itself: {:?}", self.child.wait())),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                Err(format!("the process has not answered for {} s", PATIENCE.as_secs()))
            }
            Err(error) => Err(format!("the process is gone: {error}")),
        }
    }

    /// SIGSTOP, and waits until it has stopped.
    ///
    /// # Errors
    /// Where it cannot be stopped.
    pub fn stop(&self) -> Result<(), String> {
        let pid = self.pid().ok_or("no process")?;
        kill_process(pid, Signal::STOP).map_err(|error| error.to_string())?;
        for _ in 0..10_000 {
            let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id())).map_err(|error| error.to_string())?;
            if stat.rsplit(')').next().is_some_and(|rest| rest.trim_start().starts_with('T')) {
                return Ok(());
            }
            std::thread::sleep(std::time::Duration::from_micros(200));
        }
        Err("it does not stop".to_owned())
    }

    /// SIGCONT.
    ///
    /// # Errors
    /// Where it cannot go on.
    pub fn go_on(&self) -> Result<(), String> {
        let pid = self.pid().ok_or("no process")?;
        kill_process(pid, Signal::CONT).map_err(|error| error.to_string())
    }

    /// kill -9.
    pub fn kill(mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
