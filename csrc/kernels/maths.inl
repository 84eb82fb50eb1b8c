// exp and its relatives, with one sequence of operations for every ISA. Polynomials are Chebyshev fits made for
// these intervals; errors are in units of float32 rounding.
namespace penjing {
namespace {

// Horner's rule, highest power first.
template <int N>
inline Floats polynomial(const float (&coefficient)[N], Floats x) {
  Floats sum = all(coefficient[0]);
  for (int i = 1; i < N; ++i) sum = fma(sum, x, all(coefficient[i]));
  return sum;
}

// e^x within 1 ulp; 0 below -104, infinity above 89, NaN stays NaN, exactly 1 at 0.
inline Floats exp(Floats x) {
  // (e^r - 1 - r) / r^2 on |r| <= ln(2) / 2
  constexpr float kTail[] = {0.001392632562f, 0.008363292753f, 0.04166655376f, 0.1666657631f, 0.5f};
  const Floats magic = all(12582912.0f);  // 1.5 * 2^23: adding it rounds to the nearest even integer
  x = at_most(all(89.0f), at_least(all(-104.0f), x));
  const Floats shifted = fma(x, all(1.44269504f), magic);
  const Floats n = sub(shifted, magic);
  Floats r = fma(n, all(-0.693359375f), x);  // ln(2) in two parts, the first exact in few bits
  r = fma(n, all(2.12194440e-4f), r);
  const Floats tail = polynomial(kTail, r);
  const Floats mantissa = add(fma(mul(r, r), tail, r), all(1.0f));
  // 2^n in two factors: n reaches -150 and 128, which no single exponent can hold
  const Ints whole = sub(bits_of(shifted), ints(0x4b400000));
  const Ints half = halve(whole);
  const Floats scale = floats_of_bits(shift_left<23>(add(half, ints(127))));
  const Floats rest = floats_of_bits(shift_left<23>(add(sub(whole, half), ints(127))));
  return mul(mul(mantissa, scale), rest);
}

// e^x of what is not above 80, within 4e-7 of it (2e-7 from -20 to 16) in half as many steps: exactly 1 at 0, 0 below
// -87.7, NaN stays NaN.
inline Floats short_exp(Floats x) {
  constexpr float kPowers[] = {0.008290302008f, 0.04189797863f, 0.1666763723f, 0.4999915063f, 0.999999702f, 1.0f};
  const Floats magic = all(12582912.0f + 127.0f);  // as in exp, and the exponent's bias with it
  x = at_least(all(-88.0f), x);                    // there n is -127, whose exponent is that of 0
  const Floats shifted = fma(x, all(1.44269504f), magic);
  const Floats r = fma(sub(shifted, magic), all(-0.693147182f), x);
  return mul(polynomial(kPowers, r), floats_of_bits(shift_left<23>(bits_of(shifted))));
}

// 1 / (1 + e^-x), within 3 ulp.
inline Floats sigmoid(Floats x) { return div(all(1.0f), add(all(1.0f), exp(negate(x)))); }

inline Floats absolute(Floats x) { return floats_of_bits(bit_and(bits_of(x), ints(0x7fffffff))); }

// The normal distribution's cumulative function, (1 + erf(x / sqrt(2))) / 2, with a small relative error in both
// tails: erfc(t) = e^(-t^2) * R(u) / (1 + 2t), u = (t - 2.5) / (t + 2.5), R a polynomial.
inline Floats normal_cdf(Floats x) {
  constexpr float kRatio[] = {8.724286903e-5f,  6.308693436e-4f, 3.466756036e-4f, -4.431908929e-3f,
                              9.742362889e-4f,  3.277998589e-2f, -0.1029721745f,  0.1576276016f,
                              -9.902430871e-2f, -0.1223566905f,  1.264838182f};
  const Floats one = all(1.0f);
  const Floats t = at_most(all(10.0f), mul(absolute(x), all(0.707106781f)));
  const Floats u = div(sub(t, all(2.5f)), add(t, all(2.5f)));
  const Floats ratio = div(polynomial(kRatio, u), fma(all(2.0f), t, one));
  const Floats square = mul(t, t);
  const Floats lost = fma(t, t, negate(square));  // e^-(square + lost) = e^-square * (1 - lost)
  const Floats gauss = fma(exp(negate(square)), negate(lost), exp(negate(square)));
  const Floats tail = mul(all(0.5f), mul(gauss, ratio));
  return where_negative(x, tail, sub(one, tail));
}

}  // namespace
}  // namespace penjing
