// LaMamba-Diff: attention in shifted windows, with a table of relative biases and a penalty across regions of the shifted map, and
// selective scans of the map along four boustrophedon paths; alone, in the SS2D module, and in the block that a condition modulates.
#include "golden/attend.hpp"
#include "golden/layers.hpp"
#include "golden/registry.hpp"

#include <heed/linear_attention.hpp>
#include <heed/linear_attention_backward.hpp>
#include <heed/mask/windows.hpp>
#include <heed/recurrence/scan.hpp>
#include <heed/recurrence/scan_order.hpp>
#include <heed/score/region_bias.hpp>
#include <heed/score/relative_bias.hpp>

#include <algorithm>
#include <cmath>
#include <initializer_list>
#include <map>
#include <span>
#include <string>
#include <utility>
#include <vector>

namespace golden {
namespace {

// f(windows, relative biases that learn, penalty across regions)
template <class T, class F>
auto in_windows(const problem<T>& in, index height, index width, index heads, index window, index shift, tensor<T>& table,
                tensor<T>& d_table, F&& f) {
    // A window that is not smaller than the map is the map.
    if (window >= std::min(height, width)) {
        window = std::min(height, width);
        shift = 0;
    }
    const heed::windows<2> windows{.grid = {height, width}, .window = {window, window}, .shift = {shift, shift}};
    const index size = 2 * window - 1;
    if (table.shape != extents_list{size * size, heads})
        throw failure("bias_table has shape " + text_of(table.shape) + ", windows of " + std::to_string(window) + " with " +
                      std::to_string(heads) + " heads take " + text_of({size * size, heads}));
    // Rows of the table count query - key, heed counts key - query.
    const auto turned = [&]<class X>(X* data) {
        return heed::view<X, 3>(data + (size * size - 1) * heads, {heads, size, size}, {1, -size * heads, -heads});
    };
    return f(windows, heed::with_gradient(heed::relative_bias(windows, turned(table.data())), turned(d_table.data())),
             heed::region_bias{windows, in.number("penalty", -100)});
}

template <class T>
answers window_attention(const problem<T>& in) {
    const index height = in.extent("q", 1), width = in.extent("q", 2), heads = in.extent("q", 3);
    auto table = in.tensor("bias_table", 2);
    tensor<T> d_table(table.shape);
    const auto tokens = [](auto& t) { return heed::bthd(t.data(), t.extent(0), t.extent(1) * t.extent(2), t.extent(3), t.extent(4)); };
    answers all = in_windows(in, height, width, heads, in.count("window"), in.count("shift"), table, d_table,
                             [&](const auto&... policies) { return attend(in, 5, tokens, policies...); });
    all["d_bias_table"] = d_table;
    // lse by head becomes lse by token.
    const auto head_lse = all.at("lse").template as<T>();
    const heed::view<const T, 3> from = heed::bht(head_lse.data(), head_lse.extent(0), heads, height * width);
    tensor<T> lse({head_lse.extent(0), height, width, heads});
    auto next = lse.values.begin();
    for (index b = 0; b < from.extent(0); ++b)
        for (index t = 0; t < from.extent(2); ++t)
            for (index h = 0; h < heads; ++h) *next++ = from(b, h, t);
    all["lse"] = lse;
    return all;
}

// (batch, channel, token...) as rows of tokens, and back.
template <class T>
matrix<T> token_rows(const tensor<T>& t) {
    const index batch = t.extent(0), channels = t.extent(1), tokens = t.size() / std::max<index>(1, batch * channels);
    matrix<T> rows(batch * tokens, channels);
    for (index b = 0; b < batch; ++b)
        for (index c = 0; c < channels; ++c)
            for (index i = 0; i < tokens; ++i) rows(b * tokens + i, c) = t.data()[(b * channels + c) * tokens + i];
    return rows;
}
template <class T>
tensor<T> channels_first(const matrix<T>& rows, extents_list shape) {
    tensor<T> t(std::move(shape));
    const index batch = t.extent(0), channels = rows.cols(), tokens = rows.rows() / std::max<index>(1, batch);
    for (index b = 0; b < batch; ++b)
        for (index c = 0; c < channels; ++c)
            for (index i = 0; i < tokens; ++i) t.data()[(b * channels + c) * tokens + i] = rows(b * tokens + i, c);
    return t;
}
// One head.
template <class X, class M>
heed::view<X, 4> rows_of_head(M& m, index batch) {
    const index tokens = m.rows() / batch;
    return heed::bhtd<X>(m.data(), batch, 1, tokens, m.cols());
}
// State s of channel d is (s, d) in heed and (d, s) in the case.
template <class T>
void copy_state(const heed::view<T, 4>& state, T* cells, index batch_step, bool to_state) {
    for (index b = 0; b < state.extent(0); ++b)
        for (index d = 0; d < state.extent(3); ++d)
            for (index s = 0; s < state.extent(2); ++s) {
                T& cell = cells[b * batch_step + d * state.extent(2) + s];
                (to_state ? state(b, 0, s, d) : cell) = to_state ? cell : state(b, 0, s, d);
            }
}

template <class T>
answers one_scan(const problem<T>& in) {
    const auto given = [&](const char* name) { return token_rows(in.tensor(name, 3)); };
    const matrix<T> u = given("u"), delta = given("delta"), b = given("Bm"), c = given("Cm");
    const index batch = in.extent("u", 0), channels = u.cols(), states = b.cols();
    const auto A = in.tensor("A", 2), skip = in.tensor("Dskip", 1), bias = in.tensor("delta_bias", 1);
    const heed::selective_scan<T> rule{.delta = rows_of_head<const T>(delta, batch),
                                       .A = heed::bht<const T>(A.data(), 1, channels, states),
                                       .skip = {skip.data(), {1, channels}, {channels, 1}},
                                       .delta_bias = {bias.data(), {1, channels}, {channels, 1}},
                                       .softplus = in.count("delta_softplus") != 0};
    const auto initial = heed::make_state<T>(rule, batch, 1, states, channels);
    auto state = initial, d_state = initial;
    matrix<T> out(u.rows(), channels);
    const auto heads = [&](const matrix<T>& m) { return rows_of_head<const T>(m, batch); };
    const auto into = [&](matrix<T>& m) { return rows_of_head<T>(m, batch); };
    heed::linear_attention(heads(c), heads(b), heads(u), into(out), rule, state);
    tensor<T> final({batch, channels, states});
    copy_state(state.values(), final.data(), channels * states, false);
    answers all{{"out", channels_first(out, in.tensor("u", 3).shape)}, {"state", final}};
    if (!in.has("d_out")) return all;

    const matrix<T> d_out = given("d_out");
    auto d_final = in.tensor("d_state", 3);
    copy_state(d_state.values(), d_final.data(), channels * states, true);
    matrix<T> d_u(u.rows(), channels), d_delta(u.rows(), channels), d_b(u.rows(), states), d_c(u.rows(), states);
    tensor<T> d_A(A.shape), d_skip(skip.shape), d_bias(bias.shape);
    heed::linear_attention_backward(heads(c), heads(b), heads(u), heads(d_out), into(d_c), into(d_b), into(d_u),
                                    heed::with_gradient(rule, {into(d_delta),
                                                               heed::bht(d_A.data(), 1, channels, states),
                                                               {d_skip.data(), {1, channels}, {channels, 1}},
                                                               {d_bias.data(), {1, channels}, {channels, 1}}}),
                                    initial, d_state);
    for (const auto& [name, rows, like] : {std::tuple("d_u", &d_u, "u"), std::tuple("d_delta", &d_delta, "delta"),
                                           std::tuple("d_Bm", &d_b, "Bm"), std::tuple("d_Cm", &d_c, "Cm")})
        all[name] = channels_first(*rows, in.tensor(like, 3).shape);
    all["d_A"] = d_A;
    all["d_Dskip"] = d_skip;
    all["d_delta_bias"] = d_bias;
    return all;
}

template <class T>
matrix<T> silu(const matrix<T>& x) {
    return x.unaryExpr([](T a) { return a / (1 + std::exp(-a)); });
}
template <class T>
matrix<T> silu_backward(const matrix<T>& x, const matrix<T>& d_y) {
    return d_y.cwiseProduct(x.unaryExpr([](T a) {
        const T s = 1 / (1 + std::exp(-a));
        return s * (1 + a * (1 - s));
    }));
}

// Arrays of a case that are learned, by name.
template <class T>
class learned_arrays {
public:
    learned_arrays(const problem<T>& in, std::initializer_list<const char*> names) {
        for (const char* name : names) all_.emplace(name, in.tensor(name, in.rank(name)));
    }
    parameter<T>& operator[](const std::string& name) { return all_.at(name); }
    bool has(const std::string& name) const { return all_.contains(name); }
    matrix_map<T> value(const std::string& name) const { return rows_of(all_.at(name).value); }
    // A vector as one row.
    matrix_map<T> row(const std::string& name) const {
        const auto& v = all_.at(name).value;
        return {v.data(), 1, v.size()};
    }
    matrix_into<T> gradient(const std::string& name) { return rows_into(all_.at(name).gradient); }
    matrix_into<T> row_gradient(const std::string& name) {
        auto& g = all_.at(name).gradient;
        return {g.data(), 1, g.size()};
    }
    void add_gradients(answers& into) const {
        for (const auto& [name, p] : all_) into["d_" + name] = p.gradient;
    }

private:
    std::map<std::string, parameter<T>> all_;
};

// Four scans of a map, added up: y = sum over the paths of the scan of u, with gates that are made of u.
template <class T>
class four_scans {
public:
    learned_arrays<T> learned;

