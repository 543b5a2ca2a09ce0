// span_attention(q, k, v, found, out, policies...): a gated mixture of attentions, one for each span that find_spans chose (Superlinear
// attention, 2026).
//
//   O_n = softmax over the window and span n (scale q k^T) v,  g = softmax over slots of the search's scores,  out = sum_n g_n O_n
// Every slot has its own normaliser and the window; a row whose spans are unused gets the window alone, one without keys 0. The window is
// attended once and each span by itself, as runs of keys (engine/run_rows.hpp), and joined by their sums. q (B, H, Tq, D),
// k (B, Hk, Tk, D), v (B, Hk, Tk, Dv), out (B, H, Tq, Dv), all of float or all of double, H a multiple of Hk. Policies: scale, executor,
// run_on. Takes up to 8192 (slots + 1) (D + Dv) elements of memory a worker, the backward 3 Tq (D + Dv) + Tk (D + Dv) elements about. Views
// are borrowed; throws std::invalid_argument, with nothing written, for what does not fit. A decode step is a call of one query, which
// stands at the last cached key, so that a cache no longer than the window is attended whole.
#pragma once

#include <heed/accumulate/merge.hpp>
#include <heed/attention.hpp>
#include <heed/attention_backward.hpp>
#include <heed/engine/run_rows.hpp>
#include <heed/mask/causal.hpp>
#include <heed/mask/window.hpp>
#include <heed/policy.hpp>
#include <heed/select/row_spans.hpp>
#include <heed/select/span_search.hpp>
#include <heed/tensor/error.hpp>
#include <heed/tensor/view.hpp>

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <memory>
#include <type_traits>
#include <utility>
#include <vector>

namespace heed::inline HEED_ISA {

namespace doors {

template <class Policy>
inline constexpr bool of_span_attention =
    on_axis<Policy, axes::scale> || on_axis<Policy, axes::executor> || on_axis<Policy, axes::architecture>;

// Rows [first, first + count) of one head, alone.
template <class T>
view<T, 4> head_rows(const view<T, 4>& v, index b, index h, index first, index count) {
    return {v.data + v.offset(b, h, first, 0), {1, 1, count, v.extent(3)}, v.strides};
}

// Dense rows of one head, yet to be written, and a number for each.
template <class T>
struct rows_with_lse {
    index count, width;
    std::unique_ptr<T[]> rows;
    std::vector<T> numbers;
    rows_with_lse(index n, index w, T number)
        : count(n),
          width(w),
          rows(std::make_unique_for_overwrite<T[]>(static_cast<std::size_t>(n * w))),
          numbers(static_cast<std::size_t>(n), number) {}
    result<T> views() { return {bhtd(rows.get(), 1, 1, count, width), bht(numbers.data(), 1, 1, count)}; }
    T* row(index i) { return rows.get() + i * width; }
    T& number(index i) { return numbers[static_cast<std::size_t>(i)]; }
};

template <class T>
void add_row(T* to, const T* from, T factor, index count) {
    using P = pack<T>;
    index d = 0;
    for (; d + P::lanes <= count; d += P::lanes) fma(P(factor), P::load(from + d), P::load(to + d)).store(to + d);
    for (; d < count; ++d) to[d] += factor * from[d];
}
template <class T>
void set_row(T* to, const T* from, index count) {
    using P = pack<T>;
    index d = 0;
    for (; d + P::lanes <= count; d += P::lanes) P::load(from + d).store(to + d);
    for (; d < count; ++d) to[d] = from[d];
}
template <class T>
T dot_of_rows(const T* x, const T* y, index count) {
    using P = pack<T>;
    P whole(0);
    index d = 0;
    for (; d + P::lanes <= count; d += P::lanes) whole = fma(P::load(x + d), P::load(y + d), whole);
    T rest = sum(whole);
    for (; d < count; ++d) rest += x[d] * y[d];
    return rest;
}

// What one head of a call reads, without padding, and its attentions.
template <class T>
struct span_head {
    const spans& found;
    index b, h, first_row, rows;
    view<const T, 4> q, k, v;

