//! One descriptor of the TAP device: frames out of it into a batch, frames of a batch into it.
//!
//! With offloads each read and each write carries a [`VnetHeader`] before the frame, and the frame may be a superframe. A
//! plain frame is read straight into its slot, the header into the slot's headroom; a superframe is cut behind itself. What
//! was merged is written from where its parts lie. Nothing here blocks: whoever waits polls the descriptor.

use std::fs::File;
use std::io::{self, IoSlice, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};

use crate::wire::ethernet::{ETHERNET_HEADER_LEN, VLAN_TAG_LEN};
use crate::wire::{Batch, Checksum, checksum};

use super::coalesce::{Delivery, MAX_FRAMES, Offloads};
use super::segment::{SegmentError, segment};
use super::vnet::{VNET_LEN, VnetHeader};

/// Header and two VLAN tags.
const LONGEST_HEADER: usize = ETHERNET_HEADER_LEN + 2 * VLAN_TAG_LEN;

/// The same with the headers of IPv4 and TCP, both with all their options.
const LONGEST_HEADERS: usize = LONGEST_HEADER + 60 + 60;

/// The longest superframe: an IP packet of 64 KiB in a frame.
const SUPERFRAME: usize = LONGEST_HEADER + (1 << 16);

/// Frames that a superframe is cut into, at most: beyond what [`Batch`] has slots for, there is no end. 64 KiB make 122
/// segments of the smallest MSS that hosts use (536), and 1024 datagrams of 64 bytes are more than Linux puts together.
const MAX_SEGMENTS: usize = 128;

/// A TAP queue.
pub struct Queue {
    file: File,
    /// The longest plain frame that can come: header, two VLAN tags, payload, and one byte that betrays a longer one.
    frame: usize,
    /// What the kernel takes and gives; `None` if it has no virtio header.
    offloads: Option<Offloads>,
}

/// What a read brought.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Taken {
    /// Whether there may be more to read at once.
    pub more: bool,
    /// Superframes that made no sense.
    pub malformed: u64,
    /// Superframes of more frames than fitted into the batch.
    pub full: u64,
}

impl Queue {
    /// A queue of an open, non-blocking descriptor of a device of `mtu` bytes.
    pub(super) fn new(file: File, mtu: usize, offloads: Option<Offloads>) -> Self {
        Self { file, frame: LONGEST_HEADER + mtu + 1, offloads }
    }

    /// Which superframes may be written.
    pub fn offloads(&self) -> Offloads {
        self.offloads.unwrap_or(Offloads { tcp: false, udp: false })
    }

