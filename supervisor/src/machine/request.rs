//! What can be asked of a driver. Commands need a transition and are decided about by admission;
//! edits, reads and check results do not.

use machine_api::{CheckStatus, MachineConfig, MachineEvent, MachineState, StartKind};
use tokio::sync::oneshot;

use crate::machine::error::MachineError;
use crate::model::admission::CommandKind;
use crate::model::event::Source;
use crate::model::graceful_stop::GracefulStop;
use crate::model::record::{LeaseWanted, MachineRecord};
use crate::model::state::State;
use crate::model::timing::Trace;

/// A message to a driver.
#[derive(Debug)]
pub(crate) enum Message {
    /// Asks for a transition.
    Command(Request),
    /// Changes the record without a transition.
    Edit(EditRequest),
    /// Reads the record.
    Read(ReadRequest),
    /// Reports the result of a check.
    CheckResult {
        /// The generation that was checked; results about another one are dropped.
        generation: u64,
        /// The result.
        status: CheckStatus,
    },
}

/// What a machine is told to do.
#[derive(Debug)]
pub(crate) enum Command {
    /// Start from the image, or boot.
    Start {
        /// Boot even if there is an image, which is set aside.
        cold: bool,
    },
    /// Suspend.
    Suspend,
    /// Stop.
    Stop(GracefulStop),
    /// Stop and start.
    Restart {
        /// How the main process is asked to end.
        stop: GracefulStop,
        /// Kill the guest without asking.
        force: bool,
    },
    /// Take a new configuration.
    Update(Box<Update>),
    /// Remove it.
    Destroy {
        /// Even while its guest runs, which is killed.
        force: bool,
    },
}

impl Command {
    /// The command as admission sees it.
    pub(crate) fn kind(&self) -> CommandKind {
        match self {
            Self::Start { .. } => CommandKind::Start,
            Self::Suspend => CommandKind::Suspend,
            Self::Stop(_) => CommandKind::Stop,
            Self::Restart { .. } => CommandKind::Restart,
            Self::Update(_) => CommandKind::Update,
            Self::Destroy { force } => CommandKind::Destroy { force: *force },
        }
    }
}

/// A new version of a machine.
#[derive(Debug)]
pub(crate) struct Update {
    /// The whole new configuration, checked.
    pub(crate) config: MachineConfig,
    /// A new name, if it gets one.
    pub(crate) name: Option<String>,
    /// The version that must be in force, if the client named one.
    pub(crate) current_version: Option<String>,
    /// Leave it stopped instead of starting it.
    pub(crate) skip_launch: bool,
    /// Take a lease with it.
    pub(crate) lease: Option<LeaseWanted>,
    /// Cordon it.
    pub(crate) cordon: bool,
}

/// Who asks for a transition.
#[derive(Debug)]
pub(crate) enum Requester {
    /// A user, with the lease nonce that the request carried.
    User {
        /// The nonce, if there was one.
        nonce: Option<String>,
    },
    /// The supervisor itself, whom no lease stops.
    Supervisor,
}

/// When a request for a transition is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Until {
    /// As soon as it is admitted and stored.
    Admitted,
    /// When its transition has ended.
    Completed,
}

/// A command on its way to the driver.
#[derive(Debug)]
pub(crate) struct Request {
    /// What to do.
    pub(crate) command: Command,
    /// Began when the request arrived.
    pub(crate) trace: Trace,
    /// Who asks.
    pub(crate) requester: Requester,
    /// When it is answered.
    pub(crate) until: Until,
    /// The state before its transition, if that is stored already. A stop or a destroy that
    /// interrupts another transition is stored before that one ends.
    pub(crate) begun_from: Option<State>,
    /// Where the answer goes.
    pub(crate) reply: oneshot::Sender<Result<Granted, MachineError>>,
}

impl Request {
    /// The source of the events that it causes.
    pub(crate) fn source(&self) -> Source {
        match self.requester {
            Requester::User { .. } => Source::User,
            Requester::Supervisor => Source::Supervisor,
        }
    }

    /// The source of the events of a transition that `request` has caused, or else the supervisor.
    pub(crate) fn source_of(request: Option<&Self>) -> Source {
        request.map_or(Source::Supervisor, Self::source)
    }

    /// Answers it with an error.
    pub(crate) fn refuse(self, error: MachineError) {
        // The sender may have gone away; then nobody waits for the answer.
        let _ = self.reply.send(Err(error));
    }
}

/// The answer to a command that was carried out or admitted.
#[derive(Debug, Clone)]
pub(crate) struct Granted {
    /// The machine's state before.
    pub(crate) previous_state: MachineState,
    /// How the start went, if one was waited for.
    pub(crate) start: Option<StartKind>,
}

/// Whether a lease in force stops an edit or a read.
#[derive(Debug)]
pub(crate) enum LeaseCheck {
    /// Yes, unless the request carried its nonce.
    Nonce(Option<String>),
    /// No: it checks the lease itself, needs none, or is the supervisor's own.
    Skip,
}

/// A change of the record; the event, if any, is added to the machine's.
pub(crate) type Edit =
    Box<dyn FnOnce(&mut MachineRecord) -> Result<Option<MachineEvent>, MachineError> + Send>;

/// A change of the record on its way to the driver.
pub(crate) struct EditRequest {
    /// Whether a lease stops it.
    pub(crate) lease: LeaseCheck,
    /// The change. It is dropped as a whole if it fails.
    pub(crate) edit: Edit,
    /// Where the answer goes, once the change is stored.
    pub(crate) reply: oneshot::Sender<Result<(), MachineError>>,
}

impl std::fmt::Debug for EditRequest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EditRequest").finish_non_exhaustive()
    }
}

/// A look at the record, which is neither changed nor stored.
pub(crate) type Read = Box<dyn FnOnce(&MachineRecord) -> Result<(), MachineError> + Send>;

/// A look at the record on its way to the driver.
pub(crate) struct ReadRequest {
    /// Whether a lease stops it.
    pub(crate) lease: LeaseCheck,
    /// The look.
    pub(crate) read: Read,
    /// Where the answer goes.
    pub(crate) reply: oneshot::Sender<Result<(), MachineError>>,
}

impl std::fmt::Debug for ReadRequest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ReadRequest").finish_non_exhaustive()
    }
}
