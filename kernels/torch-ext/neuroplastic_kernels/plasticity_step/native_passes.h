// The three passes of native.cpp over one block of one tensor, and what they work on.

#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <numeric>
#include <type_traits>

namespace {

constexpr int64_t BLOCK = 8192;  // elements: long enough to stream, short enough for a copy of it to stay in the caches
constexpr int LANES = 16;        // parts of a sum in `Lanes`: a multiple of what a processor's vectors hold

// What is added up per block; OLD_TRACES is a before the step.
enum Sum : int { OLD_TRACES, MAGNITUDES, MEMORIES, BASE_SQUARES, SQUARES, TRACES, SUMS };

enum Base : int64_t { GRADIENT, ADAMW, MOMENTUM };
enum Dtype : int64_t { FLOAT32, FLOAT64, BFLOAT16, FLOAT16 };

}  // namespace

extern "C" {

// Both structures are declared a second time, in tensor_table.py and plasticity_step.py; every field has eight bytes. So
// are the numbers of dtypes and bases.

struct Tensor {
  void* param;       // [numel] of dtype
  const void* grad;  // [numel] of dtype; null: not stepped
  void* trace;       // [numel] of float64 for float64, else float32; so are the next two
  void* exp_avg;
  void* exp_avg_sq;
  int64_t numel, dtype;
  double blend, correction, gain;  // `Moment` of the reference
  const float* factors;            // [neurons], what each neuron's part of the update is multiplied by, or null
  int64_t neurons, stride;         // element i belongs to neuron i / stride % neurons
  double trace_sum;                // of a before the step, NaN where unknown; the step leaves that of a after it
};

struct Rule {
  int64_t base;
  double lr, beta1, beta2, trace_decay;
  double trace_weight, gradient_weight, memory_weight, lowest, highest, strength;
  double max_update_norm, target_rms, homeostatic_rate, eps;  // negative norm: no limit
  double coupled_decay, decoupled_decay;  // at most one is not 0
  double gradient_factor;                 // negative to ascend
};

}  // extern "C"

