//! What runs above the TAP: a host that pings, answers pings, shouts, and remembers what it heard.
//!
//! Frames carry an EtherType for local experiments (IEEE 802, 88-b5), so nothing in meshd can know them: they are
//! Ethernet like any other.

use std::collections::{BTreeMap, VecDeque};
use std::net::{Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use meshd::identity::Mac;
use meshd::wire::ethernet::{ETHERNET_HEADER_LEN, ETHERTYPE_ARP, FrameHead};

use crate::host::HostId;

/// EtherType of our frames.
const ETHERTYPE: u16 = 0x88b5;

/// Kind, number, sequence.
const HEAD: usize = 9;

/// Shortest frame without its checksum (IEEE 802.3).
pub const MIN_FRAME: usize = 60;

/// Frames kept by a station that records: a test looks at a few, a leak would be millions.
const MAX_RECORDED: usize = 4096;

/// A ping without an answer after this is lost.
const PATIENCE: Duration = Duration::from_secs(10);

/// What a frame of ours says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Said {
    /// Answer this.
    Ask {
        /// Which conversation.
        conversation: u32,
        /// Which of its pings.
        sequence: u32,
    },
    /// The answer.
    Answer {
        /// From the question.
        conversation: u32,
        /// From the question.
        sequence: u32,
    },
    /// Something said to everybody.
    Call {
        /// Which one.
        id: u32,
    },
}

impl Said {
    /// A frame of `len` bytes that says it.
    pub fn frame(self, source: Mac, destination: Mac, len: usize) -> Vec<u8> {
        let (kind, number, sequence) = match self {
            Self::Ask { conversation, sequence } => (1, conversation, sequence),
            Self::Answer { conversation, sequence } => (2, conversation, sequence),
            Self::Call { id } => (3, id, 0),
        };
        let mut frame = head(source, destination, ETHERTYPE);
        frame.push(kind);
        frame.extend(u32::to_be_bytes(number));
        frame.extend(u32::to_be_bytes(sequence));
        // The filling differs from byte to byte, so a frame that is put together wrongly shows.
        frame.extend((frame.len()..len).map(|at| at as u8));
        frame
    }

    /// What `frame` says, if it is one of ours and whole.
    pub fn read(frame: &[u8]) -> Option<Self> {
        let head = FrameHead::read(frame).filter(|head| head.ethertype == ETHERTYPE)?;
        let (body, filling) = frame[head.payload..].split_first_chunk::<HEAD>()?;
        let sound = filling.iter().zip(head.payload + HEAD..).all(|(byte, at)| *byte == at as u8);
        let [kind, a, b, c, d, e, f, g, h] = *body;
        let (number, sequence) = (u32::from_be_bytes([a, b, c, d]), u32::from_be_bytes([e, f, g, h]));
        match kind {
            _ if !sound => None,
            1 => Some(Self::Ask { conversation: number, sequence }),
            2 => Some(Self::Answer { conversation: number, sequence }),
            3 => Some(Self::Call { id: number }),
            _ => None,
        }
    }
}

/// An ARP request (RFC 826): who has `wanted`?
pub fn arp_request(mac: Mac, address: Ipv4Addr, wanted: Ipv4Addr) -> Vec<u8> {
    let mut frame = head(mac, Mac::BROADCAST, ETHERTYPE_ARP);
    frame.extend([0, 1, 8, 0, 6, 4, 0, 1]);
    frame.extend(mac.0);
    frame.extend(address.octets());
    frame.extend([0; 6]);
    frame.extend(wanted.octets());
    frame.resize(MIN_FRAME, 0);
    frame
}

/// The binding that an ARP reply announces.
pub fn arp_reply(frame: &[u8]) -> Option<(Ipv4Addr, Mac)> {
    let head = FrameHead::read(frame).filter(|head| head.ethertype == ETHERTYPE_ARP)?;
    let body = frame[head.payload..].first_chunk::<28>()?;
    if body[..8] != [0, 1, 8, 0, 6, 4, 0, 2] {
        return None;
    }
    let mac = [body[8], body[9], body[10], body[11], body[12], body[13]];
    Some((Ipv4Addr::new(body[14], body[15], body[16], body[17]), Mac(mac)))
}

fn head(source: Mac, destination: Mac, ethertype: u16) -> Vec<u8> {
    let mut frame = Vec::with_capacity(MIN_FRAME.max(ETHERNET_HEADER_LEN));
    frame.extend(destination.0);
    frame.extend(source.0);
    frame.extend(ethertype.to_be_bytes());
    frame
}

/// The far end of a host's TAP.
#[derive(Debug, Clone)]
pub struct Station {
    /// The TAP's MAC.
    pub mac: Mac,
    /// As the node set it.
    pub ipv4: Option<Ipv4Addr>,
    /// As the node set it.
    pub ipv6: Option<Ipv6Addr>,
    /// Why addresses changed, as the node told its user.
    pub notices: Vec<String>,
    /// Frames heard, if it records.
    pub heard: VecDeque<(Duration, Vec<u8>)>,
    /// Whether it records.
    pub records: bool,
}

impl Station {
    /// A station that has heard nothing yet.
    pub fn new(mac: Mac) -> Self {
        Self { mac, ipv4: None, ipv6: None, notices: Vec::new(), heard: VecDeque::new(), records: false }
    }

