//! The way to a machine for everybody but its driver: send it a message, read what it publishes.

use std::sync::Arc;
use std::time::Duration;

use machine_api::{CheckStatus, Machine, MachineEvent, MachineState};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, timeout_at};

use crate::guest::GuestAddress;
use crate::logs::MachineLog;
use crate::machine::activity::Activity;
use crate::machine::connection_permits::ConnectionPermits;
use crate::machine::error::MachineError;
use crate::machine::request::{
    Command, EditRequest, Granted, LeaseCheck, Message, ReadRequest, Request, Requester, Until,
};
use crate::machine::session::Observations;
use crate::model::admission::RefusalReason;
use crate::model::record::MachineRecord;
use crate::model::timing::Trace;
use crate::vmm_process::{Control, VmmProcess};

/// How long a request about a guest waits while the supervisor connects to it.
const CONNECT_LIMIT: Duration = Duration::from_secs(10);

/// The guest of a started machine, and its VMM.
#[derive(Debug, Clone)]
pub(crate) struct LiveGuest {
    /// Its guest-init.
    pub(crate) address: GuestAddress,
    /// Its VMM.
    pub(crate) control: Control,
    /// The process of that VMM.
    pub(crate) process: Option<VmmProcess>,
    /// What its session has observed.
    pub(crate) observations: watch::Receiver<Observations>,
}

/// A machine, seen from outside; cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Handle {
    pub(super) id: String,
    pub(super) inbox: mpsc::Sender<Message>,
    pub(super) view: watch::Receiver<Arc<Machine>>,
    pub(super) live: watch::Receiver<Option<LiveGuest>>,
    pub(super) log: MachineLog,
    pub(super) activity: Activity,
    pub(super) connections: ConnectionPermits,
}

impl Handle {
    /// The machine's id.
    pub(crate) fn id(&self) -> &str {
        &self.id
    }

    /// The machine as it is now.
    pub(crate) fn view(&self) -> Arc<Machine> {
        self.view.borrow().clone()
    }

    /// Follows the machine.
    pub(crate) fn watch(&self) -> watch::Receiver<Arc<Machine>> {
        self.view.clone()
    }

    /// Follows whether its guest can be used.
    pub(crate) fn watch_live(&self) -> watch::Receiver<Option<LiveGuest>> {
        self.live.clone()
    }

    /// Follows both.
    pub(crate) fn changes(&self) -> Changes {
        Changes {
            view: self.view.clone(),
            live: self.live.clone(),
        }
    }

    /// Counts who uses the guest.
    pub(crate) fn activity(&self) -> &Activity {
        &self.activity
    }

    /// Permits for connections to its published ports.
    pub(crate) fn connections(&self) -> &ConnectionPermits {
        &self.connections
    }

    /// Its log.
    pub(crate) fn log(&self) -> &MachineLog {
        &self.log
    }

    /// Its guest, if the machine is started and the supervisor connected. While it is suspended or
    /// stopped the guest may still run, but must not be used: what it is asked would be lost.
    pub(crate) fn live(&self) -> Result<LiveGuest, MachineError> {
        if self.view.borrow().state != MachineState::Started {
            return Err(self.refused(RefusalReason::NotRunning));
        }
        let live = self.live.borrow().clone();
        live.ok_or_else(|| self.refused(RefusalReason::NotConnected))
    }

    /// The same, but waits a while if the supervisor is just connecting to it.
    pub(crate) async fn live_soon(&self) -> Result<LiveGuest, MachineError> {
        let deadline = Instant::now() + CONNECT_LIMIT;
        let mut changes = self.changes();
        loop {
            let changed = changes.next();
            match self.live() {
                Err(MachineError::Refused {
                    reason: RefusalReason::NotConnected,
                    ..
                }) => {}
                decided => return decided,
            }
            if !matches!(timeout_at(deadline, changed).await, Ok(true)) {
                return self.live();
            }
        }
    }

    /// Sends a user's command and waits for its answer.
    pub(crate) async fn request(
        &self,
        command: Command,
        until: Until,
        nonce: Option<String>,
    ) -> Result<Granted, MachineError> {
        self.send_command(command, until, Requester::User { nonce })
            .await
    }

