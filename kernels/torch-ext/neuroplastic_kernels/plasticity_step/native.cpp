// One NeuroPlastic step over many tensors on the CPU; the formulas are those of reference.py.
//
// A pass is a sweep of one loop over fixed blocks of all tensors. Means of the step before are known when a step begins,
// so that one pass writes p, m, v and a at once; exact means are those of two passes that write nothing. A block keeps its own
// sums, which are joined in the order of the blocks: no bit depends on the number of threads, and no block waits for another.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>
#include <vector>

namespace {

constexpr int64_t BLOCK = 8192;  // elements; half precision, widened by the block, stays in a core's caches

enum Sum : int { ACTIVITY, GRADIENT, MEMORY, BASE_SQUARED, UPDATE_SQUARED, SUMS };
enum Base : int64_t { PAPER, ADAMW, MOMENTUM };
enum Dtype : int64_t { FLOAT32, FLOAT64, BFLOAT16, FLOAT16 };
// Look for inf and NaN in the gradient; take the sums of signals; take those of squares; take sums and write.
enum Pass : int64_t { CHECK, SIGNALS, SQUARES, APPLY };

struct BFloat16 {
  uint16_t bits;
  BFloat16() = default;
  explicit operator float() const {
    uint32_t wide = uint32_t(bits) << 16;
    float value;
    std::memcpy(&value, &wide, sizeof value);
    return value;
  }
  explicit BFloat16(float value) {  // to nearest, ties to even
    uint32_t wide;
    std::memcpy(&wide, &value, sizeof wide);
    bits = value != value ? 0x7FC0 : uint16_t((wide + 0x7FFF + ((wide >> 16) & 1)) >> 16);
  }
};

}  // namespace

extern "C" {

// native.py says a second time what stands in both structures, and the numbers of bases and dtypes. Every field has eight bytes.

struct Tensor {
  void* param;    // [numel] of dtype
  void* exp_avg;  // [numel] of float64 for float64, else float32; so are the next two
  void* exp_avg_sq;
  void* trace;  // null with activity "rms"
  void* sums;   // [SUMS] of the dtype of exp_avg
  void* nonfinite;  // of that dtype: above 0 where the gradient of the whole tensor holds inf or NaN
  float *step, *skipped;
  const float* factors;  // [neurons], or null; element i belongs to neuron i / stride % neurons
  int64_t numel, dtype, neurons, stride;
  int64_t whole, origin;  // of the tensor that this is a run of, or itself: its elements, and where among them this begins
  int64_t number;         // in the caller's list
};

struct Rule {
  double base, exact, skip_nonfinite, stochastic_rounding, lr, beta1, beta2, trace_decay, weights[3], lowest, highest, scale, strength, warmup_steps;
  double max_update_norm, target_rms, homeostatic_rate, eps;  // infinite norm: no limit
  double coupled_decay, decoupled_decay;                      // at most one is not 0
  double gradient_factor;                                     // negative to ascend
};

}  // extern "C"

