//! Virtual hosts that really boot: what goes in, what comes out, and that none is left behind.
//!
//! Needs QEMU and, the first time, the network for Debian's packages. Without QEMU the tests are
//! ignored, with the reason; without `mmdebstrap`, those with Debian's root; without Bochs, its own.

#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "what tests may do, their helpers may"
)]

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use kvm_host::clock::Clock;
use kvm_host::config::{Config, Run};
use kvm_host::disk::{DiskError, Loss};
use kvm_host::emulator::Emulator;
use kvm_host::host::{HostError, VirtualHost};
use kvm_host::pack::{HostFile, Parts};
use kvm_host::plan::Filesystem;
use kvm_host::storage::{DiskFile, MemoryDisk, Storage, StorageError};
use kvm_host::{bochs, debian, qemu};
use trials::{Arguments, ignore_if, trials};

const DEADLINE: Duration = Duration::from_secs(120);
/// Bochs emulates a fifth of the instructions in a second that QEMU does.
const BOCHS_DEADLINE: Duration = Duration::from_secs(600);

fn main() -> ExitCode {
    let without_storage = trials![
        a_command_sees_kvm_and_its_exit_code_and_files_come_out,
        an_idle_host_gets_interrupts_from_outside,
        an_instruction_takes_a_nanosecond_of_virtual_time_and_waiting_takes_none,
        a_command_is_interrupted_and_its_output_goes_where_its_owner_wants_it,
        a_program_that_is_not_there_is_named,
        a_supervisor_is_reached_through_the_forwarded_port_and_started_again_when_it_ends,
        a_supervisor_that_does_not_come_up_is_reported_at_once,
        qemu_does_not_outlive_an_owner_that_was_killed,
        a_shell_has_the_terminal_and_its_end_is_that_of_the_host,
    ];
    let with_storage = trials![
        postgresql_keeps_every_acknowledged_row_over_a_power_cut,
        a_power_cut_loses_what_was_not_synced_and_nothing_else,
        a_request_of_a_memory_disk_takes_its_time_by_the_clock_inside,
        given_files_are_in_debians_root_and_on_volumes,
        a_disk_in_use_is_refused_by_its_name,
        a_shell_in_debians_root_has_the_terminal,
        a_root_that_cannot_be_fetched_is_explained,
    ];
    let in_bochs = trials![
        a_host_in_bochs_runs_intels_kvm_in_virtual_time,
        a_host_in_bochs_runs_amds_kvm_on_two_processors,
        what_bochs_does_not_have_is_refused,
    ];
    let no_bochs = bochs::check_installed()
        .err()
        .map(|error| error.to_string());
    let no_qemu = qemu::check_installed().err().map(|error| error.to_string());
    let no_debian = debian::check_installed()
        .err()
        .map(|error| error.to_string());
    let mut all = ignore_if(no_qemu.as_deref(), without_storage);
    all.extend(ignore_if(no_qemu.or(no_debian).as_deref(), with_storage));
    all.extend(ignore_if(no_bochs.as_deref(), in_bochs));
    trials::run(&Arguments::from_args(), all).exit_code()
}

