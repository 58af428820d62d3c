//! The owner of a machine, as far as all of its transitions need it: its parts, the answers to
//! messages, and waiting while messages are answered.
//!
//! Everything that can change a machine arrives here, one thing at a time. A transition runs inside
//! the driver's task; while it waits, [`Driver::attend`] goes on answering messages, and returns a
//! request that interrupts the transition. What happens next is decided by `event_loop`, how a
//! change is stored and shown by `publish`.

use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use machine_api::{CheckStatus, Machine, MachineEvent, MachineState};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;

use crate::clock;
use crate::guest::CallPermits;
use crate::logs::{Collection, MachineLog};
use crate::machine::activity::Activity;
use crate::machine::context::DriverContext;
use crate::machine::disk_claims::holds_disks;
use crate::machine::error::MachineError;
use crate::machine::handle::{Handle, LiveGuest};
use crate::machine::request::{
    Command, Edit, EditRequest, Granted, LeaseCheck, Message, ReadRequest, Request, Requester,
    Until,
};
use crate::machine::session::GuestSession;
use crate::machine::unsaved::Unsaved;
use crate::machine_folder::MachineFile;
use crate::model::admission::{Admission, CommandKind, RefusalReason, admit};
use crate::model::event::EventDetails;
use crate::model::guest_share::Telling;
use crate::model::record::MachineRecord;
use crate::model::state::{Event, State};
use crate::model::view;
use crate::paths::MachineDir;
use crate::store::Change;
use crate::vmm_process::{Control, VmmExit, VmmProcess, remove_sockets};

/// Messages that may wait for a busy driver.
const INBOX: usize = 64;
/// Most requests that wait for the end of a transition which is under way already.
const MOST_WAITERS: usize = 256;
/// How long a killed VMM may take to end.
const KILL_LIMIT: Duration = Duration::from_secs(10);

/// Somebody who waits for the end of a transition.
#[derive(Debug)]
struct Waiter {
    command: CommandKind,
    previous_state: MachineState,
    reply: oneshot::Sender<Result<Granted, MachineError>>,
}

/// The owner of a machine.
#[derive(Debug)]
pub(crate) struct Driver {
    pub(super) context: Arc<DriverContext>,
    pub(super) record: MachineRecord,
    pub(super) dir: MachineDir,
    pub(super) log: MachineLog,
    pub(super) activity: Activity,
    pub(super) vmm: Option<VmmProcess>,
    pub(super) control: Option<Control>,
    pub(super) session: Option<GuestSession>,
    /// When the restart policy starts it again.
    pub(super) restart_at: Option<Instant>,
    /// When a transition that could not go on is retried, and the wait before that.
    pub(super) retry: Option<(Instant, Duration)>,
    pub(super) unsaved: Unsaved,
    /// What the file in its folder says, as far as this driver has written it.
    pub(super) machine_file: Option<MachineFile>,
    /// The newest events, newest first.
    pub(super) events: VecDeque<MachineEvent>,
    /// Results of its checks.
    pub(super) checks: Vec<CheckStatus>,
    /// Which changed results become events.
    pub(super) check_events: Telling,
    /// Calls of clients to its guest that may be under way.
    pub(super) call_permits: CallPermits,
    pub(super) inbox: mpsc::Receiver<Message>,
    pub(super) view: watch::Sender<Arc<Machine>>,
    live: watch::Sender<Option<LiveGuest>>,
    waiters: Vec<Waiter>,
    _console: Option<Collection>,
}

/// Something that a driver waits for while it answers messages.
pub(super) type Effect<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// How a wait ended.
pub(super) enum Attended<T> {
    /// The effect is done.
    Done(T),
    /// A request interrupts the transition.
    Interrupted(Request),
}

impl Driver {
    /// A driver for `record`, and the handle to it. `events` are the newest, newest first.
    pub(crate) fn new(
        context: Arc<DriverContext>,
        record: MachineRecord,
        events: Vec<MachineEvent>,
    ) -> io::Result<(Self, Handle)> {
        let dir = context.configuration.state_dir.machine(&record.id);
        let lines = context.configuration.guest_share.log_lines_per_second;
        let log = MachineLog::open(&dir.log(), lines)?;
        let console = context.consoles.collect(&dir.console(), &log)?;
        Ok(Self::with_log(
            context,
            record,
            events,
            (log, Some(console)),
        ))
    }

    /// A driver for a machine whose log cannot be opened for the reason `why`. Its guest must be
    /// driven all the same; what that prints is lost.
    pub(crate) fn without_log(
        context: Arc<DriverContext>,
        record: MachineRecord,
        events: Vec<MachineEvent>,
        why: &io::Error,
    ) -> (Self, Handle) {
        let dir = context.configuration.state_dir.machine(&record.id);
        let log = MachineLog::unwritten(&dir.log());
        let (mut driver, handle) = Self::with_log(context, record, events, (log, None));
        let message = format!(
            "its log cannot be opened: {why}; nothing is logged until the supervisor is restarted"
        );
        driver.warn_once(&message);
        (driver, handle)
    }

