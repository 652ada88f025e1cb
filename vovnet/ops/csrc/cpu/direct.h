// Convolutions as one product: rows are output pixels, packed a strip at a time, columns are output channels. The
// inputs of an aggregation are read where they lie.
#pragma once

#include "strassen.h"
#include "strip.h"

namespace VOVNET_ISA {

template <typename M, typename S>
inline void direct_strip(const Conv& conv, const DirectPlan<S>& plan, const void* table, char* scratch, int64_t task,
                         Ahead ahead) {
  const int64_t i = task / plan.groups, group = task % plan.groups;
  const int64_t m = plan.begin(i), rows = plan.begin(i + 1) - m;
  const int64_t first_panel = group * plan.panels / plan.groups, last_panel = (group + 1) * plan.panels / plan.groups;
  const RowBlocks<Chain::kChunk> row_blocks(rows);
  S* packed = reinterpret_cast<S*>(scratch);
  float* sums = reinterpret_cast<float*>(scratch + plan.packed_bytes(conv.method));
  ahead.put_off((last_panel - first_panel) * row_blocks.count * plan.blocks);
  for (int64_t from = 0; from < plan.blocks; from += plan.range) {
    const int64_t until = smaller(from + plan.range, plan.blocks), blocks = until - from;
    for (int64_t b = 0; b < row_blocks.count; ++b) {
      const int64_t first = row_blocks.begin(b);
      Pixels pixels(conv, m + first, row_blocks.rows(b), m + rows);
      S* to = packed + first * blocks * kBlock<S>;
      if (is_picture(conv.channels)) {
        pack_picture_rows(conv, static_cast<const int64_t*>(table), pixels, blocks, to);
      } else {
        pack_rows(conv, static_cast<const Inner<M>*>(table), from, until, pixels, to);
      }
    }
    for (int64_t panel = first_panel; panel < last_panel; ++panel) {
      const S* columns = static_cast<const S*>(conv.packed) + (panel * plan.blocks + from) * kBlock<S> * kPanel;
      multiply_strip(row_blocks, packed, columns, blocks, sums + panel * rows * kPanel, from > 0, ahead);
    }
  }
  finish_strip<M>(conv, first_panel, last_panel, m, rows, sums, rows);
}

template <typename S>
struct DirectJob {
  const Conv& conv;
  const DirectPlan<S>& plan;
  const void* table;
  char* scratch;  // of each thread
  int threads;
  int64_t next;  // the next task to take
};

template <typename M, typename S>
inline void direct_task(void* context, int64_t thread) {
  auto& job = *static_cast<DirectJob<S>*>(context);
  const Conv& conv = job.conv;
  const DirectPlan<S>& plan = job.plan;
  char* scratch = job.scratch + thread * plan.each(conv.method);
  const int threads = job.threads;
  for (;;) {
    const int64_t i = __atomic_fetch_add(&job.next, 1, __ATOMIC_RELAXED);
    if (i >= plan.tasks()) return;
    Ahead ahead;
    // What this thread takes next, if the others are as fast; a task is not taken before it can begin.
    const int64_t next = (i + threads) / plan.groups;
    if (next < plan.strips) ahead = ahead_of_rows<M>(conv, plan.begin(next), plan.begin(next + 1));
    ahead.add_share(conv.next, conv.next_bytes, i, plan.tasks());
    ahead.cold = i < threads || plan.columns_bytes() > kKept;
    if (conv.method == Method::kStrassen) {
      strassen_strip<M>(conv, plan, job.table, scratch, i, ahead);
    } else {
      direct_strip<M>(conv, plan, job.table, scratch, i, ahead);
    }
  }
}

template <typename S>
inline int64_t direct_packed_size(const Weight& weight) {
  const int64_t panels = panels_of(weight.out_channels, weight.method);
  const int64_t bytes = panels * kPanel * direct_blocks<S>(weight.channels, weight.kernel, weight.method) * kLine;
  return weight.method == Method::kStrassen ? bytes / 4 * kProducts : bytes;
}

template <typename S>
inline void pack_direct(const Weight& weight, void* packed, const Parallel& parallel) {
  PackDirect<S> job{weight, static_cast<S*>(packed),
                    direct_blocks<S>(weight.channels, weight.kernel, weight.method) * kBlock<S>,
                    panels_of(weight.out_channels, weight.method)};
  if (weight.method == Method::kStrassen) {
    parallel.run(kProducts * (job.panels / 2), pack_strassen_panel<S>, &job);
  } else {
    parallel.run(job.panels, pack_direct_panel<S>, &job);
  }
}

template <typename S>
inline int64_t direct_scratch(const Conv& conv, int threads) {
  const DirectPlan<S> plan(conv, threads);
  return plan.table_bytes() + threads * plan.each(conv.method);
}

template <typename M, typename S>
inline void direct_conv(const Conv& conv, void* scratch, const Parallel& parallel) {
  const DirectPlan<S> plan(conv, parallel.threads);
  if (is_picture(conv.channels)) {
    fill_offsets(conv, static_cast<int64_t*>(scratch));
  } else {
    fill_inner<M, S>(conv, static_cast<Inner<M>*>(scratch));
  }
  DirectJob<S> job{
      conv, plan, scratch, static_cast<char*>(scratch) + plan.table_bytes() / kLine * kLine, parallel.threads, 0};
  parallel.run(parallel.threads, direct_task<M, S>, &job);
}

}  // namespace VOVNET_ISA
