// route_heads: which heads a token uses and with what weight, as in MoH, mixture-of-head attention (2024).
//
//   r = softmax(W_r x),  S = the K highest of r,  g_r = K r / max(sum_S r, eps) on S, 0 elsewhere;  g_s = h_s softmax(W_s x)
//   (a_0, a_1) = 2 softmax(W_h x),  gates = [a_0 g_s, a_1 g_r]; without shared heads g_r alone, without routed ones g_s alone
//   balance_loss = R sum_i mean_t(r_i) mean_t([i in S])
// That is the released code; the paper does without the division and the factors K, h_s, 2, R, which are flags. route_heads_by_norm is
// the form for language models: r = softmax(n / deviation of n), n the norms of queries before rotary embedding, gates 0 or 1. Gates go to
// heads/route.hpp. S is a constant for gradients.
#pragma once

#include <heed/concepts.hpp>
#include <heed/kernel/row_products.hpp>
#include <heed/kernel/transpose.hpp>
#include <heed/kernel/vexp.hpp>
#include <heed/simd.hpp>
#include <heed/tensor/error.hpp>
#include <heed/tensor/view.hpp>
#include <heed/tensor/widen.hpp>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <type_traits>
#include <utility>
#include <vector>

namespace heed::inline HEED_ISA {

struct head_routing {
    index shared = 0;               // heads that every token uses: the first ones
    index active = 0;               // how many of the others a token uses
    bool renormalise = true;        // the chosen probabilities are divided by their sum
    bool scaled = true;             // the factors K, h_s, 2, and R of the loss
    bool straight_through = false;  // gates of heads in use are 1; backward, those of chosen heads are r
};

// Parameters, or with T not const destinations of their gradients. Borrowed.
template <class T>
struct head_router {
    view<T, 2> routed;  // W_r (R, C)
    view<T, 2> shared;  // W_s (h_s, C), not read where fewer than two heads are shared
    view<T, 2> mix;     // W_h (2, C), not read where all heads are shared, or none
};

// What was decided: plain data, for the backward too.
template <class T>
class head_choice {
public:
    head_routing how;
    index batch = 0, tokens = 0, heads = 0;
    std::vector<T> gate, probability, shared, mix;  // (B, N, H), (B, N, R), (B, N, h_s), (B, N, 2), the last two softmaxes
    std::vector<std::int32_t> chosen;               // (B, N, K), routed heads counted from 0, ascending

    index routed() const { return heads - how.shared; }
    view<const T, 3> gates() const { return dense(gate, heads); }
    view<const T, 3> probabilities() const { return dense(probability, routed()); }
    view<const std::int32_t, 3> selected() const { return dense(chosen, how.active); }

private:
    template <class U>
    view<const U, 3> dense(const std::vector<U>& x, index width) const {
        return {x.data(), {batch, tokens, width}, {tokens * width, width, 1}};
    }
};

namespace head_routes {

// Scores of some tokens, tokens in lanes: rows of routed heads, then of shared ones, then of their mix.
template <class T>
class token_block {
public:
    using P = pack<T>;
    static constexpr int tokens = 32;
    static constexpr index width = (tokens + P::lanes - 1) / P::lanes * P::lanes;

    token_block(const head_routing& how, index routed, bool shares, bool mixes)
        : how_(how), routed_(routed), shares_(shares), mixes_(mixes), scores_(area(rows())), seen_(area(routed)), gates_(area(heads())) {}

