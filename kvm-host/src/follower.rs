//! The thread that reads the channel of a virtual host, and what it has learned so far.

use std::io::{self, Write};
use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use socket2::Socket;

use crate::clock::Clock;
use crate::export::{Export, ExportError};
use crate::protocol::{Frame, ProtocolError};
use crate::pulse::{Outbox, Pulse};

/// What the channel has reported so far.
#[derive(Debug, Default)]
pub(crate) struct Progress {
    pub(crate) booted: bool,
    pub(crate) ready: bool,
    pub(crate) exit_code: Option<i32>,
    pub(crate) failure: Option<Failure>,
    pub(crate) ended: bool,
}

#[derive(Debug)]
pub(crate) enum Failure {
    Reported(String),
    Protocol(ProtocolError),
    Export(ExportError),
    Pulse(io::Error),
}

#[derive(Debug, Default)]
pub(crate) struct Shared {
    progress: Mutex<Progress>,
    pub(crate) changed: Condvar,
}

impl Shared {
    pub(crate) fn lock(&self) -> MutexGuard<'_, Progress> {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn update(&self, change: impl FnOnce(&mut Progress)) {
        change(&mut self.lock());
        self.changed.notify_all();
    }
}

/// The thread that reads the channel.
pub(crate) struct Follower {
    pub(crate) shared: Arc<Shared>,
    pub(crate) outbox: Outbox,
    pub(crate) clock: Clock,
    /// Started by the host's first frame, where the host needs one.
    pub(crate) pulse: Option<Pulse>,
    pub(crate) stdout: Option<Sender<Vec<u8>>>,
    pub(crate) export: Option<Export>,
    /// Kept open until the host has booted, as QEMU opens it by our descriptor.
    pub(crate) initramfs: Option<std::fs::File>,
}

impl Follower {
    pub(crate) fn follow(mut self, input: &Socket) {
        loop {
            match Frame::read_from(input) {
                Ok(Some(frame)) => {
                    if let Err(error) = self.record(frame) {
                        self.shared
                            .update(|progress| progress.failure = Some(error));
                        break;
                    }
                }
                Ok(None) => break,
                // QEMU may be killed in the middle of a frame, which is a normal end.
                Err(ProtocolError::Read(_) | ProtocolError::CutShort) => break,
                Err(error) => {
                    let failure = Failure::Protocol(error);
                    self.shared
                        .update(|progress| progress.failure = Some(failure));
                    break;
                }
            }
        }
        self.shared.update(|progress| progress.ended = true);
    }

    fn record(&mut self, frame: Frame) -> Result<(), Failure> {
        match frame {
            Frame::Booted => {
                self.initramfs = None;
                self.shared.update(|progress| progress.booted = true);
                // In virtual time QEMU runs timers in the processor's own thread, so none is lost.
                if self.clock == Clock::Real {
                    let pulse = Pulse::start(self.outbox.clone()).map_err(Failure::Pulse)?;
                    self.pulse = Some(pulse);
                }
            }
            Frame::Ready => self.shared.update(|progress| progress.ready = true),
            // Our own output may be a closed pipe; the command inside continues nevertheless.
            Frame::Stdout(bytes) => match &self.stdout {
                // A receiver that is gone wants no more.
                Some(receiver) => drop(receiver.send(bytes)),
                None => drop(write_through(&mut io::stdout(), &bytes)),
            },
            Frame::Stderr(bytes) => drop(write_through(&mut io::stderr(), &bytes)),
            Frame::File { path, permissions } => {
                if let Some(export) = &mut self.export {
                    export.begin(&path, permissions).map_err(Failure::Export)?;
                }
            }
            Frame::FileData(bytes) => {
                if let Some(export) = &mut self.export {
                    export.append(&bytes).map_err(Failure::Export)?;
                }
            }
            Frame::Exited(code) => self
                .shared
                .update(|progress| progress.exit_code = Some(code)),
            Frame::Failed(reason) => return Err(Failure::Reported(reason)),
            // Sent by this end only.
            Frame::PowerOff | Frame::Beat | Frame::Interrupt => (),
        }
        Ok(())
    }
}

fn write_through(out: &mut impl Write, bytes: &[u8]) -> io::Result<()> {
    out.write_all(bytes)?;
    out.flush()
}
