// Rows of tokens as a recurrence sees them, and the way back for their gradients.
//
// Sources are read in the call's order; feature map, scale, gates, and the 1 that a normaliser counts with are put on in scratch, and
// where a call has none of these, rows are read in place.
#pragma once

#include <heed/engine/outer_chunk.hpp>
#include <heed/engine/recurrent_problem.hpp>
#include <heed/engine/workspace.hpp>

#include <algorithm>
#include <cmath>
#include <type_traits>

namespace heed::inline HEED_ISA {

template <class Features>
consteval bool maps_features() {
    if constexpr (requires { Features::identity; })
        return !Features::identity;
    else
        return true;
}

template <class Problem>
class token_rows {
public:
    using T = typename Problem::T;
    using P = typename Problem::P;
    using Features = typename Problem::features_type;
    static constexpr bool mapped = maps_features<Features>();
    static constexpr bool key_gated = Problem::key_gate_type::present, value_gated = Problem::value_gate_type::present;

    token_rows(const Problem& p, index chunk, arena& memory) : p_(p) {
        stride_k = std::max(p.d_k(), p.q.shape()[3]) + P::lanes;
        stride_v = p.d_v() + P::lanes;
        scratch_q_ = memory.take<T>(p.q.scratch_per_row() * chunk);
        scratch_k_ = memory.take<T>(p.k.scratch_per_row() * chunk);
        scratch_v_ = memory.take<T>(p.v.scratch_per_row() * chunk);
        mapped_q_ = memory.take<T>(changes_queries() ? stride_k * chunk : 0);
        mapped_k_ = memory.take<T>(changes_keys ? stride_k * chunk : 0);
        mapped_v_ = memory.take<T>(changes_values ? stride_v * chunk : 0);
    }

    HEED_NOINLINE void load(index b, index h, index first, int count, chunk_rows<T>& rows) {
        fetch(p_.q, b, h, first, count, scratch_q_, rows.q);
        fetch(p_.k, b, h / p_.group(), first, count, scratch_k_, rows.k);
        fetch(p_.v, b, h / p_.group(), first, count, scratch_v_, rows.v);
        if (changes_queries()) {
            std::copy_n(rows.q, count, raw_q_);
            for (int i = 0; i < count; ++i) rows.q[i] = map(rows.q[i], mapped_q_ + i * stride_k, true, static_cast<T>(p_.scale), T{0});
        }
        if constexpr (changes_keys) {
            std::copy_n(rows.k, count, raw_k_);
            for (int i = 0; i < count; ++i) rows.k[i] = map(rows.k[i], mapped_k_ + i * stride_k, false, key_factor(h, first + i), T{1});
        }
        if constexpr (changes_values) {
            std::copy_n(rows.v, count, raw_v_);
            for (int i = 0; i < count; ++i) {
                T* to = mapped_v_ + i * stride_v;
                const index width = p_.v.shape()[3];
                for (index e = 0; e < width; ++e) to[e] = rows.v[i][e] * value_factor(h, first + i);
                if constexpr (Problem::normalised) to[width] = 1;
                rows.v[i] = to;
            }
        }
        for (int i = count; i < count + 8; ++i) {
            rows.q[i] = rows.q[count - 1];
            rows.k[i] = rows.k[count - 1];
            rows.v[i] = rows.v[count - 1];
        }
    }

    // Where rows that come next lie: expect(q, k, v), null where they are not read in place.
    template <class Expect>
    void ahead(index b, index h, index first, int count, Expect&& expect) {
        const auto find = [&](const auto& source, index head, const T** to) -> const T* const* {
            if (source.scratch_per_row() != 0) return nullptr;
            fetch(source, b, head, first, count, nullptr, to);
            return to;
        };
        const index key_head = h / p_.group();
        expect(find(p_.q, h, next_q_), find(p_.k, key_head, next_k_), find(p_.v, key_head, next_v_));
    }

