// A pretend accelerator for machines without one: its tensors live apart from the CPU's, the CPU does the arithmetic,
// and an operation that mixes the two fails, as it does on a GPU. It refuses what Apple's GPUs refuse. It registers
// PyTorch's backend for devices of one's own (PrivateUse1); tests/device/pretend.py builds and loads it.
#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <ATen/EmptyTensor.h>
#include <ATen/detail/PrivateUse1HooksInterface.h>
#include <ATen/native/CPUFallback.h>
#include <ATen/native/Resize.h>
#include <ATen/native/TensorFactories.h>
#include <ATen/ops/_reshape_alias_native.h>
#include <ATen/ops/as_strided_native.h>
#include <ATen/ops/resize_native.h>
#include <ATen/ops/set_native.h>
#include <ATen/ops/unfold_native.h>
#include <ATen/ops/view_native.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <c10/core/impl/alloc_cpu.h>
#include <torch/library.h>

#include <algorithm>
#include <cstdint>
#include <mutex>
#include <unordered_map>
#include <unordered_set>

namespace {

using at::IntArrayRef;
using at::Tensor;
using OptionalTensor = std::optional<Tensor>;

constexpr auto kPretend = c10::DeviceType::PrivateUse1;
const c10::Device kDevice(kPretend, 0);
const c10::DispatchKeySet kKeys(c10::DispatchKey::PrivateUse1);

// ---- memory ----

// What is taken, and what was taken at most. Above the limit memory is out, as on a GPU.
struct Memory {
  std::mutex lock;
  std::unordered_map<void*, size_t> sizes;
  size_t now = 0, peak = 0, limit = SIZE_MAX;
};
Memory& memory() {
  static Memory* found = new Memory;  // outlives every tensor
  return *found;
}

void give_back(void* data) {
  {
    std::lock_guard<std::mutex> guard(memory().lock);
    auto entry = memory().sizes.find(data);
    if (entry != memory().sizes.end()) {
      memory().now -= entry->second;
      memory().sizes.erase(entry);
    }
  }
  c10::free_cpu(data);
}

struct Allocator final : at::Allocator {
  at::DataPtr allocate(size_t bytes) override {
    if (!bytes) return {nullptr, nullptr, &give_back, kDevice};
    std::lock_guard<std::mutex> guard(memory().lock);
    TORCH_CHECK_WITH(OutOfMemoryError, memory().now + bytes <= memory().limit,
                     "the pretend device is out of memory: ", memory().now, " bytes are taken, ", bytes, " were asked for");
    void* data = c10::alloc_cpu(bytes);
    memory().sizes[data] = bytes;
    memory().now += bytes;
    memory().peak = std::max(memory().peak, memory().now);
    return {data, data, &give_back, kDevice};
  }
  at::DeleterFnPtr raw_deleter() const override { return &give_back; }
  void copy_data(void* to, const void* from, size_t bytes) const override { default_copy_data(to, from, bytes); }
};
Allocator allocator;
REGISTER_ALLOCATOR(kPretend, &allocator);

struct Hooks final : at::PrivateUse1HooksInterface {
  bool hasPrimaryContext(c10::DeviceIndex) const override { return true; }
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  at::Generator getNewGenerator(c10::DeviceIndex) const override { return at::detail::createCPUGenerator(); }
  void resizePrivateUse1Bytes(const c10::Storage& storage, size_t bytes) const override {
    auto* impl = storage.unsafeGetStorageImpl();
    auto fresh = allocator.allocate(bytes);
    if (impl->nbytes() && bytes) memcpy(fresh.mutable_get(), impl->data(), std::min(bytes, impl->nbytes()));
    impl->set_data_ptr_noswap(std::move(fresh));
    impl->set_nbytes(bytes);
  }
};
Hooks hooks;

// ---- one device, one stream, nothing to wait for ----

struct Guard final : c10::impl::DeviceGuardImplInterface {
  using Device = c10::Device;
  using Stream = c10::Stream;
  static Stream stream() { return Stream(Stream::DEFAULT, kDevice); }

