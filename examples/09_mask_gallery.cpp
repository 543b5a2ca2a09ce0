// Every mask of heed in one picture: which keys each query sees, and what the mask answers for whole tiles.
//     mask_gallery --out masks.svg
// The engine leaves out the tiles that a mask calls empty, runs the full ones without a mask, and asks for pairs in the partial ones only.
// Every panel draws what the mask answers once it is bound to the extents of a call, and its title is the expression itself. The program
// fails where the answers for tiles and those for pairs do not fit together.
#include <heed/heed.hpp>

#include <fmt/format.h>
#include <CLI/CLI.hpp>

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <fstream>
#include <iterator>
#include <random>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace {

using heed::coverage;
using heed::index;

// An expression twice, as its text and as its value.
#define TEXT_AND_VALUE(...) #__VA_ARGS__, __VA_ARGS__

constexpr index tokens = 48, tile = 8;
// Pixels. The picture of 48 or 96 tokens is as wide as a column, and so are three windows of a grid of 8 columns.
constexpr index column = 192, column_gap = 16, margin = 14, line = 14, cell = 7, grid_gap = 12, label_room = 8;
constexpr index sheet_width = 2 * margin + 4 * column + 3 * column_gap;
constexpr const char *full_colour = "#2b6cb0", *seen_colour = "#dd7a00", *partial_colour = "#fbe3bd", *empty_colour = "#eceef1",
                     *ink = "#1f2328", *pale_ink = "#59636e";
// From the keys that the fewest queries see to those that the most do.
constexpr std::array heat_colours{"#efedf5", "#dadaeb", "#bcbddc", "#9e9ac8", "#807dba", "#6a51a3", "#4a1486"};

std::string escaped(std::string_view text) {
    std::string result;
    for (const char c : text) {
        if (c == '&')
            result += "&amp;";
        else if (c == '<')
            result += "&lt;";
        else if (c == '>')
            result += "&gt;";
        else
            result += c;
    }
    return result;
}

std::string text_at(index x, index y, std::string_view text, const char* colour = ink, std::string_view more = "") {
    return fmt::format("<text x=\"{}\" y=\"{}\" fill=\"{}\"{}>{}</text>\n", x, y, colour, more, escaped(text));
}

// The cells for which wanted(row, column) holds, as one path of few rectangles.
template <class Wanted>
std::string filled(index rows, index columns, const char* colour, Wanted&& wanted) {
    struct rectangle {
        index x, y, width, height;
    };
    std::vector<rectangle> all, above;
    for (index y = 0; y < rows; ++y) {
        std::vector<rectangle> here;
        for (index x = 0, end = 0; x < columns; x = end + 1) {
            for (end = x; end < columns && wanted(y, end);) ++end;
            if (end == x) continue;
            rectangle run{x, y, end - x, 1};
            const auto same = std::find_if(above.begin(), above.end(), [&](const rectangle& r) { return r.x == x && r.width == end - x; });
            if (same != above.end()) {
                run.y = same->y;
                run.height += same->height;
                above.erase(same);
            }
            here.push_back(run);
        }
        all.insert(all.end(), above.begin(), above.end());
        above = std::move(here);
    }
    all.insert(all.end(), above.begin(), above.end());
    std::string path;
    for (const auto& [x, y, width, height] : all) path += fmt::format("M{} {}h{}v{}h-{}z", x, y, width, height, width);
    return path.empty() ? path : fmt::format("<path fill=\"{}\" d=\"{}\"/>\n", colour, path);
}

// Lines of at most `most` characters; a member keeps its values beside it.
std::vector<std::string> wrapped(std::string_view text, std::size_t most) {
    std::vector<std::string> lines;
    while (text.size() > most) {
        std::size_t end = 0;
        for (std::size_t i = 1; i <= most; ++i) {
            if (text[i] != ' ') continue;
            const bool value = text[i - 1] == '=' || (text[i - 1] == ',' && '0' <= text[i + 1] && text[i + 1] <= '9');
            if (!value && text[i + 1] != '=') end = i;
        }
        if (end == 0) throw std::logic_error(fmt::format("no place to break \"{}\"", text));
        lines.emplace_back(text.substr(0, end));
        text.remove_prefix(end + 1);
    }
    lines.emplace_back(text);
    return lines;
}

struct panel {
    std::string expression, note, caption, drawing;
    index columns, height;  // columns of the sheet, and pixels of the drawing

    std::vector<std::string> title() const { return wrapped(expression, columns == 1 ? 32 : 64); }
};

