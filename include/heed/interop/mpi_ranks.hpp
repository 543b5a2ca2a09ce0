// mpi::ranks: processes that call the doors of heed::mpi together, each with its own part, on a communicator of their own.
//
// Every door begins with one small exchange in which the ranks tell each other their shapes, and agrees again after local work: an
// exception on one rank, std::invalid_argument or another, becomes the same exception on all of them, and names the rank. What fails in
// MPI itself is left to the error handler of the communicator that was given, by default the end of the job; where that returns instead,
// it becomes std::runtime_error on the rank it happens on. MPI is called by the thread that calls the door (MPI_THREAD_FUNNELED).
#pragma once

#include <heed/config.hpp>
#include <heed/tensor/error.hpp>

#ifndef OMPI_SKIP_MPICXX
#define OMPI_SKIP_MPICXX 1
#endif
#ifndef MPICH_SKIP_MPICXX
#define MPICH_SKIP_MPICXX 1
#endif
#include <mpi.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <exception>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

namespace heed::inline HEED_ISA {

namespace mpi {

template <class T>
MPI_Datatype type_of() {
    static_assert(std::is_same_v<T, float> || std::is_same_v<T, double> || std::is_same_v<T, index>,
                  "heed: ranks reduce float and double; sums of 16-bit numbers are made in float");
    if constexpr (std::is_same_v<T, float>)
        return MPI_FLOAT;
    else if constexpr (std::is_same_v<T, double>)
        return MPI_DOUBLE;
    else
        return sizeof(index) == 8 ? MPI_INT64_T : MPI_INT32_T;
}

inline void succeed(int code, const char* call) {
    if (code == MPI_SUCCESS) return;
    char text[MPI_MAX_ERROR_STRING] = {};
    int length = 0;
    MPI_Error_string(code, text, &length);
    throw std::runtime_error("heed::mpi: " + std::string(call) + " failed: " + text);
}

// A duplicate of the communicator, freed at the end, which may come after MPI_Finalize. Constructed by all ranks together; throws
// std::invalid_argument where MPI is not initialised, or for a null or an inter-communicator.
class ranks {
public:
    explicit ranks(MPI_Comm given) {
        constexpr const char* door = "mpi::ranks";
        int begun = 0, ended = 0, between = 0;
        MPI_Initialized(&begun);
        MPI_Finalized(&ended);
        require(begun != 0, door, "MPI_Init must come first");
        require(ended == 0, door, "MPI_Finalize must not come first");
        require(given != MPI_COMM_NULL, door, "communicator must not be null");
        succeed(MPI_Comm_test_inter(given, &between), "MPI_Comm_test_inter");
        require(between == 0, door, "communicator must not be an inter-communicator");
        succeed(MPI_Comm_dup(given, &own_), "MPI_Comm_dup");
        MPI_Comm_rank(own_, &rank_);
        MPI_Comm_size(own_, &size_);
    }
    ranks(ranks&& other) noexcept : own_(std::exchange(other.own_, MPI_COMM_NULL)), rank_(other.rank_), size_(other.size_) {}
    ranks& operator=(ranks&& other) noexcept {
        std::swap(own_, other.own_);
        std::swap(rank_, other.rank_);
        std::swap(size_, other.size_);
        return *this;
    }
    ~ranks() {
        int ended = 0;
        if (own_ != MPI_COMM_NULL && MPI_Finalized(&ended) == MPI_SUCCESS && ended == 0) MPI_Comm_free(&own_);
    }

