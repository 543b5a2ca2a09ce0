// Headline figures of content-dependent sparsity: the choice of keys included, against heed's own dense attention, beside what counted
// FLOPs promise.
#include <heed/score/key_bias.hpp>
#include <heed/select/antidiagonal.hpp>
#include <heed/select/blocks.hpp>
#include <heed/select/kept_keys.hpp>
#include <heed/select/lifetimes.hpp>
#include <heed/select/selection.hpp>
#include <heed/select/span_search.hpp>
#include <heed/select/top_keys.hpp>
#include <heed/select/value_scores.hpp>
#include <heed/span_attention.hpp>

#include "backward_data.hpp"
#include "sparse_figures.hpp"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <functional>
#include <iterator>
#include <memory>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

namespace heed_bench {

namespace {

using work = std::function<void(std::int64_t)>;

constexpr index head_dim = 64;

std::string milliseconds(double seconds) { return times(1e3 * seconds) + " ms"; }

std::string name_of(const shape& s, const std::string& what, const char* door = "attention") {
    return std::string(door) + "/f32/" + s.name() + "/" + what;
}

template <class F>
work repeated(F f) {
    return [=](std::int64_t n) {
        for (; n > 0; --n) f();
    };
}

// Seconds of pieces of work in turns; element i of each belongs to element i of the others.
std::vector<std::vector<double>> in_turns(const session& settings, const std::vector<work>& all) {
    std::vector<slice<work>> slices;
    for (const work& w : all) slices.emplace_back(w, settings.slice_seconds);
    double longest = 0;
    for (const auto& s : slices) longest = std::max(longest, s.seconds());
    std::vector<std::vector<double>> seconds(all.size());
    for (int i = settings.pairs(longest); i > 0; --i)
        for (std::size_t n = 0; n < all.size(); ++n) seconds[n].push_back(slices[n]());
    return seconds;
}

// Attention in double of a query to rows i < n, which add(i) to their scores.
template <class Key, class Value, class Bias>
std::vector<double> in_double(const float* q, index n, Key&& key, Value&& value, Bias&& bias) {
    std::vector<double> out(static_cast<std::size_t>(head_dim));
    double total = 0;
    for (index i = 0; i < n; ++i) {
        double dot = 0;
        for (index c = 0; c < head_dim; ++c) dot += static_cast<double>(q[c]) * static_cast<double>(key(i)[c]);
        const double weight = std::exp(dot / std::sqrt(static_cast<double>(head_dim)) + bias(i));
        total += weight;
        for (index c = 0; c < head_dim; ++c) out[static_cast<std::size_t>(c)] += weight * static_cast<double>(value(i)[c]);
    }
    for (double& x : out) x /= total;
    return out;
}
void expect(const std::vector<double>& wanted, const float* got, const std::string& name) {
    for (std::size_t c = 0; c < wanted.size(); ++c)
        if (!(std::abs(wanted[c] - static_cast<double>(got[c])) <= 1e-5)) throw std::runtime_error(name + ": an output is wrong");
}

void attend_all(problem<float>& data) { heed::attention(data.q(), data.k(), data.v(), data.out(), heed::causal); }

// Dynamic mask attention, with scores made of the values.
class dynamic_mask {
public:
    dynamic_mask(index n, index kept)
        : data(square(head_dim, n, 1)), kept_(kept), weight_(static_cast<std::size_t>(head_dim)), scores_(static_cast<std::size_t>(n)) {
        fill_normal<float>({weight_.data(), weight_.size()}, 61);
        for (float& w : weight_) w /= 8;
    }
    void choose() {
        heed::value_scores(data.v(), {.weight = {weight_.data(), {1, head_dim}, {head_dim, 1}}, .slope = slope_}, scores());
        lives_ = heed::top_keys(scores(), kept_);
    }
    void attend() {
        heed::attention(data.q(), data.k(), data.v(), data.out(), heed::alive{&lives_},
                        heed::key_bias{heed::view<const float, 3>(scores())});
    }
    void run() {
        choose();
        attend();
    }
    void check(const std::string& name) {
        run();
        const index n = data.dims().keys;
        const auto seen = heed::alive{&lives_}.bind({1, 1, 1, n, n});
        data.check(
            causal_band,
            [&](double score, index, index query, index key) {
                return seen.allows(0, 0, query, key) ? score + static_cast<double>(scores()(0, 0, key)) : -INFINITY;
            },
            name);
    }
    double flop_bound() const {
        return visible_pairs(data.dims(), causal_band) / visible_pairs(data.dims(), {.left = kept_ - 1, .right = 0});
    }

