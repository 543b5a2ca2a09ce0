// Matrix registers (AMX): 16 x 16 floats += 16 rows of 32 bfloat16 times 16 rows of 16 pairs of them, in 16 cycles.
//
// The system lends them: tiles_permitted() asks it once. Between its construction and its end a tile_scope holds the registers' shape on
// this thread. Products are added up in float, to the nearest, and denormal numbers count as 0.
#pragma once

#include <heed/config.hpp>

#if defined(__AMX_TILE__) && defined(__AMX_BF16__) && defined(__linux__)
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace heed::inline HEED_ISA {

inline constexpr int tile_rows = 16, tile_row_bytes = 64;

// Rows of a left operand, `stride` bytes apart.
struct tile_operand {
    const void* first;
    index stride;
};

#if defined(__AMX_TILE__) && defined(__AMX_BF16__) && defined(__linux__)
inline bool tiles_permitted() {
    static const bool permitted = [] {
        constexpr long request_permission = 0x1023, tile_data = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
        return syscall(SYS_arch_prctl, request_permission, tile_data) == 0;
    }();
    return permitted;
}

class tile_scope {
public:
    explicit tile_scope(bool wanted) : held_(wanted) {
        if (!held_) return;
        struct alignas(64) {
            unsigned char palette = 1, start_row = 0, reserved[14] = {};
            unsigned short row_bytes[16] = {};
            unsigned char rows[16] = {};
        } shape;
        for (int i = 0; i < 8; ++i) {
            shape.row_bytes[i] = tile_row_bytes;
            shape.rows[i] = tile_rows;
        }
        // The instruction names the first eight bytes of its operand alone, and g++ drops stores to the others.
        asm volatile("" : : "r"(&shape) : "memory");
        _tile_loadconfig(&shape);
    }
    ~tile_scope() {
        if (held_) _tile_release();
    }
    tile_scope(const tile_scope&) = delete;
    tile_scope& operator=(const tile_scope&) = delete;

private:
    bool held_;
};

// C (+)= A B for 16 Rows by 16 Columns: A is one operand for every 16 rows, 64 bytes of each a step; B has 16 rows a step, `b_stride` bytes
// apart, in which 64 bytes belong to 16 columns. Strides of C are floats. A product takes 52 cycles, so four sums are under way.
template <int Rows, int Columns, class Between>
HEED_INLINE void multiply_tiles(const tile_operand (&a)[Rows], const float* b, index b_stride, index steps, float* c, index c_stride,
                                bool add, Between& between) {
    static_assert(Rows * Columns <= 4 && (Columns <= 2 || Columns == 4));
    const index c_bytes = c_stride * static_cast<index>(sizeof(float));
    const auto of_c = [&](int row, int column) { return c + row * tile_rows * c_stride + column * tile_rows; };
    const auto of_a = [&](int row, index i) { return static_cast<const char*>(a[row].first) + i * tile_row_bytes; };
    // The instructions name no memory that the compiler would know of.
    asm volatile("" ::: "memory");
    if (add) {
        _tile_loadd(0, c, c_bytes);
        if constexpr (Columns >= 2) _tile_loadd(1, of_c(0, 1), c_bytes);
        if constexpr (Columns == 4) _tile_loadd(2, of_c(0, 2), c_bytes);
        if constexpr (Columns == 4) _tile_loadd(3, of_c(0, 3), c_bytes);
        if constexpr (Rows >= 2) _tile_loadd(2, of_c(1, 0), c_bytes);
        if constexpr (Rows == 2 && Columns == 2) _tile_loadd(3, of_c(1, 1), c_bytes);
        if constexpr (Rows == 4) _tile_loadd(1, of_c(2, 0), c_bytes);
        if constexpr (Rows == 4) _tile_loadd(3, of_c(3, 0), c_bytes);
    } else {
        _tile_zero(0);
        if constexpr (Columns >= 2 || Rows == 4) _tile_zero(1);
        if constexpr (Rows >= 2 || Columns == 4) _tile_zero(2);
        if constexpr (Rows * Columns == 4) _tile_zero(3);
    }
    for (index i = 0; i < steps; ++i) {
        _tile_loadd(6, b, b_stride);
        _tile_loadd(4, of_a(0, i), a[0].stride);
        _tile_dpbf16ps(0, 4, 6);
        between.step_rows();
        if constexpr (Columns >= 2) {
            _tile_loadd(7, b + tile_rows, b_stride);
            _tile_dpbf16ps(1, 4, 7);
            between.step_rows();
        }
        if constexpr (Columns == 4) {
            _tile_loadd(5, b + 2 * tile_rows, b_stride);
            _tile_dpbf16ps(2, 4, 5);
            between.step_rows();
            _tile_loadd(6, b + 3 * tile_rows, b_stride);
            _tile_dpbf16ps(3, 4, 6);
            between.step_rows();
        }
        if constexpr (Rows >= 2) {
            _tile_loadd(5, of_a(1, i), a[1].stride);
            _tile_dpbf16ps(2, 5, 6);
            between.step_rows();
        }
        if constexpr (Rows == 2 && Columns == 2) {
            _tile_dpbf16ps(3, 5, 7);
            between.step_rows();
        }
        if constexpr (Rows == 4) {
            _tile_loadd(7, of_a(2, i), a[2].stride);
            _tile_dpbf16ps(1, 7, 6);
            between.step_rows();
            _tile_loadd(4, of_a(3, i), a[3].stride);
            _tile_dpbf16ps(3, 4, 6);
            between.step_rows();
        }
        b += tile_rows * b_stride / static_cast<index>(sizeof(float));
    }
    _tile_stored(0, c, c_bytes);
    if constexpr (Columns >= 2) _tile_stored(1, of_c(0, 1), c_bytes);
    if constexpr (Columns == 4) {
        _tile_stored(2, of_c(0, 2), c_bytes);
        _tile_stored(3, of_c(0, 3), c_bytes);
    }
    if constexpr (Rows >= 2) _tile_stored(2, of_c(1, 0), c_bytes);
    if constexpr (Rows == 2 && Columns == 2) _tile_stored(3, of_c(1, 1), c_bytes);
    if constexpr (Rows == 4) {
        _tile_stored(1, of_c(2, 0), c_bytes);
        _tile_stored(3, of_c(3, 0), c_bytes);
    }
    asm volatile("" ::: "memory");
}
#else
inline bool tiles_permitted() { return false; }
struct tile_scope {
    explicit tile_scope(bool) {}
};
#endif

}  // namespace heed::inline HEED_ISA
