//! The QEMU process: its version, its command line, its start.
//!
//! QEMU emulates an AMD CPU with SVM and nested paging, on which `kvm_amd` inside works. This file
//! knows neither the programs inside nor the frames on the channel.

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use socket2::Socket;
use thiserror::Error;

use crate::clock::Clock;
use crate::emulator::Emulator;
use crate::keeper::{KeepError, Kept};
use crate::plan::CHANNEL_NAME;
use crate::qemu_fix::{Fix, FixError};
use crate::sys;

const PROGRAM: &str = "qemu-system-x86_64";

/// The oldest version in whose emulation of SVM Linux guests run. In 6.2 they end soon after the boot.
const OLDEST: (u32, u32) = (7, 2);

/// Why QEMU could not be run.
#[derive(Debug, Error)]
pub enum QemuError {
    #[error("cannot run {PROGRAM} (Debian's package qemu-system-x86 has it)")]
    Spawn(#[source] io::Error),
    #[error("{version} is too old to run guests in: {}.{} or later is needed", OLDEST.0, OLDEST.1)]
    TooOld { version: String },
    #[error("cannot create the socket pair of the channel")]
    Channel(#[source] io::Error),
    #[error("cannot write {path}")]
    Log { path: PathBuf, source: io::Error },
    #[error("cannot keep {PROGRAM} running")]
    Keep(#[source] KeepError),
    #[error("{PROGRAM} cannot run guests in virtual time: a fault of it cannot be mended")]
    Fix(#[source] FixError),
}

/// Checks that QEMU is installed, and not too old.
pub fn check_installed() -> Result<(), QemuError> {
    let version = version()?;
    match number_of(&version) {
        Some(number) if number < OLDEST => Err(QemuError::TooOld { version }),
        // One that does not tell its number may be as good.
        _ => Ok(()),
    }
}

/// The first line of QEMU's `--version`.
pub fn version() -> Result<String, QemuError> {
    let output = Command::new(PROGRAM)
        .arg("-version")
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .output()
        .map_err(QemuError::Spawn)?;
    let text = String::from_utf8_lossy(&output.stdout);
    Ok(text.lines().next().unwrap_or_default().to_owned())
}

/// The first two parts of the number in `QEMU emulator version 7.2.22 (Debian …)`.
fn number_of(version: &str) -> Option<(u32, u32)> {
    let (_, number) = version.split_once("version ")?;
    let mut parts = number.split(|c: char| !c.is_ascii_digit());
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

/// Checks that this QEMU can run guests in virtual time: that its fault (`qemu_fix.rs`) can be mended.
pub fn check_virtual_time() -> Result<(), QemuError> {
    Fix::of_program(&find_program()?)
        .map(drop)
        .map_err(QemuError::Fix)
}

/// The file of QEMU, as its process will see it.
fn find_program() -> Result<PathBuf, QemuError> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .map(|folder| folder.join(PROGRAM))
        .find(|path| path.is_file())
        .ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))
        .and_then(|path| path.canonicalize())
        .map_err(QemuError::Spawn)
}

/// Where the console of the machine goes.
#[derive(Debug, Clone)]
pub(crate) enum Console {
    Log(PathBuf),
    /// This process's terminal, for a shell.
    Terminal,
}

/// The machine that QEMU emulates.
#[derive(Debug)]
pub(crate) struct Machine<'a> {
    pub(crate) kernel: &'a Path,
    pub(crate) initramfs: &'a File,
    pub(crate) memory_mib: u32,
    pub(crate) cpus: u32,
    pub(crate) clock: Clock,
    /// A port of 127.0.0.1 that leads to one inside.
    pub(crate) forward: Option<(u16, u16)>,
    /// Arguments that describe its disks.
    pub(crate) disks: &'a [String],
    pub(crate) console: &'a Console,
    /// Where QEMU's own messages go.
    pub(crate) log: &'a Path,
}

impl Machine<'_> {
    fn arguments(&self, channel: &OwnedFd) -> Vec<OsString> {
        let mut arguments: Vec<OsString> = Vec::new();
        let mut add = |text: &[&str]| arguments.extend(text.iter().map(OsString::from));
        // One thread for all processors: before version 8.1, QEMU could keep running its old
        // translation of an instruction that another processor's thread had changed. Linux changes
        // its own code each time KVM is first used or last released. One resume in some dozens
        // left both processors in an endless loop of breakpoint exceptions.
        add(&["-accel", "tcg,thread=single", "-cpu", "EPYC,+svm,+npt"]);
        add(&[
            "-smp",
            &self.cpus.to_string(),
            "-m",
            &self.memory_mib.to_string(),
        ]);
        add(&[
            "-nodefaults",
            "-no-user-config",
            "-no-reboot",
            "-display",
            "none",
        ]);
        // The initramfs has no name; QEMU opens it through our descriptor.
        let initramfs = format!(
            "/proc/{}/fd/{}",
            std::process::id(),
            self.initramfs.as_raw_fd()
        );
        add(&[
            "-kernel",
            &self.kernel.to_string_lossy(),
            "-initrd",
            &initramfs,
        ]);
        let tsc_khz = match self.clock {
            Clock::Real => time_stamp_khz(),
            Clock::Virtual => {
                // An instruction takes 2^0 nanoseconds; idle time is skipped, not slept.
                add(&["-icount", "shift=0,sleep=off"]);
                Clock::VIRTUAL_TIME_STAMP_KHZ
            }
        };
        let append = format!(
            "console=ttyS0 panic=-1 quiet tsc=reliable tsc_early_khz={tsc_khz} {} {}",
            self.clock.command_line_word(),
            Emulator::QemuAmd.command_line_word(),
        );
        add(&["-append", &append]);
        add(&["-device", "virtio-rng-pci", "-device", "virtio-serial-pci"]);
        add(&[
            "-chardev",
            &format!("socket,id=channel,fd={}", channel.as_raw_fd()),
        ]);
        add(&[
            "-device",
            &format!("virtserialport,chardev=channel,name={CHANNEL_NAME}"),
        ]);
        // `restrict`: nothing inside reaches the outside, except through the forwarded port.
        let forward = self.forward.map_or_else(String::new, |(outside, inside)| {
            format!(",hostfwd=tcp:127.0.0.1:{outside}-:{inside}")
        });
        add(&["-netdev", &format!("user,id=net,restrict=on{forward}")]);
        add(&["-device", "virtio-net-pci,netdev=net,romfile="]);
        arguments.extend(self.disks.iter().map(OsString::from));
        let mut add = |text: &[&str]| arguments.extend(text.iter().map(OsString::from));
        match self.console {
            Console::Log(path) => {
                // A comma in a path is written twice in QEMU's option syntax.
                let path = path.to_string_lossy().replace(',', ",,");
                add(&["-chardev", &format!("file,id=console,path={path}")]);
                add(&["-serial", "chardev:console"]);
            }
            Console::Terminal => {
                add(&[
                    "-chardev",
                    "stdio,id=console,signal=off",
                    "-serial",
                    "chardev:console",
                ]);
            }
        }
        arguments
    }
}