    four_scans(const problem<T>& in, index height, index width)
        : learned(in, {"Wx", "Wdt", "bdt", "A_log", "Dk"}), states_(in.count("Ns")), rank_(in.count("dt_rank")) {
        if (in.extent("Wx", 1) != rank_ + 2 * states_) throw failure("Wx has " + std::to_string(in.extent("Wx", 1)) + " rows a direction");
        A_ = learned["A_log"].value;
        for (T& a : A_.values) a = -std::exp(a);
        for (index k = 0; k < in.extent("Wx", 0); ++k)
            paths_.push_back({heed::boustrophedon(height, width, static_cast<int>(k)), {}, {}, {}, {}});
    }

    // Rows of `batch` maps.
    matrix<T> forward(const matrix<T>& u, index batch) {
        u_ = u;
        batch_ = batch;
        channels_ = u.cols();
        matrix<T> y = matrix<T>::Zero(u.rows(), u.cols());
        states = tensor<T>({batch, static_cast<index>(paths_.size()), channels_, states_});
        for (index k = 0; k < static_cast<index>(paths_.size()); ++k) {
            path& p = paths_[static_cast<std::size_t>(k)];
            const matrix<T> made = times_transposed<T>(u, entry(learned["Wx"].value, k));
            p.rank = made.leftCols(rank_);
            p.b = made.middleCols(rank_, states_);
            p.c = made.rightCols(states_);
            p.delta = times_transposed<T>(p.rank, entry(learned["Wdt"].value, k));
            const auto rule = rule_of(p, k);
            auto state = heed::make_state<T>(rule, batch, 1, states_, channels_);
            heed::linear_attention(read(p.c), read(p.b), read(u_), write(y), rule, state, heed::token_order{p.order},
                                   heed::add_to_output{});
            copy_state(state.values(), states.data() + k * channels_ * states_, states.size() / batch, false);
        }
        return y;
    }
    matrix<T> backward(const matrix<T>& d_y) {
        matrix<T> d_u = matrix<T>::Zero(u_.rows(), channels_);
        for (index k = 0; k < static_cast<index>(paths_.size()); ++k) {
            path& p = paths_[static_cast<std::size_t>(k)];
            matrix<T> d_b(u_.rows(), states_), d_c(u_.rows(), states_), d_scanned(u_.rows(), channels_), d_delta(u_.rows(), channels_);
            matrix<T> d_A(channels_, states_);
            const auto rule = rule_of(p, k);
            const auto initial = heed::make_state<T>(rule, batch_, 1, states_, channels_);
            auto d_state = initial;
            heed::linear_attention_backward(
                read(p.c), read(p.b), read(u_), read(d_y), write(d_c), write(d_b), write(d_scanned),
                heed::with_gradient(rule, {write(d_delta), heed::bht(d_A.data(), 1, channels_, states_),
                                           of_channels(learned["Dk"].gradient, k), of_channels(learned["bdt"].gradient, k)}),
                initial, d_state, heed::token_order{p.order});
            entry_into(learned["A_log"].gradient, k) = d_A.cwiseProduct(entry(A_, k));
            matrix<T> d_made(u_.rows(), rank_ + 2 * states_);
            d_made << times_transposed_backward<T>(p.rank, entry(learned["Wdt"].value, k), d_delta, entry_into(learned["Wdt"].gradient, k)),
                d_b, d_c;
            d_u +=
                d_scanned + times_transposed_backward<T>(u_, entry(learned["Wx"].value, k), d_made, entry_into(learned["Wx"].gradient, k));
        }
        return d_u;
    }
    // After all tokens, (batch, path, channel, state).
    tensor<T> states;

private:
    struct path {
        std::vector<index> order;
        matrix<T> rank, b, c, delta;
    };

