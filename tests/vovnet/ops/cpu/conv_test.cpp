// Convolutions without Torch, against plain loops: every method, on maps of float32 and of bfloat16. See checks.h.
//
// Numbers are small integers, and weights multiples of 4, so that all sums, also F(2x2)'s, are exact
// in float32 and what is rounded to bfloat16 in between is exact as well: results must be equal. F(4x4)
// divides by distances of its points and is given a tolerance.
#include "checks.h"

namespace {

using namespace checks;
using vovnet::cpu::Conv;
using vovnet::cpu::ConvKernels;
using vovnet::cpu::kMaxSources;
using vovnet::cpu::Method;
using vovnet::cpu::Weight;

enum class Residual { kNone, kSame, kSmaller };

// A convolution and what it is to give.
struct Case {
  std::vector<int64_t> sources;  // channels of each
  int64_t batch, height, width, out_channels;
  int64_t kernel[2], stride[2], padding[2];
  bool bias = true, relu = true;
  Residual residual = Residual::kNone;
  bool channels_first = false;  // of an image

  int64_t channels() const {
    int64_t sum = 0;
    for (const int64_t count : sources) sum += count;
    return sum;
  }
  int64_t out_size(int axis) const {
    const int64_t size = axis == 0 ? height : width;
    return (size + 2 * padding[axis] - kernel[axis]) / stride[axis] + 1;
  }
  int64_t residual_size(int axis) const { return residual == Residual::kSame ? out_size(axis) : (out_size(axis) + 2) / 3; }
  bool image() const { return channels() < vovnet::cpu::kImageChannels; }
  std::string words() const {
    std::string text = std::to_string(channels()) + " channels of " + std::to_string(sources.size()) + ", " +
                       std::to_string(batch) + "x" + std::to_string(height) + "x" + std::to_string(width) + " -> " +
                       std::to_string(out_channels);
    const std::pair<const char*, const int64_t*> pairs[] = {{"kernel", kernel}, {"stride", stride}, {"padding", padding}};
    for (const auto& [name, pair] : pairs) {
      text += std::string(", ") + name + " " + std::to_string(pair[0]) + "x" + std::to_string(pair[1]);
    }
    return text + (bias ? ", bias" : "") + (relu ? ", relu" : "") +
           (residual == Residual::kNone ? "" : residual == Residual::kSame ? ", residual" : ", small residual");
  }
};

// Small whole numbers, of which a third are 0.
std::vector<int> whole_numbers(int64_t count, int most, int step = 1) {
  std::vector<int> numbers(static_cast<size_t>(count));
  for (int& x : numbers) x = static_cast<int>(draw_int(-most, most + 1)) * step * (draw_int(0, 3) > 0);
  return numbers;
}

struct Data {
  std::vector<std::vector<int>> maps;  // of each source
  std::vector<int> weight, bias, residual;
  std::vector<double> expected;

  explicit Data(const Case& c) {
    const int64_t pixels = c.batch * c.height * c.width;
    for (const int64_t channels : c.sources) maps.push_back(whole_numbers(pixels * channels, 3));
    weight = whole_numbers(c.out_channels * c.channels() * c.kernel[0] * c.kernel[1], 2, 4);
    bias = whole_numbers(c.out_channels, 30);
    residual = whole_numbers(c.batch * c.residual_size(0) * c.residual_size(1) * c.out_channels, 30);
    expect(c);
  }

