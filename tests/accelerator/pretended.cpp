// An accelerator that is none: host memory under the name of another device, for tests without one.
//
// What a kernel computes is what the CPU computes on the same memory, to the last bit. What an
// accelerator refuses is refused: tensors of two devices in one kernel (numbers without dimensions,
// and indices, may lie on the CPU), and random numbers of another device's generator.

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/EmptyTensor.h>
#include <ATen/core/Tensor.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/detail/PrivateUse1HooksInterface.h>
#include <ATen/ops/_reshape_alias_native.h>
#include <ATen/ops/as_strided_native.h>
#include <ATen/ops/convolution.h>
#include <ATen/ops/convolution_backward.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/view_native.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <torch/library.h>

#include <cstdlib>
#include <cstring>
#include <set>
#include <string>
#include <vector>

namespace {

using at::Generator;
using at::Tensor;
using c10::IntArrayRef;
using c10::IValue;
using std::optional;

const c10::Device DEVICE(c10::DeviceType::PrivateUse1, 0);
const c10::DispatchKeySet KEYS(c10::DispatchKey::PrivateUse1);
const c10::Stream STREAM(c10::Stream::DEFAULT, DEVICE);

// -- the device itself ----------------------------------------------------------------------------

struct Memory final : c10::Allocator {
  static void release(void* memory) { std::free(memory); }
  c10::DataPtr allocate(size_t bytes) override {
    void* memory = bytes ? std::aligned_alloc(64, (bytes + 63) / 64 * 64) : nullptr;
    return {memory, memory, &release, DEVICE};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &release; }
  void copy_data(void* to, const void* from, size_t bytes) const override {
    default_copy_data(to, from, bytes);
  }
};
Memory memory;

struct Guard final : c10::impl::DeviceGuardImplInterface {
  c10::DeviceType type() const override { return DEVICE.type(); }
  c10::Device exchangeDevice(c10::Device) const override { return DEVICE; }
  c10::Device getDevice() const override { return DEVICE; }
  void setDevice(c10::Device) const override {}
  void uncheckedSetDevice(c10::Device) const noexcept override {}
  c10::Stream getStream(c10::Device) const noexcept override { return STREAM; }
  c10::Stream getDefaultStream(c10::Device) const override { return STREAM; }
  c10::Stream getNewStream(c10::Device, int) const override { return STREAM; }
  c10::Stream exchangeStream(c10::Stream) const noexcept override { return STREAM; }
  c10::DeviceIndex deviceCount() const noexcept override { return 1; }
  void record(void** event, const c10::Stream&, const c10::DeviceIndex, const c10::EventFlag)
      const override {
    *event = const_cast<c10::Stream*>(&STREAM);  // anything that is not null
  }
  void block(void*, const c10::Stream&) const override {}
  bool queryEvent(void*) const override { return true; }
  void destroyEvent(void*, const c10::DeviceIndex) const noexcept override {}
  bool queryStream(const c10::Stream&) const override { return true; }
  void synchronizeStream(const c10::Stream&) const override {}
  void synchronizeDevice(const c10::DeviceIndex) const override {}
  void synchronizeEvent(void*) const override {}
  void recordDataPtrOnStream(const c10::DataPtr&, const c10::Stream&) const override {}
};
C10_REGISTER_GUARD_IMPL(PrivateUse1, Guard);

struct DeviceGenerator final : c10::GeneratorImpl {
  Generator inner;  // the CPU's, which draws
  explicit DeviceGenerator(Generator drawing)
      : c10::GeneratorImpl(DEVICE, KEYS), inner(std::move(drawing)) {}
  void set_current_seed(uint64_t seed) override { inner.set_current_seed(seed); }
  void set_offset(uint64_t offset) override { inner.set_offset(offset); }
  uint64_t get_offset() const override { return inner.get_offset(); }
  uint64_t current_seed() const override { return inner.current_seed(); }
  uint64_t seed() override { return inner.seed(); }
  void set_state(const c10::TensorImpl& state) override {
    inner.unsafeGetGeneratorImpl()->set_state(state);
  }
  c10::intrusive_ptr<c10::TensorImpl> get_state() const override {
    return inner.unsafeGetGeneratorImpl()->get_state();
  }
  DeviceGenerator* clone_impl() const override { return new DeviceGenerator(inner.clone()); }
};

Generator new_generator() {
  return Generator(c10::make_intrusive<DeviceGenerator>(at::detail::createCPUGenerator()));
}

const Generator& default_generator() {
  static Generator generator = new_generator();
  return generator;
}

Generator drawing_for(const Generator& generator) {
  return static_cast<DeviceGenerator*>(generator.unsafeGetGeneratorImpl())->inner;
}

struct Hooks final : at::PrivateUse1HooksInterface {
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  const Generator& getDefaultGenerator(c10::DeviceIndex) const override {
    return default_generator();
  }
  Generator getNewGenerator(c10::DeviceIndex) const override { return new_generator(); }
  c10::Device getDeviceFromPtr(void*) const override { return DEVICE; }
  bool hasPrimaryContext(c10::DeviceIndex) const override { return true; }
  c10::DeviceIndex deviceCount() const override { return 1; }
  c10::DeviceIndex getCurrentDevice() const override { return 0; }
  void setCurrentDevice(c10::DeviceIndex) const override {}
  c10::DeviceIndex exchangeDevice(c10::DeviceIndex) const override { return 0; }
  c10::DeviceIndex maybeExchangeDevice(c10::DeviceIndex) const override { return 0; }
  c10::Allocator* getPinnedMemoryAllocator() const override {
    return c10::GetAllocator(c10::DeviceType::CPU);
  }
  void resizePrivateUse1Bytes(const c10::Storage& storage, size_t bytes) const override {
    auto larger = memory.allocate(bytes);
    if (storage.nbytes() && bytes) {
      std::memcpy(larger.get(), storage.data(), std::min(bytes, storage.nbytes()));
    }
    storage.unsafeGetStorageImpl()->set_data_ptr_noswap(std::move(larger));
    storage.unsafeGetStorageImpl()->set_nbytes(bytes);
  }
};

// -- kernels: the CPU's, on the same memory -------------------------------------------------------

bool is_ours(const Tensor& tensor) {
  return tensor.defined() && tensor.device().type() == DEVICE.type();
}

Tensor on_cpu(const Tensor& tensor) {  // the same memory
  if (!is_ours(tensor)) return tensor;
  at::AutoDispatchBelowADInplaceOrView below;
  auto options = at::TensorOptions().dtype(tensor.dtype()).device(c10::kCPU);
  return at::for_blob(tensor.data_ptr(), tensor.sizes())
      .strides(tensor.strides())
      .options(options)
      .make_tensor();
}

Tensor empty_strided(
    IntArrayRef size, IntArrayRef stride, optional<at::ScalarType> kind, optional<c10::Layout>,
    optional<c10::Device>, optional<bool>) {
  return at::detail::empty_strided_generic(
      size, stride, &memory, KEYS, c10::dtype_or_default(kind));
}

const Tensor& resize_(
    const Tensor& tensor, IntArrayRef size, optional<c10::MemoryFormat> layout) {
  auto bytes = at::detail::computeStorageNbytesContiguous(
      size, tensor.element_size(), tensor.storage_offset());
  if (bytes > tensor.storage().nbytes()) {
    at::detail::getPrivateUse1Hooks().resizePrivateUse1Bytes(tensor.storage(), bytes);
  }
  tensor.unsafeGetTensorImpl()->set_sizes_contiguous(size);
  if (layout) tensor.unsafeGetTensorImpl()->empty_tensor_restride(*layout);
  return tensor;
}

struct Call {
  std::string name;
  std::vector<std::pair<Tensor, Tensor>> known = {};  // ours, and what the CPU gets for it

