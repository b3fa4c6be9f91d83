//! [`pastey`] under the name of what it replaces.

pub use pastey::paste;
