//! A supervisor for one test, and the operations that tests perform on its machines.
//!
//! Tests only use the public API and `mctl`. The stage also knows the supervisor's files, because
//! some promises are about damage to them.

use std::fs::{self, File};
use std::future::Future;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, bail, ensure};
use client::{Client, Endpoint, LogFilter};
use cycles::recorded_timing;
use e2e::{artifacts, counter};
use libtest_mimic::Failed;
use machine_api::{
    CreateMachine, ExecRequest, ExecResponse, Guest, Init, Machine, MachineConfig, MachineState,
    Operation, Restart, RestartPolicy, Timing,
};
use rustix::process::{Pid, Signal, kill_process};
use tokio::io::AsyncWriteExt;
use tokio::time::timeout;

use crate::failure_details;

/// The variable with the folder of guest images, if they are not built for this run.
pub(crate) const IMAGES_ENV: &str = "MCTL_TEST_IMAGES";
/// Longest that any single step may take. In real time it is this machine's clock, and a guest with
/// eight vCPUs is slow on one emulated processor, above all if the machine is busy.
pub(crate) const DEADLINE: Duration = Duration::from_secs(600);
/// Longest that a command in a guest may take.
const COMMAND_SECONDS: u32 = 600;
/// Pause between two polls.
const POLL_PAUSE: Duration = Duration::from_millis(50);

/// A running test.
pub(crate) type Test<'a> = Pin<Box<dyn Future<Output = anyhow::Result<()>> + 'a>>;

/// A supervisor and its state directory.
#[derive(Debug)]
pub(crate) struct Stage {
    folder: tempfile::TempDir,
    supervisor: Option<Child>,
    /// The supervisor's API.
    pub(crate) client: Client,
}