    span_head(const view<const T, 4>& q_all, const view<const T, 4>& k_all, const view<const T, 4>& v_all, const spans& s, index batch,
              index head)
        : found(s), b(batch), h(head), first_row(s.padding(batch)), rows(s.queries - first_row) {
        const index first = s.first[static_cast<std::size_t>(b)], g = head / (s.heads / k_all.extent(1));
        q = head_rows(q_all, b, h, first_row, rows);
        k = head_rows(k_all, b, g, first, s.length - first);
        v = head_rows(v_all, b, g, first, s.length - first);
    }
    // Of slots [n, n_end), the rows of one after those of another.
    row_spans slots(index n, index n_end) const {
        const index first = found.first[static_cast<std::size_t>(b)];
        std::vector<std::int32_t> begin(static_cast<std::size_t>((n_end - n) * rows)), end(begin.size());
        for (std::size_t to = 0; n < n_end; ++n)
            for (index i = 0; i < rows; ++i, ++to) {
                const std::size_t r = found.row(b, h, first_row + i) + static_cast<std::size_t>(n);
                if (found.anchor[r] < 0) continue;
                begin[to] = static_cast<std::int32_t>(found.start[r] - first);
                end[to] = static_cast<std::int32_t>(found.end[r] + 1 - first);
            }
        return {k.extent(2), std::move(begin), std::move(end)};
    }
    void gate(index i, double* weights) const { found.gate(found.row(b, h, first_row + i), weights); }
    template <class... Policies>
    rows_with_lse<T> attend_window(const Policies&... policies) const {
        rows_with_lse<T> seen(rows, v.extent(3), -std::numeric_limits<T>::infinity());
        if (found.window > 0) attention(q, k, v, seen.views(), causal, sliding_window{.left = found.window - 1}, policies...);
        return seen;
    }
};

// Shares of the window and a span in a slot, 0 where neither holds a key.
struct slot_shares {
    double window = 0, span = 0;
    slot_shares(double window_lse, double span_lse) {
        constexpr double none = -std::numeric_limits<double>::infinity();
        if (window_lse == none && span_lse == none) return;
        const double top = std::max(window_lse, span_lse), w = std::exp(window_lse - top), s = std::exp(span_lse - top);
        window = w / (w + s);
        span = s / (w + s);
    }
};

// What run_rows asks of rows.
template <class Query, class Written, class Finish>
struct rows_of_runs {
    Query query;
    Written written;
    Finish finish;
};

// The attentions of some rows of a head, mixed.
template <class P>
class mixed_spans {
public:
    using T = typename P::value_type;
    // Rows taken together, of so many in all: the more there are, the more have keys in common, but threads want some tasks.
    static index rows(index all) { return std::clamp<index>(all / 8, 1024, 8192); }

    mixed_spans(const span_head<T>& head, const view<T, 4>& out, double scale)
        : head_(head), out_(out), runs_(head.k, head.v, static_cast<T>(scale * softmax::unit)) {}