    heed::view<const T, 4> read(const matrix<T>& m) const { return rows_of_head<const T>(m, batch_); }
    heed::view<T, 4> write(matrix<T>& m) const { return rows_of_head<T>(m, batch_); }
    heed::view<T, 2> of_channels(tensor<T>& t, index k) const { return {t.data() + k * channels_, {1, channels_}, {channels_, 1}}; }
    heed::selective_scan<T> rule_of(const path& p, index k) {
        return {.delta = read(p.delta),
                .A = heed::bht<const T>(A_.data() + k * channels_ * states_, 1, channels_, states_),
                .skip = of_channels(learned["Dk"].value, k),
                .delta_bias = of_channels(learned["bdt"].value, k),
                .order = p.order};
    }

    index states_, rank_, batch_ = 0, channels_ = 0;
    tensor<T> A_;
    std::vector<path> paths_;
    matrix<T> u_;
};

template <class T>
answers scans_of_a_map(const problem<T>& in) {
    const auto u = in.tensor("u", 4);
    four_scans<T> scans(in, u.extent(2), u.extent(3));
    answers all{{"out", channels_first(scans.forward(token_rows(u), u.extent(0)), u.shape)}};
    all["state"] = scans.states;
    if (!in.has("d_out")) return all;
    all["d_u"] = channels_first(scans.backward(token_rows(in.tensor("d_out", 4))), u.shape);
    scans.learned.add_gradients(all);
    return all;
}

// out_proj(LN(four scans of SiLU(conv(u))) * SiLU(z)) with u and z the halves of in_proj(x).
template <class T>
class scan_module {
public:
    scan_module(const problem<T>& in, index height, index width)
        : learned_(in, {"in_proj", "conv_w", "on_g", "on_b", "out_proj"}),
          scans_(in, height, width),
          epsilon_(in.number("ln_eps")),
          height_(height),
          width_(width),
          conv_b_(tensor<T>({in.extent("conv_w", 0)})) {
        has_bias_ = in.has("conv_b");
        if (has_bias_) conv_b_ = parameter<T>(in.tensor("conv_b", 1));
    }
    matrix<T> forward(const matrix<T>& x, index batch) {
        x_ = x;
        const matrix<T> halves = times_transposed<T>(x, learned_.value("in_proj"));
        const index channels = halves.cols() / 2;
        u_ = halves.leftCols(channels);
        z_ = halves.rightCols(channels);
        conv_ = depthwise_conv(u_, height_, width_, learned_["conv_w"].value, rows_of(conv_b_.value));
        y_ = scans_.forward(silu(conv_), batch);
        normal_ = layer_norm(y_, learned_.row("on_g"), learned_.row("on_b"), epsilon_);
        gate_ = silu(z_);
        mixed_ = normal_.cwiseProduct(gate_);
        return times_transposed<T>(mixed_, learned_.value("out_proj"));
    }
    matrix<T> backward(const matrix<T>& d_out) {
        const matrix<T> d_mixed = times_transposed_backward<T>(mixed_, learned_.value("out_proj"), d_out, learned_.gradient("out_proj"));
        const matrix<T> d_y = layer_norm_backward<T>(y_, learned_.row("on_g"), epsilon_, d_mixed.cwiseProduct(gate_),
                                                     learned_.row_gradient("on_g"), learned_.row_gradient("on_b"));
        matrix<T> d_halves(x_.rows(), 2 * u_.cols());
        d_halves << depthwise_conv_backward<T>(u_, height_, width_, learned_["conv_w"].value, silu_backward<T>(conv_, scans_.backward(d_y)),
                                               learned_["conv_w"].gradient, rows_into(conv_b_.gradient)),
            silu_backward<T>(z_, d_mixed.cwiseProduct(normal_));
        return times_transposed_backward<T>(x_, learned_.value("in_proj"), d_halves, learned_.gradient("in_proj"));
    }
    void add_gradients(answers& into) const {
        learned_.add_gradients(into);
        scans_.learned.add_gradients(into);
        if (has_bias_) into["d_conv_b"] = conv_b_.gradient;
    }

private:
    learned_arrays<T> learned_;
    four_scans<T> scans_;
    double epsilon_;
    index height_, width_;
    parameter<T> conv_b_;
    bool has_bias_ = false;
    matrix<T> x_, u_, z_, conv_, y_, normal_, gate_, mixed_;
};

template <class T>
answers scan_module_alone(const problem<T>& in) {
    const auto x = in.tensor("x", 4);
    scan_module<T> module(in, x.extent(1), x.extent(2));
    answers all{{"out", as_tensor<T>(module.forward(rows_of(x), x.extent(0)), x.shape)}};
    if (!in.has("d_out")) return all;
    all["d_x"] = as_tensor<T>(module.backward(rows_of(in.tensor("d_out", 4))), x.shape);
    module.add_gradients(all);
    return all;
}

// qkv, attention in windows, proj.
template <class T>
class window_module {
public:
    window_module(const problem<T>& in, index height, index width)
        : in_(in),
          learned_(in, {"qkv_w", "qkv_b", "proj_w", "proj_b", "bias_table"}),
          heads_(in.count("heads")),
          height_(height),
          width_(width) {}

