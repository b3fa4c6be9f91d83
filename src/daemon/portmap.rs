//! Speaks with the gateway about port mappings: PCP, NAT-PMP and UPnP-IGD.
//!
//! One task beside the control thread's loop, so that a slow gateway delays nothing. What to ask for and when is
//! [`Mappings`]' business. A gateway that is new is asked in all three languages at once, none of which harms one
//! that does not understand; of those answered soon the simplest is kept. At the end everything is given back.

#![expect(clippy::disallowed_methods, reason = "the task tells the mappings the time and waits for it")]

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::num::NonZeroU16;
use std::pin::pin;
use std::time::{Duration, Instant};

use crab_nat::{InternetProtocol, PortMapping, PortMappingOptions, PortMappingType, TimeoutConfig, natpmp, pcp};
use futures::future::{BoxFuture, join_all};
use futures::stream::{FuturesUnordered, StreamExt as _};
use igd_next::aio::Gateway;
use igd_next::aio::tokio::{Tokio, search_gateway};
use igd_next::{AddPortError, PortMappingProtocol, SearchOptions};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::nat::portmap::{LEASE, Lease, Link, Mappings, Method, Protocol, Wanted, ports};

/// For PCP and NAT-PMP: tries after 250, 750 and 1750 ms, the end after 3.75 s (RFC 6886, section 3.1, goes on for a minute; we
/// ask again anyway).
const TRIES: TimeoutConfig =
    TimeoutConfig { initial_timeout: Duration::from_millis(250), max_retries: 3, max_retry_timeout: None };

/// How long a UPnP gateway may take to be found: a datagram and two web pages of a slow machine.
const SEARCH: Duration = Duration::from_secs(5);

/// How long one answer to UPnP may take beyond that; some write their flash first.
const PATIENCE: Duration = Duration::from_secs(10);

/// When one language is understood, a better one is waited for so long: PCP and NAT-PMP are answered in milliseconds.
const GRACE: Duration = Duration::from_millis(200);

/// How long the end waits for mappings to be given back: others end by their lease.
const RELEASE: Duration = Duration::from_secs(2);

/// Under this name a mapping stands in the pages of a router.
const DESCRIPTION: &str = "meshd";

/// The port of UPnP discovery.
const SSDP: u16 = 1900;

/// Our side of the task.
pub struct Mapper {
    links: watch::Sender<Option<Link>>,
    task: JoinHandle<()>,
}

impl Mapper {
    /// Starts the task. `nonce` tells a gateway that mappings are ours. The leases that there are come out of the receiver; only
    /// the last counts.
    pub fn start(wanted: Vec<Wanted>, nonce: [u8; 12]) -> (Self, watch::Receiver<Vec<Lease>>) {
        let (links, link) = watch::channel(None);
        let (to_us, leases) = watch::channel(Vec::new());
        let task = tokio::spawn(run(Mappings::new(wanted), Asker::new(nonce), link, to_us));
        (Self { links, task }, leases)
    }

    /// The network changed, or something on it did: mappings are asked for again.
    pub fn set_link(&self, link: Option<Link>) {
        self.links.send_replace(link);
    }

    /// Gives everything back, within two seconds.
    pub async fn stop(self) {
        drop(self.links);
        if timeout(RELEASE, self.task).await.is_err() {
            tracing::debug!("the gateway did not take its mappings back in time");
        }
    }
}

/// What the task wakes for.
enum Next {
    Answers(Vec<(Wanted, Option<Granted>)>),
    Link,
    Timeout,
    Stop,
}

