//! The way to a machine for everybody but its driver: send a request, look at what is published.

use std::sync::Arc;
use std::time::Duration;

use machine_api::{CheckStatus, Machine, MachineConfig, MachineEvent, MachineState, StartKind};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, timeout_at};

use crate::guest::GuestAddress;
use crate::logs::MachineLog;
use crate::machine::MachineError;
use crate::machine::admission::{RefusalReason, Wish};
use crate::machine::config::StopOrder;
use crate::machine::publish::Source;
use crate::machine::session::Learnt;
use crate::machine::state::State;
use crate::machine::timing::Trace;
use crate::network::Activity;
use crate::store::MachineRecord;
use crate::vmm_process::Control;

/// How long a request about the guest waits while that is being taken over.
const TAKE_OVER_LIMIT: Duration = Duration::from_secs(10);

/// Something asked of a driver.
pub(crate) enum Order {
    /// Start or resume.
    Start,
    /// Suspend.
    Suspend,
    /// Stop.
    Stop(StopOrder),
    /// Stop and start; with `force` without asking the guest.
    Restart {
        /// How the main process is asked to end.
        stop: StopOrder,
        /// Kill at once.
        force: bool,
    },
    /// Take a new configuration and start, unless `skip_launch`.
    Update(Box<Update>),
    /// Remove it; with `force` also while it runs.
    Destroy {
        /// Kill it where needed.
        force: bool,
    },
    /// Show the result of a check.
    Checked {
        /// The generation that was checked; results about another one do not count.
        generation: u64,
        /// What was found.
        status: CheckStatus,
    },
    /// Change the record without a transition.
    Edit(Edit),
    /// The same, whoever holds the lease: for what checks that by itself.
    LeaseEdit(Edit),
    /// Look at the record.
    Look {
        /// Only for who may change the machine, too.
        as_holder: bool,
        /// What is looked at.
        look: Look,
    },
}

/// A new version of a machine.
#[derive(Debug)]
pub(crate) struct Update {
    /// The whole new configuration, checked.
    pub(crate) config: MachineConfig,
    /// New name.
    pub(crate) name: Option<String>,
    /// Version that must be in force.
    pub(crate) current_version: Option<String>,
    /// Leave it stopped.
    pub(crate) skip_launch: bool,
}

/// A change of the record; the event, if any, is added to the machine's.
pub(crate) type Edit =
    Box<dyn FnOnce(&mut MachineRecord) -> Result<Option<MachineEvent>, MachineError> + Send>;

/// A look at the record, which is neither changed nor stored.
pub(crate) type Look = Box<dyn FnOnce(&MachineRecord) -> Result<(), MachineError> + Send>;

impl std::fmt::Debug for Order {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Start => "Start",
            Self::Suspend => "Suspend",
            Self::Stop(_) => "Stop",
            Self::Restart { .. } => "Restart",
            Self::Update(_) => "Update",
            Self::Destroy { .. } => "Destroy",
            Self::Checked { .. } => "Checked",
            Self::Edit(_) | Self::LeaseEdit(_) => "Edit",
            Self::Look { .. } => "Look",
        })
    }
}

impl Order {
    /// What admission decides about; none where there is nothing to decide.
    pub(crate) fn wish(&self) -> Option<Wish> {
        Some(match self {
            Self::Start => Wish::Start,
            Self::Suspend => Wish::Suspend,
            Self::Stop(_) => Wish::Stop,
            Self::Restart { .. } => Wish::Restart,
            Self::Update(_) => Wish::Update,
            Self::Destroy { force } => Wish::Destroy { force: *force },
            Self::Checked { .. } | Self::Edit(_) | Self::LeaseEdit(_) | Self::Look { .. } => {
                return None;
            }
        })
    }
}

/// How long a request waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Until {
    /// Until it is admitted and stored.
    Admitted,
    /// Until its transition has ended.
    Completed,
}

/// Whose request it is, as far as a lease is concerned.
#[derive(Debug)]
pub(crate) enum Claim {
    /// A user's, with the nonce that was sent.
    User(Option<String>),
    /// The supervisor's own.
    Supervisor,
}

/// An order on its way to the driver.
#[derive(Debug)]
pub(crate) struct Envelope {
    /// What is asked.
    pub(crate) order: Order,
    /// Began when the request was taken.
    pub(crate) trace: Trace,
    /// What the sender has to show for a lease.
    pub(crate) claim: Claim,
    /// When it is answered.
    pub(crate) until: Until,
    /// Where the machine was, if the transition is stored already: it broke another one off.
    pub(crate) begun_from: Option<State>,
    /// Where the answer goes.
    pub(crate) reply: oneshot::Sender<Result<Granted, MachineError>>,
}

impl Envelope {
    /// Who is said to have caused what comes of it.
    pub(super) fn source(&self) -> Source {
        match self.claim {
            Claim::User(_) => Source::User,
            Claim::Supervisor => Source::Supervisor,
        }
    }
}

/// The answer to a request that was granted.
#[derive(Debug, Clone)]
pub(crate) struct Granted {
    /// Where the machine was.
    pub(crate) previous_state: MachineState,
    /// How the start went, where one was waited for.
    pub(crate) start: Option<StartKind>,
}

/// Access to the guest of a started machine.
#[derive(Debug, Clone)]
pub(crate) struct Live {
    /// Its guest-init.
    pub(crate) address: GuestAddress,
    /// Its VMM.
    pub(crate) control: Control,
    /// What its session learns.
    pub(crate) learnt: watch::Receiver<Learnt>,
}

