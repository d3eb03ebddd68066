//! Runs a loop with the widest instructions that the processor has.
//!
//! Owns that choice, and with it the only call of this crate that the compiler cannot check. A [`Kernel`] is ordinary code on small
//! arrays of `f32`, which become vector registers; it is compiled twice for x86-64: for what every such processor has (SSE2), and
//! for AVX2 with fused multiplication and addition. AArch64 has the latter always; everything else runs the plain code.
//!
//! Limits: a kernel is inlined whole (`#[inline(always)]` down to its loops), else its loops are compiled for the least. Sums may
//! differ in the last bit between processors: fused operations round once.

/// A loop that is worth compiling twice.
pub(super) trait Kernel {
    type Output;

    /// `FUSED`: [`add_product`] is one instruction, and registers hold eight numbers.
    fn run<const FUSED: bool>(self) -> Self::Output;
}

/// Runs `kernel` as this processor does it best.
pub(super) fn run<K: Kernel>(kernel: K) -> K::Output {
    #[cfg(target_arch = "x86_64")]
    if std::is_x86_feature_detected!("avx2") && std::is_x86_feature_detected!("fma") {
        // SAFETY: the function asks for nothing but these two features, which have just been found.
        #[allow(
            unsafe_code,
            reason = "a call into code for other features than the build's cannot be checked otherwise"
        )]
        return unsafe { run_avx2(kernel) };
    }
    kernel.run::<{ cfg!(target_arch = "aarch64") }>()
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn run_avx2<K: Kernel>(kernel: K) -> K::Output {
    kernel.run::<true>()
}

/// `sum + a · b`. Where there is no instruction for it, fusing is a call of a function, so it is not asked for.
#[inline(always)]
pub(super) fn add_product<const FUSED: bool>(sum: f32, a: f32, b: f32) -> f32 {
    if FUSED { a.mul_add(b, sum) } else { sum + a * b }
}
