#include "golden/check.hpp"
#include "support/catch.hpp"

#include <unistd.h>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <limits>
#include <string>
#include <vector>

namespace {

std::string npy_file(const std::string& descr, const std::string& shape, const std::string& data, int version = 1,
                     const std::string& fortran_order = "False") {
    const std::string header = "{'descr': '" + descr + "', 'fortran_order': " + fortran_order + ", 'shape': " + shape + ", }\n";
    std::string file = "\x93NUMPY";
    file += static_cast<char>(version);
    file += '\0';
    for (int byte = 0; byte < (version == 1 ? 2 : 4); ++byte) file += static_cast<char>(header.size() >> (8 * byte) & 0xff);
    return file + header + data;
}
template <class T>
std::string bytes_of(const std::vector<T>& values) {
    std::string bytes(values.size() * sizeof(T), '\0');
    std::memcpy(bytes.data(), values.data(), bytes.size());
    return bytes;
}

// A case of the operator `double x`: out = 2 x, rounded = whole part of x, d_x = 2 d_out.
struct sample {
    std::filesystem::path folder;
    std::string meta =
        "paper = 99 sample\n"
        "operator = double x, whole part of x\n"
        "array x = [A,B] 2,3 float64\n"
        "array out = [A,B] 2,3 float64\n"
        "array rounded = [A,B] 2,3 int64\n"
        "array d_out = [] scalar float32\n"
        "array d_x = [] scalar float32\n"
        "inputs = x\n"
        "expected = out rounded\n"
        "upstream = d_out\n"
        "gradients = d_x\n"
        "tolerance_forward_float64 = 1e-10\n"
        "tolerance_forward_float32 = 1e-05\n"
        "tolerance_gradient_float64 = 1e-08\n"
        "tolerance_gradient_float32 = 1e-04\n"
        "note = one\n"
        "\n"
        "note = two\n";

    sample() {
        static std::atomic<int> number = 0;
        folder = std::filesystem::temp_directory_path() / ("heed_golden_" + std::to_string(getpid()) + "_" + std::to_string(number++));
        std::filesystem::create_directories(folder);
        floats("x", {1.25, 2.5, -3.75, 0, 1e-3, 40});
        floats("out", {2.5, 5, -7.5, 0, 2e-3, 80});
        file("rounded", npy_file("<i8", "(2, 3)", bytes_of<std::int64_t>({1, 2, -3, 0, 0, 40})));
        file("d_out", npy_file("<f4", "()", bytes_of<float>({0.5f}), 2));
        file("d_x", npy_file("<f4", "()", bytes_of<float>({1.0f}), 2));
    }
    ~sample() {
        std::error_code ignored;
        std::filesystem::remove_all(folder, ignored);
    }
    sample(const sample&) = delete;

    void file(const std::string& name, const std::string& bytes) const {
        std::ofstream(folder / (name + ".npy"), std::ios::binary) << bytes;
    }
    void floats(const std::string& name, const std::vector<double>& values) const {
        file(name, npy_file("<f8", "(2, 3)", bytes_of(values)));
    }
    void replace(const std::string& from, const std::string& to) { meta.replace(meta.find(from), from.size(), to); }

    std::vector<std::string> complaints() const {
        std::ofstream(folder / "meta.txt") << meta;
        return golden::check_case(folder, paper()).complaints;
    }
    std::string complaint() const {
        std::string all;
        for (const std::string& c : complaints()) all += c + "\n";
        return all;
    }

private:
    template <class T>
    static golden::answers compute(const golden::problem<T>& in) {
        const auto x = in.tensor("x", 2);
        auto out = x;
        golden::tensor<std::int64_t> rounded(x.shape);
        auto d_x = in.tensor("d_out", 0);
        for (T& value : out.values) value *= 2;
        for (std::size_t i = 0; i < x.values.size(); ++i) rounded.values[i] = static_cast<std::int64_t>(x.values[i]);
        for (T& value : d_x.values) value *= 2;
        return {{"out", out}, {"rounded", rounded}, {"d_x", d_x}};
    }
    static golden::paper paper() {
        return {"sample", {{"double x", [](const auto& in) { return compute(in); }}}};
    }
};

}  // namespace

TEST_CASE("a case that agrees passes in both types, with its gradients") {
    sample s;
    CHECK(s.complaint() == "");
}

TEST_CASE("a wrong value is named with its place, value and tolerance") {
    sample s;
    s.floats("out", {2.5, 5, -7.5, 0, 2e-3, 80.01});
    CHECK(s.complaints().size() == 2);
    CHECK_THAT(s.complaint(),
               contains_text("out in double: at [1,2] it is 80 instead of 80.01") && contains_text("out in float: at [1,2]"));
    s.floats("out", {2.5, 5, -7.5, 0, 2e-3, 80 + 1e-6});
    CHECK(s.complaints().size() == 1);
    CHECK_THAT(s.complaint(), contains_text("out in double"));
    s.floats("out", {2.5, 5, -7.5 + 7e-9, 0, 2e-3, 80});
    CHECK(s.complaint() == "");
    s.file("rounded", npy_file("<i8", "(2, 3)", bytes_of<std::int64_t>({1, 2, -3, 1, 0, 40})));
    CHECK_THAT(s.complaint(), contains_text("rounded in double: at [1,0] it is 0 instead of 1"));
}

