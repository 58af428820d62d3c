//! The port to the outside: of virtio-serial, or a serial port where there is no virtio.
//!
//! One writer at a time, so that frames stay whole. Which frames are sent, and what is done about
//! those that arrive, is the caller's choice.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use anyhow::Context;
use kvm_host::kernel_word;
use kvm_host::plan::{CHANNEL_NAME, CHANNEL_WORD};
use kvm_host::protocol::{Frame, ProtocolError};
use rustix::termios::{self, OptionalActions};

use crate::console;

#[derive(Debug)]
pub(crate) struct Channel {
    port: Mutex<File>,
    input: File,
    is_serial: bool,
}

impl Channel {
    /// Opens the serial port that the kernel's command line names, or the virtio-serial port that
    /// has the channel's name.
    pub(crate) fn open() -> anyhow::Result<Self> {
        let serial = kernel_word::of_this_host(CHANNEL_WORD).map(PathBuf::from);
        let path = match &serial {
            Some(path) => path.clone(),
            None => find_port()
                .context("cannot list the virtio-serial ports")?
                .with_context(|| format!("no virtio-serial port is named {CHANNEL_NAME}"))?,
        };
        let port = File::options()
            .read(true)
            .write(true)
            .open(&path)
            .with_context(|| format!("cannot open {}", path.display()))?;
        if serial.is_some() {
            pass_bytes_unchanged(&port)
                .with_context(|| format!("cannot set up {}", path.display()))?;
        }
        let input = port
            .try_clone()
            .context("cannot duplicate the channel's descriptor")?;
        Ok(Self {
            port: Mutex::new(port),
            input,
            is_serial: serial.is_some(),
        })
    }

    pub(crate) fn send(&self, frame: &Frame) {
        let mut port = self.port.lock().unwrap_or_else(PoisonError::into_inner);
        if let Err(error) = frame.write_to(&mut *port) {
            console::print(&format!("cannot send through the channel: {error}"));
        }
    }

    /// Waits until the outside has all that was sent. A serial port passes it on byte by byte, and
    /// does not after the power is off.
    pub(crate) fn drain(&self) {
        if !self.is_serial {
            return;
        }
        let port = self.port.lock().unwrap_or_else(PoisonError::into_inner);
        if let Err(errno) = termios::tcdrain(&*port) {
            console::print(&format!("cannot wait for the channel: {errno}"));
        }
    }

    /// Waits for the next frame from outside; only one thread may. `None` at the end of the channel.
    pub(crate) fn receive(&self) -> Result<Option<Frame>, ProtocolError> {
        Frame::read_from(&self.input)
    }
}

/// As a terminal, the port would echo, and change ends of lines. At its usual speed of 9,600 bits a
/// second it would take a millisecond for each byte, also where it is emulated.
fn pass_bytes_unchanged(port: &File) -> io::Result<()> {
    let mut settings = termios::tcgetattr(port)?;
    settings.make_raw();
    settings.set_speed(115_200)?;
    termios::tcsetattr(port, OptionalActions::Now, &settings)?;
    Ok(())
}

fn find_port() -> io::Result<Option<PathBuf>> {
    for entry in fs::read_dir("/sys/class/virtio-ports")? {
        let entry = entry?;
        let name = fs::read_to_string(entry.path().join("name")).unwrap_or_default();
        if name.trim() == CHANNEL_NAME {
            return Ok(Some(Path::new("/dev").join(entry.file_name())));
        }
    }
    Ok(None)
}
