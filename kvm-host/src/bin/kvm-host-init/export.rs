//! Sends the files of a folder out through the channel.
//!
//! Only regular files are sent; links, devices and sockets have no meaning outside.

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use anyhow::Context;
use kvm_host::protocol::Frame;

use crate::channel::Channel;
use crate::console;

const CHUNK_BYTES: usize = 256 << 10;

/// Sends every file below `folder`, named relative to it. A folder that does not exist is empty.
pub(crate) fn send_folder(channel: &Channel, folder: &Path) -> anyhow::Result<()> {
    if !folder.exists() {
        console::print(&format!(
            "{} does not exist, so nothing is exported",
            folder.display()
        ));
        return Ok(());
    }
    send_below(channel, folder, folder)
}

fn send_below(channel: &Channel, root: &Path, folder: &Path) -> anyhow::Result<()> {
    let unreadable = || format!("cannot read {}", folder.display());
    for entry in fs::read_dir(folder).with_context(unreadable)? {
        let entry = entry.with_context(unreadable)?;
        let kind = entry.file_type().with_context(unreadable)?;
        let path = entry.path();
        if kind.is_dir() {
            send_below(channel, root, &path)?;
        } else if kind.is_file() {
            send_file(channel, root, &path)
                .with_context(|| format!("cannot export {}", path.display()))?;
        }
    }
    Ok(())
}

fn send_file(channel: &Channel, root: &Path, path: &Path) -> anyhow::Result<()> {
    let name = path
        .strip_prefix(root)?
        .to_str()
        .context("its name is not UTF-8")?;
    let mut file = File::open(path)?;
    let permissions = file.metadata()?.permissions().mode() & 0o777;
    channel.send(&Frame::File {
        path: name.to_owned(),
        permissions,
    });
    let mut chunk = vec![0; CHUNK_BYTES];
    loop {
        match file.read(&mut chunk)? {
            0 => return Ok(()),
            bytes => channel.send(&Frame::FileData(chunk[..bytes].to_vec())),
        }
    }
}
