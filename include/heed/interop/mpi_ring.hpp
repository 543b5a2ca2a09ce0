// mpi::ring_attention: long sequences whose queries and keys are both split over ranks (Liu, Zaharia and Abbeel 2023).
//
// In step s rank r works on the keys of rank r - s, while they move on to rank r + 1 and those of rank r - s - 1 arrive; partial results
// are merged by their log-sum-exps, the rank's own keys first. Keys travel no further than the last rank whose queries see any of them, and
// blocks that a rank's queries do not see are passed on without work: with a causal mask half of the work and of the traffic falls away. It
// falls away on the first ranks, so that the last one has the most work; slices that grow shorter by rank even that out. Memory: two
// blocks of the longest slice of keys and values, and two results; in the backward gradients of four blocks more.
#pragma once

#include <heed/accumulate/merge.hpp>
#include <heed/attention.hpp>
#include <heed/attention_backward.hpp>
#include <heed/interop/mpi_merge.hpp>
#include <heed/interop/mpi_ranks.hpp>
#include <heed/interop/placed.hpp>
#include <heed/mask/algebra.hpp>
#include <heed/policy.hpp>
#include <heed/tensor/error.hpp>
#include <heed/tensor/source.hpp>
#include <heed/tensor/view.hpp>

#include <algorithm>
#include <array>
#include <cstddef>
#include <exception>
#include <iterator>
#include <optional>
#include <thread>
#include <tuple>
#include <type_traits>
#include <vector>

namespace heed::inline HEED_ISA {

namespace mpi {

// Messages under way, which must arrive before the object goes.
class requests {
public:
    requests() { pending_.reserve(4); }
    requests(const requests&) = delete;
    requests& operator=(const requests&) = delete;

    void send(const ranks& group, const void* data, index count, MPI_Datatype type, int to, int tag) {
        pending_.push_back(MPI_REQUEST_NULL);
        succeed(MPI_Isend(data, static_cast<int>(count), type, to, tag, group.communicator(), &pending_.back()), "MPI_Isend");
    }
    void receive(const ranks& group, void* data, index count, MPI_Datatype type, int from, int tag) {
        pending_.push_back(MPI_REQUEST_NULL);
        succeed(MPI_Irecv(data, static_cast<int>(count), type, from, tag, group.communicator(), &pending_.back()), "MPI_Irecv");
    }
    // Gives MPI a turn, without which many implementations move nothing during the work.
    void advance() {
        int done = 0;
        if (!pending_.empty()) MPI_Testall(static_cast<int>(pending_.size()), pending_.data(), &done, MPI_STATUSES_IGNORE);
    }
    void wait() {
        if (!pending_.empty()) succeed(MPI_Waitall(static_cast<int>(pending_.size()), pending_.data(), MPI_STATUSES_IGNORE), "MPI_Waitall");
        pending_.clear();
    }

private:
    std::vector<MPI_Request> pending_;
};

// An executor under whose tasks messages move: after each task of the calling thread MPI gets a turn.
template <class E>
struct advancing {
    using axis = axes::executor;
    E executor;
    requests* messages;

    index workers() const { return executor.workers(); }
    template <class F>
    void bulk(index n, F&& f) const {
        const auto caller = std::this_thread::get_id();
        executor.bulk(n, [&](index task, index worker) {
            f(task, worker);
            if (std::this_thread::get_id() == caller) messages->advance();
        });
    }
};

// Memory of messages, in units that an int counts.
struct alignas(64) cache_line {
    std::byte bytes[64];

    static index of(index bytes) { return (bytes + 63) / 64; }
    // Sent as it is; freed with the object.
    class type {
    public:
        type() {
            succeed(MPI_Type_contiguous(64, MPI_BYTE, &type_), "MPI_Type_contiguous");
            succeed(MPI_Type_commit(&type_), "MPI_Type_commit");
        }
        type(const type&) = delete;
        type& operator=(const type&) = delete;
        ~type() { MPI_Type_free(&type_); }
        operator MPI_Datatype() const { return type_; }

