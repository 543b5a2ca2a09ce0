// Short calls whose queries, keys and values are stored in 16 bits or as scaled int8, against the reference in double on the numbers
// that they stand for. The bound is that of float (support/attention_fuzz.hpp); where all three are bfloat16 and the processor multiplies
// them, weights are rounded to it, and out may err by 2^-8 of the largest value more.
#include "support/drawn_policies.hpp"

#include <heed/tensor/stored.hpp>

#include <string>
#include <vector>

using namespace heed_test;

namespace {

// Rows of S and, the same numbers, in float and in double.
template <class S>
struct stored_rows {
    std::vector<S> elements_;
    std::vector<float> scales;
    tensor<float> wide;
    tensor<double> exact;
    shape4 shape;

    stored_rows(random_source& r, const shape4& s) : wide(s), exact(s), shape(s) {
        const heed::index tokens = s[0] * s[1] * s[2];
        elements_.resize(static_cast<std::size_t>(tokens * s[3]));
        for (heed::index i = 0; i < tokens; ++i)
            scales.push_back(std::is_same_v<S, std::int8_t> ? static_cast<float>(r.uniform(0.002, 0.02)) : 1);
        for (S& x : elements_) {
            if constexpr (std::is_same_v<S, std::int8_t>)
                x = static_cast<std::int8_t>(r.between(-128, 127));
            else
                x = S(static_cast<float>(r.normal()));
        }
        std::size_t i = 0;
        const auto scale = [&] { return s[3] == 0 ? 1.f : scales[i / static_cast<std::size_t>(s[3])]; };
        wide.fill([&] {
            const float x = static_cast<float>(elements_[i]) * scale();
            ++i;
            return x;
        });
        i = 0;
        exact.fill([&] {
            const double x = static_cast<double>(static_cast<float>(elements_[i])) * static_cast<double>(scale());
            ++i;
            return x;
        });
    }
    auto source() const {
        const auto rows = heed::bhtd<const S>(elements_.data(), shape[0], shape[1], shape[2], shape[3]);
        if constexpr (std::is_same_v<S, std::int8_t>)
            return heed::quantized(rows, heed::bht<const float>(scales.data(), shape[0], shape[1], shape[2]));
        else
            return rows;
    }
};

template <class Arch, class SQ, class SK, class SV>
constexpr bool rounds_weights = heed::arch::traits<Arch>::bfloat16_pairs && std::is_same_v<SQ, heed::bfloat16> &&
                                std::is_same_v<SK, heed::bfloat16> && std::is_same_v<SV, heed::bfloat16>;

template <class Arch, class SQ, class SK, class SV, class... Policies>
std::string compare_stored(random_source& r, const call_shape& s, error_record& outs, error_record& lses, const Policies&... policies) {
    constexpr heed::run_on<Arch> arch;
    constexpr double weight_error = rounds_weights<Arch, SQ, SK, SV> ? 0x1.01p-8 : 0;
    const stored_rows<SQ> q(r, {s.batch, s.heads, s.queries, s.depth});
    const stored_rows<SK> k(r, {s.batch, s.key_heads, s.keys, s.depth});
    const stored_rows<SV> v(r, {s.batch, s.key_heads, s.keys, s.width});
    const heed::scale factor{s.scale};
    answer<float> got({s.batch, s.heads, s.queries, s.width}), naive(got.out.view.shape);
    answer<double> truth(got.out.view.shape);
    heed::attention(q.source(), k.source(), v.source(), got.result(), policies..., factor, arch);
    const double raw = naive_attention<float>(q.wide.view, k.wide.view, v.wide.view, naive.result(), policies..., factor);
    heed::reference::attention(q.exact.view, k.exact.view, v.exact.view, truth.result(), policies..., factor);
    double values = 0, scores = std::max({1.0, raw, std::abs(s.scale) * std::sqrt(static_cast<double>(s.depth))});
    for (const double x : elements(v.exact.view)) values = std::max(values, std::abs(x));
    for (const double x : elements(truth.lse))
        if (std::isfinite(x)) scores = std::max(scores, std::abs(x));
    constexpr double eps = std::numeric_limits<float>::epsilon();
    std::string wrong;
    const auto judge = [&](const char* what, const auto& mine, const auto& naives, const auto& right, double unit, double floor,
                           error_record& record) {
        const double error = distance(mine, right), naive_error = distance(naives, right);
        if (unit > 0 && std::isfinite(error)) record.add(error, naive_error, unit);
        if (error <= 2 * naive_error + floor && std::isfinite(naive_error)) return;
        std::ostringstream text;
        text << what << " error " << error << " naive " << naive_error << " unit " << unit << "; ";
        wrong += text.str();
    };
    judge("out", elements(got.out.view), elements(naive.out.view), elements(truth.out.view), eps * values * scores,
          (4 * eps * scores + weight_error) * values, outs);
    judge("lse", elements(got.lse), elements(naive.lse), elements(truth.lse), eps * scores, 8 * eps * scores + 16 * eps, lses);

    // The same rounded once more.
    const auto shape = got.out.view.shape;
    std::vector<heed::bfloat16> narrow(elements(got.out.view).size());
    heed::attention(q.source(), k.source(), v.source(), heed::bhtd(narrow.data(), shape[0], shape[1], shape[2], shape[3]), policies...,
                    factor, arch);
    const auto whole = elements(got.out.view);
    for (std::size_t i = 0; i < narrow.size(); ++i)
        if (narrow[i].bits != heed::bfloat16(whole[i]).bits) return wrong + "an output of bfloat16 is not the rounded one of float; ";
    return wrong;
}

template <class SQ, class SK, class SV, class Arch = heed::arch::native, class... Policies>
void fuzz_stored(const char* name, int count, const Policies&... policies) {
    count = std::max(1, count / fuzz_divisor);
    error_record outs, lses;
    for (int i = 0; i < count; ++i) {
        random_source r(91'000'000 + static_cast<std::uint64_t>(sizeof(SQ) * 4 + sizeof(SK) * 2 + sizeof(SV)) * 100'000 +
                        static_cast<std::uint64_t>(i));
        call_shape s = draw_shape(r, false);
        s.queries = r.chance(80) ? std::min<heed::index>(s.queries, r.one_of<heed::index>({1, 1, 1, 2, 3, 5, 8, 13, 40})) : s.queries;
        s.heads = s.key_heads * r.one_of<heed::index>({1, 1, 2, 3, 4, 7, 8, 12});
        const std::string wrong = compare_stored<Arch, SQ, SK, SV>(r, s, outs, lses, draw_window(r, s.keys), policies...);
        if (!wrong.empty()) FAIL_CHECK(name << " call " << i << " of HEED_TEST_SEED=" << test_seed() << " (" << s.text() << "): " << wrong);
    }
    std::printf("%-24s seed %llu: %5d calls, rms error in units: out %.3f (naive %.3f), lse %.3f (naive %.3f)\n", name,
                static_cast<unsigned long long>(test_seed()), count, outs.engine(), outs.naive(), lses.engine(), lses.naive());
    if (!rounds_weights<Arch, SQ, SK, SV>) CHECK(outs.engine() <= 2 * outs.naive());
    CHECK(lses.engine() <= 2 * lses.naive());
}

}  // namespace

