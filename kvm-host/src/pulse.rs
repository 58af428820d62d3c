//! Keeps interrupts coming, so that a virtual host which lost one goes on.
//!
//! QEMU's emulation of SVM clears a bit of the processor's pending interrupts at every exit of a
//! nested guest without holding its lock (svm_helper.c: do_vmexit, before "treewide: clear bits of
//! cs->interrupt_request with cpu_reset_interrupt()", 2025). An interrupt that a device raises in
//! that very moment is lost. Mostly another follows soon, and both are served. But if it was the
//! timer's and nothing else goes on, then the kernel inside waits for a timer that it need not set
//! anew, and the host stands still until something else interrupts it: it was seen to take more
//! than five minutes, once in some hundred boots of a guest. Any interrupt ends that, and so the
//! outside sends one now and then, as an empty frame.

use std::io;
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::protocol::Frame;

/// Longest that a virtual host stands still. Short beside what is measured inside, and rare
/// enough to cost an emulated processor far below a hundredth of its time.
const INTERVAL: Duration = Duration::from_millis(50);

/// How long the inside may leave what it was sent unread before a sender gives up.
const PATIENCE: Duration = Duration::from_secs(1);

/// The sending half of the channel. Frames of several threads stay whole.
#[derive(Debug, Clone)]
pub(crate) struct Outbox(Arc<Mutex<UnixStream>>);

impl Outbox {
    pub(crate) fn new(channel: UnixStream) -> io::Result<Self> {
        channel.set_write_timeout(Some(PATIENCE))?;
        Ok(Self(Arc::new(Mutex::new(channel))))
    }

    pub(crate) fn send(&self, frame: &Frame) -> io::Result<()> {
        let channel = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        frame.write_to(&*channel)
    }
}

/// Beats until dropped, or until nobody listens.
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
                        // Many beats wait to be read: no further one is needed for now.
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
            // It waits for no longer than a write takes.
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pulse_beats_until_it_is_dropped() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let pulse = Pulse::start(Outbox::new(ours).unwrap()).unwrap();
        for _ in 0..3 {
            assert_eq!(Frame::read_from(&theirs).unwrap(), Some(Frame::Beat));
        }
        drop(pulse);
        let rest = std::iter::from_fn(|| Frame::read_from(&theirs).unwrap());
        assert!(rest.take(1_000).count() < 1_000, "it goes on");
    }

    #[test]
    fn a_pulse_ends_with_its_listener() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let mut pulse = Pulse::start(Outbox::new(ours).unwrap()).unwrap();
        drop(theirs);
        pulse.thread.take().unwrap().join().unwrap();
    }
}