    private:
        MPI_Datatype type_ = MPI_DATATYPE_NULL;
    };
};

// Numbers of what ring ranks tell of a call: what they have in common, then whether values are in the keys, queries and keys.
struct ring_numbers {
    static constexpr std::size_t joined = 8, queries = 9, keys = 10;
    static bool all_joined(const ranks& group, const told& all) {
        bool joined_everywhere = true;
        for (int r = 0; r < group.size(); ++r) joined_everywhere = joined_everywhere && all.at(r, joined) != 0;
        return joined_everywhere;
    }
    static void compare(const told& all) {
        constexpr const char* words[] = {"query batch",    "query heads",           "query features",          "key heads",
                                         "value features", "bytes of a key number", "bytes of a value number", "bytes of an element"};
        for (std::size_t i = 0; i < std::size(words); ++i) all.same(i, words[i]);
    }
};

// Who has which rows, and whose keys each rank's queries see.
class ring {
public:
    ring(const ranks& group, const told& all)
        : queries(all.starts(ring_numbers::queries)),
          keys(all.starts(ring_numbers::keys)),
          rank_(group.rank()),
          size_(group.size()),
          seen_(static_cast<std::size_t>(size_ * size_)) {}

    std::vector<index> queries, keys;  // starts by rank, and the ends

    int steps() const { return size_; }
    int to(int step) const { return (rank_ + step) % size_; }
    // Whose keys this rank has in a step.
    int from(int step) const { return (rank_ - step + size_) % size_; }
    index keys_of(int rank) const { return keys[static_cast<std::size_t>(rank) + 1] - keys[static_cast<std::size_t>(rank)]; }
    index most_keys() const {
        index most = 0;
        for (int r = 0; r < size_; ++r) most = std::max(most, keys_of(r));
        return most;
    }
    bool sees(int rank, int block) const { return rank == block || seen_[static_cast<std::size_t>(rank * size_ + block)] != 0; }
    // Whether the keys of a rank are there for the rank `step` behind it.
    bool travels(int block, int step) const {
        for (; step < size_; ++step)
            if (sees((block + step) % size_, block)) return true;
        return false;
    }
    // Where this rank's query rows and the keys of another stand.
    slice_place place(const extents& whole, int block) const {
        return {whole, queries[static_cast<std::size_t>(rank_)], keys[static_cast<std::size_t>(block)], 0, block == rank_};
    }
    // Asks the mask, which stands for that of the whole call, for each block of keys.
    template <class Mask>
    void look(const extents& whole, const Mask& mask) {
        extents e = whole;
        e.queries = queries[static_cast<std::size_t>(rank_) + 1] - queries[static_cast<std::size_t>(rank_)];
        for (int block = 0; block < size_; ++block) {
            e.keys = keys_of(block);
            const auto bound = ask::bind(placed_mask<Mask>{mask, place(whole, block)}, e);
            bool seen = false;
            for (index b = 0; b < e.batch && e.queries > 0 && !seen; ++b)
                for (index h = 0; h < e.heads && !seen; ++h) seen = sees_any(bound, b, h, e);
            seen_[static_cast<std::size_t>(rank_ * size_ + block)] = seen;
        }
    }
    void share(const ranks& group) {
        succeed(MPI_Allgather(MPI_IN_PLACE, size_, MPI_CHAR, seen_.data(), size_, MPI_CHAR, group.communicator()), "MPI_Allgather");
    }

private:
    template <class Bound>
    static bool sees_any(const Bound& mask, index b, index h, const extents& e) {
        const index first = e.offset(), end = e.keys;
        for (key_run run = mask.keys(b, h, first, end, 0); !run.empty() && run.begin < end; run = mask.keys(b, h, first, end, run.end)) {
            if (mask.classify(b, h, {first, end, run.begin, std::min(run.end, end)}) != coverage::empty) return true;
            if (run.end >= end) break;
        }
        return false;
    }

    int rank_, size_;
    std::vector<char> seen_;
};

// A rank's keys and values, and those that come by.
template <class K, class V>
class travellers {
public:
    requests messages;

