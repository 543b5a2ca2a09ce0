// The two yardsticks of every figure, for the instruction set this translation unit is compiled for.
//
// peak<T>::run: a register-only loop of independent multiply-adds, the FMA peak of one core. microkernel<T>::run: C = A * B with
// operands in L1, the rate the best possible product kernel reaches. Both are inline assembly: g++ 12 spills the same loops in
// intrinsics (67 instead of 227 GF/s), which would make every ratio look too good. Both return the FLOPs done.
#pragma once

#include <heed/config.hpp>

#include "buffer.hpp"

#include <cstddef>
#include <cstdint>
#include <type_traits>

#if !defined(__x86_64__)
#error "the peak loops of the benchmark exist for x86-64 only"
#endif

namespace heed_bench::inline HEED_ISA {

// clang-format off
#define BENCH_CLOBBER_16                                                                                                           \
    "cc", "memory", "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10", "xmm11", "xmm12",      \
        "xmm13", "xmm14", "xmm15"

#if defined(__AVX512F__)

// 4 rows x 4 vectors: 16 accumulators, 4 registers for B, 4 for the broadcasts of A.
struct isa {
    static constexpr const char* name = "AVX-512";
    static constexpr const char* kernel = "4x64";
    static constexpr int vector_bytes = 64, kernel_rows = 4, kernel_vectors = 4, peak_instructions = 48;
    static constexpr double flops_per_lane = 2;
};

#define BENCH_CLOBBER                                                                                                              \
    BENCH_CLOBBER_16, "xmm16", "xmm17", "xmm18", "xmm19", "xmm20", "xmm21", "xmm22", "xmm23", "xmm24", "xmm25", "xmm26", "xmm27",  \
        "xmm28", "xmm29", "xmm30", "xmm31"
#define BENCH_PEAK(type)                                                                                                           \
    ".irp r,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,30,31\n vpxord %%zmm\\r,%%zmm\\r,%%zmm\\r\n .endr\n"      \
    ".p2align 6\n 1:\n"                                                                                                            \
    ".irp twice,0,1\n .irp r,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23\n"                                      \
    "vfmadd231p" type " %%zmm30,%%zmm31,%%zmm\\r\n .endr\n .endr\n dec %[n]\n jnz 1b\n vzeroupper\n"
#define BENCH_ROW(type, address, a, c0, c1, c2, c3)                                                                                \
    "vbroadcasts" type " " address ",%%zmm" a "\n vfmadd231p" type " %%zmm16,%%zmm" a ",%%zmm" c0 "\n vfmadd231p" type             \
    " %%zmm17,%%zmm" a ",%%zmm" c1 "\n vfmadd231p" type " %%zmm18,%%zmm" a ",%%zmm" c2 "\n vfmadd231p" type " %%zmm19,%%zmm" a     \
    ",%%zmm" c3 "\n"
#define BENCH_KERNEL(type)                                                                                                         \
    ".irp r,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15\n vpxord %%zmm\\r,%%zmm\\r,%%zmm\\r\n .endr\n .p2align 6\n 1:\n"                 \
    "vmovaps (%[b]),%%zmm16\n vmovaps 64(%[b]),%%zmm17\n vmovaps 128(%[b]),%%zmm18\n vmovaps 192(%[b]),%%zmm19\n"                  \
    BENCH_ROW(type, "(%[a])", "20", "0", "1", "2", "3") BENCH_ROW(type, "(%[a],%[s])", "21", "4", "5", "6", "7")                   \
    BENCH_ROW(type, "(%[a],%[s],2)", "22", "8", "9", "10", "11") BENCH_ROW(type, "(%[a3])", "23", "12", "13", "14", "15")          \
    "add %[t],%[a]\n add %[t],%[a3]\n add $256,%[b]\n dec %[n]\n jnz 1b\n"                                                         \
    ".irp r,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15\n vmovaps %%zmm\\r,\\r*64(%[c])\n .endr\n vzeroupper\n"

#elif defined(__AVX2__) && defined(__FMA__)

// 6 rows x 2 vectors: 12 accumulators, 2 registers for B, 2 for the broadcasts of A.
struct isa {
    static constexpr const char* name = "AVX2";
    static constexpr const char* kernel = "6x16";
    static constexpr int vector_bytes = 32, kernel_rows = 6, kernel_vectors = 2, peak_instructions = 28;
    static constexpr double flops_per_lane = 2;
};

#define BENCH_CLOBBER BENCH_CLOBBER_16
#define BENCH_PEAK(type)                                                                                                           \
    ".irp r,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15\n vpxor %%ymm\\r,%%ymm\\r,%%ymm\\r\n .endr\n .p2align 6\n 1:\n"                  \
    ".irp twice,0,1\n .irp r,0,1,2,3,4,5,6,7,8,9,10,11,12,13\n"                                                                    \
    "vfmadd231p" type " %%ymm14,%%ymm15,%%ymm\\r\n .endr\n .endr\n dec %[n]\n jnz 1b\n vzeroupper\n"
#define BENCH_ROW(type, address, a, c0, c1)                                                                                        \
    "vbroadcasts" type " " address ",%%ymm" a "\n vfmadd231p" type " %%ymm12,%%ymm" a ",%%ymm" c0 "\n vfmadd231p" type             \
    " %%ymm13,%%ymm" a ",%%ymm" c1 "\n"
#define BENCH_KERNEL(type)                                                                                                         \
    ".irp r,0,1,2,3,4,5,6,7,8,9,10,11\n vpxor %%ymm\\r,%%ymm\\r,%%ymm\\r\n .endr\n .p2align 6\n 1:\n"                              \
    "vmovaps (%[b]),%%ymm12\n vmovaps 32(%[b]),%%ymm13\n" BENCH_ROW(type, "(%[a])", "14", "0", "1")                                \
    BENCH_ROW(type, "(%[a],%[s])", "15", "2", "3") BENCH_ROW(type, "(%[a],%[s],2)", "14", "4", "5")                                \
    BENCH_ROW(type, "(%[a3])", "15", "6", "7") BENCH_ROW(type, "(%[a3],%[s])", "14", "8", "9")                                     \
    BENCH_ROW(type, "(%[a3],%[s],2)", "15", "10", "11")                                                                            \
    "add %[t],%[a]\n add %[t],%[a3]\n add $64,%[b]\n dec %[n]\n jnz 1b\n"                                                          \
    ".irp r,0,1,2,3,4,5,6,7,8,9,10,11\n vmovaps %%ymm\\r,\\r*32(%[c])\n .endr\n vzeroupper\n"

#else

// Without FMA the peak is seven chains of multiplications beside seven of additions.
// 4 rows x 2 vectors: 8 accumulators, 2 registers for B, 2 for the broadcasts of A, 1 for a product.
struct isa {
    static constexpr const char* name = "SSE2";
    static constexpr const char* kernel = "4x8";
    static constexpr int vector_bytes = 16, kernel_rows = 4, kernel_vectors = 2, peak_instructions = 28;
    static constexpr double flops_per_lane = 1;
};

#define BENCH_CLOBBER BENCH_CLOBBER_16
#define BENCH_PEAK(type)                                                                                                           \
    ".irp r,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15\n pxor %%xmm\\r,%%xmm\\r\n .endr\n .p2align 6\n 1:\n"                            \
    ".irp twice,0,1\n .irp r,0,2,4,6,8,10,12\n mulp" type " %%xmm14,%%xmm\\r\n .endr\n"                                            \
    ".irp r,1,3,5,7,9,11,13\n addp" type " %%xmm15,%%xmm\\r\n .endr\n .endr\n dec %[n]\n jnz 1b\n"
#define BENCH_ROW(type, address, a, c0, c1)                                                                                        \
    "movs" type " " address ",%%xmm" a "\n shufp" type " $0,%%xmm" a ",%%xmm" a "\n movaps %%xmm" a ",%%xmm12\n mulp" type         \
    " %%xmm8,%%xmm12\n mulp" type " %%xmm9,%%xmm" a "\n addp" type " %%xmm12,%%xmm" c0 "\n addp" type " %%xmm" a ",%%xmm" c1 "\n"
#define BENCH_KERNEL(type)                                                                                                         \
    ".irp r,0,1,2,3,4,5,6,7\n pxor %%xmm\\r,%%xmm\\r\n .endr\n .p2align 6\n 1:\n movaps (%[b]),%%xmm8\n movaps 16(%[b]),%%xmm9\n"  \
    BENCH_ROW(type, "(%[a])", "10", "0", "1") BENCH_ROW(type, "(%[a],%[s])", "11", "2", "3")                                       \
    BENCH_ROW(type, "(%[a],%[s],2)", "10", "4", "5") BENCH_ROW(type, "(%[a3])", "11", "6", "7")                                    \
    "add %[t],%[a]\n add %[t],%[a3]\n add $32,%[b]\n dec %[n]\n jnz 1b\n"                                                          \
    ".irp r,0,1,2,3,4,5,6,7\n movaps %%xmm\\r,\\r*16(%[c])\n .endr\n"

#endif
// clang-format on

template <class T>
struct peak {
    static double run(std::int64_t iterations) {
        std::int64_t n = iterations;
        if constexpr (std::is_same_v<T, float>)
            asm volatile(BENCH_PEAK("s") : [n] "+r"(n)::BENCH_CLOBBER);
        else
            asm volatile(BENCH_PEAK("d") : [n] "+r"(n)::BENCH_CLOBBER);
        constexpr double lanes = isa::vector_bytes / static_cast<double>(sizeof(T));
        return isa::flops_per_lane * isa::peak_instructions * lanes * static_cast<double>(iterations);
    }
};

template <class T>
class microkernel {
public:
    // 24 KiB of B at 512 bits: A, B and C together stay below a 32 KiB L1.
    static constexpr int rows = isa::kernel_rows, depth = 96, lanes = isa::kernel_vectors * isa::vector_bytes / int{sizeof(T)};

