//! The store that both hosts use, and its weather.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::step::Weather;
use crate::bucket::Bucket;
use crate::faulty::{Endpoint, Fault, Kind};
use crate::s3::Server;

/// Which store.
#[derive(Clone, Copy)]
pub enum Stores<'a> {
    /// An S3 server over HTTP.
    S3(&'a Server),
    /// A folder.
    Folder,
}

/// See the module.
pub struct Place {
    /// As the harness reaches it, whatever the weather.
    pub direct: Bucket,
    /// As the actors do.
    pub outside: Bucket,
    /// What it is like.
    pub weather: Weather,
    endpoint: Option<Endpoint>,
    shared: Arc<Mutex<Weather>>,
    folder: PathBuf,
}

fn fault(weather: Weather, index: u64, kind: Kind) -> Fault {
    let stores = matches!(kind, Kind::Put | Kind::Part | Kind::Complete);
    match weather {
        Weather::Fine => Fault::None,
        Weather::Down => Fault::ResetBefore,
        Weather::Slow => Fault::Drip(Duration::from_millis(10 + index % 7 * 10)),
        Weather::Unavailable => Fault::Refusal(503, "SlowDown", None),
        Weather::ResetAfter if stores => Fault::ResetAfter,
        Weather::Late if stores => Fault::Late(1 + index % 5),
        Weather::ResetAfter | Weather::Late => Fault::None,
    }
}

impl Place {
    /// An empty one.
    ///
    /// # Panics
    /// Where there is no port for it.
    #[must_use]
    pub fn new(stores: Stores<'_>, dir: &Path, seed: u64) -> Self {
        let shared = Arc::new(Mutex::new(Weather::Fine));
        let folder = dir.join("bucket");
        let (direct, outside, endpoint) = match stores {
            Stores::Folder => (Bucket::folder(&folder), Bucket::folder(&folder), None),
            Stores::S3(server) => {
                let told = Arc::clone(&shared);
                let plan = Box::new(move |seen: &crate::faulty::Seen| {
                    fault(*told.lock().unwrap_or_else(PoisonError::into_inner), seen.index, seen.kind)
                });
                let endpoint = Endpoint::start(server, plan).expect("a port is free");
                let direct = Bucket::s3(server, &format!("world-{seed}-{}", fastrand::u32(..)));
                let outside = direct.through(&endpoint.endpoint());
                (direct, outside, Some(endpoint))
            }
        };
        Self { direct, outside, weather: Weather::Fine, endpoint, shared, folder }
    }

    fn away(&self) -> PathBuf {
        self.folder.with_extension("away")
    }

    /// The store changes. A folder is there or not; then something else stands in its place.
    ///
    /// # Panics
    /// Where the folder cannot be moved.
    pub fn set(&mut self, weather: Weather) {
        if self.endpoint.is_none() {
            let weather = if weather == Weather::Fine { Weather::Fine } else { Weather::Down };
            if weather != self.weather {
                if weather == Weather::Down {
                    std::fs::create_dir_all(&self.folder).expect("a folder can be made");
                    std::fs::write(self.away(), "no folder").expect("a file can be written");
                }
                // In one step: a writer makes the folder anew where it finds nothing.
                let here = rustix::fs::CWD;
                rustix::fs::renameat_with(here, &self.folder, here, self.away(), rustix::fs::RenameFlags::EXCHANGE)
                    .expect("they can be exchanged");
                if weather == Weather::Fine {
                    std::fs::remove_file(self.away()).expect("it is ours");
                }
            }
            // The harness reads where it is.
            self.direct = Bucket::folder(&if weather == Weather::Down { self.away() } else { self.folder.clone() });
            self.weather = weather;
            return;
        }
        *self.shared.lock().unwrap_or_else(PoisonError::into_inner) = weather;
        self.weather = weather;
    }

    /// What is still on its way arrives.
    pub fn release_late(&self) {
        if let Some(endpoint) = &self.endpoint {
            endpoint.release_late();
        }
    }

    /// How often each fault happened.
    #[must_use]
    pub fn faults(&self) -> u64 {
        self.endpoint.as_ref().map_or(0, |endpoint| endpoint.faults().iter().filter(|(name, _)| **name != "none").map(|(_, n)| n).sum())
    }
}
