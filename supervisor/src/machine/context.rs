//! What all drivers share: settings, the database, images, and the bounds on starts.

use std::io;
use std::sync::Arc;

use tokio::sync::Semaphore;

use crate::configuration::Configuration;
use crate::error_chain::error_chain;
use crate::exhaustion;
use crate::images::ImageStore;
use crate::logs::ConsoleWatcher;
use crate::machine::connection_permits::HostConnections;
use crate::machine::disk_claims::DiskClaims;
use crate::store::Store;
use crate::vmm_process::VmmProgram;

/// Adoptions that may be under way for each start that may: they cost far less.
const ADOPTIONS_PER_START: usize = 8;

/// What all drivers share.
#[derive(Debug)]
pub(crate) struct DriverContext {
    /// Settings.
    pub(crate) configuration: Configuration,
    /// The database.
    pub(crate) store: Store,
    /// The image store.
    pub(crate) images: ImageStore,
    /// Notices what guests print to their consoles.
    pub(crate) consoles: ConsoleWatcher,
    /// The VMM program.
    pub(crate) vmm_program: VmmProgram,
    /// Who may write to which disk.
    pub(crate) disk_claims: DiskClaims,
    /// Permits for starts and resumes: few at a time, so that each is fast.
    pub(crate) launches: Arc<Semaphore>,
    /// Permits for taking over running guests.
    pub(crate) adoptions: Arc<Semaphore>,
    /// Permits for connections to published ports.
    pub(crate) connections: HostConnections,
}

impl DriverContext {
    /// Puts the parts together.
    pub(crate) fn new(configuration: Configuration, store: Store) -> io::Result<Self> {
        Ok(Self {
            images: ImageStore::new(configuration.state_dir.images()),
            consoles: ConsoleWatcher::new()?,
            vmm_program: VmmProgram::new(configuration.vmm.clone()),
            disk_claims: DiskClaims::default(),
            launches: Arc::new(Semaphore::new(configuration.concurrent_starts)),
            adoptions: Arc::new(Semaphore::new(
                configuration
                    .concurrent_starts
                    .saturating_mul(ADOPTIONS_PER_START)
                    .min(Semaphore::MAX_PERMITS),
            )),
            connections: HostConnections::new(
                &configuration.guest_share,
                exhaustion::descriptor_limit(),
            ),
            store,
            configuration,
        })
    }

    /// Asks the VMM program for its protocol, so that the first start does not wait for the answer. A start
    /// is told what is wrong with it.
    pub(crate) fn ask_vmm_program(self: Arc<Self>) {
        tokio::spawn(async move {
            if let Err(error) = self.vmm_program.check().await {
                tracing::warn!(
                    error = error_chain(&error),
                    "the VMM program cannot be used"
                );
            }
        });
    }
}
