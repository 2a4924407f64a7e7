//! A random history.