// Which pairs and tiles a mask allows in a call of these extents.
struct answers {
    index queries, keys;
    std::vector<bool> pairs;
    std::vector<coverage> tiles;

    bool sees(index query, index key) const { return pairs[static_cast<std::size_t>(query * keys + key)]; }
    coverage of_tile(index row, index column_of_tiles) const {
        return tiles[static_cast<std::size_t>(row * ((keys + tile - 1) / tile) + column_of_tiles)];
    }
    index queries_that_see(index key) const {
        index n = 0;
        for (index q = 0; q < queries; ++q) n += sees(q, key) ? 1 : 0;
        return n;
    }
};

template <class Mask>
answers answers_of(const std::string& expression, const Mask& mask, const heed::extents& e) {
    heed::ask::check(mask, "mask_gallery", e);
    const auto bound = heed::ask::bind(mask, e);
    answers a{e.queries, e.keys, {}, {}};
    for (index q = 0; q < e.queries; ++q)
        for (index k = 0; k < e.keys; ++k) a.pairs.push_back(bound.allows(0, 0, q + e.offset(), k));
    for (index q = 0; q < e.queries; q += tile)
        for (index k = 0; k < e.keys; k += tile) {
            const index q_end = std::min(q + tile, e.queries), k_end = std::min(k + tile, e.keys);
            const coverage c = heed::ask::classify(bound, 0, 0, {q + e.offset(), q_end + e.offset(), k, k_end});
            index seen = 0;
            for (index i = q; i < q_end; ++i)
                for (index j = k; j < k_end; ++j) seen += a.sees(i, j) ? 1 : 0;
            const bool fits = c == coverage::empty ? seen == 0 : c == coverage::partial || seen == (q_end - q) * (k_end - k);
            if (!fits) throw std::logic_error(fmt::format("{}: tile at query {}, key {} does not fit its pairs", expression, q, k));
            a.tiles.push_back(c);
        }
    return a;
}

// Queries by keys, with lines between the tiles.
std::string draw_pairs(const answers& a) {
    const index rows = (a.queries + tile - 1) / tile, columns = (a.keys + tile - 1) / tile;
    const auto tiles_that_are = [&](coverage c, const char* colour) {
        return filled(rows, columns, colour, [&](index y, index x) { return a.of_tile(y, x) == c; });
    };
    std::string lines;
    for (index y = 1; y < rows; ++y) lines += fmt::format("M0 {}h{}", y * tile, a.keys);
    for (index x = 1; x < columns; ++x) lines += fmt::format("M{} 0v{}", x * tile, a.queries);
    const index scale = column / a.keys;
    return fmt::format("<g transform=\"scale({})\" shape-rendering=\"crispEdges\">\n<g transform=\"scale({})\">\n", scale, tile) +
           tiles_that_are(coverage::empty, empty_colour) + tiles_that_are(coverage::partial, partial_colour) +
           tiles_that_are(coverage::full, full_colour) + "</g>\n" +
           filled(a.queries, a.keys, seen_colour,
                  [&](index q, index k) { return a.of_tile(q / tile, k / tile) == coverage::partial && a.sees(q, k); }) +
           fmt::format("<path stroke=\"white\" stroke-width=\"{}\" d=\"{}\"/>\n</g>\n", 1. / static_cast<double>(scale), lines);
}

std::string share_of_work(const answers& a) {
    const auto percent = [](auto part, auto whole) { return (100 * part + whole / 2) / whole; };
    const auto visited = static_cast<std::ptrdiff_t>(a.tiles.size()) - std::count(a.tiles.begin(), a.tiles.end(), coverage::empty);
    return fmt::format("{} % of pairs, {} % of tiles",
                       percent(std::count(a.pairs.begin(), a.pairs.end(), true), static_cast<std::ptrdiff_t>(a.pairs.size())),
                       percent(visited, static_cast<std::ptrdiff_t>(a.tiles.size())));
}

template <class Mask>
panel pairs(const std::string& expression, const Mask& mask, const std::string& note, index queries = tokens, index keys = tokens) {
    const answers a = answers_of(expression, mask, {1, 1, 1, queries, keys});
    return {expression, note, share_of_work(a), draw_pairs(a), 1, column / keys * queries};
}

// Coordinates of a token, such as (1, 5).
template <std::size_t N>
std::string place(const std::array<index, N>& grid, index token) {
    std::string text = ")";
    for (std::size_t a = N; a-- > 0; token /= grid[a]) text = (a > 0 ? ", " : "(") + std::to_string(token % grid[a]) + text;
    return text;
}

