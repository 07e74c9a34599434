// The operations of normlab.norm.ops on CPU, behind a plain C interface (see native.py), and the two passes of a
// normalizer that are made of them. Results do not depend on the number of threads.

#include "native_activations.h"
#include "native_algebra.h"
#include "native_lanes.h"

namespace {

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

Index values(const Shape& s) { return s.N * s.C * s.S; }

// No replica takes part in another's statistics: f(part, first, end) is given one replica after the other, as an
// activation of its own, which the cache keeps from one step to the next, or all of them where threads would wait for
// each other. first and end count replicas.
template <class F> void replica_by_replica(const Shape& s, const Algebra& g, F f) {
  if (g.R % s.threads && g.R < 4 * s.threads) return f(s, 0, g.R);
  parallel(g.R, s.threads, [&](Index begin, Index end) {
    for (Index r = begin; r < end; ++r) f(s.part(g.N), r, r + 1);
  });
}

// What runs the replicas of an operation of the algebra alone.
auto over_replicas(const Algebra& g) {
  return [&g](auto replica) {
    parallel(g.R, g.threads, [&](Index begin, Index end) {
      for (Index r = begin; r < end; ++r) replica(r);
    });
  };
}

template <class T, class A>
void forward_of(const Shape& s, const Algebra& g, double eps, bool measure, const T* x, const A* weight, const A* bias,
                const A* mean_logits, const A* var_logits, const A* stored, T* y, A* mean, A* var, A* statistics) {
  const Index rows = s.N * s.C;
  std::unique_ptr<A[]> scratch(new A[4 * rows]);
  A *scale = scratch.get(), *shift = scale + rows, *mu = shift + rows, *rstd = mu + rows;
  auto pass = [&](auto replica) {
    replica_by_replica(s, g, [&](const Shape& part, Index first, Index end) {
      const Index row = first * g.N * s.C, value = row * s.S;
      if (measure) moments_of<T, A>(part, x + value, mean + row, var + row);
      for (Index r = first; r < end; ++r) replica(r);
      affine_of<T, A>(part, x + value, mean + row, scale + row, shift + row, y + value);
    });
  };
  mix_of<A>(pass, g, eps, mean, var, weight, bias, mean_logits, var_logits, stored, scale, shift, mu, rstd,
            statistics);
}

// What the forward pass mixed is mixed again: it takes less than keeping it takes room.
template <class T, class A>
void backward_of(const Shape& s, const Algebra& g, double eps, const T* dy, const T* x, const A* mean, const A* var,
                 const A* weight, const A* mean_logits, const A* var_logits, const A* stored, T* dx, A* dweight,
                 A* dbias, A* dmean_logits, A* dvar_logits) {
  const Index rows = s.N * s.C;
  std::unique_ptr<A[]> scratch(new A[7 * rows + g.num_statistics]);
  A *dshift = scratch.get(), *dscale = dshift + rows, *dmean = dscale + rows, *dvar = dmean + rows;
  A *scale = dvar + rows, *mu = scale + rows, *rstd = mu + rows, *statistics = rstd + rows;
  mix_of<A>(over_replicas(g), g, eps, mean, var, weight, (const A*)nullptr, mean_logits, var_logits, stored, scale,
            dshift, mu, rstd, statistics);
  auto pass = [&](auto replica) {
    replica_by_replica(s, g, [&](const Shape& part, Index first, Index end) {
      const Index row = first * g.N * s.C, value = row * s.S;
      sums_of<T, A>(part, dy + value, x + value, mean + row, dshift + row, dscale + row);
      for (Index r = first; r < end; ++r) replica(r);
      if (dx)
        input_gradient_of<T, A>(part, dy + value, x + value, mean + row, scale + row, dmean + row, dvar + row,
                                dx + value);
    });
  };
  mix_backward_of<A>(pass, g, eps, dscale, dshift, mean, var, scale, mu, rstd, statistics, weight, mean_logits,
                     var_logits, dmean, dvar, dweight, dbias, dmean_logits, dvar_logits);
}

// running += weight * (factor * average of the R rows - running)
template <class A> void advance_of(Index R, Index W, double weight, double factor, const A* measured, A* running) {
  for (Index w = 0; w < W; ++w) {
    double total = 0;
    for (Index r = 0; r < R; ++r) total += measured[r * W + w];
    running[w] += A(weight) * (A(total / R * factor) - running[w]);
  }
}

}  // namespace

// ---- what native.py calls: addresses, and null for a parameter that is not there -----------------------------------------

