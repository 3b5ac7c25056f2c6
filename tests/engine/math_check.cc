// Largest errors of kernels/common/math.h against double precision, in units in the last place: "exp tanh logistic",
// then how many of the special cases were wrong.
#include <math.h>
#include <stdio.h>

#include "kernels/common/math.h"

using namespace rwkvflow;

static double ulps(float got, double wanted) {
    const float rounded = static_cast<float>(wanted);
    if (got == rounded) return 0;
    int exponent;
    frexp(wanted, &exponent);
    const double unit = ldexp(1.0, exponent - 24 > -149 ? exponent - 24 : -149);
    return fabs(static_cast<double>(got) - wanted) / unit;
}

int main() {
    double worst[3] = {};
    uint64_t seed = 1;
    for (int i = 0; i < 4000000; ++i) {
        seed = seed * 6364136223846793005u + 1442695040888963407u;
        const double unit = static_cast<double>(seed >> 11) / 9007199254740992.0;
        const float wide = static_cast<float>((unit - 0.5) * 2 * (i % 2 == 0 ? 86 : 3)),
                    x = i % 5 == 0 ? wide * 1e-4f : wide;
        const double d = x;
        const double errors[] = {ulps(exponential(splat(x))[3], exp(d)), ulps(tangent(splat(x))[9], tanh(d)),
                                 ulps(logistic(splat(x))[0], 1 / (1 + exp(-d)))};
        for (int j = 0; j < 3; ++j) worst[j] = errors[j] > worst[j] ? errors[j] : worst[j];
    }
    const float huge = 3e38f, infinite = __builtin_inff(), nan = __builtin_nanf("");
    const auto e = [](float x) { return exponential(splat(x))[0]; };
    const auto t = [](float x) { return tangent(splat(x))[0]; };
    const auto l = [](float x) { return logistic(splat(x))[0]; };
    int wrong = 0;
    wrong += e(0) != 1 || e(huge) != infinite || e(infinite) != infinite || e(-huge) != 0 || e(-infinite) != 0 ||
             e(nan) == e(nan);
    wrong += ulps(e(88.72f), exp(static_cast<double>(88.72f))) > 2 || e(88.8f) != infinite;
    wrong += ulps(e(-100), exp(-100.0)) > 1 || e(-103) == 0 || e(-104.5f) != 0;  // subnormal results
    wrong += t(0) != 0 || t(huge) != 1 || t(-infinite) != -1 || t(nan) == t(nan) || t(1e-30f) != 1e-30f;
    wrong += l(0) != 0.5f || l(huge) != 1 || l(-huge) != 0 || l(nan) == l(nan);
    printf("%.3f %.3f %.3f %d\n", worst[0], worst[1], worst[2], wrong);
    return 0;
}