    index rows() const { return routed_ + (shares_ ? how_.shared : 0) + (mixes_ ? 2 : 0); }
    T* row(index i) { return scores_.data() + i * width; }
    // Of scores their softmaxes, and what follows from them.
    void decide() {
        const index shared = shares_ ? how_.shared : 0;
        softmax(row(0), routed_);
        softmax(row(routed_), shared);
        softmax(row(routed_ + shared), rows() - routed_ - shared);
        for (index v = 0; v < width; v += P::lanes) {
            choose(v);
            how_.straight_through ? set_gates_to_one(v) : set_gates(v);
        }
    }
    void write(head_choice<T>& c, index first, int count) const {
        const auto to = [&](const T* from, index n, std::vector<T>& all) {
            if (all.empty()) return;
            T* at = all.data() + first * n;
            for (int t = 0; t < count; ++t)
                for (index i = 0; i < n; ++i) *at++ = from[i * width + t];
        };
        const T* shared = scores_.data() + routed_ * width;
        to(scores_.data(), routed_, c.probability);
        to(shared, how_.shared, c.shared);
        to(shared + (shares_ ? how_.shared : 0) * width, 2, c.mix);
        to(gates_.data(), heads(), c.gate);
        for (int t = 0; t < count; ++t) {
            std::int32_t* chosen = c.chosen.data() + (first + t) * how_.active;
            const T* seen = seen_.data() + t;
            for (index i = 0, n = 0; n < how_.active; ++i) {
                chosen[n] = static_cast<std::int32_t>(i);
                n += seen[i * width] != 0 ? 1 : 0;
            }
        }
    }

private:
    static std::vector<T> area(index rows) { return std::vector<T>(static_cast<std::size_t>(rows * width)); }
    index heads() const { return how_.shared + routed_; }
    static void softmax(T* x, index n) {
        for (index v = 0; n > 0 && v < width; v += P::lanes, x += P::lanes) {
            P top = P::load(x), all(0);
            for (index i = 1; i < n; ++i) top = max(P::load(x + i * width), top);
            for (index i = 0; i < n; ++i) {
                const P e = exp(P::load(x + i * width) - top);
                e.store(x + i * width);
                all += e;
            }
            const P by = P(1) / all;
            for (index i = 0; i < n; ++i) (P::load(x + i * width) * by).store(x + i * width);
        }
    }
    // 1 for heads before which stand fewer than how many are chosen: higher ones, and of equal ones the earlier. Where one of a token's
    // probabilities is no number none is, and all are equal.
    void choose(index v) {
        const T* x = scores_.data() + v;
        for (index i = 0; i < routed_; ++i) {
            const P mine = P::load(x + i * width);
            P before(0);
            for (index j = 0; j < i; ++j) before = select(P::load(x + j * width) < mine, before, before + P(1));
            for (index j = i + 1; j < routed_; ++j) before = select(P::load(x + j * width) > mine, before + P(1), before);
            select(before < P(static_cast<T>(how_.active)), P(1), P(0)).store(seen_.data() + i * width + v);
        }
    }
    void set_gates_to_one(index v) {
        T* gate = gates_.data() + v;
        for (index i = 0; i < how_.shared; ++i) P(1).store(gate + i * width);
        for (index i = 0; i < routed_; ++i) P::load(seen_.data() + i * width + v).store(gate + (how_.shared + i) * width);
    }
    void set_gates(index v) {
        T* gate = gates_.data() + v;
        const T *r = scores_.data() + v, *s = r + routed_ * width, *a = s + (shares_ ? how_.shared : 0) * width, *seen = seen_.data() + v;
        const P two(how_.scaled ? T{2} : T{1});
        P of_shared(how_.scaled ? static_cast<T>(how_.shared) : T{1}), of_routed(how_.scaled ? static_cast<T>(how_.active) : T{1});
        if (mixes_) {
            of_shared = two * P::load(a) * of_shared;
            of_routed = two * P::load(a + width) * of_routed;
        }
        for (index i = 0; i < how_.shared; ++i) (shares_ ? of_shared * P::load(s + i * width) : of_shared).store(gate + i * width);
        P sum(0);
        for (index i = 0; i < routed_; ++i) sum += select(P::load(seen + i * width) > P(0), P::load(r + i * width), P(0));
        if (how_.renormalise) of_routed = of_routed / max(P(std::numeric_limits<T>::epsilon()), sum);
        for (index i = 0; i < routed_; ++i)
            select(P::load(seen + i * width) > P(0), of_routed * P::load(r + i * width), P(0)).store(gate + (how_.shared + i) * width);
    }

