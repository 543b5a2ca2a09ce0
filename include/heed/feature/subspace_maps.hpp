// The loops of subspace_gate over maps of height x width places: the score of a channel, softmax over a map, the product, and moments.
//
// relu(slope x + start) rises or falls with x, so its 3x3 maximum is that of the largest or the smallest x: a channel adds to the scores
// with four comparisons and two multiply-adds a vector, read in place but for the ends of its rows, which are copied once, with their edge
// repeated. Loops of the backward are plain.
#pragma once

#include <heed/kernel/vexp.hpp>
#include <heed/simd.hpp>

#include <algorithm>
#include <cmath>
#include <limits>

namespace heed::inline HEED_ISA {

// Count, mean and sum of squares around it.
struct moments {
    double count = 0, mean = 0, square = 0;
    void merge(const moments& m) {
        if (count == 0) {
            *this = m;
            return;
        }
        const double all = count + m.count, apart = m.mean - mean;
        mean += apart * m.count / all;
        square += m.square + apart * apart * count * m.count / all;
        count = all;
    }
};

template <class T>
struct map_rows {
    T* first;
    index stride;
    T* operator[](index r) const { return first + r * stride; }
};

class feature_maps {
public:
    index height, width, lanes;

    index places() const { return height * width; }
    // Copies of the ends of rows stand in rows of whole vectors, with room on each side.
    static constexpr index border = 16;
    index pitch() const { return (width + lanes - 1) / lanes * lanes; }
    index plane() const { return height * (pitch() + 2 * border); }
    index wide() const { return height * pitch(); }
    index scratch() const { return plane() + wide(); }

    // score += weight * max over 3x3 of relu(slope x + start); rows of `score` have pitch() elements, those past the width mean nothing.
    template <class P, class T>
    void add_pooled(const map_rows<const T>& x, T slope, T start, T weight, T* copy, T* score) const {
        const index step = pitch() + 2 * border, last = pitch() - P::lanes;
        T* inside = copy + border;
        for (index r = 0; r < height; ++r) {
            const T* from = x[r];
            T* row = inside + r * step;
            if (last > 0) {
                P::load(from).store(row);
                row[P::lanes] = from[P::lanes];
                row[last - 1] = from[last - 1];
            }
            if (width == pitch())
                P::load(from + last).store(row + last);
            else
                std::fill(std::copy_n(from + last, width - last, row + last), row + pitch(), from[width - 1]);
            row[-1] = from[0];
            row[pitch()] = from[width - 1];
        }
        const map_rows<const T> ends{inside, step};
        if (slope >= 0)
            add_extremes<P>([](const P& a, const P& b) { return max(a, b); }, x, ends, slope, start, weight, score);
        else
            add_extremes<P>([](const P& a, const P& b) { return min(a, b); }, x, ends, slope, start, weight, score);
    }
    template <class T>
    void narrow(const T* wide_rows, T* score) const {
        for (index r = 0; r < height; ++r) std::copy_n(wide_rows + r * pitch(), width, score + r * width);
    }

    // softmax over all places of relu(slope (score - near) + start); in place or not.
    template <class P, class T>
    void weigh(const T* score, T near, T slope, T start, T* weights) const {
        const index n = places();
        const T first = score[0];  // past the end; in place it is gone by then
        P most(-std::numeric_limits<T>::infinity()), total(0);
        const auto level = [&](const P& s) { return max(P(0), fma(s - P(near), P(slope), P(start))); };
        each_vector<P>(n, [&](index i, index count) {
            const P l = level(load_some<P>(score + i, count, first));
            store_some(l, weights + i, count);
            most = max(l, most);
        });
        T each[P::lanes];
        most.store(each);
        const P top(*std::max_element(each, each + P::lanes));
        each_vector<P>(n, [&](index i, index count) {
            const P e = exp(load_some<P>(weights + i, count, -std::numeric_limits<T>::infinity()) - top);
            total += e;
            store_some(e, weights + i, count);
        });
        const P by(T{1} / sum(total));
        each_vector<P>(n, [&](index i, index count) { store_some(load_some<P>(weights + i, count, T{0}) * by, weights + i, count); });
    }

    // y = x weights + x
    template <class P, class T>
    void gate(const map_rows<const T>& x, const T* weights, const map_rows<T>& y) const {
        const auto run = [](const T* from, const T* by, T* to, index n) {
            each_vector<P>(n, [&](index i, index count) {
                const P v = load_some<P>(from + i, count, T{0});
                store_some(fma(v, load_some<P>(by + i, count, T{0}), v), to + i, count);
            });
        };
        if (x.stride == width && y.stride == width) return run(x.first, weights, y.first, places());
        for (index r = 0; r < height; ++r) run(x[r], weights + r * width, y[r], width);
    }

