//! A filter and a topic, parsed and matched as the standard says it in words.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| checks::topic::check(input));