    void attend(index begin, index end) {
        const spans& found = head_.found;
        begin = std::max(begin, head_.first_row);
        if (begin >= end) return;
        const index count = end - begin, slots = found.slots, width = out_.extent(3),
                    first = found.first[static_cast<std::size_t>(head_.b)];
        // Runs of one slot lie behind those of another, a power of two apart: no division for a run's row.
        const int slot_bits = static_cast<int>(std::bit_width(static_cast<std::size_t>(count - 1)));
        const index row_mask = (index{1} << slot_bits) - 1;
        const auto query = [&](index run) { return &head_.q(0, 0, begin - head_.first_row + (run & row_mask), 0); };
        std::vector<std::int32_t> from(static_cast<std::size_t>(count)), to(from.size());
        for (index i = 0; i < count && found.window > 0; ++i) {
            const index next = begin + i + found.offset() + 1 - first;
            from[static_cast<std::size_t>(i)] = static_cast<std::int32_t>(std::max<index>(0, next - found.window));
            to[static_cast<std::size_t>(i)] = static_cast<std::int32_t>(next);
        }
        // What a row's spans are joined by, next to each other: sum and reference of the window, its share, gates of slots.
        const auto window = std::make_unique_for_overwrite<T[]>(static_cast<std::size_t>(count * width));
        const auto window_row = [&](index i) { return window.get() + i * width; };
        constexpr index total_of = 0, reference_of = 1, share_of = 2, gates_of = 3;
        const index pitch = gates_of + slots;
        std::vector<T> numbers(static_cast<std::size_t>(count * pitch));
        const auto of = [&](index i) { return numbers.data() + i * pitch; };
        runs_.attend(from, to, rows_of_runs{query, window_row, [&](index i, const T* o, T total, T reference) {
                                                set_row(window_row(i), o, width);
                                                of(i)[total_of] = total;
                                                of(i)[reference_of] = reference;
                                            }});

        std::vector<double> gate(static_cast<std::size_t>(slots));
        from.assign(static_cast<std::size_t>(slots << slot_bits), 0);
        to.assign(from.size(), 0);
        for (index i = 0; i < count; ++i) {
            const std::size_t r = found.row(head_.b, head_.h, begin + i);
            found.gate(r, gate.data());
            T* numbers_of = of(i);
            for (index n = 0; n < slots; ++n) {
                const std::size_t s = r + static_cast<std::size_t>(n), run = static_cast<std::size_t>((n << slot_bits) + i);
                if (found.anchor[s] >= 0) {
                    from[run] = static_cast<std::int32_t>(found.start[s] - first);
                    to[run] = static_cast<std::int32_t>(found.end[s] + 1 - first);
                }
                numbers_of[gates_of + n] = static_cast<T>(gate[static_cast<std::size_t>(n)]);
                if (from[run] == to[run] && numbers_of[total_of] != 0)
                    numbers_of[share_of] += numbers_of[gates_of + n] / numbers_of[total_of];
            }
        }
        const auto written = [&](index run) {
            prefetch(of(run & row_mask));
            return &out_(head_.b, head_.h, begin + (run & row_mask), 0);
        };
        runs_.attend(from, to,
                     rows_of_runs{query, written, [&](index run, const T* o, T total, T reference) {
                                      const index i = run & row_mask;
                                      T* numbers_of = of(i);
                                      const double g = numbers_of[gates_of + (run >> slot_bits)], seen = numbers_of[total_of];
                                      // Both in powers of two of one reference.
                                      const double apart = seen == 0 || total == 0 ? 0 : double{reference} - numbers_of[reference_of];
                                      const double of_seen = apart > 0 ? std::exp2(-apart) : 1, of_span = apart < 0 ? std::exp2(apart) : 1;
                                      const double all = of_seen * seen + of_span * total;
                                      if (all == 0) return;
                                      if (seen != 0) numbers_of[share_of] += static_cast<T>(g * of_seen / all);
                                      if (total != 0)
                                          add_row(&out_(head_.b, head_.h, begin + i, 0), o, static_cast<T>(g * of_span / all), width);
                                  }});
        for (index i = 0; i < count; ++i)
            if (of(i)[total_of] != 0) add_row(&out_(head_.b, head_.h, begin + i, 0), window_row(i), of(i)[share_of], width);
    }

private:
    const span_head<T>& head_;
    const view<T, 4>& out_;
    run_rows<P> runs_;
};

template <class T>
void check_spans(const char* door, const view<const T, 4>& q, const view<const T, 4>& k, const view<const T, 4>& v, const spans& found) {
    static_assert(std::is_same_v<T, float> || std::is_same_v<T, double>, "heed: span attention is of float or double");
    check_source(door, "query", q);
    check_source(door, "key", k);
    check_source(door, "value", v);
    require(k.extent(0) == q.extent(0), door, "key batch", k.extent(0), "must equal query batch", q.extent(0));
    same_extents(door, "value", v.shape, "key", k.shape, 3);
    require(k.extent(3) == q.extent(3), door, "key features", k.extent(3), "must equal query features", q.extent(3));
    require(k.extent(1) > 0 ? q.extent(1) % k.extent(1) == 0 : q.extent(1) == 0, door, "query heads", q.extent(1),
            "must be a multiple of key heads", k.extent(1));
    found.check(door, {q.extent(0), q.extent(1), k.extent(1), q.extent(2), k.extent(2)});
}

}  // namespace doors

template <class Q, class K, class V, class T, class... Policies>
void span_attention(const view<Q, 4>& q_rows, const view<K, 4>& k_rows, const view<V, 4>& v_rows, const spans& found, const view<T, 4>& out,
                    const Policies&... policies) {
    static_assert((doors::of_span_attention<Policies> && ...), "heed: policies of span_attention are scale, executor and run_on");
    constexpr const char* door = "span_attention";
    const view<const T, 4> q = q_rows, k = k_rows, v = v_rows;
    doors::check_spans(door, q, k, v, found);
    one_on<axes::scale>(scale{}, policies...).check(door, {});
    doors::check_written(door, "out", out, out.extent(3));
    doors::same_extents(door, "out", out.shape, "query", q.shape, 3);
    require(out.extent(3) == v.extent(3), door, "out features", out.extent(3), "must equal value features", v.extent(3));
    doors::check_apart(door, "out", out, "query", q);
    doors::check_apart(door, "out", out, "key", k);
    doors::check_apart(door, "out", out, "value", v);

    using arch_type = typename decltype(one_on<axes::architecture>(run_on<arch::native>{}, policies...))::type;
    const double by = one_on<axes::scale>(scale{dot{}.default_scale(q.extent(3))}, policies...).value;
    const index width = v.extent(3), rows = doors::mixed_spans<pack<T, arch_type>>::rows(found.batch * found.heads * found.queries);
    const index blocks = (found.queries + rows - 1) / rows;
    one_on<axes::executor>(sequential{}, policies...).bulk(found.batch * found.heads * blocks, [&](index task, index) {
        const index b = task / blocks / found.heads, h = task / blocks % found.heads, first = task % blocks * rows;
        for (index i = first; i < std::min(found.queries, first + rows); ++i) std::fill_n(&out(b, h, i, 0), width, T{0});
        const doors::span_head<T> head(q, k, v, found, b, h);
        if (width > 0) doors::mixed_spans<pack<T, arch_type>>(head, out, by).attend(first, std::min(found.queries, first + rows));
    });
}

// Gradients of span_attention, all overwritten: d_q, d_k and d_v as q, k and v, and d_scores (B, H, Tq, slots) that of the search's scores,
// 0 for unused slots, from which find_spans_backward goes on. Makes the parts of the forward again.
template <class Q, class K, class V, class G, class T, class... Policies>
void span_attention_backward(const view<Q, 4>& q_rows, const view<K, 4>& k_rows, const view<V, 4>& v_rows, const spans& found,
                             const view<G, 4>& d_out_rows, const view<T, 4>& d_q, const view<T, 4>& d_k, const view<T, 4>& d_v,
                             const view<T, 4>& d_scores, const Policies&... policies) {
    static_assert((doors::of_span_attention<Policies> && ...), "heed: policies of span_attention are scale, executor and run_on");
    constexpr const char* door = "span_attention_backward";
    const view<const T, 4> q = q_rows, k = k_rows, v = v_rows, d_out = d_out_rows;
    doors::check_spans(door, q, k, v, found);
    one_on<axes::scale>(scale{}, policies...).check(door, {});
    doors::check_source(door, "d_out", d_out);
    doors::same_extents(door, "d_out", d_out.shape, "query", q.shape, 3);
    require(d_out.extent(3) == v.extent(3), door, "d_out features", d_out.extent(3), "must equal value features", v.extent(3));
    const auto written = [&](const char* name, const view<T, 4>& x, const char* like, const std::array<index, 4>& shape) {
        doors::check_written(door, name, x, x.extent(3));
        doors::same_extents(door, name, x.shape, like, shape, 4);
        for (const auto& [other, read] : {std::pair{"query", q}, {"key", k}, {"value", v}, {"d_out", d_out}})
            doors::check_apart(door, name, x, other, read);
    };
    written("d_q", d_q, "query", q.shape);
    written("d_k", d_k, "key", k.shape);
    written("d_v", d_v, "value", v.shape);
    written("d_scores", d_scores, "expected", {found.batch, found.heads, found.queries, found.slots});

    const index depth = q.extent(3), width = v.extent(3);
    for (const auto* x : {&d_q, &d_k, &d_v, &d_scores})
        for (index b = 0; b < x->extent(0); ++b)
            for (index h = 0; h < x->extent(1); ++h)
                for (index i = 0; i < x->extent(2); ++i)
                    if (x->extent(3) > 0) std::fill_n(&(*x)(b, h, i, 0), x->extent(3), T{0});
    if (width == 0) return;

    std::vector<double> gate(static_cast<std::size_t>(found.slots));
    for (index b = 0; b < found.batch; ++b)
        for (index h = 0; h < found.heads; ++h) {
            const doors::span_head<T> head(q, k, v, found, b, h);
            if (head.rows == 0) continue;
            const index first = found.first[static_cast<std::size_t>(b)], g_head = h / (found.heads / k.extent(1)), keys = head.k.extent(2);
            auto window = head.attend_window(policies...);
            doors::rows_with_lse<T> d_window(head.rows, width, 0), span(head.rows, width, 0), d_span(head.rows, width, 0);
            std::fill_n(d_window.row(0), head.rows * width, T{0});
            std::vector<T> dq(static_cast<std::size_t>(head.rows * depth)), dk(static_cast<std::size_t>(keys * depth)),
                dv(static_cast<std::size_t>(keys * width));
            const auto add_gradients = [&](doors::rows_with_lse<T>& seen, doors::rows_with_lse<T>& d_seen, const auto&... masks) {
                attention_backward(head.q, head.k, head.v, seen.views(), d_seen.views(), bhtd(dq.data(), 1, 1, head.rows, depth),
                                   bhtd(dk.data(), 1, 1, keys, depth), bhtd(dv.data(), 1, 1, keys, width), masks..., policies...);
                if (depth > 0) {
                    for (index i = 0; i < head.rows; ++i)
                        doors::add_row(&d_q(b, h, head.first_row + i, 0), dq.data() + i * depth, T{1}, depth);
                    for (index j = 0; j < keys; ++j) doors::add_row(&d_k(b, g_head, first + j, 0), dk.data() + j * depth, T{1}, depth);
                }
                for (index j = 0; j < keys; ++j) doors::add_row(&d_v(b, g_head, first + j, 0), dv.data() + j * width, T{1}, width);
            };
            for (index n = 0; n < found.slots; ++n) {
                const row_spans rows = head.slots(n, n + 1);
                attention(head.q, head.k, head.v, span.views(), in_span{&rows}, policies...);
                for (index i = 0; i < head.rows; ++i) {
                    const T* gradient = &d_out(b, h, head.first_row + i, 0);
                    const doors::slot_shares shares(window.number(i), span.number(i));
                    head.gate(i, gate.data());
                    const double g = gate[static_cast<std::size_t>(n)];
                    const double along_window = shares.window != 0 ? doors::dot_of_rows(gradient, window.row(i), width) : 0;
                    const double along_span = shares.span != 0 ? doors::dot_of_rows(gradient, span.row(i), width) : 0;
                    // By the gate for now; by scores when all slots are known.
                    d_scores(b, h, head.first_row + i, n) = static_cast<T>(shares.window * along_window + shares.span * along_span);
                    const double towards_span = g * shares.window * shares.span * (along_span - along_window);
                    std::fill_n(d_span.row(i), width, T{0});
                    doors::add_row(d_span.row(i), gradient, static_cast<T>(g * shares.span), width);
                    doors::add_row(d_window.row(i), gradient, static_cast<T>(g * shares.window), width);
                    d_span.number(i) = static_cast<T>(towards_span);
                    d_window.number(i) -= static_cast<T>(towards_span);
                }
                add_gradients(span, d_span, in_span{&rows});
            }
            if (found.window > 0) add_gradients(window, d_window, causal, sliding_window{.left = found.window - 1});
            for (index i = 0; i < head.rows; ++i) {
                head.gate(i, gate.data());
                const std::size_t r = found.row(b, h, head.first_row + i);
                T* d = &d_scores(b, h, head.first_row + i, 0);
                double mean = 0;
                for (std::size_t n = 0; n < gate.size(); ++n) mean += gate[n] * static_cast<double>(d[n]);
                for (std::size_t n = 0; n < gate.size(); ++n)
                    d[n] = found.anchor[r + n] < 0 ? T{0} : static_cast<T>(gate[n] * (static_cast<double>(d[n]) - mean));
            }
        }
}

}  // namespace heed::inline HEED_ISA
