// AKI, modality-mutual attention: causal, and rectangles above the diagonal in which image tokens see the question behind them.
#include "golden/attend.hpp"
#include "golden/registry.hpp"

#include <heed/mask/causal.hpp>
#include <heed/mask/rectangles.hpp>
#include <heed/mask/view.hpp>

#include <cstdint>
#include <vector>

namespace golden {
namespace {

template <class T, class Mask>
answers attend_under(const problem<T>& in, const Mask& mask) {
    answers all = attend(in, 4, by_head, mask);
    const auto q = in.tensor("q", 4), k = in.tensor("k", 4);
    all["mask"] = allowed_pairs(mask, {q.extent(0), q.extent(1), k.extent(1), q.extent(2), k.extent(2)});
    return all;
}

// Image rows [I0, I1) see the question's columns [I1, T1); invalid keys are seen by nobody.
template <class T>
answers image_and_question(const problem<T>& in) {
    const auto i0 = in.integers("I0", 1), i1 = in.integers("I1", 1), t1 = in.integers("T1", 1);
    std::vector<heed::rectangle> images;
    for (std::size_t b = 0; b < i0.values.size(); ++b) images.push_back({i0.values[b], i1.values.at(b), i1.values.at(b), t1.values.at(b)});
    const heed::view<const heed::rectangle, 2> by_batch(images.data(), {i0.extent(0), 1}, {1, 1});

    const auto valid = in.integers("valid", 2);
    const std::vector<std::uint8_t> bytes(valid.values.begin(), valid.values.end());
    const heed::view<const std::uint8_t, 4> keys(bytes.data(), {valid.extent(0), 1, 1, valid.extent(1)}, {valid.extent(1), 0, 0, 1});
    return attend_under(in, (heed::causal | heed::rectangles{by_batch}) & heed::mask{keys});
}

// Rectangles [row0, row1) x [col0, col1) of all entries of the batch, or a list for each.
template <class T>
answers given_rectangles(const problem<T>& in) {
    const std::size_t rank = in.rank("rectangles");
    const auto given = in.integers("rectangles", rank == 3 ? 3 : 2);
    if (given.shape.back() != 4) throw failure("array rectangles has shape " + text_of(given.shape) + "; a rectangle has 4 bounds");
    std::vector<heed::rectangle> list;
    for (std::size_t i = 0; i < given.values.size(); i += 4)
        list.push_back({given.values[i], given.values[i + 1], given.values[i + 2], given.values[i + 3]});
    const index lists = rank == 3 ? given.extent(0) : 1, length = given.extent(rank - 2);
    return attend_under(in,
                        heed::causal | heed::rectangles{heed::view<const heed::rectangle, 2>(list.data(), {lists, length}, {length, 1})});
}

[[maybe_unused]] const bool registered = register_paper(
    40, "aki-mma",
    {{"softmax attention with mask (causal OR image rows x question columns)", [](const auto& in) { return image_and_question(in); }},
     {"softmax attention, causal plus given rectangles", [](const auto& in) { return given_rectangles(in); }}});

}  // namespace
}  // namespace golden
