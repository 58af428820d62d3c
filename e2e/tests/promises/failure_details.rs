//! Details that are printed when a test fails: the ends of the logs, the machines as the API shows
//! them, and the counters and threads of each VMM.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use client::Client;

use crate::stage::processes_naming;

/// How many lines of each log are printed.
const LINES: usize = 40;
/// Longest that a VMM may take to answer.
const ANSWER_DEADLINE: Duration = Duration::from_secs(2);

/// The details of a stage whose supervisor logs to `log` and keeps its files in `state`.
pub(crate) async fn collect(client: &Client, log: &Path, state: &Path) -> String {
    let mut parts = vec![tail(log)];
    let machines = client.list(&client::ListFilter::default()).await;
    for machine in machines.unwrap_or_default() {
        let folder = state.join("machines").join(&machine.id);
        let shown = serde_json::to_string(&machine).unwrap_or_default();
        parts.push(format!("--- machine {}\n{shown}", machine.id));
        parts.push(format!("--- its VMM\n{}", vmm(&folder)));
        parts.extend(["vmm.log", "console.log"].map(|name| tail(&folder.join(name))));
    }
    parts.join("\n")
}

fn tail(path: &Path) -> String {
    let text = fs::read(path).unwrap_or_default();
    let text = String::from_utf8_lossy(&text).into_owned();
    let lines: Vec<&str> = text.lines().collect();
    let last = lines[lines.len().saturating_sub(LINES)..].join("\n");
    format!("--- {}\n{last}", path.display())
}

/// Counters and threads of the VMM of the machine in `folder`.
fn vmm(folder: &Path) -> String {
    let counters = counters(&folder.join("c.sock")).unwrap_or_else(|error| error.to_string());
    let threads: Vec<String> = processes_naming(&folder.display().to_string())
        .iter()
        .map(|pid| PathBuf::from(format!("/proc/{}/task", pid.as_raw_nonzero())))
        .filter_map(|tasks| fs::read_dir(tasks).ok())
        .flat_map(|tasks| tasks.flatten().map(|task| thread(&task.path())))
        .collect();
    format!("{counters}{}", threads.join("\n"))
}

/// The VMM's greeting and its counters, as it sends them.
fn counters(socket: &Path) -> std::io::Result<String> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(ANSWER_DEADLINE))?;
    stream.write_all(b"{\"id\":1,\"request\":\"counters\"}\n")?;
    let mut reader = BufReader::new(stream);
    let mut lines = String::new();
    while !lines.contains("\"id\":1") && reader.read_line(&mut lines)? > 0 {}
    Ok(lines)
}

/// Name, state, processor time and place in the kernel of a thread.
fn thread(task: &Path) -> String {
    ["stat", "wchan", "stack"]
        .map(|name| fs::read_to_string(task.join(name)).unwrap_or_default())
        .map(|text| text.trim().to_owned())
        .join(" ")
}