namespace {

// A tensor to step. sums: known before a pass, replaced by its own; rounded as they are kept.
struct Task {
  const Tensor* tensor;
  const void* grad;  // [numel] of the tensor's dtype
  double sums[SUMS];
  uint64_t seed;
  bool plastic;  // alpha is not 1
  double correction_m, root_correction_v, correction_a, divisor, gains[3], gradient_gain, blend, h;
};

struct Block {
  Task* task;
  int64_t begin, size;
  double sums[SUMS];
};

double kept(const Tensor& tensor, const void* values, int k = 0) {
  return tensor.dtype == FLOAT64 ? static_cast<const double*>(values)[k] : static_cast<const float*>(values)[k];
}

void keep(const Tensor& tensor, void* values, double value, int k = 0) {
  tensor.dtype == FLOAT64 ? static_cast<double*>(values)[k] = value : static_cast<float*>(values)[k] = value;
}

double rounded(double x, const Tensor& tensor) { return tensor.dtype == FLOAT64 ? x : float(x); }

// NaN stays NaN.
template <class S>
S clamp(S x, S lowest, S highest) {
  x = x < lowest ? lowest : x;
  return x > highest ? highest : x;
}

// As torch rounds it.
template <class S>
S lerp(S start, S end, S weight) {
  const S difference = end - start;
  return weight < S(0.5) ? std::fma(weight, difference, start) : std::fma(weight - 1, difference, end);
}

bool is_plastic(const Rule& rule) { return rule.strength != 0 || rule.base == PAPER; }

bool has_history(const double* sums) {
  return std::all_of(sums, sums + BASE_SQUARED, [](double x) { return std::isfinite(x) && x > 0; });
}

double homeostasis(const Task& task, const Rule& rule) {
  const double base = task.sums[BASE_SQUARED], update = task.sums[UPDATE_SQUARED];
  if (rule.base != PAPER) {
    const double ratio = std::sqrt(rounded(base / update, *task.tensor));
    return task.plastic && std::isfinite(ratio) && ratio > 0 ? ratio : 1;
  }
  if (std::isinf(update)) return 0;
  double factor = std::isinf(rule.max_update_norm) ? 1 : rule.max_update_norm / std::sqrt(update);
  factor = factor > 1 ? 1 : factor;
  if (rule.homeostatic_rate == 0) return factor;
  const double rms = std::sqrt(factor * factor * update / task.tensor->whole + rule.eps);
  return factor * clamp(1 + rule.homeostatic_rate * (rule.target_rms - rms), 0.5, 1.5);
}

// The terms of a pass, from the sums known before it.
void prepare(Task& task, const Rule& rule) {
  const Tensor& tensor = *task.tensor;
  const double step = *tensor.step + 1;
  const auto correction = [&](double rate) { return rule.base == PAPER ? 1 : 1 - std::pow(rate, step); };
  task.correction_m = correction(rule.beta1), task.correction_a = correction(rule.trace_decay);
  task.root_correction_v = std::pow(correction(rule.beta2), 0.5);
  task.divisor = rule.base == PAPER ? 1 : rule.base == ADAMW ? task.correction_m : 1 - rule.beta1;
  const double tiny = tensor.dtype == FLOAT64 ? std::numeric_limits<double>::min() : std::numeric_limits<float>::min();
  const auto inverse = [&](int k) { return 1 / (task.sums[k] / tensor.whole + (rule.base == PAPER ? rule.eps : tiny)); };
  for (int k = 0; k < BASE_SQUARED; ++k) task.gains[k] = rule.weights[k] * inverse(k);
  task.gradient_gain = inverse(GRADIENT);
  const double gate = rule.warmup_steps != 0 ? std::min((step - 1) / rule.warmup_steps, 1.0) : 1;
  task.blend = gate * rule.scale;
  task.plastic = is_plastic(rule) && (rule.base == PAPER || has_history(task.sums));
  task.h = homeostasis(task, rule);
}

// The factors of a block's neurons, an element each.
void spread_factors(const Tensor& tensor, const Block& block, float* spread) {
  int64_t neuron = block.begin / tensor.stride % tensor.neurons, left = tensor.stride - block.begin % tensor.stride;
  for (int64_t i = 0; i < block.size; ++i) {
    spread[i] = tensor.factors[neuron];
    if (--left == 0) left = tensor.stride, neuron = neuron + 1 == tensor.neurons ? 0 : neuron + 1;
  }
}

template <class S>
void scan(Block& block, S factor, const S* g) {
  S zeros = 0;  // NaN once an element is not finite
#pragma omp simd reduction(+ : zeros)
  for (int64_t i = 0; i < block.size; ++i) zeros += factor * g[i] * 0;
  block.sums[GRADIENT] = zeros;
}

// The loop. S: of the state and all arithmetic. p, g and factors are those of the block.
template <class S, Base BASE, bool TRACE, bool PLASTIC, bool WRITES>
void step(Block& block, const Rule& rule, S* p, const S* g, const float* factors) {
  static const std::vector<S> zeros(BLOCK, 0);  // what decays where there is no coupled decay: not p, which may be NaN
  const Task& task = *block.task;
  const S* decayed = rule.coupled_decay != 0 ? p : zeros.data();
  S* m = static_cast<S*>(task.tensor->exp_avg) + block.begin;
  S* v = static_cast<S*>(task.tensor->exp_avg_sq) + block.begin;
  S* a = TRACE ? static_cast<S*>(task.tensor->trace) + block.begin : nullptr;

  const S gradient_factor = rule.gradient_factor, coupled = rule.coupled_decay, keep = 1 - rule.lr * rule.decoupled_decay;
  const S beta2 = rule.beta2, rate_m = 1 - rule.beta1, rate_v = 1 - rule.beta2, rate_a = 1 - rule.trace_decay, eps = rule.eps;
  const S inverse_m = 1 / task.correction_m, inverse_a = TRACE ? 1 / task.correction_a : 1;
  const S root_correction = task.root_correction_v, inverse_root = 1 / task.root_correction_v;
  const S of_activity = task.gains[ACTIVITY] * inverse_a, of_memory = task.gains[MEMORY] * inverse_m;
  const S of_gradient = task.gains[GRADIENT], of_gradient_alone = task.gradient_gain, unblended = task.blend - 1;
  const S lowest = rule.lowest, highest = rule.highest, strength = rule.strength;
  const S rate = -rule.lr / task.divisor, plastic_rate = rate * task.h;
  S activities = 0, magnitudes = 0, memories = 0, bases = 0, updates = 0;
#pragma omp simd reduction(+ : activities, magnitudes, memories, bases, updates)
  for (int64_t i = 0; i < block.size; ++i) {
    const S decay = coupled * decayed[i], scaled = gradient_factor * g[i], grad = BASE == PAPER ? scaled : scaled + decay;
    const S magnitude = std::abs(grad), mean = lerp(m[i], grad, rate_m), trace = TRACE ? lerp(a[i], magnitude, rate_a) : 0;
    const S square = std::fma(rate_v * grad, grad, beta2 * v[i]);
    // Without plasticity the bits are torch's; with it a product serves for a quotient.
    const S root = PLASTIC ? std::sqrt(square) * inverse_root : std::sqrt(square) / root_correction;
    const S denominator = root + eps, ratio = mean / denominator, memory = std::abs(ratio);
    const S activity = TRACE ? trace : root, base = BASE == ADAMW ? ratio : BASE == MOMENTUM ? mean : grad;
    S update = base;
    if (PLASTIC) {
      const S full = clamp(of_activity * activity + of_gradient * magnitude + of_memory * memory, lowest, highest);
      const S plain = clamp(of_gradient_alone * magnitude, lowest, highest);
      const S blended = std::fma(unblended, full - plain, full);
      update *= std::fma(strength, blended - 1, S(1));
      if (BASE == PAPER) update += decay;
    }
    activities += activity, magnitudes += magnitude, memories += memory;
    bases += base * base, updates += update * update;
    if (!WRITES) continue;
    m[i] = mean, v[i] = square;
    if (TRACE) a[i] = trace;
    if (PLASTIC) {
      p[i] = std::fma(plastic_rate * factors[i], update, keep * p[i]);
    } else {
      const S moved = rate * (mean * S(factors[i]));
      p[i] = keep * p[i] + (BASE == ADAMW ? moved / denominator : moved);
    }
  }
  const double squares = 1 / (task.divisor * task.divisor);
  const double sums[SUMS] = {activities * inverse_a, magnitudes, memories * inverse_m, bases * squares, updates * squares};
  std::copy(sums, sums + SUMS, block.sums);
}

template <class S, Base BASE, bool TRACE>
void step(Block& block, const Rule& rule, bool writes, S* p, const S* g, const float* factors) {
  const bool plastic = block.task->plastic;
  const auto chosen = plastic ? writes ? step<S, BASE, TRACE, true, true> : step<S, BASE, TRACE, true, false>
                              : writes ? step<S, BASE, TRACE, false, true> : step<S, BASE, TRACE, false, false>;
  chosen(block, rule, p, g, factors);
}

template <class S>
void visit(Block& block, const Rule& rule, Pass pass, S* p, const S* g) {
  static const std::vector<float> ones(BLOCK, 1);
  const Tensor& tensor = *block.task->tensor;
  if (pass == CHECK) return scan<S>(block, rule.gradient_factor, g);
  float spread[BLOCK];
  if (tensor.factors) spread_factors(tensor, block, spread);
  const auto chosen = rule.base == PAPER   ? tensor.trace ? step<S, PAPER, true> : step<S, PAPER, false>
                      : rule.base == ADAMW ? tensor.trace ? step<S, ADAMW, true> : step<S, ADAMW, false>
                                           : tensor.trace ? step<S, MOMENTUM, true> : step<S, MOMENTUM, false>;
  chosen(block, rule, pass == APPLY, p, g, tensor.factors ? spread : ones.data());
}

// Philox4x32-10, first word; see common/philox.py.
uint32_t random_word(uint64_t seed, uint32_t element, uint32_t step, uint32_t number) {
  uint32_t words[4] = {element, step, 0, number}, keys[2] = {uint32_t(seed), uint32_t(seed >> 32)};
  for (int round = 0; round < 10; ++round) {
    const uint64_t first = uint64_t(0xD2511F53) * words[0], second = uint64_t(0xCD9E8D57) * words[2];
    words[0] = uint32_t(second >> 32) ^ words[1] ^ keys[0], words[1] = uint32_t(second);
    words[2] = uint32_t(first >> 32) ^ words[3] ^ keys[1], words[3] = uint32_t(first);
    keys[0] += 0x9E3779B9, keys[1] += 0xBB67AE85;
  }
  return words[0];
}

// Up or down at random, such that the expected value is exact.
BFloat16 rounded_at_random(float value, uint32_t word) {
  if (!(std::abs(value) <= std::numeric_limits<float>::max())) return BFloat16(value);
  BFloat16 result;
  uint32_t wide;
  std::memcpy(&wide, &value, sizeof wide);
  result.bits = uint16_t((wide + (word & 0xFFFF)) >> 16);
  return result;
}

void round_at_random(const Block& block, const float* p, BFloat16* param) {
  const Tensor& tensor = *block.task->tensor;
  const uint32_t first = uint32_t(tensor.origin + block.begin), step = uint32_t(*tensor.step + 1), number = uint32_t(tensor.number);
  for (int64_t i = 0; i < block.size; ++i) {
    param[i] = rounded_at_random(p[i], random_word(block.task->seed, first + uint32_t(i), step, number));
  }
}

// P: of the parameter and the gradient; half precision goes through float32 and back.
template <class P>
void visit(Block& block, const Rule& rule, Pass pass) {
  P* param = static_cast<P*>(block.task->tensor->param) + block.begin;
  const P* grad = static_cast<const P*>(block.task->grad) + block.begin;
  if constexpr (sizeof(P) > 2) {
    visit<P>(block, rule, pass, param, grad);
  } else {
    float p[BLOCK], g[BLOCK];
    for (int64_t i = 0; i < block.size; ++i) p[i] = float(param[i]), g[i] = float(grad[i]);
    visit<float>(block, rule, pass, p, g);
    if (pass != APPLY) return;
    if constexpr (std::is_same_v<P, BFloat16>) {
      if (rule.stochastic_rounding != 0) return round_at_random(block, p, param);
    }
    for (int64_t i = 0; i < block.size; ++i) param[i] = P(p[i]);
  }
}

void visit(Block& block, const Rule& rule, Pass pass) {
  switch (block.task->tensor->dtype) {
    case FLOAT32: return visit<float>(block, rule, pass);
    case FLOAT64: return visit<double>(block, rule, pass);
    case BFLOAT16: return visit<BFloat16>(block, rule, pass);
    case FLOAT16: return visit<_Float16>(block, rule, pass);
  }
}

void sweep(std::vector<Task>& tasks, const Rule& rule, Pass pass, int64_t threads) {
  std::vector<Block> blocks;
  for (Task& task : tasks) {
    prepare(task, rule);
    for (int64_t begin = 0; begin < task.tensor->numel; begin += BLOCK) {
      blocks.push_back({&task, begin, std::min(BLOCK, task.tensor->numel - begin), {}});
    }
    std::fill(task.sums, task.sums + SUMS, 0);
  }
#pragma omp parallel for num_threads(threads) schedule(static)
  for (size_t i = 0; i < blocks.size(); ++i) visit(blocks[i], rule, pass);
  for (const Block& block : blocks) {
    for (int k = 0; k < SUMS; ++k) block.task->sums[k] += block.sums[k];
  }
  for (Task& task : tasks) {
    for (double& sum : task.sums) sum = rounded(sum, *task.tensor);
  }
}

}  // namespace

