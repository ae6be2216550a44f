//! x
use crate::Failure;
/// x
#[derive(Debug, clap::Args)]
pub(crate) struct Args {}
/// x
pub(crate) fn run(_: &Args) -> Result<(), Failure> { Ok(()) }
