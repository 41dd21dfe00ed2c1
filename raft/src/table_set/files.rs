//! The files of a set in the metadata directories: made, opened, brought to one position, exchanged.

use super::{FileSpec, SetRandom};
use crate::table_file::database::{FileDatabase, FileOptions, OpenRandom, Snapshot};
use kiseki_types::meta::{MetaDir, MetaSpace};
use kiseki_types::runtime::{Ports, RuntimeExt};
use kiseki_types::table::TableError;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// No copy fills a metadata directory beyond this.
const FILL_PERCENT_MAX: u8 = 90;

/// Behind the name of a file that is being made.
const FRESH: &str = ".fresh";
/// Behind the name of a file that an installation fills.
const NEXT: &str = ".next";
/// Behind the first file's name: its presence says that all files of an installation are complete.
const SWAP: &str = ".swap";

/// Open files, all at one position.
pub(crate) struct OpenedFiles {
    /// In checkpoint order.
    pub databases: Vec<Arc<FileDatabase>>,
    /// What reads use, one of each file.
    pub snapshots: Vec<Snapshot>,
}

/// Room that a copy may take. Dropped, it is others'.
pub(crate) struct Reservation {
    reserved: Arc<AtomicU64>,
    bytes: u64,
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.reserved.fetch_sub(self.bytes, Ordering::SeqCst);
    }
}

/// Where and how the files of a set are.
pub(crate) struct SetFiles {
    dir: Arc<dyn MetaDir>,
    options: Vec<FileOptions>,
}

impl SetFiles {
    pub fn new(dir: Arc<dyn MetaDir>, files: Vec<FileSpec>, cache_bytes: usize) -> SetFiles {
        let options = files.into_iter().map(|file| {
            let FileSpec { name, seal } = file;
            FileOptions { name, seal: seal.map(Arc::new), cache_bytes }
        });
        SetFiles { dir, options: options.collect() }
    }

    /// The node is stopping, or the set was closed.
    pub fn closed(&self) -> TableError {
        TableError::Closed { file: self.options[0].name.clone() }
    }

    /// Name of the first file.
    pub fn name(&self) -> &str {
        &self.options[0].name
    }

    /// Fresh randomness for every file.
    pub fn random(&self, ports: &Ports) -> SetRandom {
        self.options.iter().map(|_| OpenRandom { salt: ports.random(), uuid: ports.random() }).collect()
    }

    fn swap_marker(&self) -> String {
        format!("{}{SWAP}", self.options[0].name)
    }

    /// Opens or makes all files. Blocks.
    pub fn open(&self, random: &SetRandom) -> Result<OpenedFiles, TableError> {
        let names = self.settle_names().map_err(|cause| self.options[0].error(cause))?;
        let present = |options: &FileOptions| names.contains(&options.name);
        if present(&self.options[0])
            && let Some(missing) = self.options.iter().find(|options| !present(options))
        {
            return Err(missing.error("it is missing although the first file of its set is there"));
        }
        // Last file first, so that the first one's presence says that all were made.
        let mut databases: Vec<Arc<FileDatabase>> = Vec::new();
        for (options, random) in self.options.iter().zip(random).rev() {
            let database = if present(options) {
                let file = self.dir.open(&options.name).map_err(|cause| options.error(cause))?;
                options.open(file, *random)?
            } else {
                refuse_beside_rows(options, &databases)?;
                let fresh = format!("{}{FRESH}", options.name);
                let database = options.create(&*self.dir, &fresh, *random)?;
                self.dir.rename(&fresh, &options.name).map_err(|cause| options.error(cause))?;
                database
            };
            databases.push(Arc::new(database));
        }
        databases.reverse();
        let mut snapshots = Vec::new();
        for database in &databases {
            let snapshot = database.snapshot()?;
            database.settle_live(&snapshot)?;
            snapshots.push(snapshot);
        }
        align(&databases, &mut snapshots)?;
        Ok(OpenedFiles { databases, snapshots })
    }

    /// Ends an installation that a crash interrupted, or removes what it left behind. Returns the names there are.
    fn settle_names(&self) -> io::Result<Vec<String>> {
        let marker = self.swap_marker();
        let names = self.dir.list()?;
        let complete = names.contains(&marker);
        for options in &self.options {
            let next = format!("{}{NEXT}", options.name);
            if names.contains(&next) {
                if complete {
                    self.dir.rename(&next, &options.name)?;
                } else {
                    self.dir.remove(&next)?;
                }
            }
            self.dir.remove(&format!("{}{FRESH}", options.name))?;
        }
        if complete {
            self.dir.remove(&marker)?;
        }
        self.dir.list()
    }

