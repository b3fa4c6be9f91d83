//! Two laptops with a router between them, each on a network of its own: nothing but unicast IP gets from one to the
//! other, as between two homes. MTU 1500, the kernel's own segmentation offloads, and forwarding: the cables are as
//! fast as this machine is.

use std::net::Ipv4Addr;

use anyhow::Result;

use super::{Lab, Laptop, run};

/// The two ends and what is between them.
#[derive(Debug)]
pub struct Routed {
    /// The laptops.
    pub ends: [Laptop; 2],
    /// The router: .254 on both sides.
    pub router: Laptop,
}

impl Routed {
    /// Lays the cables.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn new(lab: &mut Lab, names: [&str; 2], router: &str) -> Result<Self> {
        let sides = [lab.subnet(), lab.subnet()];
        let host = |side: [u8; 3], last: u8| Ipv4Addr::new(side[0], side[1], side[2], last);
        let router = lab.machine(router, host(sides[0], 254))?;
        let mut ends = Vec::new();
        for (name, side) in names.into_iter().zip(sides) {
            let laptop = lab.machine(name, host(side, 1))?;
            run(&format!("ip link add {name} netns {} type veth peer name eth0 netns {name}", router.name))?;
            router.plug_in(name, host(side, 254))?;
            laptop.plug_in("eth0", laptop.underlay)?;
            laptop.run(&format!("ip route add default via {}", host(side, 254)))?;
            ends.push(laptop);
        }
        router.run("sysctl -qw net.ipv4.ip_forward=1")?;
        Ok(Self { ends: ends.try_into().expect("two names, two laptops"), router })
    }
}