    problem<float> data;

private:
    heed::view<float, 3> scores() { return heed::bht(scores_.data(), 1, 1, data.dims().keys); }

    index kept_;
    std::vector<float> weight_, scores_, slope_{.5f};
    heed::lifetimes lives_;
};

void add_dynamic_mask(std::vector<figure>& figures, index n, index kept, double bar) {
    const std::string name = name_of(square(head_dim, n, 1), "dynamic_mask" + std::to_string(kept));
    figures.push_back({name, bar, "times causal", [=](session& settings) {
                           dynamic_mask sparse(n, kept);
                           sparse.check(name);
                           return share(settings, repeated([&] { attend_all(sparse.data); }), repeated([&] { sparse.run(); }), 1,
                                        ", FLOP bound " + times(sparse.flop_bound()));
                       }});
}

// Scores of keys and the choice by them take at most 15 % of the attention.
figure choice_of_keys(index n, index kept) {
    const std::string name = name_of(square(head_dim, n, 1), "dynamic_mask" + std::to_string(kept) + "/choice");
    return {name, 1 / 0.15, "attention over choice", [=](session& settings) {
                dynamic_mask sparse(n, kept);
                sparse.check(name);
                const auto t = in_turns(settings, {repeated([&] { sparse.attend(); }), repeated([&] { sparse.choose(); })});
                measurement m = compared(t[0], t[1]);
                m.note = "choice " + milliseconds(median(t[1])) + ", attention " + milliseconds(median(t[0]));
                return m;
            }};
}

// Fewer keys than some hundred never cost more than these.
figure few_keys(index n, const std::vector<index>& widths) {
    const std::string name =
        name_of(square(head_dim, n, 1), "dynamic_mask" + std::to_string(widths.front()) + "_" + std::to_string(widths.back()));
    return {name, 1 / 1.1, "seconds with most keys over the slowest of fewer", [=](session& settings) {
                std::vector<std::unique_ptr<dynamic_mask>> masks;
                std::vector<work> runs;
                for (const index width : widths) {
                    masks.push_back(std::make_unique<dynamic_mask>(n, width));
                    masks.back()->check(name);
                    runs.push_back(repeated([mask = masks.back().get()] { mask->run(); }));
                }
                for (dynamic_mask* mask : {masks.front().get(), masks.back().get()}) runs.push_back(repeated([mask] { mask->choose(); }));
                const auto t = in_turns(settings, runs);
                const std::size_t most = widths.size() - 1;
                std::size_t slowest = 0;
                for (std::size_t i = 1; i < most; ++i)
                    if (median(t[i]) > median(t[slowest])) slowest = i;
                measurement m = compared(t[most], t[slowest]);
                m.note = "keys";
                for (std::size_t i = 0; i <= most; ++i) m.note += " " + std::to_string(widths[i]) + ": " + milliseconds(median(t[i])) + ",";
                m.note += " choice " + milliseconds(median(t[most + 1])) + " and " + milliseconds(median(t[most + 2])) + "; " +
                          times(masks.front()->flop_bound() / masks.back()->flop_bound()) + " times the pairs";
                return m;
            }};
}

// Decoding with the best keys of a history kept in a cache that does not grow.
class kept_cache {
public:
    kept_cache(index kept, index history) : kept_(kept), at_history_(kept), news_(4096) {
        const auto rows = static_cast<std::size_t>(kept * head_dim);
        for (auto* x : {&k_, &v_}) *x = buffer<float>(rows);
        scores_ = buffer<float>(static_cast<std::size_t>(kept));
        for (auto* x : {&q_, &out_, &new_k_, &new_v_}) *x = buffer<float>(static_cast<std::size_t>(head_dim));
        std::uint64_t seed = 70;
        for (auto* x : {&k_, &v_, &q_, &new_k_, &new_v_}) fill_normal<float>({x->data(), x->size()}, ++seed);
        std::vector<float> all(static_cast<std::size_t>(history));
        fill_normal<float>({all.data(), all.size()}, 78);
        fill_normal<float>({news_.data(), news_.size()}, 79);
        for (const float score : all)
            if (const index slot = at_history_.append(score); slot >= 0) scores_[static_cast<std::size_t>(slot)] = score;
    }
    void run(std::int64_t tokens) {
        heed::kept_keys<float> list = at_history_;
        for (std::int64_t t = 0; t < tokens; ++t) {
            const float score = news_[static_cast<std::size_t>(t) % news_.size()];
            if (const index slot = list.append(score); slot >= 0) {
                std::copy_n(new_k_.data(), head_dim, k_.data() + slot * head_dim);
                std::copy_n(new_v_.data(), head_dim, v_.data() + slot * head_dim);
                scores_[static_cast<std::size_t>(slot)] = score;
            }
            const auto row = [](buffer<float>& x, index n) { return heed::bhtd(x.data(), 1, 1, n, head_dim); };
            heed::attention(row(q_, 1), row(k_, list.size()), row(v_, list.size()), row(out_, 1),
                            heed::key_bias{heed::bht<const float>(scores_.data(), 1, 1, list.size())});
        }
    }
    void check(const std::string& name) {
        run(1);
        const auto at = [](buffer<float>& x) { return [&x](index i) { return x.data() + i * head_dim; }; };
        expect(
            in_double(q_.data(), kept_, at(k_), at(v_), [&](index i) { return static_cast<double>(scores_[static_cast<std::size_t>(i)]); }),
            out_.data(), name);
    }

private:
    index kept_;
    heed::kept_keys<float> at_history_;
    std::vector<float> news_;
    buffer<float> q_, k_, v_, out_, new_k_, new_v_, scores_;
};

figure decoding_kept(index kept, index near, index far) {
    const std::string name = "attention/f32/d64_q1_k" + std::to_string(far) + "/kept" + std::to_string(kept);
    return {name, 1 / 1.1, "seconds a token after " + std::to_string(near) + " over it", [=](session& settings) {
                kept_cache early(kept, near), late(kept, far);
                early.check(name);
                late.check(name);
                const auto t = in_turns(settings, {[&](std::int64_t n) { early.run(n); }, [&](std::int64_t n) { late.run(n); }});
                measurement m = compared(t[0], t[1]);
                m.note = milliseconds(median(t[0])) + " and " + milliseconds(median(t[1]));
                return m;
            }};
}

// XAttention with at most `part` of the causal blocks, the estimate included in time and FLOPs.
figure antidiagonals(index n, double part, double bar, bool in_quick) {
    const shape s = square(head_dim, n, 1);
    const std::string name = name_of(s, "xattention");
    return {name, bar, "speed-up over causal per FLOP bound", [=](session& settings) {
                if (settings.quick && !in_quick) return measurement{.note = "not in a quick run"};
                problem<float> data(s);
                const heed::antidiagonal how{};
                const index blocks = heed::blocks_of(n, how.block), strides = heed::blocks_of(n, how.stride);
                std::vector<float> numbers(static_cast<std::size_t>(blocks * blocks));
                const auto scores = heed::bhtd(numbers.data(), 1, 1, blocks, blocks);
                double threshold = 0;
                heed::selection picks;
                const auto choose = [&] {
                    heed::antidiagonal_scores(data.q(), data.k(), scores, how);
                    picks = heed::antidiagonal_blocks(scores, threshold);
                };
                const auto attend = [&] {
                    heed::attention(data.q(), data.k(), data.v(), data.out(), heed::causal,
                                    heed::selected_blocks{&picks, how.block, how.block});
                };
                choose();
                double above = 1;
                while (above - threshold > 1e-3) {
                    const double middle = (threshold + above) / 2;
                    picks = heed::antidiagonal_blocks(scores, middle);
                    const bool few = 2 * static_cast<double>(picks.keys.size()) <= part * static_cast<double>(blocks * (blocks + 1));
                    (few ? threshold : above) = middle;
                }
                choose();
                attend();
                check_rows(data, heed::causal & heed::selected_blocks{&picks, how.block, how.block}, name);
                double pairs = 0;
                for (index r = 0; r < blocks; ++r)
                    for (const std::int32_t c : picks.row(0, 0, r))
                        pairs += static_cast<double>(c < r ? how.block * how.block : how.block * (how.block + 1) / 2);
                const double dense = forward_flops(s, causal_band), sparse = 4. * pairs * static_cast<double>(head_dim),
                             estimate = static_cast<double>(strides * (strides + 1) * how.stride * head_dim);
                const auto t = in_turns(settings, {repeated(choose), repeated(attend)});
                return share(settings, repeated([&] { attend_all(data); }), repeated([&] {
                                 choose();
                                 attend();
                             }),
                             dense / (sparse + estimate),
                             ", FLOP bound " + times(dense / (sparse + estimate)) + ", without estimate " + times(dense / sparse) + "; " +
                                 times(200. * static_cast<double>(picks.keys.size()) / static_cast<double>(blocks * (blocks + 1))) +
                                 " % of blocks, estimate " + times(100 * median(t[0]) / (median(t[0]) + median(t[1]))) + " % of the time");
            }};
}

// Superlinear attention: the search, the window and the spans.
class superlinear {
public:
    static constexpr heed::span_rule rule{.window = 3, .slots = 3, .backward = 2, .forward = 0};