    /// Makes empty files beside the present ones. Blocks.
    pub fn create_next(&self, random: &SetRandom) -> Result<Vec<FileDatabase>, TableError> {
        let create = |(options, random): (&FileOptions, &OpenRandom)| {
            options.create(&*self.dir, &format!("{}{NEXT}", options.name), *random)
        };
        self.options.iter().zip(random).map(create).collect()
    }

    /// Errors: some metadata directory has no room for so many bytes more. A full one would be left out for good. Blocks.
    pub fn check_room(&self, bytes: u64) -> Result<(), TableError> {
        let spaces = self.dir.spaces().map_err(|cause| self.options[0].error(cause))?;
        match MetaSpace::rooms_of_each(&spaces, |space| space.room_to(FILL_PERCENT_MAX)).min() {
            Some(room) if room < bytes => {
                let reason = format!("a copy takes {bytes} bytes, and a metadata directory has room for {room}");
                Err(self.options[0].error(reason))
            }
            _ => Ok(()),
        }
    }

    /// Room for a copy of so many bytes, beside all that go on there. Errors: as of [`SetFiles::check_room`]. Blocks.
    pub fn reserve(&self, bytes: u64) -> Result<Reservation, TableError> {
        let reserved = self.dir.reserved().unwrap_or_default();
        let before = reserved.fetch_add(bytes, Ordering::SeqCst);
        let reservation = Reservation { reserved, bytes };
        self.check_room(before.saturating_add(bytes))?;
        Ok(reservation)
    }

    /// Removes the files that [`SetFiles::create_next`] made, if they are not complete: what stays is removed by the
    /// next open. Blocks.
    pub fn remove_next(&self) {
        for options in &self.options {
            let _ = self.dir.remove(&format!("{}{NEXT}", options.name));
        }
    }

    /// Says that all new files are complete: from here on they are what the next open finds. Blocks.
    ///
    /// Errors: it was not said, and may be left unsaid (`Ok`), or nobody knows whether it was (`Err`).
    pub fn declare_next(&self) -> Result<Result<(), TableError>, TableError> {
        let marker = self.swap_marker();
        match self.dir.create(&marker) {
            Ok(_) => Ok(Ok(())),
            Err(cause) => match self.dir.remove(&marker) {
                Ok(()) => Ok(Err(self.options[0].error(cause))),
                Err(_) => Err(self.options[0].error(cause)),
            },
        }
    }

    /// Puts the new files, which were declared complete, in the place of the present ones. Blocks; a crash at any step leaves
    /// all of the new ones to the next open.
    pub fn swap_in_next(&self) -> Result<(), TableError> {
        let swap = || -> io::Result<()> {
            let marker = self.swap_marker();
            for options in &self.options {
                self.dir.rename(&format!("{}{NEXT}", options.name), &options.name)?;
            }
            self.dir.remove(&marker)
        };
        swap().map_err(|cause| self.options[0].error(cause))
    }
}

/// A file that is not there is new only beside files that never took an apply; else it is lost.
fn refuse_beside_rows(options: &FileOptions, later: &[Arc<FileDatabase>]) -> Result<(), TableError> {
    for database in later {
        if database.snapshot()?.position > 0 {
            return Err(options.error("it is missing although later files of its set hold rows"));
        }
    }
    Ok(())
}

/// Brings later files to the first file's position after a crash between two commits.
fn align(databases: &[Arc<FileDatabase>], snapshots: &mut [Snapshot]) -> Result<(), TableError> {
    let first = snapshots[0].position;
    let redo_from = snapshots[0].redo_from;
    for number in 1..databases.len() {
        let (database, position) = (&databases[number], snapshots[number].position);
        if position == first {
            continue;
        }
        // I-V2: files of one set never stand for two prefixes of the log.
        if Some(position) != redo_from || position > first {
            return Err(database.error(format!(
                "it stands at position {position}, which does not meet the first file of its set at {first}"
            )));
        }
        let number_byte = u8::try_from(number).expect("a set has at most 256 files");
        database.catch_up(number_byte, &databases[0], &snapshots[0])?;
        snapshots[number] = database.snapshot()?;
    }
    Ok(())
}
