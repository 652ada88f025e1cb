// Implicit GEMM: a convolution as one product whose rows are output pixels and whose columns are output channels. Rows
// are packed one row tile at a time; the inputs of an aggregation are read in place.
#pragma once

#include "row_tile.h"
#include "tasks.h"

namespace VOVNET_ISA {

template <typename M, typename S>
inline void igemm_row_tile(const Conv& conv, const IgemmPlan<S>& plan, const void* table, char* scratch, int64_t task,
                         Prefetcher prefetcher) {
  const int64_t i = task / plan.groups, group = task % plan.groups;
  const int64_t m = plan.begin(i), rows = plan.begin(i + 1) - m;
  const int64_t first_panel = group * plan.panels / plan.groups, last_panel = (group + 1) * plan.panels / plan.groups;
  const RowBlocks<AccumulationChain::kChunk> row_blocks(rows);
  S* packed = reinterpret_cast<S*>(scratch);
  float* sums = reinterpret_cast<float*>(scratch + plan.packed_bytes());
  prefetcher.delay((last_panel - first_panel) * row_blocks.count * plan.blocks);
  for (int64_t from = 0; from < plan.blocks; from += plan.range) {
    const int64_t until = smaller(from + plan.range, plan.blocks), blocks = until - from;
    for (int64_t b = 0; b < row_blocks.count; ++b) {
      const int64_t first = row_blocks.begin(b);
      Pixels pixels(conv, m + first, row_blocks.rows(b), m + rows);
      S* to = packed + first * blocks * kBlock<S>;
      if (is_image(conv.channels)) {
        pack_image_rows(conv, static_cast<const int64_t*>(table), pixels, blocks, to);
      } else {
        pack_rows(conv, static_cast<const Inner<M>*>(table), from, until, pixels, to);
      }
    }
    for (int64_t panel = first_panel; panel < last_panel; ++panel) {
      const S* columns = static_cast<const S*>(conv.packed) + (panel * plan.blocks + from) * kBlock<S> * kPanel;
      multiply_row_tile(row_blocks, {0, row_blocks.count}, packed, columns, blocks, sums + panel * rows * kPanel,
                        from > 0, prefetcher);
    }
  }
  store_row_tile<M>(conv, first_panel, last_panel, m, rows, sums);
}

template <typename S>
struct IgemmJob {
  const Conv& conv;
  const IgemmPlan<S>& plan;
  const void* table;
  char* scratch;  // one part per thread
  Tasks tasks;
};

template <typename M, typename S>
inline void igemm_task(void* context, int64_t thread) {
  auto& job = *static_cast<IgemmJob<S>*>(context);
  const Conv& conv = job.conv;
  const IgemmPlan<S>& plan = job.plan;
  char* scratch = job.scratch + thread * plan.each();
  for (;;) {
    const int64_t i = job.tasks.take(thread);
    if (i < 0) return;
    Prefetcher prefetcher;
    const int64_t next = i / plan.groups + 1;  // the row tile that this thread probably takes next
    if (job.tasks.is_own(thread, next * plan.groups)) {
      prefetcher = prefetch_rows<M>(conv, plan.begin(next), plan.begin(next + 1));
    }
    prefetcher.add_share(conv.next, conv.next_bytes, i, plan.tasks());
    prefetcher.cold = job.tasks.is_first(thread, i) || plan.columns_bytes() > kKept;
    igemm_row_tile<M>(conv, plan, job.table, scratch, i, prefetcher);
  }
}

template <typename S>
inline int64_t igemm_packed_size(const Weight& weight) {
  return panels_of(weight.out_channels) * kPanel * inner_blocks<S>(weight.channels, weight.kernel) * kLine;
}

template <typename S>
inline void pack_igemm(const Weight& weight, void* packed, const Parallel& parallel) {
  PackB<S> job{weight, static_cast<S*>(packed), inner_blocks<S>(weight.channels, weight.kernel) * kBlock<S>};
  parallel.run(panels_of(weight.out_channels), pack_b_panel<S>, &job);
}

template <typename S>
inline int64_t igemm_scratch(const Conv& conv, int threads) {
  const IgemmPlan<S> plan(conv, threads);
  return plan.table_bytes() + threads * plan.each();
}

template <typename M, typename S>
inline void igemm_conv(const Conv& conv, void* scratch, const Parallel& parallel) {
  const IgemmPlan<S> plan(conv, parallel.threads);
  if (is_image(conv.channels)) {
    fill_offsets(conv, static_cast<int64_t*>(scratch));
  } else {
    fill_inner<M, S>(conv, static_cast<Inner<M>*>(scratch));
  }
  IgemmJob<S> job{
      conv, plan, scratch, static_cast<char*>(scratch) + plan.table_bytes() / kLine * kLine,
      {plan.tasks(), parallel.threads}};
  parallel.run(parallel.threads, igemm_task<M, S>, &job);
}

}  // namespace VOVNET_ISA
