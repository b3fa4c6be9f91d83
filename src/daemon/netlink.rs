//! Netlink: which interfaces this machine has, when that changes, and the addresses of our own TAP.
//!
//! [`watch`] hears notifications only to know *that* something changed; what is true is always read by a fresh dump on a
//! socket of its own. So a lost notification (ENOBUFS) costs nothing but a dump, and a dump never waits behind a flood
//! of notifications. Dumps and notifications need no rights; [`set_tap_addresses`] needs CAP_NET_ADMIN.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use anyhow::Context as _;
use futures::{StreamExt as _, TryStreamExt as _};
use rtnetlink::packet_core::{NetlinkMessage, NetlinkPayload};
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::address::{AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage};
use rtnetlink::packet_route::link::{LinkAttribute, LinkFlags, LinkInfo, LinkLayerType, LinkMessage};
use rtnetlink::packet_route::route::{RouteAddress, RouteAttribute};
use rtnetlink::{Handle, LinkUnspec, MulticastGroup, RouteMessageBuilder};
use tokio::sync::mpsc;
use tokio::time::timeout;

use crate::identity::{Ipv4Prefix, Mac};
use crate::nat::portmap::Link;

/// How long after a notification we listen on before we look: a link that comes up speaks five to ten times within a
/// few milliseconds. Twice as much would be felt when a cable is plugged.
const SETTLE: Duration = Duration::from_millis(50);

/// How long a dump may take. The kernel answers in microseconds; this only breaks the wait for an answer that got lost.
const DUMP_TIMEOUT: Duration = Duration::from_secs(2);

/// How long to wait before looking again when the kernel gave no picture.
const RETRY: Duration = Duration::from_secs(1);

/// Frames that our host may put into one superframe: sealed for a path of 1472 bytes, 44 datagrams are the longest train
/// that UDP GSO takes (65,507 bytes). One more would cost a system call of its own.
const SUPERFRAME_FRAMES: u32 = 44;

/// Somewhere on the Internet: only looked up in the routing table, nothing goes there.
const SOMEWHERE: Ipv4Addr = Ipv4Addr::new(1, 1, 1, 1);

/// One network interface at one moment.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Interface {
    /// The kernel's index; the scope of link-local addresses.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// Its usable addresses, best first: stable, then temporary and deprecated, link-local last. Left out are tentative addresses
    /// (duplicate detection still runs), and temporary ones (RFC 8981) beside a stable one of the same network: our sockets prefer
    /// that, and tomorrow the others are gone. The scope of a link-local one is [`Interface::index`].
    pub addresses: Vec<IpAddr>,
    /// Its MAC, if it has one of six bytes.
    pub mac: Option<Mac>,
    /// Administratively up and with a carrier: a pulled cable is not up, nor a bridge without an underlay port that
    /// is.
    pub up: bool,
    /// What it is to us.
    pub kind: InterfaceKind,
    /// The private gateway by which the way to the IPv4 Internet leads, if that is here.
    pub uplink: Option<Link>,
}

/// What an interface is to us.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum InterfaceKind {
    /// Underlay: Ethernet, wireless, PPP, and bridges, bonds, VLANs and veth (a container's Ethernet) on top.
    Physical,
    /// Never leaves the machine: loopback, dummy.
    Loopback,
    /// Somebody's tunnel, ours first of all: tun, tap, WireGuard, VXLAN, GRE and their kin. Never underlay.
    Overlay,
}

impl Interface {
    /// Whether datagrams may leave here: physical and up.
    pub fn is_underlay(&self) -> bool {
        self.up && self.kind == InterfaceKind::Physical
    }
}

/// The interfaces as they are now, by index.
///
/// # Errors
/// No netlink socket, or the kernel does not answer within two seconds.
pub async fn snapshot() -> anyhow::Result<Vec<Interface>> {
    let handle = connect()?;
    timeout(DUMP_TIMEOUT, dump(&handle)).await.context("the kernel did not answer a netlink dump")?
}