    head_routing how_;
    index routed_;
    bool shares_, mixes_;
    std::vector<T> scores_, seen_, gates_;
};
// d becomes the gradient of what went into the softmax.
template <class T>
void softmax_back(const T* probability, T* d, index n) {
    T mean = 0;
    for (index i = 0; i < n; ++i) mean += probability[i] * d[i];
    for (index i = 0; i < n; ++i) d[i] = probability[i] * (d[i] - mean);
}

inline void check(const char* door, const head_routing& how, index heads) {
    require(how.shared >= 0, door, "shared heads", how.shared, "must be at least", 0);
    require(how.shared <= heads, door, "shared heads", how.shared, "must not exceed heads", heads);
    require(how.active >= 0, door, "active heads", how.active, "must be at least", 0);
    require(how.active <= heads - how.shared, door, "active heads", how.active, "must not exceed routed heads", heads - how.shared);
    require(how.active > 0 || how.shared == heads, door, "active heads", how.active, "must be at least", 1, "beside routed heads",
            heads - how.shared);
}
constexpr bool reads_shared(const head_routing& how) { return how.shared > 1 && !how.straight_through; }
constexpr bool reads_mix(const head_routing& how) { return how.shared > 0 && how.active > 0 && !how.straight_through; }

template <class T>
void check_weight(const char* door, const char* name, const view<T, 2>& w, index rows, index features) {
    require(w.data != nullptr || w.empty(), door, name, "must not be null");
    require(w.extent(0) == rows, door, name, "rows", w.extent(0), "must equal", rows);
    require(w.extent(1) == features, door, name, "features", w.extent(1), "must equal features of x", features);
    require(w.stride(1) == 1 || w.extent(1) <= 1, door, name, "last stride", w.stride(1), "must be", 1);
}
template <class T>
void check(const char* door, const head_router<T>& net, const head_routing& how, index features) {
    check(door, how, how.shared + net.routed.extent(0));
    check_weight(door, "W_r", net.routed, net.routed.extent(0), net.routed.extent(0) > 0 ? features : net.routed.extent(1));
    if (reads_shared(how)) check_weight(door, "W_s", net.shared, how.shared, features);
    if (reads_mix(how)) check_weight(door, "W_h", net.mix, 2, features);
}
template <class T>
void check_tokens(const char* door, const char* name, const view<T, 3>& x) {
    require(x.data != nullptr || x.empty(), door, name, "must not be null");
    require(x.stride(2) == 1 || x.extent(2) <= 1, door, name, "last stride", x.stride(2), "must be", 1);
}
template <class T>
head_choice<T> empty_choice(const head_routing& how, index batch, index tokens, index heads) {
    head_choice<T> c;
    c.how = how;
    c.batch = batch;
    c.tokens = tokens;
    c.heads = heads;
    const auto all = static_cast<std::size_t>(batch * tokens);
    c.gate.resize(all * static_cast<std::size_t>(heads));
    c.probability.resize(all * static_cast<std::size_t>(c.routed()));
    c.chosen.resize(all * static_cast<std::size_t>(how.active));
    return c;
}

// to[t * stride + r] = rows[r] . x[t]; both can be read up to the next multiple of 16, `to` a vector past its end.
template <class T>
class products {
public:
    using P = pack<T>;
    products(std::vector<const T*> rows, index features) : rows_(std::move(rows)), features_(features) {
        if constexpr (row_shape<P>::possible) {
            packed_.resize(static_cast<std::size_t>((size() + 1) * row_shape<P>::padded(features)));
            for_row_groups<P>(static_cast<int>(size()), [&](auto r, int at) {
                pack_queries<decltype(r)::value, P>(rows_.data() + at, static_cast<int>(size()) - at, features, T{1},
                                                    packed_.data() + at * row_shape<P>::padded(features));
            });
        }
    }
    index size() const { return static_cast<index>(rows_.size()); }
    index stride() const { return size() + P::lanes; }
    void operator()(const T* const* x, int count, T* to) const {
        if constexpr (row_shape<P>::possible) {
            struct {
                void step() {}
            } nothing;
            for_row_groups<P>(static_cast<int>(size()), [&](auto r, int at) {
                dot_rows<decltype(r)::value, P>(x, count, features_, packed_.data() + at * row_shape<P>::padded(features_), nullptr, to,
                                                stride(), at, nothing);
            });
        } else {
            for (int t = 0; t < count; ++t)
                for (index r = 0; r < size(); ++r) {
                    T sum = 0;
                    for (index d = 0; d < features_; ++d) sum += rows_[static_cast<std::size_t>(r)][d] * x[t][d];
                    to[t * stride() + r] = sum;
                }
        }
    }

private:
    std::vector<const T*> rows_;
    std::vector<T> packed_;
    index features_;
};

// dr, ds and da, of the softmaxes, from those of the gates; dr is added to.
template <class T>
void gates_back(const head_routing& how, const T* r, const T* s, const T* a, const std::int32_t* chosen, const T* d_gate, T* dr, T* ds,
                T* da) {
    const T* d_chosen = d_gate + how.shared;
    if (how.straight_through) {
        for (index i = 0; i < how.active; ++i) dr[chosen[i]] += d_chosen[chosen[i]];
        return;
    }
    const T one = 1;
    const bool mixed = reads_mix(how);
    const T two = how.scaled ? T{2} : one;
    const T h = how.scaled ? static_cast<T>(how.shared) : one;
    T d_shared = 0;
    for (index i = 0; i < how.shared; ++i) {
        d_shared += d_gate[i] * (how.shared > 1 ? s[i] : one);
        if (how.shared > 1) ds[i] = (mixed ? two * a[0] : one) * h * d_gate[i];
    }
    T sum = 0, d_sum = 0;
    for (index i = 0; i < how.active; ++i) {
        sum += r[chosen[i]];
        d_sum += d_chosen[chosen[i]] * r[chosen[i]];
    }
    const T least = std::numeric_limits<T>::epsilon(), divisor = how.renormalise ? std::max(sum, least) : one;
    const T k = (how.scaled ? static_cast<T>(how.active) : one) / divisor;
    const T through_sum = how.renormalise && sum > least ? d_sum / divisor : T{0};
    for (index i = 0; i < how.active; ++i) dr[chosen[i]] += (mixed ? two * a[1] : one) * k * (d_chosen[chosen[i]] - through_sum);
    if (!mixed) return;
    da[0] = two * h * d_shared;
    da[1] = two * k * d_sum;
}
// What the loss adds to the gradient of every token's probabilities.
template <class T>
std::vector<T> balance_slope(const head_choice<T>& c, double d_balance) {
    std::vector<T> slope(static_cast<std::size_t>(c.routed()));
    if (d_balance == 0) return slope;
    for (const std::int32_t i : c.chosen) slope[static_cast<std::size_t>(i)] += T{1};
    const auto all = static_cast<double>(c.batch * c.tokens);
    for (T& x : slope) x *= static_cast<T>(d_balance * (c.how.scaled ? static_cast<double>(c.routed()) : 1) / (all * all));
    return slope;
}
template <class T, class G>
void check_gates(const char* door, const head_choice<T>& c, const view<G, 3>& d_gates) {
    require(d_gates.extent(0) == c.batch, door, "d_gates batch", d_gates.extent(0), "must equal batch", c.batch);
    require(d_gates.extent(1) == c.tokens, door, "d_gates tokens", d_gates.extent(1), "must equal tokens", c.tokens);
    require(d_gates.extent(2) == c.heads, door, "d_gates heads", d_gates.extent(2), "must equal heads", c.heads);
}

}  // namespace head_routes

// x (B, N, C), its last stride 1. Heads are the shared ones and one for each row of W_r.
template <class W, class T = std::remove_const_t<W>>
head_choice<T> route_heads(const head_router<W>& net, const view<const std::type_identity_t<T>, 3>& x, const head_routing& how) {
    constexpr const char* door = "route_heads";
    head_routes::check(door, net, how, x.extent(2));
    head_routes::check_tokens(door, "x", x);
    const index routed = net.routed.extent(0), tokens = x.extent(1);
    auto c = head_routes::empty_choice<T>(how, x.extent(0), tokens, how.shared + routed);
    const bool shares = head_routes::reads_shared(how), mixes = head_routes::reads_mix(how);
    c.shared.resize(static_cast<std::size_t>(shares ? c.batch * tokens * how.shared : 0));
    c.mix.resize(static_cast<std::size_t>(mixes ? c.batch * tokens * 2 : 0));
    std::vector<const T*> rows;
    for (index i = 0; i < routed; ++i) rows.push_back(&net.routed(i, 0));
    for (index i = 0; shares && i < how.shared; ++i) rows.push_back(&net.shared(i, 0));
    for (index i = 0; mixes && i < 2; ++i) rows.push_back(&net.mix(i, 0));
    if (c.gate.empty()) return c;
    const head_routes::products<T> multiply(rows, x.extent(2));
    head_routes::token_block<T> block(how, routed, shares, mixes);
    std::vector<T> logits(static_cast<std::size_t>(block.width * multiply.stride()));
    const T* at[block.width];
    for (index first = 0, all = c.batch * tokens; first < all; first += block.tokens) {
        const int count = static_cast<int>(std::min<index>(block.tokens, all - first));
        for (int i = 0; i < block.width; ++i) {
            const index t = std::min(first + i, all - 1);
            at[i] = x.data + x.offset(t / tokens, t % tokens, index{0});
        }
        multiply(at, count, logits.data());
        transpose_into(rows_apart<const T>{logits.data(), multiply.stride()}, count, block.rows(), rows_apart<T>{block.row(0), block.width},
                       T{1});
        block.decide();
        block.write(c, first, count);
    }
    return c;
}

template <class T>
double balance_loss(const head_choice<T>& c) {
    const auto all = static_cast<double>(c.batch * c.tokens);
    std::vector<double> mean(static_cast<std::size_t>(c.routed())), count(mean.size());
    for (std::size_t i = 0; i < c.probability.size(); ++i) mean[i % mean.size()] += static_cast<double>(c.probability[i]);
    for (const std::int32_t i : c.chosen) ++count[static_cast<std::size_t>(i)];
    double loss = 0;
    for (std::size_t i = 0; i < mean.size(); ++i) loss += mean[i] / all * (count[i] / all);
    return c.how.scaled ? loss * static_cast<double>(c.routed()) : loss;
}

// d_gates (B, N, H), d_balance the gradient of the loss; dx (B, N, C) and the gradients of all that was read are overwritten.
template <class W, class T = std::remove_const_t<W>>
void route_heads_backward(const head_router<W>& net, const view<const std::type_identity_t<T>, 3>& x, const head_choice<T>& c,
                          const view<const std::type_identity_t<T>, 3>& d_gates, double d_balance,
                          const view<std::type_identity_t<T>, 3>& dx, const head_router<std::type_identity_t<T>>& gradients) {
    constexpr const char* door = "route_heads_backward";
    head_routes::check(door, net, c.how, x.extent(2));
    head_routes::check(door, gradients, c.how, x.extent(2));
    require(net.routed.extent(0) == c.routed(), door, "W_r rows", net.routed.extent(0), "must equal routed heads", c.routed());
    require(gradients.routed.extent(0) == c.routed(), door, "gradient of W_r rows", gradients.routed.extent(0), "must equal routed heads",
            c.routed());
    head_routes::check_tokens(door, "x", x);
    head_routes::check_tokens(door, "dx", dx);
    require(x.extent(0) == c.batch, door, "x batch", x.extent(0), "must equal batch", c.batch);
    require(x.extent(1) == c.tokens, door, "x tokens", x.extent(1), "must equal tokens", c.tokens);
    require(dx.shape == x.shape, door, "dx must have the shape of x");
    head_routes::check_gates(door, c, d_gates);
    const head_routing& how = c.how;
    const index features = x.extent(2), routed = c.routed();
    const bool shares = head_routes::reads_shared(how), mixes = head_routes::reads_mix(how);
    const std::vector<T> slope = head_routes::balance_slope(c, d_balance);
    std::vector<T> d_gate(static_cast<std::size_t>(c.heads)), dr(slope.size()), ds(static_cast<std::size_t>(how.shared)), da(2);
    const auto clear = [&](const view<T, 2>& w) {
        for (index i = 0; i < w.extent(0); ++i) std::fill_n(&w(i, 0), features, T{0});
    };
    clear(gradients.routed);
    if (shares) clear(gradients.shared);
    if (mixes) clear(gradients.mix);
    for (index b = 0; b < c.batch; ++b)
        for (index t = 0; t < c.tokens; ++t) {
            const index at = b * c.tokens + t;
            const T *r = c.probability.data() + at * routed, *s = c.shared.data() + at * how.shared, *a = c.mix.data() + at * 2;
            for (index h = 0; h < c.heads; ++h) d_gate[static_cast<std::size_t>(h)] = d_gates(b, t, h);
            dr = slope;
            head_routes::gates_back(how, r, s, a, c.chosen.data() + at * how.active, d_gate.data(), dr.data(), ds.data(), da.data());
            const T* token = x.data + x.offset(b, t, index{0});
            T* d_token = dx.data + dx.offset(b, t, index{0});
            std::fill_n(d_token, features, T{0});
            const auto give = [&](const T* probability, std::vector<T>& d, const view<W, 2>& w, const view<T, 2>& into) {
                head_routes::softmax_back(probability, d.data(), static_cast<index>(d.size()));
                for (index i = 0; i < static_cast<index>(d.size()); ++i) {
                    const T g = d[static_cast<std::size_t>(i)];
                    const T* row = &w(i, 0);
                    T* d_row = &into(i, 0);
                    for (index f = 0; f < features; ++f) {
                        d_token[f] += g * row[f];
                        d_row[f] += g * token[f];
                    }
                }
            };
            give(r, dr, net.routed, gradients.routed);
            if (shares) give(s, ds, net.shared, gradients.shared);
            if (mixes) give(a, da, net.mix, gradients.mix);
        }
}

// q (B, H, N, D), before rotary embedding; of the flags straight_through is implied, and needs no parameters. At least two heads must be
// routed; where all of a token's norms are equal its probabilities are NaN, and the first heads are chosen.
template <class X, class T = std::remove_const_t<X>>
head_choice<T> route_heads_by_norm(const view<X, 4>& q, head_routing how) {
    constexpr const char* door = "route_heads_by_norm";
    how.straight_through = true;
    head_routes::check(door, how, q.extent(1));
    require(q.data != nullptr || q.empty(), door, "query must not be null");
    const index routed = q.extent(1) - how.shared;
    require(routed != 1, door, "routed heads", routed, "must not be", 1);
    auto c = head_routes::empty_choice<T>(how, q.extent(0), q.extent(2), q.extent(1));
    head_routes::token_block<T> block(how, routed, false, false);
    for (index first = 0, all = c.batch * c.tokens; first < all; first += block.tokens) {
        const int count = static_cast<int>(std::min<index>(block.tokens, all - first));
        for (int n = 0; n < count; ++n) {
            const index b = (first + n) / c.tokens, t = (first + n) % c.tokens;
            T mean = 0, square = 0;
            for (index i = 0; i < routed; ++i) {
                const T* row = q.data + q.offset(b, how.shared + i, t, index{0});
                T sum = 0;
                for (index d = 0; d < q.extent(3); ++d) sum += row[d * q.stride(3)] * row[d * q.stride(3)];
                block.row(i)[n] = std::sqrt(sum);
                mean += block.row(i)[n] / static_cast<T>(routed);
            }
            for (index i = 0; i < routed; ++i) square += (block.row(i)[n] - mean) * (block.row(i)[n] - mean);
            const T deviation = std::sqrt(square / static_cast<T>(routed - 1));
            for (index i = 0; i < routed; ++i)
                block.row(i)[n] = deviation > 0 ? block.row(i)[n] / deviation : std::numeric_limits<T>::quiet_NaN();
        }
        block.decide();
        block.write(c, first, count);
    }
    return c;
}

// What the gates add to dq (B, H, N, D), which is overwritten: 0 for shared heads. Only gates of chosen heads pass a gradient on.
template <class X, class T = std::remove_const_t<X>>
void route_heads_by_norm_backward(const view<X, 4>& q, const head_choice<T>& c, const view<const std::type_identity_t<T>, 3>& d_gates,
                                  double d_balance, const view<std::type_identity_t<T>, 4>& dq) {
    constexpr const char* door = "route_heads_by_norm_backward";
    require(q.shape == std::array<index, 4>{c.batch, c.heads, c.tokens, q.extent(3)}, door, "query must have the shape it was routed by");
    require(dq.shape == q.shape, door, "dq must have the shape of query");
    head_routes::check_gates(door, c, d_gates);
    const index routed = c.routed(), features = q.extent(3);
    const std::vector<T> slope = head_routes::balance_slope(c, d_balance);
    std::vector<T> d_gate(static_cast<std::size_t>(c.heads)), dr(slope.size()), norm(slope.size());
    for (index b = 0; b < c.batch; ++b)
        for (index t = 0; t < c.tokens; ++t) {
            const index at = b * c.tokens + t;
            for (index h = 0; h < c.heads; ++h) {
                d_gate[static_cast<std::size_t>(h)] = d_gates(b, t, h);
                for (index d = 0; d < features; ++d) dq(b, h, t, d) = T{0};
            }
            dr = slope;
            head_routes::gates_back<T>(c.how, nullptr, nullptr, nullptr, c.chosen.data() + at * c.how.active, d_gate.data(), dr.data(),
                                       nullptr, nullptr);
            head_routes::softmax_back(c.probability.data() + at * routed, dr.data(), routed);
            T mean = 0, square = 0, along = 0;
            for (index i = 0; i < routed; ++i) {
                T& n = norm[static_cast<std::size_t>(i)];
                n = 0;
                for (index d = 0; d < features; ++d) n += q(b, c.how.shared + i, t, d) * q(b, c.how.shared + i, t, d);
                n = std::sqrt(n);
                mean += n / static_cast<T>(routed);
                along += dr[static_cast<std::size_t>(i)] * n;
            }
            for (const T n : norm) square += (n - mean) * (n - mean);
            const T deviation = std::sqrt(square / static_cast<T>(routed - 1));
            for (index i = 0; i < routed; ++i) {
                const T n = norm[static_cast<std::size_t>(i)];
                const T g = dr[static_cast<std::size_t>(i)] / deviation - along * (n - mean) / (square * deviation);
                for (index d = 0; d < features && n != 0; ++d) dq(b, c.how.shared + i, t, d) = g * q(b, c.how.shared + i, t, d) / n;
            }
        }
}

}  // namespace heed::inline HEED_ISA
