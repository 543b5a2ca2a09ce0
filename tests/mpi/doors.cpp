// The reductions, heads over ranks, and errors that reach every rank.
#include "mpi/parts.hpp"

#include <heed/heed.hpp>
#include <heed/reference.hpp>

#include "support/refusal.hpp"

#include <cmath>
#include <limits>
#include <new>
#include <stdexcept>

namespace {

using namespace heed_test;
using heed::index;

constexpr double none = -std::numeric_limits<double>::infinity();

// Fails in the call with this number, counted from 0.
struct unreliable {
    using axis = heed::axes::executor;
    int* calls_left;
    bool throws_memory = false;

    index workers() const { return 1; }
    template <class F>
    void bulk(index n, F&& f) const {
        if ((*calls_left)-- == 0) {
            if (throws_memory) throw std::bad_alloc();
            throw std::runtime_error("out of paper");
        }
        for (index i = 0; i < n; ++i) f(i, index{0});
    }
};

template <class F>
std::string other_failure(F&& call) {
    try {
        call();
    } catch (const std::invalid_argument& error) {
        return std::string("invalid_argument: ") + error.what();
    } catch (const std::runtime_error& error) {
        return error.what();
    }
    return "accepted";
}

// Tensors of one small call, equal on all ranks.
struct small_call {
    random_source r{7500};
    tensor<double> q = normal_tensor<double>(r, {1, 2, 5, 4}), k = normal_tensor<double>(r, {1, 1, 6, 4}),
                   v = normal_tensor<double>(r, {1, 1, 6, 3}), d_out = normal_tensor<double>(r, {1, 2, 5, 3});
    answer<double> out{{1, 2, 5, 3}};
    tensor<double> dq{{1, 2, 5, 4}}, dk{{1, 1, 6, 4}}, dv{{1, 1, 6, 3}};
    int calls = -1;
    unreliable executor{&calls};

