//! Interceptors.
pub mod mask;