/// Follows what a driver publishes.
#[derive(Debug)]
pub(crate) struct Changes {
    view: watch::Receiver<Arc<Machine>>,
    live: watch::Receiver<Option<Live>>,
}

impl Changes {
    /// Resolves at the first change after this call; false where none can come any more.
    pub(crate) fn next(&mut self) -> impl Future<Output = bool> + '_ {
        self.view.mark_unchanged();
        self.live.mark_unchanged();
        async {
            tokio::select! {
                changed = self.view.changed() => changed.is_ok(),
                changed = self.live.changed() => changed.is_ok(),
            }
        }
    }

    /// Resolves once the machine is not started any more, or by a later VMM.
    pub(crate) async fn left(&mut self, generation: u64) {
        let left = |machine: &Arc<Machine>| {
            machine.state != MachineState::Started || machine.generation != generation
        };
        // An error means that the driver is gone, and the guest not ours either.
        let _ = self.view.wait_for(left).await;
    }
}

/// A machine, seen from outside; cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Handle {
    pub(super) id: String,
    pub(super) inbox: mpsc::Sender<Envelope>,
    pub(super) view: watch::Receiver<Arc<Machine>>,
    pub(super) live: watch::Receiver<Option<Live>>,
    pub(super) log: MachineLog,
    pub(super) activity: Activity,
}

impl Handle {
    /// The machine's id.
    pub(crate) fn id(&self) -> &str {
        &self.id
    }

    /// The machine as it is.
    pub(crate) fn view(&self) -> Arc<Machine> {
        self.view.borrow().clone()
    }

    /// Follows the machine.
    pub(crate) fn watch(&self) -> watch::Receiver<Arc<Machine>> {
        self.view.clone()
    }

    /// Follows whether its guest can be used.
    pub(crate) fn watch_live(&self) -> watch::Receiver<Option<Live>> {
        self.live.clone()
    }

    /// Who uses it.
    pub(crate) fn activity(&self) -> &Activity {
        &self.activity
    }

    /// Its log.
    pub(crate) fn log(&self) -> &MachineLog {
        &self.log
    }

    /// Its guest, if it is started and connected to. While it is put to rest the guest may
    /// still be there, and is nobody's any more: what it is asked would be lost with it.
    pub(crate) fn live(&self) -> Result<Live, MachineError> {
        if self.view.borrow().state != MachineState::Started {
            return Err(self.refused(RefusalReason::NotRunning));
        }
        let live = self.live.borrow().clone();
        live.ok_or_else(|| self.refused(RefusalReason::OutOfReach))
    }

    /// The same, after a while if the machine is started and is just being taken over.
    pub(crate) async fn live_soon(&self) -> Result<Live, MachineError> {
        let deadline = Instant::now() + TAKE_OVER_LIMIT;
        let mut changes = self.changes();
        loop {
            let seen = changes.next();
            match self.live() {
                Err(MachineError::Refused {
                    reason: RefusalReason::OutOfReach,
                    ..
                }) => {}
                decided => return decided,
            }
            if !matches!(timeout_at(deadline, seen).await, Ok(true)) {
                return self.live();
            }
        }
    }

    /// Follows both the machine and whether its guest can be used.
    pub(crate) fn changes(&self) -> Changes {
        Changes {
            view: self.view.clone(),
            live: self.live.clone(),
        }
    }

    /// Sends an order and waits for its answer.
    pub(crate) async fn request(
        &self,
        order: Order,
        until: Until,
        nonce: Option<String>,
    ) -> Result<Granted, MachineError> {
        self.send(order, until, Claim::User(nonce)).await
    }

    /// The same for the supervisor's own wishes, which no lease holds up.
    pub(crate) async fn request_by_supervisor(
        &self,
        order: Order,
        until: Until,
    ) -> Result<Granted, MachineError> {
        self.send(order, until, Claim::Supervisor).await
    }

    async fn send(
        &self,
        order: Order,
        until: Until,
        claim: Claim,
    ) -> Result<Granted, MachineError> {
        let (reply, answer) = oneshot::channel();
        let envelope = Envelope {
            order,
            trace: Trace::begin(),
            claim,
            until,
            begun_from: None,
            reply,
        };
        if let Err(returned) = self.inbox.send(envelope).await {
            return self.answer_for_the_dead(&returned.0.order);
        }
        match answer.await {
            Ok(answer) => answer,
            Err(_) if self.view().state == MachineState::Destroyed => {
                Err(self.refused(RefusalReason::Gone))
            }
            Err(_) => Err(MachineError::ShuttingDown),
        }
    }

    /// A refusal in the machine's present state.
    pub(crate) fn refused(&self, reason: RefusalReason) -> MachineError {
        MachineError::Refused {
            id: self.id.clone(),
            state: self.view().state,
            reason,
        }
    }

    /// A destroyed machine's driver has ended.
    fn answer_for_the_dead(&self, order: &Order) -> Result<Granted, MachineError> {
        let previous_state = self.view().state;
        match order {
            Order::Destroy { .. } if previous_state == MachineState::Destroyed => Ok(Granted {
                previous_state,
                start: None,
            }),
            _ if previous_state == MachineState::Destroyed => {
                Err(self.refused(RefusalReason::Gone))
            }
            _ => Err(MachineError::ShuttingDown),
        }
    }
}
