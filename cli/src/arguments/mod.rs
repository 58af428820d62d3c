//! Arguments that several commands share: which machine, its configuration, how it stops, watching.

mod machine;
mod machine_flags;
mod new_machine;
mod stop;
mod watch;

pub(crate) use machine::{MachineArg, MachinesArg, RequiredMachineArg, find_machine};
pub(crate) use machine_flags::MachineFlags;
pub(crate) use new_machine::NewMachine;
pub(crate) use stop::StopFlags;
pub(crate) use watch::WatchFlags;