    travellers(const ranks& group, const ring& way, const view<const K, 4>& k, const view<const V, 4>& v, bool joined)
        : group_(group), way_(way), k_(k), v_(v), joined_(joined) {
        if (way.steps() == 1) return;
        here_.resize(static_cast<std::size_t>(lines(way.most_keys())));
        coming_.resize(here_.size());
        auto keys = at<K>(here_, 0, group.rank(), k_);
        pack(k_, keys);
        if (!joined_) pack(v_, at<V>(here_, key_lines(way.keys_of(group.rank())), group.rank(), v_));
    }
    // Sends the keys of this step on, and receives those of the next.
    void depart(int step) {
        const int here = way_.from(step), next = way_.from(step + 1);
        if (step + 1 == way_.steps()) return;
        if (way_.travels(next, step + 1)) messages.receive(group_, coming_.data(), lines(way_.keys_of(next)), type_, way_.from(1), 0);
        if (way_.travels(here, step + 1)) messages.send(group_, here_.data(), lines(way_.keys_of(here)), type_, way_.to(1), 0);
    }
    void arrive() {
        messages.wait();
        here_.swap(coming_);
    }
    view<const K, 4> keys(int step) {
        if (step == 0) return k_;
        return at<K>(here_, 0, way_.from(step), k_);
    }
    view<const V, 4> values(int step) {
        if (step == 0) return v_;
        if (!joined_) return at<V>(here_, key_lines(way_.keys_of(way_.from(step))), way_.from(step), v_);
        if constexpr (std::is_same_v<K, V>) {
            view<const V, 4> v = keys(step);
            v.shape[3] = v_.extent(3);
            return v;
        } else {
            return v_;
        }
    }
    // Whether values are the first features of the keys, as in a latent cache, so that they travel once.
    static bool are_joined(const view<const K, 4>& k, const view<const V, 4>& v) {
        if constexpr (std::is_same_v<K, V>)
            return k.data == v.data && k.strides == v.strides && v.extent(3) <= k.extent(3);
        else
            return false;
    }

private:
    index key_lines(index n) const { return cache_line::of(k_.extent(0) * k_.extent(1) * n * k_.extent(3) * index{sizeof(K)}); }
    index lines(index n) const {
        return key_lines(n) + (joined_ ? 0 : cache_line::of(v_.extent(0) * v_.extent(1) * n * v_.extent(3) * index{sizeof(V)}));
    }
    template <class T>
    view<T, 4> at(std::vector<cache_line>& memory, index line, int block, const view<const T, 4>& like) const {
        return bhtd(reinterpret_cast<T*>(memory.data() + line), like.extent(0), like.extent(1), way_.keys_of(block), like.extent(3));
    }
    template <class T>
    static void pack(const view<const T, 4>& from, const view<T, 4>& to) {
        for (index b = 0; b < from.extent(0); ++b)
            for (index h = 0; h < from.extent(1); ++h)
                for (index t = 0; t < from.extent(2); ++t) std::copy_n(&from(b, h, t, 0), from.extent(3), &to(b, h, t, 0));
    }

