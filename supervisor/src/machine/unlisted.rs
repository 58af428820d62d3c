//! Machines that the database does not know: it was lost, moved away, or restored from a backup. Their
//! folders and VMMs are left alone until somebody takes them back or removes them.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use machine_api::{MachineState, UnlistedMachine};

use crate::clock;
use crate::disk_usage;
use crate::error_chain::error_chain;
use crate::machine::driver::Driver;
use crate::machine::error::MachineError;
use crate::machine::found_vmm::FoundVmm;
use crate::machine::handle::Handle;
use crate::machine::registry::Registry;
use crate::machine_folder::{Contents, MachineFile, MachineFileError};
use crate::model::record::{Facts, MachineRecord};
use crate::model::{event, view};
use crate::paths::MachineDir;
use crate::store::{Change, StoreError};
use crate::vmm_process::{CommandLines, VmmProcess};

/// How long the VMM of a machine that is removed may take to end.
const KILL_LIMIT: Duration = Duration::from_secs(10);

/// What there is of a machine that the database does not know.
struct Found {
    folder: String,
    dir: MachineDir,
    contents: io::Result<Contents>,
    file: Result<MachineFile, MachineFileError>,
}

impl Registry {
    /// All machines that the database does not know, by folder.
    pub(crate) fn unlisted(&self) -> io::Result<Vec<UnlistedMachine>> {
        let lines = CommandLines::read()?;
        let found = self.unlisted_folders(&lines)?;
        Ok(found
            .into_iter()
            .map(|(folder, dir)| Found::look(folder, dir, &lines).shown())
            .collect())
    }

    /// Takes back the machine in `folder`, with what its folder says, under another `name` if one is
    /// given.
    pub(crate) async fn take_back(
        &self,
        folder: &str,
        name: Option<String>,
    ) -> Result<Handle, MachineError> {
        let (found, lines) = self.find_unlisted(folder)?;
        let contents = found.contents.map_err(|source| MachineError::Files {
            what: "look into the machine's folder",
            source,
        })?;
        let file = found.file.map_err(|error| MachineError::NotDescribed {
            folder: folder.to_owned(),
            problem: error_chain(&error),
        })?;
        if file.id != folder {
            return Err(MachineError::NotDescribed {
                folder: folder.to_owned(),
                problem: format!("its file describes machine {}", file.id),
            });
        }
        if contents.vmms.len() > 1 {
            return Err(MachineError::NotDescribed {
                folder: folder.to_owned(),
                problem: format!("{} VMMs run in it", contents.vmms.len()),
            });
        }
        let name = name.unwrap_or_else(|| file.name.clone());
        self.check_name(&name, Some(folder))?;
        let record = record(file, name, &contents);
        // In a task of its own: otherwise a client that goes away would leave it half done.
        let taken = tokio::spawn(self.clone().add_taken_back(record, found.dir, lines));
        taken.await.map_err(|_| MachineError::ShuttingDown)?
    }

    async fn add_taken_back(
        self,
        record: MachineRecord,
        dir: MachineDir,
        lines: CommandLines,
    ) -> Result<Handle, MachineError> {
        let files = |what| move |source| MachineError::Files { what, source };
        let message = "taken back from its folder; the database did not know it".to_owned();
        let event = event::taken_back(record.state, message);
        let vmm =
            FoundVmm::look(&record, &dir, &lines).map_err(files("look for the machine's VMM"))?;
        let (driver, handle) =
            Driver::new(self.context().clone(), record.clone(), vec![event.clone()])
                .map_err(files("open the machine's log and watch its console"))?;
        let changes = vec![
            Change::NewMachine(Box::new(record.clone())),
            Change::Version(Box::new(record.clone())),
            Change::Event(record.id.clone(), Box::new(event)),
        ];
        match self
            .context()
            .store
            .commit("store the machine", changes)
            .await
        {
            Ok(()) => {}
            Err(StoreError::Exists { .. }) => return Err(MachineError::NameTaken(record.name)),
            Err(error) => return Err(error.into()),
        }
        self.add(driver, &handle, Some(vmm));
        Ok(handle)
    }