// Beside the pairs: on the grid itself, what five queries see, and how many queries see each key; planes lie below each other.
template <class Mask>
panel on_grid(const std::string& expression, const Mask& mask, const std::string& note) {
    const auto& grid = mask.grid;
    const index columns = grid.back(), plane = grid[grid.size() - 2];
    index count = 1;
    for (const index length : grid) count *= length;
    const index rows = count / columns, planes = rows / plane, plane_gap = planes > 1 ? 2 : 0;
    const answers a = answers_of(expression, mask, {1, 1, 1, count, count});

    std::string drawing = draw_pairs(a);
    const index width = columns * cell, height = rows * cell + (planes - 1) * plane_gap;
    const auto add = [&](index number, const std::string& label, auto&& colour_of_plane) {
        const index x = column + column_gap + number % 3 * (width + grid_gap), y = label_room + number / 3 * (height + 2 * label_room);
        drawing += text_at(x, y - 3, label, pale_ink);
        for (index p = 0; p < planes; ++p)
            drawing += fmt::format("<g transform=\"translate({} {}) scale({})\" shape-rendering=\"crispEdges\">\n{}</g>\n", x,
                                   y + p * (plane * cell + plane_gap), cell, colour_of_plane(p * plane * columns));
    };
    index number = 0;
    for (const index query : {index{0}, columns + 5, rows / 2 * columns + 2, rows * 2 / 3 * columns + 6, count - 1})
        add(number++, place(grid, query), [&](index first) {
            const auto at = [&](index y, index x) { return first + y * columns + x; };
            std::string plane_of_query = filled(plane, columns, empty_colour, [&](index y, index x) { return !a.sees(query, at(y, x)); }) +
                                         filled(plane, columns, full_colour, [&](index y, index x) { return a.sees(query, at(y, x)); });
            if (first <= query && query < first + plane * columns)
                plane_of_query += fmt::format(
                    "<circle cx=\"{}.5\" cy=\"{}.5\" r=\".36\" fill=\"{}\" stroke=\"white\" stroke-width=\".14\" "
                    "shape-rendering=\"auto\"/>\n",
                    query % columns, (query - first) / columns, seen_colour);
            return plane_of_query;
        });
    std::vector<index> seen_by;
    for (index key = 0; key < count; ++key) seen_by.push_back(a.queries_that_see(key));
    const auto [least, most] = std::minmax_element(seen_by.begin(), seen_by.end());
    const auto heat_of = [&, low = *least, high = *most](index key) {
        const index steps = static_cast<index>(heat_colours.size()) - 1;
        return low == high ? steps / 2 : (seen_by[static_cast<std::size_t>(key)] - low) * steps / (high - low);
    };
    add(number, *least == *most ? fmt::format("by {}", *most) : fmt::format("by {}–{}", *least, *most), [&](index first) {
        std::string heat;
        for (std::size_t i = 0; i < heat_colours.size(); ++i)
            heat += filled(plane, columns, heat_colours[i],
                           [&](index y, index x) { return heat_of(first + y * columns + x) == static_cast<index>(i); });
        return heat;
    });
    return {expression, note, share_of_work(a), drawing, 2, std::max(column / count * count, 2 * height + 3 * label_room)};
}

struct section {
    const char* heading;
    std::vector<panel> panels;
};

section sequences() {
    using namespace heed;
    section s{"Sequences", {}};
    const auto add = [&](auto&&... of_panel) { s.panels.push_back(pairs(of_panel...)); };
    add(TEXT_AND_VALUE(everything{}), "a call without a mask");
    add(TEXT_AND_VALUE(causal), "");
    add(TEXT_AND_VALUE(causal), "24 queries at the end of 48 keys", 24);
    add(TEXT_AND_VALUE(causal_top_left), "24 queries, from the first key on", 24);
    add(TEXT_AND_VALUE(sliding_window{.left = 6, .right = 3}), "");
    add(TEXT_AND_VALUE(causal & sliding_window{.left = 11}), "");
    add(TEXT_AND_VALUE(streaming{.window = 10, .sink = 3}), "");
    add(TEXT_AND_VALUE(block_streaming{.block_size = 6, .window = 12, .sink = 6}), "");
    add(TEXT_AND_VALUE(dilated_window{.left = 4, .right = 4, .dilation = 3}), "");
    add(TEXT_AND_VALUE(power_of_two{.block_size = 3, .window_blocks = 2}), "");
    add(TEXT_AND_VALUE(!sliding_window{.left = 7, .right = 7}), "");
    add(TEXT_AND_VALUE((causal & sliding_window{.left = 5}) | dilated_window{.left = 9, .right = 0, .dilation = 5}), "");
    return s;
}