    // C = A * B, calls times; row-major [rows][depth], [depth][lanes] and [rows][lanes].
    double run(std::int64_t calls) {
        for (std::int64_t i = 0; i < calls; ++i) {
            const T* a = a_.data();
            const T* a3 = a + 3 * depth;
            const T* b = b_.data();
            std::int64_t n = depth;
            const std::int64_t stride = depth * int{sizeof(T)};
            if constexpr (std::is_same_v<T, float>)
                asm volatile(BENCH_KERNEL("s")
                             : [a] "+r"(a), [a3] "+r"(a3), [b] "+r"(b), [n] "+r"(n)
                             : [s] "r"(stride), [t] "i"(sizeof(T)), [c] "r"(c_.data())
                             : BENCH_CLOBBER);
            else
                asm volatile(BENCH_KERNEL("d")
                             : [a] "+r"(a), [a3] "+r"(a3), [b] "+r"(b), [n] "+r"(n)
                             : [s] "r"(stride), [t] "i"(sizeof(T)), [c] "r"(c_.data())
                             : BENCH_CLOBBER);
        }
        return 2. * rows * lanes * depth * static_cast<double>(calls);
    }

    T* a() { return a_.data(); }
    T* b() { return b_.data(); }
    const T* c() const { return c_.data(); }

private:
    buffer<T> a_{rows * depth}, b_{depth * lanes}, c_{rows * lanes};
};

#undef BENCH_CLOBBER_16
#undef BENCH_CLOBBER
#undef BENCH_PEAK
#undef BENCH_ROW
#undef BENCH_KERNEL

}  // namespace heed_bench::inline HEED_ISA
