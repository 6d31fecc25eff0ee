// A CUDA runtime that runs nothing and remembers what it was asked to launch, so that the host code of csrc/cuda can be
// called where there is no GPU, on tensors whose elements nobody touches.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <map>
#include <sstream>
#include <string>

namespace {

struct Dim {
  unsigned x, y, z;
};
struct Configuration {
  Dim grid, block;
  size_t shared;
} configuration;

std::map<const void*, std::string>& names() {  // of kernels in machine code, by the functions that stand for them here
  static std::map<const void*, std::string> known;
  return known;
}
std::string launches, answer;

// A line a launch: the kernel's name, blocks, threads of a block, bytes of shared memory asked for at run time.
int remember(const void* kernel, Dim grid, Dim block, size_t shared) {
  std::ostringstream line;
  line << names().at(kernel) << ' ' << size_t{grid.x} * grid.y * grid.z << ' ' << block.x * block.y * block.z << ' '
       << shared << '\n';
  launches += line.str();
  return 0;
}

}  // namespace

extern "C" {

const char* take_launches() {
  answer = std::move(launches);
  launches.clear();
  return answer.c_str();
}

void** __cudaRegisterFatBinary(void*) {
  static void* handle;
  return &handle;
}
void __cudaRegisterFatBinaryEnd(void**) {}
void __cudaUnregisterFatBinary(void**) {}
void __cudaRegisterVar(void**, char*, char*, const char*, int, size_t, int, int) {}
void __cudaRegisterFunction(void**, const char* host, char*, const char* name, int, void*, void*, void*, void*, int*) {
  names()[host] = name;
}

unsigned __cudaPushCallConfiguration(Dim grid, Dim block, size_t shared, void*) {
  configuration = {grid, block, shared};
  return 0;
}
int __cudaPopCallConfiguration(Dim* grid, Dim* block, size_t* shared, void*) {
  *grid = configuration.grid;
  *block = configuration.block;
  *shared = configuration.shared;
  return 0;
}
int __cudaGetKernel(const void** kernel, const void* host) {
  *kernel = host;
  return 0;
}
int __cudaLaunchKernel(const void* kernel, Dim grid, Dim block, void**, size_t shared, void*) {
  return remember(kernel, grid, block, shared);
}
int cudaLaunchKernel(const void* kernel, Dim grid, Dim block, void**, size_t shared, void*) {  // before CUDA 13
  return remember(kernel, grid, block, shared);
}
int cudaMemsetAsync(void*, int, size_t, void*) {
  launches += "memset 1 1 0\n";
  return 0;
}
int cudaMalloc(void** memory, size_t bytes) { return (*memory = std::malloc(bytes)) == nullptr; }
int cudaThreadExchangeStreamCaptureMode(int*) { return 0; }
int cudaGetLastError() { return 0; }
const char* cudaGetErrorString(int) { return ""; }
int cudaStreamIsCapturing(void*, int* status) { return *status = 0; }
int cudaStreamGetId(void*, unsigned long long* id) { return *id = 0; }

int aoti_torch_create_device_guard(int32_t, void** guard) {
  static char one;
  *guard = &one;
  return 0;
}
int aoti_torch_delete_device_guard(void*) { return 0; }
int aoti_torch_get_current_cuda_stream(int32_t, void** stream) {
  *stream = nullptr;
  return 0;
}
}
