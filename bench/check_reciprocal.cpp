// Is a quotient by the rounded reciprocal the IEEE quotient?   v = fma(fma(-q, s, x), r, q), q = x r, r = RN(1 / s)
//   g++ -O3 -march=native -std=c++20 -ffp-contract=off -Icsrc -o build/check_reciprocal bench/check_reciprocal.cpp
//   build/check_reciprocal [PAIRS]      the status is 0 where it is
// Three sweeps. "hardest": before its last rounding v is less than 2^-21 ulp from x / s, so it can only be wrong where
// x / s is that near to a midpoint of two floats; all such x are solved for, for every mantissa of s (one of 63 below
// 1e9 pairs), which proves the formula wherever nothing underflows. "random": PAIRS pairs with |s| within 2^+-100, x
// near codes, ties and clamp edges, of special mantissas, subnormal. Then one exponent of s after the other, to see
// where the proof ends.
// Found, 1.2e10 pairs: no other code and no other bit with 2^-102 <= |s| < 2^126; other codes from 2^-103 down, where
// x - q s underflows, and from 2^126 up, where r does. Another sign of v has a subnormal x alone, up to 1.5 * 2^-131,
// with |x / s| about 2^-150, of which division rounds one half to 0 and the formula the other.
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>

#include "math/quant_math.h"

