//! Sixteen f32 at a time on each kind of processor. Every kind gives the same bits.

#![allow(unsafe_code, reason = "vector instructions; each use says why it is sound")]

/// Values a vector holds.
pub(super) const LANES: usize = 16;

/// A vector of [`LANES`] values. A mask has bit i for lane i. Values are not NaN.
///
/// The vector kinds run instructions that the processor may lack: their methods must only be
/// reached from a function compiled for these instructions, after a check that it has them.
pub(super) trait Lanes: Copy {
    /// For each lane, how many lanes are greater.
    type Ranks: Copy;

    fn splat(value: f32) -> Self;
    fn load(values: &[f32; LANES]) -> Self;
    /// Asks for values that are needed soon.
    fn fetch(values: &[f32]);
    fn store(self, to: &mut [f32; LANES]);
    fn minus(self, other: Self) -> Self;
    fn larger(self, other: Self) -> Self;
    /// Lanes of `self` greater than those of `other`.
    fn greater(self, other: Self) -> u32;
    fn ranks(self) -> Self::Ranks;
    /// Lanes with at most `rank` greater ones.
    fn up_to(ranks: Self::Ranks, rank: u32) -> u32;
    /// The least value of the lanes in the mask; +inf for none.
    fn least_of(self, mask: u32) -> f32;
    /// Writes the lanes of the mask to the front; what follows them is unspecified.
    fn pack(self, mask: u32, to: &mut [f32; LANES]);
    /// The same of the numbers `first..first + 16`.
    fn pack_numbers(first: u32, mask: u32, to: &mut [u32; LANES]);
    /// The same of given numbers.
    fn pack_from(numbers: &[u32; LANES], mask: u32, to: &mut [u32; LANES]);
}

/// For every processor.
#[derive(Clone, Copy)]
pub(super) struct Portable([f32; LANES]);

impl Portable {
    fn mask(self, met: impl Fn(usize, f32) -> bool) -> u32 {
        (0..LANES).fold(0, |mask, lane| mask | u32::from(met(lane, self.0[lane])) << lane)
    }
}

fn pack_by_bits<V: Copy>(values: &[V; LANES], mask: u32, to: &mut [V; LANES]) {
    let (mut left, mut filled) = (mask, 0);
    while left != 0 {
        to[filled] = values[left.trailing_zeros() as usize];
        left &= left - 1;
        filled += 1;
    }
}

impl Lanes for Portable {
    type Ranks = [u32; LANES];

    #[inline(always)]
    fn splat(value: f32) -> Self {
        Self([value; LANES])
    }

    #[inline(always)]
    fn load(values: &[f32; LANES]) -> Self {
        Self(*values)
    }

    #[inline(always)]
    fn fetch(_: &[f32]) {}

    #[inline(always)]
    fn store(self, to: &mut [f32; LANES]) {
        *to = self.0;
    }

    #[inline(always)]
    fn minus(self, other: Self) -> Self {
        Self(std::array::from_fn(|lane| self.0[lane] - other.0[lane]))
    }

    #[inline(always)]
    fn larger(self, other: Self) -> Self {
        let larger = |lane| if self.0[lane] > other.0[lane] { self.0[lane] } else { other.0[lane] };
        Self(std::array::from_fn(larger))
    }

    #[inline(always)]
    fn greater(self, other: Self) -> u32 {
        self.mask(|lane, value| value > other.0[lane])
    }

    #[inline(always)]
    fn ranks(self) -> Self::Ranks {
        let mut ranks = [0; LANES];
        for other in self.0 {
            for (rank, value) in ranks.iter_mut().zip(&self.0) {
                *rank += u32::from(other > *value);
            }
        }
        ranks
    }

    #[inline(always)]
    fn up_to(ranks: Self::Ranks, rank: u32) -> u32 {
        (0..LANES).fold(0, |mask, lane| mask | u32::from(ranks[lane] <= rank) << lane)
    }

    #[inline(always)]
    fn least_of(self, mask: u32) -> f32 {
        let in_mask = (0..LANES).filter(|lane| mask >> lane & 1 == 1);
        in_mask.map(|lane| self.0[lane]).fold(f32::INFINITY, |a, b| if b < a { b } else { a })
    }

