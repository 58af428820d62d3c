//! The VMM processes of a state directory, found by their command lines.

use std::fs;
use std::path::Path;

use rustix::io::Errno;
use rustix::process::{Pid, Signal, kill_process};

/// A VMM process that exists.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Vmm {
    /// Id of its machine.
    pub(crate) machine: String,
    pub(crate) pid: i32,
}

impl Vmm {
    pub(crate) fn kill(&self) -> Result<(), Errno> {
        let pid = Pid::from_raw(self.pid).ok_or(Errno::SRCH)?;
        kill_process(pid, Signal::KILL)
    }
}

/// All VMMs of the state directory `state`.
pub(crate) fn vmms(state: &Path) -> Vec<Vmm> {
    let machines = state.join("machines");
    let processes = fs::read_dir("/proc").unwrap().flatten();
    let mut found: Vec<Vmm> = processes
        .filter_map(|process| {
            let pid = process.file_name().to_str()?.parse().ok()?;
            let command_line = fs::read(process.path().join("cmdline")).ok()?;
            let machine = machine_of(&command_line, &machines)?;
            Some(Vmm { machine, pid })
        })
        .collect();
    found.sort();
    found
}

/// The id of the machine that a VMM with this command line runs. Its flag for the exit file names a
/// file in the machine's directory.
fn machine_of(command_line: &[u8], machines: &Path) -> Option<String> {
    let mut words = command_line.split(|byte| *byte == 0);
    words.find_map(|word| {
        let path = Path::new(std::str::from_utf8(word).ok()?);
        let below = path.strip_prefix(machines).ok()?;
        let machine = (path.file_name()? == "exit.json").then(|| below.parent())??;
        Some(machine.display().to_string())
    })
}
