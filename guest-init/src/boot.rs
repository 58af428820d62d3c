//! Runs the boot steps that `main.rs` lists, and then the server, for as long as the guest is up.

use std::convert::Infallible;
use std::error::Error;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;

use guest_protocol::PORT;
use tokio::task::LocalSet;

use crate::console::{chain, say};
use crate::kernel::GuestKernel;
use crate::reaper::{self, Reaper};
use crate::server::Server;
use crate::{listener, procfs, settings, shutdown};

/// What a failed step means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Failure {
    /// The guest is of no use without it.
    PowersOff,
    /// The guest has to do without it.
    IsLogged,
}

/// One thing to do at boot.
pub(crate) struct Step {
    /// Continues "cannot …".
    pub(crate) name: &'static str,
    pub(crate) failure: Failure,
    pub(crate) run: fn() -> Result<(), Box<dyn Error>>,
}

/// Runs all steps in order.
pub(crate) fn run(steps: &[Step]) {
    for step in steps {
        if let Err(error) = (step.run)() {
            say(format_args!("cannot {}: {}", step.name, chain(&*error)));
            if step.failure == Failure::PowersOff {
                shutdown::power_off();
            }
        }
    }
}

/// Serves until the guest ends. Whatever goes wrong, process 1 does not return: the kernel
/// would panic.
pub(crate) fn serve() -> ! {
    match catch_unwind(AssertUnwindSafe(serve_in_runtime)) {
        Ok(Err(error)) => say(format_args!("cannot serve vsock port {PORT}: {error}")),
        Err(_reported) => say("the server panicked"),
        Ok(Ok(never)) => match never {},
    }
    shutdown::power_off()
}

fn serve_in_runtime() -> io::Result<Infallible> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .enable_time()
        .build()?;
    LocalSet::new().block_on(&runtime, serve_until_the_end())
}

async fn serve_until_the_end() -> io::Result<Infallible> {
    let child_ended = reaper::child_signals()?;
    let listener = listener::listen_on(PORT)?;
    let reaper = Reaper::new();
    let server = Server::new(
        Box::new(GuestKernel),
        Rc::clone(&reaper),
        settings::main_cgroup(),
    );
    tokio::task::spawn_local(Rc::clone(&reaper).run(child_ended));
    tokio::task::spawn_local(listener::serve(listener, Rc::clone(&server)));
    let uptime_ms = procfs::uptime_ms();
    say(format_args!(
        "serving vsock port {PORT} after {uptime_ms} ms"
    ));
    let order = shutdown::wait_for_order(&server).await?;
    Ok(shutdown::end_guest(&server, &reaper, order).await)
}
