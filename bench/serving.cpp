// Figures of decoding: one query, alone or with the query heads of a group, against a cache that does not fit into any cache memory.
#include <heed/heed.hpp>

#include "against_peak.hpp"
#include "buffer.hpp"
#include "figure.hpp"
#include "paired.hpp"
#include "shapes.hpp"

#include <heed/interop/openmp.hpp>

#include <omp.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <numeric>
#include <random>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <vector>

namespace heed_bench {

namespace {

constexpr index width = 128, key_heads = 8;

// Keys and values of S, 64 MiB of them and more, and one query row of each head, which is bfloat16 where they are.
template <class S>
class cache_data {
public:
    using query_type = std::conditional_t<std::is_same_v<S, heed::bfloat16>, S, float>;

    explicit cache_data(index group)
        : keys(static_cast<index>((std::size_t{64} << 20) / (2 * width * key_heads * sizeof(S)))),
          group_(group),
          q_(static_cast<std::size_t>(key_heads * group * width)),
          out_(q_.size()),
          k_(static_cast<std::size_t>(key_heads * keys * width)),
          v_(k_.size()),
          scales_(static_cast<std::size_t>(key_heads * keys)) {
        buffer<float> normal(q_.size());
        fill_normal<float>({normal.data(), normal.size()}, 51);
        for (std::size_t i = 0; i < q_.size(); ++i) q_[i] = query_type(normal[i]);
        std::mt19937 random(52);
        for (auto* x : {&k_, &v_})
            for (std::size_t i = 0; i < x->size(); ++i) {
                const int small = static_cast<int>(random() >> 24) - 128;
                if constexpr (std::is_same_v<S, std::int8_t>)
                    (*x)[i] = static_cast<S>(small);
                else
                    (*x)[i] = static_cast<S>(static_cast<float>(small) / 64);
            }
        for (std::size_t i = 0; i < scales_.size(); ++i) scales_[i] = 1.f / 64;
    }
    auto q() { return heed::bhtd(q_.data(), 1, key_heads * group_, 1, width); }
    auto out() { return heed::bhtd(out_.data(), 1, key_heads * group_, 1, width); }
    auto k() { return source(k_); }
    auto v() { return source(v_); }
    buffer<S>& key_memory() { return k_; }
    buffer<S>& value_memory() { return v_; }
    template <class... Policies>
    void run(const Policies&... policies) {
        heed::attention(q(), k(), v(), out(), policies...);
    }
    // Throws unless some outputs agree with a computation in double.
    void check(const std::string& name) {
        // Weights may be rounded to bfloat16; values are below 2.
        constexpr double tolerance = std::is_same_v<S, heed::bfloat16> ? 2 * 0x1p-8 : 1e-5;
        for (const index h : {index{0}, key_heads * group_ - 1}) {
            const index at = h / group_ * keys * width;
            std::vector<double> weights(static_cast<std::size_t>(keys)), sum(static_cast<std::size_t>(width));
            const auto value = [&](const buffer<S>& x, index i) {
                const double y = static_cast<double>(static_cast<float>(x[static_cast<std::size_t>(i)]));
                return std::is_same_v<S, std::int8_t> ? y / 64 : y;
            };
            double total = 0, most = -INFINITY;
            for (index j = 0; j < keys; ++j) {
                double dot = 0;
                for (index d = 0; d < width; ++d)
                    dot += static_cast<double>(static_cast<float>(q()(0, h, 0, d))) * value(k_, at + j * width + d);
                most = std::max(most, weights[static_cast<std::size_t>(j)] = dot / std::sqrt(static_cast<double>(width)));
            }
            for (index j = 0; j < keys; ++j) {
                const double w = std::exp(weights[static_cast<std::size_t>(j)] - most);
                total += w;
                for (index d = 0; d < width; ++d) sum[static_cast<std::size_t>(d)] += w * value(v_, at + j * width + d);
            }
            for (index d = 0; d < width; ++d)
                if (!(std::abs(static_cast<double>(out()(0, h, 0, d)) - sum[static_cast<std::size_t>(d)] / total) < tolerance))
                    throw std::runtime_error(name + ": an output is wrong");
        }
    }

    const index keys;

private:
    auto source(buffer<S>& x) {
        const heed::view<const S, 4> rows = heed::bhtd<const S>(x.data(), 1, key_heads, keys, width);
        if constexpr (std::is_same_v<S, std::int8_t>)
            return heed::quantized(rows, heed::bht<const float>(scales_.data(), 1, key_heads, keys));
        else
            return rows;
    }

