// expect: heed: a view of a temporary Eigen matrix would dangle; give it a name
#include <heed/interop/eigen.hpp>

using matrix = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

heed::view<float, 4> tokens(matrix& x) {
#ifdef HEED_FAIL
    return heed::thd(matrix(x), 2);
#else
    return heed::thd(x.leftCols(2), 2);
#endif
}
