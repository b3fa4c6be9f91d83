//! 802.1Q for a kernel that has no VLAN devices: two TAPs and two threads that put a tag in on one way and take it out on
//! the other. One TAP is the VLAN's device, with a station's MAC and address; the other one is a port of the bridge.
//!
//! With superframes, the TAPs have offloads and what the kernel left to do goes along, so that superframes with a tag reach
//! the node; without, the kernel cuts and sums everything first.

use std::io;
use std::sync::Arc;
use std::thread;

use anyhow::{Context as _, Result};
use tun_rs::{DeviceBuilder, Layer, SyncDevice};

use super::bridged::{BRIDGE, Bridged};
use super::{Laptop, run};

/// The MACs of a frame: the tag stands behind them.
const MACS: usize = 12;

/// Bytes of a tag.
const TAG: usize = 4;

/// The virtio header of a TAP with offloads (virtio 1.2, section 5.1.6), and where in it two offsets from the start of the
/// frame are: they move with the tag.
const VNET: usize = 10;
const VNET_HEADERS: usize = 2;
const VNET_CHECKSUM_START: usize = 6;

/// Frames that wait for a thread of ours: what TCP may have on its way (6 MB), cut into full frames, so that none is lost for
/// want of room.
const QUEUE: usize = 5000;

/// The longest superframe with both headers and the tag.
const LONGEST: usize = VNET + (1 << 16) + 64;

/// The VLAN's device in a node's namespace. Gone when dropped.
#[derive(Debug)]
pub struct Vlan {
    laptop: Laptop,
    names: [String; 2],
}

impl Vlan {
    /// VLAN `tag` of the bridge of `bridged`: a device `vlanTAG` with the node's MAC and `address`.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn new(bridged: &Bridged<'_>, tag: u16, address: &str, superframes: bool) -> Result<Self> {
        let laptop = bridged.node.laptop().clone();
        let names = [format!("vlan{tag}"), format!("trunk{tag}")];
        let [inner, trunk] = names.each_ref().map(|name| -> Result<_> {
            let built = DeviceBuilder::new()
                .name(name)
                .layer(Layer::L2)
                .mtu(1500)
                .offload(superframes)
                .packet_information(false)
                .enable(false)
                .build_sync()
                .with_context(|| format!("a TAP {name}"))?;
            run(&format!("ip link set {name} netns {}", laptop.name))?;
            laptop.run(&format!("sysctl -qw net.ipv6.conf.{name}.disable_ipv6=1"))?;
            laptop.run(&format!("ip link set {name} txqueuelen {QUEUE}"))?;
            Ok(Arc::new(built))
        });
        let (inner, trunk, head) = (inner?, trunk?, if superframes { VNET } else { 0 });
        bridged.take_place(&laptop, &names[0])?;
        laptop.run(&format!("ip addr add {address} dev {}", names[0]))?;
        laptop.run(&format!("ip link set {} master {BRIDGE} up", names[1]))?;
        let tag = [0x81, 0x00, (tag >> 8) as u8, tag as u8];
        let (from, to) = (Arc::clone(&inner), Arc::clone(&trunk));
        thread::spawn(move || put_in(&from, &to, head, tag));
        thread::spawn(move || take_out(&trunk, &inner, head, tag));
        Ok(Self { laptop, names })
    }

    /// Its device.
    pub fn device(&self) -> &str {
        &self.names[0]
    }
}

impl Drop for Vlan {
    fn drop(&mut self) {
        // A reader of a TAP that is gone gets an error and ends.
        for name in &self.names {
            let _ = self.laptop.run(&format!("ip link delete {name}"));
        }
    }
}

fn put_in(from: &SyncDevice, to: &SyncDevice, head: usize, tag: [u8; TAG]) {
    let mut bytes = vec![0; TAG + LONGEST];
    while let Some(length) = receive(from, &mut bytes[TAG..]) {
        if length < head + MACS {
            continue;
        }
        bytes.copy_within(TAG..TAG + head + MACS, 0);
        bytes[head + MACS..head + MACS + TAG].copy_from_slice(&tag);
        shift(&mut bytes[..head], TAG as u16);
        let _ = to.send(&bytes[..TAG + length]);
    }
}

fn take_out(from: &SyncDevice, to: &SyncDevice, head: usize, tag: [u8; TAG]) {
    let mut bytes = vec![0; LONGEST];
    while let Some(length) = receive(from, &mut bytes) {
        // Of another VLAN, or of none.
        if length < head + MACS + TAG || bytes[head + MACS..head + MACS + TAG] != tag {
            continue;
        }
        shift(&mut bytes[..head], 0_u16.wrapping_sub(TAG as u16));
        bytes.copy_within(..head + MACS, TAG);
        let _ = to.send(&bytes[TAG..length]);
    }
}

/// The next frame; `None` when the device is gone. A device that is down says so once a frame.
fn receive(from: &SyncDevice, bytes: &mut [u8]) -> Option<usize> {
    loop {
        match from.recv(bytes) {
            Ok(length) => return Some(length),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => return None,
        }
    }
}

/// Moves the offsets of a virtio header, if there is one, by `by`.
fn shift(header: &mut [u8], by: u16) {
    if header.is_empty() {
        return;
    }
    let mut add = |at: usize| {
        let value = u16::from_ne_bytes([header[at], header[at + 1]]);
        if value > 0 {
            header[at..at + 2].copy_from_slice(&value.wrapping_add(by).to_ne_bytes());
        }
    };
    add(VNET_HEADERS);
    add(VNET_CHECKSUM_START);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_offsets_of_a_virtio_header_move_with_the_tag() {
        let mut header = [1, 1, 66, 0, 0, 0, 34, 0, 16, 0];
        shift(&mut header, 4);
        assert_eq!(header, [1, 1, 70, 0, 0, 0, 38, 0, 16, 0]);
        shift(&mut header, 0_u16.wrapping_sub(4));
        assert_eq!(header, [1, 1, 66, 0, 0, 0, 34, 0, 16, 0]);
        let mut plain = [0; VNET];
        shift(&mut plain, 4);
        assert_eq!(plain, [0; VNET]);
        shift(&mut [], 4);
    }
}