/// Starts QEMU and returns it with our end of the channel. It inherits the connections that its
/// arguments name.
pub(crate) fn start(
    machine: &Machine,
    mut connections: Vec<OwnedFd>,
) -> Result<(Kept, Socket), QemuError> {
    check_installed()?;
    let (ours, theirs) = UnixStream::pair().map_err(QemuError::Channel)?;
    let theirs = OwnedFd::from(theirs);
    let log_error = |source| QemuError::Log {
        path: machine.log.to_owned(),
        source,
    };
    let log = File::create(machine.log).map_err(log_error)?;
    let program = find_program()?;
    let fix = match (Fix::of_program(&program), machine.clock) {
        (Ok(fix), _) => Some(fix),
        // In real time the fault shows rarely, and another QEMU may not have it.
        (Err(_), Clock::Real) => None,
        (Err(error), Clock::Virtual) => return Err(QemuError::Fix(error)),
    };
    let mut command = Command::new(&program);
    command
        .args(machine.arguments(&theirs))
        .stdout(Stdio::null())
        .stderr(log);
    if matches!(machine.console, Console::Terminal) {
        command.stdout(Stdio::inherit());
    } else {
        // Ctrl-C is for this process; QEMU ends with it.
        command.stdin(Stdio::null());
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
    }
    connections.push(theirs);
    let qemu = Kept::start(command, connections).map_err(QemuError::Keep)?;
    if let Some(fix) = fix {
        fix.apply(qemu.pid(), &program).map_err(QemuError::Fix)?;
    }
    Ok((qemu, OwnedFd::from(ours).into()))
}

/// The frequency of this CPU's time-stamp counter, which QEMU passes through unchanged.
///
/// The kernel inside would measure it against emulated timers, and on a busy machine get a third of
/// the real value: its clock, and every latency measured inside, would run three times too fast.
fn time_stamp_khz() -> u64 {
    const SPAN: Duration = Duration::from_millis(20);
    let (start_time, start) = simultaneous_readings();
    std::thread::sleep(SPAN);
    let (end_time, end) = simultaneous_readings();
    let nanoseconds = end_time.duration_since(start_time).as_nanos().max(1);
    let khz = u128::from(end.wrapping_sub(start)) * 1_000_000 / nanoseconds;
    u64::try_from(khz).unwrap_or(u64::MAX)
}

/// A reading of both clocks, taken in the shortest of twenty attempts.
fn simultaneous_readings() -> (Instant, u64) {
    let readings = (0..20).map(|_| {
        let before = sys::time_stamp();
        let time = Instant::now();
        let after = sys::time_stamp();
        (after.wrapping_sub(before), time, before)
    });
    // Of twenty readings there is always a shortest.
    let (_, time, stamp) = readings
        .min_by_key(|(passed, ..)| *passed)
        .unwrap_or_else(|| (0, Instant::now(), sys::time_stamp()));
    (time, stamp)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_frequency_measured_twice_is_the_same_to_a_thousandth() {
        let (first, second) = (time_stamp_khz(), time_stamp_khz());
        assert!(
            first.abs_diff(second) < first / 1000,
            "{first} and {second} kHz"
        );
    }

    #[test]
    fn an_old_version_is_known_by_its_number() {
        let number = |text: &str| number_of(&format!("QEMU emulator version {text}"));
        assert_eq!(
            number("7.2.22 (Debian 1:7.2+dfsg-7+deb12u18)"),
            Some((7, 2))
        );
        assert_eq!(number("10.0.2"), Some((10, 0)));
        assert!(number("6.2.0 (Debian 1:6.2+dfsg-2ubuntu6)").unwrap() < OLDEST);
        assert!(number("10.0.2").unwrap() > OLDEST);
        assert_eq!(number_of("something else"), None);
        assert_eq!(number("next"), None);
    }
}
