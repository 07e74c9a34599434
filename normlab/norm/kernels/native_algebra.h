// The algebra on (N, C) tensors: see normlab/norm/algebra.py, which defines it.
#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

#include "native_activations.h"

namespace {

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
  int all_threads, threads;  // for activations, and for (N, C) tensors of this size
  std::vector<Scope> scopes;
  std::vector<Index> means, vars;
  Index N, num_statistics;

  explicit Algebra(const Index* d) {
    R = *d++, rows = *d++, C = *d++, mean_groups = *d++, var_groups = *d++, weight_rows = *d++, bias_rows = *d++;
    std = *d++, hard = *d++, stored = *d++, all_threads = threads = int(*d++);
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
    num_statistics = start;
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

// f(c, share) for each channel; with hard ratios not for shares of 0, whatever a scope left out holds: infinity, NaN.
template <class A, class F> void each_share(bool hard, Index C, const A* share, F f) {
  if (!hard)
    for (Index c = 0; c < C; ++c) f(c, share[c]);
  else
    for (Index c = 0; c < C; ++c)
      if (share[c] != 0) f(c, share[c]);
}

// What a parameter is for a replica; `none` where there is no such parameter.
template <class A> std::vector<A> of_replica(const Algebra& g, const A* parameter, Index rows, Index r, A none) {
  if (!parameter) return std::vector<A>(g.C, none);
  const A* own = parameter + (rows > 1 ? r * g.C : 0);
  return std::vector<A>(own, own + g.C);
}

// The algebra of all replicas: drive(replica) calls replica(r) for each of them, in any order and from any thread.
template <class A, class D>
void mix_of(D drive, const Algebra& g, double eps, const A* mean, const A* var, const A* weight, const A* bias,
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
    const std::vector<A> w = of_replica(g, weight, g.weight_rows, r, A(1)), h = of_replica(g, bias, g.bias_rows, r, A(0));
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
      if (g.mean_groups && g.hard) {
        std::fill(base.begin(), base.end(), A(0));  // it may be a scope that is not chosen
        first = base.data();
      }
      std::copy_n(first, C, mu_);
      if (g.mean_groups) {
        std::fill(mixed.begin(), mixed.end(), A(0));
        for (size_t k = 0; k < g.means.size(); ++k) {
          const A* p = statistic(g.means[k], false, buffer.data());
          each_share(g.hard, C, &a[k * C], [&](Index c, A ratio) { mixed[c] += ratio * (p[c] - first[c]); });
        }
        for (Index c = 0; c < C; ++c) mu_[c] += mixed[c];
      }
      std::fill(mixed.begin(), mixed.end(), A(0));
      for (size_t k = 0; k < g.vars.size(); ++k) {
        const A *p = statistic(g.vars[k], true, buffer.data()), *shares = &b[k * C];
        if (g.std)
          each_share(g.hard, C, shares, [&](Index c, A ratio) { mixed[c] += ratio * std::sqrt(p[c] + A(eps)); });
        else
          each_share(g.hard, C, shares, [&](Index c, A ratio) { mixed[c] += ratio * p[c]; });
      }
      if (!g.std)
        for (Index c = 0; c < C; ++c) mixed[c] = std::sqrt(mixed[c] + A(eps));
      A *scale_ = scale + at, *shift_ = shift + at;
      const A *own = m + n * C, *deviation = mixed.data(), *weight_ = w.data(), *bias_ = h.data();
#pragma omp simd
      for (Index c = 0; c < C; ++c) {
        rstd_[c] = A(1) / deviation[c];
        scale_[c] = rstd_[c] * weight_[c];
        shift_[c] = (own[c] - mu_[c]) * scale_[c] + bias_[c];
      }
    }
  };
  drive(replica);
}