    matrix<T> forward(const matrix<T>& x) {
        x_ = x;
        qkv_ = linear<T>(x, learned_.value("qkv_w"), learned_.row("qkv_b"));
        mixed_.resize(x.rows(), x.cols());
        lse_.resize(static_cast<std::size_t>(x.rows() * heads_));
        with_policies(
            [&](const auto&... policies) { heed::attention(part(qkv_, 0), part(qkv_, 1), part(qkv_, 2), result(), policies...); });
        return linear<T>(mixed_, learned_.value("proj_w"), learned_.row("proj_b"));
    }
    matrix<T> backward(const matrix<T>& d_out) {
        matrix<T> d_mixed = linear_backward<T>(mixed_, learned_.value("proj_w"), d_out, learned_.gradient("proj_w"),
                                               learned_.row_gradient("proj_b")),
                  d_qkv(qkv_.rows(), qkv_.cols());
        with_policies([&](const auto&... policies) {
            heed::attention_backward(part(qkv_, 0), part(qkv_, 1), part(qkv_, 2), result(), columns(d_mixed, 0), part(d_qkv, 0),
                                     part(d_qkv, 1), part(d_qkv, 2), policies...);
        });
        return linear_backward<T>(x_, learned_.value("qkv_w"), d_qkv, learned_.gradient("qkv_w"), learned_.row_gradient("qkv_b"));
    }
    void add_gradients(answers& into) const { learned_.add_gradients(into); }

private:
    template <class F>
    void with_policies(F&& f) {
        parameter<T>& table = learned_["bias_table"];
        in_windows(in_, height_, width_, heads_, in_.count("window_argument"), in_.count("shift_argument"), table.value, table.gradient, f);
    }
    // All heads of a third of the columns, or of all.
    heed::view<T, 4> columns(matrix<T>& m, index first) const {
        const index features = mixed_.cols() / heads_, tokens = height_ * width_;
        return {m.data() + first, {m.rows() / tokens, heads_, tokens, features}, {tokens * m.cols(), features, m.cols(), 1}};
    }
    heed::view<T, 4> part(matrix<T>& m, index third) const { return columns(m, third * mixed_.cols()); }
    auto result() {
        const index tokens = height_ * width_;
        return heed::result{columns(mixed_, 0), heed::bht(lse_.data(), mixed_.rows() / tokens, heads_, tokens)};
    }