  c10::DeviceType type() const override { return kPretend; }
  Device exchangeDevice(Device) const override { return kDevice; }
  Device getDevice() const override { return kDevice; }
  void setDevice(Device) const override {}
  void uncheckedSetDevice(Device) const noexcept override {}
  Stream getStream(Device) const override { return stream(); }
  Stream getDefaultStream(Device) const override { return stream(); }
  Stream getNewStream(Device, int) const override { return stream(); }
  Stream getStreamFromGlobalPool(Device, bool) const override { return stream(); }
  Stream exchangeStream(Stream) const override { return stream(); }
  c10::DeviceIndex deviceCount() const noexcept override { return 1; }
  void record(void** event, const Stream&, c10::DeviceIndex, c10::EventFlag) const override { *event = event; }
  void block(void*, const Stream&) const override {}
  bool queryEvent(void*) const override { return true; }
  void destroyEvent(void*, c10::DeviceIndex) const noexcept override {}
  bool queryStream(const Stream&) const override { return true; }
  void synchronizeStream(const Stream&) const override {}
  void synchronizeEvent(void*) const override {}
  void synchronizeDevice(c10::DeviceIndex) const override {}
  void recordDataPtrOnStream(const c10::DataPtr&, const Stream&) const override {}
};
C10_REGISTER_GUARD_IMPL(PrivateUse1, Guard);

// ---- the operations that every backend brings ----

at::ScalarType known(std::optional<at::ScalarType> type) {
  TORCH_CHECK(type != at::kDouble, "the pretend device knows no float64, like Apple's GPUs");
  return c10::dtype_or_default(type);
}

Tensor empty(IntArrayRef size, std::optional<at::ScalarType> type, std::optional<at::Layout>,
             std::optional<at::Device>, std::optional<bool>, std::optional<at::MemoryFormat> format) {
  return at::detail::empty_generic(size, &allocator, kKeys, known(type), format);
}

Tensor empty_strided(IntArrayRef size, IntArrayRef stride, std::optional<at::ScalarType> type,
                     std::optional<at::Layout>, std::optional<at::Device>, std::optional<bool>) {
  return at::detail::empty_strided_generic(size, stride, &allocator, kKeys, known(type));
}

bool pretends(const Tensor& tensor) { return tensor.device().type() == kPretend; }

// The same memory as a tensor of the CPU.
Tensor on_cpu(const Tensor& tensor) {
  return pretends(tensor) ? at::from_blob(tensor.data_ptr(), tensor.sizes(), tensor.strides(),
                                          at::TensorOptions().dtype(tensor.dtype()))
                          : tensor;
}

Tensor copy_from(const Tensor& from, const Tensor& to, bool) {
  on_cpu(to).copy_(on_cpu(from));
  return to;
}

Tensor copy_from_and_resize(const Tensor& from, const Tensor& to) {
  at::native::resize_(to, from.sizes(), std::nullopt);
  return copy_from(from, to, false);
}

at::Scalar item(const Tensor& tensor) { return on_cpu(tensor).item(); }

Tensor& set_part(Tensor& tensor, at::Storage source, int64_t offset, IntArrayRef size, IntArrayRef stride) {
  return at::native::set_storage_cpu_(tensor, source, offset, size, stride);
}

Tensor& set_whole(Tensor& tensor, at::Storage source) {
  int64_t count = source.nbytes() / tensor.dtype().itemsize();
  return at::native::set_storage_cpu_(tensor, source, 0, {count}, {1});
}

// ---- everything else: the CPU's arithmetic, after a look at where the operands are ----

// Numbers (tensors without dimensions) may come from the CPU, and so may indices.
void check_together(const std::string& name, at::ArrayRef<Tensor> tensors) {
  bool here = false;
  std::string elsewhere;
  for (const Tensor& tensor : tensors) {
    if (!tensor.defined()) continue;
    if (pretends(tensor)) here = true;
    else if (tensor.dim() > 0) elsewhere += c10::str(" ", tensor.toString(), tensor.sizes());
  }
  TORCH_CHECK(!here || elsewhere.empty(), name, " mixes tensors of the pretend device with tensors of the CPU:",
              elsewhere);
}

// What Apple's GPUs refuse, or refused with a torch that people still have (see inst_core/portable.py): a node needs a
// way round. float64 is refused where a tensor is made.
const std::unordered_set<std::string> kMissing = {
    "aten::_upsample_bilinear2d_aa", "aten::_upsample_bicubic2d_aa",  // before torch 2.8
    "aten::_linalg_eigh", "aten::linalg_eig", "aten::kthvalue", "aten::unique_dim", "aten::grid_sampler_3d",
};

std::vector<int64_t> integers(const c10::IValue& value) {
  if (value.isIntList()) return value.toIntVector();
  std::vector<int64_t> found;
  for (const c10::IValue& item : value.toListRef()) found.push_back(item.toInt());
  return found;
}

void check_available(const std::string& name, at::ArrayRef<c10::IValue> arguments) {
  TORCH_CHECK(!kMissing.count(name), name, " is missing on the pretend device, as on Apple's GPUs");
  if (name.find("adaptive_") != std::string::npos && name.find("backward") == std::string::npos) {
    const Tensor input = arguments[0].toTensor();
    const auto wanted = integers(arguments[1]);
    for (size_t i = 0; i < wanted.size(); i++) {
      int64_t from = input.size(input.dim() - wanted.size() + i);
      TORCH_CHECK(from % wanted[i] == 0, name, " from ", from, " to ", wanted[i], ": the pretend device pools to divisors"
                  " only, as Apple's GPUs");
    }
  }
  if (name == "aten::cumsum" || name == "aten::cumprod")
    TORCH_CHECK(arguments[0].toTensor().scalar_type() != at::kLong, name, " of int64 is missing on the pretend device, as"
                " on Apple's GPUs before macOS 13.3");
}

void anything(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  const std::string& name = op.schema().operator_name().name;
  std::vector<Tensor> tensors;
  const auto arguments = torch::jit::last(*stack, op.schema().arguments().size());
  check_available(name, arguments);
  for (const c10::IValue& value : arguments) {
    if (value.isTensor()) tensors.push_back(value.toTensor());
    if (value.isTensorList())
      for (const Tensor& tensor : value.toTensorVector()) tensors.push_back(tensor);
  }
  if (name.find("aten::index") != 0 && name.find("aten::_index") != 0) check_together(name, tensors);
  at::native::cpu_fallback(op, stack);
}

Tensor convolution(const Tensor& input, const Tensor& weight, const OptionalTensor& bias, IntArrayRef stride,
                   IntArrayRef padding, IntArrayRef dilation, bool transposed, IntArrayRef output_padding,
                   int64_t groups) {
  check_together("convolution", {input, weight, bias.value_or(Tensor())});
  OptionalTensor added = bias && bias->defined() ? OptionalTensor(on_cpu(*bias)) : std::nullopt;
  return at::convolution(on_cpu(input), on_cpu(weight), added, stride, padding, dilation, transposed, output_padding,
                         groups).to(kDevice);
}

std::tuple<Tensor, Tensor, Tensor> convolution_backward(
    const Tensor& gradient, const Tensor& input, const Tensor& weight, IntArrayRef stride, IntArrayRef padding,
    IntArrayRef dilation, bool transposed, IntArrayRef output_padding, int64_t groups, std::array<bool, 3> wanted) {
  check_together("convolution backward", {gradient, input, weight});
  int64_t outputs = gradient.size(1);
  auto [to_input, to_weight, to_bias] =
      at::convolution_backward(on_cpu(gradient), on_cpu(input), on_cpu(weight), IntArrayRef(outputs), stride, padding,
                               dilation, transposed, output_padding, groups, wanted);
  auto back = [](const Tensor& tensor) { return tensor.defined() ? tensor.to(kDevice) : tensor; };
  return {back(to_input), back(to_weight), back(to_bias)};
}

struct AtStart {
  AtStart() { at::RegisterPrivateUse1HooksInterface(&hooks); }
} at_start;

}  // namespace

