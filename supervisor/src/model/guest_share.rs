//! What a guest may use of the supervisor, in one place: how much, how fast, how many at once.
//!
//! A guest is hostile, and shares the supervisor with all others. Whatever it can make the supervisor store,
//! read or hold open has a bound here or beside the code that it bounds; docs/durability.md lists all of
//! them. Pure: the caller passes the time.

use std::num::NonZeroU32;
use std::time::Duration;

use tokio::time::Instant;

/// Lines of a machine's log per second, if the operator names no number.
pub(crate) const LOG_LINES_PER_SECOND: NonZeroU32 = NonZeroU32::new(2_000).unwrap();
/// So many bytes a line may have, on the average.
const LOG_LINE_BYTES: u32 = 512;
/// For so long a machine may print without a pause what it otherwise may in one second.
const LOG_BURST_SECONDS: u32 = 10;
/// Messages of a guest's output that are read per second, whether or not the log takes them. All that
/// guest-init buffers (16,384 lines) arrives within a second, and with it the main process's exit.
const OUTPUT_MESSAGES_PER_SECOND: u32 = 20_000;
/// Bytes of output, and of the console, that are read per second.
const OUTPUT_BYTES_PER_SECOND: u32 = 8 << 20;

/// Commands of a machine at the same time, if the operator names no number.
pub(crate) const EXECS: NonZeroU32 = NonZeroU32::new(32).unwrap();
/// Other calls to a guest for clients at the same time: transfers of files, processes, signals, figures.
pub(crate) const CALLS: u32 = 32;
/// Connections to published ports of a machine at the same time, if the operator names no number.
pub(crate) const CONNECTIONS: NonZeroU32 = NonZeroU32::new(10_000).unwrap();

/// MiB per second that a machine's clients and its guest exchange, if the operator names no number.
pub(crate) const MIB_PER_SECOND: NonZeroU32 = NonZeroU32::new(256).unwrap();
/// Messages, or pieces of a connection, that may be carried for each MiB. Small ones cost as much time as
/// pieces of 8 KiB.
const PIECES_PER_MIB: u32 = 200;

/// Longest text of a guest in an error, an event or a log: its refusal of a call.
pub(crate) const TEXT_CHARACTERS: usize = 300;
/// Results of checks that become events without a pause, and the time after which one more may.
const CHECK_EVENTS: u32 = 20;
const CHECK_EVENT_EVERY: Duration = Duration::from_secs(10);
/// Lines about failed connections in the supervisor's own log without a pause, per machine, and the time
/// after which there may be one more.
const REFUSED_CONNECTIONS: u32 = 5;
const REFUSED_CONNECTION_EVERY: Duration = Duration::from_secs(10);

/// The bounds that an operator may set.
#[derive(Debug, Clone, Copy)]
pub(crate) struct GuestShare {
    /// Lines of a machine's log per second.
    pub(crate) log_lines_per_second: NonZeroU32,
    /// Commands of a machine at the same time.
    pub(crate) execs: NonZeroU32,
    /// Connections to published ports of a machine at the same time.
    pub(crate) connections: NonZeroU32,
    /// MiB per second that a machine's clients and its guest exchange.
    pub(crate) mib_per_second: NonZeroU32,
}

impl Default for GuestShare {
    fn default() -> Self {
        Self {
            log_lines_per_second: LOG_LINES_PER_SECOND,
            execs: EXECS,
            connections: CONNECTIONS,
            mib_per_second: MIB_PER_SECOND,
        }
    }
}

/// A text of a guest, as it may be shown and stored: of bounded length, without control characters.
pub(crate) fn bounded_text(text: &str) -> String {
    let plain = |c: char| if c.is_control() { '\u{fffd}' } else { c };
    let mut bounded: String = text.chars().take(TEXT_CHARACTERS).map(plain).collect();
    if text.chars().nth(TEXT_CHARACTERS).is_some() {
        bounded.push('…');
    }
    bounded
}

/// A bucket of tokens: so many a second, and a reserve for a burst. What is larger than what is left is
/// given all the same, and paid for later.
#[derive(Debug, Clone)]
struct Bucket {
    per_second: f64,
    capacity: f64,
    filled: f64,
    at: Instant,
}

impl Bucket {
    /// Full, with `per_second` tokens a second, and `burst` at most.
    fn new(per_second: f64, burst: f64, now: Instant) -> Self {
        Self {
            per_second,
            capacity: burst,
            filled: burst,
            at: now,
        }
    }

    /// Takes one token, if there is one.
    fn take(&mut self, now: Instant) -> bool {
        self.refill(now);
        let there = self.filled >= 1.0;
        if there {
            self.spend(1.0);
        }
        there
    }

    fn refill(&mut self, now: Instant) {
        let elapsed = now.saturating_duration_since(self.at).as_secs_f64();
        self.filled = (self.filled + elapsed * self.per_second).min(self.capacity);
        self.at = self.at.max(now);
    }

