//! The TAP device: where frames of the overlay enter and leave this machine.
//!
//! [`device`] opens and configures it; it is gone when the last descriptor is closed, so a killed process leaves nothing
//! behind. [`queue`] moves frames between one descriptor and a [`Batch`](crate::wire::Batch): many reads into one
//! arena, each frame with room around it so that it is sealed where it lies.
//!
//! The device speaks `IFF_VNET_HDR` ([`vnet`]) where the kernel does: a read gives up to 64 KiB of TCP or UDP as one
//! superframe, a write takes one. [`segment`] cuts a superframe into frames, [`coalesce`] finds among received frames those that
//! are one superframe: pure transformations of a batch, between the queue and the forwarder. Each undoes the other.

pub mod coalesce;
#[cfg(feature = "daemon")]
pub mod device;
mod packet;
#[cfg(feature = "daemon")]
pub mod queue;
#[cfg(test)]
mod samples;
pub mod segment;
pub mod vnet;
