//! Property tests of the forward state machine.
