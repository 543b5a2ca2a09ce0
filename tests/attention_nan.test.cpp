// NaN and infinity in a key or value that a query may not see never reach its row; in one that it may see they always do.
#include "support/catch.hpp"
#include "support/drawn_policies.hpp"

#include <bit>

using namespace heed_test;

namespace {

// Quiet and signalling, either sign, with payloads that shifts and exponent tricks may turn into numbers.
const std::vector<std::uint32_t> odd_floats{0x7fc00000, 0xffc00000, 0x7fc00001, 0x7f800001, 0x7f800123, 0x7fffffff,
                                            0xffffffff, 0xff812345, 0x7fa00000, 0x7f800000, 0xff800000, 0x7f7fffff};
const std::vector<std::uint64_t> odd_doubles{0x7ff8000000000000, 0xfff8000000000000, 0x7ff8000000000001, 0x7ff0000000000001,
                                             0x7ff0000000012345, 0x7fffffffffffffff, 0xffffffffffffffff, 0x7ff0000000000000,
                                             0xfff0000000000000, 0x7fefffffffffffff};

template <class T>
std::vector<T> odd_numbers() {
    std::vector<T> x;
    if constexpr (std::is_same_v<T, float>)
        for (const auto bits : odd_floats) x.push_back(std::bit_cast<float>(bits));
    else
        for (const auto bits : odd_doubles) x.push_back(std::bit_cast<double>(bits));
    return x;
}

// Copies, so that even signalling NaN keep their bits.
template <class T>
void put(const heed::view<T, 4>& v, heed::index row, const T& x) {
    for (heed::index b = 0; b < v.extent(0); ++b)
        for (heed::index h = 0; h < v.extent(1); ++h)
            for (heed::index d = 0; d < v.extent(3); ++d) std::memcpy(&v(b, h, row, d), &x, sizeof(T));
}

template <class T>
struct inputs {
    tensor<T> q, k, v;

    explicit inputs(heed::index queries = 70, heed::index keys = 150, heed::index depth = 20, heed::index width = 13) {
        random_source r(1);
        q = normal_tensor<T>(r, {1, 2, queries, depth});
        k = normal_tensor<T>(r, {1, 1, keys, depth});
        v = normal_tensor<T>(r, {1, 1, keys, width});
    }
    template <class... Policies>
    answer<T> attend(const Policies&... policies) const {
        answer<T> a(shape4{1, 2, q.view.extent(2), v.view.extent(3)});
        heed::attention(q.view, k.view, v.view, a.result(), policies...);
        return a;
    }
};

// Rows of `a` that are wrong: one that sees a poisoned key must not be finite where `shows`, any other must have the bits of `clean`.
template <class T>
int wrong_rows(const answer<T>& a, const answer<T>& clean, bool shows, bool keys, auto&& sees) {
    int wrong = 0;
    for (heed::index h = 0; h < 2; ++h)
        for (heed::index i = 0; i < a.out.view.extent(2); ++i) {
            const T *lse = &a.lse(0, h, i), *row = &a.out.view(0, h, i, 0);
            const auto width = static_cast<std::size_t>(a.out.view.extent(3));
            if (!sees(i)) {
                wrong += std::memcmp(lse, &clean.lse(0, h, i), sizeof(T)) != 0 ||
                         std::memcmp(row, &clean.out.view(0, h, i, 0), width * sizeof(T)) != 0;
            } else if (shows) {
                wrong += (keys && std::isfinite(*lse)) || std::any_of(row, row + width, [](T x) { return std::isfinite(x); });
            }
        }
    return wrong;
}

// Puts every odd number into the poisoned keys, values, and both; sees(query, key) is the mask, in key coordinates.
template <class T, class... Policies>
void poison_stays_hidden(auto&& sees, const Policies&... policies) {
    inputs<T> in;
    const heed::index keys = in.k.view.extent(2), offset = keys - in.q.view.extent(2);
    std::vector<std::vector<heed::index>> sets{{0}, {149}, {80, 81}, {100, 64, 127}, {}, {}};
    for (heed::index j = 64; j < 128; ++j) sets[4].push_back(j);
    for (heed::index j = 101; j < keys; ++j) sets[5].push_back(j);
    for (const auto& poisoned : sets) {
        inputs<T> poison;
        const auto put_all = [&](const heed::view<T, 4>& v, const T& x) {
            for (const heed::index j : poisoned) put(v, j, x);
        };
        put_all(poison.k.view, T{0});
        put_all(poison.v.view, T{0});
        const auto clean = poison.attend(policies...);
        const auto seen = [&](heed::index i) {
            return std::any_of(poisoned.begin(), poisoned.end(), [&](heed::index j) { return sees(i + offset, j); });
        };
        int hidden = 0;
        for (heed::index i = 0; i < in.q.view.extent(2); ++i) hidden += !seen(i);
        CAPTURE(poisoned.front(), poisoned.size(), hidden);
        for (const T x : odd_numbers<T>()) {
            INFO("poison " << x);
            const bool shows = !std::isfinite(x);
            put_all(poison.v.view, x);
            CHECK(wrong_rows(poison.attend(policies...), clean, shows, false, seen) == 0);
            put_all(poison.k.view, x);
            CHECK(wrong_rows(poison.attend(policies...), clean, shows, true, seen) == 0);
            put_all(poison.v.view, T{0});
            CHECK(wrong_rows(poison.attend(policies...), clean, shows, true, seen) == 0);
            put_all(poison.k.view, T{0});
        }
    }
}

constexpr auto causally = [](heed::index q, heed::index k) { return k <= q; };

}  // namespace

