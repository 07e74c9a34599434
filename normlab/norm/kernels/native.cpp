// The operations of normlab.norm.ops on CPU, behind a plain C interface (see native.py).
//
// Shapes: N samples, C channels, S positions. An activation lies in memory as planes, (N, C, S), or with its channels
// last, (N, S, C). T is its type, Wide<T> that of sums and of (N, C) tensors: double for double, else float.
//
// Results do not depend on the number of threads: every sum is made of blocks whose size the shape alone decides, added
// in the same order. An activation is read from main memory once where the definition reads it twice: the second pass
// over a plane, or over a block of rows, finds it in the cache. What is written is gone through from its end, because
// the end of what was read last is still there.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#include <type_traits>
#include <vector>
#ifdef _OPENMP
#include <omp.h>
#endif
#ifdef __linux__
#include <sys/mman.h>
#endif

namespace {

using Index = int64_t;

// ---- types and vectors ----------------------------------------------------------------------------------------------

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

// ---- threads, blocks and memory -------------------------------------------------------------------------------------

constexpr Index kWorthThreads = 32768;  // values, as in torch
constexpr Index kBlock = 1 << 17;       // bytes that stay in the second-level cache between two passes
constexpr Index kChunk = 8192;          // values that are summed in their own type; chunks are added in double
constexpr Index kHuge = 1 << 23;        // bytes from which on memory is asked for in huge pages

// f(begin, end) over all tasks, in one range a thread.
template <class F> void parallel(Index tasks, int threads, F f) {
#ifdef _OPENMP
  threads = int(std::min<Index>(threads, tasks));
  if (threads > 1) {
#pragma omp parallel num_threads(threads)
    {
      Index t = omp_get_thread_num(), n = omp_get_num_threads();
      f(tasks * t / n, tasks * (t + 1) / n);
    }
    return;
  }
#endif
  f(0, tasks);
}

// Fresh memory of this size comes in pages of 4 KiB, and taking each costs more than writing it.
void take_huge_pages(void* p, Index bytes) {
#ifdef __linux__
  constexpr uintptr_t page = 1 << 21;
  uintptr_t begin = (uintptr_t(p) + page - 1) / page * page, end = (uintptr_t(p) + bytes) / page * page;
  if (bytes >= kHuge && begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#endif
}

struct Shape {
  Index N, C, S;
  bool last;
  int threads;
  Shape(Index N, Index C, Index S, bool last, int threads)
      : N(N), C(C), S(S), last(last), threads(N * C * S < kWorthThreads ? 1 : threads) {}
};

// Blocks of rows, of one sample each, of a channels-last activation.
struct Blocks {
  Index in_sample, count, S;
  Blocks(const Shape& shape, Index size) : S(shape.S) {
    Index rows = std::max<Index>(4, kBlock / (shape.C * size));
    in_sample = std::max<Index>(1, (S + rows - 1) / rows);
    count = shape.N * in_sample;
  }
  Index sample(Index block) const { return block / in_sample; }
  Index begin(Index block) const { return S * (block % in_sample) / in_sample; }  // row of its sample
  Index end(Index block) const { return S * (block % in_sample + 1) / in_sample; }
};

// ---- sums over planes -----------------------------------------------------------------------------------------------

// Adds term(lane, i) over i < n, `Terms` values at once; the vector at the end overlaps, and what was counted is masked.
template <class A, int Terms, class F> void add_up(Index n, double* totals, F term) {
  using V = Vector<A>;
  constexpr Index W = kLanes<A>;
  constexpr int kChains = 4;  // independent additions, for an addition takes four cycles
  for (int t = 0; t < Terms; ++t) totals[t] = 0;
  for (Index begin = 0; begin < n; begin += kChunk) {
    Index end = std::min(n, begin + kChunk), i = begin;
    V acc[kChains][Terms] = {}, value[Terms];
    for (; i + kChains * W <= end; i += kChains * W)
      for (int k = 0; k < kChains; ++k) {
        term(Many{}, i + k * W, value);
        for (int t = 0; t < Terms; ++t) acc[k][t] += value[t];
      }
    for (; i + W <= end; i += W) {
      term(Many{}, i, value);
      for (int t = 0; t < Terms; ++t) acc[0][t] += value[t];
    }
    if (i < end && n >= W) {
      term(Many{}, end - W, value);
      for (int t = 0; t < Terms; ++t) acc[1][t] += tail<A>(value[t], end - i);
      i = end;
    }
    for (int t = 0; t < Terms; ++t) totals[t] += sum<A>((acc[0][t] + acc[1][t]) + (acc[2][t] + acc[3][t]));
    for (; i < end; ++i) {
      A single[Terms];
      term(One{}, i, single);
      for (int t = 0; t < Terms; ++t) totals[t] += single[t];
    }
  }
}

// A mean and what is left of the values' average after it was subtracted, which is rounding (unless it is infinite).
inline double corrected(double mean, double rest) { return rest - rest == 0 ? mean + rest : mean; }

inline double positive(double v) { return v < 0 ? 0 : v; }  // NaN stays

template <class T, class A> void moments_planes(const Shape& s, const T* x, A* mean, A* var) {
  parallel(s.N * s.C, s.threads, [&](Index begin, Index end) {
    for (Index k = begin; k < end; ++k) {
      const T* p = x + k * s.S;
      double total, rest[2];
      add_up<A, 1>(s.S, &total, [&](auto lane, Index i, auto* value) { value[0] = lane.load(p + i); });
      A m = A(total / s.S);
      add_up<A, 2>(s.S, rest, [&](auto lane, Index i, auto* value) {
        value[0] = lane.load(p + i) - like(lane, m);
        value[1] = value[0] * value[0];
      });
      double d = rest[0] / s.S;
      mean[k] = A(corrected(m, d));
      var[k] = A(positive(rest[1] / s.S - d * d));
    }
  });
}

template <class T, class A>
void sums_planes(const Shape& s, const T* dy, const T* x, const A* anchor, A* first, A* second) {
  parallel(s.N * s.C, s.threads, [&](Index begin, Index end) {
    for (Index k = begin; k < end; ++k) {
      const T *p = x + k * s.S, *g = dy + k * s.S;
      A a = anchor[k];
      double totals[2];
      add_up<A, 2>(s.S, totals, [&](auto lane, Index i, auto* value) {
        value[0] = lane.load(g + i);
        value[1] = value[0] * (lane.load(p + i) - like(lane, a));
      });
      first[k] = A(totals[0]);
      second[k] = A(totals[1]);
    }
  });
}

// ---- sums over the rows of channels-last blocks -----------------------------------------------------------------------

// acc[t][c] += term over the rows of a block; term(lane, offset, c, value) with the offset of a value from the block.
template <class A, int Terms, class F> void add_rows(Index rows, Index C, A* acc, F term) {
  constexpr int kRows = 4;  // at once, so that acc is read and written less often
  std::fill(acc, acc + Terms * C, A(0));
  auto add = [&](auto count, Index r) {
    for_lanes<A>(C, [&](auto lane, Index c) {
      decltype(lane.load(acc)) total[Terms], value[Terms];
      for (int t = 0; t < Terms; ++t) total[t] = lane.load(acc + t * C + c);
      for (int k = 0; k < count; ++k) {
        term(lane, (r + k) * C + c, c, value);
        for (int t = 0; t < Terms; ++t) total[t] += value[t];
      }
      for (int t = 0; t < Terms; ++t) lane.store(acc + t * C + c, total[t]);
    });
  };
  Index r = 0;
  for (; r + kRows <= rows; r += kRows) add(std::integral_constant<int, kRows>{}, r);
  for (; r < rows; ++r) add(std::integral_constant<int, 1>{}, r);
}

// part(block, first, second) fills C sums each; join(n, c, at) adds up the blocks of a sample.
template <class A, class P, class J> void reduce_blocks(const Shape& s, const Blocks& blocks, P part, J join) {
  std::unique_ptr<A[]> parts(new A[blocks.count * 2 * s.C]);
  parallel(blocks.count, s.threads, [&](Index begin, Index end) {
    for (Index b = begin; b < end; ++b) part(b, parts.get() + b * 2 * s.C, parts.get() + (b * 2 + 1) * s.C);
  });
  parallel(s.N, s.threads, [&](Index begin, Index end) {
    for (Index n = begin; n < end; ++n) join(n, parts.get() + n * blocks.in_sample * 2 * s.C);
  });
}

template <class T, class A> void moments_last(const Shape& s, const T* x, A* mean, A* var) {
  Blocks blocks(s, sizeof(T));
  auto part = [&](Index b, double* average, double* squares) {
    std::vector<A> sums(3 * s.C);
    A *m = sums.data(), *rest = m + s.C;
    const double rows = double(blocks.end(b) - blocks.begin(b));
    const T* p = x + (blocks.sample(b) * s.S + blocks.begin(b)) * s.C;
    add_rows<A, 1>(Index(rows), s.C, m, [&](auto lane, Index at, Index, auto* value) { value[0] = lane.load(p + at); });
    for (Index c = 0; c < s.C; ++c) m[c] = A(m[c] / rows);
    add_rows<A, 2>(Index(rows), s.C, rest, [&](auto lane, Index at, Index c, auto* value) {
      value[0] = lane.load(p + at) - lane.load(m + c);
      value[1] = value[0] * value[0];
    });
    for (Index c = 0; c < s.C; ++c) {
      double d = rest[c] / rows;
      squares[c] = positive(rest[s.C + c] - rows * d * d);
      average[c] = corrected(m[c], d);
    }
  };
  auto join = [&](Index n, const double* parts) {
    std::vector<double> average(s.C, 0.0), squares(s.C, 0.0);
    auto rows = [&](Index b) { return double(blocks.end(b) - blocks.begin(b)); };
    for (Index b = 0; b < blocks.in_sample; ++b)
      for (Index c = 0; c < s.C; ++c) average[c] += parts[b * 2 * s.C + c] * (rows(b) / s.S);
    for (Index b = 0; b < blocks.in_sample; ++b) {
      const double *m = parts + b * 2 * s.C, *own = m + s.C;
      for (Index c = 0; c < s.C; ++c) {
        double d = m[c] - average[c];
        squares[c] += own[c] + (blocks.in_sample > 1 ? rows(b) * d * d : 0);  // a single block is its own average
      }
    }
    for (Index c = 0; c < s.C; ++c) {
      mean[n * s.C + c] = A(average[c]);
      var[n * s.C + c] = A(squares[c] / double(s.S));
    }
  };
  reduce_blocks<double>(s, blocks, part, join);
}

template <class T, class A>
void sums_last(const Shape& s, const T* dy, const T* x, const A* anchor, A* first, A* second) {
  Blocks blocks(s, 2 * sizeof(T));
  auto part = [&](Index b, A* totals, A*) {
    Index n = blocks.sample(b), offset = (n * s.S + blocks.begin(b)) * s.C;
    const T *p = x + offset, *g = dy + offset;
    const A* a = anchor + n * s.C;
    add_rows<A, 2>(blocks.end(b) - blocks.begin(b), s.C, totals, [&](auto lane, Index at, Index c, auto* value) {
      value[0] = lane.load(g + at);
      value[1] = value[0] * (lane.load(p + at) - lane.load(a + c));
    });
  };
  auto join = [&](Index n, const A* parts) {
    std::vector<double> totals(2 * s.C, 0.0);
    for (Index b = 0; b < blocks.in_sample; ++b)
      for (Index c = 0; c < 2 * s.C; ++c) totals[c] += parts[b * 2 * s.C + c];
    for (Index c = 0; c < s.C; ++c) {
      first[n * s.C + c] = A(totals[c]);
      second[n * s.C + c] = A(totals[s.C + c]);
    }
  };
  reduce_blocks<A>(s, blocks, part, join);
}

// ---- maps -----------------------------------------------------------------------------------------------------------

// out[i] = f(lane, i, k): plane k of (N, C), or with channels last k = n * C + c, which advances with i.
template <class T, class A, class F> void map_planes(const Shape& s, T* out, F f) {
  constexpr Index W = kLanes<A>;
  parallel(s.N * s.C, s.threads, [&](Index begin, Index end) {
    for (Index k = end - 1; k >= begin; --k) {
      auto plane = f(k);
      Index i = k * s.S, stop = i + s.S;
      for (; i + W <= stop; i += W) Many::store(out + i, plane(Many{}, i));
      if (i < stop && s.S >= W) Many::store(out + stop - W, plane(Many{}, stop - W)), i = stop;  // some twice
      for (; i < stop; ++i) One::store(out + i, plane(One{}, i));
    }
  });
}

template <class T, class A, class F> void map_last(const Shape& s, T* out, F f) {
  constexpr int kRows = 4;
  Blocks blocks(s, 2 * sizeof(T));
  parallel(blocks.count, s.threads, [&](Index begin, Index end) {
    for (Index b = end - 1; b >= begin; --b) {
      Index n = blocks.sample(b), r = n * s.S + blocks.begin(b), stop = n * s.S + blocks.end(b);
      auto rows = [&](auto count) {
        for_lanes<A>(s.C, [&](auto lane, Index c) {
          auto value = f(lane, n * s.C + c);
          for (int k = 0; k < count; ++k) {
            Index i = (r + k) * s.C + c;
            lane.store(out + i, value(i));
          }
        });
        r += count;
      };
      while (r + kRows <= stop) rows(std::integral_constant<int, kRows>{});
      while (r < stop) rows(std::integral_constant<int, 1>{});
    }
  });
}

template <class T, class A>
void affine_of(const Shape& s, const T* x, const A* anchor, const A* scale, const A* shift, T* y) {
  take_huge_pages(y, s.N * s.C * s.S * Index(sizeof(T)));
  if (s.last) {
    map_last<T, A>(s, y, [&](auto lane, Index k) {
      auto a = lane.load(anchor + k), g = lane.load(scale + k), h = lane.load(shift + k);
      return [=](Index i) { return (lane.load(x + i) - a) * g + h; };
    });
  } else {
    map_planes<T, A>(s, y, [&](Index k) {
      A a = anchor[k], g = scale[k], h = shift[k];
      return [=](auto lane, Index i) { return (lane.load(x + i) - like(lane, a)) * like(lane, g) + like(lane, h); };
    });
  }
}

template <class T, class A>
void input_gradient_of(const Shape& s, const T* dy, const T* x, const A* mean, const A* scale, const A* dmean,
                       const A* dvar, T* dx) {
  take_huge_pages(dx, s.N * s.C * s.S * Index(sizeof(T)));
  A one = A(1.0 / s.S), two = A(2.0 / s.S);
  if (s.last) {
    map_last<T, A>(s, dx, [&](auto lane, Index k) {
      auto m = lane.load(mean + k), g = lane.load(scale + k);
      auto c0 = lane.load(dmean + k) * like(lane, one), c1 = lane.load(dvar + k) * like(lane, two);
      return [=](Index i) { return lane.load(dy + i) * g + ((lane.load(x + i) - m) * c1 + c0); };
    });
  } else {
    map_planes<T, A>(s, dx, [&](Index k) {
      A m = mean[k], g = scale[k], c0 = dmean[k] * one, c1 = dvar[k] * two;
      return [=](auto lane, Index i) {
        return lane.load(dy + i) * like(lane, g) + ((lane.load(x + i) - like(lane, m)) * like(lane, c1) + like(lane, c0));
      };
    });
  }
}

// ---- the algebra on (N, C) tensors: see normlab/norm/algebra.py, which defines it --------------------------------------

struct Scope {
  bool across, identity;
  Index width, sets;       // sets: values of a replica's compact statistic
  Index mean, var;         // where its statistics start, over all replicas, in the flat tensor
  Index own_mean, own_var; // the same in what is stored
};

// What native.py describes in integers, in this order.
struct Algebra {
  Index R, rows, C, mean_groups, var_groups, weight_rows, bias_rows;  // 0 groups or rows: there is no such parameter
  bool std, hard, stored;
  int threads;
  std::vector<Scope> scopes;
  std::vector<Index> means, vars;
  Index N;

  explicit Algebra(const Index* d) {
    R = *d++, rows = *d++, C = *d++, mean_groups = *d++, var_groups = *d++, weight_rows = *d++, bias_rows = *d++;
    std = *d++, hard = *d++, stored = *d++, threads = int(*d++);
    Index counts[3] = {d[0], d[1], d[2]}, start = 0, own = 0;
    d += 3;
    N = rows / R;
    for (Index k = 0; k < counts[0]; ++k) {
      Scope scope{};
      scope.across = *d++, scope.width = *d++;
      scope.identity = !scope.across && scope.width == C;
      scope.sets = (scope.across ? 1 : N) * scope.width;
      Index size = scope.identity ? 0 : R * scope.sets;
      scope.mean = start, scope.var = start + size, start += 2 * size;
      if (scope.across) scope.own_mean = own, scope.own_var = own + scope.width, own += 2 * scope.width;
      scopes.push_back(scope);
    }
    means.assign(d, d + counts[1]);
    vars.assign(d + counts[1], d + counts[1] + counts[2]);
    if (rows * C < kWorthThreads) threads = 1;
  }

  bool given(const Scope& scope) const { return scope.across && stored; }
};

// The row of a compact statistic that serves row n of its replica, spread to C channels.
template <class A> const A* spread(const Algebra& g, const Scope& scope, const A* compact, Index n, A* row) {
  compact += scope.across ? 0 : n * scope.width;
  if (scope.width == g.C) return compact;
  Index size = g.C / scope.width;
  for (Index w = 0; w < scope.width; ++w) std::fill(row + w * size, row + (w + 1) * size, compact[w]);
  return row;
}

// The average of the rows of a replica over the sets of a scope, one row after the other.
template <class A> struct Pool {
  const Algebra& g;
  const Scope& scope;
  std::vector<double> totals;
  Pool(const Algebra& g, const Scope& scope) : g(g), scope(scope), totals(scope.sets, 0.0) {}

  void add(Index n, const A* row) {
    double* t = totals.data() + (scope.across ? 0 : n * scope.width);
    if (scope.width == g.C) {
      for (Index c = 0; c < g.C; ++c) t[c] += row[c];
      return;
    }
    Index size = g.C / scope.width;
    for (Index w = 0; w < scope.width; ++w) {
      double total;
      add_up<A, 1>(size, &total, [&](auto lane, Index i, auto* value) { value[0] = lane.load(row + w * size + i); });
      t[w] += total;
    }
  }

  void average(A* out) const {
    double count = double(g.C / scope.width) * (scope.across ? g.N : 1);
    for (Index i = 0; i < scope.sets; ++i) out[i] = A(totals[i] / count);
  }
};

// Ratios from logits, one for each scope and channel: softmax, or 1 for the largest.
template <class A> std::vector<A> ratios(const A* logits, Index groups, Index S, bool hard, Index C) {
  std::vector<A> out(S * C, A(1));
  for (Index j = 0; j < groups; ++j) {
    const A* row = logits + j * S;
    std::vector<double> ratio(S);
    Index top = 0;
    for (Index k = 1; k < S; ++k)
      if (row[k] > row[top] || (row[k] != row[k] && row[top] == row[top])) top = k;  // NaN is the largest, as in torch
    double total = 0;
    for (Index k = 0; k < S; ++k) total += ratio[k] = hard ? k == top : std::exp(double(row[k]) - double(row[top]));
    for (Index k = 0; k < S; ++k)
      std::fill(&out[k * C + j * (C / groups)], &out[k * C] + (j + 1) * (C / groups), A(ratio[k] / total));
  }
  return out;
}

template <class A>
void mix_of(const Algebra& g, double eps, const A* mean, const A* var, const A* weight, const A* bias,
            const A* mean_logits, const A* var_logits, const A* stored, A* scale, A* shift, A* mu, A* rstd,
            A* statistics) {
  const Index C = g.C, N = g.N;
  const auto a = ratios(mean_logits, g.mean_groups, g.means.size(), g.hard, C);
  const auto b = ratios(var_logits, g.var_groups, g.vars.size(), g.hard, C);
  auto replica = [&](Index r) {
    const A *m = mean + r * N * C, *v = var + r * N * C;
    std::vector<A> row(C), buffer(C);
    for (const Scope& scope : g.scopes) {
      if (scope.identity) continue;
      A *pooled = statistics + scope.mean + r * scope.sets, *squares = statistics + scope.var + r * scope.sets;
      if (g.given(scope)) {
        std::copy_n(stored + scope.own_mean, scope.sets, pooled);
        std::copy_n(stored + scope.own_var, scope.sets, squares);
        continue;
      }
      Pool<A> first(g, scope), second(g, scope);
      for (Index n = 0; n < N; ++n) first.add(n, m + n * C);
      first.average(pooled);
      for (Index n = 0; n < N; ++n) {
        const A* p = spread(g, scope, pooled, n, buffer.data());
        for (Index c = 0; c < C; ++c) {
          A d = m[n * C + c] - p[c];
          row[c] = v[n * C + c] + d * d;
        }
        second.add(n, row.data());
      }
      second.average(squares);
    }
    const A* w = weight ? weight + (g.weight_rows > 1 ? r * C : 0) : nullptr;
    const A* h = bias ? bias + (g.bias_rows > 1 ? r * C : 0) : nullptr;
    std::vector<A> base(C), mixed(C);
    for (Index n = 0; n < N; ++n) {
      const Index at = (r * N + n) * C;
      auto statistic = [&](Index k, bool variance, A* out) {
        const Scope& scope = g.scopes[k];
        if (scope.identity) return (variance ? v : m) + n * C;
        return spread(g, scope, (const A*)statistics + (variance ? scope.var : scope.mean) + r * scope.sets, n, out);
      };
      A *mu_ = mu + at, *rstd_ = rstd + at;
      const A* first = statistic(g.means[0], false, base.data());
      std::copy_n(first, C, mu_);
      if (g.mean_groups) {
        std::fill(mixed.begin(), mixed.end(), A(0));
        for (size_t k = 0; k < g.means.size(); ++k) {
          const A *p = statistic(g.means[k], false, buffer.data()), *ratio = &a[k * C];
          for (Index c = 0; c < C; ++c) mixed[c] += ratio[c] * (p[c] - first[c]);
        }
        for (Index c = 0; c < C; ++c) mu_[c] += mixed[c];
      }
      std::fill(mixed.begin(), mixed.end(), A(0));
      for (size_t k = 0; k < g.vars.size(); ++k) {
        const A *p = statistic(g.vars[k], true, buffer.data()), *ratio = &b[k * C];
        if (g.std)
          for (Index c = 0; c < C; ++c) mixed[c] += ratio[c] * std::sqrt(p[c] + A(eps));
        else
          for (Index c = 0; c < C; ++c) mixed[c] += ratio[c] * p[c];
      }
      for (Index c = 0; c < C; ++c) {
        A inverse = g.std ? A(1) / mixed[c] : A(1) / std::sqrt(mixed[c] + A(eps));
        A s = w ? inverse * w[c] : inverse;
        A offset = (m[n * C + c] - mu_[c]) * s;
        rstd_[c] = inverse, scale[at + c] = s, shift[at + c] = h ? offset + h[c] : offset;
      }
    }
  };
  parallel(g.R, g.threads, [&](Index begin, Index end) {
    for (Index r = begin; r < end; ++r) replica(r);
  });
}

template <class A>
void mix_backward_of(const Algebra& g, double eps, const A* dscale, const A* dshift, const A* mean, const A* var,
                     const A* scale, const A* mu, const A* rstd, const A* statistics, const A* weight,
                     const A* mean_logits, const A* var_logits, A* dmean, A* dvar, A* dweight, A* dbias,
                     A* dmean_logits, A* dvar_logits) {
  const Index C = g.C, N = g.N, M = g.means.size(), V = g.vars.size();
  const auto a = ratios(mean_logits, g.mean_groups, M, g.hard, C);
  const auto b = ratios(var_logits, g.var_groups, V, g.hard, C);
  std::vector<double> weights(g.R * C, 0.0), biases(g.R * C, 0.0);  // of each replica, added in order at the end
  std::vector<double> mean_terms(g.R * g.mean_groups * M, 0.0), var_terms(g.R * g.var_groups * V, 0.0);
  // term += sum(d * value) over each group of channels
  auto add_terms = [&](const A* d, auto value, Index groups, Index S, double* term) {
    const Index size = C / std::max<Index>(groups, 1);
    for (Index j = 0; j < groups; ++j) {
      double total;
      add_up<A, 1>(size, &total, [&](auto lane, Index i, auto* out) {
        out[0] = lane.load(d + j * size + i) * value(lane, j * size + i);
      });
      term[j * S] += total;
    }
  };
  auto replica = [&](Index r) {
    const A *m = mean + r * N * C, *v = var + r * N * C;
    const A* w = weight ? weight + (g.weight_rows > 1 ? r * C : 0) : nullptr;
    double *weight_ = &weights[r * C], *bias_ = &biases[r * C];
    std::vector<A> row(C), base(C), buffer(C), deviation(C);
    std::vector<Pool<A>> mean_pools, var_pools;
    for (Index k : g.means) mean_pools.emplace_back(g, g.scopes[k]);
    for (Index k : g.vars) var_pools.emplace_back(g, g.scopes[k]);
    auto statistic = [&](Index k, bool variance, Index n, A* out) {
      const Scope& scope = g.scopes[k];
      if (scope.identity) return (variance ? v : m) + n * C;
      return spread(g, scope, statistics + (variance ? scope.var : scope.mean) + r * scope.sets, n, out);
    };
    // Gradients of the mixed mean and variance (with std, of the mixed deviation) wait in dmean and dvar.
    for (Index n = 0; n < N; ++n) {
      const Index at = (r * N + n) * C;
      A *dmu = dmean + at, *dmixed = dvar + at;
      for (Index c = 0; c < C; ++c) {
        A inverse = rstd[at + c], down = dshift[at + c];
        A total = dscale[at + c] + down * (m[n * C + c] - mu[at + c]);
        weight_[c] += total * inverse, bias_[c] += down;
        A drstd = w ? total * w[c] : total;
        dmu[c] = -down * scale[at + c];
        dmixed[c] = g.std ? -drstd * (inverse * inverse) : A(-0.5) * drstd * (inverse * inverse * inverse);
      }
      const A* first = M > 1 ? statistic(g.means[0], false, n, base.data()) : nullptr;
      for (Index k = 0; k < M; ++k) {
        const Scope& scope = g.scopes[g.means[k]];
        const A* ratio = &a[k * C];
        if (M > 1) {
          const A* p = statistic(g.means[k], false, n, buffer.data());
          auto value = [&](auto lane, Index c) { return lane.load(p + c) - lane.load(first + c); };
          add_terms(dmu, value, g.mean_groups, M, &mean_terms[r * g.mean_groups * M + k]);
        }
        if (scope.identity || g.given(scope)) continue;
        for (Index c = 0; c < C; ++c) row[c] = ratio[c] * dmu[c];
        mean_pools[k].add(n, row.data());
      }
      for (Index k = 0; k < V; ++k) {
        const Scope& scope = g.scopes[g.vars[k]];
        const A *ratio = &b[k * C], *p = statistic(g.vars[k], true, n, buffer.data());
        if (g.std) {
          for (Index c = 0; c < C; ++c) deviation[c] = std::sqrt(p[c] + A(eps));
          p = deviation.data();
        }
        if (V > 1) {
          auto value = [&](auto lane, Index c) { return lane.load(p + c); };
          add_terms(dmixed, value, g.var_groups, V, &var_terms[r * g.var_groups * V + k]);
        }
        if (scope.identity || g.given(scope)) continue;
        if (g.std)
          for (Index c = 0; c < C; ++c) row[c] = ratio[c] * dmixed[c] / (A(2) * p[c]);
        else
          for (Index c = 0; c < C; ++c) row[c] = ratio[c] * dmixed[c];
        var_pools[k].add(n, row.data());
      }
    }
    std::vector<std::vector<A>> mean_averages, var_averages;
    for (auto& pool : mean_pools) pool.average(mean_averages.emplace_back(pool.scope.sets).data());
    for (auto& pool : var_pools) pool.average(var_averages.emplace_back(pool.scope.sets).data());
    for (Index n = 0; n < N; ++n) {
      const Index at = (r * N + n) * C;
      std::vector<A>&dm = base, &dv = row;
      std::fill(dm.begin(), dm.end(), A(0));
      std::fill(dv.begin(), dv.end(), A(0));
      for (Index k = 0; k < M; ++k) {
        const Scope& scope = g.scopes[g.means[k]];
        const A* ratio = &a[k * C];
        if (g.given(scope)) continue;
        if (scope.identity) {
          for (Index c = 0; c < C; ++c) dm[c] += ratio[c] * dmean[at + c];
          continue;
        }
        const A* p = spread(g, scope, (const A*)mean_averages[k].data(), n, buffer.data());
        for (Index c = 0; c < C; ++c) dm[c] += p[c];
      }
      for (Index k = 0; k < V; ++k) {
        const Scope& scope = g.scopes[g.vars[k]];
        const A* ratio = &b[k * C];
        if (g.given(scope)) continue;
        if (scope.identity) {
          for (Index c = 0; c < C; ++c) {
            A d = ratio[c] * dvar[at + c];
            dv[c] += g.std ? d / (A(2) * std::sqrt(v[n * C + c] + A(eps))) : d;
          }
          continue;
        }
        const A* p = spread(g, scope, (const A*)var_averages[k].data(), n, buffer.data());
        for (Index c = 0; c < C; ++c) dv[c] += p[c];
        const A* centre = statistic(g.vars[k], false, n, deviation.data());
        for (Index c = 0; c < C; ++c) dm[c] += A(2) * (m[n * C + c] - centre[c]) * p[c];
      }
      std::copy_n(dm.data(), C, dmean + at);
      std::copy_n(dv.data(), C, dvar + at);
    }
  };
  parallel(g.R, g.threads, [&](Index begin, Index end) {
    for (Index r = begin; r < end; ++r) replica(r);
  });
  auto parameter = [&](const std::vector<double>& own, Index rows, A* out) {
    for (Index c = 0; rows == 1 && c < C; ++c) {
      double total = 0;
      for (Index r = 0; r < g.R; ++r) total += own[r * C + c];
      out[c] = A(total);
    }
    if (rows > 1) std::copy(own.begin(), own.end(), out);
  };
  parameter(weights, g.weight_rows, dweight);
  parameter(biases, g.bias_rows, dbias);
  // Through the softmax: ratio * (gradient - sum(ratio * gradient)), over the channels of a group.
  auto logits = [&](const std::vector<double>& terms, const std::vector<A>& ratio, Index groups, Index S, A* out) {
    for (Index j = 0; j < groups; ++j) {
      const Index begin = j * (C / groups);
      std::vector<double> gradient(S, 0.0);
      double average = 0;
      for (Index k = 0; k < S; ++k) {
        for (Index r = 0; r < g.R; ++r) gradient[k] += terms[(r * groups + j) * S + k];
        average += double(ratio[k * C + begin]) * gradient[k];
      }
      for (Index k = 0; k < S; ++k)
        out[j * S + k] = g.hard ? A(0) : A(double(ratio[k * C + begin]) * (gradient[k] - average));
    }
  };
  logits(mean_terms, a, g.mean_groups, M, dmean_logits);
  logits(var_terms, b, g.var_groups, V, dvar_logits);
}

// f with the type that native.py numbers so.
template <class F> void with_type(int type, F f) {
  switch (type) {
    case 0: return f(float{});
    case 1: return f(double{});
    case 2: return f(BFloat16{});
    case 3: return f(Half{});
  }
}

template <class T> T* as(void* p) { return static_cast<T*>(p); }
template <class T> const T* as(const void* p) { return static_cast<const T*>(p); }

}  // namespace

// ---- what native.py calls: addresses, and null for a parameter that is not there -----------------------------------------

extern "C" {

void normlab_moments(int type, Index N, Index C, Index S, int last, int threads, const void* x, void* mean, void* var) {
  Shape s(N, C, S, last, threads);
  with_type(type, [&](auto t) {
    using T = decltype(t);
    using A = Wide<T>;
    (last ? moments_last<T, A> : moments_planes<T, A>)(s, as<T>(x), as<A>(mean), as<A>(var));
  });
}

void normlab_affine(int type, Index N, Index C, Index S, int last, int threads, const void* x, const void* anchor,
                    const void* scale, const void* shift, void* y) {
  with_type(type, [&](auto t) {
    using T = decltype(t);
    using A = Wide<T>;
    affine_of<T, A>(Shape(N, C, S, last, threads), as<T>(x), as<A>(anchor), as<A>(scale), as<A>(shift), as<T>(y));
  });
}

void normlab_sums(int type, Index N, Index C, Index S, int last, int threads, const void* dy, const void* x,
                  const void* anchor, void* first, void* second) {
  Shape s(N, C, S, last, threads);
  with_type(type, [&](auto t) {
    using T = decltype(t);
    using A = Wide<T>;
    (last ? sums_last<T, A> : sums_planes<T, A>)(s, as<T>(dy), as<T>(x), as<A>(anchor), as<A>(first), as<A>(second));
  });
}

void normlab_input_gradient(int type, Index N, Index C, Index S, int last, int threads, const void* dy, const void* x,
                            const void* mean, const void* scale, const void* dmean, const void* dvar, void* dx) {
  with_type(type, [&](auto t) {
    using T = decltype(t);
    using A = Wide<T>;
    input_gradient_of<T, A>(Shape(N, C, S, last, threads), as<T>(dy), as<T>(x), as<A>(mean), as<A>(scale),
                            as<A>(dmean), as<A>(dvar), as<T>(dx));
  });
}

void normlab_mix(int type, const Index* algebra, double eps, const void* mean, const void* var, const void* weight,
                 const void* bias, const void* mean_logits, const void* var_logits, const void* stored, void* scale,
                 void* shift, void* mu, void* rstd, void* statistics) {
  with_type(type, [&](auto t) {
    using A = Wide<decltype(t)>;
    mix_of<A>(Algebra(algebra), eps, as<A>(mean), as<A>(var), as<A>(weight), as<A>(bias), as<A>(mean_logits),
              as<A>(var_logits), as<A>(stored), as<A>(scale), as<A>(shift), as<A>(mu), as<A>(rstd), as<A>(statistics));
  });
}

void normlab_mix_backward(int type, const Index* algebra, double eps, const void* dscale, const void* dshift,
                          const void* mean, const void* var, const void* scale, const void* mu, const void* rstd,
                          const void* statistics, const void* weight, const void* mean_logits, const void* var_logits,
                          void* dmean, void* dvar, void* dweight, void* dbias, void* dmean_logits, void* dvar_logits) {
  with_type(type, [&](auto t) {
    using A = Wide<decltype(t)>;
    mix_backward_of<A>(Algebra(algebra), eps, as<A>(dscale), as<A>(dshift), as<A>(mean), as<A>(var), as<A>(scale),
                       as<A>(mu), as<A>(rstd), as<A>(statistics), as<A>(weight), as<A>(mean_logits), as<A>(var_logits),
                       as<A>(dmean), as<A>(dvar), as<A>(dweight), as<A>(dbias), as<A>(dmean_logits),
                       as<A>(dvar_logits));
  });
}

}  // extern "C"
