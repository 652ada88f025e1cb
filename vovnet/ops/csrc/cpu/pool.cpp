// Distributes the rows of a max-pool over threads.
#include "roi_pool.h"

#include <algorithm>
#include <atomic>

#include "kernels.h"

namespace vovnet::cpu {
namespace {

struct Job {
  const MaxPool& pool;
  int64_t rows, chunk;
  void (*max_rows)(const MaxPool&, int64_t, int64_t);
  std::atomic<int64_t> next{0};
};

void work(void* context, int64_t) {
  Job& job = *static_cast<Job*>(context);
  for (int64_t begin; (begin = job.next.fetch_add(job.chunk)) < job.rows;) {
    job.max_rows(job.pool, begin, std::min(begin + job.chunk, job.rows));
  }
}

}  // namespace

void max_pool(const MaxPool& pool, int64_t batch, DType dtype, const RoiPoolKernels* kernels,
              const Parallel& parallel) {
  const int64_t rows = batch * pool.out_height;
  // A thread takes several neighbouring rows, because they share input rows, but few enough to balance the threads.
  Job job{pool, rows, std::clamp<int64_t>(rows / (8 * parallel.threads), 1, 8),
          kernels[static_cast<int>(dtype)].max_rows};
  parallel.run(parallel.threads, work, &job);
}

}  // namespace vovnet::cpu
