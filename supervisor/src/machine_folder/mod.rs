//! What a machine's folder says by itself, so that the machine outlives the database: who it is, and
//! how far it came.

mod contents;
mod image;
mod machine_file;
mod origin;
mod set_aside;

pub(crate) use contents::Contents;
pub(crate) use image::{image_generation, remove_folder, remove_image};
pub(crate) use machine_file::{MachineFile, MachineFileError};
pub(crate) use set_aside::{images_set_aside, remove_set_aside, set_image_aside};
