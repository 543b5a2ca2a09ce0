// Runs the golden cases of the registered papers: every folder <dir>/<NN>-<slug>/<case>/.
#include "check.hpp"
#include "registry.hpp"

#include <CLI/CLI.hpp>

#include <algorithm>
#include <cctype>
#include <cstdio>
#include <filesystem>
#include <set>
#include <string>
#include <vector>

namespace {

namespace fs = std::filesystem;

struct found_case {
    int paper;
    std::string name;  // <NN>-<slug>/<case>
    fs::path folder;
};

std::vector<fs::path> folders_in(const fs::path& dir) {
    std::vector<fs::path> list;
    for (const auto& entry : fs::directory_iterator(dir))
        if (entry.is_directory()) list.push_back(entry.path());
    std::sort(list.begin(), list.end());
    return list;
}

std::vector<found_case> cases_under(const fs::path& dir) {
    std::vector<found_case> list;
    for (const fs::path& paper : folders_in(dir)) {
        const std::string slug = paper.filename().string();
        const auto digit = [&](std::size_t i) { return std::isdigit(static_cast<unsigned char>(slug[i])) != 0; };
        if (slug.size() < 3 || !digit(0) || !digit(1) || slug[2] != '-') continue;
        for (const fs::path& folder : folders_in(paper))
            list.push_back({std::stoi(slug.substr(0, 2)), slug + "/" + folder.filename().string(), folder});
    }
    return list;
}

}  // namespace

int main(int argc, char** argv) {
    CLI::App app("Checks heed against golden data");
    std::string dir = HEED_GOLDEN_DEFAULT_DIR;
    std::set<int> wanted;
    bool list = false;
    app.add_option("--dir", dir, "folder of the papers' folders")->envname("HEED_GOLDEN_DIR")->capture_default_str();
    app.add_option("--paper", wanted, "number of a paper; all that are registered, if none is given")
        ->transform(CLI::Validator(
            [](std::string& number) {
                number.erase(0, std::min(number.find_first_not_of('0'), number.size()));  // octal to newer versions of CLI11
                return std::string{};
            },
            ""));
    app.add_flag("--list", list, "list the cases instead of running them");
    CLI11_PARSE(app, argc, argv);

    const auto& papers = golden::papers();
    for (const int number : wanted)
        if (!papers.contains(number)) {
            std::fprintf(stderr, "golden: paper %d is not registered\n", number);
            return 2;
        }
    if (wanted.empty() && !list)
        for (const auto& [number, paper] : papers) wanted.insert(number);

    std::vector<found_case> cases;
    try {
        cases = cases_under(dir);
    } catch (const fs::filesystem_error& e) {
        std::fprintf(stderr, "golden: %s\n", e.what());
        return 2;
    }
    std::erase_if(cases, [&](const found_case& c) { return !wanted.empty() && !wanted.contains(c.paper); });

    if (list) {
        for (const found_case& c : cases)
            std::printf("%s%s\n", c.name.c_str(), papers.contains(c.paper) ? "" : "  (its paper is not registered)");
        return 0;
    }

    int failed = 0, skipped = 0;
    for (const found_case& c : cases) {
        const golden::report r = golden::check_case(c.folder, papers.at(c.paper));
        if (!r.skipped.empty()) {
            ++skipped;
            std::printf("%-52s skipped: its operator is not covered yet (%s)\n", c.name.c_str(), r.skipped.c_str());
            continue;
        }
        const bool ok = r.complaints.empty();
        failed += !ok;
        std::printf("%-52s %s   of the tolerance: double %.2g, float %.2g\n", c.name.c_str(), ok ? "ok    " : "FAILED", r.in_double,
                    r.in_float);
        for (const std::string& complaint : r.complaints) std::printf("    %s\n", complaint.c_str());
    }
    for (const int number : wanted)
        if (std::none_of(cases.begin(), cases.end(), [&](const found_case& c) { return c.paper == number; })) {
            ++failed;
            std::printf("paper %d: no case under %s\n", number, dir.c_str());
        }
    std::printf("%zu cases, %d failed", cases.size(), failed);
    if (skipped > 0) std::printf(", %d skipped", skipped);
    std::printf("\n");
    return failed == 0 ? 0 : 1;
}