    explicit superlinear(index n) : data(square(head_dim, n, 1)) {}
    void search() { found_ = heed::find_spans(data.q(), data.k(), rule); }
    void run() {
        search();
        heed::span_attention(data.q(), data.k(), data.v(), found_, data.out());
    }
    void check(const std::string& name) {
        run();
        const index n = data.dims().keys;
        for (const index row : {index{0}, n / 3, n - 1}) {
            const std::size_t r = found_.row(0, 0, row);
            std::vector<double> gate(static_cast<std::size_t>(found_.slots)), mixed(static_cast<std::size_t>(head_dim));
            found_.gate(r, gate.data());
            for (std::size_t slot = 0; slot < gate.size(); ++slot) {
                std::vector<index> keys;
                for (index j = std::max<index>(0, row - found_.window + 1); j <= row; ++j) keys.push_back(j);
                if (found_.anchor[r + slot] >= 0)
                    for (index j = found_.start[r + slot]; j <= found_.end[r + slot]; ++j) keys.push_back(j);
                const auto part = in_double(
                    &data.q()(0, 0, row, 0), static_cast<index>(keys.size()),
                    [&](index i) { return &data.k()(0, 0, keys[static_cast<std::size_t>(i)], 0); },
                    [&](index i) { return &data.v()(0, 0, keys[static_cast<std::size_t>(i)], 0); }, [](index) { return 0.; });
                for (std::size_t c = 0; c < part.size(); ++c) mixed[c] += gate[slot] * part[c];
            }
            expect(mixed, &data.out()(0, 0, row, 0), name);
        }
    }
    double flop_bound() const {
        double anchors = 0, pairs = 0;
        const index n = data.dims().keys;
        for (index t = 0; t < n; ++t) {
            for (index i = rule.window + 1; rule.stripe(i) <= t + 1; ++i) ++anchors;
            pairs += static_cast<double>(std::min(found_.window, t + 1));
        }
        for (std::size_t i = 0; i < found_.anchor.size(); ++i)
            if (found_.anchor[i] >= 0) pairs += static_cast<double>(found_.end[i] - found_.start[i] + 1);
        return forward_flops(data.dims(), causal_band) / (static_cast<double>(head_dim) * (4 * pairs + 2 * anchors));
    }

