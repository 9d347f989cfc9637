//! Takes everything off again, for un-install.

use std::fs;
use std::io;
use std::path::Path;

use mesh_common::names::maps;

use super::error::Error;
use super::guard;
use super::loader::Pins;
use super::table::Table;

/// Removes every pinned link and map below `pins`: capture, steering and guard end, and pods' traffic is their own.
/// Routes inside pods stay until the pod ends; they lead nowhere that anything dials.
pub fn detach_all(pins: &Path) -> Result<(), Error> {
    let ours = Pins::new(pins);
    if let Ok(guarded) = Table::open(&ours.maps(), maps::GUARDED) {
        for index in guarded.keys(65_536) {
            for uid in fs::read_dir(ours.pods()).into_iter().flatten().flatten() {
                guard::detach_filed(&guarded, &uid.path(), index);
            }
            guard::detach_filed(&guarded, &ours.pods(), index);
        }
    }
    // Connect hooks before the lookups and maps: from then on nothing new is led to a listener that is not there.
    for directory in [ours.links(), ours.pods(), ours.maps()] {
        remove(&directory).map_err(Error::io(format!("removing {}", directory.display())))?;
    }
    if let Some(root) = ours.maps().parent() {
        let _ = fs::remove_dir(root);
    }
    // Others may have something there.
    let _ = fs::remove_dir(pins);
    Ok(())
}

fn remove(directory: &Path) -> io::Result<()> {
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    for entry in entries {
        let entry = entry?;
        if entry.file_type()?.is_dir() { remove(&entry.path())? } else { fs::remove_file(entry.path())? }
    }
    fs::remove_dir(directory)
}
