// Where many tensors lie in memory and of what kind they are, read in one call through DLPack's exchange interface.

#include <cstddef>
#include <cstdint>
#include <vector>

// Parts of dlpack.h, major version 1.
struct DLTensor {
  void* data;
  int32_t device_type, device_id;
  int32_t ndim;
  uint8_t dtype_code, dtype_bits;
  uint16_t dtype_lanes;
  int64_t *sizes, *strides;
  uint64_t byte_offset;
};

struct DLPackExchangeAPI {
  uint32_t major, minor;
  void *previous, *allocate, *managed_from_object, *managed_to_object;
  int (*tensor_from_object)(void* object, DLTensor* tensor);  // not 0: the interpreter's error is set
};

extern "C" {

// Of the interpreter that loads this.
ptrdiff_t PyList_Size(void* list);
void* PyList_GetItem(void* list, ptrdiff_t index);  // borrowed
void* PyBytes_FromStringAndSize(const char* from, ptrdiff_t size);

// Bytes that are equal for lists of tensors of equal address, dtype, device, sizes and strides; items may be `none`. Null
// with the interpreter's error set if DLPack cannot describe one.
void* tensor_places(const DLPackExchangeAPI* dlpack, void* list, const void* none) {
  const ptrdiff_t count = PyList_Size(list);
  if (count < 0) return nullptr;  // no list
  std::vector<int64_t> places;
  places.reserve(count * 8);
  for (ptrdiff_t i = 0; i < count; ++i) {
    void* object = PyList_GetItem(list, i);
    if (object == none) {
      places.push_back(-1);  // the number of dimensions of nothing
      continue;
    }
    DLTensor tensor;
    if (dlpack->tensor_from_object(object, &tensor) != 0) return nullptr;
    const int64_t dtype = tensor.dtype_code | int64_t(tensor.dtype_bits) << 8;
    const int64_t device = tensor.device_type | int64_t(tensor.device_id) << 16;
    places.insert(places.end(), {tensor.ndim, int64_t(tensor.data) + int64_t(tensor.byte_offset), dtype | device << 16});
    places.insert(places.end(), tensor.sizes, tensor.sizes + tensor.ndim);
    places.insert(places.end(), tensor.strides, tensor.strides + tensor.ndim);
  }
  return PyBytes_FromStringAndSize(reinterpret_cast<const char*>(places.data()), places.size() * sizeof(int64_t));
}

}  // extern "C"
