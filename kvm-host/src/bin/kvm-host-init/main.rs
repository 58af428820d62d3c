//! `kvm-host-init`: PID 1 of the virtual KVM host.
//!
//! Boots the initramfs that `kvm_host::pack` made, runs the one program of its plan and powers off.
//! It is small and synchronous, since it has to be reliable and need not be fast.

use std::fs;
use std::sync::Arc;

use anyhow::Context;
use kvm_host::plan::{PLAN_PATH, Plan, Program};
use kvm_host::protocol::Frame;

mod boot;
mod channel;
mod console;
mod export;
mod program;
mod requests;
mod shutdown;
mod storage;

use channel::Channel;
use requests::Requests;

fn main() {
    // There is no channel before the modules are loaded, so the console gets the error.
    let channel = match boot::bring_up().and_then(|()| Channel::open()) {
        Ok(channel) => Arc::new(channel),
        Err(error) => {
            console::print(&format!("cannot boot: {error:#}"));
            shutdown::power_off();
        }
    };
    if let Err(error) = carry_out_plan(&channel) {
        console::print(&format!("{error:#}"));
        channel.send(&Frame::Failed(format!("{error:#}")));
    }
    channel.drain();
    shutdown::power_off();
}

fn carry_out_plan(channel: &Arc<Channel>) -> anyhow::Result<()> {
    boot::check_kvm()?;
    let plan = fs::read(PLAN_PATH).with_context(|| format!("cannot read {PLAN_PATH}"))?;
    let plan: Plan =
        serde_json::from_slice(&plan).with_context(|| format!("cannot parse {PLAN_PATH}"))?;
    channel.send(&Frame::Booted);
    let in_debian = match &plan.storage {
        Some(storage) => {
            storage::set_up(storage)?;
            storage.programs_in_debian
        }
        None => false,
    };
    let requests = Requests::receive(channel)?;
    match plan.program {
        Program::Service { argv, ready_port } => {
            program::serve(channel, &argv, ready_port, &requests)
        }
        Program::Command { argv, env, export } => {
            let code = program::run(channel, &argv, &env, &requests)?;
            if let Some(folder) = export {
                export::send_folder(channel, folder.as_ref())?;
            }
            channel.send(&Frame::Exited(code));
            Ok(())
        }
        Program::Shell => program::shell(in_debian),
    }
}