template <class A, class D>
void mix_backward_of(D drive, const Algebra& g, double eps, const A* dscale, const A* dshift, const A* mean, const A* var,
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
    const std::vector<A> w = of_replica(g, weight, g.weight_rows, r, A(1));
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
      const A *own = m + n * C, *mu_ = mu + at, *rstd_ = rstd + at, *scale_ = scale + at, *w_ = w.data();
      const A *of_scale = dscale + at, *of_shift = dshift + at;
      double *weight_ = &weights[r * C], *bias_ = &biases[r * C];
      const A half = g.std ? A(0) : A(0.5), whole = g.std ? A(1) : A(0);
#pragma omp simd
      for (Index c = 0; c < C; ++c) {
        const A total = of_scale[c] + of_shift[c] * (own[c] - mu_[c]), inverse = rstd_[c];
        weight_[c] += total * inverse;
        bias_[c] += of_shift[c];
        dmu[c] = -of_shift[c] * scale_[c];
        dmixed[c] = -total * w_[c] * (inverse * inverse) * (whole + half * inverse);
      }
      const A* first = M > 1 ? statistic(g.means[0], false, n, base.data()) : nullptr;
      for (Index k = 0; k < M; ++k) {
        const Scope& scope = g.scopes[g.means[k]];
        if (M > 1 && !g.hard) {
          const A* p = statistic(g.means[k], false, n, buffer.data());
          auto value = [&](auto lane, Index c) { return lane.load(p + c) - lane.load(first + c); };
          add_terms(dmu, value, g.mean_groups, M, &mean_terms[r * g.mean_groups * M + k]);
        }
        if (scope.identity || g.given(scope)) continue;
        if (g.hard) std::fill(row.begin(), row.end(), A(0));
        each_share(g.hard, C, &a[k * C], [&](Index c, A ratio) { row[c] = ratio * dmu[c]; });
        mean_pools[k].add(n, row.data());
      }
      for (Index k = 0; k < V; ++k) {
        const Scope& scope = g.scopes[g.vars[k]];
        const A *shares = &b[k * C], *p = statistic(g.vars[k], true, n, buffer.data());
        if (g.std) {
          for (Index c = 0; c < C; ++c) deviation[c] = std::sqrt(p[c] + A(eps));
          p = deviation.data();
        }
        if (V > 1 && !g.hard) {
          auto value = [&](auto lane, Index c) { return lane.load(p + c); };
          add_terms(dmixed, value, g.var_groups, V, &var_terms[r * g.var_groups * V + k]);
        }
        if (scope.identity || g.given(scope)) continue;
        if (g.hard) std::fill(row.begin(), row.end(), A(0));
        if (g.std)
          each_share(g.hard, C, shares, [&](Index c, A ratio) { row[c] = ratio * dmixed[c] / (A(2) * p[c]); });
        else
          each_share(g.hard, C, shares, [&](Index c, A ratio) { row[c] = ratio * dmixed[c]; });
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
        if (g.given(scope)) continue;
        if (scope.identity) {
          each_share(g.hard, C, &a[k * C], [&](Index c, A ratio) { dm[c] += ratio * dmean[at + c]; });
          continue;
        }
        const A* p = spread(g, scope, (const A*)mean_averages[k].data(), n, buffer.data());
        for (Index c = 0; c < C; ++c) dm[c] += p[c];
      }
      for (Index k = 0; k < V; ++k) {
        const Scope& scope = g.scopes[g.vars[k]];
        if (g.given(scope)) continue;
        if (scope.identity) {
          each_share(g.hard, C, &b[k * C], [&](Index c, A ratio) {
            A d = ratio * dvar[at + c];
            dv[c] += g.std ? d / (A(2) * std::sqrt(v[n * C + c] + A(eps))) : d;
          });
          continue;
        }
        const A* p = spread(g, scope, (const A*)var_averages[k].data(), n, buffer.data());
        for (Index c = 0; c < C; ++c) dv[c] += p[c];
        const A* centre = statistic(g.vars[k], false, n, deviation.data());
        each_share(g.hard, C, p, [&](Index c, A pooled) { dm[c] += A(2) * (m[n * C + c] - centre[c]) * pooled; });
      }
      std::copy_n(dm.data(), C, dmean + at);
      std::copy_n(dv.data(), C, dvar + at);
    }
  };
  drive(replica);
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

}  // namespace
