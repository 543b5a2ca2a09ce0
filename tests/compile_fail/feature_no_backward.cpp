// expect: heed: this gate has no backward \(struct gradients, work_backward\)
#include <heed/heed.hpp>

using view = heed::view<float, 1>;

struct doubled {
    using axis = heed::axes::gate;
    struct product {
        heed::view<const float, 1> x;
        view out;
        static int stages() { return 1; }
        static heed::index tasks(int) { return 1; }
        static heed::index scratch() { return 0; }
        static heed::index kept() { return 0; }
        static heed::index sums() { return 0; }
        void run(int, heed::index, const heed::work_memory<float>&) const { out(0) = 2 * x(0); }
        static void finish(const double*) {}
    };
    static void check(const char*, const heed::view<const float, 1>&) {}
    template <class F>
    void each_parameter(F&&) const {}
    template <class P>
    product work(const heed::view<const float, 1>& x, const view& out) const {
        return {x, out};
    }
};

void call(const view& x, const view& out) {
#ifdef HEED_FAIL
    heed::feature_attention_backward(x, out, out, doubled{});
#else
    heed::feature_attention(x, out, doubled{});
#endif
}
