//! `mctl cp`: files into a guest and out of it.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use anyhow::{Context, ensure};

use crate::bytes;
use crate::stage::{Stage, config};

const SIZE: usize = 5_000_001;

pub(crate) async fn mctl_cp_preserves_content_and_mode_in_both_directions(
    stage: &mut Stage,
) -> anyhow::Result<()> {
    let machine = stage.boot(config(&["/bin/sleep", "600"])).await?;
    let local = |name: &str| stage.scratch().join(name).display().to_string();
    let inside = |path: &str| format!("{}:{path}", machine.id);
    let content = bytes::pattern(SIZE, 1);
    let source = local("source.bin");
    fs::write(&source, &content)?;
    fs::set_permissions(&source, fs::Permissions::from_mode(0o750))?;

    stage
        .mctl(&["cp", &source, &inside("/root/")])
        .await?
        .success_output()?;
    let seen = stage
        .shell(&machine, "stat -c '%s %a' /root/source.bin")
        .await?;
    ensure!(seen.stdout == format!("{SIZE} 750\n"), "{seen:?}");
    let back = local("back.bin");
    stage
        .mctl(&["cp", &inside("/root/source.bin"), &back])
        .await?
        .success_output()?;
    bytes::ensure_same(&fs::read(&back)?, &content)?;
    let mode = fs::metadata(&back)?.permissions().mode() & 0o777;
    ensure!(mode == 0o750, "{mode:o}");

    // An existing file is replaced by an empty one; a file of procfs has no size in advance.
    fs::write(&source, "")?;
    stage
        .mctl(&["cp", &source, &inside("/root/source.bin")])
        .await?
        .success_output()?;
    let seen = stage.shell(&machine, "stat -c %s /root/source.bin").await?;
    ensure!(seen.stdout == "0\n", "{seen:?}");
    stage
        .mctl(&["cp", &inside("/proc/version"), &back])
        .await?
        .success_output()?;
    let version = fs::read_to_string(&back)?;
    ensure!(version.starts_with("Linux version"), "{version:?}");
    Ok(())
}

pub(crate) async fn a_failed_copy_says_why_and_leaves_nothing_behind(
    stage: &mut Stage,
) -> anyhow::Result<()> {
    let machine = stage.boot(config(&["/bin/sleep", "600"])).await?;
    let folder = stage.scratch().join("copies");
    fs::create_dir(&folder)?;
    let there = folder.join("there").display().to_string();
    let missing = folder.join("missing").display().to_string();
    fs::write(&there, "something")?;
    let inside = |path: &str| format!("{}:{path}", machine.id);
    let absent = inside("/root/absent");
    let cases: [(&str, &str, i32, &str); 4] = [
        (&missing, &absent, 3, &missing),
        (&absent, &missing, 3, "/root/absent"),
        (&inside("/root"), &missing, 2, "no regular file"),
        (&there, &missing, 2, "MACHINE:/path"),
    ];
    for (from, to, code, named) in cases {
        let output = stage.mctl(&["cp", from, to]).await?;
        let error = output
            .error_output(code)
            .with_context(|| format!("cp {from} {to}"))?;
        ensure!(error.contains(named), "cp {from} {to}: {error}");
    }
    let left: Vec<_> = fs::read_dir(&folder)?.flatten().collect();
    ensure!(left.len() == 1, "{left:?}");
    let left = stage.shell(&machine, "ls -A /root").await?;
    ensure!(left.stdout.is_empty(), "{left:?}");
    Ok(())
}