fn config(folder: &Path, run: Run) -> Config {
    let init = Path::new(env!("CARGO_BIN_EXE_kvm-host-init"));
    Config {
        parts: Parts::from_user_cache(init, &|step| println!("{step}")).unwrap(),
        memory_mib: 512,
        cpus: 2,
        emulator: Emulator::QemuAmd,
        clock: Clock::Real,
        files: Vec::new(),
        storage: None,
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
    host.shutdown().unwrap();
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

fn a_shell_has_the_terminal_and_its_end_is_that_of_the_host() {
    use_shell(&[], "test -x /bin/busybox");
}

fn a_shell_in_debians_root_has_the_terminal() {
    use_shell(
        &["--root", "debian", "--package", "postgresql"],
        "test -e /etc/debian_version",
    );
}

/// Types into a shell, as a person does, and leaves it.
fn use_shell(flags: &[&str], command: &str) {
    let folder = tempfile::tempdir().unwrap();
    let mut shell = Command::new(env!("CARGO_BIN_EXE_mctl-kvm-host"))
        .args(["shell", "--memory-mib", "512", "--log-folder"])
        .arg(folder.path())
        .args(["--init", env!("CARGO_BIN_EXE_kvm-host-init")])
        .args(flags)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut output = shell.stdout.take().unwrap();
    let (sender, pieces) = mpsc::channel();
    std::thread::spawn(move || {
        let mut piece = [0; 4096];
        while let Ok(bytes @ 1..) = output.read(&mut piece) {
            let _ = sender.send(String::from_utf8_lossy(&piece[..bytes]).into_owned());
        }
    });
    let mut seen = String::new();
    let mut wait_for = |text: &str| {
        while !seen.contains(text) {
            let piece = pieces.recv_timeout(DEADLINE);
            seen.push_str(&piece.unwrap_or_else(|_| panic!("no {text:?} in {seen:?}")));
        }
    };
    wait_for("# ");
    let stdin = shell.stdin.as_mut().unwrap();
    writeln!(stdin, "{command} && echo $(tty) $((6 * 7))").unwrap();
    wait_for("/dev/ttyS0 42");
    writeln!(stdin, "exit").unwrap();
    let status = poll("the host to end", || shell.try_wait().unwrap());
    assert!(status.success(), "{status}");
}

/// Debian's root with PostgreSQL, made once for all of these tests, as the root of programs.
fn debian_storage() -> Storage {
    let packages = ["postgresql".to_owned()];
    Storage {
        debian: debian::from_user_cache(&packages, &|step| println!("{step}")).unwrap(),
        programs_in_debian: true,
        disks: Vec::new(),
        memory_disks: Vec::new(),
    }
}

fn disk(folder: &Path, filesystem: Filesystem) -> DiskFile {
    DiskFile {
        file: folder.join("disk.img"),
        inside: "/data".to_owned(),
        size_mib: 512,
        filesystem,
    }
}

/// A host that runs a shell script in Debian's root, with a disk.
fn debian_config(folder: &Path, filesystem: Filesystem, script: &str) -> Config {
    let mut config = config(folder, shell_command(script, None));
    let mut storage = debian_storage();
    storage.disks.push(disk(folder, filesystem));
    config.storage = Some(storage);
    config.cpus = 1;
    config
}

/// Runs a script to its end.
fn run_in_debian(folder: &Path, filesystem: Filesystem, script: &str) -> i32 {
    let host = VirtualHost::start(&debian_config(folder, filesystem, script)).unwrap();
    let code = host.wait_command(DEADLINE).unwrap();
    host.shutdown().unwrap();
    code
}

/// Starts PostgreSQL on the disk, then runs the script.
fn with_postgresql(script: &str) -> String {
    format!(
        r#"set -eu
           export PATH=$PATH:$(echo /usr/lib/postgresql/*/bin) PGHOST=/tmp PGUSER=postgres
           as_postgres() {{ runuser -u postgres -- "$@"; }}
           if ! [ -d /data/cluster ]; then
               chown postgres /data
               as_postgres initdb --pgdata /data/cluster --auth trust --no-sync >&2
               sync
           fi
           as_postgres pg_ctl start --wait --timeout 100 --pgdata /data/cluster --log /data/log \
               --options "-k /tmp" >&2 || {{ cat /data/log >&2; exit 1; }}
           {script}"#
    )
}

fn postgresql_keeps_every_acknowledged_row_over_a_power_cut() {
    let folder = tempfile::tempdir().unwrap();
    let script = with_postgresql(
        r#"psql -qc "CREATE TABLE numbers (number int)"
           n=0
           while :; do
               n=$((n + 1))
               echo "INSERT INTO numbers VALUES ($n);"
               printf '\\echo %s\n' $n
           done | stdbuf --output=L psql --quiet --set ON_ERROR_STOP=1"#,
    );
    let (sender, receiver) = mpsc::channel();
    let mut config = debian_config(folder.path(), Filesystem::Ext4, &script);
    if let Run::Command { stdout, .. } = &mut config.run {
        *stdout = Some(sender);
    }
    let host = VirtualHost::start(&config).unwrap();
    drop(config);
    let mut acknowledged = String::new();
    let mut last = 0;
    while last < 100 {
        let piece = receiver.recv_timeout(DEADLINE).unwrap();
        acknowledged.push_str(str::from_utf8(&piece).unwrap());
        // The last line may not be whole yet.
        last = acknowledged
            .rsplit('\n')
            .nth(1)
            .map_or(0, |line| line.parse().unwrap());
    }
    let seed = rand::random();
    println!("the power cut loses the sectors of the seed {seed}");
    host.cut_power(Loss::Random { seed }).unwrap();

    let check = with_postgresql(&format!(
        r#"set -- $(psql -qAt -F " " -c "SELECT count(*), max(number) FROM numbers")
           echo "acknowledged {last}, found $*" >&2
           [ "$1" -eq "$2" ] && [ "$2" -ge {last} ]
           as_postgres pg_ctl stop --pgdata /data/cluster >&2"#
    ));
    assert_eq!(run_in_debian(folder.path(), Filesystem::Ext4, &check), 0);
}

fn a_power_cut_loses_what_was_not_synced_and_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    let script = r#"set -eu
        echo kept >/data/synced && cp --reflink=always /data/synced /data/reflink
        sync
        echo lost >/data/unsynced && echo changed >/data/synced
        echo written && sleep 1000"#;
    let (sender, receiver) = mpsc::channel();
    let mut config = debian_config(folder.path(), Filesystem::Xfs, script);
    if let Run::Command { stdout, .. } = &mut config.run {
        *stdout = Some(sender);
    }
    let host = VirtualHost::start(&config).unwrap();
    drop(config);
    assert_eq!(receiver.recv_timeout(DEADLINE).unwrap(), b"written\n");
    host.cut_power(Loss::All).unwrap();

    let check =
        "[ $(cat /data/synced /data/reflink | tr '\n' +) = kept+kept+ ] && ! [ -e /data/unsynced ]";
    assert_eq!(run_in_debian(folder.path(), Filesystem::Xfs, check), 0);
}

fn a_request_of_a_memory_disk_takes_its_time_by_the_clock_inside() {
    let folder = tempfile::tempdir().unwrap();
    // 1,000 requests of 2 ms, one after the other, in hundredths of a second.
    let script = r#"set -eu
        now() { cut -d' ' -f1 /proc/uptime | tr -d .; }
        begin=$(now)
        dd if=/dev/zero of=/fast/file bs=4096 count=1000 oflag=direct 2>/dev/null
        took=$(($(now) - begin)); echo "$took" >&2
        [ $took -ge 200 ] && [ $took -lt 260 ]"#;
    let mut config = config(folder.path(), shell_command(script, None));
    (config.cpus, config.clock) = (1, Clock::Virtual);
    let mut storage = debian_storage();
    storage.memory_disks.push(MemoryDisk {
        inside: "/fast".to_owned(),
        size_mib: 64,
        completion_us: 2_000,
        filesystem: Filesystem::Ext4,
    });
    config.storage = Some(storage);
    let host = VirtualHost::start(&config).unwrap();
    assert_eq!(host.wait_command(DEADLINE).unwrap(), 0);
}

fn given_files_are_in_debians_root_and_on_volumes() {
    let folder = tempfile::tempdir().unwrap();
    let given = folder.path().join("given");
    fs::write(&given, "given").unwrap();
    for programs_in_debian in [true, false] {
        let root = if programs_in_debian {
            // A mere chroot could not make user namespaces.
            "[ -e /etc/debian_version ] && unshare --user --map-root-user true"
        } else {
            "! [ -e /etc/debian_version ]"
        };
        let script = format!("[ $(cat /data/deep/file /etc/given) = givengiven ] && {root}");
        let mut config = debian_config(folder.path(), Filesystem::Ext4, &script);
        config.storage.as_mut().unwrap().programs_in_debian = programs_in_debian;
        for inside in ["/data/deep/file", "/etc/given"] {
            config.files.push(HostFile::data(&given, inside));
        }
        let host = VirtualHost::start(&config).unwrap();
        assert_eq!(host.wait_command(DEADLINE).unwrap(), 0);
        host.shutdown().unwrap();
    }
}

fn a_disk_in_use_is_refused_by_its_name() {
    let folder = tempfile::tempdir().unwrap();
    let config = debian_config(folder.path(), Filesystem::Ext4, "sleep 1000");
    let first = VirtualHost::start(&config).unwrap();
    let error = VirtualHost::start(&config).unwrap_err();
    assert!(
        matches!(
            &error,
            HostError::Storage(StorageError::Disk(DiskError::InUse { path })) if path.ends_with("disk.img")
        ),
        "{error}"
    );
    drop(first);
    drop(VirtualHost::start(&config).unwrap());
}

fn a_root_that_cannot_be_fetched_is_explained() {
    let folder = tempfile::tempdir().unwrap();
    let nobody_listens_there = "http://127.0.0.1:9";
    let output = Command::new(env!("CARGO_BIN_EXE_mctl-kvm-host"))
        .args(["exec", "--root", "debian", "--package", "nginx", "--cache"])
        .arg(folder.path())
        .args(["--init", env!("CARGO_BIN_EXE_kvm-host-init")])
        .args(["--", "/bin/true"])
        .env("http_proxy", nobody_listens_there)
        .env("https_proxy", nobody_listens_there)
        .output()
        .unwrap();
    let message = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{message}");
    assert!(message.contains("is this host offline"), "{message}");
    assert!(message.contains("e2fsprogs,nginx,xfsprogs"), "{message}");
}

fn bochs_config(folder: &Path, run: Run) -> Config {
    Config {
        emulator: Emulator::BochsIntel,
        clock: Clock::Virtual,
        cpus: 1,
        ..config(folder, run)
    }
}

fn a_host_in_bochs_runs_intels_kvm_in_virtual_time() {
    let folder = tempfile::tempdir().unwrap();
    let export = folder.path().join("out");
    // Any byte must pass the serial port unchanged.
    let script = "set -e; test -c /dev/kvm; grep -q '^kvm_intel ' /proc/modules
                  grep -q ' mctl.clock=virtual mctl.emulator=intel' /proc/cmdline
                  mkdir /out; i=0; while [ $i -lt 256 ]; do
                      printf \"\\\\$(printf %o $i)\"; i=$((i + 1)); done >/out/bytes
                  sleep 60; exit 9";
    let run = shell_command(script, Some(("/out".to_owned(), export.clone())));
    let host = VirtualHost::start(&bochs_config(folder.path(), run)).unwrap();
    assert_eq!(host.wait_command(BOCHS_DEADLINE).unwrap(), 9);
    let bytes: Vec<u8> = (0..=u8::MAX).collect();
    assert_eq!(fs::read(export.join("bytes")).unwrap(), bytes);
    host.shutdown().unwrap();
}

fn a_host_in_bochs_runs_amds_kvm_on_two_processors() {
    let folder = tempfile::tempdir().unwrap();
    let script = "test -c /dev/kvm && grep -q '^kvm_amd ' /proc/modules && [ $(nproc) = 2 ]";
    let mut config = bochs_config(folder.path(), shell_command(script, None));
    (config.emulator, config.cpus) = (Emulator::BochsAmd, 2);
    let host = VirtualHost::start(&config).unwrap();
    assert_eq!(host.wait_command(BOCHS_DEADLINE).unwrap(), 0);
    host.shutdown().unwrap();
}

fn what_bochs_does_not_have_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let error = VirtualHost::start(&bochs_config(folder.path(), Run::Shell)).unwrap_err();
    assert!(error.to_string().contains("a shell needs QEMU"), "{error}");
    let mut config = bochs_config(folder.path(), shell_command("true", None));
    config.clock = Clock::Real;
    let error = VirtualHost::start(&config).unwrap_err();
    assert!(error.to_string().contains("virtual time only"), "{error}");
}