impl Stage {
    /// Runs a test on a new stage. If it fails, the error has the logs of the supervisor and the guests.
    pub(crate) fn run(
        name: &str,
        test: impl for<'a> FnOnce(&'a mut Stage) -> Test<'a>,
    ) -> Result<(), Failed> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let result = runtime.block_on(async {
            let mut stage = Self::new().await?;
            let result = test(&mut stage).await;
            match result {
                Ok(()) => Ok(()),
                Err(error) => {
                    let log = stage.supervisor_log();
                    let details =
                        failure_details::collect(&stage.client, &log, &stage.state()).await;
                    Err(anyhow!("{error:#}\n{details}"))
                }
            }
        });
        result.map_err(|error: anyhow::Error| Failed::from(format!("{name}: {error:#}")))
    }

    async fn new() -> anyhow::Result<Self> {
        let folder = tempfile::Builder::new().prefix("mctl-").tempdir()?;
        let state = folder.path().join("state");
        fs::create_dir(&state)?;
        let images = match std::env::var_os(IMAGES_ENV) {
            Some(images) => PathBuf::from(images),
            None => {
                let images = artifacts::binaries()?.join("promises/images");
                let all = [artifacts::GuestImage::Default, artifacts::GuestImage::Leaky];
                artifacts::build_images(&images, &all)?;
                images
            }
        };
        std::os::unix::fs::symlink(images, state.join("images"))?;
        let client = Client::new(Endpoint::Unix(state.join("api.sock")));
        let mut stage = Self {
            folder,
            supervisor: None,
            client,
        };
        stage.start_supervisor().await?;
        Ok(stage)
    }

    /// Starts a supervisor on the existing state, and waits until it answers.
    pub(crate) async fn start_supervisor(&mut self) -> anyhow::Result<()> {
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.supervisor_log())?;
        let child = Command::new(artifacts::binary("mctl-supervisor")?)
            .arg("--state-dir")
            .arg(self.state())
            // Eight vCPUs boot for minutes if three such hosts share this machine's processors.
            .args(["--start-timeout", &format!("{}s", DEADLINE.as_secs())])
            .env("MCTL_LOG", "info,mctl_supervisor=debug")
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("cannot start the supervisor")?;
        self.supervisor = Some(child);
        let client = self.client.clone();
        until("the supervisor to answer", || async {
            Ok(client.host().await.ok())
        })
        .await?;
        Ok(())
    }

    /// Kills the supervisor with SIGKILL. Its machines keep running.
    pub(crate) fn kill_supervisor(&mut self) -> anyhow::Result<()> {
        let mut child = self.supervisor.take().context("no supervisor runs")?;
        child.kill()?;
        child.wait()?;
        Ok(())
    }

    fn supervisor_log(&self) -> PathBuf {
        self.folder.path().join("supervisor.log")
    }

    /// The state directory.
    pub(crate) fn state(&self) -> PathBuf {
        self.folder.path().join("state")
    }

    /// A machine's directory.
    pub(crate) fn machine_folder(&self, machine: &Machine) -> PathBuf {
        self.state().join("machines").join(&machine.id)
    }

    /// A folder for a test's own files.
    pub(crate) fn scratch(&self) -> &Path {
        self.folder.path()
    }

    /// Runs `mctl` against this stage, without input.
    pub(crate) async fn mctl(&self, arguments: &[&str]) -> anyhow::Result<CommandOutput> {
        self.mctl_with_input(arguments, &[]).await
    }

    /// Runs `mctl` with `input` as its standard input.
    pub(crate) async fn mctl_with_input(
        &self,
        arguments: &[&str],
        input: &[u8],
    ) -> anyhow::Result<CommandOutput> {
        let mut command = tokio::process::Command::from(self.mctl_command(&[], arguments)?);
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .context("cannot run mctl")?;
        let mut stdin = child.stdin.take().context("mctl has no input")?;
        let writing = async move {
            // A program may end before it has read its input.
            let _ = stdin.write_all(input).await;
        };
        let both = async { tokio::join!(writing, child.wait_with_output()).1 };
        let output = timeout(DEADLINE, both)
            .await
            .with_context(|| format!("mctl {arguments:?} did not end"))??;
        Ok(CommandOutput {
            status: output.status,
            stdout: output.stdout,
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        })
    }

    /// `mctl` against this stage, wrapped in the command `wrapper` if that is not empty.
    pub(crate) fn mctl_command(
        &self,
        wrapper: &[&str],
        arguments: &[&str],
    ) -> anyhow::Result<Command> {
        let mctl = artifacts::binary("mctl")?;
        let mut words = wrapper.iter().map(AsRef::as_ref).chain([mctl.as_os_str()]);
        let mut command = Command::new(words.next().context("no program")?);
        command
            .args(words)
            .args(arguments)
            .env("MCTL_HOST", format!("unix://{}", self.api().display()))
            .env("HOME", self.scratch());
        Ok(command)
    }

    /// The socket of the API.
    pub(crate) fn api(&self) -> PathBuf {
        self.state().join("api.sock")
    }

    /// Kills the VMM of a machine with SIGKILL, and returns the machine as it was.
    pub(crate) async fn kill_vmm(&self, machine: &Machine) -> anyhow::Result<Machine> {
        let before = self.client.machine(&machine.id).await?;
        let pid = i32::try_from(before.vmm_pid.context("no VMM runs")?)?;
        kill_process(Pid::from_raw(pid).context("no pid")?, Signal::KILL)?;
        Ok(before)
    }

    /// The guest's boot id, which changes with each boot.
    pub(crate) async fn boot_id(&self, machine: &Machine) -> anyhow::Result<String> {
        let answer = self.shell(machine, "cat /proc/sys/kernel/random/boot_id");
        Ok(answer.await?.stdout)
    }

    /// Creates a machine and waits until it is started.
    pub(crate) async fn boot(&self, config: MachineConfig) -> anyhow::Result<Machine> {
        let request = CreateMachine {
            config,
            ..CreateMachine::default()
        };
        let machine = self.client.create(&request).await?;
        Ok(self
            .client
            .reach(&machine.id, MachineState::Started, DEADLINE)
            .await?)
    }

    /// Boots a machine whose main process counts.
    pub(crate) async fn boot_counter(&self) -> anyhow::Result<Machine> {
        let machine = self.boot(config(&counter::command())).await?;
        self.wait_for_count_beyond(&machine, 0).await?;
        Ok(machine)
    }

    /// Runs a shell script in the guest.
    pub(crate) async fn shell(
        &self,
        machine: &Machine,
        script: &str,
    ) -> anyhow::Result<ExecResponse> {
        let request = ExecRequest {
            command: vec!["/bin/sh".to_owned(), "-c".to_owned(), script.to_owned()],
            timeout: Some(COMMAND_SECONDS),
            ..ExecRequest::default()
        };
        Ok(self.client.exec(&machine.id, &request).await?)
    }

    /// The guest's count.
    pub(crate) async fn count(&self, machine: &Machine) -> anyhow::Result<u64> {
        let answer = self
            .shell(machine, &format!("cat {}", counter::FILE))
            .await?;
        Ok(counter::parse(answer.stdout.as_bytes()).unwrap_or(0))
    }

    /// Waits until the guest's count is higher than `before`, and returns it.
    pub(crate) async fn wait_for_count_beyond(
        &self,
        machine: &Machine,
        before: u64,
    ) -> anyhow::Result<u64> {
        until("the guest's counter to advance", || async {
            let count = self.count(machine).await?;
            Ok((count > before).then_some(count))
        })
        .await
    }

    /// Suspends and waits until it is suspended.
    pub(crate) async fn suspend(&self, machine: &Machine) -> anyhow::Result<Timing> {
        self.client.suspend(&machine.id).await?;
        self.client
            .reach(&machine.id, MachineState::Suspended, DEADLINE)
            .await?;
        self.newest_timing(machine, Operation::Suspend).await
    }

    /// Resumes and waits until it is started.
    pub(crate) async fn resume(&self, machine: &Machine) -> anyhow::Result<Timing> {
        self.client.start(&machine.id).await?;
        self.client
            .reach(&machine.id, MachineState::Started, DEADLINE)
            .await?;
        self.newest_timing(machine, Operation::Resume).await
    }

    /// The timing of an operation at the machine's present generation, as soon as it is recorded.
    pub(crate) async fn newest_timing(
        &self,
        machine: &Machine,
        operation: Operation,
    ) -> anyhow::Result<Timing> {
        let generation = self.client.machine(&machine.id).await?.generation;
        Ok(recorded_timing(&self.client, &machine.id, operation, generation, DEADLINE).await?)
    }

    /// All lines of a machine's log.
    pub(crate) async fn log_lines(&self, machine: &Machine) -> anyhow::Result<Vec<String>> {
        let mut lines = self.client.logs(&machine.id, &LogFilter::default()).await?;
        let mut texts = Vec::new();
        while let Some(line) = lines.next().await? {
            texts.push(line.text);
        }
        Ok(texts)
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        // VMMs outlive their supervisor by design, so they are found by their command line.
        if let Some(child) = &mut self.supervisor {
            let _ = child.kill();
            let _ = child.wait();
        }
        let state = self.state().display().to_string();
        for pid in processes_naming(&state) {
            let _ = kill_process(pid, Signal::KILL);
        }
    }
}

