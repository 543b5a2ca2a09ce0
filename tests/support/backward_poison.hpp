// poison_stays_hidden(sees, make): puts NaN, infinity and huge numbers into keys, values, queries and incoming gradients of backward calls,
// and checks that every gradient that they may not reach keeps its bits, and that every other one shows.
#pragma once

#include "backward_packs.hpp"

#include <bit>

namespace heed_test {

template <class T>
std::vector<T> odd_numbers() {
    std::vector<T> x;
    if constexpr (std::is_same_v<T, float>)
        for (const std::uint32_t bits : {0x7fc00000u, 0xffc00001u, 0x7f800001u, 0xff812345u, 0x7f800000u, 0xff800000u, 0x7f7fffffu})
            x.push_back(std::bit_cast<float>(bits));
    else
        for (const std::uint64_t bits :
             {0x7ff8000000000000u, 0xfff8000000000001u, 0x7ff0000000000001u, 0x7ff0000000000000u, 0xfff0000000000000u, 0x7fefffffffffffffu})
            x.push_back(std::bit_cast<double>(bits));
    return x;
}

// Copies, so that even signalling NaN keep their bits.
template <class T>
void put(const heed::view<T, 4>& v, index row, const T& x) {
    for (index b = 0; b < v.extent(0); ++b)
        for (index h = 0; h < v.extent(1); ++h)
            for (index d = 0; d < v.extent(3); ++d) std::memcpy(&v(b, h, row, d), &x, sizeof(T));
}

template <class T>
struct poisoned_gradients {
    std::vector<T> q, k, v;    // rows behind each other: (head, query), key, key
    std::vector<double> rest;  // learned parameters
};

// One batch entry, two query heads, one key head.
template <class T>
struct poisoned_inputs {
    index queries, keys, depth = 20, width = 13;
    tensor<T> q, k, v, d_out, d_lse;

