//! Explains a model that gives only a score: what would the score be if one channel were normal?
//!
//! Owns making the variants of a window and reading their scores. Never runs the model. For channel `c`,
//! `contribution = max(0, score − score with c at its learned normal)`; a channel without a learned normal gets 0.

/// The channels that can be occluded, with their normals.
#[derive(Debug, Clone)]
pub(crate) struct Occlusion {
    channels: usize,
    normals: Vec<(usize, f32)>,
}

impl Occlusion {
    /// From the learned normals in channel order; `None` when no channel has one.
    pub(crate) fn new(normals: impl ExactSizeIterator<Item = Option<f32>>) -> Option<Occlusion> {
        let channels = normals.len();
        let normals: Vec<(usize, f32)> = normals.enumerate().filter_map(|(c, normal)| Some((c, normal?))).collect();
        (!normals.is_empty()).then_some(Occlusion { channels, normals })
    }

    /// Windows made per window explained.
    pub(crate) fn variants(&self) -> usize {
        self.normals.len()
    }

    /// Appends the variants of `window` (`[samples][channels]`) to `out`.
    pub(crate) fn push_variants(&self, window: &[f32], out: &mut Vec<f32>) {
        for &(channel, normal) in &self.normals {
            let start = out.len();
            out.extend_from_slice(window);
            if let Some(variant) = out.get_mut(start..) {
                variant.iter_mut().skip(channel).step_by(self.channels).for_each(|value| *value = normal);
            }
        }
    }

    /// Writes the contributions of one window from the scores of its variants; `contribution` has one place per channel.
    pub(crate) fn contributions(&self, score: f32, variant_scores: &[f32], contribution: &mut [f32]) {
        for (&(channel, _), without) in self.normals.iter().zip(variant_scores) {
            if let Some(place) = contribution.get_mut(channel) {
                *place = (score - without).max(0.0);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn occludes_one_channel_at_a_time() {
        // Two channels, one of them with a normal: one variant, in which only that column changes.
        let occlusion = Occlusion::new([None, Some(9.0)].into_iter()).unwrap();
        let mut variants = Vec::new();
        occlusion.push_variants(&[1.0, 2.0, 3.0, 4.0], &mut variants);
        assert_eq!(variants, [1.0, 9.0, 3.0, 9.0]);
        let mut contribution = [0.0, 0.0];
        occlusion.contributions(2.0, &[0.5], &mut contribution);
        assert_eq!(contribution, [0.0, 1.5]);
        // A channel whose normal would make it worse adds nothing.
        occlusion.contributions(2.0, &[2.5], &mut contribution);
        assert_eq!(contribution, [0.0, 0.0]);
        assert!(Occlusion::new([None, None].into_iter()).is_none());
    }
}
