//! The host's side: a listening Unix socket with its handshake, connections to host services, and a
//! timer.
//!
//! A host program connects to the socket and sends `CONNECT <port>\n`. It gets one line:
//!
//! | line | meaning |
//! |---|---|
//! | `OK <local port>` | connected; raw bytes follow, both ways |
//! | `RST <local port>` | the guest refused, or still has that pair in use |
//! | `NOREPLY <local port>` | the guest did not answer in time |
//! | `GONE <local port>` | ended before the guest could answer |
//! | `REFUSED <why>` | the guest was not asked |
//!
//! After all but the first the socket is closed. When the guest connects to a port, the device connects
//! to the host service at `<path>_<port>`. All descriptors are in one epoll instance, which the event
//! loop waits for; streams are watched edge-triggered, so that a blocked connection costs nothing.
//! Nothing here blocks.

use std::collections::HashMap;
use std::io::{Error, ErrorKind, Read, Result, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, epoll, eventfd};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};
use rustix::process::{Resource, getrlimit};
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};

use super::muxer::{Dial, Refusal, Token};
use crate::epoll::ready_now;

/// Most connections of a device, where the limit of open files allows it.
const MAX_CONNECTIONS: usize = 1 << 15;
/// Most handshakes at a time, where the limit of open files allows it.
const MAX_HANDSHAKES: usize = 1024;
/// Open files that are left for the rest of the process.
const OTHER_FILES: usize = 128;
/// How long a client may take to send its line.
const HANDSHAKE_TIME: Duration = Duration::from_secs(5);
/// How long accepting pauses when the process is out of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// `CONNECT 4294967295\n` has 19 bytes; further bytes of the same read are early data.
const MAX_LINE_BYTES: usize = 32;
/// Most events and accepted clients per call; the next call handles the rest.
const MAX_BATCH: usize = 128;

const LISTENER: Token = 0;
const TIMER: Token = 1;
const ANOTHER_TURN: Token = 2;
const FIRST_STREAM: Token = 3;

/// An event of the host's side.
#[derive(Debug)]
pub(super) enum HostEvent {
    /// A handshake is complete.
    Connect {
        stream: UnixStream,
        token: Token,
        port: u32,
        early: Vec<u8>,
    },
    /// Something happened to a stream.
    Ready {
        token: Token,
        readable: bool,
        hung_up: bool,
    },
}

/// A client that has not sent its whole line.
#[derive(Debug)]
struct Handshake {
    stream: UnixStream,
    received: Vec<u8>,
    deadline: Instant,
}

/// A client's line as received so far.
#[derive(Debug, PartialEq, Eq)]
enum Line {
    Incomplete,
    Malformed,
    Connect { port: u32, early: Vec<u8> },
}

/// The host's side of a device.
#[derive(Debug)]
pub(super) struct HostSockets {
    epoll: OwnedFd,
    listener: UnixListener,
    timer: OwnedFd,
    another_turn: OwnedFd,
    path: PathBuf,
    handshakes: HashMap<Token, Handshake>,
    next_token: Token,
    paused_until: Option<Instant>,
    armed: Option<Instant>,
    max_handshakes: usize,
    max_connections: usize,
}

