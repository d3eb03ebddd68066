//! How alike two alerts are.
//!
//! Owns the measure: the cosine between the shares that each channel had in the score, by the channels' names. 1 means that the
//! same channels added the same shares, 0 that no channel is in both. Only the sensors that an alert lists have a share.

use std::collections::HashMap;

/// Alerts less alike than this are not similar.
pub const SIMILAR_MIN: f32 = 0.5;

/// Channel and share of the score.
pub type Shares = Vec<(String, f32)>;

/// The cosine between two alerts' shares, 0 to 1.
pub fn likeness(left: &[(String, f32)], right: &[(String, f32)]) -> f32 {
    let right_by_name: HashMap<&str, f32> = right.iter().map(|(name, share)| (name.as_str(), *share)).collect();
    let product: f32 = left.iter().filter_map(|(name, share)| Some(share * right_by_name.get(name.as_str())?)).sum();
    let length = |shares: &[(String, f32)]| shares.iter().map(|(_, share)| share * share).sum::<f32>().sqrt();
    let lengths = length(left) * length(right);
    if lengths > 0.0 && product.is_finite() { (product / lengths).clamp(0.0, 1.0) } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shares(list: &[(&str, f32)]) -> Shares {
        list.iter().map(|(name, share)| ((*name).to_owned(), *share)).collect()
    }

    // The same shares are fully alike in any order, shares of other channels not at all, a mixture lies between.
    #[test]
    fn likeness_compares_channels_by_name() {
        let fault = shares(&[("flow", 0.8), ("pressure", 0.2)]);
        assert!((likeness(&fault, &shares(&[("pressure", 0.2), ("flow", 0.8)])) - 1.0).abs() < 1e-6);
        assert_eq!(likeness(&fault, &shares(&[("temperature", 1.0)])), 0.0);
        assert_eq!(likeness(&fault, &[]), 0.0);
        let mixed = likeness(&fault, &shares(&[("flow", 0.5), ("temperature", 0.5)]));
        assert!(mixed > 0.6 && mixed < 0.8, "{mixed}");
    }
}