  // What a kernel writes and does not read is given empty, and taken over afterwards.
  Tensor in(const Tensor& tensor, bool is_output = false) {
    static const std::set<std::string> INDEXING = {
        "aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_",
        "aten::_unsafe_index", "aten::_unsafe_index_put"};
    if (!tensor.defined()) return tensor;
    if (!is_ours(tensor)) {
      TORCH_CHECK(
          tensor.dim() == 0 || INDEXING.count(name), name, ": a tensor of shape ", tensor.sizes(),
          " lies on ", tensor.device(), ", and others on the pretended device");
      return tensor;
    }
    at::AutoDispatchBelowADInplaceOrView below;
    auto kind = at::TensorOptions().dtype(tensor.dtype()).device(c10::kCPU);
    known.emplace_back(tensor, is_output ? at::empty({0}, kind) : on_cpu(tensor));
    return known.back().second;
  }

  Tensor out(const Tensor& result) const {
    if (!result.defined() || is_ours(result)) return result;
    at::AutoDispatchBelowADInplaceOrView below;
    for (const auto& [tensor, given] : known) {
      if (!result.is_same(given)) continue;
      if (result.sizes() != tensor.sizes()) resize_(tensor, result.sizes(), std::nullopt);
      if (result.data_ptr() != tensor.data_ptr()) on_cpu(tensor).copy_(result);
      return tensor;
    }
    for (const auto& [tensor, given] : known) {
      if (result.storage().data() && result.storage().data() == given.storage().data()) {
        auto offset = tensor.storage_offset() + result.storage_offset();
        return at::native::as_strided_tensorimpl(
            tensor, result.sizes(), result.strides(), offset);
      }
    }
    Tensor made = at::detail::empty_strided_generic(
        result.sizes(), result.strides(), &memory, KEYS, result.scalar_type());
    on_cpu(made).copy_(result);
    return made;
  }