    // By rows of vectors, each around its own mean.
    template <class P>
    moments measure(const map_rows<const typename P::value_type>& x) const {
        using T = typename P::value_type;
        moments all;
        for (index r = 0; r < height; ++r) {
            P s(0), first(0), apart(0);
            each_vector<P>(width, [&](index i, index count) { s += load_some<P>(x[r] + i, count, T{0}); });
            const auto n = static_cast<double>(width);
            const T near = static_cast<T>(static_cast<double>(sum(s)) / n);
            each_vector<P>(width, [&](index i, index count) {
                const P u = load_some<P>(x[r] + i, count, near) - P(near);
                first += u;
                apart = fma(u, u, apart);
            });
            const double beyond = static_cast<double>(sum(first)) / n;
            all.merge({n, static_cast<double>(near) + beyond, static_cast<double>(sum(apart)) - n * beyond * beyond});
        }
        return all;
    }

    template <class F>
    void each_place(F&& f) const {
        for (index r = 0, p = 0; r < height; ++r)
            for (index q = 0; q < width; ++q, ++p) f(p, r, q);
    }
    template <class T>
    void add_products(const map_rows<const T>& a, const map_rows<const T>& b, double* to) const {
        for (index r = 0; r < height; ++r) {
            const T *from = a[r], *by = b[r];
            for (index q = 0; q < width; ++q) to[r * width + q] += static_cast<double>(from[q]) * static_cast<double>(by[q]);
        }
    }
    // y = relu(slope x + start)
    template <class T>
    void activate(const map_rows<const T>& x, T slope, T start, T* y) const {
        each_place([&](index p, index r, index q) {
            const T e = std::fma(x[r][q], slope, start);
            y[p] = e <= 0 ? T{0} : e;
        });
    }
    // 3x3 maximum of relu(slope x + start) at a place.
    template <class T>
    T maximum_at(const map_rows<const T>& x, T slope, T start, index place) const {
        const index r = place / width, q = place % width;
        T most{0};
        for (index i = std::max<index>(0, r - 1); i <= std::min(height - 1, r + 1); ++i)
            for (index j = std::max<index>(0, q - 1); j <= std::min(width - 1, q + 1); ++j)
                if (const T e = std::fma(x[i][j], slope, start); !(e <= most)) most = e;
        return most;
    }
    // d_y of weight * (3x3 maximum of y), to the first of equals; returns the sum of d_score times the maxima less `base`.
    template <class T>
    double pool_backward(const T* y, const double* d_score, T weight, T base, T* d_y) const {
        double total = 0;
        std::fill_n(d_y, places(), T{0});
        each_place([&](index p, index r, index q) {
            index most = std::max<index>(0, r - 1) * width + std::max<index>(0, q - 1);
            for (index i = std::max<index>(0, r - 1); i <= std::min(height - 1, r + 1); ++i)
                for (index j = std::max<index>(0, q - 1); j <= std::min(width - 1, q + 1); ++j)
                    if (y[i * width + j] > y[most] || std::isnan(y[i * width + j])) most = i * width + j;
            d_y[most] += static_cast<T>(static_cast<double>(weight) * d_score[p]);
            total += d_score[p] * (static_cast<double>(y[most]) - static_cast<double>(base));
        });
        return total;
    }

private:
    template <class P, class F>
    HEED_INLINE static void each_vector(index n, F&& f) {
        index i = 0;
        for (; i + P::lanes <= n; i += P::lanes) f(i, index{P::lanes});
        if (i < n) f(i, n - i);
    }
    template <class P, class T>
    HEED_INLINE static P load_some(const T* from, index count, T otherwise) {
        if (count == P::lanes) return P::load(from);
        T part[P::lanes];
        std::fill(std::copy_n(from, count, part), part + P::lanes, otherwise);
        return P::load(part);
    }
    template <class P, class T>
    HEED_INLINE static void store_some(const P& value, T* to, index count) {
        if (count == P::lanes) return value.store(to);
        T part[P::lanes];
        value.store(part);
        std::copy_n(part, count, to);
    }

    // A NaN stays at its place, as both extremes return the second of two of which one is no number.
    template <class P, class Extreme, class T>
    HEED_NOINLINE void add_extremes(const Extreme& extreme, const map_rows<const T>& x, const map_rows<const T>& ends, T slope, T start,
                                    T weight, T* score) const {
        const index apart = pitch(), last = apart - P::lanes, rows = height;
        for (index q = 0; q <= last; q += P::lanes) {
            const map_rows<const T>& from = q == 0 || q == last ? ends : x;
            const index stride = from.stride;
            const T* row = from.first + q;
            T* to = score + q;
            const auto across = [&] {
                const P found = extreme(extreme(P::load(row - 1), P::load(row + 1)), P::load(row));
                row += stride;
                return found;
            };
            const auto add = [&](const P& above, const P& here, const P& below) {
                const P y = max(P(0), fma(extreme(extreme(above, below), here), P(slope), P(start)));
                fma(y, P(weight), P::load(to)).store(to);
                to += apart;
            };
            P here = across(), above = here;
            for (index r = 1; r < rows; ++r) {
                const P below = across();
                add(above, here, below);
                above = here;
                here = below;
            }
            add(above, here, here);
        }
    }
};

}  // namespace heed::inline HEED_ISA
