//! Products of a few rows with a matrix that stays the same.
//!
//! Owns the matrix's layout and the loops over it. Rows may overlap: they are a step apart in one slice, which is how the windows of a
//! convolution lie in its input, so that nothing is copied for it. Meant for small matrices, which the cache holds whole; a
//! general product, which cuts a large one into pieces, is the engine's.

use super::simd::add_product;

/// Columns of a block, whose sums stay in registers while the rows are walked along.
const WIDE: usize = 16;
/// Columns of the last block when they are enough, and of a step where registers are short.
const NARROW: usize = 8;
/// Rows that are summed side by side: with a block's columns they fill the registers, 6 × 16 numbers with AVX2 and
/// AArch64, 4 × 8 with SSE2, and leave some for the operands.
const ROWS_FUSED: usize = 6;
const ROWS_PLAIN: usize = 4;

/// A matrix `[depth, columns]` in blocks of columns, filled with zeros to whole blocks, and what is added to each column.
#[derive(Debug, Clone)]
pub(super) struct Matrix {
    depth: usize,
    columns: usize,
    /// Block after block, `depth` rows each.
    wide: Vec<[f32; WIDE]>,
    narrow: Vec<[f32; NARROW]>,
    /// To the end of the last block.
    bias: Vec<f32>,
}

/// Rows of `depth` numbers, each `step` behind the one before.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rows<'a> {
    pub(super) values: &'a [f32],
    pub(super) step: usize,
    pub(super) count: usize,
}

impl Matrix {
    /// From the value at a row and a column, and what is added to a column.
    pub(super) fn new(
        depth: usize,
        columns: usize,
        value: impl Fn(usize, usize) -> f32,
        bias: impl Fn(usize) -> f32,
    ) -> Matrix {
        let narrow = (1..=NARROW).contains(&(columns % WIDE));
        let wide_blocks = if narrow { columns / WIDE } else { columns.div_ceil(WIDE) };
        let value = |row: usize, column: usize| if column < columns { value(row, column) } else { 0.0 };
        let at = |at: usize| (at / depth * WIDE, at % depth);
        let wide = (0..wide_blocks * depth).map(at).map(|(from, row)| std::array::from_fn(|c| value(row, from + c)));
        let from = wide_blocks * WIDE;
        let rest = (0..if narrow { depth } else { 0 }).map(|row| std::array::from_fn(|c| value(row, from + c)));
        let padded = from + if narrow { NARROW } else { 0 };
        let bias = (0..padded).map(|column| if column < columns { bias(column) } else { 0.0 });
        Matrix { depth, columns, wide: wide.collect(), narrow: rest.collect(), bias: bias.collect() }
    }

    /// Numbers of a row that it is multiplied with.
    pub(super) fn depth(&self) -> usize {
        self.depth
    }

    /// Numbers that it would hold.
    pub(super) fn len_of(depth: usize, columns: usize) -> Option<usize> {
        depth.checked_mul(columns.checked_next_multiple_of(NARROW)?)
    }

    /// For every row, `out[column] = finish(out[column], row · matrix + bias)`; rows of `out` are `out_step` apart.
    #[inline(always)]
    pub(super) fn multiply<const FUSED: bool>(
        &self,
        rows: Rows<'_>,
        out: &mut [f32],
        out_step: usize,
        finish: impl Fn(f32, f32) -> f32 + Copy,
    ) {
        if rows.count == 0 {
            return;
        }
        for (block, bias) in self.bias.chunks(WIDE).enumerate() {
            let from = block * WIDE;
            let columns = (self.columns - from).min(WIDE);
            let out = &mut out[from..];
            let Some(bias) = bias.first_chunk::<WIDE>() else {
                let Some(bias) = bias.first_chunk::<NARROW>() else { return };
                let block = Block::<NARROW, 0, NARROW> { matrix: &self.narrow, columns, bias };
                block.multiply::<FUSED>(rows, out, out_step, finish);
                return;
            };
            let matrix = &self.wide[block * self.depth..(block + 1) * self.depth];
            if FUSED {
                let block = Block::<WIDE, 0, WIDE> { matrix, columns, bias };
                block.multiply::<FUSED>(rows, out, out_step, finish);
            } else if let ([left, right], []) = bias.as_chunks::<NARROW>() {
                let block = Block::<WIDE, 0, NARROW> { matrix, columns: NARROW, bias: left };
                block.multiply::<FUSED>(rows, out, out_step, finish);
                let block = Block::<WIDE, NARROW, NARROW> { matrix, columns: columns - NARROW, bias: right };
                block.multiply::<FUSED>(rows, &mut out[NARROW..], out_step, finish);
            }
        }
    }
}

/// `N` columns of `W` from `FROM` on, of which the first `columns` are wanted.
struct Block<'a, const W: usize, const FROM: usize, const N: usize> {
    matrix: &'a [[f32; W]],
    columns: usize,
    bias: &'a [f32; N],
}

