//! All machines of the host: creates them, finds them, lists them.

use std::collections::{BTreeMap, VecDeque};
use std::fs;
use std::sync::{Arc, PoisonError, RwLock, RwLockWriteGuard};
use std::time::Duration;

use machine_api::{CreateMachine, MachineEvent, MachineState};
use tokio::sync::{mpsc, watch};
use tokio::time::sleep;

use crate::logs::MachineLog;
use crate::machine::activity::Activity;
use crate::machine::context::DriverContext;
use crate::machine::driver::Driver;
use crate::machine::error::MachineError;
use crate::machine::found_vmm::FoundVmm;
use crate::machine::handle::Handle;
use crate::model::record::{LeaseWanted, MachineRecord, is_name};
use crate::model::{config_check, event, view};
use crate::paths::create_private_dir;
use crate::store::{Change, StoreError};
use crate::{clock, fail_point};

/// How long a destroyed machine is still shown.
const REMEMBERED_MS: i64 = 24 * 3_600 * 1_000;
/// Time between two searches for machines to forget.
const FORGET_EVERY: Duration = Duration::from_secs(3_600);

/// Starts what uses a machine: called once for each one that has a driver.
pub(crate) type Attach = fn(&Handle);

/// The machines; cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Registry {
    context: Arc<DriverContext>,
    attach: Attach,
    machines: Arc<RwLock<BTreeMap<String, Handle>>>,
}

impl Registry {
    /// No machines yet. `attach` is called for each that is added.
    pub(crate) fn new(context: Arc<DriverContext>, attach: Attach) -> Self {
        Self {
            context,
            attach,
            machines: Arc::default(),
        }
    }

    /// What all drivers share.
    pub(crate) fn context(&self) -> &Arc<DriverContext> {
        &self.context
    }

    /// Stores a new machine as a whole, with its first lease and all that the request asks for, and gives it a
    /// driver, which starts it unless told otherwise. Returns the nonce of the lease.
    pub(crate) async fn create(
        &self,
        app: &str,
        request: CreateMachine,
        lease: Option<LeaseWanted>,
    ) -> Result<(Handle, Option<String>), MachineError> {
        config_check::check(&request.config)?;
        if let Some(name) = &request.name {
            self.check_name(name, None)?;
        }
        let image = self.context.images.find(&request.config.image)?;
        let mut record = MachineRecord::new(app, request.name, request.config, image.reference);
        record.facts.cordoned = request.skip_service_registration;
        record.facts.start_due = !request.skip_launch;
        let lease = lease.map(|lease| record.take_lease(lease, clock::realtime_ms()).cloned());
        let lease = lease.transpose();
        let lease = lease.map_err(|refusal| MachineError::of_lease(&record.id, refusal))?;
        // In a task of its own: otherwise a client that goes away would leave it half created.
        let created = tokio::spawn(self.clone().create_from(record));
        let handle = created.await.map_err(|_| MachineError::ShuttingDown)??;
        Ok((handle, lease.map(|lease| lease.nonce)))
    }

    async fn create_from(self, record: MachineRecord) -> Result<Handle, MachineError> {
        fail_point::reach("create.begun");
        let launch = event::launch();
        match self.store(&record, launch.clone()).await {
            Ok(()) => {}
            Err(StoreError::Exists { .. }) => return Err(MachineError::NameTaken(record.name)),
            Err(error) => return Err(error.into()),
        }
        // From here on the machine exists: a new supervisor makes what is missing of its folder.
        fail_point::reach("create.stored");
        match self.make_folder(&record, launch) {
            Ok((driver, handle)) => {
                self.add(driver, &handle, None);
                Ok(handle)
            }
            Err(error) => {
                self.take_creation_back(&record).await;
                Err(error)
            }
        }
    }

    fn make_folder(
        &self,
        record: &MachineRecord,
        launch: MachineEvent,
    ) -> Result<(Driver, Handle), MachineError> {
        let files = |what| move |source| MachineError::Files { what, source };
        let dir = self.context.configuration.state_dir.machine(&record.id);
        create_private_dir(dir.root()).map_err(files("create the machine's directory"))?;
        // Its driver writes the machine's file, which may wait for space on a full disk.
        Driver::new(self.context.clone(), record.clone(), vec![launch])
            .map_err(files("open the machine's log and watch its console"))
    }

    async fn take_creation_back(&self, record: &MachineRecord) {
        // Files are removed by name, which works even when out of descriptors.
        let dir = self.context.configuration.state_dir.machine(&record.id);
        for file in [
            dir.log(),
            dir.console(),
            dir.machine_file(),
            dir.new_machine_file(),
        ] {
            let _ = fs::remove_file(file);
        }
        let _ = fs::remove_dir(dir.root());
        let forgotten = vec![Change::Forget(record.id.clone())];
        let stored = self.context.store.commit("forget the machine", forgotten);
        if let Err(error) = stored.await {
            // The next supervisor lists it, as one that was never started.
            tracing::error!(machine_id = record.id, %error, "cannot forget a failed creation");
        }
    }

    /// Checks that a machine may have that name. `id` is the machine's own, if it exists already.
    pub(crate) fn check_name(&self, name: &str, id: Option<&str>) -> Result<(), MachineError> {
        if !is_name(name) {
            let problem = "a name has 1 to 63 letters, digits, '-', '_' or '.'";
            return Err(MachineError::Invalid(format!("name {name:?}: {problem}")));
        }
        // If two ask at once, the database refuses the second.
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
        self.context
            .store
            .commit("store the machine", changes)
            .await
    }

    /// Adds a machine, starts its driver and attaches what uses it. `found` is what an earlier
    /// supervisor has left of its VMM.
    pub(crate) fn add(&self, driver: Driver, handle: &Handle, found: Option<FoundVmm>) {
        (self.attach)(handle);
        self.machines_mut()
            .insert(handle.id().to_owned(), handle.clone());
        tokio::spawn(driver.run(found));
    }

    /// Adds a destroyed machine, which has no driver any more.
    pub(crate) fn add_destroyed(&self, record: &MachineRecord, events: Vec<MachineEvent>) {
        let dir = self.context.configuration.state_dir.machine(&record.id);
        let view = view::machine(record, &VecDeque::from(events), &[]);
        // Its channels are closed at the other end, as after the end of a driver.
        let handle = Handle {
            id: record.id.clone(),
            inbox: mpsc::channel(1).0,
            view: watch::channel(Arc::new(view)).1,
            live: watch::channel(None).1,
            log: MachineLog::unwritten(&dir.log()),
            activity: Activity::new(),
            connections: self.context.connections.of_machine(),
        };
        self.machines_mut().insert(record.id.clone(), handle);
    }

    /// Forgets machines a while after they were destroyed; runs for ever.
    pub(crate) async fn forget_destroyed(self) {
        loop {
            let before_ms = clock::realtime_ms() - REMEMBERED_MS;
            match self.context.store.forget_destroyed(before_ms).await {
                Ok(ids) => {
                    let mut machines = self.machines_mut();
                    for id in ids {
                        tracing::info!(machine_id = id, "destroyed machine forgotten");
                        machines.remove(&id);
                    }
                }
                // It is tried again next time; nothing depends on it.
                Err(error) => tracing::warn!(%error, "destroyed machines could not be forgotten"),
            }
            sleep(FORGET_EVERY).await;
        }
    }

    /// The machine with that id, or else with that name.
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

    /// Sections under this lock are short and do not panic.
    fn machines_mut(&self) -> RwLockWriteGuard<'_, BTreeMap<String, Handle>> {
        self.machines
            .write()
            .unwrap_or_else(PoisonError::into_inner)
    }
}
