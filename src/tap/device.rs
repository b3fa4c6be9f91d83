//! Opens and configures the TAP device. What can go wrong is said in one line, with what to do.

#![expect(unsafe_code, reason = "whether an interface of a name exists is asked of libc")]

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::AsFd;

use tun_rs::{DeviceBuilder, Layer, SyncDevice};

use super::coalesce::Offloads;
use super::queue::Queue;

const TUN: &str = "/dev/net/tun";

/// Longest interface name, bytes: Linux's IFNAMSIZ less its zero.
const MAX_NAME: usize = 15;

/// Why there is no device.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// Linux would not have it as an interface name.
    #[error("\"{0}\" cannot be an interface name: 1 to 15 letters, digits, - or _")]
    Name(String),
    /// Ours, another program's, or a persistent one: it is never taken over.
    #[error("the interface {0} is in use; choose another with --device")]
    Taken(String),
    /// No TUN/TAP driver here.
    #[error("there is no {TUN}; load the module (modprobe tun), or in a container add --device {TUN}")]
    NoDriver,
    /// The file is there but this process may not open it.
    #[error("{TUN} may not be opened; run as root, or in a container add --device {TUN}")]
    NotOpened,
    /// The capability is missing.
    #[error(
        "making a TAP device needs CAP_NET_ADMIN; run as root, or: setcap cap_net_admin+ep {program}; in a container \
         add --cap-add NET_ADMIN"
    )]
    NoCapability {
        /// Our executable.
        program: String,
    },
    /// Anything else the kernel said.
    #[error("the TAP device {name} could not be made: {source}")]
    Other {
        /// The device's name.
        name: String,
        /// What the kernel said.
        source: io::Error,
    },
}

/// An open TAP device with its MAC and MTU. It lives until this and every [`Queue`] of it are dropped.
pub struct Device {
    /// One for each kernel queue; at least one.
    handles: Vec<SyncDevice>,
    name: String,
    index: u32,
    mtu: usize,
    offloads: Option<Offloads>,
}

impl Device {
    /// Makes the device `name` with `queues` queues and gives it `mac` and `mtu` (bytes of payload of an untagged frame), with as
    /// many offloads as the kernel has. It is down: nobody finds it among the interfaces that speak. An interface that exists
    /// already is never touched.
    ///
    /// # Errors
    /// [`DeviceError`], fit to be shown.
    pub fn open(name: &str, mac: [u8; 6], mtu: usize, queues: usize) -> Result<Self, DeviceError> {
        if !is_interface_name(name) {
            return Err(DeviceError::Name(name.to_owned()));
        }
        if interface_index(name).is_some() {
            return Err(DeviceError::Taken(name.to_owned()));
        }
        let other = |source| DeviceError::Other { name: name.to_owned(), source };
        let kernel_mtu = u16::try_from(mtu)
            .map_err(|_| other(io::Error::new(io::ErrorKind::InvalidInput, format!("no MTU is {mtu} bytes"))))?;
        let build = |offload| {
            DeviceBuilder::new()
                .name(name)
                .layer(Layer::L2)
                .offload(offload)
                .multi_queue(queues > 1)
                .packet_information(false)
                .mac_addr(mac)
                .mtu(kernel_mtu)
                .enable(false)
                .build_sync()
        };
        let device = match build(true) {
            // A kernel without IFF_VNET_HDR or without TSO: frames then come and go one by one.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => build(false),
            device => device,
        };
        let first = device.map_err(|error| explain(name, error))?;
        let offloads = first.tcp_gso().then(|| Offloads { tcp: true, udp: first.udp_gso() });
        let mut handles = Vec::with_capacity(queues);
        for _ in 1..queues {
            handles.push(first.try_clone().map_err(other)?);
        }
        handles.insert(0, first);
        for handle in &handles {
            handle.set_nonblocking(true).map_err(other)?;
        }
        let index = interface_index(name).ok_or_else(|| other(io::Error::from(io::ErrorKind::NotFound)))?;
        Ok(Self { handles, name: name.to_owned(), index, mtu, offloads })
    }