 private:
  void expect(const Case& c) {
    const int64_t channels = c.channels(), taps = c.kernel[0] * c.kernel[1], out[] = {c.out_size(0), c.out_size(1)};
    std::vector<int> patch(static_cast<size_t>(channels * taps));  // as a weight lies
    for (int64_t m = 0; m < c.batch * out[0] * out[1]; ++m) {
      const int64_t x = m % out[1], y = m / out[1] % out[0], n = m / out[1] / out[0];
      int64_t channel = 0;
      for (size_t s = 0; s < maps.size(); ++s) {
        for (int64_t i = 0; i < c.sources[s]; ++i, ++channel) {
          for (int64_t tap = 0; tap < taps; ++tap) {
            const int64_t row = y * c.stride[0] - c.padding[0] + tap / c.kernel[1];
            const int64_t column = x * c.stride[1] - c.padding[1] + tap % c.kernel[1];
            const bool inside = row >= 0 && row < c.height && column >= 0 && column < c.width;
            const int64_t pixel = (n * c.height + row) * c.width + column;
            patch[channel * taps + tap] = inside ? maps[s][pixel * c.sources[s] + i] : 0;
          }
        }
      }
      for (int64_t o = 0; o < c.out_channels; ++o) {
        int64_t sum = c.bias ? bias[o] : 0;
        const int* row = weight.data() + o * channels * taps;
        for (int64_t k = 0; k < channels * taps; ++k) sum += patch[k] * row[k];
        if (c.relu) sum = std::max<int64_t>(sum, 0);
        if (c.residual != Residual::kNone) {
          const int64_t height = c.residual_size(0), width = c.residual_size(1);
          const int64_t from = (n * height + y * height / out[0]) * width + x * width / out[1];
          sum += residual[from * c.out_channels + o];
        }
        expected.push_back(static_cast<double>(sum));
      }
    }
  }
};

template <typename T>
Buffer<T> as(const std::vector<int>& numbers) {
  Buffer<T> buffer(static_cast<int64_t>(numbers.size()));
  std::transform(numbers.begin(), numbers.end(), buffer.begin(), rounded<T>);
  return buffer;
}

// An image of float32 in (N, C, H, W) order.
Buffer<float> channels_first(const Case& c, const std::vector<int>& map) {
  Buffer<float> buffer(static_cast<int64_t>(map.size()));
  const int64_t plane = c.height * c.width, channels = c.channels();
  for (size_t i = 0; i < map.size(); ++i) {
    const int64_t channel = i % channels, pixel = i / channels;
    buffer.begin()[(pixel / plane * channels + channel) * plane + pixel % plane] = static_cast<float>(map[i]);
  }
  return buffer;
}

template <typename M>
class Comparison {
 public:
  Comparison(const ConvKernels& kernels, const char* set, const Case& c, const Data& data)
      : kernels_(kernels), set_(set), case_(c), data_(data), weight_(as<float>(data.weight)), bias_(as<float>(data.bias)),
        residual_(as<M>(data.residual)) {
    for (const auto& map : data.maps) {
      if (c.image()) {
        images_.push_back(c.channels_first ? channels_first(c, map) : as<float>(map));
      } else {
        maps_.push_back(as<M>(map));
      }
    }
  }

  void run(Method method) {
    const Case& c = case_;
    const Weight weight{weight_.begin(), c.out_channels, c.channels(), {c.kernel[0], c.kernel[1]}, method};
    Buffer<char> packed(kernels_.packed_size(weight));
    kernels_.pack(weight, packed.begin(), kParallels[packed.size / 64 % 2]);
    for (const Parallel& parallel : kParallels) {
      Buffer<M> out(static_cast<int64_t>(data_.expected.size()));
      const Conv conv = arguments(method, packed.begin(), out.begin());
      Buffer<char> scratch(kernels_.scratch_size(conv, parallel.threads));
      kernels_.conv(conv, scratch.begin(), parallel);
      compare(method, parallel.threads, out);
    }
  }

 private:
  Conv arguments(Method method, const void* packed, M* out) {
    const Case& c = case_;
    Conv conv{};
    conv.count = static_cast<int>(c.sources.size());
    for (int s = 0; s < conv.count; ++s) {
      const void* map = c.image() ? static_cast<const void*>(images_[s].begin()) : maps_[s].begin();
      conv.sources[s] = {map, c.sources[s]};
    }
    conv.batch = c.batch, conv.height = c.height, conv.width = c.width, conv.channels = c.channels();
    const int64_t plane = c.height * c.width;
    if (c.channels_first) {
      std::copy_n(std::vector{c.channels() * plane, plane, c.width, int64_t{1}}.begin(), 4, conv.strides);
    } else {
      std::copy_n(std::vector{c.channels() * plane, int64_t{1}, c.width * c.channels(), c.channels()}.begin(), 4,
                  conv.strides);
    }
    conv.out_channels = c.out_channels, conv.out_height = c.out_size(0), conv.out_width = c.out_size(1);
    std::copy_n(c.kernel, 2, conv.kernel);
    std::copy_n(c.stride, 2, conv.stride);
    std::copy_n(c.padding, 2, conv.padding);
    conv.packed = packed;
    conv.bias = c.bias ? bias_.begin() : nullptr;
    if (c.residual != Residual::kNone) {
      conv.residual = residual_.begin();
      conv.residual_height = c.residual_size(0), conv.residual_width = c.residual_size(1);
    }
    conv.out = out;
    conv.relu = c.relu;
    conv.method = method;
    return conv;
  }