async fn run(
    mut mappings: Mappings,
    mut asker: Asker,
    mut links: watch::Receiver<Option<Link>>,
    to_us: watch::Sender<Vec<Lease>>,
) {
    let mut link = None;
    loop {
        let now = Instant::now();
        mappings.handle_timeout(now);
        let leases = mappings.leases();
        to_us.send_if_modified(|told| std::mem::replace(told, leases.clone()) != leases);
        let next = if let Some((link, due)) = mappings.poll_due(now) {
            let mut asking = pin!(asker.ask(link, &due));
            tokio::select! {
                answers = &mut asking => Next::Answers(answers),
                next = changed(&mut links, Some(link)) => {
                    if matches!(next, Next::Stop) {
                        // What is granted right now would be left behind otherwise.
                        let _ = timeout(RELEASE / 2, asking).await;
                    }
                    next
                }
            }
        } else {
            let deadline = mappings.poll_timeout();
            let timer = async {
                match deadline {
                    Some(at) => tokio::time::sleep_until(at.into()).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                next = changed(&mut links, None) => next,
                () = timer => Next::Timeout,
            }
        };
        match next {
            Next::Answers(answers) => {
                let now = Instant::now();
                for (wanted, granted) in answers {
                    match granted {
                        Some(Granted { external, method, lifetime }) => {
                            mappings.handle_granted(wanted, external, method, lifetime, now);
                        }
                        None => mappings.handle_refused(wanted, now),
                    }
                }
            }
            Next::Link => {
                let new = *links.borrow_and_update();
                if new != link {
                    let reachable =
                        matches!((link, new), (Some(Link { gateway, .. }), Some(new)) if new.gateway == gateway);
                    asker.leave(reachable).await;
                    link = new;
                }
                mappings.handle_link(new, Instant::now());
            }
            Next::Timeout => {}
            Next::Stop => break,
        }
    }
    asker.leave(true).await;
}

/// Waits for the next word about the network; for one of another link, if `link` is being asked: its gateway would only be
/// asked the same again.
async fn changed(links: &mut watch::Receiver<Option<Link>>, link: Option<Link>) -> Next {
    loop {
        if links.changed().await.is_err() {
            return Next::Stop;
        }
        if link.is_none() || *links.borrow_and_update() != link {
            return Next::Link;
        }
    }
}

/// What a gateway granted.
struct Granted {
    external: SocketAddr,
    method: Method,
    lifetime: Option<Duration>,
}

/// How a mapping is renewed and given back.
enum Held {
    Pmp(PortMapping),
    Upnp(Upnp, u16),
}

/// A UPnP gateway, and what is known of it.
#[derive(Clone)]
struct Upnp {
    gateway: Gateway<Tokio>,
    link: Link,
    /// It knows only leases for ever (error 725).
    permanent: bool,
}

/// A language that the gateway understands.
enum Way {
    /// The mapping with which we tried.
    Pcp(Box<PortMapping>),
    NatPmp,
    Upnp(Box<Upnp>),
}

impl Way {
    fn rank(&self) -> Method {
        match self {
            Self::Pcp(_) => Method::Pcp,
            Self::NatPmp => Method::NatPmp,
            Self::Upnp(_) => Method::Upnp,
        }
    }
}

struct Asker {
    nonce: pcp::Nonce,
    held: BTreeMap<Wanted, Held>,
}

impl Asker {
    fn new(nonce: [u8; 12]) -> Self {
        let word = |at: usize| u32::from_be_bytes([nonce[at], nonce[at + 1], nonce[at + 2], nonce[at + 3]]);
        Self { nonce: [word(0), word(4), word(8)], held: BTreeMap::new() }
    }

    /// Renews what there is, and finds a way for the rest.
    async fn ask(&mut self, link: Link, due: &[Wanted]) -> Vec<(Wanted, Option<Granted>)> {
        let mut ways = None;
        let mut answers = Vec::new();
        for &wanted in due {
            let mut granted = match self.held.get_mut(&wanted) {
                Some(held) => held.renew(link, wanted).await,
                None => None,
            };
            if granted.is_none() {
                let ways = match &mut ways {
                    Some(ways) => ways,
                    none => none.insert(self.find(link, wanted).await),
                };
                for way in ways {
                    if let Some((held, found)) = self.map(way, link, wanted).await {
                        self.held.insert(wanted, held);
                        granted = Some(found);
                        break;
                    }
                }
            }
            answers.push((wanted, granted));
        }
        answers
    }

    /// The languages that the gateway understands, the best first.
    async fn find(&self, link: Link, wanted: Wanted) -> Vec<Way> {
        let tries: [BoxFuture<'_, Option<Way>>; 4] = [
            Box::pin(async move { Some(Way::Pcp(Box::new(self.pcp(link, wanted).await?))) }),
            Box::pin(async move { natpmp_address(link).await.map(|_| Way::NatPmp) }),
            // Some answer only what is for everybody, some only what is for them.
            Box::pin(find_upnp(link, (Ipv4Addr::new(239, 255, 255, 250), SSDP).into())),
            Box::pin(find_upnp(link, (link.gateway, SSDP).into())),
        ];
        let mut tries: FuturesUnordered<_> = tries.into_iter().collect();
        let mut ways = Vec::new();
        while let Some(way) = tries.next().await {
            if let Some(way) = way {
                ways.push(way);
                break;
            }
        }
        let more = async {
            while let Some(way) = tries.next().await {
                ways.extend(way);
            }
        };
        let _ = timeout(GRACE, more).await;
        ways.sort_by_key(Way::rank);
        ways.dedup_by_key(|way| way.rank());
        ways
    }

    async fn map(&self, way: &Way, link: Link, wanted: Wanted) -> Option<(Held, Granted)> {
        match way {
            Way::Pcp(first) => {
                let is_it = first.internal_port().get() == wanted.port
                    && matches!(
                        (first.protocol(), wanted.protocol),
                        (InternetProtocol::Udp, Protocol::Udp) | (InternetProtocol::Tcp, Protocol::Tcp)
                    );
                let mapping = if is_it { PortMapping::clone(first) } else { self.pcp(link, wanted).await? };
                let granted = granted_by_pmp(link, &mapping).await?;
                Some((Held::Pmp(mapping), granted))
            }
            Way::NatPmp => {
                let port = NonZeroU16::new(wanted.port)?;
                let asked = natpmp::port_mapping(link.gateway.into(), internet(wanted), port, options(port)).await;
                let mapping = asked.inspect_err(|error| tracing::debug!("NAT-PMP: {error}")).ok()?;
                let granted = granted_by_pmp(link, &mapping).await?;
                Some((Held::Pmp(mapping), granted))
            }
            Way::Upnp(upnp) => {
                let mut upnp = Upnp::clone(upnp);
                for port in ports(wanted, link.address) {
                    match upnp.map(wanted, port).await {
                        Ok(granted) => return Some((Held::Upnp(upnp, port), granted)),
                        Err(Refused::Taken) => {}
                        Err(Refused::Otherwise) => break,
                    }
                }
                None
            }
        }
    }

    async fn pcp(&self, link: Link, wanted: Wanted) -> Option<PortMapping> {
        let port = NonZeroU16::new(wanted.port)?;
        let request = pcp::BaseMapRequest::new(link.gateway.into(), link.address.into(), internet(wanted), port);
        let asked = pcp::port_mapping(request, Some(self.nonce), None, options(port)).await;
        asked.inspect_err(|error| tracing::debug!("PCP: {error}")).ok()
    }

    /// Forgets every mapping; gives it back, if the gateway is within reach.
    async fn leave(&mut self, reachable: bool) {
        let held = std::mem::take(&mut self.held);
        if reachable && !held.is_empty() {
            let all = join_all(held.into_iter().map(|(wanted, held)| held.release(wanted)));
            let _ = timeout(RELEASE, all).await;
        }
    }
}

impl Held {
    async fn renew(&mut self, link: Link, wanted: Wanted) -> Option<Granted> {
        match self {
            Self::Pmp(mapping) => {
                mapping.renew().await.inspect_err(|error| tracing::debug!("not renewed: {error}")).ok()?;
                granted_by_pmp(link, mapping).await
            }
            Self::Upnp(upnp, port) => upnp.map(wanted, *port).await.ok(),
        }
    }

    async fn release(self, wanted: Wanted) {
        match self {
            Self::Pmp(mapping) => {
                if let Err((error, _)) = mapping.try_drop().await {
                    tracing::debug!("a mapping was not taken back: {error}");
                }
            }
            Self::Upnp(upnp, port) => {
                if let Err(error) = upnp.gateway.remove_port(upnp_protocol(wanted), port).await {
                    tracing::debug!("a mapping was not taken back: {error}");
                }
            }
        }
    }
}

/// What was granted by PCP, which says the address, or by NAT-PMP, which is asked for it.
async fn granted_by_pmp(link: Link, mapping: &PortMapping) -> Option<Granted> {
    let (address, method) = match mapping.mapping_type() {
        PortMappingType::Pcp { external_ip, .. } => (external_ip, Method::Pcp),
        PortMappingType::NatPmp => (natpmp_address(link).await?.into(), Method::NatPmp),
    };
    Some(Granted {
        external: SocketAddr::new(address, mapping.external_port().get()),
        method,
        lifetime: Some(Duration::from_secs(mapping.lifetime().into())),
    })
}

async fn natpmp_address(link: Link) -> Option<Ipv4Addr> {
    let asked = natpmp::external_address(link.gateway.into(), Some(TRIES)).await;
    asked.inspect_err(|error| tracing::debug!("NAT-PMP: {error}")).ok().filter(|address| !address.is_unspecified())
}

/// Looks for a UPnP gateway at `to`. It must be the gateway itself: anybody on the LAN can say to be one.
async fn find_upnp(link: Link, to: SocketAddr) -> Option<Way> {
    let mut options = SearchOptions::default();
    options.bind_addr = (link.address, 0).into();
    options.broadcast_address = to;
    options.timeout = Some(SEARCH);
    options.single_search_timeout = Some(SEARCH);
    let found = search_gateway(options).await;
    let gateway = found.inspect_err(|error| tracing::debug!("UPnP at {to}: {error}")).ok()?;
    (gateway.addr.ip() == IpAddr::V4(link.gateway))
        .then(|| Way::Upnp(Box::new(Upnp { gateway, link, permanent: false })))
}

/// Why UPnP gave no mapping.
enum Refused {
    /// Another one has the port (error 718).
    Taken,
    Otherwise,
}

impl Upnp {
    /// Asks for one external port, or for it again. The address is asked first: without one a rule would be left behind for
    /// nothing.
    async fn map(&mut self, wanted: Wanted, port: u16) -> Result<Granted, Refused> {
        let address = timeout(PATIENCE, self.gateway.get_external_ip()).await;
        let address = address.ok().and_then(Result::ok).filter(|address| !address.is_unspecified());
        let external = SocketAddr::new(address.ok_or(Refused::Otherwise)?, port);
        if !self.permanent {
            match self.add(wanted, port, LEASE).await {
                Ok(()) => return Ok(Granted { external, method: Method::Upnp, lifetime: Some(LEASE) }),
                Err(AddPortError::OnlyPermanentLeasesSupported) => self.permanent = true,
                Err(error) => return Err(Self::refused(&error)),
            }
        }
        match self.add(wanted, port, Duration::ZERO).await {
            Ok(()) => Ok(Granted { external, method: Method::Upnp, lifetime: None }),
            Err(error) => Err(Self::refused(&error)),
        }
    }

    async fn add(&self, wanted: Wanted, port: u16, lease: Duration) -> Result<(), AddPortError> {
        let inside = SocketAddr::from((self.link.address, wanted.port));
        self.gateway.add_port(upnp_protocol(wanted), port, inside, lease.as_secs() as u32, DESCRIPTION).await
    }

    fn refused(error: &AddPortError) -> Refused {
        tracing::debug!("UPnP: {error}");
        if matches!(error, AddPortError::PortInUse) { Refused::Taken } else { Refused::Otherwise }
    }
}

fn options(port: NonZeroU16) -> PortMappingOptions {
    PortMappingOptions {
        external_port: Some(port),
        lifetime_seconds: Some(LEASE.as_secs() as u32),
        timeout_config: Some(TRIES),
    }
}

fn internet(wanted: Wanted) -> InternetProtocol {
    match wanted.protocol {
        Protocol::Udp => InternetProtocol::Udp,
        Protocol::Tcp => InternetProtocol::Tcp,
    }
}

fn upnp_protocol(wanted: Wanted) -> PortMappingProtocol {
    match wanted.protocol {
        Protocol::Udp => PortMappingProtocol::UDP,
        Protocol::Tcp => PortMappingProtocol::TCP,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::{TcpListener, TcpStream};

    use super::*;

    const WANTED: Wanted = Wanted { protocol: Protocol::Udp, port: 4747 };
    const HERE: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 3);

    /// External port → the lease asked for, seconds.
    type Rules = Arc<Mutex<BTreeMap<u16, u32>>>;

    /// A UPnP gateway of the kind that miniupnpd is not: it knows only leases for ever, and somebody else has port 4747. How
    /// it is found the lab shows (netsim's `portmap`), for nobody looks for gateways on loopback.
    async fn stubborn_gateway(rules: Rules) -> Gateway<Tokio> {
        let pages = TcpListener::bind((HERE, 0)).await.expect("a free port");
        let addr = pages.local_addr().expect("it is bound");
        tokio::spawn(async move {
            while let Ok((stream, _)) = pages.accept().await {
                tokio::spawn(serve(stream, Arc::clone(&rules)));
            }
        });
        let arguments = ["NewExternalPort", "NewProtocol", "NewInternalPort", "NewInternalClient", "NewLeaseDuration"];
        let actions = ["AddPortMapping", "DeletePortMapping"];
        Gateway {
            addr,
            root_url: "/".to_owned(),
            control_url: "/control".to_owned(),
            control_schema_url: "/actions".to_owned(),
            control_schema: actions.map(|action| (action.to_owned(), arguments.map(str::to_owned).to_vec())).into(),
            service_type: "urn:schemas-upnp-org:service:WANIPConnection:1".to_owned(),
            provider: Tokio,
        }
    }

    async fn serve(mut stream: TcpStream, rules: Rules) {
        let (mut text, mut bytes) = (String::new(), [0; 4096]);
        while !text.contains("Envelope>") {
            let Ok(count @ 1..) = stream.read(&mut bytes).await else { return };
            text.push_str(&String::from_utf8_lossy(&bytes[..count]));
        }
        let number = |name: &str| -> u32 {
            let rest = text.split(&format!("<{name}>")).nth(1).and_then(|rest| rest.split('<').next());
            rest.and_then(|digits| digits.parse().ok()).unwrap_or_default()
        };
        let (port, lease) = (number("NewExternalPort") as u16, number("NewLeaseDuration"));
        let fault = |code: u16| {
            format!(
                "<Fault><detail><UPnPError><errorCode>{code}</errorCode><errorDescription>no</errorDescription>\
                 </UPnPError></detail></Fault>"
            )
        };
        let body = if text.contains(":GetExternalIPAddress") {
            "<GetExternalIPAddressResponse><NewExternalIPAddress>203.0.113.7</NewExternalIPAddress>\
             </GetExternalIPAddressResponse>"
                .to_owned()
        } else if text.contains(":DeletePortMapping") {
            rules.lock().expect("nobody panics").remove(&port);
            "<DeletePortMappingResponse/>".to_owned()
        } else if port == 4747 {
            fault(718)
        } else if lease != 0 {
            fault(725)
        } else {
            rules.lock().expect("nobody panics").insert(port, lease);
            "<AddPortMappingResponse/>".to_owned()
        };
        let page = format!("<Envelope><Body>{body}</Body></Envelope>");
        let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{page}", page.len());
        let _ = stream.write_all(answer.as_bytes()).await;
    }

    #[test]
    fn another_port_is_asked_for_and_a_lease_for_ever_is_given_back_at_the_end() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let test = async {
            let rules = Rules::default();
            let gateway = stubborn_gateway(Arc::clone(&rules)).await;
            let link = Link { gateway: HERE, address: Ipv4Addr::new(127, 0, 0, 9) };
            let way = Way::Upnp(Box::new(Upnp { gateway, link, permanent: false }));
            let mut asker = Asker::new([0; 12]);
            let (held, granted) = asker.map(&way, link, WANTED).await.expect("it has other ports");
            asker.held.insert(WANTED, held);
            let external = "203.0.113.7:4756".parse().expect("an endpoint");
            assert_eq!((granted.external, granted.method, granted.lifetime), (external, Method::Upnp, None));
            assert_eq!(*rules.lock().expect("nobody panics"), BTreeMap::from([(4756, 0)]));

            // A restart forgets the rule, and looking after it brings it back.
            rules.lock().expect("nobody panics").clear();
            let answers = asker.ask(link, &[WANTED]).await;
            assert!(matches!(&answers[..], [(WANTED, Some(granted))] if granted.external == external));
            assert_eq!(rules.lock().expect("nobody panics").len(), 1);
            asker.leave(true).await;
            assert!(rules.lock().expect("nobody panics").is_empty());
        };
        runtime.block_on(async { timeout(Duration::from_secs(20), test).await }).expect("in time");
    }
}
