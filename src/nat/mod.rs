//! Paths: where a peer may be reached, and which of these places is in use.
//!
//! A [`candidate::Candidate`] is an endpoint that may work and where we heard of it. A [`path::PathAgent`], one a peer, keeps
//! the candidates, says which to try, and learns from answers: a path is proved by an answer, ranked by
//! [`score::PathScore`], dropped by silence; [`mtu`] finds out how long a datagram it carries. It decides only; the node seals and sends the probes. [`observe`] collects what
//! peers see of us, which makes our reflexive candidates; [`forecast`] says what they will see next; [`portmap`] what our gateway
//! grants, which makes the mapped ones.

pub mod candidate;
pub mod forecast;
pub mod mtu;
pub mod observe;
pub mod path;
pub mod portmap;
pub mod score;

pub use candidate::{Candidate, Origin, Origins};
pub use mtu::PathMtu;
pub use observe::{Mapping, Observations};
pub use path::PathAgent;
pub use portmap::Claims;
pub use score::PathScore;