TEST_CASE("gradients are checked at their own tolerance, every one") {
    sample s;
    s.file("d_x", npy_file("<f4", "()", bytes_of<float>({1.0001f}), 2));
    CHECK_THAT(s.complaint(), contains_text("d_x in double") && !contains_text("out in"));
    s.meta += "tolerance_gradient_float64.d_x = 1e-3\ntolerance_gradient_float32.d_x = 1e-3\n";
    CHECK(s.complaint() == "");
    s.replace("tolerance_gradient_float32 =", "tolerance_other =");
    s.replace("tolerance_gradient_float32.d_x =", "tolerance_another =");
    CHECK_THAT(s.complaint(), contains_text("in float: meta.txt: no line 'tolerance_gradient_float32'"));

    sample other;
    other.meta += "array d_y = [] scalar float32\n";
    other.file("d_y", npy_file("<f4", "()", bytes_of<float>({0.0f}), 2));
    CHECK(other.complaint() == "meta.txt: array 'd_y' stands on none of the lines inputs, expected, upstream and gradients\n");
    other.replace("gradients = d_x", "gradients = d_x d_y");
    CHECK(other.complaints().size() == 2);
    CHECK_THAT(other.complaint(), contains_text("d_y in double: no handler of this operator computes it"));
}

TEST_CASE("infinities stand where they are expected, and arrays of zeros are compared absolutely") {
    constexpr double infinity = std::numeric_limits<double>::infinity();
    const auto tensor = [](const std::vector<double>& values) {
        golden::tensor<double> t({static_cast<golden::index>(values.size())});
        t.values = values;
        return golden::array(t);
    };
    const auto agree = [&](const std::vector<double>& got, const std::vector<double>& expected) {
        return golden::compare(tensor(got), tensor(expected), 1e-3).complaint.empty();
    };
    CHECK(agree({-infinity, 100.05}, {-infinity, 100}));
    CHECK_FALSE(agree({-infinity, 100.2}, {-infinity, 100}));
    CHECK_FALSE(agree({infinity, 100}, {-infinity, 100}));
    CHECK_FALSE(agree({-1e300, 100}, {-infinity, 100}));
    CHECK_FALSE(agree({-infinity, 100}, {-10, 100}));
    CHECK_FALSE(agree({std::nan(""), 100}, {1, 100}));
    CHECK_FALSE(agree({std::nan(""), 100}, {-infinity, 100}));
    CHECK(agree({0, 0.0009}, {0, 0}));
    CHECK_FALSE(agree({0, 0.0011}, {0, 0}));
    CHECK(agree({-infinity, -infinity}, {-infinity, -infinity}));
    CHECK_FALSE(agree({1, 2, 3}, {1, 2}));
    CHECK_FALSE(golden::compare(tensor({1}), golden::array(tensor({1}).as<std::int64_t>()), 1).complaint.empty());
}

TEST_CASE("what does not agree with meta.txt is refused") {
    sample s;
    const std::string x = bytes_of<double>({1.25, 2.5, -3.75, 0, 1e-3, 40});
    SECTION("truncated data") {
        s.file("x", npy_file("<f8", "(2, 3)", x.substr(0, 40)));
        CHECK(s.complaint() == "x.npy: it is truncated: 40 bytes of data for shape [2,3]\n");
    }
    SECTION("a shape that overflows") {
        s.file("x", npy_file("<f8", "(4294967296, 4294967296, 2)", x));
        CHECK_THAT(s.complaint(), contains_text("x.npy: it is truncated"));
    }
    SECTION("data past the end") {
        s.file("x", npy_file("<f8", "(2, 3)", x + "1"));
        CHECK(s.complaint() == "x.npy: it holds 49 bytes of data, shape [2,3] takes 48\n");
    }
    SECTION("truncated header") {
        s.file("x", npy_file("<f8", "(2, 3)", x).substr(0, 30));
        CHECK(s.complaint() == "x.npy: it is truncated within the header\n");
    }
    SECTION("not an array file") {
        s.file("x", x);
        CHECK(s.complaint() == "x.npy: it is not a .npy file\n");
    }
    SECTION("another version") {
        s.file("x", npy_file("<f8", "(2, 3)", x, 3));
        CHECK_THAT(s.complaint(), contains_text("x.npy: its format version is 3"));
    }
    SECTION("Fortran order") {
        s.file("x", npy_file("<f8", "(2, 3)", x, 1, "True"));
        CHECK_THAT(s.complaint(), contains_text("x.npy: it is in Fortran order"));
    }
    SECTION("another element type") {
        s.file("x", npy_file(">f8", "(2, 3)", x));
        CHECK(s.complaint() == "x.npy: its element type '>f8' is not read\n");
    }
    SECTION("shape") {
        s.file("x", npy_file("<f8", "(3, 2)", x));
        CHECK(s.complaint() == "x.npy: its shape is [3,2], meta.txt says [2,3]\n");
    }
    SECTION("element type") {
        s.replace("array x = [A,B] 2,3 float64", "array x = [A,B] 2,3 int64");
        CHECK(s.complaint() == "x.npy: its elements are float64, meta.txt says int64\n");
    }
    SECTION("no file") {
        std::filesystem::remove(s.folder / "x.npy");
        CHECK(s.complaint() == "x.npy: cannot be opened\n");
    }
    SECTION("no array line") {
        s.replace("expected = out", "expected = out other");
        CHECK(s.complaint() == "meta.txt: no line 'array other'\n");
    }
    SECTION("a malformed array line") {
        s.replace("array x = [A,B] 2,3 float64", "array x = [A,B] 2,three float64");
        CHECK(s.complaint() == "meta.txt line 3: 'three' is not a number\n");
    }
    SECTION("nothing expected") {
        s.replace("expected = out rounded", "expected =");
        CHECK(s.complaint() == "meta.txt: no array is expected\n");
    }
    SECTION("a line given twice") {
        s.meta += "operator = another\n";
        CHECK_THAT(s.complaint(), contains_text("'operator' is given twice"));
    }
}

