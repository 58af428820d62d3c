//! Virtual hosts that really boot: what goes in, what comes out, and that none is left behind.
//!
//! Needs QEMU and, the first time, the network for Debian's kernel. Without QEMU the tests are
//! ignored, with the reason.

#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "what tests may do, their helpers may"
)]

use std::fs;
use std::io::Read;
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use kvm_host::clock::Clock;
use kvm_host::host::{Config, HostError, Run, VirtualHost};
use kvm_host::pack::{HostFile, Parts};
use kvm_host::qemu;
use trials::{Arguments, ignore_if, trials};

const DEADLINE: Duration = Duration::from_secs(120);

fn main() -> ExitCode {
    let all = trials![
        a_command_sees_kvm_and_its_exit_code_and_files_come_out,
        an_idle_host_gets_interrupts_from_outside,
        an_instruction_takes_a_nanosecond_of_virtual_time_and_waiting_takes_none,
        a_command_is_interrupted_and_its_output_goes_where_its_owner_wants_it,
        a_program_that_is_not_there_is_named,
        a_supervisor_is_reached_through_the_forwarded_port_and_started_again_when_it_ends,
        a_supervisor_that_does_not_come_up_is_reported_at_once,
        qemu_does_not_outlive_an_owner_that_was_killed,
    ];
    let obstacle = qemu::check_installed().err().map(|error| error.to_string());
    trials::run(&Arguments::from_args(), ignore_if(obstacle.as_deref(), all)).exit_code()
}

fn config(folder: &Path, run: Run) -> Config {
    let init = Path::new(env!("CARGO_BIN_EXE_kvm-host-init"));
    Config {
        parts: Parts::from_user_cache(init, &|step| println!("{step}")).unwrap(),
        memory_mib: 512,
        cpus: 2,
        clock: Clock::Real,
        files: Vec::new(),
        run,
        log_folder: folder.to_owned(),
    }
}

fn shell_command(script: &str, export: Option<(String, PathBuf)>) -> Run {
    let argv = ["/bin/sh", "-c", script].map(str::to_owned).to_vec();
    Run::Command {
        argv,
        env: vec![("ANSWER".to_owned(), "42".to_owned())],
        stdout: None,
        export,
    }
}

