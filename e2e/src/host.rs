//! A KVM host with a supervisor on it: this machine if its KVM runs Linux guests, otherwise a virtual
//! KVM host. Callers that drive machines on it need not know which.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use client::{Client, Endpoint};
use cycles::Host;
use kvm_host::clock::Clock;
use kvm_host::config::{Config, Run};
use kvm_host::emulator::Emulator;
use kvm_host::host::VirtualHost;
use kvm_host::last_lines;
use kvm_host::pack::{self, HostFile, Parts};
use kvm_host::rerun;

use crate::artifacts::{self, GuestImage};
use crate::kvm_place::KvmPlace;
use crate::{child, output};

/// How long a supervisor may take to answer, the boot of a virtual host included.
const READY_DEADLINE: Duration = Duration::from_secs(120);
/// How long a supervisor may take to end.
const END_DEADLINE: Duration = Duration::from_secs(20);

/// The state directory in a host's folder, beside the supervisor's log.
const STATE: &str = "state";
const LOG: &str = "supervisor.log";
/// Lines of each log that an error shows.
const LOG_LINES: usize = 20;

/// The supervisor and the VMM of a release.
#[derive(Debug, Clone)]
pub struct Programs {
    /// `mctl-supervisor`.
    pub supervisor: PathBuf,
    /// `mctl-vmm`.
    pub vmm: PathBuf,
}

impl Programs {
    /// Those of this release.
    ///
    /// # Errors
    /// If one has not been built.
    pub fn of_this_release() -> anyhow::Result<Self> {
        Ok(Self {
            supervisor: artifacts::binary("mctl-supervisor")?,
            vmm: artifacts::binary("mctl-vmm")?,
        })
    }
}

/// A running supervisor and what it runs on.
#[derive(Debug)]
pub struct KvmHost {
    client: Client,
    log: PathBuf,
    /// The token for TCP, if the API is served there.
    token: Option<String>,
    place: Place,
}

#[derive(Debug)]
enum Place {
    Here(Supervisor),
    Virtual(VirtualHost),
}

/// A supervisor process of this run, killed when dropped.
#[derive(Debug)]
struct Supervisor(Child);

