//! The serial console: a 16550 whose output goes to a file or stream.
//!
//! Input is not offered: machines are reached over vsock.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex, PoisonError};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::fstat;
use serde::{Deserialize, Serialize};
use vm_superio::Trigger;
use vm_superio::serial::{Error, NoEvents, Serial, SerialState};
use vmm_sys_util::eventfd::EventFd;

use crate::bus::BusDevice;
use crate::epoll::NO_WAIT;

/// Longest output that is held back for the rest of its line.
const HELD_BYTES: usize = 1024;
/// Most bytes on disk that nobody has read and released. Beyond it output is dropped.
const UNREAD_BYTES: u64 = 64 << 20;
/// How often that is looked at, in bytes of output.
const LOOK_BYTES: u64 = 1 << 20;

/// Is told once output waits for the rest of its line, so that it can be written in a while; called from
/// vCPU threads, for each byte that waits.
pub trait ConsoleListener: Send + Sync + std::fmt::Debug {
    /// See [`SerialPort::flush`].
    fn output_waits(&self);
}

/// Where console output goes, a line at a time.
#[derive(Debug)]
pub struct ConsoleOutput {
    file: File,
    /// A regular file never blocks a writer. A pipe or terminal may, and must not stop a vCPU.
    may_block: bool,
    held: Vec<u8>,
    listener: Option<Arc<dyn ConsoleListener>>,
    /// Since the file was looked at.
    written: u64,
    /// Dropped since, as the file is too large.
    dropped: u64,
}

impl ConsoleOutput {
    /// Console output into a file or stream.
    ///
    /// # Errors
    /// Where the kind of the file can't be determined.
    pub fn new(file: File) -> io::Result<Self> {
        let may_block = !file.metadata()?.is_file();
        Ok(Self {
            file,
            may_block,
            held: Vec::with_capacity(HELD_BYTES),
            listener: None,
            // A former VMM may have filled it.
            written: LOOK_BYTES,
            dropped: 0,
        })
    }

    /// Tells `listener` when output waits.
    pub fn set_listener(&mut self, listener: Arc<dyn ConsoleListener>) {
        self.listener = Some(listener);
    }

    fn is_writable(&self) -> bool {
        let mut fds = [PollFd::from_borrowed_fd(self.file.as_fd(), PollFlags::OUT)];
        matches!(poll(&mut fds, Some(&NO_WAIT)), Ok(1))
    }

    /// Whether there is room for more. A file of which nobody reads and releases the beginning stays as
    /// large as it is, and says how much was dropped when there is room again.
    fn has_room(&mut self, bytes: u64) -> bool {
        if self.may_block {
            // Dropped if a slow reader has no room for it.
            return self.is_writable();
        }
        self.written += bytes;
        if self.written >= LOOK_BYTES {
            self.written = 0;
            // Not by its metadata: that takes a call on a path, which threads of vCPUs may not make.
            let blocks = fstat(&self.file).map_or(0, |facts| facts.st_blocks);
            let allocated = u64::try_from(blocks).unwrap_or(0) * 512;
            if allocated >= UNREAD_BYTES {
                self.dropped += bytes;
                // Looked at again with the next output.
                self.written = LOOK_BYTES;
                return false;
            }
        }
        if self.dropped > 0 {
            let dropped = std::mem::take(&mut self.dropped);
            let note = format!("\n[{dropped} bytes of console output were dropped]\n");
            let _ = self.file.write_all(note.as_bytes());
        }
        true
    }

    /// Whether it can find out how large its file is.
    #[cfg(test)]
    pub(crate) fn sees_the_size_of_its_file(&self) -> bool {
        fstat(&self.file).is_ok()
    }

    /// Writes what is held. On a full disk it is lost.
    fn write_held(&mut self) {
        if self.held.is_empty() {
            return;
        }
        if self.has_room(self.held.len() as u64) {
            let _ = self.file.write_all(&self.held);
        }
        self.held.clear();
    }
}

impl Write for ConsoleOutput {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        for byte in bytes {
            self.held.push(*byte);
            if *byte == b'\n' || self.held.len() >= HELD_BYTES {
                self.write_held();
            }
        }
        if !self.held.is_empty()
            && let Some(listener) = &self.listener
        {
            listener.output_waits();
        }
        Ok(bytes.len())
    }

    /// The registers ask for this after each byte: see [`SerialPort::flush`].
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for ConsoleOutput {
    fn drop(&mut self) {
        self.write_held();
    }
}

/// Pulses the interrupt line.
#[derive(Debug)]
struct Line(Arc<EventFd>);

impl Trigger for Line {
    type E = io::Error;

    fn trigger(&self) -> io::Result<()> {
        self.0.write(1)
    }
}

/// The port's registers.
pub struct SerialPort {
    registers: Mutex<Serial<Line, NoEvents, ConsoleOutput>>,
}

impl std::fmt::Debug for SerialPort {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SerialPort").finish_non_exhaustive()
    }
}

/// The port's saved state; mirrors [`SerialState`], which has no serde.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedSerial {
    baud_divisor: [u8; 2],
    interrupt_enable: u8,
    interrupt_identification: u8,
    line_control: u8,
    line_status: u8,
    modem_control: u8,
    modem_status: u8,
    scratch: u8,
    in_buffer: Vec<u8>,
}

impl SerialPort {
    /// A port after reset. `line` is its interrupt.
    #[must_use]
    pub fn new(line: Arc<EventFd>, output: ConsoleOutput) -> Self {
        Self {
            registers: Mutex::new(Serial::new(Line(line), output)),
        }
    }

