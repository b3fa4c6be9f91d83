//! soak
use super::Lab;
use anyhow::Result;
/// run
/// # Errors
/// no
pub fn run(_lab: &mut Lab, _minutes: u32) -> Result<()> {
    Ok(())
}
