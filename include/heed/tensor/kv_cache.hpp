// kv_cache<T>: keys and values of growing sequences, in pages that forks share until one of them writes, and that are used again.
//
// Pages hold the same tokens in every layer, so a model grows a sequence once a step and stores layer by layer. All memory is taken when
// the cache is made, but for the lists of pages. A refusal changes nothing. One thread at a time may change a cache; store writes only
// rows of its own sequence and layer, so calls for different ones may run side by side. kv_cache<std::int8_t> takes and gives rows of
// float: a row, what a token has in a head, is kept as its nearest multiples of max|row| / 127 and that scale; one that holds NaN or
// infinity is NaN as a whole, to whoever sees it.
// Kwon et al. 2023, Efficient Memory Management for Large Language Model Serving with PagedAttention.
#pragma once

#include <heed/tensor/error.hpp>
#include <heed/tensor/page_pool.hpp>
#include <heed/tensor/segments.hpp>
#include <heed/tensor/view.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <type_traits>
#include <utility>
#include <vector>

namespace heed::inline HEED_ISA {

// What one call reads of several sequences; owns its table and lengths.
struct kv_batch {
    std::vector<std::int32_t> table, lengths;
    index pages = 0;  // of a row of the table; entries past a sequence's own are -1

    view<const std::int32_t, 2> block_table() const { return {table.data(), {static_cast<index>(lengths.size()), pages}, {pages, 1}}; }
    seqlens_k seqlens() const { return {lengths}; }
    // For query rows of the sequences behind one another.
    packed_queries packed(std::span<const std::int32_t> cu_seqlens_q) const { return {cu_seqlens_q, lengths}; }
};

// Sequences that begin with the same pages: those as one sequence, and what each has behind them. Two calls over the same packed queries,
// attention(q, prefix, far) and attention(q, own, near, causal, own.packed(cu_seqlens_q)), joined by merge_states, are one over all; masks
// and scores must not ask for distances to keys of the prefix, which are counted from its own end.
struct shared_kv_batch {
    kv_batch prefix, own;
};

template <class T>
class kv_cache {
public:
    using row_type = typename page_pool_of<T>::row_type;  // of rows that are given and come back: float for int8
    // value_features 0: as many as keys have.
    struct extents {
        index pages = 0, page_size = 16, heads = 0, key_features = 0, value_features = 0, layers = 1;
    };

    explicit kv_cache(const extents& e) : e_(checked(e)), keys_(pool(e_.key_features)), values_(pool(e_.value_features)) {
        references_.assign(static_cast<std::size_t>(e_.pages), 0);
        for (index i = e_.pages; i-- > 0;) free_.push_back(static_cast<std::int32_t>(i));
    }

    const extents& shape() const { return e_; }
    index page_size() const { return e_.page_size; }
    index free_pages() const { return static_cast<index>(free_.size()); }
    index length(index sequence) const { return at("kv_cache length", sequence).tokens; }