    /// Brings it up: from now on its queues can be read and written.
    ///
    /// # Errors
    /// Without CAP_NET_ADMIN.
    pub fn bring_up(&self) -> io::Result<()> {
        self.handles[0].enabled(true)
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its interface index.
    pub fn index(&self) -> u32 {
        self.index
    }

    /// How many kernel queues it has.
    pub fn queues(&self) -> usize {
        self.handles.len()
    }

    /// What the kernel takes off our hands; `None` if nothing.
    pub fn offloads(&self) -> Option<Offloads> {
        self.offloads
    }

    /// Something to read frames from and write frames to: a descriptor of the kernel's queue number `queue`, of which there
    /// are as many as the device was opened with.
    ///
    /// # Errors
    /// When there are too many open files.
    pub fn queue(&self, queue: usize) -> io::Result<Queue> {
        let file = File::from(self.handles[queue].as_fd().try_clone_to_owned()?);
        Ok(Queue::new(file, self.mtu, self.offloads))
    }
}

/// What the kernel accepts, without the characters that would only confuse: `%` is a template, `:` an alias.
fn is_interface_name(name: &str) -> bool {
    (1..=MAX_NAME).contains(&name.len())
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
        && !name.bytes().all(|byte| byte == b'.')
}

/// The index of the interface `name` in this network namespace, if there is one.
fn interface_index(name: &str) -> Option<u32> {
    let name = CString::new(name).ok()?;
    // SAFETY: `name` is a string that ends in a zero byte and outlives the call, which only reads it.
    let index = unsafe { libc::if_nametoindex(name.as_ptr()) };
    (index != 0).then_some(index)
}

/// Finds out why the kernel refused, by the error and by whether the driver's file opens at all.
fn explain(name: &str, error: io::Error) -> DeviceError {
    match error.raw_os_error() {
        Some(libc::EBUSY | libc::EEXIST) => return DeviceError::Taken(name.to_owned()),
        Some(libc::ENOENT | libc::ENODEV | libc::ENXIO) => return DeviceError::NoDriver,
        Some(libc::EPERM | libc::EACCES) => {}
        _ => return DeviceError::Other { name: name.to_owned(), source: error },
    }
    match File::options().read(true).write(true).open(TUN) {
        Ok(_) => {
            let program = std::env::current_exe().map_or("meshd".into(), |path| path.display().to_string());
            DeviceError::NoCapability { program }
        }
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => DeviceError::NotOpened,
        Err(_) => DeviceError::NoDriver,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tap::queue::tests::{MAC, device};

    #[test]
    fn names_the_kernel_would_refuse_or_read_otherwise_are_refused_by_name() {
        for name in ["", "sixteen-letters-", "a/b", "a b", "mesh%d", "eth0:1", "..", "naïve"] {
            assert!(matches!(Device::open(name, MAC, 1500, 1), Err(DeviceError::Name(_))), "{name:?}");
        }
        assert!(is_interface_name("meshd0") && is_interface_name("a.b_c-d"));
    }

    #[test]
    fn an_interface_that_exists_is_never_taken_over() {
        let taken = Device::open("lo", MAC, 1500, 1).err().expect("lo is not ours");
        assert_eq!(taken.to_string(), "the interface lo is in use; choose another with --device");
        let Some(first) = device("mtest-taken") else { return };
        assert!(matches!(Device::open(first.name(), MAC, 1500, 1), Err(DeviceError::Taken(_))));
    }

    #[test]
    fn a_device_is_gone_with_its_last_queue() {
        let Some(device) = device("mtest-gone") else { return };
        let queue = device.queue(0).expect("a queue");
        let mac = std::fs::read_to_string("/sys/class/net/mtest-gone/address").expect("it is there");
        let mtu = std::fs::read_to_string("/sys/class/net/mtest-gone/mtu").expect("it is there");
        assert_eq!((mac.trim(), mtu.trim()), ("02:00:00:00:00:01", "1500"));
        assert_eq!(interface_index(device.name()), Some(device.index()));
        drop(device);
        assert!(interface_index("mtest-gone").is_some());
        drop(queue);
        assert_eq!(interface_index("mtest-gone"), None);
    }

    #[test]
    fn every_refusal_says_what_to_do() {
        let text = |errno| explain("mesh0", io::Error::from_raw_os_error(errno)).to_string();
        assert!(text(libc::EBUSY).contains("--device"));
        assert!(text(libc::ENODEV).contains("modprobe tun"));
        assert!(text(libc::EINVAL).starts_with("the TAP device mesh0 could not be made"));
        let refused = text(libc::EPERM);
        assert!(refused.contains("run as root") || refused.contains("modprobe tun"), "{refused}");
    }
}