    /// Reads into slots of `batch` until it has `limit`, or there is nothing left, or it is full. TCP superframes are cut
    /// into frames no longer than `longest` says, which is asked with the head of the superframe.
    ///
    /// # Errors
    /// What the kernel says, other than that there is nothing to read; frames read before it are in the batch.
    pub fn read(&self, batch: &mut Batch, limit: usize, longest: impl Fn(&[u8]) -> usize) -> io::Result<Taken> {
        let (head, len) = match self.offloads {
            Some(_) => (VNET_LEN, SUPERFRAME),
            None => (0, self.frame),
        };
        let mut taken = Taken { more: true, ..Taken::default() };
        while batch.len() < limit {
            // A superframe stays where it is, and its frames stand behind it with headers of their own.
            let cut = if head > 0 { MAX_SEGMENTS } else { 0 };
            if !batch.has_room(1 + cut, 2 * len + cut * LONGEST_HEADERS) {
                break;
            }
            let Some(spare) = batch.spare_with_head(head, len) else { break };
            let read = match (&self.file).read(spare) {
                Ok(read) => read,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    taken.more = false;
                    break;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            let Some(frame) = read.checked_sub(head) else { continue };
            let header = spare.first_chunk().filter(|_| head > 0).copied();
            match header.map_or(Some(VnetHeader::default()), VnetHeader::read) {
                Some(header) if header.superframe.is_some() => {
                    let superframe = batch.hold(frame);
                    let longest = longest(batch.held(superframe.clone()));
                    match segment(batch, &header, superframe, longest) {
                        Ok(_) => {}
                        Err(SegmentError::Malformed) => taken.malformed += 1,
                        Err(SegmentError::Full) => taken.full += 1,
                    }
                }
                Some(header) => {
                    let slot = batch.commit(frame, None);
                    batch.slot_mut(slot).checksum = header.checksum;
                }
                None => taken.malformed += 1,
            }
        }
        Ok(taken)
    }

    /// Writes one plain frame whose checksum is in it.
    ///
    /// # Errors
    /// What the kernel says: the device is down, the frame too short or too long.
    pub fn write(&self, frame: &[u8]) -> io::Result<()> {
        let header = VnetHeader::default().write();
        match self.offloads {
            Some(_) => self.write_parts(&[IoSlice::new(&header), IoSlice::new(frame)]),
            None => self.write_parts(&[IoSlice::new(frame)]),
        }
    }

    /// Writes a frame of `batch`, or several as one superframe.
    ///
    /// # Errors
    /// As [`Queue::write`].
    pub fn deliver(&self, batch: &mut Batch, delivery: &Delivery<'_>) -> io::Result<()> {
        let mut slots = delivery.slots();
        let Some(first) = slots.next() else { return Ok(()) };
        let head = match self.offloads {
            Some(_) => {
                batch.bytes_with_head(first, VNET_LEN)[..VNET_LEN].copy_from_slice(&delivery.header.write());
                VNET_LEN
            }
            None => {
                // A sum outside the frame was refused before.
                if let Checksum::Partial { start, offset } = delivery.header.checksum {
                    let _ = checksum::complete(batch.bytes_mut(first), start, offset);
                }
                0
            }
        };
        let mut parts = [IoSlice::new(&[]); MAX_FRAMES];
        parts[0] = IoSlice::new(batch.bytes_after_head(first, head));
        let mut count = 1;
        for slot in slots {
            parts[count] = IoSlice::new(&batch.bytes(slot)[delivery.headers..]);
            count += 1;
        }
        self.write_parts(&parts[..count])
    }

    fn write_parts(&self, parts: &[IoSlice<'_>]) -> io::Result<()> {
        loop {
            match (&self.file).write_vectored(parts) {
                Ok(_) => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }
}

impl AsFd for Queue {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::io::Write as _;
    use std::process::Command;
    use std::time::Duration;

    use super::*;
    use crate::tap::device::{Device, DeviceError};
    use crate::wire::ethernet::FrameHead;

    pub(crate) const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];

    /// A device to test with, or nothing and a line that says why.
    pub(crate) fn device(name: &str) -> Option<Device> {
        match Device::open(name, MAC, 1500, 1) {
            Ok(device) => {
                device.bring_up().expect("who may make it may bring it up");
                Some(device)
            }
            Err(error @ (DeviceError::NoDriver | DeviceError::NotOpened | DeviceError::NoCapability { .. })) => {
                let _ = writeln!(io::stderr(), "SKIPPED: {error}");
                None
            }
            Err(error) => panic!("{error}"),
        }
    }

    fn ip(arguments: &str) {
        let status = Command::new("ip").args(arguments.split(' ')).status().expect("iproute2 is installed");
        assert!(status.success(), "ip {arguments}");
    }

    /// Waits at most two seconds for a frame of `ethertype`.
    fn wait_for(queue: &Queue, ethertype: u16) -> Vec<u8> {
        let mut batch = Batch::new(1 << 19, 256);
        for _ in 0..200 {
            batch.clear();
            queue.read(&mut batch, 64, |_| usize::MAX).expect("a read");
            for index in 0..batch.len() {
                if FrameHead::read(batch.bytes(index)).is_some_and(|head| head.ethertype == ethertype) {
                    return batch.bytes(index).to_vec();
                }
            }
            #[expect(clippy::disallowed_methods, reason = "a test waits for the kernel")]
            std::thread::sleep(Duration::from_millis(10));
        }
        panic!("no frame of {ethertype:04x} within two seconds");
    }

    #[test]
    fn an_idle_queue_reads_nothing_and_does_not_block() {
        let Some(device) = device("mtest-idle") else { return };
        let queue = device.queue(0).expect("a queue");
        let mut batch = Batch::new(1 << 19, 256);
        // The kernel may have said something on its own when the device came up.
        queue.read(&mut batch, 64, |_| usize::MAX).expect("a read");
        batch.clear();
        assert!(!queue.read(&mut batch, 64, |_| usize::MAX).expect("a read").more);
    }

    #[test]
    fn a_frame_the_kernel_sends_is_read_and_one_that_is_written_is_answered() {
        let Some(device) = device("mtest-arp") else { return };
        let queue = device.queue(0).expect("a queue");
        ip("addr add 198.18.77.1/30 dev mtest-arp");
        // Somebody asks who has our address: the kernel's answer is proof that the frame went in, and comes out.
        let mut request = vec![0xff; 6];
        request.extend([2, 0, 0, 0, 0, 9, 0x08, 0x06, 0, 1, 8, 0, 6, 4, 0, 1, 2, 0, 0, 0, 0, 9, 198, 18, 77, 2]);
        request.extend([0, 0, 0, 0, 0, 0, 198, 18, 77, 1]);
        queue.write(&request).expect("a frame goes in");
        let reply = wait_for(&queue, 0x0806);
        assert_eq!(&reply[..6], [2, 0, 0, 0, 0, 9]);
        assert_eq!((&reply[6..12], &reply[20..22]), (&MAC[..], &[0, 2][..]));
        assert_eq!(&reply[28..32], [198, 18, 77, 1]);
    }

    #[test]
    fn a_frame_that_is_no_frame_is_refused_by_the_kernel_and_harms_nothing() {
        let Some(device) = device("mtest-short") else { return };
        let queue = device.queue(0).expect("a queue");
        assert!(queue.write(&[1, 2, 3]).is_err());
        assert!(queue.write(&[0; 60]).is_ok());
    }
}