  IValue argument(const IValue& value, const c10::Argument& told) {
    if (value.isTensor()) {
      auto* written = told.alias_info();
      return in(value.toTensor(), told.kwarg_only() && written && written->isWrite());
    }
    if (value.isTensorList()) {
      std::vector<Tensor> all;
      for (const Tensor& tensor : value.toTensorVector()) all.push_back(in(tensor));
      return all;
    }
    if (value.isOptionalTensorList()) {
      c10::List<optional<Tensor>> all;
      for (optional<Tensor> tensor : value.toOptionalTensorList()) {
        all.push_back(tensor ? optional<Tensor>(in(*tensor)) : tensor);
      }
      return all;
    }
    if (value.isDevice() && value.toDevice().type() == DEVICE.type()) {
      return c10::Device(c10::kCPU);
    }
    if (value.isGenerator()) {
      auto generator = value.toGenerator();
      TORCH_CHECK(
          generator.device().type() == DEVICE.type(), name, ": a generator of ",
          generator.device(), " is to draw on the pretended device");
      return drawing_for(generator);
    }
    if (value.isNone() && told.name() == "generator") return drawing_for(default_generator());
    return value;
  }

  IValue result(const IValue& value) const {
    if (value.isTensor()) return out(value.toTensor());
    if (!value.isTensorList()) return value;
    std::vector<Tensor> all;
    for (const Tensor& tensor : value.toTensorVector()) all.push_back(out(tensor));
    return all;
  }
};

void any_kernel(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  const auto& schema = op.schema();
  Call call{schema.name()};
  auto first = stack->size() - schema.arguments().size();
  for (size_t i = first; i < stack->size(); ++i) {
    (*stack)[i] = call.argument((*stack)[i], schema.arguments()[i - first]);
  }
  op.redispatchBoxed(c10::DispatchKeySet(c10::DispatchKey::CPU), stack);
  for (size_t i = stack->size() - schema.returns().size(); i < stack->size(); ++i) {
    (*stack)[i] = call.result((*stack)[i]);
  }
}

// -- kernels that torch has no CPU's for, or that are about memory --------------------------------

Tensor empty(
    IntArrayRef size, optional<at::ScalarType> kind, optional<c10::Layout>, optional<c10::Device>,
    optional<bool>, optional<c10::MemoryFormat> layout) {
  return at::detail::empty_generic(size, &memory, KEYS, c10::dtype_or_default(kind), layout);
}

Tensor as_strided(
    const Tensor& tensor, IntArrayRef size, IntArrayRef stride, optional<int64_t> offset) {
  return at::native::as_strided_tensorimpl(tensor, size, stride, offset);
}

Tensor view(const Tensor& tensor, IntArrayRef size) { return at::native::view(tensor, size); }

Tensor reshape_alias(const Tensor& tensor, IntArrayRef size, IntArrayRef stride) {
  return at::native::_reshape_alias(tensor, size, stride);
}

Tensor copy_from(const Tensor& from, const Tensor& to, bool) {
  on_cpu(to).copy_(on_cpu(from));
  return to;
}

Tensor copy_from_and_resize(const Tensor& from, const Tensor& to) {
  if (to.sizes() != from.sizes()) resize_(to, from.sizes(), std::nullopt);
  return copy_from(from, to, false);
}

Tensor& set_strided(
    Tensor& tensor, c10::Storage storage, int64_t offset, IntArrayRef size, IntArrayRef stride) {
  auto* impl = tensor.unsafeGetTensorImpl();
  impl->set_storage_keep_dtype(std::move(storage));
  impl->set_storage_offset(offset);
  if (stride.size() == size.size()) {
    impl->set_sizes_and_strides(size, stride);
  } else {
    impl->set_sizes_contiguous(size);
  }
  return tensor;
}

Tensor& set_storage(Tensor& tensor, c10::Storage storage) {
  auto count = static_cast<int64_t>(storage.nbytes() / tensor.element_size());
  return set_strided(tensor, std::move(storage), 0, {count}, {1});
}

Tensor& set_tensor(Tensor& tensor, const Tensor& from) {
  return set_strided(
      tensor, from.storage(), from.storage_offset(), from.sizes(), from.strides());
}

Tensor convolution(
    const Tensor& maps, const Tensor& weight, const optional<Tensor>& bias, IntArrayRef stride,
    IntArrayRef padding, IntArrayRef dilation, bool transposed, IntArrayRef output_padding,
    int64_t groups) {
  Call call{"convolution"};
  Tensor seen = call.in(maps), weights = call.in(weight);
  auto added = bias && bias->defined() ? optional<Tensor>(call.in(*bias)) : std::nullopt;
  return call.out(at::convolution(
      seen, weights, added, stride, padding, dilation, transposed, output_padding, groups));
}

std::tuple<Tensor, Tensor, Tensor> convolution_backward(
    const Tensor& gradient, const Tensor& maps, const Tensor& weight, IntArrayRef stride,
    IntArrayRef padding, IntArrayRef dilation, bool transposed, IntArrayRef output_padding,
    int64_t groups, std::array<bool, 3> wanted) {
  Call call{"convolution_backward"};
  std::vector<int64_t> bias = {transposed ? weight.size(1) * groups : weight.size(0)};
  Tensor above = call.in(gradient), seen = call.in(maps), weights = call.in(weight);
  auto [a, b, c] = at::convolution_backward(
      above, seen, weights, IntArrayRef(bias), stride, padding, dilation, transposed,
      output_padding, groups, wanted);
  return {call.out(a), call.out(b), call.out(c)};
}

// -- what Python asks for -------------------------------------------------------------------------

void manual_seed(int64_t seed) {
  Generator generator = default_generator();
  generator.set_current_seed(static_cast<uint64_t>(seed));
}

Tensor rng_state() {
  return Tensor(default_generator().unsafeGetGeneratorImpl()->get_state());
}

void set_rng_state(const Tensor& state) {
  default_generator().unsafeGetGeneratorImpl()->set_state(*state.unsafeGetTensorImpl());
}

const bool REGISTERED = [] {
  static Hooks hooks;
  at::RegisterPrivateUse1HooksInterface(&hooks);
  c10::SetAllocator(DEVICE.type(), &memory);
  return true;
}();

}  // namespace

TORCH_LIBRARY(pretended, m) {
  m.def("manual_seed(int seed) -> ()", manual_seed);
  m.def("rng_state() -> Tensor", rng_state);
  m.def("set_rng_state(Tensor state) -> ()", set_rng_state);
}

TORCH_LIBRARY_IMPL(_, PrivateUse1, m) {
  m.fallback(torch::CppFunction::makeFromBoxedFunction<&any_kernel>());
}

TORCH_LIBRARY_IMPL(aten, PrivateUse1, m) {
  m.impl("empty.memory_format", empty);
  m.impl("empty_strided", empty_strided);
  m.impl("as_strided", as_strided);
  m.impl("view", view);
  m.impl("_reshape_alias", reshape_alias);
  m.impl("_copy_from", copy_from);
  m.impl("_copy_from_and_resize", copy_from_and_resize);
  m.impl("resize_", resize_);
  m.impl("set_.source_Storage", set_storage);
  m.impl("set_.source_Storage_storage_offset", set_strided);
  m.impl("set_.source_Tensor", set_tensor);
  m.impl("convolution_overrideable", convolution);
  m.impl("convolution_backward_overrideable", convolution_backward);
}
