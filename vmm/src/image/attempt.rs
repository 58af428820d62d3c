//! One attempt to save: takes steps in its directory until it is cancelled.

use std::io;
use std::path::{Path, PathBuf};

use super::directory::ImageDirectory;
use super::request::{SaveError, SaveRequest};
use super::step::Step;

/// Called before each step; an error counts as a failure of that step.
pub(super) type StepObserver<'a> = dyn Fn(Step) -> io::Result<()> + 'a;

/// An attempt to save.
pub(super) struct Attempt<'a> {
    pub(super) request: &'a SaveRequest<'a>,
    pub(super) directory: ImageDirectory,
    pub(super) observer: &'a StepObserver<'a>,
}

impl Attempt<'_> {
    /// Takes one step on the file `name`, unless the save is cancelled. Without a name, the step is on
    /// the directory.
    pub(super) fn step<T>(
        &self,
        step: Step,
        name: &str,
        action: impl FnOnce() -> io::Result<T>,
    ) -> Result<T, SaveError> {
        self.step_on(step, &self.place(name), action)
    }

    /// As [`Self::step`], on any path.
    pub(super) fn step_on<T>(
        &self,
        step: Step,
        path: &Path,
        action: impl FnOnce() -> io::Result<T>,
    ) -> Result<T, SaveError> {
        if self.request.is_cancelled() {
            return Err(SaveError::Cancelled);
        }
        (self.observer)(step)
            .and_then(|()| action())
            .map_err(|source| SaveError::of_step(step, path, source))
    }

    fn place(&self, name: &str) -> PathBuf {
        match name {
            "" => self.directory.path().to_owned(),
            name => self.directory.file(name),
        }
    }
}
