//! The queue of events that reach a machine's loop from its other threads.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};

use vmm_control::SuspendFigures;
use vmm_sys_util::eventfd::EventFd;

use crate::clock::monotonic_ns;
use crate::devices::power::{PowerListener, PowerRequest};
use crate::devices::serial::ConsoleListener;
use crate::devices::virtio::vsock::VsockObserver;
use crate::image::{ConsumeError, SaveError, Verified, VerifyError};
use crate::sys::fd::new_event;
use crate::vcpu::thread::{Report, VcpuObserver};

/// An event of a machine.
#[derive(Debug)]
pub enum MachineEvent {
    /// A report of a vCPU.
    Vcpu(Report),
    /// The guest asks for power-off or reset.
    Power(PowerRequest),
    /// The guest has handled the transport reset.
    ResetAcknowledged {
        /// When, on CLOCK_MONOTONIC.
        at_ns: u64,
    },
    /// A disk is held, and has no request in service.
    DiskHeld {
        /// As in `BlockHost`.
        round: u64,
    },
    /// Console output waits for more of its line; see [`EventSender::console_is_served`].
    ConsoleWaits,
    /// That the image was used is durable, or can't be made so.
    ConsumptionSynced(Result<(), ConsumeError>),
    /// The background check of memory has ended.
    Verified(Result<Verified, VerifyError>),
    /// The thread that saves has ended.
    Saved(Result<SuspendFigures, SaveError>),
}

/// Adds events to the queue from any thread, and wakes the loop.
#[derive(Debug, Clone)]
pub struct EventSender {
    channel: Sender<MachineEvent>,
    wake: Arc<EventFd>,
    /// The guest has asked for power-off or reset: it may do so in a loop, and the first is obeyed.
    power_asked: Arc<AtomicBool>,
    /// That console output waits was told, and it has not been written since.
    console_told: Arc<AtomicBool>,
}

/// The queue.
#[derive(Debug)]
pub struct EventQueue {
    channel: Receiver<MachineEvent>,
    wake: Arc<EventFd>,
}

/// Makes a queue and its sender.
///
/// # Errors
/// Where the host gives no eventfd.
pub fn queue() -> std::io::Result<(EventSender, EventQueue)> {
    let wake = Arc::new(new_event()?);
    let (sender, receiver) = mpsc::channel();
    let queue = EventQueue {
        channel: receiver,
        wake: Arc::clone(&wake),
    };
    Ok((
        EventSender {
            channel: sender,
            wake,
            power_asked: Arc::default(),
            console_told: Arc::default(),
        },
        queue,
    ))
}

impl EventSender {
    /// Adds an event.
    pub fn send(&self, event: MachineEvent) {
        // Both fail only if the loop has ended.
        let _ = self.channel.send(event);
        let _ = self.wake.write(1);
    }
}

impl EventSender {
    /// Console output that waits from now on is told again.
    pub fn console_is_served(&self) {
        self.console_told.store(false, Ordering::Relaxed);
    }
}

impl EventQueue {
    /// Readable when there are events.
    #[must_use]
    pub fn wake(&self) -> &EventFd {
        &self.wake
    }

    /// The next event, if there is one.
    #[must_use]
    pub fn next(&self) -> Option<MachineEvent> {
        self.channel.try_recv().ok()
    }
}

impl VcpuObserver for EventSender {
    fn report(&self, report: Report) {
        self.send(MachineEvent::Vcpu(report));
    }
}

impl PowerListener for EventSender {
    fn power_requested(&self, request: PowerRequest) {
        if !self.power_asked.swap(true, Ordering::Relaxed) {
            self.send(MachineEvent::Power(request));
        }
    }
}

impl ConsoleListener for EventSender {
    fn output_waits(&self) {
        if !self.console_told.swap(true, Ordering::Relaxed) {
            self.send(MachineEvent::ConsoleWaits);
        }
    }
}

impl VsockObserver for EventSender {
    fn reset_acknowledged(&self) {
        self.send(MachineEvent::ResetAcknowledged {
            at_ns: monotonic_ns(),
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_that_asks_for_power_off_in_a_loop_fills_nothing() {
        let (sender, events) = queue().unwrap();
        for _ in 0..1000 {
            sender.power_requested(PowerRequest::Reset);
            sender.power_requested(PowerRequest::Off);
            sender.output_waits();
        }
        assert!(matches!(
            events.next(),
            Some(MachineEvent::Power(PowerRequest::Reset))
        ));
        assert!(matches!(events.next(), Some(MachineEvent::ConsoleWaits)));
        assert!(events.next().is_none());
        sender.console_is_served();
        sender.output_waits();
        assert!(events.next().is_some());
    }
}
