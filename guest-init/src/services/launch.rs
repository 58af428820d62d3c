//! Launches the main process: sets the host name, mounts the machine's disks, writes its files,
//! then starts the process. What happens after that is `processes/main_process.rs`.

use std::rc::Rc;
use std::time::Duration;

use guest_protocol::{ExecSpec, LaunchFile, Refusal, RefusalKind};

use crate::os::console::say;
use crate::os::kernel::Kernel;
use crate::processes::main_process::MainProcess;
use crate::processes::reaper::Reaper;
use crate::services::files;
use crate::services::refusal::refusal;

/// How long a block device may take to appear after its module was loaded.
const DEVICE_TIMEOUT: Duration = Duration::from_secs(2);
const DEVICE_POLL: Duration = Duration::from_millis(10);

/// The fields of [`guest_protocol::Request::Launch`].
pub(crate) struct Launch {
    pub(crate) main: ExecSpec,
    pub(crate) mounts: Vec<(String, String, bool)>,
    pub(crate) files: Vec<LaunchFile>,
    pub(crate) hostname: String,
}

/// Launches the main process; succeeds if this very process is running already.
pub(crate) async fn launch(
    launch: &Launch,
    main: &Rc<MainProcess>,
    kernel: &dyn Kernel,
    reaper: &Reaper,
) -> Result<(), Refusal> {
    if main.is_absent() {
        for (device, ..) in &launch.mounts {
            wait_for_device(device).await;
        }
    }
    // From here on nothing is awaited, so that two launches cannot interleave.
    if main.is_absent() {
        prepare(launch, kernel)?;
    }
    main.launch(&launch.main, reaper)
        .map_err(|error| refusal(error.kind(), &error))
}

fn prepare(launch: &Launch, kernel: &dyn Kernel) -> Result<(), Refusal> {
    let hostname = &launch.hostname;
    if let Err(error) = kernel.set_hostname(hostname) {
        say(format_args!(
            "cannot set the host name {hostname:?}: {error}"
        ));
    }
    for (device, target, read_only) in &launch.mounts {
        kernel
            .mount(device, target, *read_only)
            .map_err(|error| refusal(RefusalKind::Failed, &error))?;
    }
    launch.files.iter().try_for_each(files::write_launch_file)
}

/// Waits for a device node to appear. If it does not, the mount reports the error.
async fn wait_for_device(device: &str) {
    let appears = async {
        while !std::path::Path::new(device).exists() {
            tokio::time::sleep(DEVICE_POLL).await;
        }
    };
    if tokio::time::timeout(DEVICE_TIMEOUT, appears).await.is_err() {
        say(format_args!(
            "device {device} did not appear within {DEVICE_TIMEOUT:?}"
        ));
    }
}
