//! What netlink tells of links and does to them.

use std::io::ErrorKind;
use std::sync::{Arc, Mutex};

use meshd::identity::Ipv4Prefix;

use super::*;

#[test]
fn a_tap_gets_its_addresses_and_no_mdns() {
    let Some(lab) = Lab::new("TAP") else { return };
    let [a, b] = [lab.namespace("a"), lab.namespace("b")];
    lab.cable((&a, "eth0", "192.0.2.1/24"), (&b, "eth0", "192.0.2.2/24"));
    let began = Instant::now();
    let one = Member::start(&a, 1);
    thread::sleep(Duration::from_millis(300));
    let tap = a.run(|| {
        let builder = tun_rs::DeviceBuilder::new().name("lab0").layer(tun_rs::Layer::L2);
        let device = builder.build_sync().expect("root may make a TAP");
        device.set_nonblocking(true).expect("nonblocking");
        device
    });
    let mut addresses = TapAddresses {
        ipv4: "10.99.1.1".parse().expect("an address"),
        prefix: Ipv4Prefix::new("10.99.0.0".parse().expect("an address"), 16).expect("a prefix"),
        ipv6: "fd99::1".parse().expect("an address"),
        mtu: 1500,
    };
    a.ip(&["address", "add", "172.31.0.1/24", "dev", "lab0"]);
    a.set_tap("lab0", addresses);
    a.set_tap("lab0", addresses);
    addresses.ipv4 = "10.99.1.2".parse().expect("an address");
    addresses.ipv6 = "fd99::2".parse().expect("an address");
    addresses.mtu = 1400;
    a.set_tap("lab0", addresses);
    let interfaces = a.interfaces();
    let device = interfaces.iter().find(|interface| interface.name == "lab0").expect("made above");
    assert_eq!((device.kind, device.up), (InterfaceKind::Overlay, true));
    for (address, expected) in
        [("10.99.1.2", true), ("fd99::2", true), ("172.31.0.1", true), ("10.99.1.1", false), ("fd99::1", false)]
    {
        let address: IpAddr = address.parse().expect("an address");
        assert_eq!(device.addresses.contains(&address), expected, "{address} among {:?}", device.addresses);
    }
    assert!(netlink::endpoints(&interfaces, 4747, |_| false).contains(&endpoint("192.0.2.1:4747")));
    assert!(netlink::endpoints(&interfaces, 4747, |_| false).iter().all(|e| e.ip() != device.addresses[0]));

    let two = Member::start(&b, 2);
    one.sees(2, began);
    let last = two.sees(1, began).0;
    assert!(last.endpoints.iter().all(|endpoint| !device.addresses.contains(&endpoint.ip())), "{last:?}");
    // One that starts when the TAP is there: `mdns-sd` joins its group there for a moment, but nothing is said.
    let three = Member::start(&a, 3);
    two.sees(3, began);
    thread::sleep(SILENCE);
    drop((one, two, three));
    let mut frames = 0;
    let mut buffer = vec![0; 65_536];
    loop {
        match tap.recv(&mut buffer) {
            Ok(length) => {
                frames += 1;
                assert!(mdns_payload(&buffer[..length]).is_none(), "mDNS on the TAP: {}", printable(&buffer[..length]));
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => break,
            Err(error) => panic!("{error}"),
        }
    }
    assert!(frames > 0, "the kernel's own neighbour discovery passes, so the TAP was really looked at");
}

#[test]
fn netlink_tells_of_links_that_come_and_go() {
    let Some(lab) = Lab::new("netlink") else { return };
    let [a, b] = [lab.namespace("a"), lab.namespace("b")];
    lab.cable((&a, "eth0", "192.0.2.1/24"), (&b, "eth0", ""));
    a.ip(&["link", "add", "docker0", "type", "bridge"]);
    a.ip(&["address", "add", "172.17.0.1/16", "dev", "docker0"]);
    a.ip(&["link", "set", "docker0", "up"]);
    let watch = Watch::start(&a);
    let has = |interfaces: &[Interface], address: &str| {
        netlink::endpoints(interfaces, 1, |_| false).iter().any(|endpoint| endpoint.ip().to_string() == address)
    };
    watch.until(|interfaces| has(interfaces, "192.0.2.1"));
    assert!(!netlink::endpoints(&a.interfaces(), 1, |_| false).iter().any(|e| e.ip().to_string() == "172.17.0.1"));
    lab.cable((&a, "veth1", ""), (&b, "eth9", ""));
    a.ip(&["link", "set", "veth1", "master", "docker0"]);
    watch.until(|interfaces| has(interfaces, "172.17.0.1"));
    b.ip(&["link", "set", "eth9", "down"]);
    watch.until(|interfaces| !has(interfaces, "172.17.0.1"));
    watch.until(|interfaces| {
        let eth0 = interfaces.iter().find(|interface| interface.name == "eth0").expect("made above");
        eth0.addresses.iter().any(|address| matches!(address, IpAddr::V6(a) if a.is_unicast_link_local()))
    });
    a.ip(&["address", "add", "2001:db8::1/64", "dev", "eth0"]);
    figure("an IPv6 address told, after duplicate detection", watch.until(|now| has(now, "2001:db8::1")).1);
    b.ip(&["link", "set", "eth0", "down"]);
    figure("a pulled cable told", watch.until(|interfaces| !has(interfaces, "192.0.2.1")).1);
    b.ip(&["link", "set", "eth0", "up"]);
    figure("a plugged cable told", watch.until(|interfaces| has(interfaces, "192.0.2.1")).1);
    // A storm while the watcher is busy elsewhere: the kernel throws notifications away (ENOBUFS), the last picture is
    // true all the same.
    let busy = watch.gate.lock().expect("no panic in the watcher");
    let storm: String = (0..2000)
        .map(|n| {
            format!(
                "address add 10.{}.{}.1/32 dev eth0\naddress del 10.{}.{}.1/32 dev eth0\n",
                n / 250,
                n % 250,
                n / 250,
                n % 250
            )
        })
        .chain(["address add 203.0.113.9/32 dev eth0\n".to_owned()])
        .collect();
    a.ip_batch(&storm);
    drop(busy);
    figure("the picture after 4000 changes at once", watch.until(|interfaces| has(interfaces, "203.0.113.9")).1);
}

/// The pictures that `netlink::watch` sends.
struct Watch {
    pictures: Receiver<Vec<Interface>>,
    /// While it is locked the watching thread stands still after its next picture, and reads no netlink.
    gate: Arc<Mutex<()>>,
    _stop: oneshot::Sender<()>,
}

impl Watch {
    fn start(namespace: &Namespace) -> Self {
        let (report, pictures) = sync_channel(4096);
        let (stop, mut stopped) = oneshot::channel::<()>();
        let gate = Arc::new(Mutex::new(()));
        let entrance = Arc::clone(&gate);
        namespace.spawn(move || {
            runtime().block_on(async move {
                let (sender, mut receiver) = mpsc::channel(1);
                tokio::spawn(netlink::watch(sender));
                loop {
                    tokio::select! {
                        picture = receiver.recv() => match picture {
                            Some(picture) => {
                                let _ = report.try_send(picture);
                                drop(entrance.lock());
                            }
                            None => break,
                        },
                        _ = &mut stopped => break,
                    }
                }
            });
        });
        Self { pictures, gate, _stop: stop }
    }

    /// Waits for a picture that is as `wanted`; how long that took.
    fn until(&self, wanted: impl Fn(&[Interface]) -> bool) -> (Vec<Interface>, Duration) {
        let began = Instant::now();
        while let Some(left) = PATIENCE.checked_sub(began.elapsed()) {
            if let Ok(picture) = self.pictures.recv_timeout(left)
                && wanted(&picture)
            {
                return (picture, began.elapsed());
            }
        }
        panic!("no such picture within {PATIENCE:?}");
    }
}