    const ranks& group_;
    const ring& way_;
    view<const K, 4> k_;
    view<const V, 4> v_;
    bool joined_;
    cache_line::type type_;
    std::vector<cache_line> here_, coming_;
};

template <class Q, class K, class V>
told::numbers slice_of_ring(const Q& q, const view<K, 4>& k, const view<V, 4>& v) {
    const auto rows = q.shape();
    const view<const std::remove_const_t<K>, 4> keys = k;
    const view<const std::remove_const_t<V>, 4> values = v;
    return {rows[0],
            rows[1],
            rows[3],
            k.extent(1),
            v.extent(3),
            sizeof(K),
            sizeof(V),
            sizeof(typename Q::value_type),
            travellers<std::remove_const_t<K>, std::remove_const_t<V>>::are_joined(keys, values),
            rows[2],
            k.extent(2)};
}

// softmax(mods(scale q k^T), mask) v of a sequence split over ranks. q (B, H, this rank's queries, D) is any row source, k (B, Hk, this
// rank's keys, D) and v (B, Hk, this rank's keys, Dv) are views, 16-bit ones too, out (B, H, this rank's queries, Dv) or result{out, lse};
// queries and keys follow each other in the order of ranks, slices may differ in length and be empty. The last query of all stands at the
// last key of all. Where v is the first features of k on every rank, as in a latent cache, they travel once.
template <class Q, class K, class V, class Out, class... Policies>
void ring_attention(const ranks& group, const Q& q, const K& k, const V& v, const Out& out, const Policies&... policies) {
    static_assert(is_view<K> && is_view<V>, "heed: keys and values of a ring travel as views; copy other row sources first");
    check_receivers<0, Policies...>();
    constexpr const char* door = "mpi::ring_attention";
    const auto source = row_source(q);
    const auto shape = source.shape();
    using T = typename decltype(source)::value_type;
    const auto into = doors::as_result(out);
    const std::array<index, 4> expected{shape[0], shape[1], shape[2], v.extent(3)};
    const told all(group, door, [&] {
        check_states(door, into, expected);
        return slice_of_ring(source, k, v);
    });
    ring_numbers::compare(all);
    ring way(group, all);
    const extents whole{shape[0], shape[1], k.extent(1), way.queries.back(), way.keys.back()};
    const auto executor = one_on<heed::axes::executor>(sequential{}, policies...);
    const auto on_part = [&](int block, const auto& f) {
        std::apply([&](const auto&... own) { std::apply(f, placed(door, way.place(whole, block), shape[1], own...)); },
                   without<heed::axes::executor>(policies...));
    };

    std::optional<packed_rows<T>> sum, part;
    std::optional<travellers<typename K::value_type, typename V::value_type>> block;
    together(group, door, [&] {
        sum.emplace(expected);
        part.emplace(expected);
        on_part(group.rank(), [&](const auto&... p) {
            (void)doors::state_attention("attention", source, row_source(k), row_source(v), sum->states(), p...);
        });
        way.look(whole, conjunction(all_on<heed::axes::mask>(policies...)));
        block.emplace(group, way, k, v, ring_numbers::all_joined(group, all));
    });
    way.share(group);

    std::exception_ptr failed;
    const advancing<std::remove_const_t<decltype(executor)>> working{executor, &block->messages};
    for (int step = 0; step < way.steps(); ++step) {
        block->depart(step);
        const int owner = way.from(step);
        if (!failed && way.sees(group.rank(), owner)) try {
                on_part(owner, [&](const auto&... p) {
                    attention(source, block->keys(step), block->values(step), step == 0 ? sum->states() : part->states(), p..., working);
                });
                if (step > 0) heed::merge_states(sum->states(), sum->states(), part->states());
            } catch (...) {
                failed = std::current_exception();
            }
        block->arrive();
    }
    agree(group, door, failed);
    copy_states(sum->states(), into);
}

// Gradients of ring_attention from its result{out, lse} on each rank; all operands, and gradients as in attention_backward, are this rank's
// slices. Keys travel as in the forward, and each rank sends what it adds to the gradients of others' keys to their owner, where they are
// added in the order of steps.
template <class Q, class K, class V, class R, class DOut, class DQ, class DK, class DV, class... Policies>
void ring_attention_backward(const ranks& group, const Q& q, const K& k, const V& v, const result<R>& forward, const DOut& d_out,
                             const view<DQ, 4>& dq, const view<DK, 4>& dk, const view<DV, 4>& dv, const Policies&... policies) {
    static_assert(is_view<K> && is_view<V>, "heed: keys and values of a ring travel as views; copy other row sources first");
    check_receivers<0, Policies...>();
    constexpr const char* door = "mpi::ring_attention_backward";
    const auto source = row_source(q);
    const auto shape = source.shape();
    using T = typename decltype(source)::value_type;
    const told all(group, door, [&] { return slice_of_ring(source, k, v); });
    ring_numbers::compare(all);
    ring way(group, all);
    const extents whole{shape[0], shape[1], k.extent(1), way.queries.back(), way.keys.back()};
    const auto executor = one_on<heed::axes::executor>(sequential{}, policies...);
    const auto on_part = [&](int block, const auto& f) {
        std::apply([&](const auto&... own) { std::apply(f, placed(door, way.place(whole, block), shape[1], own...)); },
                   without<heed::axes::executor>(policies...));
    };

    // Gradients of a block of keys and its values, behind one another, as they are sent.
    struct key_gradients {
        std::vector<cache_line> memory;
        index batch, heads, depth, width;
        T* at() { return reinterpret_cast<T*>(memory.data()); }
        view<T, 4> dk(index keys) { return bhtd(at(), batch, heads, keys, depth); }
        view<T, 4> dv(index keys) { return bhtd(at() + batch * heads * keys * depth, batch, heads, keys, width); }
        index size(index keys) const { return batch * heads * keys * (depth + width); }
        index lines(index keys) const { return cache_line::of(size(keys) * index{sizeof(T)}); }
    };
    struct exchange {
        requests messages;
        key_gradients sent, received;
        bool comes = false;
    };
    const auto add = [](const T* from, T* to, index n) {
        for (index i = 0; i < n; ++i) to[i] += from[i];
    };
    const index own_keys = k.extent(2);
    key_gradients sum{{}, k.extent(0), k.extent(1), k.extent(3), v.extent(3)};
    std::array<exchange, 2> exchanges;
    std::vector<T> dq_sum, dq_part;
    std::optional<travellers<typename K::value_type, typename V::value_type>> block;
    const cache_line::type line;
    const auto rows = [&](std::vector<T>& numbers) { return bhtd(numbers.data(), shape[0], shape[1], shape[2], shape[3]); };
    together(group, door, [&] {
        on_part(group.rank(), [&](const auto&... p) {
            (void)doors::state_backward("attention_backward", source, row_source(k), row_source(v), forward, doors::as_result(d_out), dq,
                                        dk, dv, p...);
        });
        way.look(whole, conjunction(all_on<heed::axes::mask>(policies...)));
        block.emplace(group, way, k, v, ring_numbers::all_joined(group, all));
        dq_sum.resize(static_cast<std::size_t>(shape[0] * shape[1] * shape[2] * shape[3]));
        dq_part.resize(dq_sum.size());
        sum.memory.resize(static_cast<std::size_t>(sum.lines(own_keys)));
        for (exchange& e : exchanges) {
            e.sent = e.received = sum;
            e.sent.memory.resize(static_cast<std::size_t>(sum.lines(way.most_keys())));
        }
    });
    way.share(group);

    const auto settle = [&](exchange& e) {
        e.messages.wait();
        if (e.comes) add(e.received.at(), sum.at(), sum.size(own_keys));
        e.comes = false;
    };
    std::exception_ptr failed;
    const advancing<std::remove_const_t<decltype(executor)>> working{executor, &block->messages};
    for (int step = 0; step < way.steps(); ++step) {
        block->depart(step);
        const int owner = way.from(step), user = way.to(step);
        exchange& now = exchanges[static_cast<std::size_t>(step % 2)];
        now.comes = step > 0 && way.sees(user, group.rank());
        if (now.comes) now.messages.receive(group, now.received.memory.data(), sum.lines(own_keys), line, user, 1);
        if (way.sees(group.rank(), owner)) {
            key_gradients& into = step == 0 ? sum : now.sent;
            const index keys = way.keys_of(owner);
            if (!failed) try {
                    on_part(owner, [&](const auto&... p) {
                        attention_backward(source, block->keys(step), block->values(step), forward, d_out,
                                           rows(step == 0 ? dq_sum : dq_part), into.dk(keys), into.dv(keys), p..., working);
                    });
                    if (step > 0) add(dq_part.data(), dq_sum.data(), static_cast<index>(dq_sum.size()));
                } catch (...) {
                    failed = std::current_exception();
                }
            if (step > 0) now.messages.send(group, into.memory.data(), sum.lines(keys), line, owner, 1);
        }
        block->arrive();
        settle(exchanges[static_cast<std::size_t>((step + 1) % 2)]);
    }
    for (exchange& e : exchanges) settle(e);
    agree(group, door, failed);
    const auto write = [](const auto& to, const T* from) {
        using To = typename std::remove_cvref_t<decltype(to)>::value_type;
        each_element(to, [&](To& x) { x = static_cast<To>(*from++); });
    };
    write(dq, dq_sum.data());
    write(dk, sum.dk(own_keys).data);
    write(dv, sum.dv(own_keys).data);
}

}  // namespace mpi

}  // namespace heed::inline HEED_ISA
