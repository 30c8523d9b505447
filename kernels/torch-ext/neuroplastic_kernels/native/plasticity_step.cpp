// One NeuroPlastic step over many tensors on the CPU; the formulas are those of reference/plasticity_formulas.py.
//
// Three passes per tensor: state, then update, then parameter. Each needs sums over the tensor from the pass before.
// A thread takes the same blocks in every pass, the middle pass backwards, so that it begins with what the caches still
// hold. Sums are kept per block and joined in the order of the blocks: no bit depends on the number of threads.

#include <omp.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <vector>

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

// A tensor's streams with their types, P of the parameter and gradient, S of the state and all arithmetic.
template <class P, class S>
struct Streams {
  P* param;
  const P* grad;
  S *trace, *exp_avg, *exp_avg_sq, *update;
};

// Elements `begin` to `begin + size` of a tensor.
struct Range {
  int64_t begin, size;
};

// The gradient of a block in the state's type, scaled, signed for descent, with coupled decay where torch's Adam and SGD
// add it: where it lies if nothing is to be done, else in `room`.
template <class P, class S>
const S* effective_gradient(const Streams<P, S>& at, Range block, const Rule& rule, S* room) {
  const P* grad = at.grad + block.begin;
  const P* param = at.param + block.begin;
  const S factor = rule.gradient_factor, decay = rule.base == GRADIENT ? 0 : rule.coupled_decay;
  if constexpr (std::is_same_v<P, S>) {
    if (factor == 1 && decay == 0) return grad;
  }
  if (decay == 0) {
    for (int64_t i = 0; i < block.size; ++i) room[i] = factor * S(grad[i]);
  } else {
    for (int64_t i = 0; i < block.size; ++i) room[i] = factor * S(grad[i]) + decay * S(param[i]);
  }
  return room;
}

// First pass: a, m and v in place; the block's sums of a, |g| and r.
template <class P, class S>
void advance(const Streams<P, S>& at, Range block, const Rule& rule, double* sums) {
  S room[BLOCK];
  const S* __restrict g = effective_gradient(at, block, rule, room);
  S* __restrict a = at.trace + block.begin;
  S* __restrict m = at.exp_avg + block.begin;
  S* __restrict v = at.exp_avg_sq + block.begin;
  const S trace_rate = 1 - rule.trace_decay, rate = 1 - rule.beta1, square_rate = 1 - rule.beta2;
  const S beta2 = rule.beta2, eps = rule.eps;
  S traces = 0, magnitudes = 0, memories = 0;
#pragma omp simd reduction(+ : traces, magnitudes, memories)
  for (int64_t i = 0; i < block.size; ++i) {
    const S magnitude = std::abs(g[i]);
    a[i] += trace_rate * (magnitude - a[i]);
    m[i] += rate * (g[i] - m[i]);
    v[i] = beta2 * v[i] + square_rate * g[i] * g[i];
    traces += a[i];
    magnitudes += magnitude;
    memories += std::abs(m[i]) / (std::sqrt(v[i]) + eps);
  }
  sums[0] = traces, sums[1] = magnitudes, sums[2] = memories;
}

// NaN stays NaN.
template <class S>
S clamp(S x, S lowest, S highest) {
  x = x < lowest ? lowest : x;
  return x > highest ? highest : x;
}

