// The operations that read and write activations.
//
// Shapes: N samples, C channels, S positions. An activation lies in memory as planes, (N, C, S), or with its channels
// last, (N, S, C). T is its type, Wide<T> that of sums and of (N, C) tensors: double for double, else float.
//
// Every sum is made of blocks whose size C, S and the type alone decide, added in the same order. The second pass over a
// plane, or over a block of rows, finds it in the cache. What is written is gone through from its end, because the end
// of what was read last is still there.
#pragma once

#include <algorithm>
#include <cmath>
#include <memory>
#include <vector>
#ifdef _OPENMP
#include <omp.h>
#endif
#ifdef __linux__
#include <sys/mman.h>
#endif

#include "native_lanes.h"

namespace {

// ---- threads, blocks and memory -------------------------------------------------------------------------------------

constexpr Index kWorthThreads = 32768;  // values, as in torch
constexpr Index kBlock = 1 << 17;       // bytes that stay in the second-level cache between two passes
constexpr Index kChunk = 8192;          // values that are summed in their own type; chunks are added in double
constexpr Index kHuge = 1 << 23;        // bytes from which on memory is asked for in huge pages
constexpr Index kPast = 1 << 21;        // bytes from which on results are written past the caches ...
constexpr Index kFresh = 1 << 25;       // ... and up to here: glibc's memory is fresh then, zeroed and so in the cache

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
inline void take_huge_pages(void* p, Index bytes) {
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
  Index whole;  // values of the activation that this is, or is a part of
  Shape(Index N, Index C, Index S, bool last, int threads)
      : N(N), C(C), S(S), last(last), threads(N * C * S < kWorthThreads ? 1 : threads), whole(N * C * S) {}

  // Samples of it, for a single thread.
  Shape part(Index samples) const {
    Shape own = *this;
    own.N = samples, own.threads = 1;
    return own;
  }

  // Whether results, in runs of this many values, are written past the caches: only lines that are written whole.
  template <class T> bool goes_past(const T* out, Index run) const {
    const Index bytes = whole * Index(sizeof(T));
    return bytes >= kPast && bytes <= kFresh && (uintptr_t(out) | uintptr_t(out + run)) % kBytes == 0;
  }
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

// The same over a plane of V vectors, without loops; 0: of any size.
template <class A, int Terms, int V, class F> void add_plane(Index n, double* totals, F term) {
  if constexpr (V == 0) {
    add_up<A, Terms>(n, totals, term);
  } else {
    constexpr Index W = kLanes<A>;
    Vector<A> acc[Terms], value[Terms];
    term(Many{}, n - W, value);
    for (int t = 0; t < Terms; ++t) acc[t] = tail<A>(value[t], n - (V - 1) * W);
    for (int j = 0; j < V - 1; ++j) {
      term(Many{}, j * W, value);
      for (int t = 0; t < Terms; ++t) acc[t] += value[t];
    }
    for (int t = 0; t < Terms; ++t) totals[t] = sum<A>(acc[t]);
  }
}

// f(k, number of vectors for add_plane) for each plane, on several threads.
template <class A, class F> void each_plane(const Shape& s, F f) {
  constexpr Index W = kLanes<A>;
  parallel(s.N * s.C, s.threads, [&](Index begin, Index end) {
    auto planes = [&](auto vectors) {
      for (Index k = begin; k < end; ++k) f(k, vectors);
    };
    switch (s.S < W ? 0 : (s.S + W - 1) / W) {
      case 1: return planes(std::integral_constant<int, 1>{});
      case 2: return planes(std::integral_constant<int, 2>{});
      case 3: return planes(std::integral_constant<int, 3>{});
      case 4: return planes(std::integral_constant<int, 4>{});
      default: return planes(std::integral_constant<int, 0>{});
    }
  });
}

// A mean and what is left of the values' average after it was subtracted, which is rounding (unless it is infinite).
inline double corrected(double mean, double rest) { return rest - rest == 0 ? mean + rest : mean; }

inline double positive(double v) { return v < 0 ? 0 : v; }  // NaN stays

template <class T, class A> void moments_planes(const Shape& s, const T* x, A* mean, A* var) {
  const double share = 1.0 / s.S;
  each_plane<A>(s, [&](Index k, auto vectors) {
    const T* p = x + k * s.S;
    double total, rest[2];
    add_plane<A, 1, vectors>(s.S, &total, [&](auto lane, Index i, auto* value) { value[0] = lane.load(p + i); });
    A m = A(total * share);
    add_plane<A, 2, vectors>(s.S, rest, [&](auto lane, Index i, auto* value) {
      value[0] = lane.load(p + i) - like(lane, m);
      value[1] = value[0] * value[0];
    });
    double d = rest[0] * share;
    mean[k] = A(corrected(m, d));
    var[k] = A(positive(rest[1] * share - d * d));
  });
}

template <class T, class A>
void sums_planes(const Shape& s, const T* dy, const T* x, const A* anchor, A* first, A* second) {
  each_plane<A>(s, [&](Index k, auto vectors) {
    const T *p = x + k * s.S, *g = dy + k * s.S;
    A a = anchor[k];
    double totals[2];
    add_plane<A, 2, vectors>(s.S, totals, [&](auto lane, Index i, auto* value) {
      value[0] = lane.load(g + i);
      value[1] = value[0] * (lane.load(p + i) - like(lane, a));
    });
    first[k] = A(totals[0]);
    second[k] = A(totals[1]);
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

template <class T, class A> void moments_of(const Shape& s, const T* x, A* mean, A* var) {
  (s.last ? moments_last<T, A> : moments_planes<T, A>)(s, x, mean, var);
}

template <class T, class A>
void sums_of(const Shape& s, const T* dy, const T* x, const A* anchor, A* first, A* second) {
  (s.last ? sums_last<T, A> : sums_planes<T, A>)(s, dy, x, anchor, first, second);
}

// ---- maps -----------------------------------------------------------------------------------------------------------

// out[i] = f(lane, i, k): plane k of (N, C), or with channels last k = n * C + c, which advances with i.
template <class T, class A, class F> void map_planes(const Shape& s, T* out, F f) {
  constexpr Index W = kLanes<A>;
  const bool past = s.goes_past(out, s.S);
  parallel(s.N * s.C, s.threads, [&](Index begin, Index end) {
    for (Index k = end - 1; k >= begin; --k) {
      auto plane = f(k);
      Index i = k * s.S, stop = i + s.S;
      for (; i + W <= stop; i += W) store(Many{}, past, out + i, plane(Many{}, i));
      if (i < stop && s.S >= W) Many::store(out + stop - W, plane(Many{}, stop - W)), i = stop;  // some twice
      for (; i < stop; ++i) One::store(out + i, plane(One{}, i));
    }
    if (past) past_is_done();
  });
}

template <class T, class A, class F> void map_last(const Shape& s, T* out, F f) {
  constexpr int kRows = 4;
  const bool past = s.goes_past(out, s.C);
  Blocks blocks(s, 2 * sizeof(T));
  parallel(blocks.count, s.threads, [&](Index begin, Index end) {
    for (Index b = end - 1; b >= begin; --b) {
      Index n = blocks.sample(b), r = n * s.S + blocks.begin(b), stop = n * s.S + blocks.end(b);
      auto rows = [&](auto count) {
        for_lanes<A>(s.C, [&](auto lane, Index c) {
          auto value = f(lane, n * s.C + c);
          for (int k = 0; k < count; ++k) {
            Index i = (r + k) * s.C + c;
            store(lane, past, out + i, value(i));
          }
        });
        r += count;
      };
      while (r + kRows <= stop) rows(std::integral_constant<int, kRows>{});
      while (r < stop) rows(std::integral_constant<int, 1>{});
    }
    if (past) past_is_done();
  });
}

template <class T, class A>
void affine_of(const Shape& s, const T* x, const A* anchor, const A* scale, const A* shift, T* y) {
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

}  // namespace