    explicit poisoned_inputs(index tq = 150, index tk = 190) : queries(tq), keys(tk) {
        random_source r(1);
        q = normal_tensor<T>(r, {1, 2, queries, depth});
        k = normal_tensor<T>(r, {1, 1, keys, depth});
        v = normal_tensor<T>(r, {1, 1, keys, width});
        d_out = normal_tensor<T>(r, {1, 2, queries, width});
        d_lse = normal_tensor<T>(r, {1, 2, queries, 1});
    }
    // make(rest, call) ends in call(policies...); learned parameters write their gradients to `rest`.
    template <class Arch = heed::arch::native, class Make>
    poisoned_gradients<T> back(Make&& make) const {
        answer<T> a(shape4{1, 2, queries, width});
        tensor<T> dq(q.view.shape), dk(k.view.shape), dv(v.view.shape);
        std::vector<double> rest(16);
        make(rest, [&](const auto&... policies) {
            heed::attention(q.view, k.view, v.view, a.result(), policies..., heed::run_on<Arch>{});
            heed::attention_backward(q.view, k.view, v.view, a.result(),
                                     heed::result{d_out.view, heed::bht(&d_lse.view(0, 0, 0, 0), 1, 2, queries)}, dq.view, dk.view, dv.view,
                                     policies..., heed::run_on<Arch>{});
        });
        return {elements(dq.view), elements(dk.view), elements(dv.view), rest};
    }
};

// Rows of one gradient that are wrong: an untouched one must have the bits of the clean run; a touched one must show, in every element,
// where it has to.
template <class T>
int wrong_rows(const std::vector<T>& got, const std::vector<T>& clean, index features, bool shows, auto&& touched) {
    int wrong = 0;
    const auto n = static_cast<std::size_t>(features);
    for (std::size_t row = 0; row * n < got.size(); ++row) {
        const T *mine = got.data() + row * n, *other = clean.data() + row * n;
        if (!touched(static_cast<index>(row)))
            wrong += std::memcmp(mine, other, n * sizeof(T)) != 0;
        else if (shows)
            wrong += std::any_of(mine, mine + n, [](T x) { return std::isfinite(x); });
    }
    return wrong;
}

// Puts every odd number into the poisoned keys, values, and both; sees(query, key) is the mask, in key coordinates.
template <class T, class Arch = heed::arch::native>
void poison_in_keys_stays_hidden(auto&& sees, auto&& make, index queries = 150, index keys = 190) {
    const index offset = keys - queries;
    std::vector<std::vector<index>> sets{{0}, {keys - 1}, {80, 81}, {100, 64, 127}, {}, {}};
    for (index j = 64; j < 128; ++j) sets[4].push_back(j);
    for (index j = 101; j < keys; ++j) sets[5].push_back(j);
    for (const auto& poisoned : sets) {
        poisoned_inputs<T> in(queries, keys);
        const auto put_all = [&](const heed::view<T, 4>& v, const T& x) {
            for (const index j : poisoned) put(v, j, x);
        };
        put_all(in.k.view, T{0});
        put_all(in.v.view, T{0});
        const auto clean = in.template back<Arch>(make);
        std::vector<bool> by_query(static_cast<std::size_t>(queries)), by_key(static_cast<std::size_t>(keys));
        bool any = false;
        for (index i = 0; i < queries; ++i) {
            const bool seen = std::any_of(poisoned.begin(), poisoned.end(), [&](index j) { return sees(i + offset, j); });
            any = any || seen;
            by_query[static_cast<std::size_t>(i)] = seen;
            for (index j = 0; seen && j < keys; ++j)
                if (sees(i + offset, j)) by_key[static_cast<std::size_t>(j)] = true;
        }
        const auto query = [&](index row) { return by_query[static_cast<std::size_t>(row % queries)]; };
        const auto key = [&](index row) { return by_key[static_cast<std::size_t>(row)]; };
        CAPTURE(poisoned.front(), poisoned.size());
        for (const T x : odd_numbers<T>()) {
            INFO("poison " << x);
            const bool shows = !std::isfinite(x);
            const auto check = [&](bool weights_too) {
                const auto got = in.template back<Arch>(make);
                CHECK(wrong_rows(got.q, clean.q, in.depth, shows, query) == 0);
                CHECK(wrong_rows(got.k, clean.k, in.depth, shows, key) == 0);
                CHECK(wrong_rows(got.v, clean.v, in.width, shows && weights_too, [&](index j) { return weights_too && key(j); }) == 0);
                if (!any) CHECK(same_bits(got.rest, clean.rest));
            };
            put_all(in.v.view, x);
            check(false);
            put_all(in.k.view, x);
            check(true);
            put_all(in.v.view, T{0});
            check(true);
            put_all(in.k.view, T{0});
        }
    }
}

// Puts every odd number into one row of the queries, of d_out, and of d_lse.
template <class T, class Arch = heed::arch::native>
void poison_in_queries_stays_hidden(auto&& sees, auto&& make, index queries = 150, index keys = 190) {
    for (const index row : {index{0}, index{15}, index{70}, queries - 1}) {
        bool alive = false;
        for (index j = 0; j < keys; ++j) alive = alive || sees(row + keys - queries, j);
        const auto query = [&](index i) { return alive && i % queries == row; };
        const auto key = [&](index j) { return sees(row + keys - queries, j); };
        CAPTURE(row, alive);
        for (const auto place : {&poisoned_inputs<T>::q, &poisoned_inputs<T>::d_out, &poisoned_inputs<T>::d_lse}) {
            poisoned_inputs<T> in(queries, keys);
            const bool of_lse = place == &poisoned_inputs<T>::d_lse;
            put((in.*place).view, row, T{0});
            const auto clean = in.template back<Arch>(make);
            for (const T x : odd_numbers<T>()) {
                INFO("poison " << x << " in " << (of_lse ? "d_lse" : place == &poisoned_inputs<T>::q ? "q" : "d_out"));
                put((in.*place).view, row, x);
                const auto got = in.template back<Arch>(make);
                const bool shows = !std::isfinite(x);
                CHECK(wrong_rows(got.q, clean.q, in.depth, shows, query) == 0);
                CHECK(wrong_rows(got.k, clean.k, in.depth, shows, key) == 0);
                CHECK(wrong_rows(got.v, clean.v, in.width, shows && !of_lse, key) == 0);
                if (!alive) {
                    // The gradient of lse is that of the sink, where nothing else is seen.
                    if (!of_lse) CHECK(same_bits(got.rest, clean.rest));
                    for (index h = 0; h < 2; ++h)
                        for (index d = 0; d < in.depth; ++d)
                            CHECK(got.q[static_cast<std::size_t>((h * queries + row) * in.depth + d)] == 0);
                }
            }
        }
    }
}

template <class T, class Arch = heed::arch::native>
void poison_stays_hidden(auto&& sees, auto&& make, index queries = 150, index keys = 190) {
    poison_in_keys_stays_hidden<T, Arch>(sees, make, queries, keys);
    poison_in_queries_stays_hidden<T, Arch>(sees, make, queries, keys);
}

inline auto with_band(const heed::band_mask& band) {
    return [band](std::vector<double>&, auto call) { call(band); };
}
inline auto in_band(const heed::band_mask& band) {
    return [band](index q, index k) { return band.allows(0, 0, q, k); };
}
inline heed::band_mask window(index left, index right) {
    heed::band_mask m;
    m.left = left;
    m.right = right;
    return m;
}
template <class T, class Arch = heed::arch::native>
void poison_stays_behind(const heed::band_mask& band, index queries = 150, index keys = 190) {
    poison_stays_hidden<T, Arch>(in_band(band), with_band(band), queries, keys);
}

}  // namespace heed_test
