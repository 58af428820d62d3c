//! The thread of a disk: takes one request at a time from the queue, serves it without any lock, and
//! gives it back.
//!
//! Nobody but this thread waits for the disk, except a reset by the guest's driver, after which guest
//! memory must not change any more (virtio 1.2, 2.4.1). To hold the disk means that the thread takes no
//! further request; it says when the one in service, if any, is done. What remains is in the queue, and
//! is served after the release, or by the machine that is restored.

use std::error::Error;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::eventfd::EventFd;

use super::backend::Backend;
use super::request::Request;
use crate::devices::virtio::device::{DeviceError, SavedQueue};
use crate::devices::virtio::request_queue::RequestQueue;
use crate::sys::fd::{borrow, new_event};

/// Enough for a request, and too small for a huge page.
const STACK_BYTES: usize = 256 << 10;
/// How long the driver may not hear of a request that is done while others are served.
const SIGNAL_AFTER: Duration = Duration::from_micros(100);

/// What a disk asks of the machine that it belongs to.
pub trait BlockHost: Send + Sync + std::fmt::Debug {
    /// Called first on the disk's thread, which may have fewer rights from then on.
    ///
    /// # Errors
    /// Where the thread must not go on.
    fn prepare_thread(&self) -> Result<(), Box<dyn Error + Send + Sync>>;
    /// The disk is held, as asked with this number, and no request is in service.
    fn held(&self, round: u64);
}

/// The handle of a disk's thread. Dropping it ends the thread.
#[derive(Debug)]
pub(super) struct Worker {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    backend: Backend,
    host: Arc<dyn BlockHost>,
    /// Rung by the guest, and by us when the slot has changed.
    doorbell: Arc<EventFd>,
    /// Rung when the queue is broken.
    broken: EventFd,
    slot: Mutex<Slot>,
    /// A request has been served.
    served: Condvar,
}

#[derive(Debug, Default)]
struct Slot {
    queue: Option<RequestQueue>,
    /// A request is in service, and the slot is not locked.
    busy: bool,
    /// The last round in which the disk was held, until it is released.
    held: Option<u64>,
    /// Requests that change the disk wait.
    writes_wait: bool,
    error: Option<DeviceError>,
    ended: bool,
    /// How often the queue has been served.
    #[cfg(test)]
    passes: u64,
}