/// Sends the interfaces at once and again after each change, until nobody receives them any more.
///
/// # Errors
/// No netlink socket at the start. Later troubles are logged and survived.
pub async fn watch(sender: mpsc::Sender<Vec<Interface>>) -> anyhow::Result<()> {
    let mut sent = None;
    let mut notifications = Some(subscribe()?);
    while !sender.is_closed() {
        match snapshot().await {
            Ok(now) if sent.as_ref() != Some(&now) => {
                sent = Some(now.clone());
                if sender.send(now).await.is_err() {
                    break;
                }
            }
            Ok(_) => {}
            Err(error) => {
                tracing::warn!("cannot list the network interfaces: {error:#}");
                let _ = timeout(RETRY, sender.closed()).await;
                continue;
            }
        }
        let Some(stream) = &mut notifications else {
            // The socket of notifications broke: until there is a new one, looking now and then must do.
            let _ = timeout(RETRY, sender.closed()).await;
            notifications =
                subscribe().inspect_err(|error| tracing::debug!("no netlink notifications: {error:#}")).ok();
            continue;
        };
        tokio::select! {
            notification = stream.next() => {
                if notification.is_some() {
                    let _ = timeout(SETTLE, async { while stream.next().await.is_some() {} }).await;
                } else {
                    notifications = None;
                }
            }
            () = sender.closed() => {}
        }
    }
    Ok(())
}

/// The endpoints at which this machine may be reached with `port`: every address of every underlay interface but those
/// of which `overlay` says they are inside some overlay. IPv6 link-local addresses are left out: they mean something
/// only together with an interface of the *receiver*, which mDNS knows and a record does not. The first addresses of
/// each interface come first, so that a list cut short keeps one way in for each; IPv4 link-local (169.254/16) last.
pub fn endpoints(interfaces: &[Interface], port: u16, overlay: impl Fn(IpAddr) -> bool) -> Vec<SocketAddr> {
    let mut ranked = Vec::new();
    for (order, interface) in interfaces.iter().filter(|interface| interface.is_underlay()).enumerate() {
        let mut seen = [0_usize; 2];
        for address in interface.addresses.iter().filter(|address| !is_ipv6_link_local(**address)) {
            if overlay(*address) {
                continue;
            }
            let count = &mut seen[usize::from(address.is_ipv6())];
            ranked.push(((is_link_local(*address), *count, order), SocketAddr::new(*address, port)));
            *count += 1;
        }
    }
    ranked.sort_by_key(|(rank, _)| *rank);
    let mut endpoints: Vec<SocketAddr> = Vec::with_capacity(ranked.len());
    for (_, endpoint) in ranked {
        if !endpoints.contains(&endpoint) {
            endpoints.push(endpoint);
        }
    }
    endpoints
}

/// What our TAP shall carry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TapAddresses {
    /// IPv4 address.
    pub ipv4: Ipv4Addr,
    /// The network it is in.
    pub prefix: Ipv4Prefix,
    /// IPv6 address; its network is the /64 around it.
    pub ipv6: Ipv6Addr,
    /// MTU, bytes.
    pub mtu: usize,
}

/// Gives the device its addresses and MTU and sets it up. Our former addresses (others in the same networks) are removed
/// first; whatever else a person added stays. IPv6 comes without duplicate address detection: the signed record
/// already makes the address ours, and so it is usable at once. A kernel without IPv6 is no error.
///
/// # Errors
/// No such device, no CAP_NET_ADMIN, or the kernel refuses the link settings or the IPv4 address.
pub async fn set_tap_addresses(device: &str, addresses: &TapAddresses) -> anyhow::Result<()> {
    let handle = connect()?;
    let set = async {
        let link = link_by_name(&handle, device).await?;
        let index = link.header.index;
        let mtu = u32::try_from(addresses.mtu).context("MTU out of range")?;
        let settings = LinkUnspec::new_with_index(index)
            .mtu(mtu)
            .append_extra_attribute(LinkAttribute::GsoMaxSegs(SUPERFRAME_FRAMES))
            .up()
            .build();
        handle.link().set(settings).execute().await.with_context(|| format!("cannot set up {device}"))?;

        let present: Vec<AddressMessage> =
            handle.address().get().set_link_index_filter(index).execute().try_collect().await?;
        let mut wanted = vec![
            (IpAddr::V4(addresses.ipv4), addresses.prefix.length()),
            (IpAddr::V6(addresses.ipv6), IPV6_PREFIX_LENGTH),
        ];
        for message in present {
            let Some(address) = address_of(&message) else { continue };
            if wanted.contains(&(address, message.header.prefix_len)) {
                wanted.retain(|(want, _)| *want != address);
            } else if is_ours(address, addresses) {
                handle.address().del(message).execute().await.with_context(|| format!("cannot remove {address}"))?;
            }
        }
        for (address, length) in wanted {
            let mut request = handle.address().add(index, address, length);
            if address.is_ipv6() {
                request.message_mut().header.flags |= AddressHeaderFlags::Nodad;
            }
            match request.execute().await {
                Ok(()) => {}
                Err(error) if address.is_ipv6() => tracing::warn!("{device} stays without {address}: {error}"),
                Err(error) => return Err(error).with_context(|| format!("cannot give {address} to {device}")),
            }
        }
        Ok(())
    };
    timeout(DUMP_TIMEOUT, set).await.context("the kernel did not answer over netlink")?
}

