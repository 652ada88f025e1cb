// Winograd's transforms for 3x3 convolutions (A. Lavin, S. Gray, arXiv:1509.09308), on vectors of channels.
//
// F(4x4) interpolates at 0, +-21/32, +-3/2 and infinity. There the sums' rounding errors grow 2.2 times less than at
// the usual 0, +-1, +-2, and 5 % less than at 0, +-1/sqrt(2), +-sqrt(2), and all coefficients of the maps' transforms
// are exact in float32. F(2x2) interpolates at 0, +-1, infinity.
#pragma once

#include "dtype.h"
#include "vec.h"

namespace VOVNET_ISA {

constexpr double kA = 21.0 / 32, kB = 1.5;  // points of F(4x4)

// The weights' transform in one dimension: the polynomial of the three taps at each finite point, divided by the
// product of the point's distances to the others, and the polynomial at infinity.
template <int N>
inline void transform_taps(const double (&points)[N], const double* taps, double* out) {
  for (int p = 0; p < N; ++p) {
    double distance = 1;
    for (int q = 0; q < N; ++q) {
      if (q != p) distance *= points[p] - points[q];
    }
    out[p] = (taps[0] + points[p] * (taps[1] + points[p] * taps[2])) / distance;
  }
  out[N] = taps[2];
}

// F(kOut x kOut, 3x3) for a stride.
template <int M, int stride = 1>
struct Winograd;

template <>
struct Winograd<4> {
  static constexpr int kOut = 4, kTile = 6, kStride = 1;  // side of a tile in pixels of the output and of the input
  static constexpr float a = kA, b = kB, aa = kA * kA, bb = kB * kB, aabb = aa * bb, both = aa + bb;

  static VOVNET_INLINE void taps(const double* three, double* out) {
    constexpr double points[] = {0, kA, -kA, kB, -kB};
    transform_taps(points, three, out);
  }

  static VOVNET_INLINE void input(const Vec* d, Vec* out) {
    const Vec even_a = d[4] - bb * d[2], odd_a = d[3] - bb * d[1];
    const Vec even_b = d[4] - aa * d[2], odd_b = d[3] - aa * d[1];
    out[0] = (d[4] + aabb * d[0]) - both * d[2];
    out[1] = even_a + a * odd_a;
    out[2] = even_a - a * odd_a;
    out[3] = even_b + b * odd_b;
    out[4] = even_b - b * odd_b;
    out[5] = (d[5] + aabb * d[1]) - both * d[3];
  }

  // Transforms both dimensions: pixel (y, x) is at from + y * down + x * right, Winograd point p goes to to + p * step.
  // Only a pair of lines is kept in registers, because reading pixels twice costs less than spilling. It is never
  // inlined, because compilers then keep the addresses of all pixels on the stack, which is slower than adding them up.
  template <typename M, typename S>
  [[gnu::noinline]] static void tile(const M* from, int64_t down, int64_t right, S* to, int64_t step) {
    const auto at = [&](int y, int x) { return load(from + y * down + x * right); };
    const auto put = [&](int line, const Vec* columns) {
      Vec out[kTile];
      input(columns, out);
      for (int x = 0; x < kTile; ++x) store(to + (line * kTile + x) * step, out[x]);
    };
    Vec plus[kTile], minus[kTile];
    for (int x = 0; x < kTile; ++x) plus[x] = (at(4, x) + aabb * at(0, x)) - both * at(2, x);
    put(0, plus);
    for (int x = 0; x < kTile; ++x) {
      const Vec even = at(4, x) - bb * at(2, x), odd = at(3, x) - bb * at(1, x);
      plus[x] = even + a * odd;
      minus[x] = even - a * odd;
    }
    put(1, plus);
    put(2, minus);
    for (int x = 0; x < kTile; ++x) {
      const Vec even = at(4, x) - aa * at(2, x), odd = at(3, x) - aa * at(1, x);
      plus[x] = even + b * odd;
      minus[x] = even - b * odd;
    }
    put(3, plus);
    put(4, minus);
    for (int x = 0; x < kTile; ++x) plus[x] = (at(5, x) + aabb * at(1, x)) - both * at(3, x);
    put(5, plus);
  }

