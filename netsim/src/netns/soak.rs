//! soak
use anyhow::Result;
use super::Lab;
/// run
/// # Errors
/// no
pub fn run(_lab: &mut Lab, _minutes: u32) -> Result<()> { Ok(()) }
