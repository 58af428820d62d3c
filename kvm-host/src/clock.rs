//! The clock of a virtual host.

use std::fmt;

use crate::kernel_word;

/// Which clock a virtual host runs on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Clock {
    /// That of this machine. A busy machine makes the host slow, and times measured inside are
    /// those of the emulator. For whatever has a peer outside: a person, a client, a browser.
    Real,
    /// Time is what the emulated processor does: an instruction takes one nanosecond, and while all
    /// of the host waits, the clock skips to the next timer. Times measured inside do not depend on
    /// this machine. Waiting for something outside has no length, so deadlines inside must not
    /// depend on it.
    ///
    /// It counts instructions and waits. It knows no caches, no TLB misses and no disks; a string
    /// instruction counts once per element. Guests with several vCPUs are very slow in it, because
    /// QEMU leaves its inner loop at each PAUSE, and vCPUs wait for each other with PAUSE.
    Virtual,
}

/// Tells programs inside which clock their host runs on.
const CLOCK_WORD: &str = "mctl.clock=";

impl Clock {
    /// The clock of the host that this process runs on.
    pub fn of_this_host() -> Self {
        Self::of_word(kernel_word::of_this_host(CLOCK_WORD).as_deref())
    }

    fn of_word(word: Option<&str>) -> Self {
        word.and_then(Self::of_name).unwrap_or(Self::Real)
    }

    /// The clock of that [`Self::name`].
    pub fn of_name(name: &str) -> Option<Self> {
        [Self::Real, Self::Virtual]
            .into_iter()
            .find(|clock| clock.name() == name)
    }

    /// The word for the kernel's command line.
    pub(crate) fn command_line_word(self) -> String {
        format!("{CLOCK_WORD}{}", self.name())
    }

    /// Its name in reports and answers of the API: `virtual` or `real`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Real => "real",
            Self::Virtual => "virtual",
        }
    }

    /// The frequency of the time-stamp counter in virtual time: one tick per instruction. The
    /// kernel inside is told, and does not measure it.
    pub(crate) const VIRTUAL_TIME_STAMP_KHZ: u64 = 1_000_000;
}

impl fmt::Display for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} time", self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of_command_line(line: &str) -> Clock {
        Clock::of_word(kernel_word::find(line, CLOCK_WORD))
    }

    #[test]
    fn a_host_knows_its_clock_by_its_kernels_command_line() {
        for clock in [Clock::Real, Clock::Virtual] {
            let line = format!(
                "console=ttyS0 quiet {} panic=-1\n",
                clock.command_line_word()
            );
            assert_eq!(of_command_line(&line), clock);
        }
    }

    #[test]
    fn other_hosts_run_in_real_time() {
        assert_eq!(of_command_line("root=/dev/sda1 quiet"), Clock::Real);
        assert_eq!(of_command_line("mctl.clock=sundial"), Clock::Real);
    }
}