TEST_CASE("operators and arrays that no handler knows are failures") {
    sample s;
    s.replace("operator = double x", "operator = triple x");
    CHECK(s.complaint() == "no handler for operator 'triple x, whole part of x'\n");
    sample t;
    t.replace("array d_x =", "array other = [A,B] 2,3 float64\narray d_x =");
    t.replace("expected = out", "expected = out other");
    t.floats("other", {0, 0, 0, 0, 0, 0});
    CHECK(t.complaints().size() == 2);
    CHECK_THAT(t.complaint(), contains_text("other in double: no handler of this operator computes it"));
}

TEST_CASE("cases of operators that are to come later are skipped, and no others") {
    sample s;
    s.replace("operator = double x", "operator = triple x");
    std::ofstream(s.folder / "meta.txt") << s.meta;
    const auto skipped = [&](const std::vector<std::string>& later) {
        const golden::report r = golden::check_case(s.folder, {"sample", {{"half", [](const auto&) { return golden::answers(); }}}, later});
        CHECK(r.complaints.empty() == !r.skipped.empty());
        return r.skipped;
    };
    CHECK(skipped({"quarter", "triple"}) == "triple x, whole part of x");
    CHECK(skipped({"quarter"}).empty());
    const golden::report handled =
        golden::check_case(s.folder, {"sample", {{"triple", [](const auto&) { return golden::answers(); }}}, {"triple x"}});
    CHECK(handled.skipped.empty());
    CHECK_THAT(handled.complaints.at(0), contains_text("no handler of this operator computes it"));
}

TEST_CASE("the longest fitting beginning of an operator wins") {
    const auto none = [](const auto&) { return golden::answers(); };
    const golden::paper p{"sample", {{"attention", none}, {"attention, causal", none}, {"other", none}}};
    CHECK(p.find("attention, causal, sparse") == &p.operators[1]);
    CHECK(p.find("attention, full") == &p.operators[0]);
    CHECK(p.find("att") == nullptr);
}

TEST_CASE("every element type of array files is read") {
    sample s;
    const auto values = [&](const std::string& descr, const std::string& data) {
        s.file("y", npy_file(descr, "(3,)", data));
        const golden::npy file = golden::read_npy(s.folder / "y.npy");
        return std::pair(file.dtype, file.values.as<double>().values);
    };
    const std::vector<double> expected{1, 0, 1};
    CHECK(values("<f8", bytes_of<double>({1, 0, 1})) == std::pair(std::string("float64"), expected));
    CHECK(values("<f4", bytes_of<float>({1, 0, 1})) == std::pair(std::string("float32"), expected));
    CHECK(values("<i8", bytes_of<std::int64_t>({1, 0, 1})) == std::pair(std::string("int64"), expected));
    CHECK(values("<i4", bytes_of<std::int32_t>({1, 0, 1})) == std::pair(std::string("int32"), expected));
    CHECK(values("|u1", bytes_of<std::uint8_t>({1, 0, 1})) == std::pair(std::string("uint8"), expected));
    CHECK(values("|b1", bytes_of<std::uint8_t>({1, 0, 1})) == std::pair(std::string("bool"), expected));
    s.file("y", npy_file("<f8", "(0, 4)", ""));
    CHECK(golden::read_npy(s.folder / "y.npy").values.shape() == golden::extents_list{0, 4});
}