impl<const W: usize, const FROM: usize, const N: usize> Block<'_, W, FROM, N> {
    #[inline(always)]
    fn multiply<const FUSED: bool>(
        &self,
        rows: Rows<'_>,
        out: &mut [f32],
        out_step: usize,
        finish: impl Fn(f32, f32) -> f32 + Copy,
    ) {
        let rows_max = if FUSED { ROWS_FUSED } else { ROWS_PLAIN };
        let mut at = 0;
        while at < rows.count {
            // As even as possible: 15 rows are three times 5, not 6, 6 and 3.
            let left = rows.count - at;
            let count = left.div_ceil(left.div_ceil(rows_max));
            let (values, out) = (&rows.values[at * rows.step..], &mut out[at * out_step..]);
            match count {
                1 => self.tile::<1, FUSED>(values, rows.step, out, out_step, finish),
                2 => self.tile::<2, FUSED>(values, rows.step, out, out_step, finish),
                3 => self.tile::<3, FUSED>(values, rows.step, out, out_step, finish),
                4 => self.tile::<4, FUSED>(values, rows.step, out, out_step, finish),
                5 if FUSED => self.tile::<5, FUSED>(values, rows.step, out, out_step, finish),
                _ if FUSED => self.tile::<6, FUSED>(values, rows.step, out, out_step, finish),
                _ => return,
            }
            at += count;
        }
    }

    /// `R` rows, all of whose sums are in registers.
    #[inline(always)]
    #[allow(
        clippy::needless_range_loop,
        clippy::manual_memcpy,
        reason = "unrolled, these are stores of registers, no copy of memory"
    )]
    fn tile<const R: usize, const FUSED: bool>(
        &self,
        values: &[f32],
        step: usize,
        out: &mut [f32],
        out_step: usize,
        finish: impl Fn(f32, f32) -> f32 + Copy,
    ) {
        let mut stored = [[0.0; N]; R];
        let sums = self.sums::<R, FUSED>(values, step);
        for row in 0..R {
            for lane in 0..N {
                stored[row][lane] = sums[row][lane];
            }
        }
        // The compiler makes vectors of sums that it sees stored side by side, and single numbers of others, ten times slower: so they
        // are stored, whatever becomes of them.
        let sums = std::hint::black_box(&stored);
        for (row, sums) in sums.iter().enumerate() {
            let out = &mut out[row * out_step..];
            match out.first_chunk_mut::<N>() {
                Some(out) if self.columns == N => {
                    out.iter_mut().zip(sums).for_each(|(out, sum)| *out = finish(*out, *sum));
                }
                _ => out[..self.columns].iter_mut().zip(sums).for_each(|(out, sum)| *out = finish(*out, *sum)),
            }
        }
    }

    /// The sums of `R` rows.
    #[inline(always)]
    #[allow(
        clippy::needless_range_loop,
        reason = "indices below constants unroll into vectors; iterators do not, always"
    )]
    fn sums<const R: usize, const FUSED: bool>(&self, values: &[f32], step: usize) -> [[f32; N]; R] {
        let depth = self.matrix.len();
        let rows: [&[f32]; R] = std::array::from_fn(|row| &values[row * step..][..depth]);
        let mut sums = [*self.bias; R];
        for (at, weights) in self.matrix.iter().enumerate() {
            for row in 0..R {
                let value = rows[row][at];
                for lane in 0..N {
                    sums[row][lane] = add_product::<FUSED>(sums[row][lane], value, weights[FROM + lane]);
                }
            }
        }
        sums
    }
}

impl PartialEq for Matrix {
    /// Bit by bit: the engine asks whether two operators are the same.
    fn eq(&self, other: &Matrix) -> bool {
        let bits = |matrix: &Matrix| -> Vec<u32> {
            let blocks = matrix.wide.as_flattened().iter().chain(matrix.narrow.as_flattened());
            blocks.chain(&matrix.bias).map(|v| v.to_bits()).collect()
        };
        (self.depth, self.columns) == (other.depth, other.columns) && bits(self) == bits(other)
    }
}

impl Eq for Matrix {}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::ops::simd::{self, Kernel};

    /// `rows` rows, a step of 3 apart, times a matrix, added to what is there.
    struct Product<'a> {
        matrix: &'a Matrix,
        values: &'a [f32],
        rows: usize,
    }

    impl Kernel for Product<'_> {
        type Output = Vec<f32>;

        #[inline(always)]
        fn run<const FUSED: bool>(self) -> Vec<f32> {
            let columns = self.matrix.columns;
            // One number between the rows of the output belongs to nobody.
            let mut out = vec![100.0; self.rows * (columns + 1)];
            let rows = Rows { values: self.values, step: 3, count: self.rows };
            self.matrix.multiply::<FUSED>(rows, &mut out, columns + 1, |there, sum| there + sum);
            out
        }
    }

    // For every number of columns and rows around the sizes of a block, both forms of the loops give what the definition gives,
    // and write nothing beside it.
    #[test]
    fn both_forms_multiply() {
        let values: Vec<f32> = (0..200).map(|at| (at as f32 * 0.7).sin()).collect();
        for columns in (1..=34).chain([48, 56]) {
            for depth in [0, 1, 5, 21] {
                let weight = |row: usize, column: usize| ((row * 37 + column * 11) as f32).cos();
                let matrix = Matrix::new(depth, columns, weight, |column| column as f32 * 0.1);
                for rows in 0..=14 {
                    let product = || Product { matrix: &matrix, values: &values, rows };
                    for got in [product().run::<false>(), product().run::<true>(), simd::run(product())] {
                        for (row, got) in got.chunks(columns + 1).enumerate() {
                            assert_eq!(got[columns], 100.0);
                            for (column, got) in got[..columns].iter().enumerate() {
                                let sum = |at: usize| f64::from(values[row * 3 + at]) * f64::from(weight(at, column));
                                let want = 100.0 + column as f64 * 0.1 + (0..depth).map(sum).sum::<f64>();
                                let off = (f64::from(*got) - want).abs();
                                assert!(off < 5e-5, "{rows} × {depth} × {columns}: {got}, {want}");
                            }
                        }
                    }
                }
            }
        }
    }
}
