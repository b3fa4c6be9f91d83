//! One descriptor of the TAP device: frames out of it into a batch, frames into it one by one.
//!
//! Nothing here blocks. Whoever waits polls the descriptor.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};

use crate::wire::Batch;
use crate::wire::ethernet::{ETHERNET_HEADER_LEN, VLAN_TAG_LEN};

/// A TAP queue.
pub struct Queue {
    file: File,
    /// The longest frame that can come: header, two VLAN tags, payload, and one byte that betrays a longer one.
    frame: usize,
}

impl Queue {
    /// A queue of an open, non-blocking descriptor of a device of `mtu` bytes.
    pub(super) fn new(file: File, mtu: usize) -> Self {
        Self { file, frame: ETHERNET_HEADER_LEN + 2 * VLAN_TAG_LEN + mtu + 1 }
    }

    /// Reads frames straight into slots of `batch`, at most `limit`, until there is none left or the batch is full.
    /// Returns how many; fewer than `limit` means that the queue is empty or the batch full.
    ///
    /// # Errors
    /// What the kernel says, other than that there is nothing to read; frames read before it are in the batch.
    pub fn read(&self, batch: &mut Batch, limit: usize) -> io::Result<usize> {
        let mut count = 0;
        while count < limit {
            let Some(spare) = batch.spare(self.frame) else { break };
            match (&self.file).read(spare) {
                Ok(len) => batch.commit(len, None),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            count += 1;
        }
        Ok(count)
    }

    /// Writes one frame.
    ///
    /// # Errors
    /// What the kernel says: the device is down, the frame too short or too long.
    pub fn write(&self, frame: &[u8]) -> io::Result<()> {
        loop {
            match (&self.file).write(frame) {
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
        match Device::open(name, MAC, 1500) {
            Ok(device) => Some(device),
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
        let mut batch = Batch::new(1 << 17, 64);
        for _ in 0..200 {
            batch.clear();
            queue.read(&mut batch, 64).expect("a read");
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
        let queue = device.queue().expect("a queue");
        let mut batch = Batch::new(1 << 17, 64);
        // The kernel may have said something on its own when the device came up.
        queue.read(&mut batch, 64).expect("a read");
        batch.clear();
        assert!(queue.read(&mut batch, 64).expect("a read") <= 64);
    }

    #[test]
    fn a_frame_the_kernel_sends_is_read_and_one_that_is_written_is_answered() {
        let Some(device) = device("mtest-arp") else { return };
        let queue = device.queue().expect("a queue");
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
        let queue = device.queue().expect("a queue");
        assert!(queue.write(&[1, 2, 3]).is_err());
        assert!(queue.write(&[0; 60]).is_ok());
    }
}
