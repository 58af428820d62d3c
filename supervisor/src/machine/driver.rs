//! The task that owns a machine: admits requests, stores state, watches the VMM.
//!
//! Everything that can change a machine arrives here and is dealt with one at a time. A
//! transition runs inside the task; while it waits, [`Driver::attend`] goes on answering
//! requests, and hands back one that breaks the transition off.

use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use machine_api::{CheckStatus, Machine, MachineEvent, MachineState};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, sleep_until};

use crate::clock;
use crate::logs::MachineLog;
use crate::machine::admission::{Admission, Wish, admit};
use crate::machine::handle::{Claim, Edit, Envelope, Granted, Handle, Live, Order, Until};
use crate::machine::publish::Note;
use crate::machine::session::GuestSession;
use crate::machine::state::{Event, State};
use crate::machine::stop::forgo_restart;
use crate::machine::timing::Trace;
use crate::machine::unsaved::Unsaved;
use crate::machine::{Host, MachineError, view};
use crate::network::Activity;
use crate::paths::MachineDir;
use crate::reconcile;
use crate::store::{Change, MachineRecord};
use crate::vmm_process::{Control, VmmExit, VmmProcess, remove_sockets};

/// Requests that may wait for a busy driver.
const INBOX: usize = 64;
/// Waits before a transition that got stuck is carried on: the first, and the longest.
const CARRY_ON_FIRST: Duration = Duration::from_secs(1);
const CARRY_ON_MOST: Duration = Duration::from_secs(15);
/// How long a killed VMM may take to be gone.
const KILL_LIMIT: Duration = Duration::from_secs(10);

/// How a driver begins.
#[derive(Debug)]
pub(crate) enum Opening {
    /// With a machine at rest.
    Resting,
    /// With what an earlier supervisor left.
    Found(reconcile::Found),
}

/// Somebody who waits for the end of a transition.
#[derive(Debug)]
struct Waiter {
    wish: Wish,
    previous_state: MachineState,
    reply: oneshot::Sender<Result<Granted, MachineError>>,
}

/// The owner of a machine.
#[derive(Debug)]
pub(crate) struct Driver {
    pub(super) host: Arc<Host>,
    pub(super) record: MachineRecord,
    pub(super) dir: MachineDir,
    pub(super) log: MachineLog,
    pub(super) activity: Activity,
    pub(super) vmm: Option<VmmProcess>,
    pub(super) control: Option<Control>,
    pub(super) session: Option<GuestSession>,
    /// When the restart policy starts it again.
    pub(super) restart_at: Option<Instant>,
    /// When a transition that got stuck is carried on, and the wait before that.
    carry_on: Option<(Instant, Duration)>,
    /// What could not be stored.
    pub(super) unsaved: Unsaved,
    /// When it became started.
    pub(super) started_at: Option<Instant>,
    pub(super) events: VecDeque<MachineEvent>,
    pub(super) checks: Vec<CheckStatus>,
    inbox: mpsc::Receiver<Envelope>,
    pub(super) view: watch::Sender<Arc<Machine>>,
    live: watch::Sender<Option<Live>>,
    waiters: Vec<Waiter>,
    _console: Option<crate::logs::Collection>,
}

/// Something that a driver waits for while it answers requests.
pub(super) type Effect<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// How a wait ended.
pub(super) enum Attended<T> {
    /// What was waited for.
    Done(T),
    /// A request that breaks the transition off.
    Interrupted(Envelope),
}

impl Driver {
    /// A driver for `record`, and the way to it. `events` are the newest, newest first.
    pub(crate) fn new(
        host: Arc<Host>,
        record: MachineRecord,
        events: Vec<MachineEvent>,
    ) -> io::Result<(Self, Handle)> {
        let dir = host.configuration.state_dir.machine(&record.id);
        let log = MachineLog::open(&dir.log())?;
        let console = host.consoles.collect(&dir.console(), &log)?;
        Ok(Self::over(host, record, events, (log, Some(console))))
    }

