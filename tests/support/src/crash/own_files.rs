//! What a power loss leaves of the extension's own files, which it writes past SQLite's VFS: `<database>-replicated/`.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, OnceLock, PoisonError};

use serde::{Deserialize, Serialize};

use super::disk::{Disk, Fate};
use super::session::Power;

const SECTOR_BYTES: usize = 512;

/// How the extension's files come out of a power loss.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Own {
    /// As they were: the machine only crashed SQLite's writes away.
    AsTheyWere,
    /// The control file as it was last synced, nothing else changed.
    ControlAsSynced,
    /// The control file of any moment since its last sync, or torn between two of them; each other file whole, cut, full of zeros or gone;
    /// files that were removed are back, some of them.
    Random,
    /// Nothing is left of them.
    Lost,
}

/// What the extension wrote so far.
#[derive(Debug, Default)]
struct History {
    /// The control file at its last sync and after each write since; `None` where there was none.
    control: Vec<Option<Vec<u8>>>,
    /// Where files are kept beyond their removal.
    graveyard: Option<PathBuf>,
    /// Their names.
    buried: BTreeSet<String>,
}

static HISTORY: Mutex<History> = Mutex::new(History { control: Vec::new(), graveyard: None, buried: BTreeSet::new() });
static DIRECTORY: OnceLock<PathBuf> = OnceLock::new();

fn directory_of(database: &Path) -> PathBuf {
    PathBuf::from(format!("{}-replicated", database.display()))
}

/// Begins to keep account of a database's files. What is there now is safe. `folder` is on the same file system.
///
/// # Errors
/// Where the folder cannot be made.
pub fn watch(database: &Path, folder: &Path) -> std::io::Result<()> {
    let graveyard = folder.join("removed");
    std::fs::create_dir_all(&graveyard)?;
    let directory = DIRECTORY.get_or_init(|| directory_of(database));
    let mut history = HISTORY.lock().unwrap_or_else(PoisonError::into_inner);
    history.graveyard = Some(graveyard);
    history.control = vec![std::fs::read(directory.join("control")).ok()];
    Ok(())
}

/// The process has come to a fail point.
pub fn at(point: &'static str) {
    let Some(directory) = DIRECTORY.get() else { return };
    let mut history = HISTORY.lock().unwrap_or_else(PoisonError::into_inner);
    match point {
        "control.saved" => history.control.push(std::fs::read(directory.join("control")).ok()),
        "control.synced" => history.control = vec![std::fs::read(directory.join("control")).ok()],
        "spool.renamed" | "spool.remove" => history.bury(directory),
        _ => {}
    }
}

impl History {
    /// Keeps what is there by another link.
    fn bury(&mut self, directory: &Path) {
        let (Some(graveyard), Ok(entries)) = (&self.graveyard, std::fs::read_dir(directory)) else { return };
        for entry in entries.filter_map(Result::ok) {
            let name = entry.file_name().to_string_lossy().into_owned();
            if name.ends_with(".ltx") && !self.buried.contains(&name) && std::fs::hard_link(entry.path(), graveyard.join(&name)).is_ok() {
                self.buried.insert(name);
            }
        }
    }
}

/// Writes down what is left of all files, as `fates.json` in the folder.
///
/// # Errors
/// Where that cannot be written.
pub fn power_fails(power: &Power, database: &Path, disk: &Disk, seed: u64) -> std::io::Result<()> {
    std::fs::create_dir_all(&power.folder)?;
    let mut random = fastrand::Rng::with_seed(seed);
    let mut fates = disk.lose(power.loss, &mut random, &power.folder)?;
    fates.push((PathBuf::from(format!("{}-shm", database.display())), Fate::Gone));
    let history = HISTORY.lock().unwrap_or_else(PoisonError::into_inner);
    fates.extend(history.left_of(power, &directory_of(database), &mut random)?);
    std::fs::write(power.folder.join("fates.json"), serde_json::to_vec(&fates)?)
}

impl History {
    fn left_of(&self, power: &Power, directory: &Path, random: &mut fastrand::Rng) -> std::io::Result<Vec<(PathBuf, Fate)>> {
        let mut fates = Vec::new();
        let control = match power.own {
            Own::AsTheyWere | Own::Lost => None,
            Own::ControlAsSynced => self.control.first().cloned(),
            Own::Random => random.choice(&self.control).cloned().map(|first| {
                let mut mixed = first?;
                // It is one block, which the kernel writes at once: it may be torn in one place.
                if let Some(Some(second)) = random.choice(&self.control)
                    && random.bool()
                {
                    let from = random.usize(0..=mixed.len() / SECTOR_BYTES) * SECTOR_BYTES;
                    for (to, from) in mixed.iter_mut().zip(second).skip(from) {
                        *to = *from;
                    }
                }
                Some(mixed)
            }),
        };
        match control {
            Some(Some(control)) => {
                let kept = power.folder.join("own-control");
                std::fs::write(&kept, control)?;
                fates.push((directory.join("control"), Fate::Content(kept, None)));
            }
            Some(None) => fates.push((directory.join("control"), Fate::Gone)),
            None => {}
        }
        let present = std::fs::read_dir(directory).into_iter().flatten().filter_map(Result::ok);
        let present: BTreeSet<String> = present.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
        if power.own == Own::Random {
            let names: BTreeSet<String> = present.union(&self.buried).filter(|name| name.ends_with(".ltx")).cloned().collect();
            for name in names {
                let whole = std::fs::read(directory.join(&name));
                let whole = match (whole, &self.graveyard) {
                    (Ok(whole), _) => whole,
                    (Err(_), Some(graveyard)) if random.bool() => std::fs::read(graveyard.join(&name)).unwrap_or_default(),
                    _ => continue,
                };
                match random.u8(0..6) {
                    0 => fates.push((directory.join(&name), Fate::Gone)),
                    fate => {
                        let mut content = whole;
                        match fate {
                            1 => content.truncate(random.usize(0..=content.len() / SECTOR_BYTES) * SECTOR_BYTES),
                            2 => content.fill(0),
                            _ => {}
                        }
                        let kept = power.folder.join(format!("own-{name}"));
                        std::fs::write(&kept, content)?;
                        fates.push((directory.join(&name), Fate::Content(kept, None)));
                    }
                }
            }
        }
        if power.own == Own::Lost {
            fates.extend(present.iter().map(|name| (directory.join(name), Fate::Gone)));
        }
        Ok(fates)
    }
}