/// Asks again and again until there is an answer.
fn poll<T>(what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + DEADLINE;
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(
            Instant::now() < deadline,
            "waited {} s for {what}",
            DEADLINE.as_secs()
        );
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Whether a process has `text` in its command line.
fn is_running(text: &str) -> bool {
    let Ok(processes) = fs::read_dir("/proc") else {
        return false;
    };
    processes
        .flatten()
        .filter_map(|process| fs::read(process.path().join("cmdline")).ok())
        .any(|line| {
            let line = String::from_utf8_lossy(&line);
            line.contains("qemu-system") && line.contains(text)
        })
}

fn a_command_sees_kvm_and_its_exit_code_and_files_come_out() {
    let folder = tempfile::tempdir().unwrap();
    let input = folder.path().join("input");
    fs::write(&input, "from outside").unwrap();
    // The background process must not keep the host up.
    let script = "sleep 1000 & mkdir -p /out/deep && test -c /dev/kvm && \
                  cp /input /out/deep/file && echo $ANSWER >/out/answer; exit 7";
    let export = folder.path().join("out");
    let run = shell_command(script, Some(("/out".to_owned(), export.clone())));
    let mut config = config(folder.path(), run);
    config.files.push(HostFile::data(&input, "/input"));

    let host = VirtualHost::start(&config).unwrap();

    assert_eq!(host.wait_command(DEADLINE).unwrap(), 7);
    assert_eq!(
        fs::read_to_string(export.join("deep/file")).unwrap(),
        "from outside"
    );
    assert_eq!(fs::read_to_string(export.join("answer")).unwrap(), "42\n");
    host.wait_end().unwrap();
    assert!(!is_running(&folder.path().display().to_string()));
}

fn an_idle_host_gets_interrupts_from_outside() {
    let folder = tempfile::tempdir().unwrap();
    // Nothing inside uses the channel meanwhile, so only the outside's beats raise its interrupts.
    let script = "count() { awk '/virtio/ { sum += $2 } END { print sum + 0 }' /proc/interrupts; }
                  begin=$(count)
                  for second in 1 2 3 4 5 6 7 8 9 10; do
                      sleep 1
                      [ $(count) -ge $((begin + 10)) ] && exit 0
                  done
                  exit 1";
    let mut config = config(folder.path(), shell_command(script, None));
    config.cpus = 1;

    let host = VirtualHost::start(&config).unwrap();

    assert_eq!(host.wait_command(DEADLINE).unwrap(), 0);
}

fn an_instruction_takes_a_nanosecond_of_virtual_time_and_waiting_takes_none() {
    let folder = tempfile::tempdir().unwrap();
    // An hour of sleep; then a loop whose length in virtual time does not depend on this machine.
    let script = "now() { cut -d' ' -f1 /proc/uptime | tr -d .; }
                  grep -q ' mctl.clock=virtual' /proc/cmdline || exit 1
                  begin=$(now); sleep 3600; slept=$(($(now) - begin))
                  [ $slept -ge 360000 ] && [ $slept -lt 360200 ] || exit 2
                  count() { i=0; begin=$(now); while [ $i -lt 20000 ]; do i=$((i + 1)); done;
                            echo $(($(now) - begin)); }
                  one=$(count); other=$(count); echo $one $other; dmesg | grep -i 'tsc: .*1000.000 MHz' >&2
                  difference=$((one - other)); [ ${difference#-} -le $((one / 20 + 1)) ] || exit 3";
    let mut config = config(folder.path(), shell_command(script, None));
    (config.cpus, config.clock) = (1, Clock::Virtual);
    let host = VirtualHost::start(&config).unwrap();
    assert_eq!(host.wait_command(DEADLINE).unwrap(), 0);
}

fn a_command_is_interrupted_and_its_output_goes_where_its_owner_wants_it() {
    let folder = tempfile::tempdir().unwrap();
    let (sender, receiver) = mpsc::channel();
    let run = Run::Command {
        argv: [
            "/bin/sh",
            "-c",
            "trap 'exit 9' INT; echo ready; while :; do sleep 1; done",
        ]
        .map(str::to_owned)
        .to_vec(),
        env: Vec::new(),
        stdout: Some(sender),
        export: None,
    };
    let config = config(folder.path(), run);
    let host = VirtualHost::start(&config).unwrap();
    drop(config);
    assert_eq!(receiver.recv_timeout(DEADLINE).unwrap(), b"ready\n");
    host.interrupter().interrupt();
    assert_eq!(host.wait_command(DEADLINE).unwrap(), 9);
}

fn a_program_that_is_not_there_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let run = Run::Command {
        argv: vec!["/nowhere".to_owned()],
        env: Vec::new(),
        stdout: None,
        export: None,
    };
    let host = VirtualHost::start(&config(folder.path(), run)).unwrap();
    let error = host.wait_command(DEADLINE).unwrap_err();
    assert!(
        matches!(&error, HostError::Failed { reason, .. } if reason.contains("/nowhere")),
        "{error}"
    );
}

fn a_supervisor_is_reached_through_the_forwarded_port_and_started_again_when_it_ends() {
    let folder = tempfile::tempdir().unwrap();
    // Serves one connection and ends. The check of its readiness is the first, so an answer to
    // us is that of the second.
    let script = folder.path().join("supervisor");
    fs::write(
        &script,
        "#!/bin/sh\nnc -l -p 8080 -e /bin/cat /etc/mctl/token\nsleep 1\n",
    )
    .unwrap();
    let run = Run::Supervisor {
        token: "secret".to_owned(),
        port: None,
    };
    let mut config = config(folder.path(), run);
    let program = HostFile::program(&script, "/usr/bin/mctl-supervisor");
    config.files.push(program);

    let host = VirtualHost::start(&config).unwrap();
    host.wait_ready(DEADLINE).unwrap();

    let address = host
        .api_url()
        .unwrap()
        .trim_start_matches("http://")
        .to_owned();
    let answer = poll("an answer through the forwarded port", || {
        let mut answer = String::new();
        let mut connection = TcpStream::connect(&address).ok()?;
        connection.read_to_string(&mut answer).ok()?;
        (!answer.is_empty()).then_some(answer)
    });
    assert_eq!(answer, "secret\n");
    host.shutdown();
    assert!(!is_running(&folder.path().display().to_string()));
}

fn a_supervisor_that_does_not_come_up_is_reported_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let run = Run::Supervisor {
        token: "secret".to_owned(),
        port: None,
    };
    let mut config = config(folder.path(), run);
    // Any program that refuses these flags.
    let refusing = env!("CARGO_BIN_EXE_mctl-kvm-host");
    let program = HostFile::program(refusing, "/usr/bin/mctl-supervisor");
    config.files.push(program);
    let host = VirtualHost::start(&config).unwrap();
    let error = host.wait_ready(DEADLINE).unwrap_err().to_string();
    assert!(
        error.contains("ended with code 2 before it accepted a connection"),
        "{error}"
    );
}

fn qemu_does_not_outlive_an_owner_that_was_killed() {
    let folder = tempfile::tempdir().unwrap();
    let marker = folder.path().display().to_string();
    let mut owner = Command::new(env!("CARGO_BIN_EXE_mctl-kvm-host"))
        .args(["exec", "--memory-mib", "512", "--log-folder", &marker])
        .args(["--init", env!("CARGO_BIN_EXE_kvm-host-init")])
        .args(["--", "/bin/sleep", "1000"])
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    poll("QEMU to start", || is_running(&marker).then_some(()));

    owner.kill().unwrap();
    owner.wait().unwrap();

    poll("QEMU to end", || (!is_running(&marker)).then_some(()));
}