  void compare(Method method, int threads, Buffer<M>& out) const {
    // Of F(4x4): the largest of errors that are sums of as many parts as there are products.
    const double root = std::sqrt(static_cast<double>(case_.channels() * 9));
    const double tolerance = method != Method::kWinograd4 ? 0 : root * (sizeof(M) == 4 ? 1e-4 : 1.0);
    for (int64_t i = 0; i < out.size; ++i) {
      const double got = value(out.begin()[i]), expected = value(rounded<M>(data_.expected[i]));
      if (same(got, expected, tolerance)) continue;
      const std::string what = std::string(set_) + (sizeof(M) == 4 ? ", float32" : ", bfloat16") + ", method " +
                               std::to_string(static_cast<int>(method)) + ", " + std::to_string(threads) +
                               " threads, " + case_.words();
      return check(false, what.c_str(), i, got, expected);
    }
  }

  const ConvKernels& kernels_;
  const char* set_;
  const Case& case_;
  const Data& data_;
  Buffer<float> weight_, bias_;
  Buffer<M> residual_;
  std::vector<Buffer<M>> maps_;
  std::vector<Buffer<float>> images_;
};

// By every method that can compute it.
void run(const Request& request, const char* set, const Case& c) {
  const Data data(c);
  Comparison<float> single(request.kernels.convs[0], set, c, data);
  Comparison<uint16_t> half(request.kernels.convs[1], set, c, data), mixed(request.kernels.convs[2], set, c, data);
  const bool square = c.kernel[0] == 3 && c.kernel[1] == 3 && c.stride[0] == c.stride[1];
  const bool winograd = square && !c.image() && c.sources.size() == 1 && c.residual == Residual::kNone;
  for (const Method method : {Method::kDirect, Method::kWinograd2, Method::kWinograd4,
                              Method::kWinogradStrided}) {
    const int64_t stride = method == Method::kWinogradStrided ? 2 : 1;
    if (method >= Method::kWinograd2 && !(winograd && c.stride[0] == stride)) continue;
    single.run(method);
    half.run(method);
    mixed.run(method);
  }
}

// ---- Cases

// As VoVNet and its detectors have them, on small maps; and what lies at the ends of a kernel's loops.
std::vector<Case> chosen_cases() {
  std::vector<Case> cases = {
      {{3}, 2, 11, 14, 64, {3, 3}, {2, 2}, {1, 1}},                                       // the stem
      {{64}, 1, 9, 9, 128, {3, 3}, {2, 2}, {1, 1}},
      {{128, 80, 80, 80, 80, 80}, 1, 5, 7, 96, {1, 1}, {1, 1}, {0, 0}},                   // an aggregation
      {{33, 7, 70, 1}, 2, 5, 5, 40, {1, 1}, {1, 1}, {0, 0}, true, true, Residual::kSame},
      {{40, 24, 8}, 1, 6, 5, 33, {3, 3}, {1, 1}, {1, 1}, true, true, Residual::kSame},    // through several sources
      {std::vector<int64_t>(kMaxSources, 5), 1, 4, 4, 20, {1, 1}, {1, 1}, {0, 0}},
      {{64}, 1, 8, 12, 32, {1, 1}, {1, 1}, {0, 0}, true, false, Residual::kSmaller},      // a pyramid's way down
      {{64}, 1, 7, 13, 32, {1, 1}, {1, 1}, {0, 0}, true, false, Residual::kSmaller},
      {{32}, 2, 1, 1, 15, {1, 1}, {1, 1}, {0, 0}, false, false},                          // a predictor
      {{16}, 3, 1, 1, 17, {3, 3}, {1, 1}, {1, 1}},
      {{64}, 5, 7, 7, 48, {7, 7}, {1, 1}, {0, 0}},                                        // a linear layer
      {{15}, 1, 17, 16, 8, {13, 13}, {1, 1}, {6, 6}},                                     // a long row of an image
      {{24}, 1, 1, 9, 24, {3, 3}, {1, 1}, {1, 1}},
      {{24}, 1, 9, 1, 24, {3, 3}, {1, 1}, {1, 1}},
      {{24}, 1, 6, 7, 24, {3, 3}, {1, 1}, {0, 2}},
      {{24}, 1, 9, 9, 24, {3, 3}, {1, 1}, {5, 4}},                                        // tiles of padding alone
      {{24}, 1, 9, 9, 24, {3, 3}, {2, 2}, {8, 9}},
      {{24}, 2, 1, 1, 24, {3, 3}, {2, 2}, {1, 1}},
      {{24}, 1, 6, 7, 24, {3, 3}, {2, 2}, {0, 2}},
      {{16}, 1, 3, 4, 8, {3, 2}, {2, 1}, {0, 1}},
      {{32}, 1, 9, 8, 16, {1, 1}, {2, 2}, {0, 0}},
      {{20}, 1, 9, 8, 16, {5, 5}, {3, 2}, {2, 2}},
      {{32}, 1, 7, 7, 224, {3, 3}, {1, 1}, {1, 1}},                                       // threads share few tiles
      {{40}, 1, 12, 11, 200, {3, 3}, {1, 1}, {1, 1}},
  };
  // Rows and tiles from one to beyond a thread's strip.
  for (int64_t width = 1; width <= 60; width += 1 + width / 8) {
    cases.push_back({{32}, 1, 4, width, 8 * (1 + width % 5), {3, 3}, {1, 1}, {1, 1}});
    cases.push_back({{32}, 1, 4, 3 * width, 8 * (1 + width % 5), {3, 3}, {2, 2}, {1, 1}});
    cases.push_back({{48}, 1, 1, width, 16 + width % 32, {1, 1}, {1, 1}, {0, 0}});
  }
  // Output channels around a panel of each instruction set; channels around a block.
  for (const int64_t channels : {16, 17, 31, 32, 33, 48, 63, 64, 65, 80}) {
    for (const int64_t out_channels : {1, 7, 8, 9, 15, 16, 17, 31, 32, 33}) {
      cases.push_back({{channels}, 1, 3, 4, out_channels, {3, 3}, {1, 1}, {1, 1}});
    }
  }
  return cases;
}

Case random_case() {
  Case c{{}, draw_int(1, 4), 0, 0, draw_int(1, 81), {}, {}, {}};
  const int64_t sizes[] = {1, 1, 3, 3, 3, 5, 7};
  for (int axis = 0; axis < 2; ++axis) {
    c.kernel[axis] = axis == 1 && draw_int(0, 4) > 0 ? c.kernel[0] : sizes[draw_int(0, 7)];
    c.stride[axis] = axis == 1 && draw_int(0, 4) > 0 ? c.stride[0] : draw_int(1, 3);
    c.padding[axis] = draw_int(0, 3) > 0 ? c.kernel[axis] / 2 : draw_int(0, 4);
    (axis == 0 ? c.height : c.width) = std::max<int64_t>(draw_int(1, 20), c.kernel[axis] - 2 * c.padding[axis]);
  }
  const bool image = draw_int(0, 5) == 0;
  const int64_t count = image || draw_int(0, 2) ? 1 : draw_int(2, 7);
  for (int64_t s = 0; s < count; ++s) c.sources.push_back(image ? draw_int(1, 16) : draw_int(1, 81));
  if (!image && c.image()) c.sources.back() = 16;
  c.channels_first = image && draw_int(0, 2);
  c.bias = draw_int(0, 2), c.relu = draw_int(0, 2);
  c.residual = draw_int(0, 2) ? Residual::kNone : draw_int(0, 2) ? Residual::kSame : Residual::kSmaller;
  return c;
}

// Maps that go past the caches, and products so long that they are summed in parts.
std::vector<Case> large_cases() {
  return {
      {{48, 16}, 1, 128, 132, 64, {1, 1}, {1, 1}, {0, 0}, true, true, Residual::kSame},
      {{16}, 2, 93, 94, 128, {3, 3}, {1, 1}, {1, 1}},
      {{3}, 1, 260, 262, 64, {3, 3}, {2, 2}, {1, 1}, true, true, Residual::kNone, true},
      {{256}, 40, 7, 7, 20, {7, 7}, {1, 1}, {0, 0}},
      {{1248}, 1, 7, 8, 24, {3, 3}, {1, 1}, {1, 1}},
      {{512}, 1, 13, 13, 400, {3, 3}, {1, 1}, {1, 1}},
  };
}

}  // namespace

int main(int count, char** words) {
  const Request request(count, words);
  for (const Case& c : chosen_cases()) run(request, words[1], c);
  for (int i = 0; i < (request.quick ? 60 : 600); ++i) run(request, words[1], random_case());
  if (!request.quick) {
    for (const Case& c : large_cases()) run(request, words[1], c);
  }
  return finish();
}