    /// Removes the machine in `folder` with all that it has. One whose VMM runs is removed only if
    /// that is wanted (`kill`).
    pub(crate) async fn remove_unlisted(
        &self,
        folder: &str,
        kill: bool,
    ) -> Result<(), MachineError> {
        let (found, _) = self.find_unlisted(folder)?;
        let files = |what| move |source| MachineError::Files { what, source };
        let contents = found
            .contents
            .map_err(files("look into the machine's folder"))?;
        if !contents.vmms.is_empty() && !kill {
            return Err(MachineError::UnlistedRuns(folder.to_owned()));
        }
        for (identity, generation) in &contents.vmms {
            let vmm = VmmProcess::adopt(identity, folder, *generation, &found.dir)
                .map_err(files("find the machine's VMM"))?;
            if let Some(vmm) = vmm {
                vmm.kill();
                tokio::time::timeout(KILL_LIMIT, vmm.exited())
                    .await
                    .map_err(|_| MachineError::UnlistedRuns(folder.to_owned()))?;
            }
        }
        match fs::remove_dir_all(found.dir.root()) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(files("remove the machine's files")(error))
            }
            _ => Ok(()),
        }
    }

    fn find_unlisted(&self, folder: &str) -> Result<(Found, CommandLines), MachineError> {
        let files = |source| MachineError::Files {
            what: "look for machines that the database does not know",
            source,
        };
        let lines = CommandLines::read().map_err(files)?;
        let mut all = self.unlisted_folders(&lines).map_err(files)?;
        let dir = all
            .remove(folder)
            .ok_or_else(|| MachineError::NotUnlisted(folder.to_owned()))?;
        Ok((Found::look(folder.to_owned(), dir, &lines), lines))
    }

    /// The folders of such machines by name: those that are there, and those that a VMM still names.
    fn unlisted_folders(&self, lines: &CommandLines) -> io::Result<BTreeMap<String, MachineDir>> {
        let state_dir = &self.context().configuration.state_dir;
        let machines = state_dir.machines();
        let mut paths: Vec<PathBuf> = lines.folders_in(&machines);
        for entry in fs::read_dir(&machines)? {
            paths.push(entry?.path());
        }
        let names = paths.iter().filter_map(|path| path.file_name()?.to_str());
        Ok(names
            .filter(|name| !self.is_listed(name))
            .map(|name| (name.to_owned(), state_dir.machine(name)))
            .collect())
    }

    /// Whether the folder `name` is that of a machine that the database knows. A destroyed one has
    /// none.
    fn is_listed(&self, name: &str) -> bool {
        self.find(name).is_ok_and(|handle| {
            handle.id() == name && handle.view().state != MachineState::Destroyed
        })
    }
}

impl Found {
    fn look(folder: String, dir: MachineDir, lines: &CommandLines) -> Self {
        Self {
            contents: Contents::look(&dir, &folder, lines),
            file: MachineFile::read(&dir),
            folder,
            dir,
        }
    }

    fn shown(self) -> UnlistedMachine {
        let problem = match (&self.contents, &self.file) {
            (Err(error), _) => Some(error_chain(error)),
            (_, Err(error)) => Some(error_chain(error)),
            (Ok(_), Ok(file)) if file.id != self.folder => {
                Some(format!("its file describes machine {}", file.id))
            }
            _ => None,
        };
        let contents = self.contents.unwrap_or_default();
        let file = self.file.ok();
        UnlistedMachine {
            state: view::api_state(contents.state()),
            vmm_pid: contents.vmms.first().map(|(vmm, _)| vmm.pid),
            bytes: disk_usage::of_folder(self.dir.root()).map_or(0, |usage| usage.bytes),
            changed_at: changed_at_ms(self.dir.root()).map(clock::rfc3339_ms),
            name: file.as_ref().map(|file| file.name.clone()),
            app: file.map(|file| file.app),
            folder: self.folder,
            problem,
        }
    }
}

/// When something was added to a folder, or taken from it.
fn changed_at_ms(folder: &Path) -> Option<i64> {
    let changed: SystemTime = fs::metadata(folder).ok()?.modified().ok()?;
    i64::try_from(changed.duration_since(UNIX_EPOCH).ok()?.as_millis()).ok()
}

fn record(file: MachineFile, name: String, contents: &Contents) -> MachineRecord {
    let mut record = MachineRecord {
        id: file.id,
        app: file.app,
        name,
        state: contents.state(),
        instance_id: file.instance_id,
        config: file.config,
        image_ref: file.image_ref,
        created_at_ms: file.created_at_ms,
        updated_at_ms: clock::realtime_ms(),
        generation: 0,
        image_generation: None,
        vmm: None,
        facts: Facts::default(),
    };
    contents.bring_up_to_date(&mut record);
    record
}