    index group_;
    buffer<query_type> q_;
    buffer<float> out_;
    buffer<S> k_, v_;
    buffer<float> scales_;
};

// All of both buffers, once, into registers.
template <class S>
float read_all(buffer<S>& a, buffer<S>& b) {
    using P = heed::pack<float>;
    P sum[8];
    for (P& s : sum) s = P(0);
    for (auto* x : {&a, &b}) {
        const auto* at = reinterpret_cast<const float*>(x->data());
        const index count = static_cast<index>(x->size() * sizeof(S) / sizeof(float));
        for (index i = 0; i < count; i += 8 * P::lanes)
            for (int j = 0; j < 8; ++j) sum[j] = max(sum[j], P::load(at + i + j * P::lanes));
    }
    for (int j = 1; j < 8; ++j) sum[0] = max(sum[0], sum[j]);
    float lanes[P::lanes];
    sum[0].store(lanes);
    return lanes[0];
}

template <class S>
const char* name_of_type() {
    return std::is_same_v<S, float> ? "f32" : std::is_same_v<S, heed::bfloat16> ? "bf16" : std::is_same_v<S, heed::float16> ? "f16" : "i8";
}

template <class S>
figure decoding(index group, double bar) {
    std::string name = "attention/";
    name += name_of_type<S>();
    name += "/d128_q1_kv64MiB_g";
    name += std::to_string(group);
    return {name, bar, "of reading keys and values", [=](session& settings) {
                return settings.once(name, [&] {
                    cache_data<S> data(group);
                    data.run();
                    data.check(name);
                    volatile float seen = 0;
                    const auto read = [&](std::int64_t n) {
                        for (; n > 0; --n, clobber_memory()) seen = read_all(data.key_memory(), data.value_memory());
                    };
                    const auto decode = [&](std::int64_t n) {
                        for (; n > 0; --n) data.run();
                    };
                    const auto seconds = alternate(read, decode, settings.slice_seconds, [&](double t) { return settings.pairs(t); });
                    return compared(seconds.first, seconds.second);
                });
            }};
}

// The same cache through a table of pages in a random order.
figure paging(index page_size, double bar) {
    std::string name = "attention/f32/d128_q1_kv64MiB_g1/page";
    name += std::to_string(page_size);
    return {name, bar, "of the speed of contiguous rows", [=](session& settings) {
                return settings.once(name, [&] {
                    cache_data<float> data(1);
                    const index pages = data.keys / page_size;
                    std::vector<std::int32_t> table(static_cast<std::size_t>(pages));
                    std::iota(table.begin(), table.end(), 0);
                    std::shuffle(table.begin(), table.end(), std::mt19937(53));
                    // Pages hold all heads of their tokens, as kv_cache lays them out.
                    const auto pool = [&](buffer<float>& x) {
                        return heed::paged{heed::bhtd<const float>(x.data(), pages, key_heads, page_size, width),
                                           heed::view<const std::int32_t, 2>{table.data(), {1, pages}, {pages, 1}}, page_size};
                    };
                    const auto contiguous = [&](std::int64_t n) {
                        for (; n > 0; --n) data.run();
                    };
                    const auto paged = [&](std::int64_t n) {
                        for (; n > 0; --n) heed::attention(data.q(), pool(data.key_memory()), pool(data.value_memory()), data.out());
                    };
                    paged(1);
                    const auto seconds = alternate(contiguous, paged, settings.slice_seconds, [&](double t) { return settings.pairs(t); });
                    return compared(seconds.first, seconds.second);
                });
            }};
}

// One query against the cache on two threads, as a speed-up over one.
figure two_threads(double bar) {
    const std::string name = "attention/f32/d128_q1_kv64MiB_g1/threads2";
    return {name, bar, "speed-up over one thread", [=](session& settings) {
                return settings.once(name, [&] {
                    cache_data<float> data(1);
#pragma omp parallel num_threads(2)
                    pin(omp_get_thread_num());
                    const auto one = [&](std::int64_t n) {
                        for (; n > 0; --n) data.run();
                    };
                    const auto two = [&](std::int64_t n) {
                        for (; n > 0; --n) data.run(heed::openmp{2});
                    };
                    const auto seconds = alternate(one, two, settings.slice_seconds, [&](double t) { return settings.pairs(t); });
#pragma omp parallel num_threads(2)
                    pin(0);
                    return compared(seconds.first, seconds.second);
                });
            }};
}

// 64 sequences of 1 to 8192 keys, one query each, packed behind one another.
figure ragged(double bar) {
    const std::string name = "attention/f32/d128_q1_ragged64";
    return {name, bar, "of reading keys and values", [=](session& settings) {
                return settings.once(name, [&] {
                    std::mt19937 random(54);
                    std::vector<std::int32_t> queries{0}, keys{0};
                    for (int i = 0; i < 64; ++i) {
                        queries.push_back(i + 1);
                        keys.push_back(keys.back() + 1 + static_cast<std::int32_t>(random() % 8192));
                    }
                    const index total = keys.back();
                    buffer<float> q(64 * width), out(q.size()), k(static_cast<std::size_t>(total * width)), v(k.size());
                    for (auto* x : {&q, &k, &v}) fill_normal<float>({x->data(), x->size()}, 55);
                    volatile float seen = 0;
                    const auto read = [&](std::int64_t n) {
                        for (; n > 0; --n, clobber_memory()) seen = read_all(k, v);
                    };
                    const auto decode = [&](std::int64_t n) {
                        for (; n > 0; --n)
                            heed::attention(heed::thd(q.data(), 64, 1, width), heed::thd(k.data(), total, 1, width),
                                            heed::thd(v.data(), total, 1, width), heed::thd(out.data(), 64, 1, width),
                                            heed::segments{queries, keys});
                    };
                    const auto seconds = alternate(read, decode, settings.slice_seconds, [&](double t) { return settings.pairs(t); });
                    return compared(seconds.first, seconds.second);
                });
            }};
}

// Eight drafted tokens of eight query heads a key head.
figure speculative(double bar) {
    const std::string name = "attention/f32/d128_q8_k4096_g8";
    return {name, bar, "fraction of FMA peak", [=](session& settings) {
                return settings.once(name, [&] {
                    constexpr index keys = 4096;
                    buffer<float> q(static_cast<std::size_t>(64 * key_heads * width)), out(q.size()),
                        k(static_cast<std::size_t>(key_heads * keys * width)), v(k.size());
                    for (auto* x : {&q, &k, &v}) fill_normal<float>({x->data(), x->size()}, 56);
                    return fraction_of_peak<float>(settings, 4. * 64 * key_heads * keys * width, [&](std::int64_t n) {
                        for (; n > 0; --n)
                            heed::attention(heed::bhtd(q.data(), 1, 8 * key_heads, 8, width),
                                            heed::bhtd(k.data(), 1, key_heads, keys, width),
                                            heed::bhtd(v.data(), 1, key_heads, keys, width),
                                            heed::bhtd(out.data(), 1, 8 * key_heads, 8, width), heed::causal);
                    });
                });
            }};
}

// Prefill from 16-bit rows.
figure narrow_prefill(double bar) {
    const std::string name = "attention/bf16/d128_n4096/full";
    return {name, bar, "of the speed of float rows", [=](session& settings) {
                return settings.once(name, [&] {
                    constexpr index n = 4096, heads = 8;
                    const auto size = static_cast<std::size_t>(heads * n * width);
                    buffer<float> q(size), k(size), v(size), out(size);
                    buffer<heed::bfloat16> narrow_q(size), narrow_k(size), narrow_v(size), narrow_out(size);
                    for (auto* x : {&q, &k, &v}) fill_normal<float>({x->data(), x->size()}, 57);
                    for (std::size_t i = 0; i < size; ++i) {
                        narrow_q[i] = heed::bfloat16(q[i]);
                        narrow_k[i] = heed::bfloat16(k[i]);
                        narrow_v[i] = heed::bfloat16(v[i]);
                    }
                    const auto rows = [&](auto& x) { return heed::bhtd(x.data(), 1, heads, n, width); };
                    const auto wide = [&](std::int64_t i) {
                        for (; i > 0; --i) heed::attention(rows(q), rows(k), rows(v), rows(out));
                    };
                    const auto narrow = [&](std::int64_t i) {
                        for (; i > 0; --i) heed::attention(rows(narrow_q), rows(narrow_k), rows(narrow_v), rows(narrow_out));
                    };
                    const auto seconds = alternate(wide, narrow, settings.slice_seconds, [&](double t) { return settings.pairs(t); });
                    return compared(seconds.first, seconds.second);
                });
            }};
}

}  // namespace

std::vector<figure> serving_figures() {
    return {
        decoding<float>(1, 0.80),
        decoding<heed::bfloat16>(1, 0.75),
        decoding<std::int8_t>(1, 0.65),
        decoding<float>(8, 0.70),
        decoding<heed::bfloat16>(8, 0.60),
        decoding<std::int8_t>(8, 0.35),
        paging(16, 0.95),
        paging(64, 0.98),
        two_threads(1.8),
        ragged(0.70),
        speculative(0.70),
        narrow_prefill(0.95),
    };
}

}  // namespace heed_bench
