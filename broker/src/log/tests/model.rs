//! The log against a vector.