impl HostSockets {
    /// Watches a listener that is already bound to `path`.
    pub(super) fn new(listener: UnixListener, path: PathBuf) -> Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let timer = timerfd_create(
            TimerfdClockId::Monotonic,
            TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK,
        )?;
        let another_turn = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        listener.set_nonblocking(true)?;
        watch(&epoll, &listener, LISTENER, epoll::EventFlags::IN)?;
        watch(&epoll, &timer, TIMER, epoll::EventFlags::IN)?;
        watch(&epoll, &another_turn, ANOTHER_TURN, epoll::EventFlags::IN)?;
        let files = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
        let files = usize::try_from(files)
            .unwrap_or(usize::MAX)
            .saturating_sub(OTHER_FILES);
        let max_handshakes = (files / 8).clamp(8, MAX_HANDSHAKES);
        let max_connections = files
            .saturating_sub(max_handshakes)
            .clamp(1, MAX_CONNECTIONS);
        Ok(Self {
            epoll,
            listener,
            timer,
            another_turn,
            path,
            handshakes: HashMap::new(),
            next_token: FIRST_STREAM,
            paused_until: None,
            armed: None,
            max_handshakes,
            max_connections,
        })
    }

    /// The descriptor to wait for.
    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }

    /// How many connections the process's limit of open files allows.
    pub(super) fn max_connections(&self) -> usize {
        self.max_connections
    }

    /// Makes [`HostSockets::fd`] readable at once.
    pub(super) fn ask_for_another_turn(&self) {
        // Fails only if the counter is full, and then the eventfd is readable already.
        let _ = rustix::io::write(&self.another_turn, &1_u64.to_ne_bytes());
    }

    /// Makes [`HostSockets::fd`] readable at `deadline`, or when a handshake is late.
    pub(super) fn arm(&mut self, deadline: Option<Instant>, now: Instant) -> Result<()> {
        let handshakes = self.handshakes.values().map(|handshake| handshake.deadline);
        let earliest = handshakes.chain(self.paused_until).chain(deadline).min();
        if earliest == self.armed {
            return Ok(());
        }
        // Zero would disarm the timer.
        let wait = earliest.map(|at| {
            at.saturating_duration_since(now)
                .max(Duration::from_nanos(1))
        });
        let wait = wait.unwrap_or(Duration::ZERO);
        let value = Timespec::try_from(wait).map_err(|_| ErrorKind::InvalidInput)?;
        let interval = Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        let setting = Itimerspec {
            it_interval: interval,
            it_value: value,
        };
        timerfd_settime(&self.timer, TimerfdTimerFlags::empty(), &setting)?;
        self.armed = earliest;
        Ok(())
    }

    /// Collects what has happened. Never blocks.
    pub(super) fn poll(&mut self, now: Instant) -> Result<Vec<HostEvent>> {
        let ready = ready_now(&self.epoll, MAX_BATCH)?;
        let mut events = Vec::with_capacity(ready.len());
        for event in ready {
            match event.data.u64() {
                LISTENER => self.accept(now, &mut events)?,
                TIMER => self.clear_timer(),
                ANOTHER_TURN => {
                    let _ = rustix::io::read(&self.another_turn, &mut [0; 8]);
                }
                token if self.handshakes.contains_key(&token) => {
                    events.extend(self.advance_handshake(token));
                }
                token => {
                    let flags = event.flags;
                    let hung_up = flags.intersects(epoll::EventFlags::HUP | epoll::EventFlags::ERR);
                    let incoming = epoll::EventFlags::IN | epoll::EventFlags::RDHUP;
                    events.push(HostEvent::Ready {
                        token,
                        readable: flags.intersects(incoming),
                        hung_up,
                    });
                }
            }
        }
        self.expire(now)?;
        Ok(events)
    }

    /// Tells a client why it was not connected.
    pub(super) fn refuse(stream: &UnixStream, refusal: Refusal) {
        match refusal {
            Refusal::TooManyConnections => refuse(stream, "too many connections"),
            Refusal::NoFreePort => refuse(stream, "no free local port"),
        }
    }

    fn accept(&mut self, now: Instant, events: &mut Vec<HostEvent>) -> Result<()> {
        for _ in 0..MAX_BATCH {
            let stream = match self.listener.accept() {
                Ok((stream, _)) => stream,
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == ErrorKind::ConnectionAborted => continue,
                // Out of descriptors or memory: without a pause, the listener would stay ready and keep
                // the event loop busy.
                Err(_) => return self.pause_accepting(now),
            };
            stream.set_nonblocking(true)?;
            if self.handshakes.len() >= self.max_handshakes {
                refuse(&stream, "too many handshakes at once");
                continue;
            }
            let Ok(token) = self.watch_stream(&stream) else {
                refuse(&stream, "the host is out of memory");
                continue;
            };
            let handshake = Handshake {
                stream,
                received: Vec::new(),
                deadline: now + HANDSHAKE_TIME,
            };
            self.handshakes.insert(token, handshake);
            // Most clients send their line at once, so it is usually there already.
            events.extend(self.advance_handshake(token));
        }
        Ok(())
    }

    fn pause_accepting(&mut self, now: Instant) -> Result<()> {
        epoll::delete(&self.epoll, &self.listener)?;
        self.paused_until = Some(now + ACCEPT_PAUSE);
        Ok(())
    }

    fn expire(&mut self, now: Instant) -> Result<()> {
        if self.paused_until.is_some_and(|until| until <= now) {
            // When out of memory, accepting pauses once more.
            self.paused_until =
                match watch(&self.epoll, &self.listener, LISTENER, epoll::EventFlags::IN) {
                    Ok(()) => None,
                    Err(_) => Some(now + ACCEPT_PAUSE),
                };
        }
        self.handshakes.retain(|_, handshake| {
            let late = handshake.deadline <= now;
            if late {
                refuse(&handshake.stream, "no CONNECT line in time");
            }
            !late
        });
        Ok(())
    }

    fn clear_timer(&mut self) {
        let _ = rustix::io::read(&self.timer, &mut [0; 8]);
        self.armed = None;
    }

    fn advance_handshake(&mut self, token: Token) -> Option<HostEvent> {
        let handshake = self.handshakes.get_mut(&token)?;
        let ended = read_line(&mut handshake.stream, &mut handshake.received);
        match parse_line(&handshake.received) {
            Line::Incomplete if !ended => None,
            Line::Incomplete => {
                self.handshakes.remove(&token);
                None
            }
            Line::Malformed => {
                refuse(&handshake.stream, "not a line of the form CONNECT <port>");
                self.handshakes.remove(&token);
                None
            }
            Line::Connect { port, early } => {
                let stream = self.handshakes.remove(&token)?.stream;
                Some(HostEvent::Connect {
                    stream,
                    token,
                    port,
                    early,
                })
            }
        }
    }

    fn watch_stream(&mut self, stream: &UnixStream) -> Result<Token> {
        let token = self.next_token;
        self.next_token += 1;
        let both = epoll::EventFlags::IN | epoll::EventFlags::OUT | epoll::EventFlags::RDHUP;
        watch(&self.epoll, stream, token, both | epoll::EventFlags::ET)?;
        Ok(token)
    }
}

