//! libFuzzer's program: runs the target that the environment names.

#![no_main]

use std::sync::LazyLock;

use tokio::signal::unix::{SignalKind, signal};

static TARGET: LazyLock<&fuzz::Target> = LazyLock::new(|| {
    withstand_broken_pipes();
    let name = std::env::var("MCTL_FUZZ_TARGET").expect("MCTL_FUZZ_TARGET names a target");
    fuzz::find(&name).unwrap_or_else(|| panic!("MCTL_FUZZ_TARGET={name} is no target"))
});

libfuzzer_sys::fuzz_target!(|input: &[u8]| (TARGET.run)(input));

/// A program that Rust starts ignores SIGPIPE, and one that libFuzzer starts would end with it.
fn withstand_broken_pipes() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .build()
        .expect("a runtime without threads");
    let _entered = runtime.enter();
    // The handler stays when this is dropped.
    let _broken_pipes = signal(SignalKind::pipe()).expect("a handler of a signal");
}
