//! The processes of the guest, and the TCP ports on which they listen.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::path::Path;

use guest_protocol::ProcessEntry;

use crate::procfs::TICK_MS;

const PAGE_KIB: u64 = 4;

/// Longest command line that is told; a list of all processes has to fit into one frame.
const COMMAND_CHARACTERS: usize = 256;

/// State of a listening socket in `/proc/net/tcp`.
const LISTEN: &str = "0A";

/// Lists all processes by pid. Those that end meanwhile are left out.
pub(crate) fn list() -> io::Result<Vec<ProcessEntry>> {
    let ports = listening_ports();
    let mut processes = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let path = entry?.path();
        let is_process = path
            .file_name()
            .and_then(|name| name.to_str())
            .is_some_and(|name| name.bytes().all(|byte| byte.is_ascii_digit()));
        if is_process && let Some(process) = read_process(&path, &ports) {
            processes.push(process);
        }
    }
    processes.sort_by_key(|process| process.pid);
    Ok(processes)
}

fn read_process(directory: &Path, ports: &HashMap<u64, u16>) -> Option<ProcessEntry> {
    let stat = fs::read(directory.join("stat")).ok()?;
    let mut process = parse_stat(&String::from_utf8_lossy(&stat))?;
    let command_line = fs::read(directory.join("cmdline")).unwrap_or_default();
    if let Some(command) = join_arguments(&command_line) {
        process.command = command;
    }
    if !ports.is_empty() {
        process.listening_ports = ports_of(directory, ports);
    }
    Some(process)
}

/// Reads `/proc/<pid>/stat`. The name stands in parentheses and may contain any character,
/// closing parentheses and spaces included.
fn parse_stat(stat: &str) -> Option<ProcessEntry> {
    let (pid, rest) = stat.split_once(" (")?;
    let (name, rest) = rest.rsplit_once(") ")?;
    let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
    let number = |index: usize| fields.get(index)?.parse::<u64>().ok();
    let ticks = number(11)?.saturating_add(number(12)?);
    Some(ProcessEntry {
        pid: pid.parse().ok()?,
        parent_pid: fields.get(1)?.parse().ok()?,
        command: format!("[{name}]"),
        state: (*fields.first()?).to_owned(),
        cpu_ms: ticks.saturating_mul(TICK_MS),
        rss_kib: number(21)?.saturating_mul(PAGE_KIB),
        listening_ports: Vec::new(),
    })
}

/// The arguments with spaces in between; none for kernel threads and zombies.
fn join_arguments(command_line: &[u8]) -> Option<String> {
    let end = command_line.iter().rposition(|byte| *byte != 0)?;
    let text = String::from_utf8_lossy(command_line.get(..=end)?);
    let characters = text.chars().take(COMMAND_CHARACTERS);
    Some(
        characters
            .map(|c| if c == '\0' { ' ' } else { c })
            .collect(),
    )
}

/// Listening TCP ports by the inode of their socket.
fn listening_ports() -> HashMap<u64, u16> {
    let mut ports = HashMap::new();
    for table in ["/proc/net/tcp", "/proc/net/tcp6"] {
        // A kernel without IPv6 has only one of them.
        let text = fs::read_to_string(table).unwrap_or_default();
        ports.extend(text.lines().skip(1).filter_map(parse_listener));
    }
    ports
}

/// Reads a line of `/proc/net/tcp`: index, local address, remote address, state, five fields
/// that do not matter here, inode.
fn parse_listener(line: &str) -> Option<(u64, u16)> {
    let fields: Vec<&str> = line.split_ascii_whitespace().collect();
    if *fields.get(3)? != LISTEN {
        return None;
    }
    let (_, port) = fields.get(1)?.rsplit_once(':')?;
    let inode = fields.get(9)?.parse().ok()?;
    Some((inode, u16::from_str_radix(port, 16).ok()?))
}

fn ports_of(directory: &Path, ports: &HashMap<u64, u16>) -> Vec<u16> {
    let Ok(descriptors) = fs::read_dir(directory.join("fd")) else {
        return Vec::new();
    };
    let mut own: Vec<u16> = descriptors
        .filter_map(|entry| fs::read_link(entry.ok()?.path()).ok())
        .filter_map(|target| parse_socket_link(target.to_str()?))
        .filter_map(|inode| ports.get(&inode).copied())
        .collect();
    own.sort_unstable();
    own.dedup();
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
        assert_eq!(parse_listener(line), Some((4242, 8080)));
        assert_eq!(parse_listener(&line.replace(" 0A ", " 01 ")), None);
        assert_eq!(parse_listener("sl local_address"), None);
    }

    #[test]
    fn our_own_process_is_listed_with_its_port() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();

        let processes = list().unwrap();

        let own_pid = std::process::id().cast_signed();
        let own = processes.iter().find(|process| process.pid == own_pid);
        let own = own.expect("this process is missing");
        assert!(own.listening_ports.contains(&port));
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