/// The overlay's IPv6 network is a /64 (RFC 4193, RFC 4291).
const IPV6_PREFIX_LENGTH: u8 = 64;

fn is_ours(address: IpAddr, ours: &TapAddresses) -> bool {
    match address {
        IpAddr::V4(address) => ours.prefix.contains(address),
        IpAddr::V6(address) => address.segments()[..4] == ours.ipv6.segments()[..4],
    }
}

fn is_ipv6_link_local(address: IpAddr) -> bool {
    matches!(address, IpAddr::V6(address) if address.is_unicast_link_local())
}

fn is_link_local(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => address.is_link_local(),
        IpAddr::V6(address) => address.is_unicast_link_local(),
    }
}

/// A netlink socket for requests; its task ends when the handle is dropped.
fn connect() -> anyhow::Result<Handle> {
    let (connection, handle, _) = rtnetlink::new_connection().context("cannot open a netlink socket")?;
    tokio::spawn(connection);
    Ok(handle)
}

/// A netlink socket for notifications of links, addresses and default routes. An overrun (ENOBUFS) comes as a message like any other.
fn subscribe() -> anyhow::Result<impl futures::Stream<Item = ()> + Unpin> {
    let groups =
        [MulticastGroup::Link, MulticastGroup::Ipv4Ifaddr, MulticastGroup::Ipv6Ifaddr, MulticastGroup::Ipv4Route];
    let (connection, handle, messages) =
        rtnetlink::new_multicast_connection(&groups).context("cannot subscribe to netlink notifications")?;
    tokio::spawn(connection);
    // The handle is kept beside the stream: without it the connection would end.
    Ok(messages.filter_map(move |(message, _)| {
        let _ = &handle;
        std::future::ready(is_news(&message).then_some(()))
    }))
}

/// Whether a notification is worth a look: a router's routes change all day, but few of them are default.
fn is_news(message: &NetlinkMessage<RouteNetlinkMessage>) -> bool {
    if let NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewRoute(route) | RouteNetlinkMessage::DelRoute(route)) =
        &message.payload
    {
        return route.header.destination_prefix_length == 0;
    }
    true
}

async fn link_by_name(handle: &Handle, name: &str) -> anyhow::Result<LinkMessage> {
    let mut links = handle.link().get().match_name(name.to_owned()).execute();
    let link = links.try_next().await.with_context(|| format!("no interface {name}"))?;
    link.with_context(|| format!("no interface {name}"))
}

async fn dump(handle: &Handle) -> anyhow::Result<Vec<Interface>> {
    let mut interfaces = BTreeMap::new();
    let (mut bridges, mut carrying) = (Vec::new(), BTreeSet::new());
    let mut links = handle.link().get().execute();
    while let Some(message) = links.try_next().await.context("cannot list links")? {
        let device = Device::of(&message);
        if device.is_bridge {
            bridges.push(device.interface.index);
        }
        if device.interface.is_underlay() {
            carrying.extend(device.controller);
        }
        interfaces.insert(device.interface.index, (device.interface, Vec::new()));
    }
    for bridge in bridges {
        if let Some((interface, _)) = interfaces.get_mut(&bridge) {
            interface.up &= carrying.contains(&bridge);
        }
    }
    let mut addresses = handle.address().get().execute();
    while let Some(message) = addresses.try_next().await.context("cannot list addresses")? {
        let Some((_, list)) = interfaces.get_mut(&message.header.index) else { continue };
        let flags = flags_of(&message);
        if flags.intersects(AddressFlags::Tentative | AddressFlags::Dadfailed) {
            continue;
        }
        if let Some(address) = address_of(&message) {
            // In IPv6 the bit of "secondary" says "temporary"; in IPv4 it says nothing of interest here.
            let deprecated = flags.contains(AddressFlags::Deprecated);
            let temporary = address.is_ipv6() && flags.contains(AddressFlags::Secondary);
            list.push(Listed { link_local: is_link_local(address), deprecated, temporary, order: list.len(), address });
        }
    }
    if let Some((index, link)) = uplink(handle).await
        && let Some((interface, _)) = interfaces.get_mut(&index)
    {
        interface.uplink = Some(link);
    }
    Ok(interfaces
        .into_values()
        .map(|(mut interface, mut list)| {
            list.sort_unstable();
            let listed = list.iter().filter(|it| !list.iter().any(|other| it.is_needless_beside(other)));
            interface.addresses = listed.map(|listed| listed.address).collect();
            interface
        })
        .collect())
}

