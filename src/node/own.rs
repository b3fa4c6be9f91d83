//! What we say about ourselves: our record, its sequence, our addresses.

use std::net::{Ipv6Addr, SocketAddr};
use std::time::Instant;

use crate::config::NodeConfig;
use crate::dht::record::{Ipv4Claim, MAX_ENDPOINTS, RECORD_LIFETIME, RecordError};
use crate::dht::{Record, Verified};
use crate::identity::{Mac, NetworkId, PeerId, UnixSeconds, ula_address};
use crate::nat::Claims;

use super::streams::with_tls;

/// Our own record and what it is made of.
pub(super) struct Own {
    pub(super) peer: PeerId,
    pub(super) mac: Mac,
    pub(super) ipv6: Ipv6Addr,
    pub(super) ipv4: Ipv4Claim,
    pub(super) endpoints: Vec<SocketAddr>,
    /// Where others see us, if that is elsewhere.
    pub(super) reflexive: Vec<SocketAddr>,
    /// Where our gateway says that it lets others in.
    pub(super) mapped: Claims,
    /// Our home relays, and when they became others last.
    pub(super) homes: Vec<PeerId>,
    pub(super) homes_at: Option<Instant>,
    /// Since when there is somebody whom the control network has not met.
    pub(super) unmet: Option<Instant>,
    /// Which automatic IPv4 address is tried.
    attempt: u32,
    sequence: u64,
    record: Option<Verified<Record>>,
}

impl Own {
    pub(super) fn new(config: &NodeConfig, network: &NetworkId) -> Self {
        let mac = config.mac();
        Self {
            peer: config.key.peer_id(),
            mac,
            ipv6: ula_address(network, &mac),
            ipv4: Ipv4Claim { address: config.ipv4(0), fixed: config.ipv4.is_some() },
            endpoints: Vec::new(),
            reflexive: Vec::new(),
            mapped: Claims::default(),
            homes: Vec::new(),
            homes_at: None,
            unmet: None,
            attempt: 0,
            sequence: sequence_base(config.boots),
            record: None,
        }
    }

    /// The record as signed last.
    pub(super) fn record(&self) -> Option<&Verified<Record>> {
        self.record.as_ref()
    }

    /// Signs a new record with the next sequence number.
    pub(super) fn sign(
        &mut self,
        config: &NodeConfig,
        network: &NetworkId,
        now: UnixSeconds,
    ) -> Result<Verified<Record>, RecordError> {
        self.sequence += 1;
        let record = Record {
            chain: config.chain.clone(),
            noise: config.key.noise_secret().public(),
            mac: self.mac,
            ipv4: self.ipv4,
            ipv6: self.ipv6,
            endpoints: self.candidates(),
            homes: self.homes.clone(),
            tls: config.tls,
            sequence: self.sequence,
            expires: now + RECORD_LIFETIME,
        };
        let record = Verified::sign(&config.key, network, record, now)?;
        self.record = Some(record.clone());
        Ok(record)
    }

    /// What the record lists: our addresses, and where others reach or see us. The latter are few, and have their place.
    fn candidates(&self) -> Vec<SocketAddr> {
        let mut outside = self.mapped.believed().to_vec();
        for endpoint in &self.reflexive {
            if !outside.contains(endpoint) {
                outside.push(*endpoint);
            }
        }
        outside.truncate(MAX_ENDPOINTS);
        let addresses = self.endpoints.iter().take(MAX_ENDPOINTS - outside.len());
        addresses.chain(&outside).copied().collect()
    }

    /// Where the directory is reached: at our addresses, and at what the gateway lets in; `tls` says whether in TLS too.
    pub(super) fn listening(&self, tls: bool) -> Vec<SocketAddr> {
        let plain: Vec<_> = self.endpoints.iter().chain(self.mapped.believed()).copied().collect();
        with_tls(&plain, tls)
    }

    /// Somebody holds a record of ours with `sequence`: the next one must be greater.
    pub(super) fn skip_sequence(&mut self, sequence: u64) -> bool {
        let behind = sequence > self.sequence;
        self.sequence = self.sequence.max(sequence);
        behind
    }

    /// Takes the next automatic IPv4 address that is not `taken`. A chosen address that was lost becomes automatic.
    pub(super) fn renumber(
        &mut self,
        config: &NodeConfig,
        network: &NetworkId,
        taken: impl Fn(&std::net::Ipv4Addr) -> bool,
    ) {
        let prefix = config.network.prefix;
        // In a prefix with room, the first free address comes within a few tries; in a full one no number of them helps.
        for _ in 0..256 {
            self.attempt += 1;
            let address = crate::identity::automatic_ipv4(network, &self.peer, &prefix, self.attempt);
            self.ipv4 = Ipv4Claim { address, fixed: false };
            if !taken(&address) {
                return;
            }
        }
    }
}

/// Sequence numbers and stamps of a run begin above all of earlier runs: 2^40 of them a run, 2^24 runs.
pub(super) fn sequence_base(boots: u32) -> u64 {
    u64::from(boots) << 40
}