    const problem<T>& in_;
    learned_arrays<T> learned_;
    index heads_, height_, width_;
    matrix<T> x_, qkv_, mixed_;
    std::vector<T> lse_;
};

template <class T>
class perceptron {
public:
    explicit perceptron(const problem<T>& in) : learned_(in, {"fc1_w", "fc1_b", "fc2_w", "fc2_b"}) {}
    matrix<T> forward(const matrix<T>& x) {
        x_ = x;
        hidden_ = linear<T>(x, learned_.value("fc1_w"), learned_.row("fc1_b"));
        active_ = gelu(hidden_);
        return linear<T>(active_, learned_.value("fc2_w"), learned_.row("fc2_b"));
    }
    matrix<T> backward(const matrix<T>& d_out) {
        const matrix<T> d_active =
            linear_backward<T>(active_, learned_.value("fc2_w"), d_out, learned_.gradient("fc2_w"), learned_.row_gradient("fc2_b"));
        return linear_backward<T>(x_, learned_.value("fc1_w"), gelu_backward(hidden_, d_active), learned_.gradient("fc1_w"),
                                  learned_.row_gradient("fc1_b"));
    }
    void add_gradients(answers& into) const { learned_.add_gradients(into); }

private:
    learned_arrays<T> learned_;
    matrix<T> x_, hidden_, active_;
};

// x + gate * f(LN(x) (1 + scale) + shift), with shift, scale and gate the same for all tokens of a batch entry.
template <class T>
class modulated {
public:
    modulated(learned_arrays<T>& learned, std::string norm, double epsilon)
        : learned_(learned), gain_(norm + "_g"), bias_(norm + "_b"), epsilon_(epsilon) {}