section data_and_functions() {
    using namespace heed;
    section s{"Data and functions", {}};
    const auto add = [&](auto&&... of_panel) { s.panels.push_back(pairs(of_panel...)); };

    std::array<bool, tokens * tokens> rings{};
    for (heed::index q = 0; q < tokens; ++q)
        for (heed::index k = 0; k < tokens; ++k) rings[static_cast<std::size_t>(q * tokens + k)] = (q * q + k * k) / 250 % 2 == 0;
    const view<const bool, 4> values{rings.data(), {1, 1, tokens, tokens}, {0, 0, tokens, 1}};
    add(TEXT_AND_VALUE(mask{values}), "a byte for each pair");

    std::array<bool, tokens> not_padded{};
    std::fill_n(not_padded.begin(), 37, true);
    const view<const bool, 4> padding{not_padded.data(), {1, 1, 1, tokens}, {0, 0, 0, 1}};
    add(TEXT_AND_VALUE(causal & mask{padding}), "a byte for each key");

    // Blocks of 8 tokens: in each row of them one partial block, inside which `causal` decides, and up to three full ones.
    constexpr heed::index blocks = tokens / 8;
    const std::array<std::int32_t, blocks> one{1, 1, 1, 1, 1, 1}, own{0, 1, 2, 3, 4, 5}, up_to_three{0, 1, 1, 2, 1, 3};
    const std::array<std::int32_t, blocks * 3> before{0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 2, 0, 3, 0, 0, 0, 1, 4};
    const auto counts = [](const auto& list) { return view<const std::int32_t, 3>{list.data(), {1, 1, blocks}, {0, 0, 1}}; };
    const auto entries = [](const auto& list, heed::index most) {
        return view<const std::int32_t, 4>{list.data(), {1, 1, blocks, most}, {0, 0, most, 1}};
    };
    const auto kv_num_blocks = counts(one), full_kv_num_blocks = counts(up_to_three);
    const auto kv_indices = entries(own, 1), full_kv_indices = entries(before, 3);
    add(TEXT_AND_VALUE(block_mask{kv_num_blocks, kv_indices, full_kv_num_blocks, full_kv_indices, 8, 8, causal}), "");

    const auto sierpinski = [](auto, auto, auto q, auto k) { return (q & k) == k; };
    add(TEXT_AND_VALUE(mask_mod(sierpinski)), "a lambda: (q & k) == k");

    const std::array prefix{rectangle{0, 14, 0, 14}};
    add(TEXT_AND_VALUE(causal | rectangles{prefix}), "a prefix sees all of itself");
    const std::array image_sees_text{rectangle{8, 24, 24, 36}};
    add(TEXT_AND_VALUE(causal | rectangles{image_sees_text}), "modality-mutual attention");

    std::mt19937 random(1);
    std::normal_distribution<float> normal;
    std::vector<float> numbers(tokens * tokens);
    for (float& x : numbers) x = normal(random);
    const auto picks = top_k(bhtd(numbers.data(), 1, 1, tokens, tokens), 6, causal);
    add(TEXT_AND_VALUE(selected{&picks}), "picks = top_k(scores, 6, causal)");
    add(TEXT_AND_VALUE(selected{&picks} | (causal & sliding_window{.left = 3})), "");
    return s;
}

section lines() {
    using namespace heed;
    section s{"Neighborhoods and windows of a line", {}};
    const auto add = [&](auto&&... of_panel) { s.panels.push_back(pairs(of_panel...)); };
    add(TEXT_AND_VALUE(neighborhood<1>{.grid = {48}, .kernel_size = {12}}), "never padded: shifts inwards");
    add(TEXT_AND_VALUE(neighborhood<1>{.grid = {48}, .kernel_size = {12}, .stride = {6}}), "6 queries share a window");
    add(TEXT_AND_VALUE(neighborhood<1>{.grid = {48}, .kernel_size = {12}, .stride = {12}}), "stride = window");
    add(TEXT_AND_VALUE(neighborhood<1>{.grid = {48}, .kernel_size = {12}, .dilation = {3}}), "");
    add(TEXT_AND_VALUE(neighborhood<1>{.grid = {48}, .kernel_size = {12}, .stride = {4}, .is_causal = {true}}), "");
    add(TEXT_AND_VALUE(neighborhood<1>{.grid = {40}, .kernel_size = {9}, .extra_tokens = 8}), "all see 8 keys behind the line", 40);
    add(TEXT_AND_VALUE(windows<1>{.grid = {48}, .window = {12}, .shift = {5}}), "a cyclic shift joins both ends");
    add(TEXT_AND_VALUE(windows<1>{.grid = {48}, .window = {12}, .shift = {5}, .separate_regions = true}), "");
    return s;
}