/// An address, in the order of usefulness.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Listed {
    link_local: bool,
    deprecated: bool,
    temporary: bool,
    order: usize,
    address: IpAddr,
}

impl Listed {
    fn is_needless_beside(&self, other: &Self) -> bool {
        let network = |address: IpAddr| match address {
            IpAddr::V6(v6) => Some(v6.to_bits() >> 64),
            IpAddr::V4(_) => None,
        };
        let stable = !other.temporary && !other.deprecated;
        self.temporary && stable && network(self.address) == network(other.address)
    }
}

/// By which interface and gateway the kernel would send to the IPv4 Internet, and from which address of ours: whatever
/// policies it was given. `None` without such a way, or if the gateway or the address is not private.
async fn uplink(handle: &Handle) -> Option<(u32, Link)> {
    let question = RouteMessageBuilder::<Ipv4Addr>::new().destination_prefix(SOMEWHERE, 32).build();
    let answer = handle.route().get(question).execute().try_next().await;
    let (mut index, mut gateway, mut address) = (None, None, None);
    for attribute in answer.ok()??.attributes {
        if let RouteAttribute::Oif(oif) = attribute {
            index = Some(oif);
        } else if let RouteAttribute::Gateway(RouteAddress::Inet(at)) = attribute {
            gateway = Some(at);
        } else if let RouteAttribute::PrefSource(RouteAddress::Inet(at)) = attribute {
            address = Some(at);
        }
    }
    Some((index?, Link::private(gateway?, address?)?))
}

fn flags_of(message: &AddressMessage) -> AddressFlags {
    let wide = message.attributes.iter().find_map(match_flags);
    wide.unwrap_or_else(|| AddressFlags::from_bits_retain(u32::from(message.header.flags.bits())))
}

fn match_flags(attribute: &AddressAttribute) -> Option<AddressFlags> {
    if let AddressAttribute::Flags(flags) = attribute { Some(*flags) } else { None }
}

/// The interface's own address: `Local` where there is one (on point-to-point links `Address` is the other end's).
fn address_of(message: &AddressMessage) -> Option<IpAddr> {
    let mut address = None;
    for attribute in &message.attributes {
        if let AddressAttribute::Local(local) = attribute {
            return Some(*local);
        }
        if let AddressAttribute::Address(other) = attribute {
            address = Some(*other);
        }
    }
    address
}

/// What one message of a dump says of a link.
struct Device {
    interface: Interface,
    /// The bridge or bond that it is a port of.
    controller: Option<u32>,
    /// A bridge that never had a port calls itself up, and one whose only port is a tunnel leads nowhere else: its ports
    /// say whether it is up.
    is_bridge: bool,
}

impl Device {
    fn of(message: &LinkMessage) -> Self {
        let (mut name, mut mac, mut kind, mut carrier, mut controller) =
            (String::new(), None, String::new(), true, None);
        for attribute in &message.attributes {
            if let LinkAttribute::IfName(text) = attribute {
                name.clone_from(text);
            } else if let LinkAttribute::Address(bytes) = attribute {
                mac = <[u8; 6]>::try_from(bytes.as_slice()).ok().filter(|bytes| *bytes != [0; 6]).map(Mac);
            } else if let LinkAttribute::Carrier(state) = attribute {
                carrier = *state != 0;
            } else if let LinkAttribute::Controller(index) = attribute {
                controller = Some(*index);
            } else if let LinkAttribute::LinkInfo(infos) = attribute {
                for info in infos {
                    if let LinkInfo::Kind(found) = info {
                        kind = found.to_string();
                    }
                }
            }
        }
        let flags = message.header.flags;
        let is_bridge = kind == "bridge";
        let kind = if flags.contains(LinkFlags::Loopback) {
            InterfaceKind::Loopback
        } else {
            kind_of(&kind, &name, message.header.link_layer_type)
        };
        // RUNNING is the kernel's summary of operational state: up, or unknown to a driver that does not tell.
        let up = flags.contains(LinkFlags::Up | LinkFlags::Running) && carrier;
        let index = message.header.index;
        let interface = Interface { index, name, addresses: Vec::new(), mac, up, kind, uplink: None };
        Self { interface, controller, is_bridge }
    }
}

