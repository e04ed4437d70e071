//! e to the power of x: the same bits on every target, in a form that compilers turn into vector code.

/// `e^x`, at most 1 ulp off; 0 below -87, where it nears the smallest normal f32, `e^88` above 88, NaN of NaN.
///
/// No branch, no table, nothing but additions, multiplications and bits. Source: Cody and Waite's reduction
/// `x = n ln 2 + r`, with the polynomial of Cephes `expf` for `e^r`.
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    const SHIFT: f32 = 12_582_912.0; // 1.5 * 2^23: adding it rounds to a whole number, which then stands in the low bits
    const LN_2_HIGH: f32 = 0.693_359_4; // 0.693359375: 9 fraction bits: its product with n is exact
    const LN_2_LOW: f32 = -2.121_944_4e-4;
    // Comparisons with NaN are false: it goes through.
    let bounded = if x > 88.0 { 88.0 } else { x };
    let bounded = if bounded < -87.0 { -87.0 } else { bounded };
    let shifted = bounded * core::f32::consts::LOG2_E + SHIFT;
    let n = shifted - SHIFT;
    let r = bounded - n * LN_2_HIGH - n * LN_2_LOW;
    let mut p = 1.987_569_1e-4;
    p = p * r + 1.398_2e-3;
    p = p * r + 8.333_452e-3;
    p = p * r + 4.166_579_6e-2;
    p = p * r + 1.666_666_5e-1;
    p = p * r + 0.5;
    let e_r = p * r * r + r + 1.0;
    // n + 127 is 1..=254, a normal number's exponent.
    let two_n = f32::from_bits(shifted.to_bits().wrapping_add(127) << 23);
    if x < -87.0 { 0.0 } else { e_r * two_n }
}

#[cfg(test)]
mod tests {
    use super::exp;

    /// How far from the true value, in units of the last place.
    fn ulps(x: f32) -> f64 {
        let true_value = f64::from(x).exp();
        let ulp = f64::from(f32::from_bits((true_value as f32).to_bits() + 1)) - f64::from(true_value as f32);
        (f64::from(exp(x)) - true_value).abs() / ulp
    }

    #[test]
    fn it_is_within_one_ulp() {
        // A prime step, so that all low bits are met: 1.1 million values of either sign.
        for bits in (0..88f32.to_bits()).step_by(997) {
            let x = f32::from_bits(bits);
            assert!(ulps(x) <= 1.0, "exp({x:e}) is {:e}, {} ulp off", exp(x), ulps(x));
            assert!(x > 87.0 || ulps(-x) <= 1.0, "exp({:e}) is {:e}, {} ulp off", -x, exp(-x), ulps(-x));
        }
    }

    #[test]
    fn its_ends_are_as_documented() {
        assert_eq!((exp(0.0), exp(-0.0)), (1.0, 1.0));
        assert_eq!((exp(-87.1), exp(f32::NEG_INFINITY), exp(-1e30)), (0.0, 0.0, 0.0));
        assert_eq!((exp(f32::INFINITY), exp(1e30)), (exp(88.0), exp(88.0)));
        assert!(exp(f32::NAN).is_nan() && exp(-f32::NAN).is_nan());
    }
}