section grids() {
    using namespace heed;
    section s{"Neighborhoods and windows of a grid", {}};
    const auto add = [&](auto&&... of_panel) { s.panels.push_back(on_grid(of_panel...)); };
    add(TEXT_AND_VALUE(neighborhood<2>{.grid = {12, 8}, .kernel_size = {5, 3}}), "never padded: shifts inwards");
    add(TEXT_AND_VALUE(neighborhood<2>{.grid = {12, 8}, .kernel_size = {6, 4}, .stride = {3, 2}}), "3 by 2 queries share a window");
    add(TEXT_AND_VALUE(neighborhood<2>{.grid = {12, 8}, .kernel_size = {4, 4}, .stride = {4, 4}}), "stride = window");
    add(TEXT_AND_VALUE(neighborhood<2>{.grid = {12, 8}, .kernel_size = {4, 3}, .dilation = {3, 2}}), "");
    add(TEXT_AND_VALUE(neighborhood<2>{.grid = {12, 8}, .kernel_size = {4, 4}, .is_causal = {true, false}}), "causal along the first axis");
    add(TEXT_AND_VALUE(neighborhood<3>{.grid = {3, 4, 8}, .kernel_size = {2, 3, 4}}), "three planes below each other");
    add(TEXT_AND_VALUE(windows<2>{.grid = {12, 8}, .window = {4, 4}}), "");
    add(TEXT_AND_VALUE(windows<2>{.grid = {12, 8}, .window = {4, 4}, .shift = {2, 2}}), "a cyclic shift joins opposite borders");
    add(TEXT_AND_VALUE(windows<2>{.grid = {12, 8}, .window = {4, 4}, .shift = {2, 2}, .separate_regions = true}),
        "shifted windows of Swin");
    add(TEXT_AND_VALUE(windows<3>{.grid = {3, 4, 8}, .window = {3, 2, 4}, .shift = {0, 1, 2}}), "three planes below each other");
    return s;
}

std::string legend(index& y) {
    std::string text = text_at(margin, y + 14, "The masks of heed", ink, " font-size=\"16\" font-weight=\"bold\"");
    y += 36;
    index x = margin;
    const auto entry = [&](const char* colour, const char* words, index width) {
        text += fmt::format("<rect x=\"{}\" y=\"{}\" width=\"12\" height=\"12\" fill=\"{}\"/>\n", x, y - 10, colour);
        text += text_at(x + 17, y, words, pale_ink);
        x += width;
    };
    entry(full_colour, "full tile: runs without the mask", 210);
    entry(seen_colour, "pair seen in a partial tile", 178);
    entry(partial_colour, "pair not seen in a partial tile", 196);
    entry(empty_colour, "empty tile: left out", 0);
    y += 18;
    text += text_at(margin, y,
                    fmt::format("Rows are queries, columns are keys. A tile, as classify answers for it, is {0} by {0} pairs here; those "
                                "of the engine are larger.",
                                tile),
                    pale_ink);
    y += 16;
    text += text_at(margin, y,
                    "Neighborhoods and windows run patches of their grid in place of such tiles, so that the windows of a patch overlap.",
                    pale_ink);
    y += 18;
    return text;
}

std::string grid_legend(index y) {
    std::string text = fmt::format("<circle cx=\"{}\" cy=\"{}\" r=\"3.5\" fill=\"{}\"/>\n", margin + 4, y - 4, seen_colour);
    text += text_at(margin + 13, y, "a query of the grid, and", pale_ink);
    text += fmt::format("<rect x=\"{}\" y=\"{}\" width=\"12\" height=\"12\" fill=\"{}\"/>\n", margin + 160, y - 10, full_colour);
    text += text_at(margin + 177, y, "the keys that it sees;", pale_ink);
    for (std::size_t i = 0; i < heat_colours.size(); ++i)
        text += fmt::format("<rect x=\"{}\" y=\"{}\" width=\"12\" height=\"12\" fill=\"{}\"/>\n", margin + 308 + 12 * static_cast<index>(i),
                            y - 10, heat_colours[i]);
    return text + text_at(margin + 308 + 12 * static_cast<index>(heat_colours.size()) + 5, y,
                          "by how many queries a key is seen, from the fewest to the most", pale_ink);
}