impl Dial<UnixStream> for HostSockets {
    fn dial(&mut self, port: u32) -> Result<(UnixStream, Token)> {
        let mut path = self.path.clone().into_os_string();
        path.push(format!("_{port}"));
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
        // A Unix socket connects at once or, where the service's backlog is full, not at all.
        connect(&socket, &SocketAddrUnix::new(path)?)?;
        let stream = UnixStream::from(socket);
        let token = self.watch_stream(&stream)?;
        Ok((stream, token))
    }
}

/// Binds the host socket, and replaces one that no process listens on any more.
pub(super) fn bind(path: &Path) -> Result<UnixListener> {
    let listener = match UnixListener::bind(path) {
        Err(error) if error.kind() == ErrorKind::AddrInUse && is_stale(path) => {
            std::fs::remove_file(path)?;
            UnixListener::bind(path)?
        }
        other => other?,
    };
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// Whether `path` is a socket that no process listens on any more.
fn is_stale(path: &Path) -> bool {
    let is_socket =
        std::fs::symlink_metadata(path).is_ok_and(|metadata| metadata.file_type().is_socket());
    let refused = |error: Error| error.kind() == ErrorKind::ConnectionRefused;
    is_socket && UnixStream::connect(path).is_err_and(refused)
}

fn watch(epoll: &OwnedFd, fd: impl AsFd, token: Token, flags: epoll::EventFlags) -> Result<()> {
    Ok(epoll::add(
        epoll,
        fd,
        epoll::EventData::new_u64(token),
        flags,
    )?)
}

/// Reads the data that is there, up to the longest line; true at the end of the stream.
fn read_line(stream: &mut UnixStream, received: &mut Vec<u8>) -> bool {
    while received.len() < MAX_LINE_BYTES && !received.contains(&b'\n') {
        let mut buffer = [0; MAX_LINE_BYTES];
        let room = MAX_LINE_BYTES - received.len();
        match stream.read(&mut buffer[..room]) {
            Ok(0) => return true,
            Ok(bytes) => received.extend_from_slice(&buffer[..bytes]),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return error.kind() != ErrorKind::WouldBlock,
        }
    }
    false
}

fn parse_line(received: &[u8]) -> Line {
    let Some(end) = received.iter().position(|byte| *byte == b'\n') else {
        let full = received.len() >= MAX_LINE_BYTES;
        return if full {
            Line::Malformed
        } else {
            Line::Incomplete
        };
    };
    let port = std::str::from_utf8(&received[..end])
        .ok()
        .and_then(|line| {
            line.strip_suffix('\r')
                .unwrap_or(line)
                .strip_prefix("CONNECT ")
        })
        .filter(|digits| digits.bytes().all(|byte| byte.is_ascii_digit()))
        .and_then(|digits| digits.parse().ok());
    match port {
        Some(port) => Line::Connect {
            port,
            early: received[end + 1..].to_vec(),
        },
        None => Line::Malformed,
    }
}

fn refuse(mut stream: &UnixStream, why: &str) {
    // Fails only if the client has disconnected.
    let _ = stream.write_all(format!("REFUSED {why}\n").as_bytes());
}