    fn with_log(
        context: Arc<DriverContext>,
        record: MachineRecord,
        events: Vec<MachineEvent>,
        (log, console): (MachineLog, Option<Collection>),
    ) -> (Self, Handle) {
        let dir = context.configuration.state_dir.machine(&record.id);
        if holds_disks(record.state) {
            context.disk_claims.note(&record.id, &record.config.mounts);
        }
        let events = VecDeque::from(events);
        let activity = Activity::new();
        let (sender, inbox) = mpsc::channel(INBOX);
        let (view_sender, view) = watch::channel(Arc::new(view::machine(&record, &events, &[])));
        let (live_sender, live) = watch::channel(None);
        let handle = Handle {
            id: record.id.clone(),
            inbox: sender,
            view,
            live,
            log: log.clone(),
            activity: activity.clone(),
            connections: context.connections.of_machine(),
        };
        let call_permits = CallPermits::new(&context.configuration.guest_share);
        let driver = Self {
            context,
            record,
            dir,
            log,
            activity,
            vmm: None,
            control: None,
            session: None,
            restart_at: None,
            retry: None,
            unsaved: Unsaved::new(),
            machine_file: None,
            events,
            checks: Vec::new(),
            check_events: Telling::of_check_events(Instant::now()),
            call_permits,
            inbox,
            view: view_sender,
            live: live_sender,
            waiters: Vec::new(),
            _console: console,
        };
        (driver, handle)
    }

    /// Waits for `effect` while answering messages.
    pub(super) async fn attend<T>(&mut self, effect: &mut Effect<'_, T>) -> Attended<T> {
        loop {
            tokio::select! {
                biased;
                done = effect.as_mut() => return Attended::Done(done),
                message = self.inbox.recv() => {
                    let Some(message) = message else {
                        return Attended::Done(effect.as_mut().await);
                    };
                    if let Some(request) = self.answer(message).await
                        && let Some(request) = self.begin_interrupting(request).await
                    {
                        return Attended::Interrupted(request);
                    }
                }
            }
        }
    }

    /// Stores the transition of a stop or a destroy that ends the transition under way, before it
    /// does so. If it cannot be stored it is refused, and the transition under way goes on.
    async fn begin_interrupting(&mut self, mut request: Request) -> Option<Request> {
        let (event, stop) = match request.command {
            Command::Stop(stop) => (Event::StopBegun, Some(stop)),
            Command::Destroy { .. } => (Event::DestroyBegun, None),
            _ => return Some(request),
        };
        let previous = self.record.state;
        let details = EventDetails::caused_by(request.source());
        let begun = self.transition(event, details, |record| {
            record.cancel_restart();
            record.facts.ending = Some(stop.into());
        });
        match begun.await {
            Ok(()) => {
                request.begun_from = Some(previous);
                Some(request)
            }
            Err(error) => {
                request.refuse(error);
                None
            }
        }
    }

    /// Answers a message that needs no transition; returns a request that does.
    pub(super) async fn answer(&mut self, message: Message) -> Option<Request> {
        match message {
            Message::Command(request) => return self.admit(request).await,
            Message::Edit(EditRequest { lease, edit, reply }) => {
                let answer = match self.check_lease(&lease) {
                    Ok(()) => self.apply_edit(edit).await,
                    Err(error) => Err(error),
                };
                let _ = reply.send(answer);
            }
            Message::Read(ReadRequest { lease, read, reply }) => {
                let answer = self.check_lease(&lease).and_then(|()| read(&self.record));
                let _ = reply.send(answer);
            }
            Message::CheckResult { generation, status } => {
                self.publish_check_result(generation, status);
            }
        }
        None
    }

    /// Answers a command that needs no transition; returns one that does.
    pub(super) async fn admit(&mut self, request: Request) -> Option<Request> {
        if let Requester::User { nonce } = &request.requester
            && let Err(error) = self.check_nonce(nonce.as_ref())
        {
            request.refuse(error);
            return None;
        }
        let command = request.command.kind();
        let previous_state = view::api_state(self.record.state);
        match admit(self.record.state, command) {
            Admission::Accept => return Some(request),
            Admission::Join if request.until == Until::Completed => {
                // Clients that have gone away wait no more.
                self.waiters.retain(|waiter| !waiter.reply.is_closed());
                if self.waiters.len() >= MOST_WAITERS {
                    let id = self.record.id.clone();
                    request.refuse(MachineError::TooManyWait {
                        id,
                        most: MOST_WAITERS,
                    });
                    return None;
                }
                self.waiters.push(Waiter {
                    command,
                    previous_state,
                    reply: request.reply,
                });
            }
            Admission::Satisfied | Admission::Join => {
                let stored = if command == CommandKind::Stop && self.restart_at.is_some() {
                    self.stop_instead_of_restart().await
                } else {
                    Ok(())
                };
                let start = self.record.facts.last_start.clone();
                let _ = request.reply.send(stored.map(|()| Granted {
                    previous_state,
                    start,
                }));
                Box::pin(self.destroy_if_due("restart.destroy_due")).await;
            }
            Admission::Refuse(reason) => {
                let refused = self.refused(reason);
                request.refuse(refused);
            }
        }
        None
    }