    // The number of a new sequence without tokens; numbers of released ones are used again.
    index create() {
        for (std::size_t i = 0; i < sequences_.size(); ++i)
            if (!sequences_[i].live) {
                sequences_[i].live = true;
                return static_cast<index>(i);
            }
        sequences_.push_back({{}, 0, true});
        return static_cast<index>(sequences_.size()) - 1;
    }
    // A sequence with the same tokens, which costs no page before one of the two grows.
    index fork(index sequence) {
        at("kv_cache fork", sequence);
        const index copy = create();
        held& to = sequences_[static_cast<std::size_t>(copy)];
        const held& from = sequences_[static_cast<std::size_t>(sequence)];
        to.pages = from.pages;
        to.tokens = from.tokens;
        for (const std::int32_t page : to.pages) ++references_[static_cast<std::size_t>(page)];
        return copy;
    }
    void release(index sequence) {
        held& s = at("kv_cache release", sequence);
        give_back(s, 0);
        s.tokens = 0;
        s.live = false;
    }
    // Forgets all but the first `tokens`.
    void truncate(index sequence, index tokens) {
        held& s = at("kv_cache truncate", sequence);
        require(tokens >= 0, "kv_cache truncate", "tokens", tokens, "must not be below", 0);
        require(tokens <= s.tokens, "kv_cache truncate", "tokens", tokens, "must not exceed the length of the sequence", s.tokens);
        give_back(s, pages_for(tokens));
        s.tokens = tokens;
    }
    // Pages that `tokens` more would take; grow refuses where fewer are free.
    index pages_to_grow(index sequence, index tokens) const {
        const held& s = at("kv_cache pages_to_grow", sequence);
        return pages_for(s.tokens + tokens) - static_cast<index>(s.pages.size()) + (tokens > 0 && copies_last(s) ? 1 : 0);
    }
    // Room for more tokens, whose rows are not yet written; the number of the first.
    index grow(index sequence, index tokens) {
        constexpr const char* door = "kv_cache grow";
        held& s = at(door, sequence);
        require(tokens >= 0, door, "tokens", tokens, "must not be below", 0);
        const index needed = pages_to_grow(sequence, tokens);
        require(needed <= free_pages(), door, "pages", needed, "must not exceed free pages", free_pages());
        const index first = s.tokens, total = pages_for(first + tokens);
        s.pages.reserve(static_cast<std::size_t>(total));
        if (tokens > 0 && copies_last(s)) {
            const std::int32_t shared = s.pages.back(), own = take();
            copy_page(shared, own);
            --references_[static_cast<std::size_t>(shared)];
            s.pages.back() = own;
        }
        while (static_cast<index>(s.pages.size()) < total) s.pages.push_back(take());
        s.tokens += tokens;
        return first;
    }
    // Rows of tokens [first, first + k's tokens) of one layer: views (1, head, token, feature). Refused where a fork reads them too.
    void store(index sequence, index first, const view<const row_type, 4>& k, const view<const row_type, 4>& v, index layer = 0) {
        constexpr const char* door = "kv_cache store";
        const held& s = at(door, sequence);
        const index count = k.extent(2);
        check_rows(door, s, first, count, k, v, layer);
        for (index i = first / e_.page_size; i * e_.page_size < first + count && count > 0; ++i)
            require(references_[static_cast<std::size_t>(s.pages[static_cast<std::size_t>(i)])] == 1, door, "page", i,
                    "must not be shared with forks of its sequence");
        each_row(s, first, count, layer, [&](const page_place& at, index t) {
            keys_.put(at, &k(0, at.head, t, 0));
            values_.put(at, &v(0, at.head, t, 0));
        });
    }
    // grow and store, for a cache of one layer.
    index append(index sequence, const view<const row_type, 4>& k, const view<const row_type, 4>& v) {
        constexpr const char* door = "kv_cache append";
        require(e_.layers == 1, door, "layers", e_.layers, "must be", 1);
        check_views(door, k, v);
        const index first = grow(sequence, k.extent(2));
        store(sequence, first, k, v);
        return first;
    }
    // The way back: copies rows out into views (1, head, token, feature).
    void gather(index sequence, index first, const view<row_type, 4>& k, const view<row_type, 4>& v, index layer = 0) const {
        constexpr const char* door = "kv_cache gather";
        const held& s = at(door, sequence);
        check_rows(door, s, first, k.extent(2), k, v, layer);
        each_row(s, first, k.extent(2), layer, [&](const page_place& at, index t) {
            keys_.get(at, &k(0, at.head, t, 0));
            values_.get(at, &v(0, at.head, t, 0));
        });
    }