impl Drop for Supervisor {
    fn drop(&mut self) {
        // It may have ended by itself, and then there is nothing to kill.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl KvmHost {
    /// Builds the images and starts a supervisor with them. State and logs are written to `folder`.
    ///
    /// # Errors
    /// If something is missing, or the supervisor does not answer in time.
    pub async fn start(folder: &Path, images: &[GuestImage]) -> anyhow::Result<Self> {
        let place = KvmPlace::of_this_machine();
        output::say(&place.sentence());
        fs::create_dir_all(folder)
            .with_context(|| format!("cannot create {}", folder.display()))?;
        let folder = folder
            .canonicalize()
            .context("cannot resolve the output folder")?;
        let host = if place == KvmPlace::Here {
            let state = empty_state(&folder)?;
            artifacts::build_images(&state.join("images"), images)?;
            let token = new_token();
            let file = folder.join("token");
            fs::write(&file, &token).with_context(|| format!("cannot write {}", file.display()))?;
            let listen = ["--listen", "127.0.0.1:0", "--bootstrap-token-file"].map(OsStr::new);
            let arguments = [&listen[..], &[file.as_os_str()]].concat();
            let host = Self::here(&folder, &Programs::of_this_release()?, &arguments)?;
            Self {
                token: Some(token),
                ..host
            }
        } else {
            Self::in_virtual_host(&folder, images)?
        };
        host.wait_ready().await?;
        Ok(host)
    }

    /// Starts a supervisor on this machine, with images that exist already.
    ///
    /// # Errors
    /// If something is missing, or the supervisor does not answer in time.
    pub async fn start_here(folder: &Path, image_store: &Path) -> anyhow::Result<Self> {
        new_state(folder, image_store)?;
        Self::take_over_here(folder, &Programs::of_this_release()?).await
    }

    /// Starts a supervisor on this machine, whose state is in `folder` already.
    ///
    /// # Errors
    /// If it does not answer in time.
    pub async fn take_over_here(folder: &Path, programs: &Programs) -> anyhow::Result<Self> {
        let host = Self::here(folder, programs, &[])?;
        host.wait_ready().await?;
        Ok(host)
    }

    fn here(folder: &Path, programs: &Programs, arguments: &[&OsStr]) -> anyhow::Result<Self> {
        let state = folder.join(STATE);
        let log = folder.join(LOG);
        // One supervisor after the other may write to it.
        let log_file = File::options().create(true).append(true).open(&log);
        let log_file = log_file.with_context(|| format!("cannot write {}", log.display()))?;
        let child = Command::new(&programs.supervisor)
            .arg("--state-dir")
            .arg(&state)
            .arg("--vmm")
            .arg(&programs.vmm)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(log_file.try_clone().context("cannot share the log")?)
            .stderr(log_file)
            .spawn()
            .context("cannot start mctl-supervisor")?;
        let client = Client::new(Endpoint::Unix(state.join("api.sock")));
        Ok(Self {
            client,
            log,
            token: None,
            place: Place::Here(Supervisor(child)),
        })
    }

    fn in_virtual_host(folder: &Path, images: &[GuestImage]) -> anyhow::Result<Self> {
        let token = new_token();
        let inside_images = format!("{}/images", kvm_host::config::INSIDE_STATE_DIR);
        let host = VirtualHost::start(&Config {
            parts: parts()?,
            memory_mib: rerun::MEMORY_MIB,
            cpus: 1,
            emulator: Emulator::QemuAmd,
            // Whoever calls it is outside.
            clock: Clock::Real,
            files: files_for_guests(folder, images, &[], &inside_images)?,
            storage: None,
            run: Run::Supervisor {
                token: token.clone(),
                port: None,
            },
            log_folder: folder.join("kvm-host"),
        })?;
        let url = host
            .api_url()
            .context("the virtual host has no API address")?;
        let client = Client::new(url.parse::<Endpoint>()?).with_token(Some(token.clone()));
        let log = folder.join("kvm-host/console.log");
        Ok(Self {
            client,
            log,
            token: Some(token),
            place: Place::Virtual(host),
        })
    }

    async fn wait_ready(&self) -> anyhow::Result<()> {
        if let Place::Virtual(host) = &self.place {
            host.wait_ready(READY_DEADLINE)?;
        }
        let deadline = Instant::now() + READY_DEADLINE;
        while let Err(error) = self.client.host().await {
            if Instant::now() >= deadline {
                let log = self.log.display();
                return Err(error)
                    .with_context(|| format!("the supervisor does not answer; see {log}"));
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(())
    }

    /// The supervisor's API.
    pub const fn client(&self) -> &Client {
        &self.client
    }

    /// Address and token for other clients.
    ///
    /// # Errors
    /// If the API is not served over TCP.
    pub async fn tcp_access(&self) -> anyhow::Result<(String, String)> {
        let address = match &self.place {
            Place::Virtual(host) => host.api_url(),
            Place::Here(_) => self.client.host().await?.address,
        };
        address
            .zip(self.token.clone())
            .context("the supervisor is not served over TCP")
    }

    /// How the logs of the supervisor and of its machines end; of a virtual host, how its console does.
    pub fn ends_of_logs(&self) -> String {
        let machines = self.log.with_file_name(STATE).join("machines");
        let mut logs = vec![self.log.clone()];
        for machine in fs::read_dir(machines).into_iter().flatten().flatten() {
            logs.extend(["vmm.log", "log.ndjson"].map(|name| machine.path().join(name)));
        }
        let ends: Vec<String> = logs
            .iter()
            .map(|log| {
                let last = last_lines::of_file(log, LOG_LINES);
                format!("{} ends with:\n{last}", log.display())
            })
            .collect();
        ends.join("\n")
    }

    /// The host as reports describe it.
    ///
    /// # Errors
    /// If the supervisor does not answer.
    pub async fn describe(&self) -> anyhow::Result<Host> {
        let info = self
            .client
            .host()
            .await
            .context("cannot ask the supervisor about its host")?;
        Ok(Host::from(info))
    }

    /// Ends the supervisor, and the virtual host if it ran in one.
    ///
    /// # Errors
    /// If it does not end in time.
    pub fn stop(self) -> anyhow::Result<()> {
        match self.place {
            Place::Virtual(host) => host.shutdown()?,
            Place::Here(mut supervisor) => {
                let pid = rustix::process::Pid::from_child(&supervisor.0);
                rustix::process::kill_process(pid, rustix::process::Signal::TERM)
                    .context("cannot end the supervisor")?;
                let ended = child::wait(&mut supervisor.0, END_DEADLINE)?;
                ensure!(
                    ended.is_some(),
                    "the supervisor did not end within {} s",
                    END_DEADLINE.as_secs()
                );
            }
        }
        Ok(())
    }
}

fn new_token() -> String {
    format!("{:032x}", rand::random::<u128>())
}

/// Makes a state directory in `folder`, for supervisors that are started there, with the images of a store.
///
/// # Errors
/// If it cannot be made.
pub fn new_state(folder: &Path, image_store: &Path) -> anyhow::Result<()> {
    link_images(image_store, &empty_state(folder)?)
}

/// An empty state directory, without the machines and the log of an earlier run that was killed.
fn empty_state(folder: &Path) -> anyhow::Result<PathBuf> {
    let state = folder.join(STATE);
    let log = folder.join(LOG);
    if log.exists() {
        fs::remove_file(&log).context("cannot remove the log of an earlier run")?;
    }
    if state.exists() {
        fs::remove_dir_all(&state).context("cannot remove the state of an earlier run")?;
    }
    fs::create_dir_all(&state).with_context(|| format!("cannot create {}", state.display()))?;
    Ok(state)
}

/// Makes the images of `store` those of the state directory. The store may be named relative to the
/// working directory, which a link is not.
fn link_images(store: &Path, state: &Path) -> anyhow::Result<()> {
    let failed = || format!("cannot use the image store {}", store.display());
    let store = store.canonicalize().with_context(failed)?;
    std::os::unix::fs::symlink(store, state.join("images")).with_context(failed)
}

/// The parts that every virtual host has.
pub fn parts() -> anyhow::Result<Parts> {
    Ok(Parts::from_user_cache(&pack::find_init()?, &output::say)?)
}

/// The programs that drive guests, and guest images, as files of a virtual host. The images are built
/// if need be, and are below `inside_images` there, beside `others`, which are in the same store already.
///
/// # Errors
/// If a program has not been built, or an image cannot be.
pub fn files_for_guests(
    folder: &Path,
    images: &[GuestImage],
    others: &[&str],
    inside_images: &str,
) -> anyhow::Result<Vec<HostFile>> {
    let mut files = Vec::new();
    for name in ["mctl", "mctl-supervisor", "mctl-vmm"] {
        let inside = format!("{}/{name}", rerun::PROGRAMS);
        files.push(HostFile::program(artifacts::binary(name)?, inside));
    }
    let store = artifacts::image_store(folder);
    artifacts::build_images(&store, images)?;
    let built = images.iter().map(|image| image.name());
    for image in built.chain(others.iter().copied()) {
        let source = store.join(image);
        for name in ["image.json", "kernel", "initramfs"] {
            let target = format!("{inside_images}/{image}/{name}");
            files.push(HostFile::data(source.join(name), target));
        }
    }
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_store_with_a_relative_path_is_found_from_the_state_directory() {
        let state = tempfile::tempdir().unwrap();
        // Tests run in the folder of their crate.
        link_images(Path::new("src"), state.path()).unwrap();
        assert!(state.path().join("images/host.rs").is_file());
        let missing = link_images(Path::new("nowhere"), state.path()).unwrap_err();
        assert!(missing.to_string().contains("nowhere"), "{missing}");
    }
}