    /// Hears a frame and says what there is to answer.
    pub fn hear(&mut self, frame: &[u8], now: Duration) -> Option<Vec<u8>> {
        if self.records {
            if self.heard.len() >= MAX_RECORDED {
                self.heard.pop_front();
            }
            self.heard.push_back((now, frame.to_vec()));
        }
        let Some(Said::Ask { conversation, sequence }) = Said::read(frame) else { return None };
        let FrameHead { source: asker, destination, .. } = FrameHead::read(frame)?;
        // On a LAN a switch that does not know it asks everywhere.
        if destination != self.mac {
            return None;
        }
        Some(Said::Answer { conversation, sequence }.frame(self.mac, asker, frame.len()))
    }
}

/// Pings from one host to another at intervals.
#[derive(Debug, Clone)]
pub struct Conversation {
    /// Who asks.
    pub from: HostId,
    /// Who answers.
    pub to: HostId,
    /// From ping to ping.
    pub every: Duration,
    /// The last ping is before this.
    pub until: Duration,
    /// Length of a frame, bytes.
    pub len: usize,
    /// Pings sent; while the asker does not run none are.
    pub sent: u32,
    /// Pings answered.
    pub answered: u32,
    /// Answers to pings that were answered already.
    pub doubled: u32,
    /// Pings given up.
    pub lost: u32,
    /// The slowest answer.
    pub worst: Duration,
    /// The longest time during which pings were sent and none of them was answered.
    pub longest_silence: Duration,
    /// When the longest silence began.
    pub silent_since: Duration,
    waiting: BTreeMap<u32, Duration>,
    unanswered_since: Option<Duration>,
}

impl Conversation {
    /// A conversation that has not begun.
    pub fn new(from: HostId, to: HostId, every: Duration, until: Duration, len: usize) -> Self {
        Self {
            from,
            to,
            every,
            until,
            len: len.max(MIN_FRAME),
            sent: 0,
            answered: 0,
            doubled: 0,
            lost: 0,
            worst: Duration::ZERO,
            longest_silence: Duration::ZERO,
            silent_since: Duration::ZERO,
            waiting: BTreeMap::new(),
            unanswered_since: None,
        }
    }

    /// Notes that a ping goes out and returns its sequence number.
    pub fn ask(&mut self, now: Duration) -> u32 {
        let sequence = self.sent;
        self.sent += 1;
        self.waiting.insert(sequence, now);
        self.unanswered_since.get_or_insert(now);
        self.settle(now);
        sequence
    }

    /// Notes an answer.
    pub fn answer(&mut self, sequence: u32, now: Duration) {
        let Some(asked) = self.waiting.remove(&sequence) else {
            self.doubled += 1;
            return;
        };
        self.answered += 1;
        self.worst = self.worst.max(now - asked);
        self.settle(now);
        self.unanswered_since = (!self.waiting.is_empty()).then_some(now);
    }

    /// Gives up what has waited too long at `now`, and measures the silence.
    pub fn settle(&mut self, now: Duration) {
        while let Some((&sequence, &asked)) = self.waiting.first_key_value()
            && now >= asked + PATIENCE
        {
            self.waiting.remove(&sequence);
            self.lost += 1;
        }
        if let Some(since) = self.unanswered_since
            && now - since > self.longest_silence
        {
            (self.longest_silence, self.silent_since) = (now - since, since);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: Mac = Mac([2, 0, 0, 0, 0, 1]);
    const B: Mac = Mac([2, 0, 0, 0, 0, 2]);

    #[test]
    fn a_station_answers_a_ping_to_whoever_asked() {
        let mut station = Station::new(B);
        let ask = Said::Ask { conversation: 7, sequence: 300 }.frame(A, B, 200);
        assert_eq!(ask.len(), 200);
        let answer = station.hear(&ask, Duration::ZERO).expect("an answer");
        assert_eq!(Said::read(&answer), Some(Said::Answer { conversation: 7, sequence: 300 }));
        let head = FrameHead::read(&answer).expect("a frame");
        assert_eq!((head.destination, head.source, answer.len()), (A, B, 200));
        assert_eq!(station.hear(&answer, Duration::ZERO), None);
    }

    #[test]
    fn a_frame_put_together_wrongly_says_nothing() {
        let mut frame = Said::Call { id: 1 }.frame(A, Mac::BROADCAST, 1514);
        assert_eq!(Said::read(&frame), Some(Said::Call { id: 1 }));
        frame.swap(100, 1200);
        assert_eq!(Said::read(&frame), None);
    }

    #[test]
    fn a_conversation_counts_losses_doubles_and_silences() {
        let second = Duration::from_secs(1);
        let mut conversation = Conversation::new(HostId(0), HostId(1), second, 100 * second, 60);
        let first = conversation.ask(second);
        conversation.answer(first, second + second / 10);
        conversation.answer(first, second * 2);
        let _lost = conversation.ask(2 * second);
        let third = conversation.ask(5 * second);
        conversation.answer(third, 6 * second);
        assert_eq!((conversation.longest_silence, conversation.silent_since), (4 * second, 2 * second));
        conversation.settle(12 * second);
        assert_eq!((conversation.sent, conversation.answered, conversation.doubled, conversation.lost), (3, 2, 1, 1));
        assert_eq!(conversation.worst, second);
        assert_eq!((conversation.longest_silence, conversation.silent_since), (6 * second, 6 * second));
    }

    #[test]
    fn an_arp_request_is_no_reply() {
        let request = arp_request(A, Ipv4Addr::new(10, 77, 0, 1), Ipv4Addr::new(10, 77, 0, 2));
        assert_eq!(request.len(), MIN_FRAME);
        assert_eq!(arp_reply(&request), None);
    }
}