    // Gradients of the queries last loaded become those of what was read.
    HEED_NOINLINE void give_queries(index b, index h, index first, int count, T* dq, index stride) const {
        const index d = p_.q.shape()[3], m = p_.mapped();
        for (int i = 0; i < count; ++i) {
            T* q = dq + i * stride;
            T* to = p_.dq.data + p_.dq.offset(b, h, p_.row(first + i), index{0});
            for (index j = 0; j < m; ++j) q[j] *= static_cast<T>(p_.scale);
            if constexpr (mapped)
                p_.features.back(raw_q_[i], q, d, to, true);
            else
                std::copy_n(q, d, to);
        }
    }
    // The same for keys and values; `add` where another head of the group has written before.
    HEED_NOINLINE void give_written(index b, index h, index first, int count, T* dk, index stride, T* dv, index dv_stride, bool add) const {
        const index d = p_.q.shape()[3], width = p_.v.shape()[3], m = p_.mapped();
        for (int i = 0; i < count; ++i) {
            const index row = p_.row(first + i);
            T *k = dk + i * stride, *v = dv + i * dv_stride, *spare = mapped_k_ + i * stride_k;
            if constexpr (key_gated) {
                if (p_.d_key_gate.data != nullptr) {
                    map(raw_k_[i], spare, false, T{1}, T{1});
                    p_.d_key_gate(h, row) += static_cast<T>(inner(k, spare, m));
                }
                for (index j = 0; j < m; ++j) k[j] *= key_factor(h, first + i);
            }
            if constexpr (mapped) {
                p_.features.back(raw_k_[i], k, d, spare, false);
                k = spare;
            }
            put(k, d, p_.dk.data + p_.dk.offset(b, h / p_.group(), row, index{0}), add);
            if constexpr (value_gated) {
                if (p_.d_value_gate.data != nullptr) p_.d_value_gate(h, row) += static_cast<T>(inner(v, raw_v_[i], width));
                for (index e = 0; e < width; ++e) v[e] *= value_factor(h, first + i);
            }
            put(v, width, p_.dv.data + p_.dv.offset(b, h / p_.group(), row, index{0}), add);
        }
    }

    index stride_k, stride_v;

private:
    static constexpr bool changes_keys = mapped || key_gated || Problem::normalised;
    static constexpr bool changes_values = value_gated || Problem::normalised;
    bool changes_queries() const { return mapped || Problem::normalised || p_.scale != 1; }

    template <class Source>
    void fetch(const Source& source, index b, index h, index first, int count, T* scratch, const T** out) const {
        if (p_.order.empty()) {
            source.rows(b, h, first, count, scratch, out);
            return;
        }
        for (int i = 0; i < count; ++i) source.rows(b, h, p_.row(first + i), 1, scratch + i * source.scratch_per_row(), out + i);
    }
    const T* map(const T* x, T* to, bool of_query, T factor, T last) const {
        const index d = p_.q.shape()[3], m = p_.mapped();
        if constexpr (mapped)
            p_.features.map(x, d, to, of_query);
        else
            std::copy_n(x, d, to);
        for (index i = 0; i < m; ++i) to[i] *= factor;
        if constexpr (Problem::normalised) to[m] = last;
        return to;
    }
    T key_factor(index h, index t) const {
        if constexpr (key_gated)
            return static_cast<T>(p_.key_gate.at(h, p_.row(t)));
        else
            return T{1};
    }
    T value_factor(index h, index t) const {
        if constexpr (value_gated)
            return static_cast<T>(p_.value_gate.at(h, p_.row(t)));
        else
            return T{1};
    }
    static double inner(const T* a, const T* b, index n) {
        double sum = 0;
        for (index i = 0; i < n; ++i) sum += static_cast<double>(a[i]) * static_cast<double>(b[i]);
        return sum;
    }
    static void put(const T* from, index n, T* to, bool add) {
        if (add)
            for (index i = 0; i < n; ++i) to[i] += from[i];
        else
            std::copy_n(from, n, to);
    }

    const Problem& p_;
    T *scratch_q_, *scratch_k_, *scratch_v_, *mapped_q_, *mapped_k_, *mapped_v_;
    const T *raw_q_[most_chunk], *raw_k_[most_chunk], *raw_v_[most_chunk];
    const T *next_q_[most_chunk], *next_k_[most_chunk], *next_v_[most_chunk];
};

}  // namespace heed::inline HEED_ISA