impl Worker {
    /// Starts the thread. With `writes_wait`, requests that change the disk are not served before
    /// [`Self::let_writes_pass`].
    pub(super) fn start(
        backend: Backend,
        host: Arc<dyn BlockHost>,
        writes_wait: bool,
    ) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            backend,
            host,
            doorbell: Arc::new(new_event()?),
            broken: new_event()?,
            slot: Mutex::new(Slot {
                writes_wait,
                ..Slot::default()
            }),
            served: Condvar::new(),
        });
        let (started, start) = mpsc::sync_channel(1);
        let of_thread = Arc::clone(&shared);
        let thread = std::thread::Builder::new()
            .name("disk".to_owned())
            .stack_size(STACK_BYTES)
            .spawn(move || {
                let prepared = of_thread.host.prepare_thread();
                let is_ready = prepared.is_ok();
                // Fails only if nobody waits any more.
                let _ = started.send(prepared);
                if is_ready {
                    of_thread.serve();
                }
            })?;
        let worker = Self {
            shared,
            thread: Some(thread),
        };
        match start.recv() {
            Ok(Ok(())) => Ok(worker),
            Ok(Err(error)) => Err(io::Error::other(error)),
            Err(_) => Err(io::Error::other("the thread ended at once")),
        }
    }

    pub(super) fn backend(&self) -> &Backend {
        &self.shared.backend
    }

    pub(super) fn doorbell(&self) -> &Arc<EventFd> {
        &self.shared.doorbell
    }

    /// Readable when there is an error to be fetched with [`Self::take_error`].
    pub(super) fn broken(&self) -> &EventFd {
        &self.shared.broken
    }

    pub(super) fn take_error(&self) -> Option<DeviceError> {
        let _ = self.shared.broken.read();
        self.shared.lock().error.take()
    }

    /// Begins to serve a queue.
    pub(super) fn begin(&self, queue: RequestQueue) {
        let mut slot = self.shared.lock();
        slot.queue = Some(queue);
        slot.error = None;
        drop(slot);
        self.ring();
    }

    /// Takes the queue out of service. Waits for the request in service.
    pub(super) fn end(&self) {
        let mut slot = self.shared.lock();
        slot.queue = None;
        while slot.busy {
            slot = self
                .shared
                .served
                .wait(slot)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Takes no further request; see [`BlockHost::held`].
    pub(super) fn hold(&self, round: u64) {
        let mut slot = self.shared.lock();
        slot.held = Some(round);
        if !slot.busy {
            self.shared.host.held(round);
        }
    }

    pub(super) fn release(&self) {
        self.shared.lock().held = None;
        self.ring();
    }

    pub(super) fn let_writes_pass(&self) {
        self.shared.lock().writes_wait = false;
        self.ring();
    }

    /// State of the queue, if there is one in service.
    pub(super) fn queues(&self) -> Vec<SavedQueue> {
        let slot = self.shared.lock();
        slot.queue
            .as_ref()
            .map_or_else(Vec::new, RequestQueue::saved)
    }

    /// Tells the driver that it may have got something back.
    pub(super) fn signal(&self) {
        if let Some(queue) = &self.shared.lock().queue {
            queue.signal();
        }
    }

    /// Serves what is in the queue now, and waits for that.
    #[cfg(test)]
    pub(super) fn serve_now(&self) {
        let deadline = Instant::now() + Duration::from_secs(10);
        // A pass may be under way that has not seen the last requests.
        for _ in 0..2 {
            let mut slot = self.shared.lock();
            let before = slot.passes;
            self.ring();
            while slot.passes == before {
                let left = deadline.saturating_duration_since(Instant::now());
                assert!(!left.is_zero(), "the disk's thread does not serve");
                slot = self.shared.served.wait_timeout(slot, left).unwrap().0;
            }
        }
    }

    fn ring(&self) {
        // The counter can't overflow, since the thread resets it.
        let _ = self.shared.doorbell.write(1);
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.shared.lock().ended = true;
        self.ring();
        if let Some(thread) = self.thread.take() {
            // A panic of the thread has been printed already.
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Slot> {
        self.slot.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Serves until the end. What cannot be waited for is not served: the guest then sees a disk that
    /// does not answer.
    fn serve(&self) {
        let mut buffer = Vec::new();
        while self.wait_for_doorbell() {
            let slot = self.lock();
            if slot.ended {
                return;
            }
            match slot.queue.as_ref().map(|queue| queue.memory().clone()) {
                Some(memory) => self.serve_all(slot, &memory, &mut buffer),
                None => drop(slot),
            }
            #[cfg(test)]
            self.count_pass();
        }
    }

    fn wait_for_doorbell(&self) -> bool {
        loop {
            // Cleared before the queue is looked at, so that a ring meanwhile is not lost.
            if self.doorbell.read().is_ok() {
                return true;
            }
            let mut fds = [PollFd::from_borrowed_fd(
                borrow(&self.doorbell),
                PollFlags::IN,
            )];
            match poll(&mut fds, None) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(_) => return false,
            }
        }
    }

    /// Serves the requests that are in the queue now; a later one comes with a ring of its own.
    fn serve_all<'a>(
        &'a self,
        mut slot: MutexGuard<'a, Slot>,
        memory: &GuestMemoryMmap,
        buffer: &mut Vec<u8>,
    ) {
        let mut unsignalled = Unsignalled::default();
        let mut left = slot.queue.as_ref().map_or(0, RequestQueue::size);
        while left > 0 && slot.held.is_none() && slot.error.is_none() && !slot.ended {
            left -= 1;
            let writes_wait = slot.writes_wait;
            let Some(queue) = &mut slot.queue else { break };
            let chain = match queue.take(memory) {
                Ok(Some(chain)) => chain,
                Ok(None) => break,
                Err(error) => {
                    self.report(&mut slot, error);
                    break;
                }
            };
            let head = chain.head_index();
            let request = Request::new(memory, chain);
            if writes_wait && request.as_ref().is_some_and(Request::changes_disk) {
                queue.put_back();
                break;
            }
            slot.busy = true;
            drop(slot);
            let written = request.map_or(0, |request| request.serve(&self.backend, buffer));
            slot = self.lock();
            slot.busy = false;
            self.served.notify_all();
            if let Some(round) = slot.held {
                self.host.held(round);
            }
            // None after a reset meanwhile: guest memory is not touched any more.
            let Some(queue) = &mut slot.queue else { break };
            if let Err(error) = queue.give_back(memory, head, written) {
                self.report(&mut slot, error);
                break;
            }
            unsignalled.add(queue);
        }
        if let Some(queue) = &slot.queue {
            unsignalled.signal(queue);
        }
    }

    #[cfg(test)]
    fn count_pass(&self) {
        self.lock().passes += 1;
        self.served.notify_all();
    }

    fn report(&self, slot: &mut Slot, error: DeviceError) {
        slot.error = Some(error);
        let _ = self.broken.write(1);
    }
}

/// Requests that are done and of which the driver has not been told.
#[derive(Debug, Default)]
struct Unsignalled {
    since: Option<Instant>,
}

impl Unsignalled {
    fn add(&mut self, queue: &RequestQueue) {
        match self.since {
            None => self.since = Some(Instant::now()),
            Some(since) if since.elapsed() >= SIGNAL_AFTER => self.signal(queue),
            Some(_) => {}
        }
    }

    fn signal(&mut self, queue: &RequestQueue) {
        if self.since.take().is_some() {
            queue.signal();
        }
    }
}
