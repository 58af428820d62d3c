//! Power-off and reset: the ACPI sleep and reset registers and the keyboard controller's reset line.

use std::sync::Arc;

use crate::bus::BusDevice;

/// SLP_TYP of S5 in our DSDT.
pub const SLEEP_TYPE_OFF: u8 = 5;
/// Offset of the reset register behind the sleep control register.
pub const RESET_OFFSET: u16 = 2;
/// The value that resets when it is written there.
pub const RESET_VALUE: u8 = 1;

const SLEEP_CONTROL_OFFSET: u64 = 0;
/// SLP_EN and SLP_TYP of the sleep control register (ACPI 6.5, table 4.20).
const SLEEP_ENABLE: u8 = 1 << 5;
const SLEEP_TYPE_SHIFT: u8 = 2;
const SLEEP_TYPE_MASK: u8 = 0x7;

const I8042_COMMAND_OFFSET: u64 = 4;
/// "Pulse output line 0", which a PC wires to its reset.
const I8042_RESET: u8 = 0xfe;

/// A power request of the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PowerRequest {
    /// Power off.
    Off,
    /// Start again.
    Reset,
}

/// Receives the guest's power requests; called from vCPU threads.
pub trait PowerListener: Send + Sync + std::fmt::Debug {
    /// May be called more than once.
    fn power_requested(&self, request: PowerRequest);
}

/// Sleep control, sleep status and reset register.
#[derive(Debug)]
pub struct PowerRegisters(pub Arc<dyn PowerListener>);

impl BusDevice for PowerRegisters {
    fn read(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn write(&self, offset: u64, data: &[u8]) {
        let [value] = *data else { return };
        if offset == SLEEP_CONTROL_OFFSET
            && value & SLEEP_ENABLE != 0
            && value >> SLEEP_TYPE_SHIFT & SLEEP_TYPE_MASK == SLEEP_TYPE_OFF
        {
            self.0.power_requested(PowerRequest::Off);
        }
        if offset == u64::from(RESET_OFFSET) && value == RESET_VALUE {
            self.0.power_requested(PowerRequest::Reset);
        }
    }
}

/// A keyboard controller of which only the reset line exists. Its status register reads as "ready", which
/// the kernel waits for before it uses the line.
#[derive(Debug)]
pub struct I8042(pub Arc<dyn PowerListener>);

impl BusDevice for I8042 {
    fn read(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if offset == I8042_COMMAND_OFFSET && data == [I8042_RESET] {
            self.0.power_requested(PowerRequest::Reset);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    #[derive(Debug, Default)]
    struct Listener(Mutex<Vec<PowerRequest>>);

    impl PowerListener for Listener {
        fn power_requested(&self, request: PowerRequest) {
            self.0.lock().unwrap().push(request);
        }
    }

    #[test]
    fn only_s5_with_the_enable_bit_powers_off() {
        let listener = Arc::new(Listener::default());
        let registers = PowerRegisters(listener.clone());
        for value in [0x14, 0x20, 0x2c] {
            registers.write(0, &[value]);
        }
        registers.write(1, &[0x34]);
        assert!(listener.0.lock().unwrap().is_empty());
        registers.write(0, &[0x34]);
        assert_eq!(*listener.0.lock().unwrap(), [PowerRequest::Off]);
    }

    #[test]
    fn both_ways_to_reset_reset() {
        let listener = Arc::new(Listener::default());
        PowerRegisters(listener.clone()).write(2, &[1]);
        I8042(listener.clone()).write(4, &[0xfe]);
        I8042(listener.clone()).write(0, &[0xfe]);
        assert_eq!(*listener.0.lock().unwrap(), [PowerRequest::Reset; 2]);
    }
}
