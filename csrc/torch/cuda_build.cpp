// What the CUDA library was built as. mtlkernels/cuda_library.py reads it in the file, before it loads the library: loading
// registers the kernels.

extern "C" __attribute__((used, visibility("default"))) const char mtlkernels_cuda_build[] =
    "mtlkernels CUDA library " MTLKERNELS_VERSION " for " MTLKERNELS_CUDA_BUILD;