std::string svg(const std::vector<section>& sections) {
    index y = 12;
    std::string body = legend(y);
    for (const section& s : sections) {
        y += 22;
        body += text_at(margin, y, s.heading, ink, " font-size=\"13\" font-weight=\"bold\"");
        y += 8;
        body += fmt::format("<path stroke=\"#d0d7de\" d=\"M{} {}.5h{}\"/>\n", margin, y, sheet_width - 2 * margin);
        if (s.panels.front().columns > 1) body += grid_legend(y += 20);
        y += s.panels.front().columns > 1 ? 14 : 6;
        for (std::size_t first = 0, end = 0; first < s.panels.size(); first = end) {
            // As many panels as fit into a row; their pictures begin at the same height.
            index used = 0, lines_above = 0, height = 0;
            for (; end < s.panels.size() && used + s.panels[end].columns <= 4; ++end) {
                const panel& p = s.panels[end];
                used += p.columns;
                lines_above = std::max(lines_above, static_cast<index>(p.title().size()) + (p.note.empty() ? 0 : 1));
                height = std::max(height, p.height);
            }
            const index top = y + lines_above * line + 6;
            index x = margin;
            for (std::size_t i = first; i < end; ++i) {
                const panel& p = s.panels[i];
                body += fmt::format("<g><title>{}</title>\n", escaped(p.expression));
                index at = y + line;
                for (const std::string& words : p.title()) body += text_at(x, std::exchange(at, at + line), words);
                if (!p.note.empty()) body += text_at(x, at, p.note, pale_ink);
                body += fmt::format("<g transform=\"translate({} {})\">\n{}</g>\n", x, top, p.drawing);
                body += text_at(x, top + p.height + line, p.caption, pale_ink) + "</g>\n";
                x += p.columns * (column + column_gap);
            }
            y = top + height + line + 14;
        }
    }
    return fmt::format(
               "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {0} {1}\" width=\"{0}\" height=\"{1}\" "
               "font-family=\"Helvetica, Arial, sans-serif\" font-size=\"11\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n",
               sheet_width, y) +
           body + "</svg>\n";
}

std::size_t occurrences(std::string_view text, std::string_view of) {
    std::size_t n = 0;
    for (std::size_t at = text.find(of); at != text.npos; at = text.find(of, at + of.size())) ++n;
    return n;
}

// Throws unless the file was written whole: every element closed, every title there.
void check(const std::string& file, const std::vector<section>& sections) {
    std::ifstream in(file, std::ios::binary);
    const std::string text{std::istreambuf_iterator<char>(in), {}};
    for (const std::string element : {"svg", "g", "text", "title"})
        if (occurrences(text, "<" + element + ">") + occurrences(text, "<" + element + " ") != occurrences(text, "</" + element + ">"))
            throw std::runtime_error(fmt::format("{}: not every <{}> is closed", file, element));
    for (const section& s : sections)
        for (const panel& p : s.panels)
            if (occurrences(text, escaped(p.expression)) == 0) throw std::runtime_error(fmt::format("{} lacks {}", file, p.expression));
}

}  // namespace

int main(int argc, char** argv) {
    std::string file = "mask_gallery.svg";
    CLI::App app{"Draws every mask of heed to one SVG picture."};
    app.add_option("--out", file, "file to write")->capture_default_str();
    CLI11_PARSE(app, argc, argv);
    try {
        const std::vector<section> sections{sequences(), data_and_functions(), lines(), grids()};
        const std::string picture = svg(sections);
        std::ofstream out(file, std::ios::binary);
        out << picture;
        out.close();
        if (!out) throw std::runtime_error(fmt::format("cannot write to {}", file));
        check(file, sections);
        std::size_t count = 0;
        for (const section& s : sections)
            for (const panel& p : s.panels) {
                fmt::print("{:30}  {}\n", p.caption, p.expression);
                ++count;
            }
        fmt::print("{}: {} masks, {} KB\n", file, count, picture.size() / 1000);
    } catch (const std::exception& error) {
        fmt::print(stderr, "mask_gallery: {}\n", error.what());
        return EXIT_FAILURE;
    }
}
