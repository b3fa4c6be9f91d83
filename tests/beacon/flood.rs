//! What strangers announce, much of it at once.

use super::*;

#[test]
fn a_flood_of_forged_announcements_is_outlived() {
    let Some(lab) = Lab::new("flood") else { return };
    let [a, b] = [lab.namespace("a"), lab.namespace("b")];
    lab.cable((&a, "eth0", "192.0.2.1/24"), (&b, "eth0", "192.0.2.2/24"));
    a.settle();
    b.settle();
    let before = resident_bytes();
    let member = Member::start(&a, 1);
    member.sees_nothing(Duration::from_millis(500));
    let sent = b.run(|| {
        let socket = std::net::UdpSocket::bind("192.0.2.2:0").expect("a socket");
        let (began, mut sent) = (Instant::now(), 0_u32);
        while began.elapsed() < FLOOD {
            sent += u32::from(socket.send_to(&forged_announcement(sent), "224.0.0.251:5353").is_ok());
        }
        sent
    });
    let grown = resident_bytes().saturating_sub(before) / 1_000_000;
    let _ = writeln!(std::io::stderr(), "figure: {sent} forged announcements in {FLOOD:?}: {grown} MB more memory");
    let began = Instant::now();
    let late = Member::start(&b, 2);
    figure("after the flood, heard", member.sees(2, began).1);
    figure("after the flood, hears", late.sees(1, began).1);
    assert!(member.stop().foreign > 100, "the flood was really heard");
    assert!(grown < 200, "{grown} MB");
}

/// `mdns-sd` handles some 1500 new services in a second, the rest of the flood is dropped by the kernel.
const FLOOD: Duration = Duration::from_secs(3);

/// A complete announcement of a service of our type with a number for its name, as a stranger would forge it.
fn forged_announcement(number: u32) -> Vec<u8> {
    let name = |labels: &[&str]| -> Vec<u8> {
        let mut bytes: Vec<u8> = labels.iter().flat_map(|l| [&[l.len() as u8], l.as_bytes()].concat()).collect();
        bytes.push(0);
        bytes
    };
    let instance = format!("forged{number}");
    let (service, full) = (name(&["_meshd", "_udp", "local"]), name(&[&instance, "_meshd", "_udp", "local"]));
    let host = name(&[&instance, "local"]);
    let mut packet = vec![0, 0, 0x84, 0, 0, 0, 0, 4, 0, 0, 0, 0];
    let text = [&[160, b'a', b'='][..], &[0x5a; 158], &[160, b'b', b'='], &[0xa5; 158]].concat();
    let target = [&[0; 6][..], &host].concat();
    for (owner, kind, data) in
        [(&service, 12, &full), (&full, 33, &target), (&full, 16, &text), (&host, 1, &vec![192, 0, 2, 2])]
    {
        packet.extend_from_slice(owner);
        packet.extend_from_slice(&[0, kind, 0, 1, 0, 0, 0x11, 0x94]);
        packet.extend_from_slice(&(data.len() as u16).to_be_bytes());
        packet.extend_from_slice(data);
    }
    packet
}

fn resident_bytes() -> u64 {
    let pages = std::fs::read_to_string("/proc/self/statm").expect("Linux");
    pages.split(' ').nth(1).and_then(|pages| pages.parse::<u64>().ok()).expect("resident pages") * 4096
}
