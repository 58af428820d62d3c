//! Whole VMM processes on `/dev/kvm`, with tiny guests written here byte by byte.

use std::ffi::OsString;
use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;
use vmm_control::{Event, ExitReport, Hello, Message, Reply, Request, RequestBody};

/// Longest wait for anything that a VMM does, which takes far less.
pub(crate) const DEADLINE: Duration = Duration::from_secs(30);
/// Names the VMM's binary, if it is not the one of this build: inside a virtual host it lies
/// elsewhere.
pub(crate) const VMM_ENV: &str = "MCTL_TEST_VMM";

/// A command that starts the VMM.
pub(crate) fn vmm_command() -> Command {
    let built = || OsString::from(env!("CARGO_BIN_EXE_mctl-vmm"));
    Command::new(std::env::var_os(VMM_ENV).unwrap_or_else(built))
}

/// An ELF kernel of one segment at 1 MiB, which is its code.
pub(crate) fn kernel(code: &[u8]) -> Vec<u8> {
    const ADDRESS: u64 = 0x10_0000;
    let mut file = Vec::new();
    file.extend_from_slice(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0");
    file.extend_from_slice(&[2, 0, 62, 0, 1, 0, 0, 0]);
    file.extend_from_slice(&ADDRESS.to_le_bytes());
    file.extend_from_slice(&64_u64.to_le_bytes());
    file.extend_from_slice(&[0; 12]);
    file.extend_from_slice(&[64, 0, 56, 0, 1, 0, 0, 0, 0, 0, 0, 0]);
    file.extend_from_slice(&[1, 0, 0, 0, 7, 0, 0, 0]);
    let length = code.len() as u64;
    for word in [120, ADDRESS, ADDRESS, length, length, 0x1000] {
        file.extend_from_slice(&word.to_le_bytes());
    }
    file.extend_from_slice(code);
    file
}

/// Prints "hello", then V if the first virtio window shows the magic value, and powers off.
pub(crate) const HELLO: &[u8] = &[
    0xba, 0xf8, 0x03, 0x00, 0x00, // mov $0x3f8,%edx
    0x48, 0x8d, 0x35, 0x28, 0x00, 0x00, 0x00, // lea 0x28(%rip),%rsi
    0x8a, 0x06, // mov (%rsi),%al
    0x84, 0xc0, // test %al,%al
    0x74, 0x06, // je +6
    0xee, // out %al,(%dx)
    0x48, 0xff, 0xc6, // inc %rsi
    0xeb, 0xf4, // jmp -12
    0xbe, 0x00, 0x00, 0x00, 0xd0, // mov $0xd0000000,%esi
    0x8b, 0x06, // mov (%rsi),%eax
    0x3d, 0x76, 0x69, 0x72, 0x74, // cmp $0x74726976,%eax
    0x75, 0x03, // jne +3
    0xb0, 0x56, // mov $'V',%al
    0xee, // out %al,(%dx)
    0xba, 0x00, 0x06, 0x00, 0x00, // mov $0x600,%edx
    0xb0, 0x34, // mov $0x34,%al
    0xee, // out %al,(%dx)
    0xf4, // hlt
    0xeb, 0xfd, // jmp -3
    b'h', b'e', b'l', b'l', b'o', 0,
];

/// Dots that [`COUNT`] prints.
pub(crate) const COUNT_DOTS: usize = 100;

/// Counts in a register and in memory, compares them at each 4096th step, fills one page and prints a dot then,
/// at least 2^26 cycles of the time stamp counter after the last one: some 25 ms, so that a guest on the fastest
/// KVM is still running when a test suspends it. After 100 dots it checks all pages, prints E, or ! as soon as
/// anything differs, and powers off.
pub(crate) const COUNT: &[u8] = &[
    0xba, 0xf8, 0x03, 0x00, 0x00, // mov $0x3f8,%edx
    0x31, 0xdb, // xor %ebx,%ebx
    0x41, 0xbc, 0x1e, 0xab, 0xa1, 0x5c, // mov $0x5ca1ab1e,%r12d
    0x45, 0x31, 0xed, // xor %r13d,%r13d
    0x0f, 0x31, // rdtsc
    0x48, 0xc1, 0xe2, 0x20, // shl $32,%rdx
    0x48, 0x09, 0xd0, // or %rdx,%rax
    0x49, 0x89, 0xc6, // mov %rax,%r14
    0x48, 0xff, 0xc3, // again: inc %rbx
    0x48, 0x89, 0x1c, 0x25, 0x00, 0x00, 0x40, 0x00, // mov %rbx,0x400000
    0xf7, 0xc3, 0xff, 0x0f, 0x00, 0x00, // test $0xfff,%ebx
    0x75, 0xed, // jne again
    0x48, 0x39, 0x1c, 0x25, 0x00, 0x00, 0x40, 0x00, // cmp %rbx,0x400000
    0x75, 0x59, // jne bad
    0x41, 0x81, 0xfc, 0x1e, 0xab, 0xa1, 0x5c, // cmp $0x5ca1ab1e,%r12d
    0x75, 0x50, // jne bad
    0x44, 0x89, 0xe8, // mov %r13d,%eax
    0xc1, 0xe0, 0x0c, // shl $12,%eax
    0x4c, 0x89, 0xa8, 0x00, 0x00, 0x50, 0x00, // mov %r13,0x500000(%rax)
    0x41, 0xff, 0xc5, // inc %r13d
    0x0f, 0x31, // pace: rdtsc
    0x48, 0xc1, 0xe2, 0x20, // shl $32,%rdx
    0x48, 0x09, 0xd0, // or %rdx,%rax
    0x4c, 0x29, 0xf0, // sub %r14,%rax
    0x48, 0x3d, 0x00, 0x00, 0x00, 0x04, // cmp $0x4000000,%rax
    0x72, 0xec, // jb pace
    0x49, 0x01, 0xc6, // add %rax,%r14
    0xba, 0xf8, 0x03, 0x00, 0x00, // mov $0x3f8,%edx
    0xb0, 0x2e, // mov $'.',%al
    0xee, // out %al,(%dx)
    0x41, 0x83, 0xfd, 0x64, // cmp $100,%r13d
    0x72, 0xa5, // jb again
    0x31, 0xc9, // xor %ecx,%ecx
    0x89, 0xc8, // check: mov %ecx,%eax
    0xc1, 0xe0, 0x0c, // shl $12,%eax
    0x48, 0x39, 0x88, 0x00, 0x00, 0x50, 0x00, // cmp %rcx,0x500000(%rax)
    0x75, 0x0b, // jne bad
    0xff, 0xc1, // inc %ecx
    0x44, 0x39, 0xe9, // cmp %r13d,%ecx
    0x72, 0xeb, // jb check
    0xb0, 0x45, // mov $'E',%al
    0xeb, 0x02, // jmp end
    0xb0, 0x21, // bad: mov $'!',%al
    0xba, 0xf8, 0x03, 0x00, 0x00, // end: mov $0x3f8,%edx
    0xee, // out %al,(%dx)
    0xba, 0x00, 0x06, 0x00, 0x00, // mov $0x600,%edx
    0xb0, 0x34, // mov $0x34,%al
    0xee, // out %al,(%dx)
    0xf4, // halt: hlt
    0xeb, 0xfd, // jmp halt
];

/// Reads the time stamp counter, prints a dot at each 2^26th cycle and ! as soon as a reading is below the last.
/// After 100 dots it prints E and powers off.
pub(crate) const WATCH_TSC: &[u8] = &[
    0xbe, 0xf8, 0x03, 0x00, 0x00, // mov $0x3f8,%esi
    0x31, 0xff, // xor %edi,%edi
    0x0f, 0x31, // rdtsc
    0x48, 0xc1, 0xe2, 0x20, // shl $32,%rdx
    0x48, 0x09, 0xd0, // or %rdx,%rax
    0x48, 0x89, 0xc5, // mov %rax,%rbp
    0x49, 0x89, 0xc6, // mov %rax,%r14
    0x0f, 0x31, // again: rdtsc
    0x48, 0xc1, 0xe2, 0x20, // shl $32,%rdx
    0x48, 0x09, 0xd0, // or %rdx,%rax
    0x48, 0x39, 0xe8, // cmp %rbp,%rax
    0x72, 0x21, // jb back
    0x48, 0x89, 0xc5, // mov %rax,%rbp
    0x4c, 0x29, 0xf0, // sub %r14,%rax
    0x48, 0x3d, 0x00, 0x00, 0x00, 0x04, // cmp $0x4000000,%rax
    0x72, 0xe4, // jb again
    0x49, 0x89, 0xee, // mov %rbp,%r14
    0x89, 0xf2, // mov %esi,%edx
    0xb0, 0x2e, // mov $'.',%al
    0xee, // out %al,(%dx)
    0xff, 0xc7, // inc %edi
    0x83, 0xff, 0x64, // cmp $100,%edi
    0x72, 0xd5, // jb again
    0xb0, 0x45, // mov $'E',%al
    0xeb, 0x02, // jmp end
    0xb0, 0x21, // back: mov $'!',%al
    0x89, 0xf2, // end: mov %esi,%edx
    0xee, // out %al,(%dx)
    0xba, 0x00, 0x06, 0x00, 0x00, // mov $0x600,%edx
    0xb0, 0x34, // mov $0x34,%al
    0xee, // out %al,(%dx)
    0xf4, // halt: hlt
    0xeb, 0xfd, // jmp halt
];

/// Prints a dot, then halts for ever: for tests that may take longer than [`COUNT`] runs.
pub(crate) fn dot_and_halt() -> Vec<u8> {
    out_and_halt(0x3f8, b'.')
}

/// Writes a byte to a port, then halts for ever.
pub(crate) fn out_and_halt(port: u16, value: u8) -> Vec<u8> {
    let [low, high] = port.to_le_bytes();
    // mov $port,%edx; mov $value,%al; out %al,(%dx); hlt; jmp -3
    vec![0xba, low, high, 0, 0, 0xb0, value, 0xee, 0xf4, 0xeb, 0xfd]
}

/// An undefined instruction without an interrupt table to catch it.
pub(crate) const TRIPLE_FAULT: &[u8] = &[0x0f, 0x0b];

/// A directory with all files of one machine.
pub(crate) struct Host {
    directory: TempDir,
}

impl Host {
    pub(crate) fn with_guest(code: &[u8]) -> Self {
        Self::with_kernel_file(&kernel(code))
    }

    pub(crate) fn with_kernel_file(bytes: &[u8]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let host = Self { directory };
        std::fs::write(host.path("kernel"), bytes).unwrap();
        std::fs::create_dir(host.path("image")).unwrap();
        host
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub(crate) fn image(&self) -> PathBuf {
        self.path("image")
    }

    pub(crate) fn console(&self) -> String {
        std::fs::read_to_string(self.path("console")).unwrap_or_default()
    }

    pub(crate) fn boot(&self) -> Vmm<'_> {
        self.boot_with("1", "64")
    }

    pub(crate) fn boot_with(&self, vcpus: &str, memory_mib: &str) -> Vmm<'_> {
        let kernel = self.path("kernel");
        let arguments = [
            "boot",
            "--vcpus",
            vcpus,
            "--memory-mib",
            memory_mib,
            "--kernel",
            kernel.to_str().unwrap(),
        ];
        self.spawn(&arguments, &[], 1)
    }

    pub(crate) fn restore(&self, generation: u64, extra: &[&str]) -> Vmm<'_> {
        let image = self.image();
        self.spawn(
            &["restore", "--image", image.to_str().unwrap()],
            extra,
            generation,
        )
    }

    fn spawn(&self, arguments: &[&str], extra: &[&str], generation: u64) -> Vmm<'_> {
        let log = std::fs::File::options()
            .create(true)
            .append(true)
            .open(self.path("vmm.log"))
            .unwrap();
        // One per process, since several may be on one host.
        let exit_file = self.path(&format!("exit-{generation}.json"));
        let _ = std::fs::remove_file(&exit_file);
        let _ = std::fs::remove_file(self.path("control"));
        let child = vmm_command()
            .args(arguments)
            .args([
                "--machine-id",
                "m1",
                "--generation",
                &generation.to_string(),
            ])
            .arg("--control")
            .arg(self.path("control"))
            .arg("--exit-file")
            .arg(&exit_file)
            .arg("--console")
            .arg(self.path("console"))
            .args(extra)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        Vmm {
            host: self,
            child,
            exit_file,
        }
    }
}

