//! Any bytes, read as MQTT 5 by both ends of a connection.
#![no_main]

use checks::memory::Counting;
use libfuzzer_sys::fuzz_target;
use millwright_broker::codec::Version;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fuzz_target!(|input: &[u8]| checks::codec::check(Version::V5, input));
