//! The Bochs process: the medium that it boots from, its configuration, its start.
//!
//! Bochs emulates Intel processors with VMX and EPT, which no other emulator does. It knows no virtio:
//! the kernel comes from a CD, and the channel is a serial port. There is no network, and only
//! virtual time: an instruction takes five nanoseconds, and idle time is skipped.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::io;
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use socket2::Socket;
use tempfile::TempDir;
use thiserror::Error;

use crate::clock::Clock;
use crate::emulator::Emulator;
use crate::installed::try_program;
use crate::keeper::{KeepError, Kept};
use crate::last_lines;
use crate::plan::CHANNEL_WORD;

/// Debian's wrapper `bochs` asks for the configuration; this is the program itself.
const PROGRAM: &str = "bochs-bin";
const MAKE_MEDIUM: &str = "grub-mkrescue";
const BIOS: &str = "/usr/share/bochs/BIOS-bochs-latest";
const VGA_BIOS: &str = "/usr/share/vgabios/vgabios.bin";
/// What `grub-mkrescue` puts on a medium for a BIOS.
const GRUB: &str = "/usr/lib/grub/i386-pc";
/// The display that needs neither a screen nor a port of the network.
const DISPLAY: &str = "term";

/// The packages that have these files.
pub const PACKAGES: &str =
    "bochs, bochs-term, bochsbios, vgabios, grub-common, grub-pc-bin, xorriso and mtools";

/// What a message has that ends Bochs.
const PANIC: &str = ">>PANIC<<";

/// Names in the folder in which Bochs runs.
const MEDIUM: &str = "medium.iso";
const CONSOLE: &str = "console";
const LOG: &str = "log";

/// Instructions per second, which is also the frequency of the time-stamp counter.
const INSTRUCTIONS_PER_SECOND: u64 = 200_000_000;

/// Memory of this machine that Bochs can use. What the host inside has beyond it is in a file.
const MOST_HOST_MIB: u32 = 2048;

/// What Linux must do without on Bochs' AMD processor, by the numbers of the features in its
/// arch/x86/include/asm/cpufeatures.h. It waits with MWAITX, and Bochs 2.7 never wakes it up.
const MWAITX: u32 = 6 * 32 + 29;
/// XSAVEC and XSAVES of Bochs 2.7 compact the SSE state, which they must not. So registers of one process
/// came to another whenever Linux switched between them: digests were wrong, programs died.
const XSAVEC: u32 = 10 * 32 + 1;
const XSAVES: u32 = 10 * 32 + 3;

/// How long Bochs may take to connect the channel, which it does before it emulates anything. It
/// prepares the memory first, which takes 2 s of a processor for each GiB.
const CONNECT_DEADLINE: Duration = Duration::from_secs(300);
const CONNECT_POLL: Duration = Duration::from_millis(10);