    /// Sends a command of the supervisor itself, which no lease stops, and waits for its answer.
    pub(crate) async fn request_by_supervisor(
        &self,
        command: Command,
        until: Until,
    ) -> Result<Granted, MachineError> {
        self.send_command(command, until, Requester::Supervisor)
            .await
    }

    async fn send_command(
        &self,
        command: Command,
        until: Until,
        requester: Requester,
    ) -> Result<Granted, MachineError> {
        let destroys = matches!(command, Command::Destroy { .. });
        let (reply, answer) = oneshot::channel();
        let request = Request {
            command,
            trace: Trace::begin(),
            requester,
            until,
            begun_from: None,
            reply,
        };
        if self.inbox.send(Message::Command(request)).await.is_err() {
            let previous_state = self.view().state;
            // A destroyed machine's driver has ended; destroying it once more is a success.
            if destroys && previous_state == MachineState::Destroyed {
                return Ok(Granted {
                    previous_state,
                    start: None,
                });
            }
            return Err(self.driver_ended());
        }
        answer.await.unwrap_or_else(|_| Err(self.driver_ended()))
    }

    /// Changes the record without a transition; returns what `edit` does, once that is stored. The
    /// event, if any, is added to the machine's.
    pub(crate) async fn edit<T: Send + 'static>(
        &self,
        lease: LeaseCheck,
        edit: impl FnOnce(&mut MachineRecord) -> Result<(T, Option<MachineEvent>), MachineError>
        + Send
        + 'static,
    ) -> Result<T, MachineError> {
        let (sender, value) = oneshot::channel();
        let (reply, answer) = oneshot::channel();
        let request = EditRequest {
            lease,
            edit: Box::new(move |record| {
                let (value, event) = edit(record)?;
                // The caller may have gone away; the change counts all the same.
                let _ = sender.send(value);
                Ok(event)
            }),
            reply,
        };
        self.send(Message::Edit(request), answer).await?;
        value.await.map_err(|_| MachineError::ShuttingDown)
    }

    /// Reads the record; returns what `read` does.
    pub(crate) async fn read<T: Send + 'static>(
        &self,
        lease: LeaseCheck,
        read: impl FnOnce(&MachineRecord) -> Result<T, MachineError> + Send + 'static,
    ) -> Result<T, MachineError> {
        let (sender, value) = oneshot::channel();
        let (reply, answer) = oneshot::channel();
        let request = ReadRequest {
            lease,
            read: Box::new(move |record| {
                let _ = sender.send(read(record)?);
                Ok(())
            }),
            reply,
        };
        self.send(Message::Read(request), answer).await?;
        value.await.map_err(|_| MachineError::ShuttingDown)
    }

    async fn send(
        &self,
        message: Message,
        answer: oneshot::Receiver<Result<(), MachineError>>,
    ) -> Result<(), MachineError> {
        if self.inbox.send(message).await.is_err() {
            return Err(self.driver_ended());
        }
        answer.await.unwrap_or_else(|_| Err(self.driver_ended()))
    }

    /// Reports the result of a check of the guest of `generation`; false if the driver has ended.
    pub(crate) async fn report_check(&self, generation: u64, status: CheckStatus) -> bool {
        let message = Message::CheckResult { generation, status };
        self.inbox.send(message).await.is_ok()
    }

    /// A refusal in the machine's present state.
    pub(crate) fn refused(&self, reason: RefusalReason) -> MachineError {
        MachineError::Refused {
            id: self.id.clone(),
            state: self.view().state,
            reason,
        }
    }

    /// A driver ends with its machine, or with the supervisor.
    fn driver_ended(&self) -> MachineError {
        if self.view().state == MachineState::Destroyed {
            self.refused(RefusalReason::Gone)
        } else {
            MachineError::ShuttingDown
        }
    }
}

/// Follows what a driver publishes.
#[derive(Debug)]
pub(crate) struct Changes {
    view: watch::Receiver<Arc<Machine>>,
    live: watch::Receiver<Option<LiveGuest>>,
}

impl Changes {
    /// Resolves at the first change after this call; false if there will be none any more.
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

    /// Resolves once the machine is not started any more, or by a VMM of another generation.
    pub(crate) async fn left_generation(&mut self, generation: u64) {
        let left = |machine: &Arc<Machine>| {
            machine.state != MachineState::Started || machine.generation != generation
        };
        // An error means that the driver has ended, and the guest is not ours either.
        let _ = self.view.wait_for(left).await;
    }
}