/// Judges by the kernel's device kind; by the name only where the kernel names no kind. PPP counts as physical: it is
/// how many homes reach the Internet.
fn kind_of(kind: &str, name: &str, layer: LinkLayerType) -> InterfaceKind {
    const TUNNELS: [&str; 21] = [
        "tun",
        "wireguard",
        "amneziawg",
        "ovpn",
        "ovpn-dco",
        "vxlan",
        "geneve",
        "gre",
        "gretap",
        "ip6gre",
        "ip6gretap",
        "erspan",
        "ip6erspan",
        "ipip",
        "ip6tnl",
        "sit",
        "vti",
        "vti6",
        "xfrm",
        "gtp",
        "bareudp",
    ];
    const NAMES: [&str; 8] = ["meshd", "tun", "tap", "wg", "tailscale", "edge", "n2n", "tinc"];
    let numbered = |rest: &str| !rest.starts_with(|next: char| next.is_ascii_alphabetic());
    let named = |prefix: &&str| name.strip_prefix(*prefix).is_some_and(numbered);
    if TUNNELS.contains(&kind) || layer == LinkLayerType::Tunnel || layer == LinkLayerType::Tunnel6 {
        InterfaceKind::Overlay
    } else if matches!(kind, "dummy" | "ifb" | "nlmon") {
        InterfaceKind::Loopback
    } else if kind.is_empty() && (name.starts_with("zt") || NAMES.iter().any(named)) {
        InterfaceKind::Overlay
    } else {
        InterfaceKind::Physical
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn interface(index: u32, kind: InterfaceKind, up: bool, addresses: &[&str]) -> Interface {
        let addresses = addresses.iter().map(|text| text.parse().expect("an address")).collect();
        Interface { index, name: format!("if{index}"), addresses, mac: None, up, kind, uplink: None }
    }

    fn listed(interfaces: &[Interface]) -> Vec<String> {
        let overlay = |address: IpAddr| matches!(address, IpAddr::V4(address) if address.octets()[..2] == [10, 99]);
        endpoints(interfaces, 4747, overlay).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn only_physical_interfaces_that_are_up_give_endpoints() {
        let interfaces = [
            interface(1, InterfaceKind::Loopback, true, &["127.0.0.1", "::1"]),
            interface(2, InterfaceKind::Physical, true, &["192.0.2.7", "10.99.0.1"]),
            interface(3, InterfaceKind::Overlay, true, &["100.64.0.9"]),
            interface(4, InterfaceKind::Physical, false, &["198.51.100.7"]),
        ];
        assert_eq!(listed(&interfaces), ["192.0.2.7:4747"]);
    }

    #[test]
    fn a_list_cut_short_keeps_one_way_in_for_each_interface() {
        let interfaces = [
            interface(2, InterfaceKind::Physical, true, &["192.0.2.7", "2001:db8::7", "2001:db8::8", "fe80::1"]),
            interface(3, InterfaceKind::Physical, true, &["169.254.1.1", "2001:db8:1::7"]),
        ];
        let expected =
            ["192.0.2.7:4747", "[2001:db8::7]:4747", "[2001:db8:1::7]:4747", "[2001:db8::8]:4747", "169.254.1.1:4747"];
        assert_eq!(listed(&interfaces), expected);
    }

    #[test]
    fn tunnels_are_told_from_ethernet() {
        let kind = |kind, name| kind_of(kind, name, LinkLayerType::Ether);
        for (device, name) in
            [("tun", "lab"), ("wireguard", "office"), ("vxlan", "v0"), ("", "tap3"), ("", "zt7nnig26")]
        {
            assert_eq!(kind(device, name), InterfaceKind::Overlay, "{device} {name}");
        }
        for (device, name) in [("", "eth0"), ("", "wlp3s0"), ("veth", "tap0"), ("bridge", "br0"), ("", "tunneler0")] {
            assert_eq!(kind(device, name), InterfaceKind::Physical, "{device} {name}");
        }
        assert_eq!(kind("dummy", "dummy0"), InterfaceKind::Loopback);
    }

    #[test]
    fn the_kernel_tells_at_least_of_loopback() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let interfaces = runtime.block_on(snapshot()).expect("netlink needs no rights");
        let loopback = interfaces.iter().find(|interface| interface.name == "lo").expect("every namespace has lo");
        assert_eq!(loopback.kind, InterfaceKind::Loopback);
    }
}
