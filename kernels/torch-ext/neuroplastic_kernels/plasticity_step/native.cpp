// One NeuroPlastic step over many tensors on the CPU; the formulas are those of formulas.py.
//
// Three passes per tensor: m and v, then a and the update, then the parameter. Each needs sums over the tensor from the
// pass before; only that of a follows from what the step before left, so that the first pass need not move a, and the
// caches keep more of the rest. A thread takes the same blocks in every pass, the middle pass backwards, so that it
// begins with what the caches still hold, and passes u on in memory that is its own for all tensors, so that no other
// core's cache holds it. Sums are kept per block and joined in the order of the blocks: no bit depends on the number of
// threads.

#include <omp.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <vector>

#include "native_passes.h"

namespace {

constexpr int64_t RUN = 16;  // blocks: the middle pass goes back run by run, forwards in each, as processors read ahead

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

double joined(const double* sums, int64_t blocks, Sum which) {
  double total = 0;
  for (int64_t block = 0; block < blocks; ++block) total += sums[block * SUMS + which];
  return total;
}

// 1/(mean + eps) of a, |g| and r, from the sums of the first pass.
std::array<double, 3> inverse_means(const Tensor& tensor, const Rule& rule, const double* sums, int64_t blocks) {
  const double old = std::isnan(tensor.trace_sum) ? joined(sums, blocks, OLD_TRACES) : tensor.trace_sum;
  const double magnitudes = joined(sums, blocks, MAGNITUDES), memories = joined(sums, blocks, MEMORIES);
  const double traces = rule.trace_decay * old + (1 - rule.trace_decay) * magnitudes;
  const auto inverse = [&](double sum) { return 1 / (sum / tensor.numel + rule.eps); };
  return {inverse(traces), inverse(magnitudes), inverse(memories)};
}

int64_t blocks_of(int64_t numel) { return (numel + BLOCK - 1) / BLOCK; }

// How many of `blocks` each of `threads` takes at most.
int64_t share(int64_t blocks, int64_t threads) { return (blocks + threads - 1) / threads; }

// Where a thread stands among those that step a tensor together.
struct Team {
  int64_t thread, threads;
  void wait() const {
    if (threads > 1) {
#pragma omp barrier
    }
  }
};

// One step of one tensor, called by every thread of the team; `room` is the thread's own, `sums` is [blocks, SUMS].
template <class P, class S>
void step(Tensor& tensor, const Rule& rule, Team team, void* room, double* sums) {
  const int64_t blocks = blocks_of(tensor.numel), mine = share(blocks, team.threads);
  const int64_t first = std::min(mine * team.thread, blocks), last = std::min(first + mine, blocks);
  const Streams<P, S> at{static_cast<P*>(tensor.param),      static_cast<const P*>(tensor.grad),
                         static_cast<S*>(tensor.trace),      static_cast<S*>(tensor.exp_avg),
                         static_cast<S*>(tensor.exp_avg_sq), static_cast<S*>(room), first * BLOCK};
  const auto range = [&](int64_t block) { return Range{block * BLOCK, std::min(BLOCK, tensor.numel - block * BLOCK)}; };

  const bool add_traces = std::isnan(tensor.trace_sum);
  for (int64_t i = first; i < last; ++i) advance(at, range(i), rule, add_traces, sums + i * SUMS);
  team.wait();
  const auto inverse = inverse_means(tensor, rule, sums, blocks);
  const auto modulated = modulation<P, S>(rule.base, tensor.blend == 1 && rule.strength == 1);
  for (int64_t end = last, begin; end > first; end = begin) {
    begin = std::max(first, end - RUN);
    for (int64_t i = begin; i < end; ++i) modulated(at, range(i), rule, tensor, inverse.data(), sums + i * SUMS);
  }
  team.wait();
  if (team.thread == 0) tensor.trace_sum = joined(sums, blocks, TRACES);
  const double norm = std::sqrt(joined(sums, blocks, SQUARES));
  const double base_norm = std::sqrt(joined(sums, blocks, BASE_SQUARES));
  const double factor = homeostasis(base_norm, norm, tensor.numel, rule);
  const S keep = 1 - rule.lr * rule.decoupled_decay, scale = -rule.lr * tensor.gain * factor;
  for (int64_t block = first; block < last; ++block) apply_update(at, range(block), tensor, keep, scale);
}

void step(Tensor& tensor, const Rule& rule, Team team, void* room, double* sums) {
  switch (tensor.dtype) {
    case FLOAT32: return step<float, float>(tensor, rule, team, room, sums);
    case FLOAT64: return step<double, double>(tensor, rule, team, room, sums);
    case BFLOAT16: return step<BFloat16, float>(tensor, rule, team, room, sums);
    case FLOAT16: return step<_Float16, float>(tensor, rule, team, room, sums);
  }
}

}  // namespace

// The elements of `room` for tensors of at most `largest` elements and as many threads, or fewer.
extern "C" int64_t room_size(int64_t largest, int64_t threads) { return (blocks_of(largest) + threads) * BLOCK; }

// `room` has `room_size` elements of eight bytes.
extern "C" void plasticity_step(Tensor* tensors, int64_t count, const Rule* rule, double* room, int64_t threads) {
  int64_t largest = 0;
  for (int64_t i = 0; i < count; ++i) largest = std::max(largest, tensors[i].numel);
  std::vector<double> sums(blocks_of(largest) * SUMS);
#pragma omp parallel num_threads(threads)
  {
    const Team everyone{omp_get_thread_num(), omp_get_num_threads()};
    double* own_room = room + share(blocks_of(largest), everyone.threads) * everyone.thread * BLOCK;
    double own_sums[SUMS];
    for (int64_t i = 0; i < count; ++i) {
      if (!tensors[i].grad) continue;
      const bool small = tensors[i].numel <= BLOCK;  // one thread's alone, so that nobody waits
      if (!small) {
        step(tensors[i], *rule, everyone, own_room, sums.data());
      } else if (i % everyone.threads == everyone.thread) {
        step(tensors[i], *rule, {0, 1}, own_room, own_sums);
      }
    }
  }
}