namespace {

constexpr int kLot = 2048;
constexpr float kTrusted = 1024.0f;  // |q| from here on is beyond every clamp, and q will do
constexpr float kReach = 512.0f;     // every clamp is nearer
constexpr float kExact = 0x1p-102f;  // from this |x| on, x - q s is a float

float from_bits(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}
uint32_t bits_of(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  return bits;
}
float power(int exponent) { return std::ldexp(1.0f, exponent); }

inline float quotient(float x, float s, float r) { return mbq::quotient_by_reciprocal(x, s, r); }
inline float within(float v) { return mbq::clamp(v, -kReach, kReach); }

// How often quotients differ, and up to which |x|. codes: rint differs, or on which side of an integer but 0 the
// quotient lies, which is all that a code and its gradient's mask need; signs: whether it is below, at or above 0,
// which decides a code of 1 bit and the mask of unsigned codes; bits: any bit, where |q| < kTrusted is normal and |x|
// >= kExact.
struct Kind {
  int64_t count = 0;
  float below = 0, x = 0, s = 0;
  void add(const Kind& other) {
    count += other.count;
    if (other.count && other.below >= below) below = other.below, x = other.x, s = other.s;
  }
};
struct Found {
  int64_t pairs = 0;
  Kind bits, codes, signs;
  void add(const Found& other) {
    pairs += other.pairs;
    bits.add(other.bits), codes.add(other.codes), signs.add(other.signs);
  }
};

bool other_bits(float want, float got, float q, float x) {
  const float size = std::fabs(q);
  return (want != got) & (size < kTrusted) & (size >= std::numeric_limits<float>::min()) & (std::fabs(x) >= kExact);
}
bool other_code(float want, float got) {
  const float a = within(want), b = within(got), level = mbq::round_even(a);
  const bool side = (((a < level) != (b < level)) | ((a > level) != (b > level))) & (level != 0.0f);
  return ((level != mbq::round_even(b)) | side) & (want == want);
}
bool other_sign(float want, float got) { return ((want < 0) != (got < 0)) | ((want > 0) != (got > 0)); }

template <class Differs>
Kind differing(const float* x, const float* s, int count, Differs differs) {
  int32_t found = 0;
  for (int i = 0; i < count; ++i) {
    const float r = 1.0f / s[i];
    found += differs(x[i] / s[i], quotient(x[i], s[i], r), x[i] * r, x[i]);
  }
  Kind kind;
  for (int i = 0; i < count && found; ++i) {
    const float r = 1.0f / s[i], size = std::fabs(x[i]);
    if (!differs(x[i] / s[i], quotient(x[i], s[i], r), x[i] * r, x[i]) || size < kind.below) continue;
    kind.below = size, kind.x = x[i], kind.s = s[i];
  }
  kind.count = found;
  return kind;
}

Found compare(const float* x, const float* s, int count) {
  return {count, differing(x, s, count, other_bits),
          differing(x, s, count, [](float want, float got, float, float) { return other_code(want, got); }),
          differing(x, s, count, [](float want, float got, float, float) { return other_sign(want, got); })};
}

void print(const char* name, const Found& f) {
  std::printf("%-20s %14lld pairs", name, static_cast<long long>(f.pairs));
  const Kind* kinds[] = {&f.codes, &f.signs, &f.bits};
  const char* names[] = {"codes", "signs", "bits"};
  for (int k = 0; k < 3; ++k) {
    std::printf("; other %s: %lld", names[k], static_cast<long long>(kinds[k]->count));
    if (kinds[k]->count) std::printf(" (|x| up to %a: x = %a, s = %a)", kinds[k]->below, kinds[k]->x, kinds[k]->s);
  }
  std::puts("");
  std::fflush(stdout);
}

struct Pairs {
  float x[kLot], s[kLot];
  int count = 0;
  Found found;
  void put(float over, float under) {
    x[count] = over, s[count] = under;
    if (++count == kLot) flush();
  }
  void flush() {
    found.add(compare(x, s, count));
    count = 0;
  }
};

// 1 / odd modulo 2^32
uint32_t inverse(uint32_t odd) {
  uint32_t y = odd;
  for (int i = 0; i < 4; ++i) y *= 2 - odd * y;
  return y;
}

// The x whose quotient by mantissa S (24 bits) is at a distance c from a midpoint M / 2^k, where x 2^k - M S = c: M is
// odd, so with S = T 2^z, T odd, M = (x 2^k - c) / S asks for c = d 2^z, and M = -d / T modulo 2^(k - z).
void hardest_of(uint32_t S, int nearest, Pairs& pairs) {
  const int zeros = __builtin_ctz(S);
  for (int k = 24; k <= 25; ++k) {  // quotients from 1 to 2, from 1/2 to 1
    const int free = k - zeros;
    if (free < 1) continue;  // a midpoint times S is no multiple of 2^k that close
    const uint32_t mask = (uint32_t{1} << free) - 1, by = inverse(S >> zeros);
    for (int d = -nearest; d <= nearest; ++d) {
      if ((d << zeros) > nearest || (d << zeros) < -nearest) continue;
      for (uint64_t M = (-static_cast<uint32_t>(d) * by) & mask; M < uint64_t{1} << 25; M += uint64_t{1} << free) {
        const int64_t c = int64_t{d} << zeros, X = static_cast<int64_t>(M * S + c) >> k;
        if (M >> 24 == 0 || !(M & 1) || X < 1 << 23 || X >= 1 << 24) continue;
        pairs.put(static_cast<float>(X), static_cast<float>(S));
      }
    }
  }
}

Found hardest(uint32_t step) {
  Pairs pairs;
  for (uint32_t S = 1u << 23; S < 1u << 24; S += step) hardest_of(S, 16, pairs);
  pairs.flush();
  return pairs.found;
}

inline uint32_t mixed(uint32_t z) {
  z = (z ^ z >> 16) * 0x85EBCA6Bu;
  z = (z ^ z >> 13) * 0xC2B2AE35u;
  return z ^ z >> 16;
}

// A mantissa of few ones or few zeros at its ends, or any, by the bits of z
uint32_t mantissa(uint32_t z) {
  const uint32_t low = z >> 4 & 31, ones = (1u << (z >> 9) % 24) - 1;
  switch (z & 7) {
    case 0:
      return ones;
    case 1:
      return 0x7fffff ^ ones;
    case 2:
      return low;
    case 3:
      return 0x7fffff ^ low;
    default:
      return mixed(z) & 0x7fffff;
  }
}

// A lot of x for one scale: by `kind` around ties and codes, anywhere, of special mantissas, or tiny
void fill(float* x, float s, uint32_t seed, int kind) {
  for (int i = 0; i < kLot; ++i) {
    const uint32_t z = mixed(seed + 0x9E3779B9u * i), sign = z << 31;
    const float tie = static_cast<float>(static_cast<int>(z >> 5 & 4095) - 2048) * 0.5f * s;
    const float near = from_bits(bits_of(tie) + (z >> 17 & 15) - 8);
    const uint32_t place = bits_of(s) + ((z >> 26) % 24 << 23) - (13u << 23);  // a quotient of 2^-13 to 2^11
    const float any = from_bits(((place & 0x7f800000u) | (mixed(z) & 0x7fffff)) ^ sign);
    const float tiny = from_bits((mixed(z) >> (z >> 4 & 15) & 0x1fffffffu) ^ sign);
    x[i] = kind == 0 ? near : kind == 1 ? any : tiny;
  }
  if (kind == 3) {
    for (int i = 0; i < kLot; ++i) {
      const uint32_t z = mixed(seed + 77u * i), place = bits_of(s) + (z % 24 << 23) - (13u << 23);
      x[i] = from_bits((place & 0x7f800000u) | mantissa(z >> 3) | z << 31);
    }
  }
}

Found random_pairs(int64_t pairs, int lowest, int highest, uint32_t seed, int kinds) {
  Found found;
  alignas(64) float x[kLot], s[kLot];
  for (uint32_t lot = 0; found.pairs < pairs; ++lot) {
    const uint32_t z = mixed(seed += 0x9E3779B9u);
    const int ends = z >> 8 & 15, span = highest - lowest + 1;
    const int exponent = ends == 0 ? lowest : ends == 1 ? highest : lowest + static_cast<int>(mixed(z) % span);
    const float one = power(exponent) * from_bits(0x3f800000u | mantissa(mixed(z + 1)));
    for (float& same : s) same = one;
    fill(x, one, z, lot % kinds);
    found.add(compare(x, s, kLot));
  }
  return found;
}

}  // namespace

int main(int argc, char** argv) {
  const double pairs = argc > 1 ? std::atof(argv[1]) : 2e8;
  const Found proof = hardest(pairs >= 1e9 ? 1 : 63), found = random_pairs(static_cast<int64_t>(pairs), -100, 99, 1, 4);
  print("hardest", proof);
  print("random, |s| 2^+-100", found);
  for (int way = -1; way <= 1; way += 2) {  // the first exponent of s on either side of 0 at which a code differs
    for (int exponent = 0; std::abs(exponent) <= 126; exponent += way) {
      const Found at = random_pairs(static_cast<int64_t>(pairs / 100), exponent, exponent, 7, 2);
      char name[32];
      std::snprintf(name, sizeof name, "s of 2^%d", exponent);
      if (at.codes.count || exponent == 126) print(name, at);
      if (at.codes.count) break;
    }
  }
  return proof.bits.count || proof.codes.count || proof.signs.count || found.codes.count || found.bits.count;
}
