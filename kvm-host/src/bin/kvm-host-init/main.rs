//! `kvm-host-init`: PID 1 of the virtual KVM host.
//!
//! Boots what `mctl-kvm-host` packed, runs the one program of its plan and powers off. It is
//! small and synchronous: nothing here has to be fast, all of it has to be sure.

use std::fs;
use std::sync::Arc;

use anyhow::Context;
use kvm_host::plan::{PLAN_PATH, Plan};
use kvm_host::protocol::Frame;

mod boot;
mod channel;
mod export;
mod program;

use channel::Channel;

fn main() {
    // Before the modules are loaded there is no channel to complain through.
    let channel = match boot::bring_up().and_then(|()| Channel::open()) {
        Ok(channel) => Arc::new(channel),
        Err(error) => {
            channel::say(&format!("cannot boot: {error:#}"));
            boot::power_off();
        }
    };
    if let Err(error) = carry_out_plan(&channel) {
        channel::say(&format!("{error:#}"));
        channel.send(&Frame::Failed(format!("{error:#}")));
    }
    boot::power_off();
}

fn carry_out_plan(channel: &Arc<Channel>) -> anyhow::Result<()> {
    boot::check_kvm()?;
    let plan = fs::read(PLAN_PATH).with_context(|| format!("cannot read {PLAN_PATH}"))?;
    let plan: Plan = serde_json::from_slice(&plan).context("the plan is no plan")?;
    channel.send(&Frame::Booted);
    channel::obey(channel)?;
    match plan {
        Plan::Service { argv, ready_port } => program::serve(channel, &argv, ready_port),
        Plan::Command { argv, env, export } => {
            let code = program::run(channel, &argv, &env)?;
            if let Some(folder) = export {
                export::send_folder(channel, folder.as_ref())?;
            }
            channel.send(&Frame::Exited(code));
            Ok(())
        }
        Plan::Shell => program::shell(),
    }
}
