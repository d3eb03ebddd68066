//! Convolutions along time, plain and transposed, against their definition.

// The functions that tests share are tests as well.
#![allow(clippy::unwrap_used)]

mod support;

use millwright_models::{LoadLimits, Model};
use proptest::prelude::*;
use support::{File, int, ints};

/// Largest difference that is allowed, in parts of the sum of all magnitudes that a score adds up.
const DIFFERENCE_MAX: f64 = 1e-6;

#[derive(Debug, Clone)]
struct Case {
    transposed: bool,
    batch: usize,
    samples: usize,
    channels_in: usize,
    channels_out: usize,
    taps: usize,
    stride: usize,
    pads: [usize; 2],
    output_padding: usize,
    rectified: bool,
    /// Whether a window is turned to channels first, as exporters of networks along time do; if not, it is taken as it is.
    turned: bool,
    seed: u64,
}

impl Case {
    /// Length of what it gives; `None` if there is none. The engine refuses what only `output_padding` gives a length.
    fn samples_out(&self) -> Option<usize> {
        let pads = self.pads[0] + self.pads[1];
        let samples = if self.transposed {
            ((self.samples - 1) * self.stride + self.taps).checked_sub(pads)? + self.output_padding
        } else {
            (self.samples + pads).checked_sub(self.taps)? / self.stride + 1
        };
        (samples > 0).then_some(samples)
    }

    fn numbers(&self, salt: u64, count: usize) -> Vec<f32> {
        let mut state = self.seed ^ salt.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let mut next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 40) as f32 / (1_u64 << 23) as f32 - 1.0
        };
        (0..count).map(|_| next()).collect()
    }

    fn kernel(&self) -> Vec<f32> {
        self.numbers(1, self.channels_in * self.channels_out * self.taps)
    }

    fn bias(&self) -> Vec<f32> {
        self.numbers(2, self.channels_out)
    }

    /// What every number of the output counts for in the score.
    fn mix(&self) -> Vec<f32> {
        self.numbers(3, self.channels_out * self.samples_out().unwrap())
    }

    fn windows(&self) -> Vec<f32> {
        self.numbers(4, self.batch * self.samples * self.channels_in)
    }

    fn model(&self) -> Model {
        let mut file = File::new();
        let (rows, columns) =
            if self.turned { (self.samples, self.channels_in) } else { (self.channels_in, self.samples) };
        file.graph.input.clear();
        file.input("window", &["batch", &rows.to_string(), &columns.to_string()]);
        let names: Vec<String> = (0..columns).map(|c| format!(r#"{{"name": "channel {c}"}}"#)).collect();
        file.set("channels", &format!("[{}]", names.join(", "))).set("samples", &rows.to_string());
        let dim = |n: usize| n as i64;
        let (first, second) =
            if self.transposed { (self.channels_in, self.channels_out) } else { (self.channels_out, self.channels_in) };
        let mut attributes = vec![
            ints("kernel_shape", &[dim(self.taps)]),
            ints("strides", &[dim(self.stride)]),
            ints("pads", &self.pads.map(dim)),
        ];
        if self.transposed {
            attributes.push(ints("output_padding", &[dim(self.output_padding)]));
        }
        file.floats("kernel", &[dim(first), dim(second), dim(self.taps)], &self.kernel())
            .floats("bias", &[dim(self.channels_out)], &self.bias())
            .floats("mix", &[1, dim(self.channels_out), dim(self.samples_out().unwrap())], &self.mix())
            .integers("axes", &[1, 2]);
        let input = if self.turned { "turned" } else { "window" };
        if self.turned {
            file.node("Transpose", &["window"], "turned", vec![ints("perm", &[0, 2, 1])]);
        }
        let op = if self.transposed { "ConvTranspose" } else { "Conv" };
        file.node(op, &[input, "kernel", "bias"], "sums", attributes);
        file.node(if self.rectified { "Relu" } else { "Identity" }, &["sums"], "out", vec![])
            .node("Mul", &["out", "mix"], "mixed", vec![])
            .node("ReduceSum", &["mixed", "axes"], "score", vec![int("keepdims", 0)])
            .output("score", &["batch"]);
        Model::load(&file.bytes(), &LoadLimits::default()).unwrap()
    }

    /// The score of a window by definition, and the sum of the magnitudes of all that is added.
    fn expected(&self, window: &[f32]) -> (f64, f64) {
        let samples_out = self.samples_out().unwrap();
        let (kernel, bias, mix) = (self.kernel(), self.bias(), self.mix());
        let value = |channel: usize, sample: usize| {
            let at = if self.turned { sample * self.channels_in + channel } else { channel * self.samples + sample };
            f64::from(window[at])
        };
        let (mut score, mut magnitude) = (0.0, 0.0);
        for out in 0..self.channels_out {
            for row in 0..samples_out {
                let (mut sum, mut added) = (f64::from(bias[out]), f64::from(bias[out].abs()));
                for tap in 0..self.taps {
                    // Which sample meets this tap, if there is one.
                    let sample = if self.transposed {
                        let from = (row + self.pads[0]).checked_sub(tap);
                        from.filter(|from| from % self.stride == 0).map(|from| from / self.stride)
                    } else {
                        (row * self.stride + tap).checked_sub(self.pads[0])
                    };
                    let Some(sample) = sample.filter(|sample| *sample < self.samples) else { continue };
                    for channel in 0..self.channels_in {
                        let at = if self.transposed {
                            (channel * self.channels_out + out) * self.taps + tap
                        } else {
                            (out * self.channels_in + channel) * self.taps + tap
                        };
                        let product = value(channel, sample) * f64::from(kernel[at]);
                        sum += product;
                        added += product.abs();
                    }
                }
                let sum = if self.rectified { sum.max(0.0) } else { sum };
                let mix = f64::from(mix[out * samples_out + row]);
                score += sum * mix;
                magnitude += added * mix.abs();
            }
        }
        (score, magnitude)
    }
}

fn cases() -> impl Strategy<Value = Case> {
    let kind = (any::<bool>(), any::<bool>(), any::<bool>(), any::<u64>());
    let sizes = (1_usize..=5, 1_usize..=40, 1_usize..=40, 1_usize..=40);
    let kernel = (1_usize..=9, 1_usize..=3, [0_usize..=4, 0_usize..=4], 0_usize..=2);
    let case = (kind, sizes, kernel).prop_map(|(kind, sizes, kernel)| Case {
        transposed: kind.0,
        batch: sizes.0,
        samples: sizes.1,
        channels_in: sizes.2,
        channels_out: sizes.3,
        taps: kernel.0,
        stride: kernel.1,
        pads: kernel.2.map(|pad| pad.min(kernel.0 - 1)),
        output_padding: kernel.3.min(kernel.1 - 1),
        rectified: kind.1,
        turned: kind.2,
        seed: kind.3,
    });
    case.prop_filter("it gives something", |case| case.samples_out().is_some())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    // Any kernel, stride, padding, number of channels and batch: the model gives what the definition gives.
    #[test]
    fn a_convolution_is_what_it_is_defined_as(case in cases()) {
        let (model, windows) = (case.model(), case.windows());
        let scores = model.score(&windows, case.batch).unwrap().score;
        for (window, got) in windows.chunks(case.samples * case.channels_in).zip(scores) {
            let (want, magnitude) = case.expected(window);
            let off = (f64::from(got) - want).abs();
            prop_assert!(off <= DIFFERENCE_MAX * magnitude.max(1.0), "{} for {} of {}", got, want, magnitude);
        }
    }
}