    fn spend(&mut self, tokens: f64) {
        self.filled -= tokens;
    }

    /// When it is no longer in debt.
    fn debt(&self) -> Duration {
        Duration::from_secs_f64((-self.filled / self.per_second).max(0.0))
    }
}

/// Which of many things that are alike are told: some at once, then one at a time, and the others are counted.
#[derive(Debug, Clone)]
pub(crate) struct Telling {
    bucket: Bucket,
    untold: u64,
}

impl Telling {
    /// So many at once, and one more each `every`.
    fn new(burst: u32, every: Duration, now: Instant) -> Self {
        Self {
            bucket: Bucket::new(1.0 / every.as_secs_f64(), burst.into(), now),
            untold: 0,
        }
    }

    /// For events about results of checks.
    pub(crate) fn of_check_events(now: Instant) -> Self {
        Self::new(CHECK_EVENTS, CHECK_EVENT_EVERY, now)
    }

    /// For lines about connections that were not carried.
    pub(crate) fn of_refused_connections(now: Instant) -> Self {
        Self::new(REFUSED_CONNECTIONS, REFUSED_CONNECTION_EVERY, now)
    }

    /// Decides about one more. How many were not told before it, if this one is.
    pub(crate) fn next(&mut self, now: Instant) -> Option<u64> {
        if self.bucket.take(now) {
            return Some(std::mem::take(&mut self.untold));
        }
        self.untold += 1;
        None
    }
}

/// How fast a stream of a guest is read. Whoever reads it waits, and with it the guest.
#[derive(Debug)]
pub(crate) struct ReadPace {
    messages: Bucket,
    bytes: Bucket,
}

impl ReadPace {
    /// For output of the main process, or the console.
    pub(crate) fn of_output(now: Instant) -> Self {
        let (messages, bytes) = (OUTPUT_MESSAGES_PER_SECOND, OUTPUT_BYTES_PER_SECOND);
        Self {
            messages: Bucket::new(messages.into(), messages.into(), now),
            bytes: Bucket::new(bytes.into(), bytes.into(), now),
        }
    }

    /// For everything that a machine's clients exchange with its guest.
    pub(crate) fn of_clients(mib_per_second: NonZeroU32, now: Instant) -> Self {
        let mib = f64::from(mib_per_second.get());
        let pieces = mib * f64::from(PIECES_PER_MIB);
        let bytes = mib * f64::from(1_u32 << 20);
        Self {
            messages: Bucket::new(pieces, pieces, now),
            bytes: Bucket::new(bytes, bytes, now),
        }
    }

    /// Counts what was read; how long to wait before more is read.
    pub(crate) fn wait_after(&mut self, messages: u32, bytes: usize, now: Instant) -> Duration {
        for bucket in [&mut self.messages, &mut self.bytes] {
            bucket.refill(now);
        }
        self.messages.spend(messages.into());
        self.bytes.spend(as_tokens(bytes));
        self.messages.debt().max(self.bytes.debt())
    }
}

/// Whether a line of a guest is logged.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum LineAdmission {
    /// It is. So many lines before it were dropped, which has not been told.
    Logged {
        /// Zero if none.
        dropped: u64,
    },
    /// It is dropped, and counted.
    Dropped,
}

/// Which lines of a guest its log takes. Once a guest has used up its share, lines are dropped until a whole
/// second's worth is there again: so a flood leaves a line about it each second, and not for each line.
#[derive(Debug)]
pub(crate) struct LogShare {
    lines: Bucket,
    bytes: Bucket,
    dropping: bool,
    dropped: u64,
    lines_per_second: NonZeroU32,
}

impl LogShare {
    /// A share that nothing was used of.
    pub(crate) fn new(lines_per_second: NonZeroU32, now: Instant) -> Self {
        let burst = f64::from(LOG_BURST_SECONDS);
        let (lines, bytes) = (
            f64::from(lines_per_second.get()),
            f64::from(lines_per_second.get()) * f64::from(LOG_LINE_BYTES),
        );
        Self {
            lines: Bucket::new(lines, lines * burst, now),
            bytes: Bucket::new(bytes, bytes * burst, now),
            dropping: false,
            dropped: 0,
            lines_per_second,
        }
    }

    /// Decides about a line of so many bytes.
    pub(crate) fn admit(&mut self, bytes: usize, now: Instant) -> LineAdmission {
        self.refill(now);
        if self.dropping && self.has_recovered() {
            self.dropping = false;
        }
        self.dropping |= self.lines.filled < 1.0 || self.bytes.filled <= 0.0;
        if self.dropping {
            self.dropped += 1;
            return LineAdmission::Dropped;
        }
        self.lines.spend(1.0);
        self.bytes.spend(as_tokens(bytes));
        LineAdmission::Logged {
            dropped: std::mem::take(&mut self.dropped),
        }
    }