/// Processes whose command line contains `text`.
pub(crate) fn processes_naming(text: &str) -> Vec<Pid> {
    let Ok(entries) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_string_lossy().parse().ok())
        .filter(|pid| {
            let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            String::from_utf8_lossy(&line).contains(text)
        })
        .filter_map(Pid::from_raw)
        .collect()
}

/// A small machine with `command` as its main process, never restarted.
pub(crate) fn config(command: &[impl AsRef<str>]) -> MachineConfig {
    MachineConfig {
        image: "default".to_owned(),
        guest: Some(Guest {
            memory_mb: 128,
            ..Guest::default()
        }),
        init: Some(Init {
            exec: command
                .iter()
                .map(|word| word.as_ref().to_owned())
                .collect(),
            ..Init::default()
        }),
        restart: Some(Restart {
            policy: RestartPolicy::No,
            max_retries: None,
        }),
        ..MachineConfig::default()
    }
}

/// Polls until there is a value, for at most [`DEADLINE`].
pub(crate) async fn until<T, F>(what: &str, mut poll: impl FnMut() -> F) -> anyhow::Result<T>
where
    F: Future<Output = anyhow::Result<Option<T>>>,
{
    let begun = Instant::now();
    loop {
        if let Some(value) = poll().await? {
            return Ok(value);
        }
        if begun.elapsed() >= DEADLINE {
            bail!("waited {} s for {what}", DEADLINE.as_secs());
        }
        tokio::time::sleep(POLL_PAUSE).await;
    }
}

/// How a command ended, and what it printed.
#[derive(Debug)]
pub(crate) struct CommandOutput {
    status: ExitStatus,
    /// Bytes, because a command in a guest may print any.
    pub(crate) stdout: Vec<u8>,
    /// As text.
    pub(crate) stderr: String,
}

impl CommandOutput {
    /// The exit code; none if a signal ended it.
    pub(crate) fn code(&self) -> Option<i32> {
        self.status.code()
    }

    /// Standard output as text.
    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    /// The output of a command that must have succeeded.
    pub(crate) fn success_output(&self) -> anyhow::Result<String> {
        ensure!(self.status.success(), "{}: {}", self.status, self.stderr);
        Ok(self.text())
    }

    /// The error output of a command that must have ended with `code`.
    pub(crate) fn error_output(&self, code: i32) -> anyhow::Result<&str> {
        let text = self.text();
        ensure!(
            self.code() == Some(code),
            "{} instead of {code}: {text}{}",
            self.status,
            self.stderr
        );
        Ok(&self.stderr)
    }
}