    template <class F>
    matrix<T> forward(const matrix<T>& x, const matrix<T>& shift, const matrix<T>& scale, const matrix<T>& gate, F&& f) {
        x_ = x;
        scale_ = spread(scale);
        gate_ = spread(gate);
        normal_ = layer_norm(x, learned_.row(gain_), learned_.row(bias_), epsilon_);
        inner_ = f((normal_.array() * (1 + scale_.array())).matrix() + spread(shift));
        return x + gate_.cwiseProduct(inner_);
    }
    // f: gradient of what the branch gives to that of what it takes.
    template <class F>
    matrix<T> backward(const matrix<T>& d_y, Eigen::Ref<matrix<T>, 0, Eigen::OuterStride<>> d_shift,
                       Eigen::Ref<matrix<T>, 0, Eigen::OuterStride<>> d_scale, Eigen::Ref<matrix<T>, 0, Eigen::OuterStride<>> d_gate,
                       F&& f) {
        const matrix<T> d_in = f(d_y.cwiseProduct(gate_));
        gather(d_y.cwiseProduct(inner_), d_gate);
        gather(d_in, d_shift);
        gather(d_in.cwiseProduct(normal_), d_scale);
        return d_y + layer_norm_backward<T>(x_, learned_.row(gain_), epsilon_, (d_in.array() * (1 + scale_.array())).matrix(),
                                            learned_.row_gradient(gain_), learned_.row_gradient(bias_));
    }

private:
    matrix<T> spread(const matrix<T>& m) const {
        matrix<T> all(x_.rows(), m.cols());
        const index tokens = x_.rows() / m.rows();
        for (index i = 0; i < all.rows(); ++i) all.row(i) = m.row(i / tokens);
        return all;
    }
    static void gather(const matrix<T>& m, Eigen::Ref<matrix<T>, 0, Eigen::OuterStride<>> to) {
        const index tokens = m.rows() / to.rows();
        for (index b = 0; b < to.rows(); ++b) to.row(b) = m.middleRows(b * tokens, tokens).colwise().sum();
    }

