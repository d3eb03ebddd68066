//! The quota, the full disk, and what is lost or kept.
