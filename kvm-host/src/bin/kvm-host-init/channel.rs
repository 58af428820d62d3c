//! The virtio-serial port to the outside, and the console for what the channel cannot say.
//!
//! One writer at a time, so that frames stay whole. What is sent is decided elsewhere.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, bail};
use kvm_host::plan::CHANNEL_NAME;
use kvm_host::protocol::Frame;
use rustix::process::Signal;

use crate::{boot, program};

/// How long programs may take to end when the outside asks for it.
const GRACE: Duration = Duration::from_secs(5);

#[derive(Debug)]
pub(crate) struct Channel {
    port: Mutex<File>,
    input: File,
    ending: AtomicBool,
}

impl Channel {
    /// Opens the port that carries the channel's name.
    pub(crate) fn open() -> anyhow::Result<Self> {
        let path = find_port().context("cannot look for virtio-serial ports")?;
        let Some(path) = path else {
            bail!("no virtio-serial port is named {CHANNEL_NAME}");
        };
        let port = File::options()
            .read(true)
            .write(true)
            .open(&path)
            .with_context(|| format!("cannot open {}", path.display()))?;
        let input = port.try_clone().context("cannot share the channel")?;
        Ok(Self {
            port: Mutex::new(port),
            input,
            ending: AtomicBool::new(false),
        })
    }

    pub(crate) fn send(&self, frame: &Frame) {
        let mut port = self.port.lock().unwrap_or_else(PoisonError::into_inner);
        if let Err(error) = frame.write_to(&mut *port) {
            say(&format!("cannot send through the channel: {error}"));
        }
    }

    /// Whether the outside has asked for the end.
    pub(crate) fn is_ending(&self) -> bool {
        self.ending.load(Ordering::SeqCst)
    }
}

/// Starts the thread that waits for the outside to ask for the end.
pub(crate) fn obey(channel: &Arc<Channel>) -> anyhow::Result<()> {
    let channel = Arc::clone(channel);
    std::thread::Builder::new()
        .name("channel".to_owned())
        .spawn(move || {
            let last = loop {
                match Frame::read_from(&channel.input) {
                    // It has done what it was sent for by arriving.
                    Ok(Some(Frame::Beat)) => {}
                    other => break other,
                }
            };
            if let Ok(Some(Frame::PowerOff)) = last {
                channel.ending.store(true, Ordering::SeqCst);
                program::signal_all(Signal::TERM);
                // The main thread powers off as soon as all programs have ended.
                std::thread::sleep(GRACE);
                boot::power_off();
            }
            // Anything else means that QEMU's other end is gone, and QEMU with it.
        })
        .context("cannot start a thread")?;
    Ok(())
}

/// Writes a line to the console.
pub(crate) fn say(text: &str) {
    // Where the console fails there is nobody left to tell.
    let _ = writeln!(std::io::stderr(), "kvm-host-init: {text}");
}

fn find_port() -> std::io::Result<Option<PathBuf>> {
    for entry in fs::read_dir("/sys/class/virtio-ports")? {
        let entry = entry?;
        let name = fs::read_to_string(entry.path().join("name")).unwrap_or_default();
        if name.trim() == CHANNEL_NAME {
            return Ok(Some(Path::new("/dev").join(entry.file_name())));
        }
    }
    Ok(None)
}
