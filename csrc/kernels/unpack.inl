// Packed codes to a byte a code, in registers, and what sums of these lack. The layout is told in penjing.h.
namespace penjing {
namespace {

constexpr int kUnitBytes = kUnit * kLanes;  // of unpacked codes

// How codes are stored, as a template argument: uniform codes are their number of bits, books that and kBook.
constexpr int kTernary = 16, kBook = 32;
constexpr int stored_bits(int form) { return form > kBook ? form - kBook : form; }
constexpr bool is_ternary(int form) { return form == kTernary; }
constexpr bool is_book(int form) { return form > kBook; }
// Bits of a code when it is unpacked to a byte: what dot must expect.
constexpr int unpacked_bits(int form) { return is_book(form) ? 8 : form == 1 || is_ternary(form) ? 2 : form; }

template <int BITS>
constexpr size_t group_bytes(int stride) {
  return static_cast<size_t>(stride) * kLanes * BITS / 8;
}

// The 16 inputs of unit `unit` in a packed group, a byte a code; of 1 bit twice the code.
template <int BITS>
inline void unpack(const uint8_t* group, int stride, int unit, Codes* c) {
  const size_t u = static_cast<size_t>(unit);
  if constexpr (BITS == 8) {
    for (int k = 0; k < 4; ++k) c[k] = load_codes(group + 256 * u + 64 * k);
  }
  if constexpr (BITS == 4 || BITS == 5 || BITS == 6) unpack4(group + 128 * u, c);
  if constexpr (BITS == 5) add_plane1<16>(group + group_bytes<4>(stride) + 32 * u, c);
  if constexpr (BITS == 6) add_plane2<16>(group + group_bytes<4>(stride) + 64 * u, c);
  if constexpr (BITS == 2 || BITS == 3) unpack2(group + 64 * u, c);
  if constexpr (BITS == 3) add_plane1<4>(group + group_bytes<2>(stride) + 32 * u, c);
  if constexpr (BITS == 1) {
    for (int k = 0; k < 4; ++k) c[k] = same_codes(0);
    add_plane1<2>(group + 32 * u, c);
  }
}

// One unit's blocks in the last four digits of 64 bytes.
inline void unpack_ternary(const uint8_t* p, Codes* c) {
  Codes left = times_three(load_ternary(p));
  for (int k = 0; k < 4; ++k) {
    c[k] = first_digit(left);
    if (k < 3) left = times_three(left);
  }
}

// A unit's blocks in the first digits of four times 64 bytes.
inline void unpack_fifth(const uint8_t* p, Codes* c) {
  for (int k = 0; k < 4; ++k) c[k] = first_digit(load_ternary(p + 64 * k));
}

// Walks the units of a panel in the order in which they lie and gives a byte a code. Less its zero point (`zeros`, or
// symmetric_zero) a code is what it stands for: those of a book are its entries + 128, of 1 bit they are 0 and 2.
template <int FORM>
class Cursor {
 public:
  // stride: the matrix's, which the compiler may know better.
  Cursor(const Matrix& w, int panel, int stride) : at_(w.data + panel * w.panel_bytes), stride_(stride) {
    if constexpr (is_book(FORM)) book_ = load_book(w.book, 1 << stored_bits(FORM));
  }

  // Turns to unit `unit` of this group; each is asked for once, in order.
  void turn_to(int unit) {
    if constexpr (is_ternary(FORM)) return next_ternary();
    constexpr int kBytes = kUnit * kLanes * stored_bits(FORM) / 8;
    prefetch_ahead(at_ + unit * kBytes, kBytes);
    unit_ = unit;
  }

  // Its four blocks.
  void blocks(Codes* c) const {
    if constexpr (is_ternary(FORM)) {
      for (int k = 0; k < 4; ++k) c[k] = digits_[k];
    } else {
      unpack<stored_bits(FORM)>(at_, stride_, unit_, c);
    }
    if constexpr (is_book(FORM)) {
      for (int k = 0; k < 4; ++k) c[k] = look_up(book_, c[k]);
    }
  }

  void end_group() {
    if constexpr (!is_ternary(FORM)) at_ += group_bytes<stored_bits(FORM)>(stride_);
  }

 private:
  void next_ternary() {
    if (place_ == kTernaryUnits - 1) {
      place_ = 0;
      return unpack_fifth(at_ - 256, digits_);
    }
    ++place_;
    prefetch_ahead(at_, 64);
    unpack_ternary(at_, digits_);
    at_ += 64;
  }

  const uint8_t* at_;  // the group; of ternary codes the unit
  int stride_, unit_ = 0, place_ = 0;
  Codes book_, digits_[4];
};

// What a group's sums lack, over the sum of its activations: what dot left out, less the zero points.
template <int WIDTH, bool ZEROS>
inline Ints correction_of(const Matrix& w, size_t group) {
  if constexpr (ZEROS) return sub(ints(code_offset(WIDTH)), load_u8(w.zeros + group * kLanes));
  return ints(0);
}

// The same for all rows, where there are no zero points.
template <int WIDTH>
inline int32_t shared_correction(const Matrix& w) {
  return code_offset(WIDTH) - symmetric_zero(w);
}

template <bool ZEROS>
inline Ints first_sum(Ints correction, int32_t shared, int32_t sum_x) {
  if constexpr (ZEROS) return mul(correction, ints(sum_x));
  return ints(shared * sum_x);  // one product for all rows of all panels
}

}  // namespace
}  // namespace penjing
