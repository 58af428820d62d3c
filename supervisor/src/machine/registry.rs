//! All machines of the host: makes them, finds them, lists them.

use std::collections::{BTreeMap, VecDeque};
use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use machine_api::{CreateMachine, MachineEvent, MachineState};
use tokio::sync::{mpsc, watch};
use tokio::time::sleep;

use crate::logs::MachineLog;
use crate::machine::driver::{Driver, Opening};
use crate::machine::error::MachineError;
use crate::machine::{Handle, Host, config, record, view};
use crate::network::Activity;
use crate::store::{Change, MachineRecord, StoreError};
use crate::{clock, fail_point};

/// How long a destroyed machine can still be looked at.
const REMEMBERED_MS: i64 = 24 * 3_600 * 1_000;
/// How often it is looked for machines to forget.
const FORGET_EVERY: Duration = Duration::from_secs(3_600);

/// The machines; cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Registry {
    host: Arc<Host>,
    machines: Arc<RwLock<BTreeMap<String, Handle>>>,
}

impl Registry {
    /// Knows no machine yet.
    pub(crate) fn new(host: Arc<Host>) -> Self {
        Self {
            host,
            machines: Arc::default(),
        }
    }

    /// What all machines share.
    pub(crate) fn host(&self) -> &Arc<Host> {
        &self.host
    }

    /// Stores a new machine and gives it a driver. Does not start it.
    pub(crate) async fn create(
        &self,
        app: &str,
        request: CreateMachine,
    ) -> Result<Handle, MachineError> {
        config::check(&request.config)?;
        if let Some(name) = &request.name {
            self.check_name(name, None)?;
        }
        let image = self.host.images.find(&request.config.image)?;
        let record = record::new(app, request.name, request.config, image.reference);
        // In a task of its own: a client that goes away would otherwise leave it half made.
        let made = tokio::spawn(self.clone().make(record));
        made.await.map_err(|_| MachineError::ShuttingDown)?
    }

    async fn make(self, record: MachineRecord) -> Result<Handle, MachineError> {
        let name = record.name.clone();
        let dir = self.host.configuration.state_dir.machine(&record.id);
        make_directory(dir.root()).map_err(|source| MachineError::Files {
            what: "make the machine's directory",
            source,
        })?;
        fail_point::reach("create.directory");
        let launch = record::launch();
        let driver = Driver::new(self.host.clone(), record.clone(), vec![launch.clone()]);
        let stored = match &driver {
            Ok(_) => self.store(&record, launch).await,
            Err(_) => Ok(()),
        };
        let failed = match (stored, driver) {
            (Ok(()), Ok((driver, handle))) => {
                fail_point::reach("create.stored");
                self.add(handle.clone());
                tokio::spawn(driver.run(Opening::Resting));
                return Ok(handle);
            }
            (Err(StoreError::Exists { .. }), _) => MachineError::NameTaken(name),
            (Err(error), _) => error.into(),
            (Ok(()), Err(source)) => MachineError::Files {
                what: "open the machine's log and watch its console",
                source,
            },
        };
        // Nothing refers to the directory; what can't be removed is found at the next start.
        // By name, which needs no descriptor where those are what was wanting.
        for file in [dir.log(), dir.console()] {
            let _ = fs::remove_file(file);
        }
        let _ = fs::remove_dir(dir.root());
        Err(failed)
    }

    /// Whether a machine may be called so; `id` is its own, where it has one.
    pub(crate) fn check_name(&self, name: &str, id: Option<&str>) -> Result<(), MachineError> {
        if !record::is_name(name) {
            let problem = "a name has 1 to 63 letters, digits, '-', '_' or '.'";
            return Err(MachineError::Invalid(format!("name {name:?}: {problem}")));
        }
        // The database has the last word, where two ask at once.
        let taken = |handle: &Handle| {
            let view = handle.view();
            view.name == name && view.state != MachineState::Destroyed
        };
        match self.all().iter().find(|handle| taken(handle)) {
            Some(other) if Some(other.id()) != id => Err(MachineError::NameTaken(name.to_owned())),
            Some(_) | None => Ok(()),
        }
    }

    async fn store(&self, record: &MachineRecord, launch: MachineEvent) -> Result<(), StoreError> {
        let changes = vec![
            Change::NewMachine(Box::new(record.clone())),
            Change::Version(Box::new(record.clone())),
            Change::Event(record.id.clone(), Box::new(launch)),
        ];
        self.host.store.commit("store the machine", changes).await
    }

    /// Makes a machine known, publishes its ports and runs its checks.
    pub(crate) fn add(&self, handle: Handle) {
        tokio::spawn(crate::network::serve(handle.clone()));
        tokio::spawn(crate::checks::serve(handle.clone()));
        let mut machines = self
            .machines
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        machines.insert(handle.id().to_owned(), handle);
    }

    /// Makes a destroyed machine known, which has no driver any more.
    pub(crate) fn add_destroyed(&self, record: &MachineRecord, events: Vec<MachineEvent>) {
        let dir = self.host.configuration.state_dir.machine(&record.id);
        let view = view::machine(record, &VecDeque::from(events), &[]);
        // Nobody is at the other ends, as after the end of a driver.
        let handle = Handle {
            id: record.id.clone(),
            inbox: mpsc::channel(1).0,
            view: watch::channel(Arc::new(view)).1,
            live: watch::channel(None).1,
            log: MachineLog::unwritten(&dir.log()),
            activity: Activity::new(),
        };
        let mut machines = self
            .machines
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        machines.insert(record.id.clone(), handle);
    }

    /// Forgets machines a while after they were destroyed, now and from time to time.
    pub(crate) async fn forget_destroyed(self) {
        loop {
            let before_ms = clock::realtime_ms() - REMEMBERED_MS;
            match self.host.store.forget_destroyed(before_ms).await {
                Ok(ids) => {
                    let mut machines = self
                        .machines
                        .write()
                        .unwrap_or_else(PoisonError::into_inner);
                    for id in ids {
                        tracing::info!(machine_id = id, "destroyed machine forgotten");
                        machines.remove(&id);
                    }
                }
                // The next time may go better, and nothing depends on it.
                Err(error) => tracing::warn!(%error, "destroyed machines not forgotten"),
            }
            sleep(FORGET_EVERY).await;
        }
    }

    /// The machine of that id, or else of that name.
    pub(crate) fn find(&self, id_or_name: &str) -> Result<Handle, MachineError> {
        let machines = self.machines.read().unwrap_or_else(PoisonError::into_inner);
        let named = |handle: &&Handle| {
            let view = handle.view();
            view.name == id_or_name && view.state != MachineState::Destroyed
        };
        machines
            .get(id_or_name)
            .or_else(|| machines.values().find(named))
            .cloned()
            .ok_or_else(|| MachineError::NotFound(id_or_name.to_owned()))
    }

    /// All machines, by id.
    pub(crate) fn all(&self) -> Vec<Handle> {
        self.machines
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .values()
            .cloned()
            .collect()
    }
}

/// A directory for its owner only; success if it is there.
pub(crate) fn make_directory(path: &Path) -> io::Result<()> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
}
