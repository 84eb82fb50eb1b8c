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

constexpr float kLog2E = 1.44269504f;

// e^x within 1 ulp; 0 below -104, infinity above 89, NaN stays NaN, exactly 1 at 0.
inline Floats exp(Floats x) {
  // (e^r - 1 - r) / r^2 on |r| <= ln(2) / 2
  constexpr float kTail[] = {0.001392632562f, 0.008363292753f, 0.04166655376f, 0.1666657631f, 0.5f};
  const Floats magic = all(12582912.0f);  // 1.5 * 2^23: adding it rounds to the nearest even integer
  x = at_most(all(89.0f), at_least(all(-104.0f), x));
  const Floats shifted = fma(x, all(kLog2E), magic);
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

// 2^x of what is not above 127: within 9e-8 of it, or 3e-6 and a step less. Exactly 1 at 0, 0 up to -127, NaN stays NaN.
template <bool ROUGH>
inline Floats short_exp2(Floats x) {
  constexpr float kPowers[] = {0.001326472731f, 0.009671512991f, 0.05550733581f, 0.2402224243f, 0.6931470037f, 1.0f};
  constexpr float kRough[] = {0.009582852945f, 0.05590642616f, 0.2402409911f, 0.6931241751f, 1.0f};
  const Floats magic = all(12582912.0f);  // as in exp
  x = at_least(all(-127.0f), x);
  const Floats shifted = add(x, magic);
  const Floats r = sub(x, sub(shifted, magic));
  const Floats mantissa = ROUGH ? polynomial(kRough, r) : polynomial(kPowers, r);
  // the last bits of `shifted` are what the exponent becomes larger by: of 1 at -127 that leaves 0
  return floats_of_bits(add(bits_of(mantissa), shift_left<23>(bits_of(shifted))));
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
