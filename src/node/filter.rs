//! The packet filter, sorted out: which rules concern which member, and what an operator asks about them.
//!
//! Rules speak of names and roles; forwarding gets, for each member, only those that concern it ([`Clause`]). A name that several
//! members bear is safe to deny and not to allow: it fits all of them in a `deny` and none in an `allow`.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use rand_core::Rng;

use crate::config::filter::{Action, Protocol, Rule, Rules, Subject};
use crate::dht::{Record, Verified};
use crate::identity::{Name, PeerId};
use crate::switch::Fib;
use crate::switch::filter::{Clause, Filter, FilterKeys, fits};

use super::Node;
use super::command::{CommandId, FilterInfo, FilterRuleInfo, FilterVerdictInfo, Reply};

/// The rules, and what forwarding shares while they deny something.
#[derive(Default)]
pub(super) struct PacketFilter {
    rules: Rules,
    shared: Option<Arc<Filter>>,
}

impl Node {
    /// From now on these rules hold for what comes in. What this machine has begun before goes on.
    pub fn set_filter(&mut self, rules: Rules, now: Instant) {
        let count = rules.rules.len() + 1;
        self.filter.shared = match &self.filter.shared {
            _ if rules.allow_everything() => None,
            Some(shared) => Some(shared.with_rules(count)),
            None => {
                let mut keys = FilterKeys::default();
                keys.as_flattened_mut().iter_mut().for_each(|key| *key = self.rng.next_u64());
                Some(Filter::new(count, keys, now))
            }
        };
        self.filter.rules = rules;
        self.redraw(now);
    }

    /// Puts the filter into a picture whose peers are there already.
    pub(super) fn draw_filter(&self, fib: &mut Fib) {
        let Some(shared) = &self.filter.shared else { return };
        fib.filter = Some(Arc::clone(shared));
        let (names, own) = (self.bearers(), self.roster.get(&self.own.peer));
        // Most members are alike.
        let mut drawn: BTreeMap<Vec<usize>, Arc<[Clause]>> = BTreeMap::new();
        for peer in &mut fib.peers {
            let from = self.roster.get(&peer.peer);
            let concern = self.concerning(&names, from, own);
            let clauses = drawn.entry(concern).or_insert_with_key(|rules| self.clauses(rules));
            peer.clauses = Some(Arc::clone(clauses));
        }
    }

    /// How many members bear each name.
    fn bearers(&self) -> BTreeMap<&Name, usize> {
        let mut bearers = BTreeMap::new();
        for record in self.roster.iter() {
            *bearers.entry(record.name()).or_default() += 1;
        }
        bearers
    }

    /// The rules for what `from` sends to `to`, by number.
    fn concerning(
        &self,
        names: &BTreeMap<&Name, usize>,
        from: Option<&Verified<Record>>,
        to: Option<&Verified<Record>>,
    ) -> Vec<usize> {
        let is_one_of = |subjects: &[Subject], action: Action, record: Option<&Verified<Record>>| {
            subjects.iter().any(|subject| match (subject, record) {
                (Subject::Any, _) => true,
                (_, None) => false,
                (Subject::Role(role), Some(record)) => record.membership().roles().contains(*role),
                (Subject::Peer(peer), Some(record)) => record.peer() == *peer,
                (Subject::Member(name), Some(record)) => {
                    record.name() == name && (action == Action::Deny || names.get(name) == Some(&1))
                }
            })
        };
        let concerns = |rule: &Rule| is_one_of(&rule.from, rule.action, from) && is_one_of(&rule.to, rule.action, to);
        let rules = self.filter.rules.rules.iter().enumerate();
        rules.filter(|(_, rule)| concerns(rule)).map(|(number, _)| number).collect()
    }

    fn clauses(&self, numbers: &[usize]) -> Arc<[Clause]> {
        let Rules { rules, default } = &self.filter.rules;
        let of = |number: &usize| {
            let Rule { action, protocol, ports, .. } = &rules[*number];
            let protocol = protocol.map(Protocol::numbers);
            Clause { allow: *action == Action::Allow, protocol, ports: ports.clone(), rule: *number }
        };
        let last = Clause { allow: *default == Action::Allow, protocol: None, ports: Vec::new(), rule: rules.len() };
        numbers.iter().map(of).chain([last]).collect()
    }

    pub(super) fn filter_info(&self) -> FilterInfo {
        let PacketFilter { rules: Rules { rules, default }, shared } = &self.filter;
        let refused = |number| shared.as_ref().map_or(0, |shared| shared.refused(number));
        let info = |(number, rule): (usize, &Rule)| FilterRuleInfo {
            line: rule.line,
            rule: rule.text.clone(),
            refused: refused(number),
        };
        FilterInfo {
            rules: rules.iter().enumerate().map(info).collect(),
            default: default.to_string(),
            refused_by_default: refused(rules.len()),
        }
    }

    /// Takes new rules from the operator.
    pub(super) fn load_filter(&mut self, command: CommandId, text: &str, now: Instant) {
        let reply = match text.parse() {
            Ok(rules) => {
                self.set_filter(rules, now);
                Reply::Filter(self.filter_info())
            }
            Err(error) => Reply::Error { message: format!("{error}") },
        };
        self.reply(command, reply);
    }

    /// What would become of a packet, and by which rule.
    pub(super) fn test_filter(&self, from: &str, to: Option<&str>, protocol: &str, port: Option<u16>) -> Reply {
        match self.filter_verdict(from, to, protocol, port) {
            Ok(verdict) => Reply::FilterVerdict(verdict),
            Err(message) => Reply::Error { message },
        }
    }

    fn filter_verdict(
        &self,
        from: &str,
        to: Option<&str>,
        protocol: &str,
        port: Option<u16>,
    ) -> Result<FilterVerdictInfo, String> {
        let sender = self.member(from)?;
        let receiver = match to.map(|to| self.member(to)) {
            Some(Ok(peer)) => peer,
            // Itself is the usual one.
            Some(Err(error)) => {
                to.and_then(|to| self.resolve(to)).filter(|peer| *peer == self.own.peer).ok_or(error)?
            }
            None => self.own.peer,
        };
        let protocol: Protocol = protocol.parse().map_err(|fault| format!("{fault}"))?;
        let has_ports = matches!(protocol, Protocol::Tcp | Protocol::Udp);
        match port {
            Some(_) if !has_ports => return Err("only tcp and udp have ports".to_owned()),
            None if has_ports => return Err("which port? say `tcp 22`, for example".to_owned()),
            Some(_) | None => {}
        }
        let record = |peer: &PeerId| self.roster.get(peer);
        let clauses = self.clauses(&self.concerning(&self.bearers(), record(&sender), record(&receiver)));
        let clause = clauses.iter().find(|clause| fits(clause, Some((protocol.numbers()[0], port))));
        let clause = clause.expect("the default fits everything");
        let rule = self.filter.rules.rules.get(clause.rule);
        Ok(FilterVerdictInfo {
            from: self.name_of(sender),
            to: self.name_of(receiver),
            allowed: clause.allow,
            line: rule.map(|rule| rule.line),
            rule: rule.map_or_else(|| format!("default {}", self.filter.rules.default), |rule| rule.text.clone()),
        })
    }
}
