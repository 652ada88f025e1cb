// Convolutions and chains of layers as Torch operators. Schemas and references are in vovnet/ops/inference.py.
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include "runtime.h"
#include "torch_layers.h"

namespace {

using namespace vovnet::cpu;

Tensor pack_conv(Tensor weight, int64_t method) {
  const ArgChecker check("pack_conv");
  const Weight made = weight_of(check, kAlone, weight, method);
  check.contiguous("weight", weight);
  const ConvKernels& convs = convs_of(method);
  // Allocated like a map, on huge pages if possible, because packed weights are read from end to end.
  Tensor packed = new_map("pack_conv", {1, convs.packed_size(made) / 4, 1, 1}, ScalarType::Float);
  convs.pack(made, packed.mutable_data_ptr(), parallel());
  return packed;
}

Tensor packed_conv(Tensor x, Tensor weight, std::optional<Tensor> bias, std::optional<Tensor> residual, Tensor packed,
                   std::vector<int64_t> stride, std::vector<int64_t> padding, bool relu, int64_t method) {
  const char* op = "packed_conv";
  const ArgChecker check(op);
  Conv conv = conv_of(check, kAlone, weight, bias, packed, method);
  check_input(check, "x", x, conv.channels, method);
  const Map out = set_geometry(check, "x", Map::of(x), stride, padding, method, conv);
  conv.relu = relu;
  if (residual) {
    check_map(check, "residual", *residual, scalar_type_of(out.dtype));
    if (residual->size(0) != conv.batch || residual->size(1) != conv.out_channels || residual->numel() == 0) {
      check.refuse("residual", "(" + std::to_string(conv.batch) + ", " + std::to_string(conv.out_channels) + ", H, W)",
                  words(shape_of(*residual)));
    }
    if (is_winograd(conv.method)) {
      check.refuse("residual", "none with Winograd's transform", words(shape_of(*residual)));
    }
    conv.residual = residual->const_data_ptr();
    conv.residual_height = residual->size(2), conv.residual_width = residual->size(3);
  }
  Tensor result = new_map(op, {out.batch, out.channels, out.height, out.width}, scalar_type_of(out.dtype));
  conv.out = result.mutable_data_ptr();
  Workspace workspace(op);
  run_conv(method, conv, parallel(), workspace);
  return result;
}

// ---- Chains

constexpr const char* kChain = "packed_chain";

// A row of `steps`: the kind, whether its map is one of the results, and the arguments of the kind.
enum Kind : int64_t { kConv, kPool, kBlock };
constexpr size_t kRow = 9;

struct Step {
  Kind kind;
  bool is_output;
  size_t first, count;  // its convolutions
  MaxPool pool;
  bool identity;
  Map out;
};

struct LayerChain {
  std::vector<Conv> convs;
  std::vector<int64_t> methods;
  std::vector<Step> steps;
};

// Sets the sizes of an OSA block's convolutions and returns its output without data.
Map set_block_geometry(const ArgChecker& check, const std::string& argument, const Map& x, const Step& step,
                       LayerChain& chain) {
  Map map = x;
  int64_t sum = x.channels;
  for (size_t i = 0; i < step.count; ++i) {
    const size_t at = step.first + i;
    Conv& conv = chain.convs[at];
    const std::string place = "[" + std::to_string(at) + "]";
    const bool last = i + 1 == step.count;
    const int64_t expected = last ? sum : map.channels, kernel = last ? 1 : 3;
    if (conv.channels != expected || conv.kernel[0] != kernel || conv.kernel[1] != kernel) {
      check.refuse("weights" + place,
                  "(out channels, " + std::to_string(expected) + ", " + std::to_string(kernel) + ", " +
                      std::to_string(kernel) + ")",
                  words({conv.out_channels, conv.channels, conv.kernel[0], conv.kernel[1]}));
    }
    if (conv.channels < kImageChannels) {
      check.refuse("weights" + place, "16 or more channels", std::to_string(conv.channels));
    }
    if (dtype_of(chain.methods[at]) != x.dtype) {
      check.refuse("methods" + place, "one for maps of " + words(scalar_type_of(x.dtype)),
                  std::to_string(chain.methods[at]));
    }
    if (conv.method == Method::kWinogradStrided) {
      check.refuse("methods" + place, "one for a stride of 1", std::to_string(chain.methods[at]));
    }
    map = set_geometry(check, argument, map, {1, 1}, {kernel / 2, kernel / 2}, chain.methods[at], conv);
    conv.relu = true;
    sum += map.channels;
  }
  if (step.identity && map.channels != x.channels) {
    check.refuse(argument, "no identity, or as many channels as the result's " + std::to_string(map.channels),
                words(x.shape()));
  }
  return map;
}

LayerChain layer_chain_of(const ArgChecker& check, const Tensor& x, const std::vector<Tensor>& weights,
                          const std::vector<Tensor>& biases, const std::vector<Tensor>& packed,
                          const std::vector<int64_t>& methods, const std::vector<int64_t>& rows) {
  const size_t count = weights.size();
  if (biases.size() != count || packed.size() != count || methods.size() != count) {
    check.refuse("weights", "a bias, a packed weight and a method for each",
                std::to_string(count) + ", " + std::to_string(biases.size()) + ", " + std::to_string(packed.size()) +
                    ", " + std::to_string(methods.size()));
  }
  if (rows.empty() || rows.size() % kRow != 0) {
    check.refuse("steps", "rows of " + std::to_string(kRow) + " numbers", std::to_string(rows.size()) + " numbers");
  }
  if (x.dim() != 4) check.refuse("x", "a feature map (N, C, H, W)", "shape " + words(shape_of(x)));
  LayerChain chain{{}, methods, {}};
  for (size_t i = 0; i < count; ++i) {
    chain.convs.push_back(conv_of(check, static_cast<int64_t>(i), weights[i], biases[i], packed[i], methods[i]));
    if (i == 0) continue;
    chain.convs[i - 1].next = chain.convs[i].packed;
    chain.convs[i - 1].next_bytes = packed[i].numel() * int64_t{sizeof(float)};
  }
  Map map = Map::of(x);
  size_t at = 0;
  for (auto row = rows.begin(); row != rows.end(); row += kRow) {
    const std::string argument = row == rows.begin() ? "x" : "steps[" + std::to_string(chain.steps.size()) + "]";
    Step step{static_cast<Kind>(row[0]), row[1] != 0, at, 0, {}, false, {}};
    if (step.kind == kConv) step.count = 1;
    if (step.kind == kBlock) step.count = static_cast<size_t>(row[2]);
    const bool known = step.kind == kConv || step.kind == kPool || step.kind == kBlock;
    if (!known || (step.kind == kBlock && (row[2] < 2 || row[2] > kMaxSources)) || step.count > count - at) {
      check.refuse(argument, "a convolution, a pool or a block of 2 to " + std::to_string(kMaxSources) +
                  " convolutions, whose weights are there", words(std::vector<int64_t>(row, row + kRow)));
    }
    if (step.kind != kPool) {
      const Conv& conv = chain.convs[at];
      if (row == rows.begin()) {
        check_input(check, argument, x, conv.channels, methods[at]);
      } else if (map.channels != conv.channels ||
                 map.dtype != (conv.channels < kImageChannels ? DType::kFloat32 : dtype_of(methods[at]))) {
        check.refuse("weights[" + std::to_string(at) + "]",
                     "one for the map before it, " + words(map.shape()) + " of " +
                         words(scalar_type_of(map.dtype)),
                     std::to_string(conv.channels) + " channels and method " + std::to_string(methods[at]));
      }
    } else if (row == rows.begin()) {
      check_map(check, argument, x, scalar_type_of(map.dtype));
    }
    if (step.kind == kConv) {
      map = set_geometry(check, argument, map, {row[2], row[3]}, {row[4], row[5]}, methods[at], chain.convs[at]);
      chain.convs[at].relu = row[6] != 0;
    } else if (step.kind == kPool) {
      step.pool = pool_of(check, argument, map, {row[2], row[3]}, {row[4], row[5]}, {row[6], row[7]}, row[8] != 0);
      map = Map::dense(map.batch, map.channels, step.pool.out_height, step.pool.out_width, map.dtype);
    } else {
      step.identity = row[3] != 0;
      map = set_block_geometry(check, argument, map, step, chain);
    }
    at += step.count;
    step.out = map;
    chain.steps.push_back(step);
  }
  if (at != count) check.refuse("weights", "as many as the steps take, " + std::to_string(at), std::to_string(count));
  return chain;
}

size_t bytes_of(const Map& map, int64_t channels) {
  return map_bytes(kChain, {map.batch, channels, map.height, map.width}, scalar_type_of(map.dtype));
}

void run_block(const Map& x, const Step& step, LayerChain& chain, void* out, const Parallel& threads,
               Workspace& workspace) {
  Conv* convs = chain.convs.data() + step.first;
  Conv& aggregation = convs[step.count - 1];
  const auto maps = new_scratch(kChain, bytes_of(step.out, aggregation.channels - x.channels));
  auto* next = static_cast<char*>(maps->data());
  const void* data = x.data;
  for (size_t i = 0; i + 1 < step.count; ++i) {
    convs[i].sources[0].data = data;
    convs[i].out = next;
    run_conv(chain.methods[step.first + i], convs[i], threads, workspace);
    aggregation.sources[i] = convs[i].sources[0];
    data = next;
    next += bytes_of(step.out, convs[i].out_channels);
  }
  aggregation.sources[step.count - 1] = {data, convs[step.count - 2].out_channels};
  aggregation.count = static_cast<int>(step.count);
  if (step.identity) {
    aggregation.residual = x.data;
    aggregation.residual_height = aggregation.height, aggregation.residual_width = aggregation.width;
  }
  aggregation.out = out;
  run_conv(chain.methods[step.first + step.count - 1], aggregation, threads, workspace);
}

std::vector<Tensor> packed_chain(Tensor x, std::vector<Tensor> weights, std::vector<Tensor> biases,
                                 std::vector<Tensor> packed, std::vector<int64_t> methods, std::vector<int64_t> steps) {
  const ArgChecker check(kChain);
  LayerChain chain = layer_chain_of(check, x, weights, biases, packed, methods, steps);
  const Parallel threads = parallel();
  Workspace workspace(kChain);
  std::vector<Tensor> results;
  std::unique_ptr<Scratch> held;  // keeps the map that the next step reads, unless it is a result
  Map map = Map::of(x);
  for (Step& step : chain.steps) {
    std::unique_ptr<Scratch> made;
    void* out = nullptr;
    if (step.is_output) {
      results.push_back(new_map(kChain, {step.out.batch, step.out.channels, step.out.height, step.out.width},
                                scalar_type_of(step.out.dtype)));
      out = results.back().mutable_data_ptr();
    } else {
      made = new_scratch(kChain, bytes_of(step.out, step.out.channels));
      out = made->data();
    }
    if (step.out.batch * step.out.height * step.out.width == 0) {
      // nothing to compute
    } else if (step.kind == kConv) {
      Conv& conv = chain.convs[step.first];
      conv.sources[0].data = map.data;
      conv.out = out;
      run_conv(methods[step.first], conv, threads, workspace);
    } else if (step.kind == kPool) {
      step.pool.x = map.data;
      step.pool.out = out;
      max_pool(step.pool, map.batch, map.dtype, kernels().roi_pool, threads);
    } else {
      run_block(map, step, chain, out, threads, workspace);
    }
    map = step.out;
    map.data = out;
    held = std::move(made);
  }
  return results;
}

std::string instruction_set() { return kernels().name; }

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(VOVNET_NAMESPACE, m) { m.def("_cpu_instruction_set() -> str"); }

STABLE_TORCH_LIBRARY_IMPL(VOVNET_NAMESPACE, CompositeExplicitAutograd, m) {
  m.impl("_cpu_instruction_set", TORCH_BOX(&instruction_set));
}

STABLE_TORCH_LIBRARY_IMPL(VOVNET_NAMESPACE, CPU, m) {
  m.impl("pack_conv", TORCH_BOX(&pack_conv));
  m.impl("packed_conv", TORCH_BOX(&packed_conv));
  m.impl("packed_chain", TORCH_BOX(&packed_chain));
}
