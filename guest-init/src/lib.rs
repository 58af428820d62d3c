//! guest-init: process 1 of a guest.
//!
//! Sets up at boot what the kernel leaves to user space, then serves the supervisor on a vsock
//! port until the guest is powered off: it runs the machine's main process, and everything else
//! that a call asks for. It starts nothing of its own accord and stores no files.
//!
//! This file only wires. The layers, from the bottom: `os`, `boot`, `connection` and `processes`,
//! `services`, `server`. Each imports only those before it. The program only calls [`run`]; this is a
//! library so that fuzz targets reach what reads calls.

mod boot;
mod connection;
pub mod fuzzing;
mod os;
mod processes;
mod server;
mod services;

use std::convert::Infallible;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;

use boot::Failure::{IsLogged, PowersOff};
use boot::{Step, loopback, modules, settings};
use guest_protocol::PORT;
use os::console::{self, say};
use os::kernel::GuestKernel;
use os::vsock_listener::VsockListener;
use os::{clock, mounts, power};
use processes::reaper::{self, Reaper};
use processes::shutdown;
use server::{Server, listener};
use tokio::task::LocalSet;

#[rustfmt::skip]
const STEPS: &[Step] = &[
    Step { name: "mount the kernel's file systems", failure: PowersOff, run: || Ok(mounts::mount_table()?) },
    Step { name: "open the console",                failure: IsLogged,  run: || Ok(console::attach()?) },
    Step { name: "write the kernel's settings",     failure: IsLogged,  run: || Ok(settings::write_sysctls()?) },
    Step { name: "raise the limit of open files",   failure: IsLogged,  run: || Ok(settings::raise_open_files()?) },
    Step { name: "create the main control group",   failure: IsLogged,  run: || Ok(settings::create_main_cgroup()?) },
    Step { name: "load the kernel modules",         failure: IsLogged,  run: || Ok(modules::load_all()?) },
    Step { name: "set the host name",               failure: IsLogged,  run: || Ok(settings::set_first_hostname()?) },
    Step { name: "bring up the loopback interface", failure: IsLogged,  run: || Ok(loopback::bring_up()?) },
];

/// Runs the program. As process 1 of a guest it does not return.
pub fn run() {
    if std::process::id() != 1 {
        say("runs only as process 1 of a guest");
        std::process::exit(2);
    }
    boot::run(STEPS);
    // Process 1 must not return, whatever fails: the kernel would panic.
    match catch_unwind(AssertUnwindSafe(serve)) {
        Ok(Err(error)) => say(format_args!("cannot serve vsock port {PORT}: {error}")),
        Err(_reported) => say("the server panicked"),
        Ok(Ok(never)) => match never {},
    }
    power::power_off()
}

/// Serves until the guest ends.
fn serve() -> io::Result<Infallible> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .enable_time()
        .build()?;
    LocalSet::new().block_on(&runtime, serve_until_shutdown())
}

async fn serve_until_shutdown() -> io::Result<Infallible> {
    let child_ended = reaper::child_signals()?;
    let listener = VsockListener::bind(PORT)?;
    let reaper = Reaper::new();
    let server = Server::new(
        Box::new(GuestKernel),
        Rc::clone(&reaper),
        settings::main_cgroup(),
    );
    tokio::task::spawn_local(Rc::clone(&reaper).run(child_ended));
    tokio::task::spawn_local(listener::serve(listener, Rc::clone(&server)));
    let uptime_ms = clock::uptime_ms();
    say(format_args!(
        "serving vsock port {PORT} after {uptime_ms} ms"
    ));
    let (main, requests) = (server.main(), server.power_off_requests());
    let request = shutdown::wait_for_request(main, requests).await?;
    Ok(shutdown::end_guest(main, requests, &reaper, request).await)
}
