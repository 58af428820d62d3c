//! The serial console: a 16550 whose output goes to a file or stream.
//!
//! Input is not offered: machines are reached over vsock.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex, PoisonError};

use rustix::event::{PollFd, PollFlags, poll};
use serde::{Deserialize, Serialize};
use vm_superio::Trigger;
use vm_superio::serial::{Error, NoEvents, Serial, SerialState};
use vmm_sys_util::eventfd::EventFd;

use crate::bus::BusDevice;
use crate::epoll::NO_WAIT;

/// Where console output goes.
#[derive(Debug)]
pub struct ConsoleOutput {
    file: File,
    /// A regular file never blocks a writer. A pipe or terminal may, and must not stop a vCPU.
    may_block: bool,
}

impl ConsoleOutput {
    /// Console output into a file or stream.
    ///
    /// # Errors
    /// Where the kind of the file can't be determined.
    pub fn new(file: File) -> io::Result<Self> {
        let may_block = !file.metadata()?.is_file();
        Ok(Self { file, may_block })
    }

    fn is_writable(&self) -> bool {
        let mut fds = [PollFd::from_borrowed_fd(self.file.as_fd(), PollFlags::OUT)];
        matches!(poll(&mut fds, Some(&NO_WAIT)), Ok(1))
    }
}

impl Write for ConsoleOutput {
    /// Drops the output if a slow reader has no room for it.
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.may_block && !self.is_writable() {
            return Ok(bytes.len());
        }
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
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
        let mut text = String::new();
        file.rewind().unwrap();
        file.read_to_string(&mut text).unwrap();
        assert_eq!(text, "hello w");
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
