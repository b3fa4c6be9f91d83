//! The TAP device: where frames of the overlay enter and leave this machine.
//!
//! [`device`] opens and configures it; it is gone when the last descriptor is closed, so a killed process leaves nothing
//! behind. [`queue`] moves frames between one descriptor and a [`Batch`](crate::wire::Batch): many reads into one
//! arena, each frame with room around it so that it is sealed where it lies.
//!
//! A frame is plain Ethernet for now, one system call each. Once the device speaks `IFF_VNET_HDR`, a read gives up to
//! 64 KiB of TCP with a virtio header; cutting it into frames and putting received frames together again are pure
//! transformations of a batch and stand between the queue and the forwarder. The queue's two verbs stay.

#[cfg(feature = "daemon")]
pub mod device;
#[cfg(feature = "daemon")]
pub mod queue;
