//! Chooses among equal endpoints.

/// Up to `most` distinct indexes below `count`, in an order that `seed` decides. Every index is equally likely at every
/// place.
pub(super) fn pick(count: usize, most: usize, seed: u64) -> Vec<usize> {
    let mut random = SplitMix(seed);
    let mut picked: Vec<usize> = Vec::with_capacity(most.min(count));
    for taken in 0..most.min(count) {
        // The n-th index that is still free: walk past the taken ones in ascending order.
        let mut index = random.below(count - taken);
        let mut ascending = picked.clone();
        ascending.sort_unstable();
        for used in ascending {
            if used <= index {
                index += 1;
            }
        }
        picked.push(index);
    }
    picked
}

/// Every bit of the input moves about half of the output's.
pub(super) fn mix(mut bits: u64) -> u64 {
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^ (bits >> 31)
}

/// SplitMix64: enough to spread load, and the same everywhere for the same seed.
struct SplitMix(u64);

impl SplitMix {
    /// A number below `bound`, which is not 0.
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = mix(self.0);
        // The high half of the product is uniform below the bound, without a division.
        ((u128::from(mixed) * bound as u128) >> 64) as usize
    }
}
