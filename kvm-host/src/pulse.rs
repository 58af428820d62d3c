//! Sends interrupts to a virtual host regularly, so that it recovers from one that QEMU lost.
//!
//! QEMU's emulation of SVM clears a bit of the processor's pending interrupts at every exit of a
//! nested guest without holding its lock (svm_helper.c: do_vmexit, before "treewide: clear bits of
//! cs->interrupt_request with cpu_reset_interrupt()", 2025). An interrupt that a device raises at
//! that moment is lost. Usually another follows soon, and both are served. But if it was the
//! timer's and nothing else happens, the kernel inside waits for a timer that it does not set
//! again, and the host stops until something else interrupts it: for more than five minutes, once
//! in some hundred boots of a guest. Any interrupt ends that, so the outside sends an empty frame
//! regularly.

use std::io;
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use socket2::Socket;

use crate::protocol::Frame;

/// Longest that a virtual host stops after a lost interrupt. Short compared to the times measured
/// inside, and rare enough to cost an emulated processor far below one per cent of its time.
const INTERVAL: Duration = Duration::from_millis(50);

/// How long a frame may wait for the inside to read before its sender gives up.
const SEND_DEADLINE: Duration = Duration::from_secs(1);

/// The sending half of the channel. Frames of several threads stay whole.
#[derive(Debug, Clone)]
pub(crate) struct Outbox(Arc<Mutex<Socket>>);

impl Outbox {
    pub(crate) fn new(channel: Socket) -> io::Result<Self> {
        channel.set_write_timeout(Some(SEND_DEADLINE))?;
        Ok(Self(Arc::new(Mutex::new(channel))))
    }

    pub(crate) fn send(&self, frame: &Frame) -> io::Result<()> {
        let channel = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        frame.write_to(&*channel)
    }
}

/// Sends beats until it is dropped, or until the other end is closed.
#[derive(Debug)]
pub(crate) struct Pulse {
    /// Dropped to end the thread.
    alive: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Pulse {
    pub(crate) fn start(outbox: Outbox) -> io::Result<Self> {
        let (alive, ended) = mpsc::channel();
        let thread = std::thread::Builder::new()
            .name("kvm-host-pulse".to_owned())
            .spawn(move || {
                while ended.recv_timeout(INTERVAL) == Err(RecvTimeoutError::Timeout) {
                    match outbox.send(&Frame::Beat) {
                        // Many unread beats are queued, so no further one is needed.
                        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                        Err(_) => break,
                        Ok(()) => {}
                    }
                }
            })?;
        Ok(Self {
            alive: Some(alive),
            thread: Some(thread),
        })
    }
}

impl Drop for Pulse {
    fn drop(&mut self) {
        self.alive = None;
        if let Some(thread) = self.thread.take() {
            // The thread ends after one write at most.
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::OwnedFd;
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn a_pulse_beats_until_it_is_dropped() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let pulse = Pulse::start(Outbox::new(OwnedFd::from(ours).into()).unwrap()).unwrap();
        for _ in 0..3 {
            assert_eq!(Frame::read_from(&theirs).unwrap(), Some(Frame::Beat));
        }
        drop(pulse);
        let rest = std::iter::from_fn(|| Frame::read_from(&theirs).unwrap());
        assert!(rest.take(1_000).count() < 1_000, "the beats continue");
    }

    #[test]
    fn a_pulse_ends_with_its_listener() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let mut pulse = Pulse::start(Outbox::new(OwnedFd::from(ours).into()).unwrap()).unwrap();
        drop(theirs);
        pulse.thread.take().unwrap().join().unwrap();
    }
}
