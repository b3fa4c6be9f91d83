//! Sessions: from a Noise handshake to a pair of transport keys, and their end.
//!
//! A [`handshake`] (`Noise_IKpsk2_25519_ChaChaPoly_BLAKE2s`, with WireGuard's mac1 and mac2) ends in a [`Transport`]: two
//! AEAD keys split off raw, a send counter, a [`replay`] window. Under load a responder answers with a [`cookie`]
//! instead of work: the [`gate`] decides, by [`pace`]s. A [`quantum`] key agreed on in one session is mixed into the next. [`rekey`] says when a session is to be replaced and when it is dead. Payloads of the handshake are
//! opaque here: the node puts its signed record in and judges the peer's, because membership is the directory's business.

pub mod cookie;
mod crypto;
pub mod gate;
pub mod handshake;
pub mod pace;
pub mod quantum;
pub mod rekey;
pub mod replay;
pub mod transport;

pub use cookie::{Cookie, CookieJar};
pub use gate::{Admission, Gate};
pub use handshake::{HandshakeError, Initiator, Local, Responder};
pub use quantum::QuantumKey;
pub use transport::{OpenError, Transport};