    learned_arrays<T>& learned_;
    std::string gain_, bias_;
    double epsilon_;
    matrix<T> x_, normal_, inner_, scale_, gate_;
};

template <class T>
answers block(const problem<T>& in) {
    const auto x = in.tensor("x", 4);
    const auto condition = in.tensor("c", 2);
    const index batch = x.extent(0), height = x.extent(1), width = x.extent(2), channels = x.extent(3);
    learned_arrays<T> learned(in, {"cp_w", "cp_b", "ada_w", "ada_b", "ln1_g", "ln1_b", "ln2_g", "ln2_b", "ln3_g", "ln3_b"});
    scan_module<T> scan(in, height, width);
    window_module<T> windows(in, height, width);
    perceptron<T> mlp(in);
    const double epsilon = in.number("ln_eps");
    modulated<T> first(learned, "ln1", epsilon), second(learned, "ln2", epsilon), third(learned, "ln3", epsilon);

    const matrix<T> given = rows_of(condition), projected = linear<T>(given, learned.value("cp_w"), learned.row("cp_b"));
    const matrix<T> active = silu(projected), nine = linear<T>(active, learned.value("ada_w"), learned.row("ada_b"));
    const auto one = [&](index i) -> matrix<T> { return nine.middleCols(i * channels, channels); };
    matrix<T> out = first.forward(rows_of(x), one(0), one(1), one(2), [&](const matrix<T>& m) { return scan.forward(m, batch); });
    out = second.forward(out, one(3), one(4), one(5), [&](const matrix<T>& m) { return windows.forward(m); });
    out = third.forward(out, one(6), one(7), one(8), [&](const matrix<T>& m) { return mlp.forward(m); });
    answers all{{"out", as_tensor<T>(out, x.shape)}};
    if (!in.has("d_out")) return all;

    matrix<T> d_nine(batch, 9 * channels), d = rows_of(in.tensor("d_out", 4));
    const auto to = [&](index i) { return d_nine.middleCols(i * channels, channels); };
    d = third.backward(d, to(6), to(7), to(8), [&](const matrix<T>& m) { return mlp.backward(m); });
    d = second.backward(d, to(3), to(4), to(5), [&](const matrix<T>& m) { return windows.backward(m); });
    d = first.backward(d, to(0), to(1), to(2), [&](const matrix<T>& m) { return scan.backward(m); });
    all["d_x"] = as_tensor<T>(d, x.shape);
    const matrix<T> d_active =
        linear_backward<T>(active, learned.value("ada_w"), d_nine, learned.gradient("ada_w"), learned.row_gradient("ada_b"));
    all["d_c"] = as_tensor<T>(linear_backward<T>(given, learned.value("cp_w"), silu_backward<T>(projected, d_active),
                                                 learned.gradient("cp_w"), learned.row_gradient("cp_b")),
                              condition.shape);
    learned.add_gradients(all);
    scan.add_gradients(all);
    windows.add_gradients(all);
    mlp.add_gradients(all);
    return all;
}

[[maybe_unused]] const bool registered = register_paper(
    17, "lamamba",
    {{"(shifted) window attention with relative position bias table", [](const auto& in) { return window_attention(in); }},
     {"diagonal selective scan, one direction", [](const auto& in) { return one_scan(in); }},
     {"four-direction continuous (boustrophedon) selective scan", [](const auto& in) { return scans_of_a_map(in); }},
     {"SS2D module", [](const auto& in) { return scan_module_alone(in); }},
     {"whole conditioned block: scan branch, then window attention branch, then MLP", [](const auto& in) { return block(in); }}});

}  // namespace
}  // namespace golden