TEST_CASE("calls with rows of stored types agree with the reference") {
    fuzz_stored<float, float, float>("float rows", 200);
    fuzz_stored<heed::bfloat16, heed::bfloat16, heed::bfloat16>("bfloat16 rows", 300);
    fuzz_stored<float, heed::float16, heed::bfloat16>("float16 and bfloat16 rows", 300);
    fuzz_stored<float, std::int8_t, std::int8_t>("int8 rows", 300);
}

#if defined(__AVX512BF16__)
namespace {

template <class Arch>
void fuzz_bfloat16(const char* name) {
    using heed::bfloat16;
    fuzz_stored<bfloat16, bfloat16, bfloat16, Arch>(name, 300);
    fuzz_stored<bfloat16, bfloat16, bfloat16, Arch>(name, 200, heed::softcap{3}, heed::split_keys{2});
}

}  // namespace

TEST_CASE("products of pairs of bfloat16 agree with the reference") { fuzz_bfloat16<heed::arch::avx512_bf16>("pairs of bfloat16"); }
#endif

#if defined(__AVX512BF16__) && defined(__AMX_TILE__) && defined(__AMX_BF16__) && defined(__linux__)
TEST_CASE("products by matrix registers agree with the reference") { fuzz_bfloat16<heed::arch::avx512_amx>("matrix registers"); }
#endif
