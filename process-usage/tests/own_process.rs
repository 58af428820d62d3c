//! The figures of this process, in a binary with a single test: tests that run beside it would
//! change what it compares.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::mpsc;

use process_usage::ProcessUsage;
use rustix::event::epoll;
use rustix::time::{TimerfdClockId, TimerfdFlags, timerfd_create};

fn timer() -> OwnedFd {
    timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::CLOEXEC).expect("a timer")
}

#[test]
fn what_this_process_opens_is_counted_until_it_is_closed() {
    let before = ProcessUsage::own();
    let null = || File::open("/dev/null").expect("a descriptor");
    let files = [null(), null(), null()];
    let timers = [timer(), timer()];
    let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).expect("an epoll");
    for timer in &timers {
        let data = epoll::EventData::new_u64(0);
        epoll::add(&epoll, timer, data, epoll::EventFlags::IN).expect("an entry");
    }
    let (end, ended) = mpsc::channel::<()>();
    let thread = std::thread::spawn(move || ended.recv());
    // More than the allocator has lying around, and written, so that it is resident.
    let memory = vec![1_u8; 32 << 20];

    let during = ProcessUsage::own();

    let rise = |figure: fn(&ProcessUsage) -> Option<u64>| {
        figure(&during).expect("a figure") - figure(&before).expect("a figure")
    };
    assert_eq!(rise(|usage| usage.descriptors), 3 + 2 + 1);
    assert_eq!(rise(|usage| usage.timers), 2);
    assert_eq!(rise(|usage| usage.epoll_entries), 2);
    assert_eq!(rise(|usage| usage.threads), 1);
    for grown in [
        rise(|usage| usage.resident_bytes),
        rise(|usage| usage.anonymous_bytes),
    ] {
        // The kernel's counters are off by some pages per processor.
        let written = memory.len() as u64;
        assert!((written / 8 * 7..2 * written).contains(&grown), "{grown}");
    }
    drop((files, timers, epoll, end));
    let _ = thread.join();
    assert_eq!(ProcessUsage::own().descriptors, before.descriptors);
}