    bool untouched() const {
        const auto& n = out.out.storage();
        return std::all_of(n.begin(), n.end(), [](double x) { return std::isnan(x); });
    }
    template <class... Policies>
    void sequence(const Policies&... p) {
        heed::mpi::sequence_parallel_attention(everyone(), q.view, k.view, v.view, out.result(), heed::causal, executor, p...);
    }
    void ring() { heed::mpi::ring_attention(everyone(), q.view, k.view, v.view, out.result(), heed::causal, executor); }
    void heads(const heed::view<double, 4>& to) {
        heed::mpi::head_parallel_attention(everyone(), q.view, k.view, v.view, to, heed::causal, executor);
    }
};

std::string failed(const char* door, int who, const std::string& text) {
    return "heed::mpi::" + std::string(door) + ": rank (" + std::to_string(who) + ") failed: " + text;
}

TEST_CASE("merge_states joins the partial results of all ranks") {
    // The last is long enough for MPI to take it in pieces.
    for (const shape4& shape : {shape4{2, 3, 5, 1}, shape4{1, 2, 4, 7}, shape4{1, 3, 4000, 33}}) {
        const index width = shape[3];
        random_source r(7600 + static_cast<std::uint64_t>(width));
        std::vector<answer<double>> parts;
        for (int i = 0; i < ranks; ++i) {
            parts.emplace_back(shape, order::bthd, padding{1, 2, 3, 1});
            parts.back().out.fill([&] { return r.normal(); });
            tensor<double>::each(parts.back().lse_rows.view, [&](double& x) { x = r.chance(30) ? none : 9 * r.normal(); });
        }
        const answer<double> exact(shape);
        for (index b = 0; b < shape[0]; ++b)
            for (index h = 0; h < shape[1]; ++h)
                for (index t = 0; t < shape[2]; ++t) {
                    long double total = 0;
                    std::vector<long double> sum(static_cast<std::size_t>(width));
                    for (const auto& p : parts)
                        for (index d = 0; d <= width; ++d) {
                            const long double weight = std::exp(static_cast<long double>(p.lse(b, h, t)));
                            if (d == width)
                                total += weight;
                            else if (weight > 0)
                                sum[static_cast<std::size_t>(d)] += weight * p.out.view(b, h, t, d);
                        }
                    exact.lse(b, h, t) = static_cast<double>(std::log(total));
                    for (index d = 0; d < width; ++d)
                        exact.out.view(b, h, t, d) = total > 0 ? static_cast<double>(sum[static_cast<std::size_t>(d)] / total) : 0;
                }
        const auto copied = [&](const answer<double>& from) {
            answer<double> to(shape, order::bthd, padding{1, 2, 3, 1});
            heed::merge_states(to.result(), from.result());
            return to;
        };
        const answer<double>& own = parts[static_cast<std::size_t>(rank)];
        const answer<double> all = copied(own), again = copied(own), one = copied(own);
        heed::mpi::merge_states(everyone(), all.result());
        heed::mpi::merge_states(everyone(), again.result());
        CHECK(near(all.out.view, exact.out.view, 1e-14));
        CHECK(near(all.lse, exact.lse, 1e-13));
        CHECK(all.same(again));
        CHECK(same_everywhere(elements(all.out.view)));
        CHECK(same_everywhere(elements(all.lse)));
        CHECK((all.out.holes_intact() && all.lse_rows.holes_intact()));
        heed::mpi::merge_states(everyone(), one.result(), {ranks - 1});
        if (rank == ranks - 1) {
            CHECK(near(one.out.view, exact.out.view, 1e-14));
            CHECK(near(one.lse, exact.lse, 1e-13));
        } else {
            CHECK(one.same(copied(own)));
        }
    }
}

TEST_CASE("the result of sequence-parallel attention goes to one rank, in 16 bits") {
    random_source r(7700);
    const auto q = normal_tensor<float>(r, {1, 2, 3, 8}), k = normal_tensor<float>(r, {1, 1, 20, 8}),
               v = normal_tensor<float>(r, {1, 1, 20, 4});
    const answer<float> all({1, 2, 3, 4});
    const answer<heed::bfloat16> one({1, 2, 3, 4});
    const auto own = own_share(draw_cuts(r, 20));
    const auto keys = part(k.view, own), values = part(v.view, own);
    heed::mpi::sequence_parallel_attention(everyone(), q.view, keys, values, all.result(), heed::causal);
    const heed::result<heed::bfloat16> ignored;
    heed::mpi::sequence_parallel_attention(everyone(), q.view, keys, values, rank == 0 ? one.result() : ignored, heed::causal,
                                           heed::mpi::to_rank{0});
    if (rank == 0) {
        CHECK(near(one.lse, all.lse, 1e-6));
        CHECK(same_bits(elements(one.out.view), elements(converted<heed::bfloat16>(all.out.view).view)));
    }
    CHECK(refusal([&] {
              heed::mpi::sequence_parallel_attention(everyone(), q.view, keys, values, all.result(), heed::causal, heed::mpi::to_rank{9});
          }) == failed("sequence_parallel_attention", 0,
                       "heed::mpi::sequence_parallel_attention: to_rank (9) must be below ranks (" + std::to_string(ranks) + ")"));
}

TEST_CASE("heads over ranks: gathered, or projected and summed") {
    random_source r(7800);
    const index own_heads = 2, heads = own_heads * ranks, tokens = 9, width = 3, features = 5;
    std::vector<float> slopes, logits;
    for (index h = 0; h < heads; ++h) {
        slopes.push_back(static_cast<float>(r.uniform(0, 1)));
        logits.push_back(static_cast<float>(r.normal()));
    }
    const auto q = normal_tensor<double>(r, {2, heads, tokens, 4});
    const auto k = normal_tensor<double>(r, {2, ranks, tokens, 4}), v = normal_tensor<double>(r, {2, ranks, tokens, width});
    const auto w = normal_tensor<double>(r, {1, heads, width, features});
    const answer<double> exact({2, heads, tokens, width});
    heed::reference::attention(q.view, k.view, v.view, exact.result(), heed::causal, heed::alibi{slopes}, heed::sinks(logits));

    const heed::mpi::share own = heed::mpi::share_of(everyone(), "heads", heads), own_key = heed::mpi::share_of(everyone(), "heads", ranks);
    CHECK((own.first == rank * own_heads && own.count == own_heads));
    const auto run = [&](const heed::result<double>& into) {
        heed::mpi::head_parallel_attention(everyone(), part(q.view, own, 1), part(k.view, own_key, 1), part(v.view, own_key, 1), into,
                                           heed::causal, heed::alibi{slopes}, heed::sinks(logits));
    };
    const answer<double> gathered({2, heads, tokens, width}, order::bthd, padding{1, 0, 2, 0}), stays({2, own_heads, tokens, width});
    run(gathered.result());
    CHECK(near(gathered.out.view, exact.out.view));
    CHECK(near(gathered.lse, exact.lse));
    run(stays.result());
    CHECK(near(stays.out.view, part(exact.out.view, own, 1)));

    // y = sum of heads of out W^O, plain loops
    const auto project = [&](const heed::view<double, 4>& out, const heed::mpi::share& from, const heed::view<double, 4>& y) {
        tensor<double>::each(y, [](double& x) { x = 0; });
        for (index b = 0; b < 2; ++b)
            for (index h = 0; h < from.count; ++h)
                for (index t = 0; t < tokens; ++t)
                    for (index d = 0; d < width; ++d)
                        for (index f = 0; f < features; ++f) y(b, 0, t, f) += out(b, h, t, d) * w.view(0, from.first + h, d, f);
    };
    const tensor<double> y({2, 1, tokens, features}, order::bhtd, padding{2, 0, 0, 0}), y_exact({2, 1, tokens, features}),
        dense({2, 1, tokens, features});
    project(exact.out.view, {0, heads}, y_exact.view);
    heed::mpi::sum(everyone(), y.view, [&] { project(stays.out.view, own, y.view); });
    CHECK(near(y.view, y_exact.view, 1e-12 * ranks));
    CHECK(y.holes_intact());
    project(stays.out.view, own, dense.view);
    heed::mpi::sum(everyone(), dense.view);
    CHECK(near(dense.view, y_exact.view, 1e-12 * ranks));
    CHECK(same_everywhere(elements(dense.view)));
}

// Each rank has a shard of the latent with a softmax of its own; the sum of outputs times W^VO is plain.
TEST_CASE("tensor-parallel latent attention is the sum of shards") {
    random_source r(7900);
    const index heads = 3, length = 17, rope = 4, latent = 3 * ranks, features = 6;
    const double scale = 0.3;
    const auto q = normal_tensor<double>(r, {1, heads, 2, latent}), q_pe = normal_tensor<double>(r, {1, heads, 2, rope});
    const auto c = normal_tensor<double>(r, {1, 1, length, latent}), k_pe = normal_tensor<double>(r, {1, 1, length, rope});
    const auto w = normal_tensor<double>(r, {1, heads, latent, features});
    // out += softmax_t(scale (q_k . c_kt + q_pe . k_pe_t)) c_k W_k, for the features of one shard, causal
    const auto shard = [&](const heed::mpi::share& s, const heed::view<double, 4>& out) {
        for (index h = 0; h < heads; ++h)
            for (index i = 0; i < 2; ++i) {
                std::vector<double> weight;
                double total = 0;
                for (index t = 0; t <= length - 2 + i; ++t) {
                    double score = 0;
                    for (index d = 0; d < rope; ++d) score += q_pe.view(0, h, i, d) * k_pe.view(0, 0, t, d);
                    for (index d = s.first; d < s.first + s.count; ++d) score += q.view(0, h, i, d) * c.view(0, 0, t, d);
                    total += weight.emplace_back(std::exp(scale * score));
                }
                for (index d = s.first; d < s.first + s.count; ++d) {
                    double u = 0;
                    for (std::size_t t = 0; t < weight.size(); ++t) u += weight[t] / total * c.view(0, 0, static_cast<index>(t), d);
                    for (index f = 0; f < features; ++f) out(0, 0, i, f) += u * w.view(0, h, d, f);
                }
            }
    };
    const tensor<double> y({1, 1, 2, features}), exact({1, 1, 2, features});
    tensor<double>::each(exact.view, [](double& x) { x = 0; });
    for (int i = 0; i < ranks; ++i) shard({latent / ranks * i, latent / ranks}, exact.view);

    const heed::mpi::share own = heed::mpi::share_of(everyone(), "latent width", latent);
    // Rows of this rank: its features of the latent, which are the values too, then the whole of the rotary part.
    const auto beside = [&](const heed::view<double, 4>& latents, const heed::view<double, 4>& pe) {
        tensor<double> rows({1, latents.extent(1), latents.extent(2), own.count + rope});
        index at = 0;
        tensor<double>::each(rows.view, [&](double& x) {
            const index d = at % (own.count + rope), t = at / (own.count + rope) % latents.extent(2);
            const index h = at++ / (own.count + rope) / latents.extent(2);
            x = d < own.count ? latents(0, h, t, own.first + d) : pe(0, h, t, d - own.count);
        });
        return rows;
    };
    const auto queries = beside(q.view, q_pe.view), cache = beside(c.view, k_pe.view);
    heed::mpi::sum(everyone(), y.view, [&] {
        const tensor<double> u({1, heads, 2, own.count});
        heed::attention(queries.view, cache.view, part(cache.view, {0, own.count}, 3), u.view, heed::causal, heed::scale{scale});
        tensor<double>::each(y.view, [](double& x) { x = 0; });
        for (index h = 0; h < heads; ++h)
            for (index i = 0; i < 2; ++i)
                for (index d = 0; d < own.count; ++d)
                    for (index f = 0; f < features; ++f) y.view(0, 0, i, f) += u.view(0, h, i, d) * w.view(0, h, own.first + d, f);
    });
    CHECK(near(y.view, exact.view, 1e-12));
}

TEST_CASE("ranks that do not divide, and slices") {
    if (ranks > 1)
        CHECK(refusal([] { heed::mpi::share_of(everyone(), "query heads", 2 * ranks + 1); }) ==
              "heed::mpi::share_of: query heads (" + std::to_string(2 * ranks + 1) + ") must be a multiple of ranks (" +
                  std::to_string(ranks) + ")");
    const auto slice = heed::mpi::slice_of(everyone(), 3 * ranks + 1);
    CHECK((slice.count == (rank == 0 ? 4 : 3) && slice.first == 3 * rank + (rank > 0 ? 1 : 0)));
    CHECK(heed_test::before_init == "heed::mpi::ranks: MPI_Init must come first");
    CHECK(refusal([] { heed::mpi::ranks(MPI_COMM_NULL); }) == "heed::mpi::ranks: communicator must not be null");
}

TEST_CASE("shapes that disagree are refused on every rank") {
    small_call c;
    if (ranks > 1) {
        const index own = rank == 1 ? 4 : 5;
        const auto of_rank_1 = [&](const char* door, const char* words) {
            return "heed::mpi::" + std::string(door) + ": rank (1) " + words + " (4) must equal that of rank 0 (5)";
        };
        const heed::mpi::share rows{0, own};
        const auto q = part(c.q.view, rows);
        const auto out = part(c.out.result(), rows);
        CHECK(refusal([&] { heed::mpi::sequence_parallel_attention(everyone(), q, c.k.view, c.v.view, out, heed::causal, c.executor); }) ==
              of_rank_1("sequence_parallel_attention", "query length"));
        CHECK(refusal([&] { heed::mpi::merge_states(everyone(), out); }) == of_rank_1("merge_states", "length"));
        CHECK(refusal([&] { heed::mpi::sum(everyone(), out.lse); }) == of_rank_1("sum", "extent"));
        CHECK(refusal([&] { heed::mpi::head_parallel_attention(everyone(), q, c.k.view, c.v.view, out.out, heed::causal, c.executor); }) ==
              of_rank_1("head_parallel_attention", "query length"));
        tensor<double> wide({1, 2, 5, 5});
        CHECK(refusal([&] {
                  heed::mpi::ring_attention(everyone(), part(wide.view, {0, own}, 3), c.k.view, c.v.view, c.out.result(), heed::causal,
                                            c.executor);
              }) == of_rank_1("ring_attention", "query features"));
        // Another door on one rank: each names its own.
        const std::string sum = "heed::mpi::sum: rank (1) must call the same door as rank (0)";
        const std::string merge = "heed::mpi::merge_states: rank (1) must call the same door as rank (0)";
        CHECK(refusal([&] {
                  if (rank == 1)
                      heed::mpi::sum(everyone(), c.q.view);
                  else
                      heed::mpi::merge_states(everyone(), c.out.result());
              }) == (rank == 1 ? sum : merge));
    }
    const heed::mpi::share nobody{0, 3};
    const int last = ranks - 1;
    const auto out_of = [&](const auto& x) { return rank == last ? part(x, nobody) : x; };
    CHECK(refusal([&] {
              heed::mpi::ring_attention(everyone(), c.q.view, c.k.view, c.v.view, out_of(c.out.result()), heed::causal, c.executor);
          }) == failed("ring_attention", last, "heed::mpi::ring_attention: out length (3) must equal expected length (5)"));
    // What the door of one process refuses comes with its own words.
    const auto values = rank == last ? part(c.v.view, {0, 2}) : c.v.view;
    CHECK(refusal([&] { heed::mpi::ring_attention(everyone(), c.q.view, c.k.view, values, c.out.result(), heed::causal, c.executor); }) ==
          failed("ring_attention", last, "heed::attention: value length (2) must equal key length (6)"));
    CHECK(refusal([&] {
              heed::mpi::sequence_parallel_attention(everyone(), c.q.view, c.k.view, values, c.out.result(), heed::causal, c.executor);
          }) == failed("sequence_parallel_attention", last, "heed::attention: value length (2) must equal key length (6)"));
    const tensor<double> three({1, 3, 5, 3});
    CHECK(refusal([&] { c.heads(three.view); }) ==
          failed("head_parallel_attention", 0,
                 "heed::mpi::head_parallel_attention: out heads (3) must equal those of this rank, or of all (" +
                     std::to_string(2 * ranks) + ")"));
    CHECK(c.untouched());
}

TEST_CASE("an exception on one rank is thrown on all, and nothing hangs or is written") {
    for (int who = 0; who < ranks; ++who) {
        INFO("rank " << who << " fails");
        small_call c;
        const auto arm = [&](int after = 0) { c.calls = rank == who ? after : -1; };
        arm();
        CHECK(other_failure([&] { c.sequence(); }) == failed("sequence_parallel_attention", who, "out of paper"));
        arm();
        CHECK(other_failure([&] { c.heads(c.out.out.view); }) == failed("head_parallel_attention", who, "out of paper"));
        // In a ring at any step: the others' keys still travel.
        for (int step = 0; step <= who; ++step) {
            arm(step);
            CHECK(other_failure([&] { c.ring(); }) == failed("ring_attention", who, "out of paper"));
        }
        c.executor.throws_memory = true;
        arm();
        CHECK(other_failure([&] { c.ring(); }) == failed("ring_attention", who, std::bad_alloc().what()));
        CHECK(other_failure([&] {
                  heed::mpi::sum(everyone(), c.q.view, [&] {
                      if (rank == who) throw 7;
                  });
              }) == failed("sum", who, "an exception that is no std::exception"));
        CHECK(refusal([&] {
                  heed::mpi::together(everyone(), "mpi::together", [&] { heed::require(rank != who, "mine", "rank", rank, "is tired"); });
              }) == failed("together", who, "heed::mine: rank (" + std::to_string(who) + ") is tired"));
        CHECK(c.untouched());
    }
    // The first of several.
    small_call c;
    c.calls = 0;
    CHECK(other_failure([&] { c.sequence(); }) == failed("sequence_parallel_attention", 0, "out of paper"));
    // And the backward, in the ring's last step of the last rank.
    c.calls = -1;
    c.ring();
    c.calls = rank == ranks - 1 ? ranks - 1 : -1;
    const std::string said = other_failure([&] {
        heed::mpi::ring_attention_backward(everyone(), c.q.view, c.k.view, c.v.view, c.out.result(), c.d_out.view, c.dq.view, c.dk.view,
                                           c.dv.view, heed::causal, c.executor);
    });
    CHECK(said == failed("ring_attention_backward", ranks - 1, "out of paper"));
    CHECK(std::isnan(c.dk.view(0, 0, 0, 0)));
}

}  // namespace