    problem<float> data;

private:
    heed::spans found_;
};

figure spans_over_dense(index n, double bar) {
    const std::string name = name_of(square(head_dim, n, 1), "superlinear");
    return {name, bar, "times causal", [=](session& settings) {
                superlinear sparse(n);
                sparse.check(name);
                const index dense_n = settings.quick ? n / 4 : n;
                problem<float> dense(square(head_dim, dense_n, 1));
                const double scaled = static_cast<double>((n / dense_n) * (n / dense_n));
                return share(
                    settings, repeated([&] { attend_all(dense); }), repeated([&] { sparse.run(); }), 1 / scaled,
                    (scaled > 1 ? " (times " + times(scaled) + ", dense of " + std::to_string(dense_n) + " tokens)" : std::string()) +
                        ", FLOP bound " + times(sparse.flop_bound()));
            }};
}

figure growth_of_spans(index n, index longer) {
    const std::string name = name_of(square(head_dim, longer, 1), "superlinear/growth");
    return {name, 1, "1.6 over the exponent of time in tokens", [=](session& settings) {
                superlinear first(n), second(longer);
                first.check(name);
                second.check(name);
                const auto t = in_turns(
                    settings, {repeated([&] { first.run(); }), repeated([&] { second.run(); }), repeated([&] { second.search(); })});
                const auto exponent = [&](double ratio) {
                    return std::log(ratio) / std::log(static_cast<double>(longer) / static_cast<double>(n));
                };
                const double grown = exponent(median_ratio(t[1], t[0]));
                return measurement{.value = 1.6 / grown,
                                   .best = 1.6 / exponent(quantile(t[1], 0.1) / quantile(t[0], 0.1)),
                                   .note = "exponent " + times(grown) + ", " + milliseconds(median(t[0])) + " at " + std::to_string(n) +
                                           ", " + milliseconds(median(t[1])) + " at " + std::to_string(longer) + ", search " +
                                           milliseconds(median(t[2]))};
            }};
}

// A row of `count` numbers below `length`, ascending.
void draw_row(heed::selection& picks, index count, std::mt19937& random) {
    std::vector<std::int32_t> all(static_cast<std::size_t>(picks.length)), row;
    for (index i = 0; i < picks.length; ++i) all[static_cast<std::size_t>(i)] = static_cast<std::int32_t>(i);
    std::sample(all.begin(), all.end(), std::back_inserter(row), count, random);
    picks.keys.insert(picks.keys.end(), row.begin(), row.end());
    picks.row_begin.push_back(static_cast<index>(picks.keys.size()));
}

// One query in each of some layers with the keys, or blocks of keys, that an earlier layer chose: how much faster than with all keys,
// per ratio of their numbers, which is what HyLRA counts. The note has as many neighbouring keys too, whose rows the processor
// foresees, and what reading the chosen rows takes where nothing is computed.
figure reuse(index keys, index taken, index block) {
    const std::string name = "attention/f32/d64_q1_k" + std::to_string(keys) + "/reused" + std::to_string(taken) +
                             (block > 1 ? "_block" + std::to_string(block) : std::string());
    return {
        name, 0.95, "speed-up over all keys per ratio of keys", [=](session& settings) {
            constexpr index layers = 8;
            const auto rows = static_cast<std::size_t>(keys * head_dim);
            std::vector<buffer<float>> k, v;
            buffer<float> q(static_cast<std::size_t>(head_dim)), out(q.size());
            fill_normal<float>({q.data(), q.size()}, 81);
            for (index l = 0; l < layers; ++l)
                for (auto* x : {&k, &v}) {
                    x->emplace_back(rows);
                    fill_normal<float>({x->back().data(), rows}, 82 + static_cast<std::uint64_t>(2 * l + (x == &v)));
                }
            heed::selection picks{1, 1, 1, keys / block, {0}, {}};
            std::mt19937 random(80);
            draw_row(picks, taken / block, random);
            const auto row = [](buffer<float>& x, index n) { return heed::bhtd(x.data(), 1, 1, n, head_dim); };
            const auto each_layer = [&](auto&& f) {
                for (std::size_t l = 0; l < static_cast<std::size_t>(layers); ++l) f(k[l], v[l]);
            };
            const auto neighbours = [&](index n) {
                return repeated(
                    [&, n] { each_layer([&](auto& kl, auto& vl) { heed::attention(row(q, 1), row(kl, n), row(vl, n), row(out, 1)); }); });
            };
            const auto chosen = repeated([&] {
                each_layer([&](auto& kl, auto& vl) {
                    if (block > 1)
                        heed::attention(row(q, 1), row(kl, keys), row(vl, keys), row(out, 1), heed::selected_blocks{&picks, 1, block});
                    else
                        heed::attention(row(q, 1), row(kl, keys), row(vl, keys), row(out, 1), heed::selected{&picks});
                });
            });
            chosen(1);
            const auto at = [&](buffer<float>& x) {
                return [&](index i) { return x.data() + (picks.keys[static_cast<std::size_t>(i / block)] * block + i % block) * head_dim; };
            };
            expect(in_double(q.data(), taken, at(k.back()), at(v.back()), [](index) { return 0.; }), out.data(), name);
            volatile float seen = 0;
            const auto read = repeated([&] {
                using P = heed::pack<float>;
                each_layer([&](auto& kl, auto& vl) {
                    clobber_memory();
                    P most[head_dim / P::lanes];
                    for (P& m : most) m = P(0);
                    for (auto* x : {&kl, &vl})
                        for (index i = 0; i < taken; ++i)
                            for (index j = 0; j < head_dim / P::lanes; ++j) most[j] = max(most[j], P::load(at(*x)(i) + j * P::lanes));
                    for (const P& m : most) seen = sum(m);
                });
            });
            const auto t = in_turns(settings, {neighbours(taken), chosen, neighbours(keys), read});
            const double ideal = static_cast<double>(keys) / static_cast<double>(taken);
            measurement m = compared(t[2], t[1]);
            m.value /= ideal;
            m.best /= ideal;
            m.note = "a layer " + milliseconds(median(t[1]) / layers) + ", all keys " + milliseconds(median(t[2]) / layers) +
                     ", neighbouring keys " + milliseconds(median(t[0]) / layers) + ", " + times(median_ratio(t[0], t[1])) +
                     " of their speed, the chosen rows read alone " + milliseconds(median(t[3]) / layers);
            return m;
        }};
}

heed::selection random_lists(index n, index width) {
    heed::selection picks{1, 1, n, n, {0}, {}};
    std::mt19937 random(90);
    for (index i = 0; i < n; ++i) draw_row(picks, width, random);
    return picks;
}

// run(how) and dense: whether `selected` gathers where that is faster.
measurement gathering(const session& settings, const shape& s, index width, const std::function<void(heed::gather)>& run,
                      const std::function<void()>& dense) {
    using heed::gather;
    const auto t = in_turns(settings, {repeated([&] { run(gather::always); }), repeated([&] { run(gather::never); }),
                                       repeated([&] { run(gather::where_faster); }), repeated(dense)});
    const auto& better = median(t[0]) < median(t[1]) ? t[0] : t[1];
    measurement m = compared(better, t[2]);
    m.note = "gathered " + milliseconds(median(t[0])) + ", masked " + milliseconds(median(t[1])) + ", chosen " +
             milliseconds(median(t[2])) + ", dense " + milliseconds(median(t[3])) + "; " + times(median_ratio(t[3], t[2])) +
             " times, FLOP bound " + times(static_cast<double>(s.keys) / static_cast<double>(width));
    return m;
}

void add_lists(std::vector<figure>& figures, index n, index width, index group) {
    const shape s = square(head_dim, n, group, 1);
    const std::string what = "lists" + std::to_string(width), unit = "better of gathered and masked over chosen";
    const std::string name = name_of(s, what);
    figures.push_back({name, 0.9, unit, [=](session& settings) {
                           problem<float> data(s);
                           const heed::selection picks = random_lists(n, width);
                           const auto run = [&](heed::gather how) {
                               heed::attention(data.q(), data.k(), data.v(), data.out(), heed::selected{&picks, how});
                           };
                           for (const auto how : {heed::gather::always, heed::gather::never}) {
                               run(how);
                               check_rows(data, heed::selected{&picks}, name);
                           }
                           return gathering(settings, s, width, run, [&] { heed::attention(data.q(), data.k(), data.v(), data.out()); });
                       }});
    figures.push_back({name_of(s, what, "attention_backward"), 0.9, unit, [=](session& settings) {
                           const heed::selection picks = random_lists(n, width);
                           backward_data data(s, heed::selected{&picks}), dense(s);
                           return gathering(
                               settings, s, width, [&](heed::gather how) { data.run(heed::selected{&picks, how}); }, [&] { dense.run(); });
                       }});
}

}  // namespace

std::vector<figure> selection_figures() {
    std::vector<figure> f;
    add_dynamic_mask(f, 8192, 1024, 2.8);
    add_dynamic_mask(f, 32768, 1024, 10);
    f.push_back(choice_of_keys(8192, 1024));
    f.push_back(few_keys(8192, {32, 64, 128, 256}));
    f.push_back(decoding_kept(1024, 4096, 262144));
    f.push_back(antidiagonals(8192, 0.1, 0.8, true));
    f.push_back(antidiagonals(32768, 0.1, 0.8, false));
    f.push_back(spans_over_dense(65536, 20));
    f.push_back(growth_of_spans(16384, 65536));
    f.push_back(reuse(32768, 3276, 1));
    f.push_back(reuse(32768, 3328, 128));
    for (const index group : {1, 8}) add_lists(f, 4096, 128, group);
    return f;
}

}  // namespace heed_bench
