//! What people type or write: party codes and packet filters. No text panics; a code prints as one that is read as the same; rules that
//! are read stand in their lines.
#![no_main]

use libfuzzer_sys::fuzz_target;
use meshd::config::filter::Rules;
use meshd::identity::PartyCode;

fuzz_target!(|data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Ok(code) = text.parse::<PartyCode>() {
        assert_eq!(code.to_string().parse(), Ok(code));
    }
    if let Ok(rules) = text.parse::<Rules>() {
        let lines: Vec<_> = text.lines().collect();
        for rule in &rules.rules {
            assert!(lines[rule.line - 1].contains(&rule.text));
            let alone: Rules = rule.text.parse().expect("a rule stands by itself");
            assert_eq!((&alone.rules[0].from, &alone.rules[0].ports), (&rule.from, &rule.ports));
        }
    }
});
