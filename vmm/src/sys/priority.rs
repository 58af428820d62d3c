//! Scheduling priority of threads that work in the background.

/// Gives the calling thread the lowest priority for processor and disk. It must call
/// [`let_others_run`] often.
///
/// Best effort: at worst the thread competes with the guest.
pub(crate) fn lower_this_thread() {
    const IOPRIO_WHO_PROCESS: libc::c_int = 1;
    const IOPRIO_CLASS_BEST_EFFORT: libc::c_int = 2;
    const LOWEST_LEVEL: libc::c_int = 7;
    // SAFETY: takes three integers and touches no memory; id 0 is the calling thread.
    unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, 19) };
    // Not the idle class, since a save may have to wait for one of this thread's reads.
    let priority = (IOPRIO_CLASS_BEST_EFFORT << 13) | LOWEST_LEVEL;
    // SAFETY: takes three integers and touches no memory; id 0 is the calling thread.
    unsafe { libc::syscall(libc::SYS_ioprio_set, IOPRIO_WHO_PROCESS, 0, priority) };
}

/// Lets another thread run that wants this one's processor.
///
/// A thread of low priority that has not run yet is the first one that the scheduler takes, and then
/// keeps its processor until the next timer tick (4 ms where HZ is 250). A vCPU that has been
/// restored would wait that long in the middle of its readiness check.
pub(crate) fn let_others_run() {
    std::thread::yield_now();
}
