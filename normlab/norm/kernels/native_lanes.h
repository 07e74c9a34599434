// Types of values, and vectors of them: kLanes at a time, or one.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>
#ifdef __AVX__
#include <immintrin.h>
#endif

namespace {

using Index = int64_t;

struct BFloat16 { uint16_t bits; };
using Half = _Float16;

template <class T> using Wide = std::conditional_t<std::is_same_v<T, double>, double, float>;

constexpr int kBytes = 64;
template <class A> struct VectorOf { typedef A type __attribute__((vector_size(kBytes))); };
template <class A> using Vector = typename VectorOf<A>::type;
template <class A> constexpr Index kLanes = kBytes / Index(sizeof(A));
typedef uint32_t Words __attribute__((vector_size(64)));
typedef uint16_t HalfWords __attribute__((vector_size(32)));
typedef Half Halves __attribute__((vector_size(32)));

template <class V, class T> V raw(const T* p) { V v; std::memcpy(&v, p, sizeof v); return v; }

inline Words rounded(Words w) {  // to the nearest bfloat16, ties to even; NaN stays NaN
  Words nan = (Words)((w & 0x7fffffffu) > 0x7f800000u);
  return (((w + 0x7fffu + ((w >> 16) & 1u)) >> 16) & ~nan) | (nan & 0x7fc0u);
}

// kLanes values at a time, or a single one: loops are written once, over `lane`.
struct Many {
  static Vector<float> load(const float* p) { return raw<Vector<float>>(p); }
  static Vector<double> load(const double* p) { return raw<Vector<double>>(p); }
  static Vector<float> load(const BFloat16* p) {
    Words w = __builtin_convertvector(raw<HalfWords>(p), Words) << 16;
    return raw<Vector<float>>(&w);
  }
  static Vector<float> load(const Half* p) { return __builtin_convertvector(raw<Halves>(p), Vector<float>); }
  static void store(float* p, Vector<float> v) { std::memcpy(p, &v, sizeof v); }
  static void store(double* p, Vector<double> v) { std::memcpy(p, &v, sizeof v); }
  static void store(BFloat16* p, Vector<float> v) {
    HalfWords h = __builtin_convertvector(rounded(raw<Words>(&v)), HalfWords);
    std::memcpy(p, &h, sizeof h);
  }
  static void store(Half* p, Vector<float> v) {
    Halves h = __builtin_convertvector(v, Halves);
    std::memcpy(p, &h, sizeof h);
  }
};

struct One {
  template <class A> static A load(const A* p) { return *p; }
  static float load(const BFloat16* p) { uint32_t w = uint32_t(p->bits) << 16; return raw<float>(&w); }
  static float load(const Half* p) { return float(*p); }
  template <class A> static void store(A* p, A v) { *p = v; }
  static void store(BFloat16* p, float v) {
    Words w{};
    w[0] = raw<uint32_t>(&v);
    p->bits = uint16_t(rounded(w)[0]);
  }
  static void store(Half* p, float v) { *p = Half(v); }
};

// Many::store or, with `past`, past the caches: a line that is written whole need not be read first. What lies there is
// aligned, and seen by others after past_is_done.
template <class T, class V> void store(Many, bool past, T* p, V v) {
#ifdef __AVX__
  if (past) {
    alignas(kBytes) T values[sizeof v / sizeof v[0]];
    Many::store(values, v);
    for (size_t i = 0; i < sizeof values; i += 32)
      _mm256_stream_si256((__m256i*)((char*)p + i), _mm256_load_si256((const __m256i*)((char*)values + i)));
    return;
  }
#endif
  Many::store(p, v);
}
template <class T, class V> void store(One, bool, T* p, V v) { One::store(p, v); }
inline void past_is_done() {
#ifdef __AVX__
  _mm_sfence();
#endif
}

template <class A> Vector<A> like(Many, A a) { return a - Vector<A>{}; }
template <class A> A like(One, A a) { return a; }

template <class A> A sum(Vector<A> v) {
  struct { typedef A half __attribute__((vector_size(32))); half low, high; } whole;
  struct { typedef A quarter __attribute__((vector_size(16))); quarter low, high; } half;
  std::memcpy(&whole, &v, sizeof v);
  auto narrower = whole.low + whole.high;
  std::memcpy(&half, &narrower, sizeof narrower);
  auto last = half.low + half.high;
  if constexpr (sizeof(A) == 8) return last[0] + last[1];
  else return (last[0] + last[2]) + (last[1] + last[3]);
}

// The last `count` lanes of v, and zeros.
template <class A> Vector<A> tail(Vector<A> v, Index count) {
  using Int = std::conditional_t<sizeof(A) == 8, int64_t, int32_t>;
  static constexpr auto order = [] {
    struct { alignas(kBytes) Int at[kLanes<A>]; } numbers{};
    for (Index i = 0; i < kLanes<A>; ++i) numbers.at[i] = Int(kLanes<A> - 1 - i);
    return numbers;
  }();
  return raw<Vector<Int>>(order.at) < like(Many{}, Int(count)) ? v : Vector<A>{};
}

template <class A, class F> void for_lanes(Index n, F f) {
  Index i = 0;
  for (; i + kLanes<A> <= n; i += kLanes<A>) f(Many{}, i);
  for (; i < n; ++i) f(One{}, i);
}

}  // namespace
