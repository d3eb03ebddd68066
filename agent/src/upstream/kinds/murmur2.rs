//! Which partition a key belongs to, as Kafka's own producers place it: MurmurHash2, 32 bits, with Kafka's seed.
//!
//! Source: A. Appleby's public-domain MurmurHash2, and the rule of Kafka's default partitioner, `(hash & 0x7fffffff) mod partitions`.

const SEED: u32 = 0x9747_b28c;
const M: u32 = 0x5bd1_e995;
const R: u32 = 24;

/// The partition of `key` among `partitions`; 0 if there are none.
pub(super) fn partition(key: &[u8], partitions: usize) -> usize {
    let positive = (hash(key) & 0x7fff_ffff) as usize;
    positive.checked_rem(partitions).unwrap_or(0)
}

fn hash(key: &[u8]) -> u32 {
    // Kafka's keys are shorter than 4 GiB.
    let mut hash = SEED ^ key.len() as u32;
    let (words, rest) = key.as_chunks::<4>();
    for word in words {
        let mut k = u32::from_le_bytes(*word).wrapping_mul(M);
        k ^= k >> R;
        hash = hash.wrapping_mul(M) ^ k.wrapping_mul(M);
    }
    if !rest.is_empty() {
        for (index, byte) in rest.iter().enumerate() {
            hash ^= u32::from(*byte) << (8 * index);
        }
        hash = hash.wrapping_mul(M);
    }
    hash ^= hash >> 13;
    hash = hash.wrapping_mul(M);
    hash ^ (hash >> 15)
}

#[cfg(test)]
mod tests {
    use super::*;

    // The values of Kafka's own test (clients/src/test/java/org/apache/kafka/common/utils/UtilsTest.java).
    #[test]
    fn keys_go_where_kafka_puts_them() {
        let cases: [(&str, i32); 6] = [
            ("21", -973_932_308),
            ("foobar", -790_332_482),
            ("a-little-bit-long-string", -985_981_536),
            ("a-little-bit-longer-string", -1_486_304_829),
            ("lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", -58_897_971),
            ("abc", 479_470_107),
        ];
        for (key, expected) in cases {
            assert_eq!(hash(key.as_bytes()).cast_signed(), expected, "{key}");
        }
        assert_eq!(partition(b"21", 0), 0);
    }
}
