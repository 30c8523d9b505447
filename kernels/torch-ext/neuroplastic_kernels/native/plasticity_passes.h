// The three passes of plasticity_step.cpp over one block of one tensor, and what they work on.

#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

namespace {

constexpr int64_t BLOCK = 8192;  // elements: long enough to stream, short enough for a copy of it to stay in the caches
constexpr int SUMS = 5;          // per block: a, |g|, r; base^2, u^2

enum Base : int64_t { GRADIENT, ADAMW, MOMENTUM };
enum Dtype : int64_t { FLOAT32, FLOAT64, BFLOAT16, FLOAT16 };

}  // namespace

extern "C" {

// Both structures are declared a second time in plasticity_step.py; every field has eight bytes. So are the numbers of
// bases and dtypes.

struct Tensor {
  void* param;       // [numel] of dtype
  const void* grad;  // [numel] of dtype
  void* trace;       // [numel] of float64 for float64, else float32; so are the next two
  void* exp_avg;
  void* exp_avg_sq;
  int64_t numel, dtype;
  double blend, correction, gain;  // `Moment` of the reference
  const float* factors;            // [neurons], what each neuron's part of the update is multiplied by, or null
  int64_t neurons, stride;         // element i belongs to neuron i / stride % neurons
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
// what a thread's passes hand on, of its elements from `first` on: sqrt(v), then u.
template <class P, class S>
struct Streams {
  P* param;
  const P* grad;
  S *trace, *exp_avg, *exp_avg_sq, *room;
  int64_t first;
  S* handed(int64_t begin) const { return room + (begin - first); }
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

// First pass: a, m and v in place, sqrt(v); the block's sums of a, |g| and r.
template <class P, class S>
void advance(const Streams<P, S>& at, Range block, const Rule& rule, double* sums) {
  S copy[BLOCK];
  const S* __restrict g = effective_gradient(at, block, rule, copy);
  S* __restrict a = at.trace + block.begin;
  S* __restrict m = at.exp_avg + block.begin;
  S* __restrict v = at.exp_avg_sq + block.begin;
  S* __restrict root = at.handed(block.begin);
  const S trace_rate = 1 - rule.trace_decay, rate = 1 - rule.beta1, square_rate = 1 - rule.beta2;
  const S beta2 = rule.beta2, eps = rule.eps;
  S traces = 0, magnitudes = 0, memories = 0;
#pragma omp simd reduction(+ : traces, magnitudes, memories)
  for (int64_t i = 0; i < block.size; ++i) {
    const S magnitude = std::abs(g[i]);
    a[i] += trace_rate * (magnitude - a[i]);
    m[i] += rate * (g[i] - m[i]);
    v[i] = beta2 * v[i] + square_rate * g[i] * g[i];
    root[i] = std::sqrt(v[i]);
    traces += a[i];
    magnitudes += magnitude;
    memories += std::abs(m[i]) / (root[i] + eps);
  }
  sums[0] = traces, sums[1] = magnitudes, sums[2] = memories;
}

// NaN stays NaN.
template <class S>
S clamp(S x, S lowest, S highest) {
  x = x < lowest ? lowest : x;
  return x > highest ? highest : x;
}

// Second pass: u, short of `gain`, in the place of sqrt(v); the block's sums of base^2 and u^2. `inverse` holds
// 1/(mean + eps) of a, |g| and r. FULL: alpha is alpha_full.
template <Base BASE, bool FULL, class P, class S>
void modulate(const Streams<P, S>& at, Range block, const Rule& rule, const Tensor& tensor, const double* inverse,
              double* sums) {
  S copy[BLOCK];
  const S* __restrict g = effective_gradient(at, block, rule, copy);
  const S* __restrict a = at.trace + block.begin;
  const S* __restrict m = at.exp_avg + block.begin;
  S* __restrict u = at.handed(block.begin);
  const S trace_gain = rule.trace_weight * inverse[0], gradient_gain = rule.gradient_weight * inverse[1];
  const S memory_gain = rule.memory_weight * inverse[2], plain_gain = inverse[1];
  const S lowest = rule.lowest, highest = rule.highest, eps = rule.eps, inverse_correction = 1 / tensor.correction;
  const S blend = tensor.blend, rest = 1 - tensor.blend, strength = rule.strength, constant = 1 - rule.strength;
  S base_squares = 0, squares = 0;
#pragma omp simd reduction(+ : base_squares, squares)
  for (int64_t i = 0; i < block.size; ++i) {
    const S magnitude = std::abs(g[i]), root = u[i];
    const S memory = std::abs(m[i]) / (root + eps);
    const S full = clamp(memory_gain * memory + trace_gain * a[i] + gradient_gain * magnitude, lowest, highest);
    const S plain = clamp(plain_gain * magnitude, lowest, highest);
    const S blended = blend == 0 ? plain : full - rest * (full - plain);
    const S base = BASE == ADAMW ? m[i] / (root * inverse_correction + eps) : BASE == MOMENTUM ? m[i] : g[i];
    const S alpha = FULL ? full : strength * blended + constant;
    const S update = !FULL && strength == 0 ? base : alpha * base;
    u[i] = update;
    base_squares += base * base;
    squares += update * update;
  }
  if (BASE == GRADIENT && rule.coupled_decay != 0) {
    const P* param = at.param + block.begin;
    const S decay = rule.coupled_decay;
    squares = 0;
#pragma omp simd reduction(+ : squares)
    for (int64_t i = 0; i < block.size; ++i) {
      u[i] += decay * S(param[i]);
      squares += u[i] * u[i];
    }
  }
  sums[3] = base_squares, sums[4] = squares;
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
  if (tensor.factors) scale_neurons(at.handed(block.begin), block, tensor);
  P* __restrict p = at.param + block.begin;
  const S* __restrict u = at.handed(block.begin);
#pragma omp simd
  for (int64_t i = 0; i < block.size; ++i) p[i] = P(keep * S(p[i]) + scale * u[i]);
}

}  // namespace