/// Why Bochs could not be run.
#[derive(Debug, Error)]
pub enum BochsError {
    #[error("cannot run {program} (Debian's packages {PACKAGES} are needed)")]
    Missing {
        program: &'static str,
        source: io::Error,
    },
    #[error("{path} is missing (Debian's packages {PACKAGES} are needed)")]
    MissingFile { path: &'static str },
    #[error("Bochs has virtual time only")]
    RealTime,
    #[error("cannot read {path}")]
    Read { path: PathBuf, source: io::Error },
    #[error("cannot write {path}")]
    Write { path: PathBuf, source: io::Error },
    #[error("{MAKE_MEDIUM} cannot make a medium to boot from: {message}")]
    Medium { message: String },
    #[error("cannot open a port of 127.0.0.1 for the channel")]
    Port(#[source] io::Error),
    #[error("cannot keep {PROGRAM} running")]
    Keep(#[source] KeepError),
    #[error("{PROGRAM} ended at once: {message}")]
    Ended { message: String },
    #[error("waited {} s until {PROGRAM} connected the channel", CONNECT_DEADLINE.as_secs())]
    NotConnected,
}

/// Checks that Bochs, and all that it needs, is installed.
pub fn check_installed() -> Result<(), BochsError> {
    for path in [BIOS, VGA_BIOS, GRUB] {
        if !Path::new(path).exists() {
            return Err(BochsError::MissingFile { path });
        }
    }
    // The last two are called by `grub-mkrescue`, which has no good words for their absence.
    for program in [PROGRAM, MAKE_MEDIUM, "xorriso", "mformat"] {
        try_program(program, "--help").map_err(|source| BochsError::Missing { program, source })?;
    }
    Ok(())
}

/// The computer that Bochs emulates.
#[derive(Debug)]
pub(crate) struct Machine<'a> {
    pub(crate) emulator: Emulator,
    pub(crate) kernel: &'a Path,
    pub(crate) initramfs: &'a File,
    pub(crate) memory_mib: u32,
    pub(crate) cpus: u32,
    pub(crate) clock: Clock,
    /// Where the console goes.
    pub(crate) console: &'a Path,
    /// Where Bochs' own messages go.
    pub(crate) log: &'a Path,
}

/// Starts Bochs and returns it with our end of the channel, and the folder of its files, which has to
/// last as long as it does.
pub(crate) fn start(machine: &Machine) -> Result<(Kept, Socket, TempDir), BochsError> {
    if machine.clock == Clock::Real {
        return Err(BochsError::RealTime);
    }
    check_installed()?;
    let folder = tempfile::tempdir().map_err(|source| BochsError::Write {
        path: std::env::temp_dir(),
        source,
    })?;
    machine.make_medium(folder.path())?;
    // Bochs' options end at commas and spaces, so all of its files have plain names in one folder.
    for (file, name) in [(machine.console, CONSOLE), (machine.log, LOG)] {
        link(file, &folder.path().join(name))?;
    }
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).map_err(BochsError::Port)?;
    listener.set_nonblocking(true).map_err(BochsError::Port)?;
    let port = listener.local_addr().map_err(BochsError::Port)?.port();
    write(&folder.path().join("bochsrc"), &machine.configuration(port))?;
    // Debian's Bochs has its debugger built in, which waits for a command before it begins.
    write(&folder.path().join("commands"), "c\n")?;
    let messages = folder.path().join("messages");
    let mut command = Command::new(PROGRAM);
    command
        .args(["-q", "-f", "bochsrc", "-rc", "commands"])
        .current_dir(folder.path())
        // For the display, which nobody looks at.
        .env("TERM", "vt100")
        .env("BXSHARE", "/usr/share/bochs")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(File::create(&messages).map_err(|source| BochsError::Write {
            path: messages.clone(),
            source,
        })?);
    // Ctrl-C is for this process; Bochs ends with it.
    std::os::unix::process::CommandExt::process_group(&mut command, 0);
    let bochs = Kept::start(command, Vec::new()).map_err(BochsError::Keep)?;
    let channel = accept(&listener, &bochs, &messages)?;
    Ok((bochs, channel, folder))
}

/// Waits until Bochs has connected the channel.
fn accept(listener: &TcpListener, bochs: &Kept, messages: &Path) -> Result<Socket, BochsError> {
    let deadline = Instant::now() + CONNECT_DEADLINE;
    loop {
        match listener.accept() {
            Ok((channel, _)) => {
                channel.set_nonblocking(false).map_err(BochsError::Port)?;
                channel.set_nodelay(true).map_err(BochsError::Port)?;
                return Ok(channel.into());
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(BochsError::Port(error)),
        }
        if bochs.wait_until(Instant::now() + CONNECT_POLL).is_some() {
            let messages = fs::read(messages).unwrap_or_default();
            let messages = String::from_utf8_lossy(&messages);
            let message = messages.lines().rev().find(|line| line.contains(PANIC));
            let message = message.unwrap_or("its configuration is refused");
            return Err(BochsError::Ended {
                message: message.to_owned(),
            });
        }
        if Instant::now() >= deadline {
            return Err(BochsError::NotConnected);
        }
    }
}

impl Machine<'_> {
    /// Makes a CD with boot loader, kernel and initramfs.
    fn make_medium(&self, folder: &Path) -> Result<(), BochsError> {
        let content = folder.join("content");
        let boot = content.join("boot");
        let grub = boot.join("grub");
        fs::create_dir_all(&grub).map_err(|source| BochsError::Write {
            path: grub.clone(),
            source,
        })?;
        let copy = |from: &mut dyn io::Read, name: &str| {
            let path = boot.join(name);
            File::create(&path)
                .and_then(|mut file| io::copy(from, &mut file))
                .map_err(|source| BochsError::Write { path, source })
        };
        let mut kernel = File::open(self.kernel).map_err(|source| BochsError::Read {
            path: self.kernel.to_owned(),
            source,
        })?;
        copy(&mut kernel, "kernel")?;
        let mut initramfs = self.initramfs;
        io::Seek::rewind(&mut initramfs).map_err(|source| BochsError::Write {
            path: boot.join("initramfs"),
            source,
        })?;
        copy(&mut initramfs, "initramfs")?;
        write(
            &grub.join("grub.cfg"),
            &format!(
                "linux /boot/kernel {}\ninitrd /boot/initramfs\nboot\n",
                self.kernel_arguments()
            ),
        )?;
        let output = Command::new(MAKE_MEDIUM)
            .args(["--directory", GRUB, "--output"])
            .arg(folder.join(MEDIUM))
            .arg("--install-modules=linux normal iso9660 biosdisk configfile search boot minicmd")
            .arg(&content)
            .stdin(Stdio::null())
            .output()
            .map_err(|source| BochsError::Missing {
                program: MAKE_MEDIUM,
                source,
            })?;
        if !output.status.success() {
            return Err(BochsError::Medium {
                message: last_lines::of_bytes(&output.stderr, 5),
            });
        }
        // It is on the medium now.
        let _ = fs::remove_dir_all(content);
        Ok(())
    }

    fn kernel_arguments(&self) -> String {
        let without = match self.emulator {
            Emulator::BochsAmd => format!(" clearcpuid={MWAITX},{XSAVEC},{XSAVES}"),
            Emulator::BochsIntel | Emulator::QemuAmd => String::new(),
        };
        format!(
            "console=ttyS0,115200 panic=-1 quiet tsc=reliable tsc_early_khz={} {CHANNEL_WORD}/dev/ttyS1 {} {}{without}",
            INSTRUCTIONS_PER_SECOND / 1_000,
            self.clock.command_line_word(),
            self.emulator.command_line_word(),
        )
    }

    fn configuration(&self, channel_port: u16) -> String {
        // Later Intel models announce a frequency of their own, which Linux then believes.
        let model = match self.emulator {
            Emulator::BochsAmd => "ryzen",
            Emulator::BochsIntel | Emulator::QemuAmd => "corei7_haswell_4770",
        };
        let mut text = String::new();
        for line in [
            "config_interface: textconfig".to_owned(),
            format!("display_library: {DISPLAY}"),
            format!("romimage: file={BIOS}"),
            format!("vgaromimage: file={VGA_BIOS}"),
            // A guest's triple fault must not reset the host, nor an unknown MSR end it.
            format!(
                "cpu: model={model}, count={}, ips={INSTRUCTIONS_PER_SECOND}, \
                 reset_on_triple_fault=0, ignore_bad_msrs=1",
                self.cpus
            ),
            format!(
                "memory: guest={}, host={}",
                self.memory_mib,
                self.memory_mib.min(MOST_HOST_MIB)
            ),
            "ata0: enabled=1, ioaddr1=0x1f0, ioaddr2=0x3f0, irq=14".to_owned(),
            format!("ata0-master: type=cdrom, path={MEDIUM}, status=inserted"),
            "boot: cdrom".to_owned(),
            // Virtual time, which begins now.
            "clock: sync=none, time0=utc".to_owned(),
            format!("com1: enabled=1, mode=file, dev={CONSOLE}"),
            format!("com2: enabled=1, mode=socket-client, dev=127.0.0.1:{channel_port}"),
            format!("log: {LOG}"),
            "panic: action=fatal".to_owned(),
            "error: action=ignore".to_owned(),
            "info: action=ignore".to_owned(),
            "debug: action=ignore".to_owned(),
            "speaker: enabled=0".to_owned(),
        ] {
            // Writing to a string cannot fail.
            let _ = writeln!(text, "{line}");
        }
        text
    }
}

/// Makes an empty file, and a link to it.
fn link(file: &Path, link: &Path) -> Result<(), BochsError> {
    File::create(file)
        .and_then(|_| file.canonicalize())
        .and_then(|file| std::os::unix::fs::symlink(file, link))
        .map_err(|source| BochsError::Write {
            path: file.to_owned(),
            source,
        })
}

fn write(path: &Path, text: &str) -> Result<(), BochsError> {
    fs::write(path, text).map_err(|source| BochsError::Write {
        path: path.to_owned(),
        source,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine<'a>(emulator: Emulator, initramfs: &'a File) -> Machine<'a> {
        Machine {
            emulator,
            kernel: Path::new("/kernel"),
            initramfs,
            memory_mib: 512,
            cpus: 2,
            clock: Clock::Virtual,
            console: Path::new("/logs/console.log"),
            log: Path::new("/logs/bochs.log"),
        }
    }

    #[test]
    fn the_processor_is_that_of_the_kind() {
        let file = tempfile::tempfile().unwrap();
        for (emulator, model) in [
            (Emulator::BochsIntel, "model=corei7_haswell_4770, count=2"),
            (Emulator::BochsAmd, "model=ryzen, count=2"),
        ] {
            let machine = machine(emulator, &file);
            let text = machine.configuration(4711);
            assert!(text.contains(model), "{text}");
            assert!(text.contains("dev=127.0.0.1:4711\n"), "{text}");
            assert!(machine.kernel_arguments().contains(emulator.name()));
        }
    }

    #[test]
    fn real_time_is_refused() {
        let file = tempfile::tempfile().unwrap();
        let mut machine = machine(Emulator::BochsIntel, &file);
        machine.clock = Clock::Real;
        assert!(matches!(start(&machine), Err(BochsError::RealTime)));
    }
}