    int rank() const { return rank_; }
    int size() const { return size_; }
    MPI_Comm communicator() const { return own_; }

private:
    MPI_Comm own_ = MPI_COMM_NULL;
    int rank_ = 0, size_ = 1;
};

// A contiguous share of something that is counted.
struct share {
    index first = 0, count = 0;
};
// This rank's share of `whole`, such as query heads or features of a latent; throws where ranks do not divide it.
inline share share_of(const ranks& group, const char* what, index whole) {
    const index size = group.size();
    require(whole % size == 0, "mpi::share_of", what, whole, "must be a multiple of ranks", size);
    return {group.rank() * (whole / size), whole / size};
}
// This rank's share of tokens, of which the first ranks have one more where ranks do not divide them.
inline share slice_of(const ranks& group, index tokens) {
    const index size = group.size(), rank = group.rank(), least = tokens / size, more = tokens % size;
    return {rank * least + std::min(rank, more), least + (rank < more ? 1 : 0)};
}

enum class failure : index { none, invalid_argument, other };

inline failure kind_of(const std::exception_ptr& e, std::string& text) {
    if (!e) return failure::none;
    try {
        std::rethrow_exception(e);
    } catch (const std::invalid_argument& error) {
        text = error.what();
        return failure::invalid_argument;
    } catch (const std::exception& error) {
        text = error.what();
    } catch (...) {
        text = "an exception that is no std::exception";
    }
    return failure::other;
}
// Throws on every rank what the failed rank has to say.
[[noreturn]] inline void spread(const ranks& group, const char* door, int failed, failure kind, std::string text) {
    index length = static_cast<index>(text.size());
    succeed(MPI_Bcast(&length, 1, type_of<index>(), failed, group.communicator()), "MPI_Bcast");
    text.resize(static_cast<std::size_t>(length));
    succeed(MPI_Bcast(text.data(), static_cast<int>(length), MPI_CHAR, failed, group.communicator()), "MPI_Bcast");
    text = (sentence(door) << "rank" << failed << "failed:").text() + " " + text;
    if (kind == failure::invalid_argument) throw std::invalid_argument(text);
    throw std::runtime_error(text);
}
// Returns on every rank where none has an exception. Otherwise that of the first rank that has one is thrown on all.
inline void agree(const ranks& group, const char* door, const std::exception_ptr& mine) {
    std::string text;
    const failure kind = kind_of(mine, text);
    index first = 2 * group.size();
    if (kind != failure::none) first = 2 * group.rank() + (kind == failure::invalid_argument ? 0 : 1);
    succeed(MPI_Allreduce(MPI_IN_PLACE, &first, 1, type_of<index>(), MPI_MIN, group.communicator()), "MPI_Allreduce");
    if (first == 2 * group.size()) return;
    spread(group, door, static_cast<int>(first / 2), first % 2 == 0 ? failure::invalid_argument : failure::other, std::move(text));
}
// Work of this rank that all ranks succeed with, or none.
template <class F>
void together(const ranks& group, const char* door, F&& work) {
    std::exception_ptr mine;
    try {
        work();
    } catch (...) {
        mine = std::current_exception();
    }
    agree(group, door, mine);
}

// What each rank says about its part of a call: numbers by rank.
class told {
public:
    static constexpr std::size_t most = 14;
    using numbers = std::array<index, most>;

    // All ranks' numbers; throws on all what `tell` throws on one, and where ranks have called different doors.
    template <class F>
    told(const ranks& group, const char* door, F&& tell) : all_(static_cast<std::size_t>(group.size())), door_(door) {
        struct {
            index kind, door;
            numbers said;
        } mine{};
        constexpr int count = sizeof(mine) / sizeof(index);
        std::string text;
        std::exception_ptr error;
        try {
            mine.said = tell();
        } catch (...) {
            error = std::current_exception();
        }
        mine.kind = static_cast<index>(kind_of(error, text));
        for (const char* c = door; *c != 0; ++c) mine.door = (mine.door * 31 + *c) % 1000000007;
        std::vector<decltype(mine)> of_all(all_.size());
        succeed(MPI_Allgather(&mine, count, type_of<index>(), of_all.data(), count, type_of<index>(), group.communicator()),
                "MPI_Allgather");
        for (std::size_t r = 0; r < of_all.size(); ++r) {
            require(of_all[r].door == of_all[0].door, door, "rank", r, "must call the same door as rank", 0);
            all_[r] = of_all[r].said;
        }
        for (std::size_t r = 0; r < of_all.size(); ++r)
            if (of_all[r].kind != 0) spread(group, door, static_cast<int>(r), static_cast<failure>(of_all[r].kind), std::move(text));
    }
    index at(int rank, std::size_t i) const { return all_[static_cast<std::size_t>(rank)][i]; }
    // Number i is what all ranks must have in common.
    void same(std::size_t i, const char* words) const {
        for (std::size_t r = 0; r < all_.size(); ++r)
            require(all_[r][i] == all_[0][i], door_, "rank", r, words, all_[r][i], "must equal that of rank 0", all_[0][i]);
    }
    // Sums of number i over the ranks before each, and the sum over all at the end.
    std::vector<index> starts(std::size_t i) const {
        std::vector<index> sums{0};
        for (const numbers& n : all_) sums.push_back(sums.back() + n[i]);
        return sums;
    }

private:
    std::vector<numbers> all_;
    const char* door_;
};

}  // namespace mpi

}  // namespace heed::inline HEED_ISA