    /// How many lines were dropped before a guest fell silent; zero while it may go on.
    pub(crate) fn dropped_before_silence(&mut self, now: Instant) -> u64 {
        self.refill(now);
        if self.has_recovered() {
            self.take_dropped()
        } else {
            0
        }
    }

    /// How many lines were dropped since that was told.
    pub(crate) fn take_dropped(&mut self) -> u64 {
        std::mem::take(&mut self.dropped)
    }

    /// Whether lines were dropped that nobody was told of.
    pub(crate) fn has_dropped(&self) -> bool {
        self.dropped > 0
    }

    /// The line that tells of them.
    pub(crate) fn in_words(&self, dropped: u64) -> String {
        let lines = self.lines_per_second;
        format!(
            "{dropped} lines were dropped: the machine printed more than {lines} lines of \
             {LOG_LINE_BYTES} bytes a second"
        )
    }

    fn refill(&mut self, now: Instant) {
        self.lines.refill(now);
        self.bytes.refill(now);
    }

    fn has_recovered(&self) -> bool {
        [&self.lines, &self.bytes]
            .iter()
            .all(|bucket| bucket.filled >= bucket.per_second)
    }
}

#[expect(
    clippy::cast_precision_loss,
    reason = "lines and messages are far below 2^53 bytes"
)]
fn as_tokens(bytes: usize) -> f64 {
    bytes as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINES: NonZeroU32 = NonZeroU32::new(100).unwrap();

    /// Adds up what a guest gets into its log that prints `per_second` lines of `bytes` for `seconds`.
    fn flood(share: &mut LogShare, begun: Instant, per_second: u32, seconds: u32) -> (u64, u64) {
        let (mut logged, mut told) = (0, 0);
        for line in 0..per_second * seconds {
            let now = begun + Duration::from_secs(1) * line / per_second;
            if let LineAdmission::Logged { dropped } = share.admit(10, now) {
                logged += 1;
                told += u64::from(dropped > 0);
            }
        }
        (logged, told)
    }

    #[test]
    fn a_flood_of_lines_gets_its_burst_and_its_rate_and_one_note_a_second() {
        let begun = Instant::now();
        let mut share = LogShare::new(LINES, begun);
        let (logged, told) = flood(&mut share, begun, 50_000, 20);
        assert!((2_900..=3_000).contains(&logged), "{logged}");
        assert!((15..=20).contains(&told), "{told}");
        assert!(share.has_dropped());
        let later = begun + Duration::from_secs(60);
        assert!(share.dropped_before_silence(later) > 0 && !share.has_dropped());
    }

    #[test]
    fn a_guest_that_prints_as_much_as_it_may_loses_nothing() {
        let begun = Instant::now();
        let mut share = LogShare::new(LINES, begun);
        assert_eq!(flood(&mut share, begun, 1_000, 1), (1_000, 0));
        let later = begun + Duration::from_secs(11);
        assert_eq!(flood(&mut share, later, 100, 100), (10_000, 0));
    }

    #[test]
    fn long_lines_count_by_their_bytes() {
        let begun = Instant::now();
        let mut share = LogShare::new(LINES, begun);
        let admitted = (0..100)
            .filter(|_| share.admit(100 * 512, begun) != LineAdmission::Dropped)
            .count();
        assert_eq!(admitted, 10);
    }

    #[test]
    fn a_stream_is_read_no_faster_than_its_pace() {
        let begun = Instant::now();
        for (messages, bytes, most) in [(1, 5, 20_000), (1, 1 << 20, 8)] {
            let mut pace = ReadPace::of_output(begun);
            let mut now = begun;
            let mut read = 0;
            while now < begun + Duration::from_secs(10) {
                now += pace.wait_after(messages, bytes, now);
                read += 1;
            }
            // The first second's worth comes at once.
            assert!((most * 10..=most * 11 + 2).contains(&read), "{read}");
        }
    }

    #[test]
    fn a_bucket_gives_its_burst_and_then_one_token_at_a_time() {
        let begun = Instant::now();
        let mut bucket = Telling::of_check_events(begun).bucket;
        let taken = |bucket: &mut Bucket, now| (0..1_000).filter(|_| bucket.take(now)).count();
        assert_eq!(taken(&mut bucket, begun), 20);
        assert_eq!(taken(&mut bucket, begun + CHECK_EVENT_EVERY), 1);
        assert_eq!(taken(&mut bucket, begun + CHECK_EVENT_EVERY * 1_000), 20);
    }

    #[test]
    fn a_guests_text_is_short_and_plain() {
        let text = bounded_text(&format!("\x1b[2J\n{}", "ä".repeat(1 << 20)));
        assert_eq!(text.chars().count(), TEXT_CHARACTERS + 1);
        assert!(!text.contains(char::is_control) && text.ends_with('…'));
        assert_eq!(bounded_text("no such file"), "no such file");
    }
}
