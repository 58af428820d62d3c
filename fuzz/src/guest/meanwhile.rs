//! A second processor of the guest, which changes memory while the device is served.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::Thread;

use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

/// What is written, and where.
pub(crate) type Write = (u64, Vec<u8>);

struct Job {
    memory: GuestMemoryMmap,
    writes: Vec<Write>,
    started: Arc<AtomicBool>,
    stop: Arc<AtomicBool>,
    ended: Sender<()>,
    waiter: Thread,
}

thread_local! {
    static PROCESSOR: Sender<Job> = {
        let (jobs, queue) = channel();
        std::thread::spawn(move || run(&queue));
        jobs
    };
}

/// Does `work` while another thread makes these writes, again and again: each at least once, and always
/// all of them.
pub(crate) fn while_writing(memory: &GuestMemoryMmap, writes: Vec<Write>, work: impl FnOnce()) {
    let (ended, end) = channel();
    let started = Arc::new(AtomicBool::new(false));
    let stop = Arc::new(AtomicBool::new(false));
    let job = Job {
        memory: memory.clone(),
        writes,
        started: Arc::clone(&started),
        stop: Arc::clone(&stop),
        ended,
        waiter: std::thread::current(),
    };
    PROCESSOR
        .with(|jobs| jobs.send(job))
        .expect("the thread lives as long as this one");
    while !started.load(Ordering::SeqCst) {
        std::thread::park_timeout(std::time::Duration::from_millis(1));
    }
    work();
    stop.store(true, Ordering::SeqCst);
    end.recv().expect("the thread does not panic");
}

fn run(jobs: &Receiver<Job>) {
    while let Ok(job) = jobs.recv() {
        loop {
            let is_last = job.stop.load(Ordering::SeqCst);
            for (address, bytes) in &job.writes {
                // Outside of memory in part or as a whole, as with the guest's own writes.
                let _ = job.memory.write(bytes, GuestAddress(*address));
            }
            if !job.started.swap(true, Ordering::SeqCst) {
                job.waiter.unpark();
            }
            if is_last {
                break;
            }
        }
        // Nobody waits after a panic.
        let _ = job.ended.send(());
    }
}
