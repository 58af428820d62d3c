//! guest-init: process 1 of a guest.
//!
//! Boots what the kernel leaves to user space, then serves the supervisor on a vsock port: it
//! runs the machine's main process and whatever else is asked, until the guest is powered off.
//! It starts nothing of its own accord and keeps no files.

mod boot;
mod connection;
mod console;
#[cfg(not(feature = "leaky"))]
mod cpu_usage;
mod exec;
mod files;
mod forward;
mod kernel;
#[cfg(feature = "leaky")]
mod leaky;
mod listener;
mod main_process;
mod modules;
mod mounts;
mod netlink;
mod network;
mod oom;
mod output;
mod output_stream;
mod processes;
mod procfs;
mod reaper;
mod registry;
mod server;
mod settings;
mod shutdown;
mod spawn;
mod stream;
#[expect(unsafe_code, reason = "the one place for calls without a safe form")]
mod sys;
mod vsock_diag;
mod wake;

use boot::Failure::{IsLogged, PowersOff};
use boot::Step;

#[rustfmt::skip]
const STEPS: &[Step] = &[
    Step { name: "mount the kernel's file systems", failure: PowersOff, run: || Ok(mounts::mount_table()?) },
    Step { name: "open the console",                failure: IsLogged,  run: || Ok(console::attach()?) },
    Step { name: "write the kernel's settings",     failure: IsLogged,  run: || Ok(settings::write_sysctls()?) },
    Step { name: "raise the limit of open files",   failure: IsLogged,  run: || Ok(settings::raise_open_files()?) },
    Step { name: "make the main control group",     failure: IsLogged,  run: || Ok(settings::make_main_cgroup()?) },
    Step { name: "load the kernel modules",         failure: IsLogged,  run: || Ok(modules::load_all()?) },
    Step { name: "set the host name",               failure: IsLogged,  run: || Ok(settings::set_first_hostname()?) },
    Step { name: "bring up the loopback interface", failure: IsLogged,  run: || Ok(network::bring_up_loopback()?) },
];

fn main() {
    if std::process::id() != 1 {
        console::say("runs as process 1 of a guest only");
        std::process::exit(2);
    }
    boot::run(STEPS);
    boot::serve();
}