/// A running VMM, killed on drop.
pub(crate) struct Vmm<'a> {
    host: &'a Host,
    child: Child,
    exit_file: PathBuf,
}

impl Vmm<'_> {
    /// Connects to the control socket and reads the greeting. Tries again where the VMM closes the
    /// connection, as it does while it has too many.
    pub(crate) fn control(&self) -> Control {
        let path = self.host.path("control");
        self.poll("greet on its control socket", || {
            Control::connect(UnixStream::connect(&path).ok()?)
        })
    }

    /// Waits until the console has `character` that many times.
    pub(crate) fn wait_for_console(&self, character: char, count: usize) {
        self.poll(&format!("print {count} times {character:?}"), || {
            (self.host.console().matches(character).count() >= count).then_some(())
        });
    }

    /// Waits for the end of the process.
    pub(crate) fn wait(mut self) -> (ExitStatus, ExitReport) {
        let end = Instant::now() + DEADLINE;
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            assert!(
                Instant::now() < end,
                "the VMM did not end: {}",
                self.state()
            );
            std::thread::sleep(Duration::from_millis(2));
        };
        let text = std::fs::read(&self.exit_file)
            .unwrap_or_else(|error| panic!("no exit report, {error}: {}", self.state()));
        (status, serde_json::from_slice(&text).unwrap())
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    fn poll<T>(&self, what: &str, mut ready: impl FnMut() -> Option<T>) -> T {
        let end = Instant::now() + DEADLINE;
        loop {
            if let Some(value) = ready() {
                return value;
            }
            assert!(
                Instant::now() < end,
                "the VMM did not {what}: {}",
                self.state()
            );
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    fn state(&self) -> String {
        let log = std::fs::read_to_string(self.host.path("vmm.log")).unwrap_or_default();
        format!("log:\n{log}\nconsole:\n{}", self.host.console())
    }
}

impl Drop for Vmm<'_> {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A client of the control socket.
pub(crate) struct Control {
    pub(crate) stream: UnixStream,
    reader: BufReader<UnixStream>,
    #[allow(dead_code, reason = "a benchmark uses it")]
    pub(crate) hello: Hello,
    pub(crate) events: Vec<Event>,
    next_id: u64,
}

impl Control {
    /// Reads the greeting; none where the connection is closed instead.
    pub(crate) fn connect(stream: UnixStream) -> Option<Self> {
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        let mut reader = BufReader::new(stream.try_clone().unwrap());
        let mut line = String::new();
        match reader.read_line(&mut line) {
            Ok(0) => return None,
            Err(error) if error.kind() == ErrorKind::ConnectionReset => return None,
            result => drop(result.unwrap()),
        }
        let Ok(Message::Hello(hello)) = serde_json::from_str(&line) else {
            panic!("no greeting: {line:?}");
        };
        Some(Self {
            stream,
            reader,
            hello,
            events: Vec::new(),
            next_id: 1,
        })
    }

    /// The next message; none at the end.
    pub(crate) fn message(&mut self) -> Option<Message> {
        let mut line = String::new();
        let length = self.reader.read_line(&mut line).unwrap();
        (length > 0).then(|| serde_json::from_str(&line).unwrap())
    }

    pub(crate) fn send(&mut self, body: RequestBody) -> u64 {
        let id = self.next_id;
        self.next_id += 1;
        let mut line = serde_json::to_vec(&Request { id, body }).unwrap();
        line.push(b'\n');
        self.stream.write_all(&line).unwrap();
        id
    }

    /// Waits for the reply to that request; collects the events that come before it.
    pub(crate) fn reply(&mut self, wanted: u64) -> Reply {
        loop {
            match self.message().expect("the connection stays open") {
                Message::Reply { id, reply } if id == wanted => return reply,
                Message::Event { event, .. } => self.events.push(event),
                Message::Reply { .. } | Message::Hello(_) | Message::Unknown => {}
            }
        }
    }

    pub(crate) fn request(&mut self, body: RequestBody) -> Reply {
        let id = self.send(body);
        self.reply(id)
    }

    pub(crate) fn suspend(&mut self, image: &Path) -> Reply {
        self.request(RequestBody::Suspend {
            image: image.into(),
        })
    }
}

/// Kind and message of a refusal.
pub(crate) fn failure(reply: Reply) -> (String, String) {
    match reply {
        Reply::Failed { kind, message } => (kind, message),
        other => panic!("expected a failure, got {other:?}"),
    }
}
