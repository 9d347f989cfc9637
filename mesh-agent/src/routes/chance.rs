//! What is left to chance, from a seed that the caller draws: so that tests know what comes, and shares are right.

use super::compile::CompiledRule;
use super::object::{Backend, Fraction};

/// One request's luck.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seed(u64);

impl Seed {
    /// From a random number.
    pub fn new(random: u64) -> Self {
        Self(random)
    }

    /// A number for one of the request's questions: who asks for different ones learns nothing of one from the other.
    fn number(self, question: usize) -> u64 {
        // SplitMix64
        let mut mixed = self.0.wrapping_add((question as u64).wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below `bound`, which is not zero.
    fn below(self, question: usize, bound: u64) -> u64 {
        let wide = u128::from(self.number(question)).wrapping_mul(u128::from(bound));
        u64::try_from(wide >> 64).unwrap_or_default()
    }

    /// Whether the filter at this place takes its share of this request.
    pub(super) fn takes(self, place: usize, share: Fraction) -> bool {
        // A backend's choice is question zero.
        self.below(place.saturating_add(1), u64::from(share.denominator)) < u64::from(share.numerator)
    }
}

impl CompiledRule {
    /// A backend, chosen by weight. None: there is none, or all weigh nothing; the answer is 500 (for gRPC UNAVAILABLE).
    pub fn backend(&self, seed: Seed) -> Option<&Backend> {
        choose(&self.backends, seed)
    }
}

/// By weight.
pub(super) fn choose(backends: &[Backend], seed: Seed) -> Option<&Backend> {
    let sum: u64 = backends.iter().map(|backend| u64::from(backend.weight)).sum();
    let mut left = seed.below(0, sum);
    backends.iter().find(|backend| match left.checked_sub(backend.weight.into()) {
        Some(rest) => {
            left = rest;
            false
        }
        None => true,
    })
}

#[cfg(test)]
mod tests {
    use super::super::build;
    use super::*;

    fn rounds() -> u64 {
        100_000
    }

    /// How often each backend is chosen, per hundred.
    fn shares(weights: &[u32]) -> Vec<i64> {
        let backends: Vec<Backend> = weights
            .iter()
            .enumerate()
            .map(|(i, weight)| Backend { weight: *weight, ..build::backend(&i.to_string()) })
            .collect();
        let mut counts = vec![0; weights.len()];
        for seed in 0..rounds() {
            if let Some(chosen) = choose(&backends, Seed::new(seed)) {
                counts[build::name_of(chosen).parse::<usize>().unwrap()] += 1;
            }
        }
        counts.into_iter().map(|count: u64| i64::try_from(count * 1000 / rounds() + 5).unwrap() / 10).collect()
    }

    #[test]
    fn backends_get_their_weight() {
        assert_eq!(shares(&[70, 30]), [70, 30]);
        assert_eq!(shares(&[70, 30, 0]), [70, 30, 0]);
        assert_eq!(shares(&[0, 1]), [0, 100]);
        assert_eq!(shares(&[1]), [100]);
        assert_eq!(shares(&[1_000_000, 1_000_000, 2_000_000]), [25, 25, 50]);
        assert_eq!(shares(&[u32::MAX, u32::MAX]), [50, 50]);
    }

    #[test]
    fn with_no_weight_there_is_no_backend() {
        assert_eq!(shares(&[]), [0; 0]);
        assert_eq!(shares(&[0]), [0]);
        assert_eq!(shares(&[0, 0]), [0, 0]);
    }

    #[test]
    fn mirrors_take_their_share_whatever_the_backend() {
        for (numerator, denominator, wanted) in
            [(0, 100, 0), (20, 100, 20), (1, 2, 50), (100, 100, 100), (1, 3, 33), (3, 2, 100)]
        {
            let share = Fraction { numerator, denominator };
            let backends = [build::backend("0"), build::backend("1")];
            let (mut taken, mut first) = (0, 0);
            for seed in (0..rounds()).map(Seed::new).filter(|seed| seed.takes(0, share)) {
                taken += 1;
                first += u64::from(build::name_of(choose(&backends, seed).unwrap()) == "0");
            }
            assert_eq!((taken * 1000 / rounds() + 5) / 10, wanted, "{numerator}/{denominator}");
            assert!(taken == 0 || (45..56).contains(&(first * 100 / taken)), "{first} of {taken}");
        }
        // Two mirrors do not always take the same requests.
        let half = Fraction { numerator: 1, denominator: 2 };
        let both = (0..rounds()).map(Seed::new).filter(|seed| seed.takes(0, half) && seed.takes(1, half)).count();
        assert!((24_000..26_000).contains(&both), "{both}");
    }
}
