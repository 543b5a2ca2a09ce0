// Eigen matrices: the self-attention block of a transformer, its projections in Eigen and its attention in heed, on Eigen's own threads.
//
// One product makes queries, keys and values side by side in one matrix; heed reads each as a block of that matrix, without a copy.
#include <heed/heed.hpp>
#include <heed/interop/eigen.hpp>
#include <heed/interop/eigen_pool.hpp>

#include <Eigen/Dense>
#include <cmath>
#include <cstdio>

namespace {

using matrix = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
constexpr Eigen::Index tokens = 200, heads = 6, features = 32, width = heads * features;

struct self_attention {
    matrix in = matrix::Random(width, 3 * width) / std::sqrt(static_cast<float>(width));
    matrix out = matrix::Random(width, width) / std::sqrt(static_cast<float>(width));

    matrix operator()(const matrix& x, const heed::eigen_pool& pool) const {
        const matrix qkv = x * in;
        matrix attended(x.rows(), width);
        heed::attention(heed::thd(qkv.leftCols(width), heads), heed::thd(qkv.middleCols(width, width), heads),
                        heed::thd(qkv.rightCols(width), heads), heed::thd(attended, heads), heed::causal, pool);
        return attended * out;
    }

    // The same in Eigen alone: a matrix of all scores for each head.
    matrix with_score_matrices(const matrix& x) const {
        const matrix qkv = x * in;
        matrix attended(x.rows(), width);
        for (Eigen::Index h = 0; h < heads; ++h) {
            const auto q = qkv.middleCols(h * features, features), k = qkv.middleCols(width + h * features, features);
            matrix weights = (q * k.transpose() / std::sqrt(static_cast<float>(features))).array().exp();
            weights = weights.triangularView<Eigen::Lower>();
            weights.array().colwise() /= weights.rowwise().sum().array().eval();
            attended.middleCols(h * features, features) = weights * qkv.middleCols(2 * width + h * features, features);
        }
        return attended * out;
    }
};

}  // namespace

int main() {
    std::srand(1);
    const self_attention layer;
    const matrix x = matrix::Random(tokens, width);
    Eigen::ThreadPool threads(2);
    const matrix y = layer(x, heed::eigen_pool(threads)), expected = layer.with_score_matrices(x);
    const float difference = (y - expected).cwiseAbs().maxCoeff();
    std::printf("block of %td tokens by %td features, %td heads, on %d threads of an Eigen pool\n", tokens, width, heads,
                threads.NumThreads());
    std::printf("first token %8.4f %8.4f %8.4f ...\n", static_cast<double>(y(0, 0)), static_cast<double>(y(0, 1)),
                static_cast<double>(y(0, 2)));
    std::printf("last token  %8.4f %8.4f %8.4f ...\n", static_cast<double>(y(tokens - 1, 0)), static_cast<double>(y(tokens - 1, 1)),
                static_cast<double>(y(tokens - 1, 2)));
    std::printf("largest difference from score matrices in Eigen: %.1e, of values up to %.2f\n", static_cast<double>(difference),
                static_cast<double>(expected.cwiseAbs().maxCoeff()));
    return difference < 2e-5f ? 0 : 1;
}
