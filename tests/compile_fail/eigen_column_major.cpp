// expect: heed: an Eigen matrix of tokens must be row-major \(Eigen::RowMajor\), so that the features of a token lie side by side
#include <heed/interop/eigen.hpp>

#ifdef HEED_FAIL
using matrix = Eigen::MatrixXf;
#else
using matrix = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
#endif

heed::view<float, 4> tokens(matrix& x) { return heed::thd(x, 2); }
