//! Leaks one of each kind for every generation of the machine, as a VMM would whose saved state grew
//! with each suspend: no VMM lives for longer than one.
//!
//! Only with the `leaks` feature, for the run that shows that each leak is caught (`mctl-e2e leaks`).

use std::fs::File;
use std::hint::black_box;
use std::io;
use std::mem::forget;
use std::thread;

use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::{FallocateFlags, fallocate};
use rustix::time::{TimerfdClockId, TimerfdFlags, timerfd_create};

/// Memory and image that are leaked for each generation, in bytes.
const BYTES: u64 = 64 << 10;

/// Leaks a descriptor, a thread, memory, an epoll entry and a timer for each of so many generations.
///
/// # Errors
/// If there is no more of something.
pub fn leak_one_of_each(generations: u64) -> io::Result<()> {
    let epoll = epoll::create(CreateFlags::CLOEXEC)?;
    for _ in 0..generations {
        forget(File::open("/dev/null")?);
        thread::Builder::new().spawn(|| {
            loop {
                thread::park();
            }
        })?;
        // Without a look at it the compiler would leave it out.
        forget(black_box(vec![1_u8; usize::try_from(BYTES).unwrap_or(0)]));
        let watched = eventfd(0, EventfdFlags::CLOEXEC)?;
        epoll::add(&epoll, &watched, EventData::new_u64(0), EventFlags::IN)?;
        forget(watched);
        forget(timerfd_create(
            TimerfdClockId::Monotonic,
            TimerfdFlags::CLOEXEC,
        )?);
    }
    forget(epoll);
    Ok(())
}

/// Gives an image's file blocks behind its end, for each of so many generations.
///
/// # Errors
/// If the file system has no space, or no such call.
pub fn grow_image(file: &File, generations: u64) -> io::Result<()> {
    let end = file.metadata()?.len();
    let bytes = generations.saturating_mul(BYTES);
    fallocate(file, FallocateFlags::KEEP_SIZE, end, bytes)?;
    Ok(())
}