    #[inline(always)]
    fn pack(self, mask: u32, to: &mut [f32; LANES]) {
        pack_by_bits(&self.0, mask, to);
    }

    #[inline(always)]
    fn pack_numbers(first: u32, mask: u32, to: &mut [u32; LANES]) {
        let mut number = first;
        pack_by_bits(&std::array::from_fn(|_| (number, number += 1).0), mask, to);
    }

    #[inline(always)]
    fn pack_from(numbers: &[u32; LANES], mask: u32, to: &mut [u32; LANES]) {
        pack_by_bits(numbers, mask, to);
    }
}

#[cfg(target_arch = "x86_64")]
pub(super) use x86::{Avx2, Avx512};

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::{LANES, Lanes};

    /// One 512-bit register; needs AVX-512F.
    #[derive(Clone, Copy)]
    pub(in super::super) struct Avx512(__m512);

    /// Two 256-bit registers; needs AVX2.
    #[derive(Clone, Copy)]
    pub(in super::super) struct Avx2(__m256, __m256);

    #[expect(clippy::cast_possible_truncation, reason = "a mask has 16 bits")]
    #[inline(always)]
    fn bits(mask: u32) -> __mmask16 {
        mask as __mmask16
    }

    #[inline(always)]
    fn signed(value: u32) -> i32 {
        value.cast_signed()
    }

    #[inline(always)]
    fn prefetch(values: &[f32]) {
        for line in values.chunks(LANES) {
            // SAFETY: a prefetch of any address has no effect but on the cache; SSE is part of
            // x86-64.
            unsafe { _mm_prefetch::<_MM_HINT_T0>(line.as_ptr().cast()) }
        }
    }

    /// Adds 1 where the lanes `$by` further on are greater.
    macro_rules! count_greater {
        ($value:ident, $ranks:ident, $($by:literal)*) => {
            let (whole, one) = (_mm512_castps_si512($value), _mm512_set1_epi32(1));
            $(
                let turned = _mm512_castsi512_ps(_mm512_alignr_epi32::<$by>(whole, whole));
                let greater = _mm512_cmp_ps_mask::<_CMP_GT_OQ>(turned, $value);
                $ranks = _mm512_mask_add_epi32($ranks, greater, $ranks, one);
            )*
        };
    }

    impl Lanes for Avx512 {
        type Ranks = __m512i;

        #[inline(always)]
        fn splat(value: f32) -> Self {
            // SAFETY: callers run on a processor with AVX-512F, as the trait demands.
            Self(unsafe { _mm512_set1_ps(value) })
        }

        #[inline(always)]
        fn load(values: &[f32; LANES]) -> Self {
            // SAFETY: AVX-512F as above; the array has the 64 bytes an unaligned load reads.
            Self(unsafe { _mm512_loadu_ps(values.as_ptr()) })
        }

        #[inline(always)]
        fn fetch(values: &[f32]) {
            prefetch(values);
        }

        #[inline(always)]
        fn store(self, to: &mut [f32; LANES]) {
            // SAFETY: AVX-512F as above; the array has the 64 bytes an unaligned store writes.
            unsafe { _mm512_storeu_ps(to.as_mut_ptr(), self.0) }
        }

        #[inline(always)]
        fn minus(self, other: Self) -> Self {
            // SAFETY: AVX-512F as above.
            Self(unsafe { _mm512_sub_ps(self.0, other.0) })
        }

        #[inline(always)]
        fn larger(self, other: Self) -> Self {
            // SAFETY: AVX-512F as above.
            Self(unsafe { _mm512_max_ps(self.0, other.0) })
        }

        #[inline(always)]
        fn greater(self, other: Self) -> u32 {
            // SAFETY: AVX-512F as above.
            u32::from(unsafe { _mm512_cmp_ps_mask::<_CMP_GT_OQ>(self.0, other.0) })
        }

        #[inline(always)]
        fn ranks(self) -> Self::Ranks {
            let value = self.0;
            // SAFETY: AVX-512F as above.
            unsafe {
                let mut ranks = _mm512_setzero_si512();
                count_greater!(value, ranks, 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15);
                ranks
            }
        }

        #[inline(always)]
        fn up_to(ranks: Self::Ranks, rank: u32) -> u32 {
            // SAFETY: AVX-512F as above.
            u32::from(unsafe { _mm512_cmple_epi32_mask(ranks, _mm512_set1_epi32(signed(rank))) })
        }

        #[inline(always)]
        fn least_of(self, mask: u32) -> f32 {
            // SAFETY: AVX-512F as above.
            unsafe {
                let all = _mm512_set1_ps(f32::INFINITY);
                _mm512_reduce_min_ps(_mm512_mask_mov_ps(all, bits(mask), self.0))
            }
        }

        #[inline(always)]
        fn pack(self, mask: u32, to: &mut [f32; LANES]) {
            // SAFETY: AVX-512F as above; the array has the 64 bytes an unaligned store writes.
            unsafe {
                _mm512_storeu_ps(to.as_mut_ptr(), _mm512_maskz_compress_ps(bits(mask), self.0))
            }
        }

        #[inline(always)]
        fn pack_numbers(first: u32, mask: u32, to: &mut [u32; LANES]) {
            // SAFETY: AVX-512F as above; the array has the 64 bytes an unaligned store writes.
            unsafe {
                let from_0 =
                    _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
                let numbers = _mm512_add_epi32(from_0, _mm512_set1_epi32(signed(first)));
                let packed = _mm512_maskz_compress_epi32(bits(mask), numbers);
                _mm512_storeu_si512(to.as_mut_ptr().cast(), packed);
            }
        }

        #[inline(always)]
        fn pack_from(numbers: &[u32; LANES], mask: u32, to: &mut [u32; LANES]) {
            // SAFETY: AVX-512F as above; both arrays have the 64 bytes that are read and written.
            unsafe {
                let numbers = _mm512_loadu_si512(numbers.as_ptr().cast());
                let packed = _mm512_maskz_compress_epi32(bits(mask), numbers);
                _mm512_storeu_si512(to.as_mut_ptr().cast(), packed);
            }
        }
    }

    /// For each mask of eight lanes, its lanes in order.
    static PACKED: [[i32; 8]; 256] = {
        let mut table = [[0; 8]; 256];
        let mut mask = 0;
        while mask < 256 {
            let (mut lane, mut filled) = (0, 0);
            while lane < 8 {
                if mask >> lane & 1 == 1 {
                    table[mask][filled] = lane;
                    filled += 1;
                }
                lane += 1;
            }
            mask += 1;
        }
        table
    };

    /// Packs two halves by the table.
    ///
    /// # Safety
    /// The processor has AVX2.
    #[inline(always)]
    unsafe fn pack_halves(low: __m256, high: __m256, mask: u32, to: *mut f32) {
        let (first, second) = ((mask & 0xff) as usize, (mask >> 8 & 0xff) as usize);
        // SAFETY: AVX2 is the caller's promise, and `to` has room for 16 values: the low half
        // ends at most at 8, and the high half is stored from the count of low lanes, at most 8.
        unsafe {
            let order = |mask: usize| _mm256_loadu_si256(PACKED[mask].as_ptr().cast());
            _mm256_storeu_ps(to, _mm256_permutevar8x32_ps(low, order(first)));
            let packed = _mm256_permutevar8x32_ps(high, order(second));
            _mm256_storeu_ps(to.add(first.count_ones() as usize), packed);
        }
    }

    impl Lanes for Avx2 {
        type Ranks = (__m256i, __m256i);

        #[inline(always)]
        fn splat(value: f32) -> Self {
            // SAFETY: callers run on a processor with AVX2, as the trait demands.
            let all = unsafe { _mm256_set1_ps(value) };
            Self(all, all)
        }

        #[inline(always)]
        fn load(values: &[f32; LANES]) -> Self {
            let at = values.as_ptr();
            // SAFETY: AVX2 as above; the array has the 2 × 32 bytes that are read.
            unsafe { Self(_mm256_loadu_ps(at), _mm256_loadu_ps(at.add(8))) }
        }

        #[inline(always)]
        fn fetch(values: &[f32]) {
            prefetch(values);
        }

        #[inline(always)]
        fn store(self, to: &mut [f32; LANES]) {
            let at = to.as_mut_ptr();
            // SAFETY: AVX2 as above; the array has the 2 × 32 bytes that are written.
            unsafe {
                _mm256_storeu_ps(at, self.0);
                _mm256_storeu_ps(at.add(8), self.1);
            }
        }

        #[inline(always)]
        fn minus(self, other: Self) -> Self {
            // SAFETY: AVX2 as above.
            unsafe { Self(_mm256_sub_ps(self.0, other.0), _mm256_sub_ps(self.1, other.1)) }
        }

        #[inline(always)]
        fn larger(self, other: Self) -> Self {
            // SAFETY: AVX2 as above.
            unsafe { Self(_mm256_max_ps(self.0, other.0), _mm256_max_ps(self.1, other.1)) }
        }

        #[inline(always)]
        fn greater(self, other: Self) -> u32 {
            // SAFETY: AVX2 as above.
            let (low, high) = unsafe {
                (
                    _mm256_movemask_ps(_mm256_cmp_ps::<_CMP_GT_OQ>(self.0, other.0)),
                    _mm256_movemask_ps(_mm256_cmp_ps::<_CMP_GT_OQ>(self.1, other.1)),
                )
            };
            low.cast_unsigned() | high.cast_unsigned() << 8
        }

        #[inline(always)]
        fn ranks(self) -> Self::Ranks {
            // SAFETY: AVX2 as above.
            unsafe {
                let next = _mm256_setr_epi32(1, 2, 3, 4, 5, 6, 7, 0);
                let (mut low, mut high) = (_mm256_setzero_si256(), _mm256_setzero_si256());
                let (mut turned_low, mut turned_high) = (self.0, self.1);
                for _ in 0..8 {
                    for turned in [turned_low, turned_high] {
                        let above =
                            |own| _mm256_castps_si256(_mm256_cmp_ps::<_CMP_GT_OQ>(turned, own));
                        // A met comparison is −1.
                        low = _mm256_sub_epi32(low, above(self.0));
                        high = _mm256_sub_epi32(high, above(self.1));
                    }
                    turned_low = _mm256_permutevar8x32_ps(turned_low, next);
                    turned_high = _mm256_permutevar8x32_ps(turned_high, next);
                }
                (low, high)
            }
        }

        #[inline(always)]
        fn up_to(ranks: Self::Ranks, rank: u32) -> u32 {
            // SAFETY: AVX2 as above.
            let beyond = unsafe {
                let most = _mm256_set1_epi32(signed(rank));
                let mask =
                    |half| _mm256_movemask_ps(_mm256_castsi256_ps(_mm256_cmpgt_epi32(half, most)));
                mask(ranks.0).cast_unsigned() | mask(ranks.1).cast_unsigned() << 8
            };
            !beyond & 0xffff
        }

        #[inline(always)]
        fn least_of(self, mask: u32) -> f32 {
            let mut values = [0.0; LANES];
            self.store(&mut values);
            super::Portable(values).least_of(mask)
        }

        #[inline(always)]
        fn pack(self, mask: u32, to: &mut [f32; LANES]) {
            // SAFETY: AVX2 as above; the array holds 16 values.
            unsafe { pack_halves(self.0, self.1, mask, to.as_mut_ptr()) }
        }

        #[inline(always)]
        fn pack_numbers(first: u32, mask: u32, to: &mut [u32; LANES]) {
            // SAFETY: AVX2 as above; the array holds 16 values of 4 bytes.
            unsafe {
                let numbers = |from: u32| {
                    let from_0 = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
                    let numbers = _mm256_add_epi32(from_0, _mm256_set1_epi32(signed(from)));
                    _mm256_castsi256_ps(numbers)
                };
                pack_halves(numbers(first), numbers(first + 8), mask, to.as_mut_ptr().cast());
            }
        }

        #[inline(always)]
        fn pack_from(numbers: &[u32; LANES], mask: u32, to: &mut [u32; LANES]) {
            let at: *const f32 = numbers.as_ptr().cast();
            // SAFETY: AVX2 as above; both arrays hold 16 values of 4 bytes, which are moved as
            // bits without arithmetic.
            unsafe {
                let (low, high) = (_mm256_loadu_ps(at), _mm256_loadu_ps(at.add(8)));
                pack_halves(low, high, mask, to.as_mut_ptr().cast());
            }
        }
    }
}
