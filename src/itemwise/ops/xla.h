// Calls from XLA's programs, through the C interface of its foreign functions. XLA's C++ interface
// to the same took three quarters of the time that the kernels take to compile.

#pragma once

#include <cstdint>
#include <cstring>
#include <memory>
#include <utility>

#include "xla/ffi/api/c_api.h"

namespace itemwise::xla {

// Of the oldest jaxlib that Itemwise runs with. Later headers add members behind those used here.
constexpr int API_MINOR = 3;
static_assert(XLA_FFI_API_MAJOR == 0 && XLA_FFI_API_MINOR >= API_MINOR);

typedef XLA_FFI_DataType Type;
constexpr Type F32 = XLA_FFI_DataType_F32, BF16 = XLA_FFI_DataType_BF16;
constexpr Type S8 = XLA_FFI_DataType_S8, S32 = XLA_FFI_DataType_S32, U16 = XLA_FFI_DataType_U16;

// What numbers of a type are in C++; those of bfloat16 are their bits.
template <Type TYPE>
struct NumberOf;
template <>
struct NumberOf<F32> {
  typedef float type;
};
template <>
struct NumberOf<BF16> {
  typedef uint16_t type;
};
template <>
struct NumberOf<U16> {
  typedef uint16_t type;
};
template <>
struct NumberOf<S32> {
  typedef int32_t type;
};
template <Type TYPE>
using Number = typename NumberOf<TYPE>::type;

// Thrown where a call is wrong; the program that called fails with this text.
struct Fault {
  const char* text;
};

template <typename Number>
struct Array {
  Number* data;
  const int64_t* sizes;
  Type type;
};

// The threads of XLA's programs.
class ThreadPool {
 public:
  explicit ThreadPool(const XLA_FFI_CallFrame* frame) : api_(frame->api), ctx_(frame->ctx) {}

  // One where XLA has no pool.
  int64_t num_threads() const {
    int64_t number = 1;
    XLA_FFI_ThreadPool_NumThreads_Args args = {};
    args.struct_size = XLA_FFI_ThreadPool_NumThreads_Args_STRUCT_SIZE;
    args.ctx = ctx_;
    args.num_threads = &number;
    return is_done(api_->XLA_FFI_ThreadPool_NumThreads(&args)) ? number : 1;
  }

  // Runs a task some time; never where XLA refuses.
  template <typename Task>
  void Schedule(Task task) {
    auto kept = std::make_unique<Task>(std::move(task));
    XLA_FFI_ThreadPool_Schedule_Args args = {};
    args.struct_size = XLA_FFI_ThreadPool_Schedule_Args_STRUCT_SIZE;
    args.ctx = ctx_;
    args.task = [](void* data) { (*std::unique_ptr<Task>(static_cast<Task*>(data)))(); };
    args.data = kept.get();
    if (is_done(api_->XLA_FFI_ThreadPool_Schedule(&args))) kept.release();
  }

 private:
  bool is_done(XLA_FFI_Error* error) const {
    if (error == nullptr) return true;
    XLA_FFI_Error_Destroy_Args args = {};
    args.struct_size = XLA_FFI_Error_Destroy_Args_STRUCT_SIZE;
    args.error = error;
    api_->XLA_FFI_Error_Destroy(&args);
    return false;
  }

  const XLA_FFI_Api* api_;
  decltype(XLA_FFI_CallFrame::ctx) ctx_;
};

// What a program calls a kernel with; arrays come in the order of its signature.
class Call {
 public:
  explicit Call(const XLA_FFI_CallFrame* frame) : frame_(frame) {}

  ThreadPool pool() const { return ThreadPool(frame_); }

  // The next argument, of a type and so many axes.
  template <Type TYPE>
  Array<const Number<TYPE>> argument(int64_t rank) {
    const XLA_FFI_Buffer& found = next_argument(rank);
    check_type(found, TYPE);
    return {static_cast<const Number<TYPE>*>(found.data), found.dims, TYPE};
  }
  // The next argument, of any type.
  Array<const void> any_argument(int64_t rank) {
    const XLA_FFI_Buffer& found = next_argument(rank);
    return {found.data, found.dims, found.dtype};
  }
  // The next argument, a number.
  int32_t number() { return *argument<S32>(0).data; }

  // The only result.
  template <Type TYPE>
  Array<Number<TYPE>> result(int64_t rank) const {
    if (next_ != frame_->args.size || frame_->rets.size != 1)
      throw Fault{"another number of arguments or results"};
    const XLA_FFI_Buffer& found = *static_cast<const XLA_FFI_Buffer*>(frame_->rets.rets[0]);
    check_rank(found, rank);
    check_type(found, TYPE);
    return {static_cast<Number<TYPE>*>(found.data), found.dims, TYPE};
  }

  int64_t attribute(const char* name) const {
    const auto& attrs = frame_->attrs;
    for (int64_t i = 0; i < attrs.size; ++i) {
      const XLA_FFI_ByteSpan& found = *attrs.names[i];
      if (found.len != std::strlen(name) || std::memcmp(found.ptr, name, found.len) != 0) continue;
      const auto* scalar = static_cast<const XLA_FFI_Scalar*>(attrs.attrs[i]);
      if (attrs.types[i] == XLA_FFI_AttrType_SCALAR && scalar->dtype == XLA_FFI_DataType_S64)
        return *static_cast<const int64_t*>(scalar->value);
    }
    throw Fault{"an attribute is missing, or no integer"};
  }

 private:
  const XLA_FFI_Buffer& next_argument(int64_t rank) {
    if (next_ >= frame_->args.size) throw Fault{"too few arguments"};
    const auto& found = *static_cast<const XLA_FFI_Buffer*>(frame_->args.args[next_++]);
    check_rank(found, rank);
    return found;
  }
  static void check_rank(const XLA_FFI_Buffer& found, int64_t rank) {
    if (found.rank != rank) throw Fault{"an array has another number of axes"};
  }
  static void check_type(const XLA_FFI_Buffer& found, Type type) {
    if (found.dtype != type) throw Fault{"an array has another type"};
  }

  const XLA_FFI_CallFrame* frame_;
  int64_t next_ = 0;
};

// Answers XLA: what the kernel is when it asks for that, else what `run(call)` makes of a call.
template <typename Run>
XLA_FFI_Error* answer(XLA_FFI_CallFrame* frame, Run run) {
  const auto* asked = frame->extension_start;
  if (asked != nullptr && asked->type == XLA_FFI_Extension_Metadata) {
    XLA_FFI_Metadata& metadata =
        *reinterpret_cast<XLA_FFI_Metadata_Extension*>(frame->extension_start)->metadata;
    metadata.api_version = {XLA_FFI_Api_Version_STRUCT_SIZE, nullptr, XLA_FFI_API_MAJOR, API_MINOR};
    metadata.traits = 0;
    return nullptr;
  }
  try {
    Call call(frame);
    run(call);
    return nullptr;
  } catch (const Fault& fault) {
    XLA_FFI_Error_Create_Args args = {};
    args.struct_size = XLA_FFI_Error_Create_Args_STRUCT_SIZE;
    args.message = fault.text;
    args.errc = XLA_FFI_Error_Code_INVALID_ARGUMENT;
    return frame->api->XLA_FFI_Error_Create(&args);
  }
}

}  // namespace itemwise::xla
