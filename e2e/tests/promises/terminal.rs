//! `mctl exec -it`: a program in a guest uses the user's terminal.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::process::Child;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, ensure};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{LocalModes, Winsize, tcgetattr, tcsetwinsize};

use crate::stage::{Stage, config, until};

/// Ctrl-C, as a keyboard sends it.
const CTRL_C: &[u8] = b"\x03";

/// Prints the size of its terminal, the line it reads, and each later change.
const PROGRAM: &str = "stty size; \
    read line; echo got-$line; \
    until [ \"$(stty size)\" = '40 120' ]; do sleep 0.1; done; echo resized; \
    trap 'echo interrupted; exit 4' INT; echo trapped; \
    while :; do sleep 0.1; done";

pub(crate) async fn mctl_exec_passes_the_terminals_size_and_keys_and_the_exit_code(
    stage: &mut Stage,
) -> anyhow::Result<()> {
    let machine = stage.boot(config(&["/bin/sleep", "600"])).await?;
    let arguments = ["exec", "-it", &machine.id, "--", "sh", "-c", PROGRAM];
    let mut terminal = Terminal::open(97, 31)?;
    let before = tcgetattr(&terminal.device)?.local_modes;
    terminal.run(stage, &arguments)?;
    terminal.wait_for("31 97").await?;
    terminal.type_in(b"typed\n")?;
    terminal.wait_for("got-typed").await?;
    terminal.resize(120, 40)?;
    terminal.wait_for("resized").await?;
    terminal.wait_for("trapped").await?;
    terminal.type_in(CTRL_C)?;
    terminal.wait_for("interrupted").await?;
    let code = terminal.exit_code().await?;
    ensure!(code == Some(4), "exit code {code:?}");

    let after = tcgetattr(&terminal.device)?.local_modes;
    ensure!(
        after == before && after.contains(LocalModes::ICANON | LocalModes::ECHO),
        "the terminal was left in {after:?}"
    );
    let left = stage.shell(&machine, "ps | grep -c '[s]tty size'").await?;
    ensure!(left.stdout.trim() == "0", "{left:?}");
    Ok(())
}

/// A pseudo-terminal, and the program on it.
struct Terminal {
    /// The side of keyboard and screen.
    keyboard: File,
    /// The side of programs.
    device: File,
    screen: Arc<Mutex<Vec<u8>>>,
    child: Option<Child>,
}

impl Terminal {
    fn open(columns: u16, rows: u16) -> anyhow::Result<Self> {
        let keyboard = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
        grantpt(&keyboard)?;
        unlockpt(&keyboard)?;
        let name = ptsname(&keyboard, Vec::new())?;
        let name = OsStr::from_bytes(name.to_bytes());
        let device = rustix::fs::open(
            name,
            rustix::fs::OFlags::RDWR | rustix::fs::OFlags::NOCTTY | rustix::fs::OFlags::CLOEXEC,
            rustix::fs::Mode::empty(),
        )?;
        let terminal = Self {
            keyboard: keyboard.into(),
            device: device.into(),
            screen: Arc::default(),
            child: None,
        };
        terminal.resize(columns, rows)?;
        let mut output = terminal.keyboard.try_clone()?;
        let screen = Arc::clone(&terminal.screen);
        // The thread ends when the last descriptor of the device is closed.
        std::thread::spawn(move || {
            let mut piece = [0; 4096];
            while let Ok(length @ 1..) = output.read(&mut piece) {
                let mut screen = screen.lock().unwrap_or_else(PoisonError::into_inner);
                screen.extend_from_slice(&piece[..length]);
            }
        });
        Ok(terminal)
    }

    /// Runs `mctl` as a shell would: in a session with this terminal.
    fn run(&mut self, stage: &Stage, arguments: &[&str]) -> anyhow::Result<()> {
        let child = stage
            .mctl_command(&["setsid", "-c"], arguments)?
            .stdin(self.device.try_clone()?)
            .stdout(self.device.try_clone()?)
            .stderr(self.device.try_clone()?)
            .spawn()
            .context("cannot run setsid")?;
        self.child = Some(child);
        Ok(())
    }

    fn resize(&self, columns: u16, rows: u16) -> anyhow::Result<()> {
        let size = Winsize {
            ws_col: columns,
            ws_row: rows,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        Ok(tcsetwinsize(&self.keyboard, size)?)
    }

    fn type_in(&mut self, keys: &[u8]) -> anyhow::Result<()> {
        Ok(self.keyboard.write_all(keys)?)
    }

    fn text(&self) -> String {
        let screen = self.screen.lock().unwrap_or_else(PoisonError::into_inner);
        String::from_utf8_lossy(&screen).into_owned()
    }

    async fn wait_for(&self, wanted: &str) -> anyhow::Result<()> {
        let shown = until("the text on the screen", || async {
            Ok(self.text().contains(wanted).then_some(()))
        });
        let shown = shown.await;
        shown.with_context(|| format!("{wanted:?} is not in {:?}", self.text()))
    }

    async fn exit_code(&mut self) -> anyhow::Result<Option<i32>> {
        let mut child = self.child.take().context("nothing runs")?;
        let status = until("mctl to end", || {
            let status = child.try_wait();
            async { Ok(status?) }
        })
        .await?;
        Ok(status.code())
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            // Only reached after a failure. It may have ended meanwhile.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
