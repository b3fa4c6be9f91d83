//! Machines in a row, each two neighbours on a LAN of their own and nobody on more than two: only relays join its ends.
//!
//! ```text
//! host-1 ──lan-1── host-2 ──lan-2── host-3 ──lan-3── host-4 …
//! ```

use std::net::Ipv4Addr;

use anyhow::Result;

use super::{Lab, Laptop, run};

/// The machines and their LANs.
#[derive(Debug)]
pub struct Chain {
    /// From one end to the other.
    pub machines: Vec<Laptop>,
    /// The /24 of each LAN.
    lans: Vec<[u8; 3]>,
}

impl Chain {
    /// Builds one of `count` machines.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn new(lab: &mut Lab, count: usize) -> Result<Self> {
        let lans: Vec<_> = (1..count).map(|_| lab.subnet()).collect();
        for [.., number] in &lans {
            run(&format!("ip link add lan-{number} type bridge forward_delay 0 stp_state 0 mcast_snooping 0"))?;
            run(&format!("ip link set lan-{number} up"))?;
        }
        let mut chain = Self { machines: Vec::new(), lans };
        for n in 0..count {
            let sides = n.saturating_sub(1)..(n + 1).min(count - 1);
            let machine = chain.machine(lab, &format!("host-{}", n + 1), sides, n as u8 + 1)?;
            chain.machines.push(machine);
        }
        Ok(chain)
    }

    /// One more, on the two LANs of the `nth` of the machines.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn beside(&self, lab: &Lab, nth: usize, name: &str) -> Result<Laptop> {
        self.machine(lab, name, nth - 1..nth + 1, 200)
    }

    fn machine(&self, lab: &Lab, name: &str, lans: std::ops::Range<usize>, host: u8) -> Result<Laptop> {
        let address = |[a, b, c]: [u8; 3]| Ipv4Addr::new(a, b, c, host);
        let machine = lab.machine(name, address(self.lans[lans.start]))?;
        for (side, lan) in self.lans[lans].iter().enumerate() {
            let ([.., number], device) = (lan, format!("eth{side}"));
            run(&format!("ip link add {name}-{number} type veth peer name {device} netns {name}"))?;
            run(&format!("ip link set {name}-{number} master lan-{number} up"))?;
            machine.plug_in(&device, address(*lan))?;
        }
        Ok(machine)
    }
}