TEST_CASE("poison shows where every key is visible") {
    const auto always = [](heed::index, heed::index) { return true; };
    poison_stays_hidden<float>(always);
    poison_stays_hidden<double>(always);
}

TEST_CASE("poison stays behind causal masks and windows") {
    const auto in_window = [](heed::index q, heed::index k) { return k >= q - 40 && k <= q + 3; };
    poison_stays_hidden<float>(causally, heed::causal);
    poison_stays_hidden<double>(causally, heed::causal);
    poison_stays_hidden<float>(in_window, heed::sliding_window{40, 3});
    poison_stays_hidden<float, heed::sliding_window, heed::run_on<heed::arch::emulated<3>>>(in_window, {40, 3}, {});
}

TEST_CASE("poison stays behind masks of every form") {
    const auto rule = [](heed::index q, heed::index k) { return (q * 3 + k) % 4 != 0; };
    poison_stays_hidden<float>(rule, heed::mask_mod([&](auto, auto, heed::index q, heed::index k) { return rule(q, k); }));
    std::vector<std::uint8_t> bools;
    for (heed::index q = 80; q < 150; ++q)
        for (heed::index k = 0; k < 150; ++k) bools.push_back(rule(q, k));
    poison_stays_hidden<float>(rule, heed::mask(heed::bhtd(static_cast<const std::uint8_t*>(bools.data()), 1, 1, 70, 150)));
    const std::int32_t counts[] = {2, 1, 0}, entries[] = {0, 4, 2, 0, 0, 0};
    const heed::block_mask<> blocks{heed::bht(counts, 1, 1, 3), heed::bhtd(entries, 1, 1, 3, 2), {}, {}, 32, 32, {}};
    poison_stays_hidden<float>(
        [](heed::index q, heed::index k) {
            const heed::index row = (q - 80) / 32, block = k / 32;
            return row == 0 ? block == 0 || block == 4 : row == 1 && block == 2;
        },
        blocks);
}

TEST_CASE("poison stays behind a mask whatever the scores go through") {
    const std::vector<float> slopes{0.5f, 0.1f}, logits{0, 1};
    poison_stays_hidden<float>(causally, heed::causal, heed::softcap{10}, heed::alibi{slopes}, affine(1, 0.5, 1), heed::sinks(logits));
    poison_stays_hidden<float>(causally, heed::causal, heed::cosine{0.1}, per_pair(0.1));
    poison_stays_hidden<double>(causally, heed::causal, heed::cosine{0.1}, heed::softcap{10});
}

TEST_CASE("poison in a bias shows at visible pairs alone") {
    const inputs<float> in;
    tensor<float> bias({1, 1, 70, 150});
    random_source r(2);
    bias.fill([&] { return r.normal(); });
    const auto clean = in.attend(heed::causal, heed::bias(bias.view));
    for (const float x : odd_numbers<float>()) {
        for (heed::index i = 0; i < 70; ++i)
            for (heed::index j = i + 81; j < 150; ++j) std::memcpy(&bias.view(0, 0, i, j), &x, sizeof(x));
        CHECK(in.attend(heed::causal, heed::bias(bias.view)).same(clean));
        if (!std::isnan(x)) continue;
        const float kept = bias.view(0, 0, 30, 7);
        std::memcpy(&bias.view(0, 0, 30, 7), &x, sizeof(x));
        CHECK(wrong_rows(in.attend(heed::causal, heed::bias(bias.view)), clean, true, true, [](heed::index i) { return i == 30; }) == 0);
        bias.view(0, 0, 30, 7) = kept;
    }
}

TEST_CASE("poison in a query stays in its row") {
    inputs<float> in;
    const auto clean = in.attend(heed::causal);
    for (const float x : odd_numbers<float>())
        for (const heed::index row : {0, 15, 33, 69}) {
            const auto before = elements(in.q.view);
            put(in.q.view, row, x);
            CHECK(wrong_rows(in.attend(heed::causal), clean, std::isnan(x), true, [&](heed::index i) { return i == row; }) == 0);
            std::size_t next = 0;
            in.q.fill([&] { return before[next++]; });
        }
}

TEST_CASE("poison stays in its sequence") {
    const std::vector<std::int32_t> cu_q{0, 20, 41, 70}, cu_k{0, 50, 53, 150};
    const heed::segments ragged{cu_q, cu_k};
    inputs<float> in;
    for (heed::index j = 50; j < 53; ++j) put(in.k.view, j, 0.f), put(in.v.view, j, 0.f);
    const auto clean = in.attend(ragged);
    for (const float x : odd_numbers<float>()) {
        for (heed::index j = 50; j < 53; ++j) put(in.k.view, j, x), put(in.v.view, j, x);
        CHECK(wrong_rows(in.attend(ragged), clean, !std::isfinite(x), true, [](heed::index i) { return i >= 20 && i < 41; }) == 0);
    }
}
