//! Programs beside what is tested.

use std::fs::File;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};

use anyhow::Result;

/// A program that runs until dropped.
#[derive(Debug)]
pub struct Background(Child);

impl Background {
    /// Starts `command` with its output thrown away.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(command: &mut Command) -> Result<Self> {
        Ok(Self(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn()?))
    }

    /// Starts `command` with its output appended to `log`.
    ///
    /// # Errors
    /// When it cannot be started, or the log not written.
    pub fn logged(command: &mut Command, log: &Path) -> Result<Self> {
        let file = File::options().create(true).append(true).open(log)?;
        Ok(Self(command.stdout(file.try_clone()?).stderr(file).spawn()?))
    }

    /// Its process.
    pub fn process(&self) -> u32 {
        self.0.id()
    }

    /// Waits until it ends by itself.
    ///
    /// # Errors
    /// When the kernel does not say.
    pub fn wait(&mut self) -> Result<ExitStatus> {
        Ok(self.0.wait()?)
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