// Second pass: u, short of `gain`; the block's sums of base^2 and u^2. `inverse` holds 1/(mean + eps) of a, |g| and r.
template <Base BASE, class P, class S>
void modulate(const Streams<P, S>& at, Range block, const Rule& rule, const Tensor& tensor, const double* inverse,
              double* sums) {
  S room[BLOCK];
  const S* __restrict g = effective_gradient(at, block, rule, room);
  const S* __restrict a = at.trace + block.begin;
  const S* __restrict m = at.exp_avg + block.begin;
  const S* __restrict v = at.exp_avg_sq + block.begin;
  S* __restrict u = at.update + block.begin;
  const S trace_gain = rule.trace_weight * inverse[0], gradient_gain = rule.gradient_weight * inverse[1];
  const S memory_gain = rule.memory_weight * inverse[2], plain_gain = inverse[1];
  const S lowest = rule.lowest, highest = rule.highest, eps = rule.eps, inverse_correction = 1 / tensor.correction;
  const S blend = tensor.blend, rest = 1 - tensor.blend, strength = rule.strength, constant = 1 - rule.strength;
  S base_squares = 0, squares = 0;
#pragma omp simd reduction(+ : base_squares, squares)
  for (int64_t i = 0; i < block.size; ++i) {
    const S magnitude = std::abs(g[i]), root = std::sqrt(v[i]);
    const S memory = std::abs(m[i]) / (root + eps);
    const S full = clamp(memory_gain * memory + trace_gain * a[i] + gradient_gain * magnitude, lowest, highest);
    const S plain = clamp(plain_gain * magnitude, lowest, highest);
    const S alpha = blend == 0 ? plain : full - rest * (full - plain);
    const S base = BASE == ADAMW ? m[i] / (root * inverse_correction + eps) : BASE == MOMENTUM ? m[i] : g[i];
    const S update = strength == 0 ? base : (strength * alpha + constant) * base;
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

// Third pass: p <- keep*p + scale*u, rounded to the parameter's type once.
template <class P, class S>
void apply_update(const Streams<P, S>& at, Range block, S keep, S scale) {
  P* __restrict p = at.param + block.begin;
  const S* __restrict u = at.update + block.begin;
#pragma omp simd
  for (int64_t i = 0; i < block.size; ++i) p[i] = P(keep * S(p[i]) + scale * u[i]);
}

// The factor that keeps a tensor's update bounded, as `homeostasis` of the reference.
double homeostasis(double base_norm, double norm, int64_t numel, const Rule& rule) {
  if (rule.base != GRADIENT) return rule.strength != 0 && norm > 0 ? base_norm / norm : 1;
  double factor = 1;
  if (rule.max_update_norm >= 0) factor = clamp(rule.max_update_norm / norm, 0.0, 1.0);
  if (rule.homeostatic_rate != 0) {
    const double rms = std::sqrt(factor * norm * (factor * norm) / numel + rule.eps);
    factor *= clamp(1 + rule.homeostatic_rate * (rule.target_rms - rms), 0.5, 1.5);
  }
  return factor;
}

double joined(const double* sums, int64_t blocks, int which) {
  double total = 0;
  for (int64_t block = 0; block < blocks; ++block) total += sums[block * SUMS + which];
  return total;
}

// One step of one tensor, called by every thread of the team; `sums` is [blocks, SUMS].
template <class P, class S>
void step(const Tensor& tensor, const Rule& rule, void* update, double* sums) {
  const Streams<P, S> at{static_cast<P*>(tensor.param),      static_cast<const P*>(tensor.grad),
                         static_cast<S*>(tensor.trace),      static_cast<S*>(tensor.exp_avg),
                         static_cast<S*>(tensor.exp_avg_sq), static_cast<S*>(update)};
  const int64_t blocks = (tensor.numel + BLOCK - 1) / BLOCK;
  const int64_t first = blocks * omp_get_thread_num() / omp_get_num_threads();
  const int64_t last = blocks * (omp_get_thread_num() + 1) / omp_get_num_threads();
  const auto range = [&](int64_t block) { return Range{block * BLOCK, std::min(BLOCK, tensor.numel - block * BLOCK)}; };

  for (int64_t block = first; block < last; ++block) advance(at, range(block), rule, sums + block * SUMS);
#pragma omp barrier
  double inverse[3];
  for (int which = 0; which < 3; ++which) inverse[which] = 1 / (joined(sums, blocks, which) / tensor.numel + rule.eps);
  const auto modulated = rule.base == GRADIENT ? modulate<GRADIENT, P, S>
                         : rule.base == ADAMW  ? modulate<ADAMW, P, S>
                                               : modulate<MOMENTUM, P, S>;
  for (int64_t block = last; block-- > first;) modulated(at, range(block), rule, tensor, inverse, sums + block * SUMS);
#pragma omp barrier
  const double base_norm = std::sqrt(joined(sums, blocks, 3)), norm = std::sqrt(joined(sums, blocks, 4));
  const double factor = homeostasis(base_norm, norm, tensor.numel, rule);
  const S keep = 1 - rule.lr * rule.decoupled_decay, scale = -rule.lr * tensor.gain * factor;
  for (int64_t block = first; block < last; ++block) apply_update(at, range(block), keep, scale);
}

}  // namespace

// `update` has room for the largest tensor in its state's type.
extern "C" void plasticity_step(const Tensor* tensors, int64_t count, const Rule* rule, void* update, int64_t threads) {
  int64_t largest = 0;
  for (int64_t i = 0; i < count; ++i) largest = std::max(largest, tensors[i].numel);
  std::vector<double> sums((largest + BLOCK - 1) / BLOCK * SUMS);
#pragma omp parallel num_threads(threads)
  for (int64_t i = 0; i < count; ++i) {
    switch (tensors[i].dtype) {
      case FLOAT32: step<float, float>(tensors[i], *rule, update, sums.data()); break;
      case FLOAT64: step<double, double>(tensors[i], *rule, update, sums.data()); break;
      case BFLOAT16: step<BFloat16, float>(tensors[i], *rule, update, sums.data()); break;
      case FLOAT16: step<_Float16, float>(tensors[i], *rule, update, sums.data()); break;
    }
  }
}