    // What a call over these sequences reads. The second form writes over a batch of an earlier step and allocates only when it grows.
    kv_batch batch(std::span<const index> sequences) const {
        kv_batch b;
        batch(sequences, b);
        return b;
    }
    void batch(std::span<const index> sequences, kv_batch& into) const {
        into.pages = 0;
        into.lengths.clear();
        for (const index s : sequences) {
            const held& x = at("kv_cache batch", s);
            into.pages = std::max(into.pages, static_cast<index>(x.pages.size()));
            into.lengths.push_back(static_cast<std::int32_t>(x.tokens));
        }
        into.table.assign(sequences.size() * static_cast<std::size_t>(into.pages), -1);
        for (std::size_t i = 0; i < sequences.size(); ++i) {
            const auto& pages = sequences_[static_cast<std::size_t>(sequences[i])].pages;
            std::copy(pages.begin(), pages.end(), into.table.begin() + static_cast<std::ptrdiff_t>(i) * into.pages);
        }
    }
    // The same in two parts: the pages that all of these sequences begin with, less what each one's last `queries` tokens lie in.
    shared_kv_batch shared_batch(std::span<const index> sequences, index queries = 1) const {
        require(queries >= 0, "kv_cache shared_batch", "queries", queries, "must not be below", 0);
        shared_kv_batch b{{}, batch(sequences)};
        kv_batch &prefix = b.prefix, &own = b.own;
        const auto page = [&](std::size_t s, index i) {
            return own.table[s * static_cast<std::size_t>(own.pages) + static_cast<std::size_t>(i)];
        };
        prefix.pages = own.pages;
        for (std::size_t s = 0; s < sequences.size(); ++s) {
            prefix.pages = std::min(prefix.pages, std::max<index>(0, own.lengths[s] - queries) / e_.page_size);
            index same = 0;
            while (same < prefix.pages && page(s, same) == page(0, same)) ++same;
            prefix.pages = same;
        }
        const index shared = prefix.pages, rest = own.pages - shared;
        prefix.table.assign(own.table.begin(), own.table.begin() + shared);
        prefix.lengths = {static_cast<std::int32_t>(shared * e_.page_size)};
        for (std::size_t s = 0; s < sequences.size(); ++s) {
            const auto row = own.table.begin() + static_cast<std::ptrdiff_t>(s) * own.pages;
            std::copy(row + shared, row + own.pages, own.table.begin() + static_cast<std::ptrdiff_t>(s) * rest);
            own.lengths[s] -= prefix.lengths[0];
        }
        own.table.resize(sequences.size() * static_cast<std::size_t>(rest));
        own.pages = rest;
        return b;
    }
    // In place of keys and values of a call; give it b.seqlens() or b.packed(cu_seqlens_q) as well. Valid until a sequence of the batch
    // changes.
    auto keys(const kv_batch& b, index layer = 0) const { return keys_.read(checked(layer), b.block_table()); }
    auto values(const kv_batch& b, index layer = 0) const { return values_.read(checked(layer), b.block_table()); }
    // (page, head, token of the page, feature)
    view<T, 4> key_pool(index layer = 0) const { return keys_.rows(checked(layer)); }
    view<T, 4> value_pool(index layer = 0) const { return values_.rows(checked(layer)); }
    // (page, head, token of the page, 1), of int8.
    view<float, 4> key_scales(index layer = 0) const
        requires std::is_same_v<T, std::int8_t>
    {
        return keys_.scales(checked(layer));
    }
    view<float, 4> value_scales(index layer = 0) const
        requires std::is_same_v<T, std::int8_t>
    {
        return values_.scales(checked(layer));
    }

private:
    struct held {
        std::vector<std::int32_t> pages;
        index tokens = 0;
        bool live = false;
    };
    static extents checked(extents e) {
        constexpr const char* door = "kv_cache";
        if (e.value_features == 0) e.value_features = e.key_features;
        const auto positive = [&](const char* name, index n) { require(n >= 1, door, name, n, "must be at least", 1); };
        positive("pages", e.pages);
        positive("page_size", e.page_size);
        positive("heads", e.heads);
        positive("key features", e.key_features);
        positive("value features", e.value_features);
        positive("layers", e.layers);
        require(e.pages <= std::int32_t{0x7fffffff}, door, "pages", e.pages, "must not exceed", std::int32_t{0x7fffffff});
        return e;
    }
    index checked(index layer) const {
        require(layer >= 0 && layer < e_.layers, "kv_cache", "layer", layer, "must be at least 0 and below layers", e_.layers);
        return layer;
    }
    page_pool_of<T> pool(index features) const { return {e_.layers, e_.pages, e_.heads, e_.page_size, features}; }
    index pages_for(index tokens) const { return (tokens + e_.page_size - 1) / e_.page_size; }
    // Whether the last page has room that a fork may want as well.
    bool copies_last(const held& s) const {
        return s.tokens % e_.page_size != 0 && references_[static_cast<std::size_t>(s.pages.back())] > 1;
    }
    std::int32_t take() {
        const std::int32_t page = free_.back();
        free_.pop_back();
        references_[static_cast<std::size_t>(page)] = 1;
        return page;
    }
    void give_back(held& s, index kept) {
        while (static_cast<index>(s.pages.size()) > kept) {
            const std::int32_t page = s.pages.back();
            s.pages.pop_back();
            if (--references_[static_cast<std::size_t>(page)] == 0) free_.push_back(page);
        }
    }
    void copy_page(std::int32_t from, std::int32_t to) {
        for (index layer = 0; layer < e_.layers; ++layer) {
            keys_.copy_page(layer, from, to);
            values_.copy_page(layer, from, to);
        }
    }
    const held& at(const char* door, index sequence) const {
        require(sequence >= 0 && sequence < static_cast<index>(sequences_.size()) && sequences_[static_cast<std::size_t>(sequence)].live,
                door, "sequence", sequence, "must be one of the cache's");
        return sequences_[static_cast<std::size_t>(sequence)];
    }
    held& at(const char* door, index sequence) { return const_cast<held&>(std::as_const(*this).at(door, sequence)); }
    template <class U>
    void check_views(const char* door, const view<U, 4>& k, const view<U, 4>& v) const {
        const auto check = [&](const char* name, const view<U, 4>& x, index features) {
            require(x.extent(0) == 1, door, name, "batch", x.extent(0), "must be", 1);
            require(x.extent(1) == e_.heads, door, name, "heads", x.extent(1), "must equal heads of the cache", e_.heads);
            require(x.extent(3) == features, door, name, "features", x.extent(3), "must equal those of the cache", features);
            require(x.stride(3) == 1 || features == 1, door, name, "last stride", x.stride(3), "must be", 1);
            require(x.data != nullptr || x.empty(), door, name, "must not be null");
        };
        check("key", k, e_.key_features);
        check("value", v, e_.value_features);
        require(v.extent(2) == k.extent(2), door, "value tokens", v.extent(2), "must equal key tokens", k.extent(2));
    }
    template <class U>
    void check_rows(const char* door, const held& s, index first, index count, const view<U, 4>& k, const view<U, 4>& v,
                    index layer) const {
        check_views(door, k, v);
        require(layer >= 0 && layer < e_.layers, door, "layer", layer, "must be at least 0 and below layers", e_.layers);
        require(first >= 0, door, "first token", first, "must not be below", 0);
        require(first + count <= s.tokens, door, "end of the tokens", first + count, "must not exceed the length of the sequence",
                s.tokens);
    }
    // f(where, row of the views)
    template <class F>
    void each_row(const held& s, index first, index count, index layer, F&& f) const {
        for (index t = 0; t < count; ++t) {
            const index page = s.pages[static_cast<std::size_t>((first + t) / e_.page_size)];
            for (index h = 0; h < e_.heads; ++h) f(page_place{layer, page, h, (first + t) % e_.page_size}, t);
        }
    }

    extents e_;
    page_pool_of<T> keys_, values_;
    std::vector<held> sequences_;
    std::vector<std::int32_t> references_, free_;
};

}  // namespace heed::inline HEED_ISA
