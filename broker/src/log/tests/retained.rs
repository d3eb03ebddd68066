//! Retained messages.