    /// A port as it was saved. Writes a pending interrupt to `line` at once; the event keeps it until the line
    /// is connected.
    ///
    /// # Errors
    /// Where the state contradicts itself.
    pub fn restore(
        line: Arc<EventFd>,
        output: ConsoleOutput,
        saved: &SavedSerial,
    ) -> Result<Self, Error<io::Error>> {
        let state = SerialState {
            baud_divisor_low: saved.baud_divisor[0],
            baud_divisor_high: saved.baud_divisor[1],
            interrupt_enable: saved.interrupt_enable,
            interrupt_identification: saved.interrupt_identification,
            line_control: saved.line_control,
            line_status: saved.line_status,
            modem_control: saved.modem_control,
            modem_status: saved.modem_status,
            scratch: saved.scratch,
            in_buffer: saved.in_buffer.clone(),
        };
        let registers = Serial::from_state(&state, Line(line), NoEvents, output)?;
        Ok(Self {
            registers: Mutex::new(registers),
        })
    }

    /// Writes output that waits for the rest of its line.
    pub fn flush(&self) {
        let mut registers = self
            .registers
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        registers.writer_mut().write_held();
    }

    /// The port's state.
    #[must_use]
    pub fn save(&self) -> SavedSerial {
        let registers = self
            .registers
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let state = registers.state();
        SavedSerial {
            baud_divisor: [state.baud_divisor_low, state.baud_divisor_high],
            interrupt_enable: state.interrupt_enable,
            interrupt_identification: state.interrupt_identification,
            line_control: state.line_control,
            line_status: state.line_status,
            modem_control: state.modem_control,
            modem_status: state.modem_status,
            scratch: state.scratch,
            in_buffer: state.in_buffer,
        }
    }
}

impl BusDevice for SerialPort {
    fn read(&self, offset: u64, data: &mut [u8]) {
        let mut registers = self
            .registers
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let register = u8::try_from(offset).unwrap_or(u8::MAX);
        data.fill_with(|| registers.read(register));
    }

    /// Several bytes come from a repeated string instruction: all go to the same register.
    fn write(&self, offset: u64, data: &[u8]) {
        let mut registers = self
            .registers
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let register = u8::try_from(offset).unwrap_or(u8::MAX);
        for byte in data {
            // On a full disk, console output is lost.
            let _ = registers.write(register, *byte);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Seek};

    use super::*;

    fn port(file: &File) -> SerialPort {
        let line = Arc::new(EventFd::new(libc::EFD_NONBLOCK).unwrap());
        SerialPort::new(line, ConsoleOutput::new(file.try_clone().unwrap()).unwrap())
    }

    #[test]
    fn bytes_arrive_in_order() {
        let mut file = tempfile::tempfile().unwrap();
        let port = port(&file);
        port.write(0, b"hello ");
        port.write(0, b"w");
        port.flush();
        let mut text = String::new();
        file.rewind().unwrap();
        file.read_to_string(&mut text).unwrap();
        assert_eq!(text, "hello w");
    }

    #[derive(Debug, Default)]
    struct Waits(std::sync::atomic::AtomicUsize);

    impl ConsoleListener for Waits {
        fn output_waits(&self) {
            self.0.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
        }
    }

    #[test]
    fn a_line_is_written_at_its_end_and_the_begin_of_one_when_it_is_flushed() {
        let file = tempfile::tempfile().unwrap();
        let waits = Arc::new(Waits::default());
        let mut output = ConsoleOutput::new(file.try_clone().unwrap()).unwrap();
        output.set_listener(waits.clone());
        let line = Arc::new(EventFd::new(libc::EFD_NONBLOCK).unwrap());
        let port = SerialPort::new(line, output);
        let length = || file.metadata().unwrap().len();
        port.write(0, b"log");
        assert_eq!(length(), 0);
        assert!(waits.0.load(std::sync::atomic::Ordering::SeqCst) > 0);
        port.write(0, b"in\n");
        assert_eq!(length(), 6);
        port.write(0, b"password: ");
        port.flush();
        assert_eq!(length(), 16);
        port.write(0, &[b'x'; HELD_BYTES]);
        assert_eq!(length(), 16 + HELD_BYTES as u64, "no line is longer");
    }

    #[test]
    fn a_console_that_nobody_reads_stops_growing_and_says_what_was_dropped() {
        let mut file = tempfile::tempfile_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        use rustix::fs::FallocateFlags;
        rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, UNREAD_BYTES).unwrap();
        let port = port(&file);
        port.write(0, b"lost\n");
        // The supervisor reads, and gives the blocks back.
        let punch = FallocateFlags::KEEP_SIZE | FallocateFlags::PUNCH_HOLE;
        rustix::fs::fallocate(&file, punch, 0, UNREAD_BYTES).unwrap();
        port.write(0, b"kept\n");
        let mut text = [0; 47];
        file.rewind().unwrap();
        file.read_exact(&mut text).unwrap();
        assert_eq!(
            String::from_utf8_lossy(&text),
            "\n[5 bytes of console output were dropped]\nkept\n"
        );
    }

    #[test]
    fn a_reader_that_does_not_read_stops_nobody() {
        let (_reader, writer) = std::io::pipe().unwrap();
        let file = File::from(std::os::fd::OwnedFd::from(writer));
        let port = port(&file);
        for _ in 0..2 << 20 {
            port.write(0, b"x");
        }
    }

    #[test]
    fn a_pending_interrupt_is_raised_again_after_a_restore() {
        let file = tempfile::tempfile().unwrap();
        let before = port(&file);
        before.write(1, &[0x02]);
        before.write(0, b"x");
        let line = Arc::new(EventFd::new(libc::EFD_NONBLOCK).unwrap());
        let output = ConsoleOutput::new(file).unwrap();
        let after = SerialPort::restore(line.clone(), output, &before.save()).unwrap();
        assert_eq!(after.save(), before.save());
        assert!(line.read().is_ok());
    }
}