  static VOVNET_INLINE void output(const Vec* m, Vec* out) {
    const Vec even_a = m[1] + m[2], odd_a = m[1] - m[2], even_b = m[3] + m[4], odd_b = m[3] - m[4];
    out[0] = m[0] + (even_a + even_b);
    out[1] = a * odd_a + b * odd_b;
    out[2] = aa * even_a + bb * even_b;
    out[3] = (aa * a) * odd_a + ((bb * b) * odd_b + m[5]);
  }
};

template <>
struct Winograd<2> {
  static constexpr int kOut = 2, kTile = 4, kStride = 1;

  static VOVNET_INLINE void taps(const double* three, double* out) {
    constexpr double points[] = {0, 1, -1};
    transform_taps(points, three, out);
  }

  static VOVNET_INLINE void input(const Vec* d, Vec* out) {
    out[0] = d[2] - d[0];
    out[1] = d[2] + d[1];
    out[2] = d[2] - d[1];
    out[3] = d[3] - d[1];
  }

  template <typename M, typename S>
  [[gnu::noinline]] static void tile(const M* from, int64_t down, int64_t right, S* to, int64_t step) {
    Vec columns[kTile][kTile];
    for (int x = 0; x < kTile; ++x) {
      Vec d[kTile], out[kTile];
      for (int y = 0; y < kTile; ++y) d[y] = load(from + y * down + x * right);
      input(d, out);
      for (int y = 0; y < kTile; ++y) columns[y][x] = out[y];
    }
    for (int y = 0; y < kTile; ++y) {
      Vec out[kTile];
      input(columns[y], out);
      for (int x = 0; x < kTile; ++x) store(to + (y * kTile + x) * step, out[x]);
    }
  }

  static VOVNET_INLINE void output(const Vec* m, Vec* out) {
    out[0] = m[0] + (m[1] + m[2]);
    out[1] = (m[1] - m[2]) + m[3];
  }
};

// A convolution of stride 2 is the sum of two: even pixels with the outer taps, and odd pixels with the middle tap. In
// each dimension 3 output pixels take 4 + 3 products instead of 9. F(3, 2 taps) interpolates at 0, +-1, infinity.
template <>
struct Winograd<3, 2> {
  static constexpr int kOut = 3, kTile = 7, kStride = 2;

  static VOVNET_INLINE void taps(const double* three, double* out) {
    out[0] = -three[0];
    out[1] = (three[0] + three[2]) / 2;
    out[2] = (three[0] - three[2]) / 2;
    out[3] = three[2];
    out[4] = out[5] = out[6] = three[1];
  }

  template <typename M, typename S>
  [[gnu::noinline]] static void tile(const M* from, int64_t down, int64_t right, S* to, int64_t step) {
    const auto at = [&](int y, int x) { return load(from + y * down + x * right); };
    const auto put = [&](int line, const Vec* d) {
      const Vec even[4] = {d[0], d[2], d[4], d[6]};
      Vec out[kTile] = {{}, {}, {}, {}, d[1], d[3], d[5]};
      Winograd<2>::input(even, out);
      for (int x = 0; x < kTile; ++x) store(to + (line * kTile + x) * step, out[x]);
    };
    Vec line[kTile], other[kTile];
    for (int x = 0; x < kTile; ++x) line[x] = at(4, x) - at(0, x);
    put(0, line);
    for (int x = 0; x < kTile; ++x) {
      line[x] = at(4, x) + at(2, x);
      other[x] = at(4, x) - at(2, x);
    }
    put(1, line);
    put(2, other);
    for (int x = 0; x < kTile; ++x) line[x] = at(6, x) - at(2, x);
    put(3, line);
    for (int y = 1; y < kTile; y += 2) {
      for (int x = 0; x < kTile; ++x) line[x] = at(y, x);
      put(4 + y / 2, line);
    }
  }

  static VOVNET_INLINE void output(const Vec* m, Vec* out) {
    const Vec both = m[1] + m[2];
    out[0] = (m[0] + both) + m[4];
    out[1] = (m[1] - m[2]) + m[5];
    out[2] = (both + m[3]) + m[6];
  }
};

}  // namespace VOVNET_ISA
