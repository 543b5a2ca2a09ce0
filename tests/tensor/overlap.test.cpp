#include "support/catch.hpp"

#include <heed/tensor/overlap.hpp>

#include <array>
#include <random>
#include <set>
#include <vector>

namespace {

template <class T>
std::set<const char*> bytes_of(const heed::view<T, 3>& v) {
    std::set<const char*> bytes;
    for (heed::index i = 0; i < v.extent(0); ++i)
        for (heed::index j = 0; j < v.extent(1); ++j)
            for (heed::index k = 0; k < v.extent(2); ++k)
                for (std::size_t byte = 0; byte < sizeof(T); ++byte) bytes.insert(reinterpret_cast<const char*>(&v(i, j, k)) + byte);
    return bytes;
}

template <class T>
heed::view<const T, 3> random_view(const std::vector<double>& memory, std::mt19937_64& random) {
    const auto below = [&](std::uint64_t n) { return static_cast<heed::index>(random() % n); };
    for (;;) {
        heed::view<const T, 3> v{
            nullptr, {1 + below(3), 1 + below(4), 1 + below(5)}, {below(40) - 10, below(16) - 4, random() % 3 ? 1 : below(6) - 2}};
        const heed::index size = static_cast<heed::index>(memory.size() * sizeof(double) / sizeof(T)),
                          base = below(static_cast<std::uint64_t>(size));
        heed::index low = base, high = base;
        for (int i = 0; i < 3; ++i) (v.stride(i) < 0 ? low : high) += v.stride(i) * (v.extent(i) - 1);
        if (low < 0 || high >= size) continue;
        v.data = reinterpret_cast<const T*>(memory.data()) + base;
        return v;
    }
}

template <class A, class B>
int missed(int trials, std::mt19937_64& random, int& shared) {
    const std::vector<double> memory(90);
    int count = 0;
    for (int i = 0; i < trials; ++i) {
        const auto a = random_view<A>(memory, random);
        const auto b = random_view<B>(memory, random);
        const auto of_a = bytes_of(a), of_b = bytes_of(b);
        bool overlap = false;
        for (const char* byte : of_a) overlap = overlap || of_b.count(byte) != 0;
        shared += overlap;
        count += overlap && !heed::may_overlap(a, b);
        count += overlap && !heed::may_overlap(b, a);
    }
    return count;
}

}  // namespace

TEST_CASE("no overlap of strided views is missed") {
    std::mt19937_64 random(11);
    int shared = 0;
    CHECK(missed<float, float>(20000, random, shared) == 0);
    CHECK(missed<double, float>(20000, random, shared) == 0);
    CHECK(missed<char, double>(20000, random, shared) == 0);
    CHECK(shared > 10000);
}

TEST_CASE("apart are views of other memory, slices of a fused projection, and interleaved heads") {
    constexpr heed::index T = 7, H = 3, D = 4;
    std::vector<float> fused(T * 3 * H * D), other(T * H * D);
    const auto slice = [&](heed::index i) {
        return heed::view<float, 4>{fused.data() + i * H * D, {1, H, T, D}, {T * 3 * H * D, D, 3 * H * D, 1}};
    };
    for (const heed::index i : {0, 1, 2}) {
        CHECK(heed::may_overlap(slice(i), slice(i)));
        CHECK_FALSE(heed::may_overlap(slice(i), heed::bhtd(other.data(), 1, H, T, D)));
        for (const heed::index j : {0, 1, 2}) CHECK(heed::may_overlap(slice(i), slice(j)) == (i == j));
    }
    const auto head = [&](heed::index h) { return heed::view<float, 4>{fused.data() + h * D, {1, 1, T, D}, {0, 0, H * D, 1}}; };
    CHECK_FALSE(heed::may_overlap(head(0), head(1)));
    CHECK_FALSE(heed::may_overlap(head(2), head(1)));
    auto wide = head(0);
    wide.shape[3] = D + 1;
    CHECK(heed::may_overlap(wide, head(1)));
}

TEST_CASE("an empty view overlaps nothing, neighbours do not overlap") {
    std::vector<float> memory(8);
    CHECK_FALSE(heed::may_overlap(heed::bhtd(memory.data(), 1, 1, 0, 4), heed::bhtd(memory.data(), 1, 1, 1, 4)));
    CHECK_FALSE(heed::may_overlap(heed::bhtd(memory.data(), 1, 1, 1, 4), heed::bhtd(memory.data() + 4, 1, 1, 1, 4)));
    CHECK(heed::may_overlap(heed::bhtd(memory.data(), 1, 1, 1, 5), heed::bhtd(memory.data() + 4, 1, 1, 1, 4)));
}
