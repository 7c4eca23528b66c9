#pragma once

#include <stdint.h>
#include <string.h>

#include <atomic>
#include <new>
#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

#include "core/tensor_ref.h"
#include "core/view.h"
#include "cpu/tier.h"
#include "folds/sequence.h"

// Every op is declared once, by the function that reads its operands in order (diffusion.cpp, folds.cpp): run to
// describe, it gives the schema and the list that Python words errors, makes shapes and raises versions by; run for the
// options (numbers, texts, lists of numbers), what a prepared call keeps; run for the tensors, the kernel's arguments
// or what is wrong. The front ends, csrc/torch and csrc/python, say through a Source what each operand is, make the
// results, and launch. Nothing here knows torch or Python, or whose memory it is.
namespace pyfold::ops {

enum class Kind : uint8_t {
  kState,  // the floating dtype of the first such operand, and its shape where samples are meant
  kLower,  // the same, or bfloat16 or float16 beside float32
  // From here on tensors lie in order, without gaps.
  kAccumulation,  // float64 beside float64, else float32, to which front ends convert
  kTable,         // float64
  kIntegers,      // int64
  kSeeds,         // int64 [B], or keys, uint64 [B, 2]
  kBits,          // uint8
  kInt,
  kFloat,
  kBool,
  kInts,
  kFloats,
  kText,
};
constexpr unsigned kOptional = 1, kWritten = 2, kList = 4;

struct Operand {
  const char* name;
  Kind kind;
  unsigned flags;
};

// What is wrong with an operand, by the name that Python words.
struct Wrong {
  static constexpr const char* kType = "type";              // no tensor, number, ...
  static constexpr const char* kUnreadable = "unreadable";  // a tensor that is not plain memory
  static constexpr const char* kDtype = "dtype";
  static constexpr const char* kShape = "shape";
  static constexpr const char* kDevice = "device";
  static constexpr const char* kBatch = "batch";  // no batch dimension, or too many others
  static constexpr const char* kCount = "count";  // too few or too many in a list
  static constexpr const char* kRange = "range";  // a number, or a choice
  static constexpr const char* kWindow = "window";
  static constexpr const char* kLayout = "layout";             // not in order, or not dense
  static constexpr const char* kUnits = "units";               // units or groups do not divide the channels
  static constexpr const char* kSelfOverlap = "self_overlap";  // an output's elements share memory
  static constexpr const char* kOverlap = "overlap";  // an output shares memory with another operand, one by another
  static constexpr const char* kProgram = "program";
  static constexpr const char* kGradient = "gradient";  // an output that requires a gradient
};

struct Error {
  const char* code = nullptr;  // where nothing is wrong
  const char* operand = "";
  int item = -1;          // in a list
  const char* text = "";  // of a program
};

// What a front end makes before the launch: a tensor of its own with these strides, whose address goes to *slot.
struct Result {
  Element type;
  int ndim;
  int like;  // an operand that has the same dtype, sizes and strides, or -1
  int64_t sizes[kMostDims], strides[kMostDims];
  void** slot;  // null: it stays empty

  void in_order_of(const TensorRef& like);  // strides for its sizes, without gaps
  TensorRef tensor() const { return {nullptr, type, 0, 0, ndim, sizes, strides}; }
};

// Says what the operands of one call are, by number.
class Source {
 public:
  // kMake: an output that the caller leaves to us, of out.type unless kOther
  enum class Found { kAbsent, kGiven, kMake, kNoTensor, kUnreadable };
  virtual Found tensor(int operand, int item, TensorRef& out) = 0;
  virtual int count(int operand) = 0;  // of a list; negative: no list
  virtual bool integer(int operand, int64_t& out) = 0;
  virtual bool boolean(int operand, bool& out) = 0;
  virtual bool number(int operand, double& out) = 0;
  virtual bool text(int operand, std::string_view& out) = 0;
  virtual int64_t list(int operand, int64_t* out, int64_t limit) = 0;  // the count; negative: no such list
  virtual int64_t list(int operand, double* out, int64_t limit) = 0;

 protected:
  ~Source() = default;
};

// One call, parsed. Its options are an Args in storage, and the window.
struct Call {
  Error error;
  int32_t device_type = 0, device_index = 0;
  int64_t work = 0;   // elements, roughly
  double factor = 1;  // of sums
  bool wide = false;  // whose results are float64
  void* sums = nullptr;
  void* scratch = nullptr;  // of the CUDA kernels' sums
  int result_count = 0, output_count = 0;
  Result results[4];
  const View* outputs[4];  // what is written, of ops on samples
  struct Integers {
    int64_t count = 0, values[kMostDims];
  } offset, global_shape;
  size_t begun = 0;  // bytes
  alignas(16) unsigned char storage[sizeof(SequenceArgs) + 64];

  Call() {}
  // What goes on from the options of a prepared call.
  explicit Call(const Call& prepared) : begun(prepared.begun) {
    memcpy(storage, prepared.storage, begun);
    if (prepared.offset.count + prepared.global_shape.count == 0) return;
    offset = prepared.offset;
    global_shape = prepared.global_shape;
  }

  template <class Args>
  Args& begin() {
    static_assert(sizeof(Args) <= sizeof storage && std::is_trivially_copyable_v<Args>);
    if (begun == 0) new (storage) Args();
    begun = sizeof(Args);
    return as<Args>();
  }
  template <class Args>
  Args& as() {
    return *reinterpret_cast<Args*>(storage);
  }
};

class Parser;

struct Op {
  const char* name;
  void (*read)(Parser& parser, Call& call);
  void (*cpu)(Call& call);
  std::vector<Operand> operands{};
  std::vector<const char*> results{};  // what shape each has, by a name that Python knows

  PYFOLD_EXPORT std::string schema() const;
};

constexpr size_t kOpCount = 12;
PYFOLD_EXPORT const std::vector<Op>& all();
const std::vector<Op>& diffusion_ops();
const std::vector<Op>& fold_ops();

// False where something is wrong. A call reads its options, or goes on from a prepared one's, and then its tensors;
// results are still to be made.
PYFOLD_EXPORT bool read_options(const Op& op, Source& source, Call& call);
PYFOLD_EXPORT bool read_tensors(const Op& op, Source& source, Call& call);
inline bool parse(const Op& op, Source& source, Call& call) {
  return read_options(op, source, call) && read_tensors(op, source, call);
}
// How often either ran in this process.
struct ReadCounts {
  std::atomic<int64_t> options{0}, tensors{0};
};
PYFOLD_EXPORT ReadCounts& read_counts();

// What the CUDA library leaves here when it is loaded.
struct CudaLaunch {
  const char* (*launch)(size_t number, Call& call, void* stream) = nullptr;  // null, or what failed
  int64_t (*scratch)(size_t number, Call& call) = nullptr;                   // float64 values that it needs
};
PYFOLD_EXPORT CudaLaunch& cuda_launch();

}  // namespace pyfold::ops
