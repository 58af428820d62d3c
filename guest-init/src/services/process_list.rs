//! Lists the processes of the guest, and the TCP sockets on which they listen.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;

use guest_protocol::{ListeningSocket, ProcessEntry};

use crate::os::clock::{realtime_ns, uptime_ms};
use crate::os::procfs::TICK_MS;

const PAGE_KIB: u64 = 4;

/// Longest command line or directory in the list: all processes have to fit into one frame.
const MOST_CHARACTERS: usize = 256;
/// Most sockets of one process in the list, for the same reason.
const MOST_SOCKETS: usize = 32;

/// State of a listening socket in `/proc/net/tcp`.
const LISTEN: &str = "0A";

/// Lists all processes by pid, except those that end while it reads.
pub(crate) fn list() -> io::Result<Vec<ProcessEntry>> {
    let listeners = listeners();
    let mut processes = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let path = entry?.path();
        let is_process = path
            .file_name()
            .and_then(|name| name.to_str())
            .is_some_and(|name| name.bytes().all(|byte| byte.is_ascii_digit()));
        if is_process && let Some(process) = read_process(&path, &listeners) {
            processes.push(process);
        }
    }
    processes.sort_by_key(|process| process.pid);
    Ok(processes)
}

fn read_process(directory: &Path, listeners: &HashMap<u64, SocketAddr>) -> Option<ProcessEntry> {
    let stat = fs::read(directory.join("stat")).ok()?;
    let mut process = parse_stat(&String::from_utf8_lossy(&stat))?;
    let command_line = fs::read(directory.join("cmdline")).unwrap_or_default();
    if let Some(command) = join_arguments(&command_line) {
        process.command = command;
    }
    if let Ok(cwd) = fs::read_link(directory.join("cwd")) {
        let characters = cwd.to_string_lossy();
        process.directory = characters.chars().take(MOST_CHARACTERS).collect();
    }
    if !listeners.is_empty() {
        process.listening = sockets_of(directory, listeners);
    }
    Some(process)
}

/// Reads `/proc/<pid>/stat`. The name is in parentheses and may contain any character, also closing
/// parentheses and spaces.
fn parse_stat(stat: &str) -> Option<ProcessEntry> {
    let (pid, rest) = stat.split_once(" (")?;
    let (name, rest) = rest.rsplit_once(") ")?;
    let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
    let number = |index: usize| fields.get(index)?.parse::<u64>().ok();
    let ticks = number(11)?.saturating_add(number(12)?);
    let started_ms = number(19)?.saturating_mul(TICK_MS);
    let running_s = uptime_ms().saturating_sub(started_ms) / 1_000;
    let now_s = realtime_ns() / 1_000_000_000;
    Some(ProcessEntry {
        pid: pid.parse().ok()?,
        parent_pid: fields.get(1)?.parse().ok()?,
        command: format!("[{name}]"),
        state: (*fields.first()?).to_owned(),
        cpu_ms: ticks.saturating_mul(TICK_MS),
        rss_kib: number(21)?.saturating_mul(PAGE_KIB),
        directory: String::new(),
        started_at_s: now_s.saturating_sub(running_s),
        running_s,
        listening: Vec::new(),
    })
}

/// The arguments, separated by spaces; none for kernel threads and zombies.
fn join_arguments(command_line: &[u8]) -> Option<String> {
    let end = command_line.iter().rposition(|byte| *byte != 0)?;
    let text = String::from_utf8_lossy(command_line.get(..=end)?);
    let characters = text.chars().take(MOST_CHARACTERS);
    Some(
        characters
            .map(|c| if c == '\0' { ' ' } else { c })
            .collect(),
    )
}

/// Addresses of listening TCP sockets, by inode.
fn listeners() -> HashMap<u64, SocketAddr> {
    let mut listeners = HashMap::new();
    for table in ["/proc/net/tcp", "/proc/net/tcp6"] {
        // A kernel without IPv6 has no tcp6.
        let text = fs::read_to_string(table).unwrap_or_default();
        listeners.extend(text.lines().skip(1).filter_map(parse_listener));
    }
    listeners
}

/// Reads a line of `/proc/net/tcp`: index, local address, remote address, state, five fields
/// that are not used here, inode.
fn parse_listener(line: &str) -> Option<(u64, SocketAddr)> {
    let fields: Vec<&str> = line.split_ascii_whitespace().collect();
    if *fields.get(3)? != LISTEN {
        return None;
    }
    let (address, port) = fields.get(1)?.rsplit_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    let address = SocketAddr::new(parse_address(address)?, port);
    Some((fields.get(9)?.parse().ok()?, address))
}

