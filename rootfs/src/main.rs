//! `mctl-rootfs`: the command line of the image store. It only passes arguments to the library and
//! shows the progress.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, bail};
use clap::{Args, Parser, Subcommand};
use rootfs::cache::Cache;
use rootfs::image::{self, Inputs, Outcome};
use rootfs::initramfs::Busybox;
use rootfs::kernel::Freshness;
use rootfs::sources::{BUSYBOX_ENV, KERNEL_ENV, MODULES_ENV, Sources};

mod output;

use output::Output;

/// Build guest images: kernel, modules, init and a shell
#[derive(Debug, Parser)]
#[command(name = "mctl-rootfs", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Build an image if it is not up to date
    Build(Build),
    /// List the images
    List(List),
}

#[derive(Debug, Args)]
struct Folder {
    /// Folder of the images, one folder each [default: the supervisor's]
    #[arg(long, value_name = "DIR")]
    output: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct Build {
    /// Name of the image
    #[arg(long, default_value = "default")]
    name: String,
    /// Static binary to start as PID 1 [default: `guest-init` beside this program]
    #[arg(long, value_name = "PATH")]
    init: Option<PathBuf>,
    /// Kernel image (bzImage or ELF) instead of Debian's
    #[arg(long, value_name = "PATH", env = KERNEL_ENV)]
    kernel: Option<PathBuf>,
    /// Modules of that kernel, a folder like /lib/modules/<version>
    #[arg(long, value_name = "DIR", env = MODULES_ENV)]
    modules: Option<PathBuf>,
    /// Static busybox instead of Debian's
    #[arg(long, value_name = "PATH", env = BUSYBOX_ENV)]
    busybox: Option<PathBuf>,
    /// Check for newer Debian packages than those in the cache
    #[arg(long)]
    refresh: bool,
    /// Folder for packages and finished images [default: ~/.cache/mctl]
    #[arg(long, value_name = "DIR", env = "MCTL_CACHE")]
    cache: Option<PathBuf>,
    #[command(flatten)]
    folder: Folder,
}

#[derive(Debug, Args)]
struct List {
    #[command(flatten)]
    folder: Folder,
}

fn main() -> ExitCode {
    let output = Output::new();
    let result = match Cli::parse().command {
        Command::Build(args) => build(&args, &output),
        Command::List(args) => list(&args, &output),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            output.error(&error);
            ExitCode::FAILURE
        }
    }
}

fn build(args: &Build, output: &Output) -> anyhow::Result<()> {
    let folder = images_folder(&args.folder)?;
    let cache = match &args.cache {
        Some(path) => Cache::open(path)?,
        None => Cache::of_user()?,
    };
    let init = match &args.init {
        Some(path) => path.clone(),
        None => beside_this_program("guest-init")?,
    };
    let freshness = if args.refresh {
        Freshness::Newest
    } else {
        Freshness::Cached
    };
    let report = |step: &str| output.step(step);
    let sources = Sources::new(
        args.kernel.clone(),
        args.modules.clone(),
        args.busybox.clone(),
    )?;
    let kernel = sources.kernel(&cache, freshness, &report)?;
    let busybox = sources.busybox(&cache, freshness, &report)?;
    let inputs = Inputs {
        name: args.name.clone(),
        kernel,
        busybox: Busybox::open(&busybox)?,
        init,
    };
    let (image, outcome) = image::build(&cache, &inputs, &folder, &report)?;
    let outcome = match outcome {
        Outcome::UpToDate => "up to date",
        Outcome::Placed => "placed from the cache",
        Outcome::Built => "built",
    };
    let path = folder.join(&image.name);
    output.done(&format!(
        "image {} ({}) is {outcome}: {}",
        image.name,
        image.kernel_version,
        path.display()
    ));
    if args.folder.json {
        output.json(&image)?;
    }
    Ok(())
}

fn list(args: &List, output: &Output) -> anyhow::Result<()> {
    let images = image::list(&images_folder(&args.folder)?)?;
    if args.folder.json {
        return output.json(&images);
    }
    output.table(&images);
    Ok(())
}

/// The supervisor's state folder is `/var/lib/mctl` for root, else below the user's.
fn images_folder(folder: &Folder) -> anyhow::Result<PathBuf> {
    if let Some(path) = &folder.output {
        return Ok(path.clone());
    }
    if rustix::process::geteuid().is_root() {
        return Ok(PathBuf::from("/var/lib/mctl/images"));
    }
    let state = std::env::var_os("XDG_STATE_HOME")
        .filter(|path| !path.is_empty())
        .map(PathBuf::from)
        .or_else(|| std::env::home_dir().map(|home| home.join(".local/state")));
    match state {
        Some(state) => Ok(state.join("mctl/images")),
        None => bail!("no folder for images: set HOME, or give one with --output"),
    }
}

fn beside_this_program(name: &str) -> anyhow::Result<PathBuf> {
    let path = std::env::current_exe()
        .context("cannot find the path of this program")?
        .with_file_name(name);
    if !path.is_file() {
        bail!(
            "{} does not exist (build it, or give another with --init)",
            path.display()
        );
    }
    Ok(path)
}