TORCH_LIBRARY_IMPL(_, PrivateUse1, library) {
  library.fallback(torch::CppFunction::makeFromBoxedFunction<&anything>());
}

TORCH_LIBRARY_IMPL(aten, PrivateUse1, library) {
  library.impl("empty.memory_format", empty);
  library.impl("empty_strided", empty_strided);
  library.impl("as_strided", at::native::as_strided_tensorimpl);
  library.impl("view", at::native::view);
  library.impl("unfold", at::native::unfold);
  library.impl("_reshape_alias", at::native::_reshape_alias);
  library.impl("resize_", at::native::resize_);
  library.impl("set_.source_Storage", set_whole);
  library.impl("set_.source_Storage_storage_offset", set_part);
  library.impl("_copy_from", copy_from);
  library.impl("_copy_from_and_resize", copy_from_and_resize);
  library.impl("_local_scalar_dense", item);
  library.impl("convolution_overrideable", convolution);
  library.impl("convolution_backward_overrideable", convolution_backward);
}

// ---- for tests/device/pretend.py ----

extern "C" {
size_t pretend_now() { return memory().now; }
size_t pretend_peak() { return memory().peak; }
void pretend_start(size_t limit) {
  std::lock_guard<std::mutex> guard(memory().lock);
  memory().peak = memory().now;
  memory().limit = limit ? limit : SIZE_MAX;
}
}
