// Small dense products of a test-time memory, row by row: W x, W^T u and what lies between them.
//
// A weight matrix lies in the state as rows, outputs first; `map` turns what is stored into the weight (the identity, or exp). Loops are
// written once for vectors and for the elements left over: f(i, std::type_identity<S>) with S a pack or a number.
#pragma once

#include <heed/kernel/vexp.hpp>
#include <heed/simd.hpp>
#include <heed/tensor/view.hpp>

#include <algorithm>
#include <array>
#include <cmath>
#include <memory>
#include <type_traits>

namespace heed::inline HEED_ISA {

namespace memories {

// One weight matrix in a state.
template <class T>
struct matrix {
    T* data = nullptr;
    index rows = 0, columns = 0, stride = 0;
    HEED_INLINE T* row(index i) const { return data + i * stride; }
    operator matrix<const T>() const { return {data, rows, columns, stride}; }
};

// A gate at one token: one number, or one a row of the weights.
template <class T>
struct row_gate {
    const T* at;
    index step;
    HEED_INLINE T operator()(index i) const { return at[i * step]; }
};

template <class S, class T>
HEED_INLINE S get(const T* p) {
    if constexpr (is_pack<S>)
        return S::load(p);
    else
        return *p;
}
template <class S, class T>
HEED_INLINE void put(T* p, const S& x) {
    if constexpr (is_pack<S>)
        x.store(p);
    else
        *p = x;
}
template <class S>
HEED_INLINE S multiply_add(const S& a, const S& b, const S& c) {
    if constexpr (is_pack<S>)
        return fma(a, b, c);
    else
        return a * b + c;
}
template <class S, class T>
HEED_INLINE S get(const row_gate<T>& g, index i) {
    return g.step == 0 ? S(*g.at) : get<S>(g.at + i);
}
template <class S>
HEED_NOINLINE S any_power(const S& x, double e) {
    const S y = exp2(log2(x) * S(e));
    return e < 0 ? select(x == S(0), S(0), y) : y;
}
// x^e for x >= 0; 0 to a negative power, a pole of a derivative, counts as 0.
template <class S>
HEED_INLINE S power(const S& x, double e) {
    if (e == 0) return S(1);
    if (e == 1) return x;
    if (e == 2) return x * x;
    if (e == 3) return x * x * x;
    if (e == 4) return (x * x) * (x * x);
    return any_power(x, e);
}
template <class S>
HEED_INLINE S sign(const S& x) {
    return select(x > S(0), S(1), select(x < S(0), S(-1), x));
}

template <class T, class F>
HEED_INLINE void sweep(index n, F&& f) {
    constexpr int lanes = pack<T>::lanes;
    index i = 0;
    for (; i + lanes <= n; i += lanes) f(i, std::type_identity<pack<T>>{});
    for (; i < n; ++i) f(i, std::type_identity<T>{});
}
// f(i, S) for N sums at once: `f` returns an array of N terms.
template <std::size_t N, class T, class F>
HEED_INLINE std::array<T, N> sums(index n, F&& f) {
    using P = pack<T>;
    std::array<P, N> many;
    many.fill(P(0));
    std::array<T, N> total{};
    index i = 0;
    for (; i + P::lanes <= n; i += P::lanes) f(i, many);
    for (; i < n; ++i) f(i, total);
    for (std::size_t j = 0; j < N; ++j) total[j] += sum(many[j]);
    return total;
}
template <class T>
HEED_INLINE T dot(const T* a, const T* b, index n) {
    return sums<1, T>(n, [&]<class S>(index i, std::array<S, 1>& s) { s[0] = multiply_add(get<S>(a + i), get<S>(b + i), s[0]); })[0];
}
template <class T>
HEED_INLINE void add_scaled(T factor, const T* x, T* to, index n) {
    sweep<T>(n, [&]<class S>(index i, std::type_identity<S>) { put(to + i, multiply_add(S(factor), get<S>(x + i), get<S>(to + i))); });
}
template <class T>
HEED_INLINE void zero(T* to, index n) {
    std::fill_n(to, n, T{0});
}

struct as_stored {
    template <class S>
    HEED_INLINE S operator()(const S& x) const {
        return x;
    }
};

template <std::size_t N, class T, class Map>
HEED_INLINE void products_of_rows(const matrix<const T>& a, index row, const T* x, T* y, const Map& map) {
    const T* from = a.row(row);
    const auto total = sums<N, T>(a.columns, [&]<class S>(index j, std::array<S, N>& s) {
        const S xj = get<S>(x + j);
        for (std::size_t r = 0; r < N; ++r) {
            S& at = s[r];
            at = multiply_add(map(get<S>(from + static_cast<index>(r) * a.stride + j)), xj, at);
        }
    });
    std::copy(total.begin(), total.end(), y + row);
}
// y = map(A) x
template <class T, class Map>
HEED_NOINLINE void times(const matrix<const T>& a, const T* x, T* y, const Map& map) {
    index i = 0;
    for (; i + 8 <= a.rows; i += 8) products_of_rows<8>(a, i, x, y, map);
    for (; i < a.rows; ++i) products_of_rows<1>(a, i, x, y, map);
}
template <std::size_t N, class T, class Map>
HEED_INLINE void add_rows(const matrix<const T>& a, index row, const T* u, T* y, const Map& map) {
    const T* from = a.row(row);
    sweep<T>(a.columns, [&]<class S>(index j, std::type_identity<S>) {
        S s = get<S>(y + j);
        for (index r = 0; r < static_cast<index>(N); ++r) s = multiply_add(S(u[row + r]), map(get<S>(from + r * a.stride + j)), s);
        put(y + j, s);
    });
}
// y = map(A)^T u
template <class T, class Map>
HEED_NOINLINE void transposed_times(const matrix<const T>& a, const T* u, T* y, const Map& map) {
    zero(y, a.columns);
    index i = 0;
    for (; i + 8 <= a.rows; i += 8) add_rows<8>(a, i, u, y, map);
    for (; i < a.rows; ++i) add_rows<1>(a, i, u, y, map);
}

// Arrays one after the other.
template <class T>
class shelf {
public:
    explicit shelf(T* data) : next_(data) {}
    T* take(index n) {
        T* p = next_;
        next_ += room(n);
        return p;
    }
    static constexpr index room(index n) { return (n + 15) / 16 * 16; }

private:
    T* next_;
};
// What one token needs beside the state: on the stack, unless it is long.
template <class T>
class desk {
public:
    explicit desk(index n) : far_(n > most ? new T[static_cast<std::size_t>(n)] : nullptr) {}
    T* data() { return far_ ? far_.get() : near_; }

private:
    static constexpr index most = 8192;
    std::unique_ptr<T[]> far_;
    alignas(64) T near_[most];
};

}  // namespace memories

}  // namespace heed::inline HEED_ISA