// One pass. grads: of each tensor, null for one that is not stepped.
extern "C" void plasticity_step(
    const Tensor* tensors, const void* const* grads, int64_t count, const Rule* rule, uint64_t seed, int64_t pass,
    int64_t threads) {
  std::vector<Task> tasks;
  for (int64_t i = 0; i < count; ++i) {
    const Tensor& tensor = tensors[i];
    if (!grads[i]) continue;
    if (pass != CHECK && rule->skip_nonfinite && kept(tensor, tensor.nonfinite) != 0) {
      *tensor.skipped += pass == APPLY;
      continue;
    }
    tasks.push_back({tensors + i, grads[i], {}, seed});
    for (int k = 0; k < SUMS; ++k) tasks.back().sums[k] = kept(tensor, tensor.sums, k);
  }
  sweep(tasks, *rule, Pass(pass), threads);
  const int first = pass == SQUARES ? BASE_SQUARED : 0;
  const int last = pass == CHECK || (pass == APPLY && rule->exact) ? 0 : pass == SIGNALS ? BASE_SQUARED : SUMS;
  for (const Task& task : tasks) {
    const Tensor& tensor = *task.tensor;
    if (pass == CHECK) keep(tensor, tensor.nonfinite, std::isnan(task.sums[GRADIENT]));
    if (pass == APPLY) *tensor.step += 1;
    for (int k = first; k < last && tensor.whole > 0; ++k) keep(tensor, tensor.sums, is_plastic(*rule) ? task.sums[k] : 0, k);
  }
}
