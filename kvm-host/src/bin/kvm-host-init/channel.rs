//! The virtio-serial port to the outside.
//!
//! One writer at a time, so that frames stay whole. Which frames are sent, and what is done about
//! those that arrive, is the caller's choice.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, bail};
use kvm_host::plan::CHANNEL_NAME;
use kvm_host::protocol::{Frame, ProtocolError};

use crate::console;

#[derive(Debug)]
pub(crate) struct Channel {
    port: Mutex<File>,
    input: File,
}

impl Channel {
    /// Opens the port that has the channel's name.
    pub(crate) fn open() -> anyhow::Result<Self> {
        let path = find_port().context("cannot list the virtio-serial ports")?;
        let Some(path) = path else {
            bail!("no virtio-serial port is named {CHANNEL_NAME}");
        };
        let port = File::options()
            .read(true)
            .write(true)
            .open(&path)
            .with_context(|| format!("cannot open {}", path.display()))?;
        let input = port
            .try_clone()
            .context("cannot duplicate the channel's descriptor")?;
        Ok(Self {
            port: Mutex::new(port),
            input,
        })
    }

    pub(crate) fn send(&self, frame: &Frame) {
        let mut port = self.port.lock().unwrap_or_else(PoisonError::into_inner);
        if let Err(error) = frame.write_to(&mut *port) {
            console::print(&format!("cannot send through the channel: {error}"));
        }
    }

    /// Waits for the next frame from outside; only one thread may. `None` at the end of the channel.
    pub(crate) fn receive(&self) -> Result<Option<Frame>, ProtocolError> {
        Frame::read_from(&self.input)
    }
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