extern "C" {

void normlab_moments(int type, Index N, Index C, Index S, int last, int threads, const void* x, void* mean, void* var) {
  with_type(type, [&](auto t) {
    using T = decltype(t);
    using A = Wide<T>;
    moments_of<T, A>(Shape(N, C, S, last, threads), as<T>(x), as<A>(mean), as<A>(var));
  });
}

void normlab_affine(int type, Index N, Index C, Index S, int last, int threads, const void* x, const void* anchor,
                    const void* scale, const void* shift, void* y) {
  with_type(type, [&](auto t) {
    using T = decltype(t);
    using A = Wide<T>;
    take_huge_pages(y, N * C * S * Index(sizeof(T)));
    affine_of<T, A>(Shape(N, C, S, last, threads), as<T>(x), as<A>(anchor), as<A>(scale), as<A>(shift), as<T>(y));
  });
}

void normlab_sums(int type, Index N, Index C, Index S, int last, int threads, const void* dy, const void* x,
                  const void* anchor, void* first, void* second) {
  with_type(type, [&](auto t) {
    using T = decltype(t);
    using A = Wide<T>;
    sums_of<T, A>(Shape(N, C, S, last, threads), as<T>(dy), as<T>(x), as<A>(anchor), as<A>(first), as<A>(second));
  });
}

void normlab_input_gradient(int type, Index N, Index C, Index S, int last, int threads, const void* dy, const void* x,
                            const void* mean, const void* scale, const void* dmean, const void* dvar, void* dx) {
  with_type(type, [&](auto t) {
    using T = decltype(t);
    using A = Wide<T>;
    take_huge_pages(dx, N * C * S * Index(sizeof(T)));
    input_gradient_of<T, A>(Shape(N, C, S, last, threads), as<T>(dy), as<T>(x), as<A>(mean), as<A>(scale),
                            as<A>(dmean), as<A>(dvar), as<T>(dx));
  });
}

void normlab_mix(int type, const Index* algebra, double eps, const void* mean, const void* var, const void* weight,
                 const void* bias, const void* mean_logits, const void* var_logits, const void* stored, void* scale,
                 void* shift, void* mu, void* rstd, void* statistics) {
  with_type(type, [&](auto t) {
    using A = Wide<decltype(t)>;
    Algebra g(algebra);
    mix_of<A>(over_replicas(g), g, eps, as<A>(mean), as<A>(var), as<A>(weight), as<A>(bias), as<A>(mean_logits),
              as<A>(var_logits), as<A>(stored), as<A>(scale), as<A>(shift), as<A>(mu), as<A>(rstd), as<A>(statistics));
  });
}

void normlab_mix_backward(int type, const Index* algebra, double eps, const void* dscale, const void* dshift,
                          const void* mean, const void* var, const void* scale, const void* mu, const void* rstd,
                          const void* statistics, const void* weight, const void* mean_logits, const void* var_logits,
                          void* dmean, void* dvar, void* dweight, void* dbias, void* dmean_logits, void* dvar_logits) {
  with_type(type, [&](auto t) {
    using A = Wide<decltype(t)>;
    Algebra g(algebra);
    mix_backward_of<A>(over_replicas(g), g, eps, as<A>(dscale), as<A>(dshift), as<A>(mean), as<A>(var), as<A>(scale),
                       as<A>(mu), as<A>(rstd), as<A>(statistics), as<A>(weight), as<A>(mean_logits), as<A>(var_logits),
                       as<A>(dmean), as<A>(dvar), as<A>(dweight), as<A>(dbias), as<A>(dmean_logits),
                       as<A>(dvar_logits));
  });
}

// The whole forward pass: moments (or, without `measure`, those given), mix, affine.
void normlab_forward(int type, const Index* algebra, double eps, Index S, int last, int measure, const void* x,
                     const void* weight, const void* bias, const void* mean_logits, const void* var_logits,
                     const void* stored, void* y, void* mean, void* var, void* statistics) {
  with_type(type, [&](auto t) {
    using T = decltype(t);
    using A = Wide<T>;
    Algebra g(algebra);
    Shape s(g.rows, g.C, S, last, g.all_threads);
    take_huge_pages(y, values(s) * Index(sizeof(T)));
    forward_of<T, A>(s, g, eps, measure, as<T>(x), as<A>(weight), as<A>(bias), as<A>(mean_logits), as<A>(var_logits),
                     as<A>(stored), as<T>(y), as<A>(mean), as<A>(var), as<A>(statistics));
  });
}

// The whole backward pass: sums, mix_backward, input_gradient (no dx: null).
void normlab_backward(int type, const Index* algebra, double eps, Index S, int last, const void* dy, const void* x,
                      const void* mean, const void* var, const void* weight, const void* mean_logits,
                      const void* var_logits, const void* stored, void* dx, void* dweight, void* dbias, void* dmean_logits, void* dvar_logits) {
  with_type(type, [&](auto t) {
    using T = decltype(t);
    using A = Wide<T>;
    Algebra g(algebra);
    Shape s(g.rows, g.C, S, last, g.all_threads);
    if (dx) take_huge_pages(dx, values(s) * Index(sizeof(T)));
    backward_of<T, A>(s, g, eps, as<T>(dy), as<T>(x), as<A>(mean), as<A>(var), as<A>(weight), as<A>(mean_logits),
                      as<A>(var_logits), as<A>(stored), as<T>(dx), as<A>(dweight), as<A>(dbias), as<A>(dmean_logits), as<A>(dvar_logits));
  });
}

void normlab_advance(int type, Index R, Index W, double weight, double factor, const void* measured, void* running) {
  with_type(type, [&](auto t) {
    using A = Wide<decltype(t)>;
    advance_of<A>(R, W, weight, factor, as<A>(measured), as<A>(running));
  });
}

}  // extern "C"
