// One instruction set's kernels: the body of kernels_*.cpp, which define the set's name, vector width and level.

namespace mtlkernels::cpu {
namespace MTLKERNELS_SET {
namespace {

#include "simd.inl"

#include "gram.inl"

#include "combine.inl"

#include "graddrop.inl"

#include "trimmed.inl"

#include "track.inl"

constexpr Kernels kTable = {MTLKERNELS_SET_NAME,
                            {gram<float>, gram<double>, gram<BFloat16>, gram<Float16>},
                            {combine<float>, combine<double>, combine<BFloat16>, combine<Float16>},
                            {combine<float>, nullptr, combine<BFloat16, float>, combine<Float16, float>},
                            {graddrop<float>, graddrop<double>, graddrop<BFloat16>, graddrop<Float16>},
                            {trimmed_mean<float>, trimmed_mean<double>, trimmed_mean<BFloat16>, trimmed_mean<Float16>},
                            {track<float>, track<double>, track<BFloat16>, track<Float16>},
                            {excess<float>, excess<double>, excess<BFloat16>, excess<Float16>}};

}  // namespace
}  // namespace MTLKERNELS_SET

const Kernels& MTLKERNELS_SET_FUNCTION() { return MTLKERNELS_SET::kTable; }

}  // namespace mtlkernels::cpu