/// The kernel prints an address as words of 32 bits in the byte order of the processor.
fn parse_address(hexadecimal: &str) -> Option<IpAddr> {
    let word = |index: usize| {
        let digits = hexadecimal.get(8 * index..8 * (index + 1))?;
        Some(u32::from_str_radix(digits, 16).ok()?.to_ne_bytes())
    };
    match hexadecimal.len() {
        8 => Some(Ipv4Addr::from(word(0)?).into()),
        32 => {
            let mut bytes = [0; 16];
            for (index, part) in bytes.chunks_exact_mut(4).enumerate() {
                part.copy_from_slice(&word(index)?);
            }
            Some(Ipv6Addr::from(bytes).into())
        }
        _ => None,
    }
}

fn sockets_of(directory: &Path, listeners: &HashMap<u64, SocketAddr>) -> Vec<ListeningSocket> {
    let Ok(descriptors) = fs::read_dir(directory.join("fd")) else {
        return Vec::new();
    };
    let mut own: Vec<ListeningSocket> = descriptors
        .filter_map(|entry| fs::read_link(entry.ok()?.path()).ok())
        .filter_map(|target| parse_socket_link(target.to_str()?))
        .filter_map(|inode| listeners.get(&inode))
        .map(|address| ListeningSocket {
            protocol: "tcp".to_owned(),
            address: address.to_string(),
        })
        .collect();
    own.sort_unstable();
    own.dedup();
    own.truncate(MOST_SOCKETS);
    own
}

fn parse_socket_link(target: &str) -> Option<u64> {
    target
        .strip_prefix("socket:[")?
        .strip_suffix(']')?
        .parse()
        .ok()
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_name_with_parentheses_and_spaces_is_one_field() {
        let stat = "42 (a) (b c)) S 7 42 42 0 -1 4194560 99 0 0 0 12 3 0 0 20 0 1 0 5 1000 25 0";

        let process = parse_stat(stat).unwrap();

        assert_eq!((process.pid, process.parent_pid), (42, 7));
        assert_eq!(process.command, "[a) (b c)]");
        assert_eq!((process.cpu_ms, process.rss_kib), (150, 100));
        assert!(process.running_s > 0);
    }

    #[test]
    fn command_lines_lose_their_terminators() {
        assert_eq!(join_arguments(b"sh\0-c\0true\0"), Some("sh -c true".into()));
        assert_eq!(join_arguments(b""), None);
        assert_eq!(join_arguments(b"\0\0"), None);
    }

    #[test]
    fn only_listening_sockets_count() {
        let line = "   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4242 1 0000000000000000 100 0 0 10 0";
        let address = "127.0.0.1:8080".parse().unwrap();
        assert_eq!(parse_listener(line), Some((4242, address)));
        assert_eq!(parse_listener(&line.replace(" 0A ", " 01 ")), None);
        assert_eq!(parse_listener("sl local_address"), None);
    }

    #[test]
    fn addresses_are_those_of_the_kernel() {
        let read = |text| parse_address(text).map(|address| address.to_string());
        assert_eq!(read("00000000").as_deref(), Some("0.0.0.0"));
        assert_eq!(read("0100007F").as_deref(), Some("127.0.0.1"));
        let loopback = "00000000000000000000000001000000";
        assert_eq!(read(loopback).as_deref(), Some("::1"));
        for nonsense in ["", "0100007", "0100007G", "ééééé", "0100007F00"] {
            assert_eq!(read(nonsense), None, "{nonsense}");
        }
    }

    #[test]
    fn our_own_process_is_listed_with_its_port() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();

        let processes = list().unwrap();

        let own_pid = std::process::id().cast_signed();
        let own = processes.iter().find(|process| process.pid == own_pid);
        let own = own.expect("this process is missing");
        assert!(own.listening.iter().any(|socket| socket.address == address));
        let directory = std::env::current_dir().unwrap();
        assert_eq!(Path::new(&own.directory), directory);
        let now_s = realtime_ns() / 1_000_000_000;
        assert!(own.running_s < now_s && own.started_at_s.abs_diff(now_s - own.running_s) < 5);
        assert_eq!(
            own.command.split(' ').next(),
            std::env::args().next().as_deref()
        );
    }

    proptest! {
        #[test]
        fn arbitrary_text_never_panics(text in ".{0,120}") {
            let _any = parse_stat(&text);
            let _any = parse_listener(&text);
            let _any = parse_socket_link(&text);
        }
    }
}