namespace {

struct BFloat16 {
  uint16_t bits;
  explicit operator float() const {
    uint32_t wide = uint32_t(bits) << 16;
    float value;
    std::memcpy(&value, &wide, sizeof value);
    return value;
  }
  BFloat16() = default;
  explicit BFloat16(float value) {  // to nearest, ties to even
    uint32_t wide;
    std::memcpy(&wide, &value, sizeof wide);
    bits = std::isnan(value) ? 0x7FC0 : uint16_t((wide + 0x7FFF + ((wide >> 16) & 1)) >> 16);
  }
};

// A tensor's streams with their types, P of the parameter and gradient, S of the state and all arithmetic. `room` holds
// u of a thread's elements, from `first` on.
template <class P, class S>
struct Streams {
  P* param;
  const P* grad;
  S *trace, *exp_avg, *exp_avg_sq, *room;
  int64_t first;
  S* update(int64_t begin) const { return room + (begin - first); }
};

// Elements `begin` to `begin + size` of a tensor.
struct Range {
  int64_t begin, size;
};

// The gradient of a block in the state's type, scaled, signed for descent, with coupled decay where torch's Adam and SGD
// add it: where it lies if nothing is to be done, else in `copy`.
template <class P, class S>
const S* effective_gradient(const Streams<P, S>& at, Range block, const Rule& rule, S* copy) {
  const P* grad = at.grad + block.begin;
  const P* param = at.param + block.begin;
  const S factor = rule.gradient_factor, decay = rule.base == GRADIENT ? 0 : rule.coupled_decay;
  if constexpr (std::is_same_v<P, S>) {
    if (factor == 1 && decay == 0) return grad;
  }
  if (decay == 0) {
    for (int64_t i = 0; i < block.size; ++i) copy[i] = factor * S(grad[i]);
  } else {
    for (int64_t i = 0; i < block.size; ++i) copy[i] = factor * S(grad[i]) + decay * S(param[i]);
  }
  return copy;
}

// A sum in a fixed order, whatever the compiler makes of the loop: equal values have equal sums wherever added.
template <class S>
struct Lanes {
  S parts[LANES] = {};
  S total() const { return std::accumulate(parts, parts + LANES, S(0)); }
};

// `body(i, lane)` for each element of a block.
template <class Body>
void for_lanes(int64_t size, const Body& body) {
  int64_t begin = 0;
  for (; begin + LANES <= size; begin += LANES) {
#pragma omp simd
    for (int lane = 0; lane < LANES; ++lane) body(begin + lane, lane);
  }
  for (int lane = 0; begin + lane < size; ++lane) body(begin + lane, lane);
}

template <class S>
S sum_of(const S* x, int64_t size) {
  Lanes<S> sum;
  for_lanes(size, [&](int64_t i, int lane) { sum.parts[lane] += x[i]; });
  return sum.total();
}

// First pass: m and v in place; the block's sums of |g| and r, and of a where it is unknown.
template <class P, class S>
void advance(const Streams<P, S>& at, Range block, const Rule& rule, bool add_traces, double* sums) {
  S copy[BLOCK];
  const S* __restrict g = effective_gradient(at, block, rule, copy);
  S* __restrict m = at.exp_avg + block.begin;
  S* __restrict v = at.exp_avg_sq + block.begin;
  const S rate = 1 - rule.beta1, square_rate = 1 - rule.beta2, beta2 = rule.beta2, eps = rule.eps;
  S magnitudes = 0, memories = 0;
#pragma omp simd reduction(+ : magnitudes, memories)
  for (int64_t i = 0; i < block.size; ++i) {
    m[i] += rate * (g[i] - m[i]);
    v[i] = beta2 * v[i] + square_rate * g[i] * g[i];
    magnitudes += std::abs(g[i]);
    memories += std::abs(m[i]) / (std::sqrt(v[i]) + eps);
  }
  sums[MAGNITUDES] = magnitudes, sums[MEMORIES] = memories;
  if (add_traces) sums[OLD_TRACES] = sum_of(at.trace + block.begin, block.size);
}

// NaN stays NaN.
template <class S>
S clamp(S x, S lowest, S highest) {
  x = x < lowest ? lowest : x;
  return x > highest ? highest : x;
}

// Second pass: a in place, and u, short of `gain`; the block's sums of base^2, u^2 and a, taken here because a loop of
// their own would let the memory idle. `inverse` holds 1/(mean + eps) of a, |g| and r. FULL: alpha is alpha_full.
template <Base BASE, bool FULL, class P, class S>
void modulate(const Streams<P, S>& at, Range block, const Rule& rule, const Tensor& tensor, const double* inverse,
              double* sums) {
  S copy[BLOCK];
  const S* __restrict g = effective_gradient(at, block, rule, copy);
  S* __restrict a = at.trace + block.begin;
  const S* __restrict m = at.exp_avg + block.begin;
  const S* __restrict v = at.exp_avg_sq + block.begin;
  S* __restrict u = at.update(block.begin);
  const S trace_rate = 1 - rule.trace_decay;
  const S trace_gain = rule.trace_weight * inverse[0], gradient_gain = rule.gradient_weight * inverse[1];
  const S memory_gain = rule.memory_weight * inverse[2], plain_gain = inverse[1];
  const S lowest = rule.lowest, highest = rule.highest, eps = rule.eps, inverse_correction = 1 / tensor.correction;
  const S blend = tensor.blend, rest = 1 - tensor.blend, strength = rule.strength, constant = 1 - rule.strength;
  Lanes<S> base_squares, squares, traces;
  for_lanes(block.size, [&](int64_t i, int lane) {
    const S magnitude = std::abs(g[i]), root = std::sqrt(v[i]);
    a[i] += trace_rate * (magnitude - a[i]);
    const S memory = std::abs(m[i]) / (root + eps);
    const S full = clamp(memory_gain * memory + trace_gain * a[i] + gradient_gain * magnitude, lowest, highest);
    const S plain = clamp(plain_gain * magnitude, lowest, highest);
    const S blended = blend == 0 ? plain : full - rest * (full - plain);
    const S base = BASE == ADAMW ? m[i] / (root * inverse_correction + eps) : BASE == MOMENTUM ? m[i] : g[i];
    const S alpha = FULL ? full : strength * blended + constant;
    const S update = !FULL && strength == 0 ? base : alpha * base;
    u[i] = update;
    base_squares.parts[lane] += base * base;
    squares.parts[lane] += update * update;
    traces.parts[lane] += a[i];
  });
  if (BASE == GRADIENT && rule.coupled_decay != 0) {
    const P* param = at.param + block.begin;
    const S decay = rule.coupled_decay;
    squares = {};
    for_lanes(block.size, [&](int64_t i, int lane) {
      u[i] += decay * S(param[i]);
      squares.parts[lane] += u[i] * u[i];
    });
  }
  sums[BASE_SQUARES] = base_squares.total(), sums[SQUARES] = squares.total(), sums[TRACES] = traces.total();
}

template <class P, class S>
auto modulation(int64_t base, bool full) {
  if (base == GRADIENT) return full ? modulate<GRADIENT, true, P, S> : modulate<GRADIENT, false, P, S>;
  if (base == ADAMW) return full ? modulate<ADAMW, true, P, S> : modulate<ADAMW, false, P, S>;
  return full ? modulate<MOMENTUM, true, P, S> : modulate<MOMENTUM, false, P, S>;
}

// u of a block times the factors of its neurons, each of which owns runs of `stride` elements.
template <class S>
void scale_neurons(S* u, Range block, const Tensor& tensor) {
  for (int64_t i = 0, run; i < block.size; i += run) {
    const int64_t element = block.begin + i, neuron = element / tensor.stride % tensor.neurons;
    const float* factors = tensor.factors + neuron;
    if (tensor.stride == 1) {
      run = std::min(tensor.neurons - neuron, block.size - i);
      for (int64_t k = 0; k < run; ++k) u[i + k] *= factors[k];
    } else {
      run = std::min(tensor.stride - element % tensor.stride, block.size - i);
      for (int64_t k = 0; k < run; ++k) u[i + k] *= *factors;
    }
  }
}

// Third pass: p <- keep*p + scale*u, rounded to the parameter's type once.
template <class P, class S>
void apply_update(const Streams<P, S>& at, Range block, const Tensor& tensor, S keep, S scale) {
  if (tensor.factors) scale_neurons(at.update(block.begin), block, tensor);
  P* __restrict p = at.param + block.begin;
  const S* __restrict u = at.update(block.begin);
#pragma omp simd
  for (int64_t i = 0; i < block.size; ++i) p[i] = P(keep * S(p[i]) + scale * u[i]);
}

}  // namespace
