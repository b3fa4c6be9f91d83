//! Statements from strangers, and ledgers that hostile members fill: no bytes panic, what passes is what was sent, and a
//! ledger takes it once.
#![no_main]

use std::sync::Arc;

use libfuzzer_sys::fuzz_target;
use meshd::dht::statement::Fact;
use meshd::dht::{Ledger, Statement};
use meshd::identity::canonical;
use meshd_fuzz::{NOW, key, network, record, root};

fuzz_target!(|data: &[u8]| {
    let mut ledger = Ledger::default();
    if let Ok(statement) = Statement::check(data, &network(), NOW) {
        assert_eq!(statement.bytes(), data);
        take(&mut ledger, statement);
    }
    // Behind a good signature: the fuzzer cannot sign, the founder and a member can.
    if let Ok(fact) = canonical::decode::<Fact>(data, 1024) {
        for (n, chain) in [(1, root()), (3, record(3).chain.clone())] {
            if let Ok(statement) = Statement::sign(&key(n), &network(), chain, fact.clone(), NOW) {
                assert_eq!(*statement.fact(), fact);
                take(&mut ledger, statement);
            }
        }
    }
    // What a peer says its ledger is.
    let _ = ledger.beyond(data).count();
    let _ = ledger.verdict(&record(5).chain);
});

fn take(ledger: &mut Ledger, statement: Statement) {
    let statement = Arc::new(statement);
    if ledger.insert(Arc::clone(&statement)) == Ok(true) {
        assert!(ledger.contains(statement.id()));
        assert_eq!(ledger.insert(statement), Ok(false));
    }
}