    /// A driver for a machine whose log can't be opened, and that should not be left alone for
    /// that: what its guest says from now on is lost.
    pub(crate) fn without_log(
        host: Arc<Host>,
        record: MachineRecord,
        events: Vec<MachineEvent>,
        why: &io::Error,
    ) -> (Self, Handle) {
        let dir = host.configuration.state_dir.machine(&record.id);
        let log = MachineLog::unwritten(&dir.log());
        let (mut driver, handle) = Self::over(host, record, events, (log, None));
        let message = format!(
            "its log can't be opened: {why}; nothing is logged until the supervisor is started again"
        );
        driver.warn_once(&message);
        (driver, handle)
    }

    fn over(
        host: Arc<Host>,
        record: MachineRecord,
        events: Vec<MachineEvent>,
        (log, console): (MachineLog, Option<crate::logs::Collection>),
    ) -> (Self, Handle) {
        let dir = host.configuration.state_dir.machine(&record.id);
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
        };

        let driver = Self {
            host,
            record,
            dir,
            log,
            activity,
            vmm: None,
            control: None,
            session: None,
            restart_at: None,
            carry_on: None,
            unsaved: Unsaved::new(),
            started_at: None,
            events,
            checks: Vec::new(),
            inbox,
            view: view_sender,
            live: live_sender,
            waiters: Vec::new(),
            _console: console,
        };
        (driver, handle)
    }

    /// Drives the machine until it is destroyed or the supervisor ends.
    pub(crate) async fn run(mut self, opening: Opening) {
        if let Opening::Found(found) = opening {
            let interrupted = Box::pin(self.take_over(found)).await;
            Box::pin(self.take(interrupted)).await;
        }
        while self.record.state != State::Destroyed {
            self.plan_carry_on();
            self.plan_another_restart();
            let vmm = self.vmm.clone();
            let restart_at = self.restart_at;
            let carry_on_at = self.carry_on.map(|(at, _)| at);
            let started = self.record.state == State::Started;
            tokio::select! {
                biased;
                // Where a transition got stuck its end belongs to whoever carries that on.
                exit = ended(vmm.as_ref()), if carry_on_at.is_none() || started => {
                    let next = Box::pin(self.note_vmm_end(exit)).await;
                    Box::pin(self.take(next)).await;
                }
                () = at(restart_at) => {
                    self.restart_at = None;
                    let next = Box::pin(self.start(Trace::begin(), None)).await;
                    Box::pin(self.take(next)).await;
                }
                () = at(carry_on_at) => {
                    let found = reconcile::find_again(&self.record, &self.dir, self.vmm.take());
                    let next = Box::pin(self.take_over(found)).await;
                    Box::pin(self.take(next)).await;
                }
                () = self.unsaved.due() => self.store_unsaved(),
                envelope = self.inbox.recv() => match envelope {
                    Some(envelope) => Box::pin(self.take(Some(envelope))).await,
                    None => return,
                },
            }
        }
    }

    /// A transition whose steps could not be stored, whose files could not be removed or whose
    /// guest could not be asked is carried on after a while, as a new supervisor would.
    fn plan_carry_on(&mut self) {
        // A guest that runs and that no supervisor has taken over yet belongs here, too.
        let alone = self.record.state == State::Started && self.session.is_none();
        if !self.record.state.is_passing() && !alone && !self.is_destroy_due() {
            self.carry_on = None;
            return;
        }
        let now = Instant::now();
        self.carry_on = match self.carry_on {
            Some((at, wait)) if at > now => Some((at, wait)),
            Some((_, wait)) => {
                let wait = (wait * 2).min(CARRY_ON_MOST);
                Some((now + wait, wait))
            }
            None => Some((now + CARRY_ON_FIRST, CARRY_ON_FIRST)),
        };
    }

    /// Deals with a request, and with those that break its transition off.
    async fn take(&mut self, envelope: Option<Envelope>) {
        let mut next = envelope;
        while let Some(envelope) = next.take() {
            let begun = envelope.begun_from.is_some();
            let admitted = if begun {
                Some(envelope)
            } else {
                self.answer_at_once(envelope).await
            };
            if let Some(envelope) = admitted {
                self.restart_at = None;
                next = self.fulfil(envelope).await;
            }
        }
    }

    async fn fulfil(&mut self, envelope: Envelope) -> Option<Envelope> {
        let trace = envelope.trace.clone();
        match &envelope.order {
            Order::Start => self.start(trace, Some(envelope)).await,
            Order::Suspend => self.suspend(trace, envelope).await,
            Order::Stop(order) => {
                let order = *order;
                self.stop(order, trace, Some(envelope)).await
            }
            Order::Restart { stop, force } => {
                let stop = (!*force).then_some(*stop);
                self.restart(stop, trace, envelope).await
            }
            Order::Update(_) => self.update(trace, envelope).await,
            Order::Destroy { .. } => {
                self.destroy(Some(envelope)).await;
                None
            }
            Order::Checked { .. } | Order::Edit(_) | Order::LeaseEdit(_) | Order::Look { .. } => {
                None
            }
        }
    }

    /// Waits for `effect` while answering requests.
    pub(super) async fn attend<T>(&mut self, effect: &mut Effect<'_, T>) -> Attended<T> {
        loop {
            tokio::select! {
                biased;
                done = effect.as_mut() => return Attended::Done(done),
                envelope = self.inbox.recv() => {
                    let Some(envelope) = envelope else {
                        return Attended::Done(effect.as_mut().await);
                    };
                    if let Some(envelope) = self.answer_at_once(envelope).await
                        && let Some(envelope) = self.begin_at_once(envelope).await
                    {
                        return Attended::Interrupted(envelope);
                    }
                }
            }
        }
    }

    /// Stores the transition of a request that ends what is under way, before it does so. Where
    /// that can't be stored it is refused, and what is under way goes on.
    async fn begin_at_once(&mut self, mut envelope: Envelope) -> Option<Envelope> {
        let event = match envelope.order {
            Order::Stop(_) => Event::StopBegun,
            Order::Destroy { .. } => Event::DestroyBegun,
            _ => return Some(envelope),
        };
        let previous = self.record.state;
        let note = Note::by(Some(&envelope));
        let begun = self.transition(event, note, forgo_restart);
        match begun.await {
            Ok(()) => {
                envelope.begun_from = Some(previous);
                Some(envelope)
            }
            Err(error) => {
                let _ = envelope.reply.send(Err(error));
                None
            }
        }
    }

    /// Answers what needs no transition; returns what does.
    pub(super) async fn answer_at_once(&mut self, envelope: Envelope) -> Option<Envelope> {
        let for_all = match envelope.order {
            Order::LeaseEdit(_) => true,
            Order::Look { as_holder, .. } => !as_holder,
            _ => false,
        };
        if !for_all
            && let Some(lease) = self.record.facts.standing_lease(clock::realtime_ms())
            && let Claim::User(nonce) = &envelope.claim
            && nonce.as_ref() != Some(&lease.nonce)
        {
            let id = self.record.id.clone();
            let held = MachineError::LeaseHeld {
                id,
                expires_at_s: lease.expires_at_ms / 1_000,
            };
            let _ = envelope.reply.send(Err(held));
            return None;
        }
        let Some(wish) = envelope.order.wish() else {
            self.edit(envelope).await;
            return None;
        };
        let previous_state = view::wire_state(self.record.state);
        match admit(self.record.state, wish) {
            Admission::Accept => return Some(envelope),
            Admission::Join if envelope.until == Until::Completed => {
                self.waiters.push(Waiter {
                    wish,
                    previous_state,
                    reply: envelope.reply,
                });
            }
            Admission::Satisfied | Admission::Join => {
                let stored = if wish == Wish::Stop && self.restart_at.is_some() {
                    self.stop_restarting().await
                } else {
                    Ok(())
                };
                let start = self.record.facts.last_start.clone();
                let _ = envelope.reply.send(stored.map(|()| Granted {
                    previous_state,
                    start,
                }));
                Box::pin(self.destroy_if_due("restart.destroy_due")).await;
            }
            Admission::Refuse(reason) => {
                let id = self.record.id.clone();
                let refused = MachineError::Refused {
                    id,
                    state: previous_state,
                    reason,
                };
                let _ = envelope.reply.send(Err(refused));
            }
        }
        None
    }

    async fn edit(&mut self, envelope: Envelope) {
        let previous_state = view::wire_state(self.record.state);
        let answer = match envelope.order {
            Order::Edit(edit) | Order::LeaseEdit(edit) => self.apply_edit(edit).await,
            Order::Look { look, .. } => look(&self.record),
            Order::Checked { generation, status } => {
                self.note_check(generation, status);
                Ok(())
            }
            _ => return,
        };
        {
            let granted = answer.map(|()| Granted {
                previous_state,
                start: None,
            });
            let _ = envelope.reply.send(granted);
        }
    }

    async fn apply_edit(&mut self, edit: Edit) -> Result<(), MachineError> {
        let mut changed = self.record.clone();
        let mut event = edit(&mut changed)?;
        if let Some(event) = &mut event {
            event.status = changed.state.name().to_owned();
        }
        changed.updated_at_ms = clock::realtime_ms();
        let mut changes = vec![Change::Machine(Box::new(changed.clone()))];
        if let Some(event) = &event {
            changes.push(Change::Event(changed.id.clone(), Box::new(event.clone())));
        }
        self.host
            .store
            .commit("store a change of the machine", changes)
            .await?;
        self.record = changed;
        self.show(event);
        Ok(())
    }

    /// A request's transition has been stored: it is answered now, or when that has ended.
    pub(super) fn admitted(&mut self, envelope: Option<Envelope>, previous: State) {
        let Some(envelope) = envelope else { return };
        let previous_state = view::wire_state(previous);
        match (envelope.until, envelope.order.wish()) {
            (Until::Completed, Some(wish)) => {
                self.waiters.push(Waiter {
                    wish,
                    previous_state,
                    reply: envelope.reply,
                });
            }
            _ => {
                let _ = envelope.reply.send(Ok(Granted {
                    previous_state,
                    start: None,
                }));
            }
        }
    }

    /// A transition has ended: whoever waits learns whether it led where they wished.
    pub(super) fn settle(&mut self, message: Option<&str>) {
        let state = self.record.state;
        for waiter in std::mem::take(&mut self.waiters) {
            let reached = match waiter.wish {
                Wish::Start | Wish::Restart => state == State::Started,
                Wish::Suspend => state == State::Suspended,
                Wish::Stop => matches!(state, State::Stopped | State::Created),
                Wish::Update => matches!(state, State::Started | State::Stopped),
                Wish::Destroy { .. } => state == State::Destroyed,
            };
            let previous_state = waiter.previous_state;
            let answer = if reached {
                Ok(Granted {
                    previous_state,
                    start: self.record.facts.last_start.clone(),
                })
            } else {
                Err(MachineError::Failed {
                    id: self.record.id.clone(),
                    state: view::wire_state(state),
                    message: message
                        .unwrap_or("another request came in between")
                        .to_owned(),
                })
            };
            let _ = waiter.reply.send(answer);
        }
    }

    /// Lets others use the guest, or ends that.
    pub(super) fn publish_live(&mut self, live: Option<Live>) {
        self.live.send_replace(live);
    }

    /// Kills the VMM, if there is one, and waits until it is gone.
    pub(super) async fn kill_vmm(&mut self) -> Option<VmmExit> {
        self.let_go_of_guest();
        let vmm = self.vmm.take()?;
        vmm.kill();
        match tokio::time::timeout(KILL_LIMIT, vmm.exited()).await {
            Ok(exit) => {
                self.remove_sockets();
                Some(exit)
            }
            Err(_) => {
                // A process in uninterruptible sleep; it dies as soon as the kernel lets it.
                tracing::error!(machine_id = self.record.id, "the VMM outlives SIGKILL");
                None
            }
        }
    }

    /// Nobody answers at the sockets of a VMM that is gone.
    pub(crate) fn remove_sockets(&self) {
        remove_sockets(&self.dir);
    }

    /// Closes all connections to guest and VMM.
    pub(super) fn let_go_of_guest(&mut self) {
        self.publish_live(None);
        self.checks.clear();
        self.session = None;
        self.control = None;
        self.started_at = None;
    }
}

async fn ended(vmm: Option<&VmmProcess>) -> VmmExit {
    match vmm {
        Some(vmm) => vmm.exited().await,
        None => std::future::pending().await,
    }
}

/// Resolves then; never where there is no time.
pub(super) async fn at(instant: Option<Instant>) {
    match instant {
        Some(instant) => sleep_until(instant).await,
        None => std::future::pending().await,
    }
}