    fn check_lease(&self, lease: &LeaseCheck) -> Result<(), MachineError> {
        match lease {
            LeaseCheck::Nonce(nonce) => self.check_nonce(nonce.as_ref()),
            LeaseCheck::Skip => Ok(()),
        }
    }

    fn check_nonce(&self, nonce: Option<&String>) -> Result<(), MachineError> {
        match self.record.facts.lease_in_force(clock::realtime_ms()) {
            Some(lease) if nonce != Some(&lease.nonce) => Err(MachineError::LeaseHeld {
                id: self.record.id.clone(),
                expires_at_s: lease.expires_at_ms / 1_000,
            }),
            Some(_) | None => Ok(()),
        }
    }

    async fn apply_edit(&mut self, edit: Edit) -> Result<(), MachineError> {
        let mut changed = self.record.clone();
        let event = edit(&mut changed)?;
        changed.updated_at_ms = clock::realtime_ms();
        let mut changes = vec![Change::Machine(Box::new(changed.clone()))];
        if let Some(event) = &event {
            changes.push(Change::Event(changed.id.clone(), Box::new(event.clone())));
        }
        self.context
            .store
            .commit("store a change of the machine", changes)
            .await?;
        self.record = changed;
        self.show(event);
        self.store_machine_file().await;
        Ok(())
    }

    /// The transition of `request` is stored, from the state `previous`: answers it now, or when that
    /// transition has ended.
    pub(super) fn admitted(&mut self, request: Option<Request>, previous: State) {
        let Some(request) = request else { return };
        let previous_state = view::api_state(previous);
        match request.until {
            Until::Completed => self.waiters.push(Waiter {
                command: request.command.kind(),
                previous_state,
                reply: request.reply,
            }),
            Until::Admitted => {
                let _ = request.reply.send(Ok(Granted {
                    previous_state,
                    start: None,
                }));
            }
        }
    }

    /// A transition has ended: tells those who wait whether it led to the state they want.
    /// `message` says why not.
    pub(super) fn answer_waiters(&mut self, message: Option<&str>) {
        let state = self.record.state;
        for waiter in std::mem::take(&mut self.waiters) {
            let reached = match waiter.command {
                CommandKind::Start | CommandKind::Restart => state == State::Started,
                CommandKind::Suspend => state == State::Suspended,
                CommandKind::Stop => matches!(state, State::Stopped | State::Created),
                CommandKind::Update => matches!(state, State::Started | State::Stopped),
                CommandKind::Destroy { .. } => state == State::Destroyed,
            };
            let previous_state = waiter.previous_state;
            let answer = if reached {
                Ok(Granted {
                    previous_state,
                    start: self.record.facts.last_start.clone(),
                })
            } else {
                Err(self.failed(message.unwrap_or("another request came in between")))
            };
            let _ = waiter.reply.send(answer);
        }
    }

    /// An error about a command that cannot be carried out in the present state.
    pub(super) fn refused(&self, reason: RefusalReason) -> MachineError {
        MachineError::Refused {
            id: self.record.id.clone(),
            state: view::api_state(self.record.state),
            reason,
        }
    }

    /// An error about a command that was carried out and did not succeed.
    pub(super) fn failed(&self, message: impl Into<String>) -> MachineError {
        MachineError::Failed {
            id: self.record.id.clone(),
            state: view::api_state(self.record.state),
            message: message.into(),
        }
    }

    /// Lets others use the guest, or ends that.
    pub(super) fn publish_live(&mut self, live: Option<LiveGuest>) {
        self.live.send_replace(live);
    }

    /// Kills the VMM, if there is one, and waits until it has ended.
    pub(super) async fn kill_vmm(&mut self) -> Option<VmmExit> {
        self.disconnect();
        let vmm = self.vmm.take()?;
        vmm.kill();
        match tokio::time::timeout(KILL_LIMIT, vmm.exited()).await {
            Ok(exit) => {
                remove_sockets(&self.dir);
                Some(exit)
            }
            Err(_) => {
                // It is in uninterruptible sleep, and dies as soon as the kernel lets it.
                tracing::error!(machine_id = self.record.id, "the VMM survives SIGKILL");
                None
            }
        }
    }

    /// Closes all connections to guest and VMM.
    fn disconnect(&mut self) {
        self.publish_live(None);
        self.checks.clear();
        self.session = None;
        self.control = None;
    }
}
