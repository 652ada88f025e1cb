// Convolutions as one product: rows are output pixels, packed a strip at a time, columns are output channels. The inputs
// of an aggregation are read where they lie.
#pragma once

#include "rows.h"

namespace VOVNET_ISA {

constexpr int kProducts = 7;  // of Strassen's, see strassen.h

template <typename S>
struct DirectPlan {
  int64_t rows;    // of all
  int64_t strips;
  int64_t groups;  // of panels: where strips are fewer than threads, each is more than one task
  int64_t strip;   // rows of the largest
  int64_t blocks;  // of the inner dimension
  int64_t range;   // blocks that are packed at a time
  int64_t panels;

  DirectPlan(const Conv& conv, int threads) {
    rows = conv.batch * conv.out_height * conv.out_width;
    blocks = direct_blocks<S>(conv.channels, conv.kernel, conv.method);
    panels = panels_of(conv.out_channels, conv.method);
    const bool strassen = conv.method == Method::kStrassen;
    // Strips whose packed rows and sums share the second-level cache with the columns that pass by; longer ones where
    // the columns are many, for each strip reads them all.
    const int64_t columns_bytes = panels * kPanel * blocks * kLine;
    const int64_t wanted = strassen || columns_bytes <= (6 << 20) ? 4 * kRows : 12 * kRows;
    strips = larger(1, ceil_div(rows, wanted));
    if (strips > 1 || rows >= 2 * kRows * threads) strips = ceil_div(strips, threads) * threads;
    strips = larger(1, smaller(strips, rows));
    groups = strassen || strips >= threads ? 1 : smaller(panels, ceil_div(threads, strips));
    strip = ceil_div(rows, strips);
    if (strassen) strip += strip % 2;
    range = strassen || is_picture(conv.channels) ? blocks : larger(1, smaller(blocks, (512 << 10) / (strip * kLine)));
    range = ceil_div(blocks, ceil_div(blocks, range));
  }
  int64_t begin(int64_t i) const { return i * rows / strips; }
  int64_t tasks() const { return strips * groups; }

  // Bytes of scratch: of a table for all, then of packed rows and sums for each thread.
  int64_t table_bytes() const { return blocks * larger(sizeof(Inner<float>), kBlock<S> * sizeof(int64_t)) + kLine; }
  int64_t packed_bytes(Method method) const {
    return method == Method::kStrassen ? kProducts * strip / 2 * (blocks / 2) * kLine : strip * range * kLine;
  }
  int64_t each(Method method) const {
    const int64_t sums = strip * panels + (method == Method::kStrassen ? strip / 2 : 0);  // rows of panels
    const int64_t bytes = packed_bytes(method) + sums * kPanel * int64_t{sizeof(float)};
    // An odd number of lines: the threads' scratch does not fall on the same sets of the caches.
    return (ceil_div(bytes, kLine) | 1) * kLine;
  }
};

// Panels [begin, end) of a strip's sums, which lie panel by panel, `stored` rows each.
template <typename M>
VOVNET_INLINE void finish_strip(const Conv& conv, int64_t begin, int64_t end, int64_t m, int64_t rows,
                                const float* sums, int64_t stored) {
  const Finish<M> finish(conv);
  Pixel pixel = pixel_of(conv, m);
  for (int64_t r = 0; r < rows; ++r, pixel.advance(conv)) {
    M* out = static_cast<M*>(conv.out) + (m + r) * conv.out_channels;
    const M* residual = finish.residual_of(conv, m + r, pixel.n, pixel.line, pixel.column);
    for (int64_t panel = begin; panel < end; ++panel) {
      const float* from = sums + (panel * stored + r) * kPanel;
      finish.put(load(from), load(from + kLanes), panel * kPanel, out, residual);
    }
  }
  if (finish.streams) stream_end();
}

template <typename M, typename S>
inline void direct_strip(const Conv& conv, const DirectPlan<S>& plan, const void* table, char* scratch, int64_t task,
                         Ahead ahead) {
  const int64_t i = task / plan.groups, group = task % plan.groups;
  const int64_t m = plan.begin(i), rows = plan.begin(i + 1) - m;
  const int64_t first_panel = group * plan.panels / plan.groups, last_panel = (group + 1) * plan.panels / plan.groups;
  const RowBlocks row_blocks(rows);
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
        for (int r = 0; r < pixels.count; ++r) {
          pack_picture_row(conv, static_cast<const int64_t*>(table), pixels.pixel[r], blocks, to + r * kBlock<S>,
                           pixels.count * kBlock<S>);
        }
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

}  // namespace VOVNET_ISA

#include "strassen.h"

namespace VOVNET_ISA {

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
    if (next < plan.strips && !is_picture(conv.channels)) {
      ahead = ahead_of_rows<M>(conv, plan.begin(next), plan.begin(next + 1));
    }
    ahead.add_share(conv.next, conv.next_bytes, i, plan.tasks());
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
  DirectJob<S> job{conv, plan, scratch, static_cast<char*>(scratch) + plan.table_bytes() / kLine * kLine,
                   parallel.threads, 0};
  parallel.run(parallel.threads, direct_task<M, S>, &job);
}

}  // namespace VOVNET_ISA
