// Vectors of 64 bytes, in the compilers' own portable notation (GCC and Clang): an operation is done in every lane, and
// a single number stands for one in every lane.
//
// GCC keeps vectors that are wider than its registers in memory, and reads and writes them with every operation:
// products of floats took ten times as long with AVX2. So for GCC a vector is a pair of halves, until those fit a
// register.
#pragma once

#include <stdint.h>
#include <string.h>

namespace rwkvflow {
namespace {

#if defined(__clang__) || defined(__AVX512F__)
enum : uint32_t { kRegisterBytes = 64 };
#elif defined(__AVX__)
enum : uint32_t { kRegisterBytes = 32 };
#else
enum : uint32_t { kRegisterBytes = 16 };
#endif

template <typename Half>
struct Halves {
    Half low, high;
    auto operator[](uint32_t lane) const {
        constexpr uint32_t half = sizeof(Half) / sizeof(low[0]);
        return lane < half ? low[lane] : high[lane - half];
    }
};

// A vector of BYTES whose lanes are of this type.
template <typename Lane, uint32_t BYTES, bool FITS = BYTES <= kRegisterBytes>
struct Vector {
    typedef Halves<typename Vector<Lane, BYTES / 2>::Type> Type;
};
template <typename Lane, uint32_t BYTES>
struct Vector<Lane, BYTES, true> {
    typedef Lane Type __attribute__((vector_size(BYTES)));
};

typedef Vector<float, 64>::Type V16;
typedef Vector<uint32_t, 64>::Type U16;
typedef Vector<double, 64>::Type D8;
typedef Vector<uint64_t, 64>::Type L8;
// Half as wide, and one vector for every compiler.
typedef float V8 __attribute__((vector_size(32)));
typedef int32_t I8 __attribute__((vector_size(32)));

// What a function makes of vectors; it gets the parts of them that fit a register.
template <typename F, typename... Parts>
inline auto in_parts(F f, const Parts &...parts) {
    return f(parts...);
}
template <typename F, typename Half, typename... More>
inline auto in_parts(F f, const Halves<Half> &first, const Halves<More> &...more) {
    const auto low = in_parts(f, first.low, more.low...);
    return Halves<decltype(in_parts(f, first.low, more.low...))>{low, in_parts(f, first.high, more.high...)};
}

#define RWKV_LANEWISE(OP)                                             \
    template <typename A, typename B>                                 \
    inline auto operator OP(const Halves<A> &a, const Halves<B> &b) { \
        return in_parts([](auto x, auto y) { return x OP y; }, a, b); \
    }                                                                 \
    template <typename A, typename Number>                            \
    inline auto operator OP(const Halves<A> &a, Number b) {           \
        return in_parts([=](auto x) { return x OP b; }, a);           \
    }                                                                 \
    template <typename Number, typename B>                            \
    inline auto operator OP(Number a, const Halves<B> &b) {           \
        return in_parts([=](auto y) { return a OP y; }, b);           \
    }
RWKV_LANEWISE(+)
RWKV_LANEWISE(-)
RWKV_LANEWISE(*)
RWKV_LANEWISE(/)
RWKV_LANEWISE(&)
RWKV_LANEWISE(|)
RWKV_LANEWISE(<<)
RWKV_LANEWISE(>>)
RWKV_LANEWISE(<)
RWKV_LANEWISE(>)
RWKV_LANEWISE(>=)
#undef RWKV_LANEWISE
template <typename Half>
inline auto operator-(const Halves<Half> &a) {
    return in_parts([](auto x) { return -x; }, a);
}
template <typename Half, typename Other>
inline Halves<Half> &operator+=(Halves<Half> &a, const Other &b) {
    return a = a + b;
}

// In each lane the one where the comparison holds, and the other where it does not.
template <typename Mask, typename Value>
inline Value select(const Mask &mask, const Value &yes, const Value &no) {
    return in_parts([](auto m, auto y, auto n) { return m ? y : n; }, mask, yes, no);
}

// The same bits, as lanes of another type.
template <typename Lane, typename Value>
inline auto lanes_as(const Value &value) {
    return in_parts([](auto x) { return reinterpret_cast<typename Vector<Lane, sizeof x>::Type>(x); }, value);
}
inline U16 as_bits(const V16 &value) { return lanes_as<uint32_t>(value); }
inline V16 as_float(const U16 &value) { return lanes_as<float>(value); }

template <typename Value>
inline Value load(const void *at) {
    if constexpr (sizeof(Value) > kRegisterBytes) {
        typedef decltype(Value::low) Half;
        return {load<Half>(at), load<Half>(static_cast<const char *>(at) + sizeof(Half))};
    } else {
        Value out;
        memcpy(&out, at, sizeof out);
        return out;
    }
}
template <typename Value>
inline void store(void *at, const Value &value) {
    if constexpr (sizeof(Value) > kRegisterBytes) {
        store(at, value.low);
        store(static_cast<char *>(at) + sizeof value.low, value.high);
    } else {
        memcpy(at, &value, sizeof value);
    }
}
inline V16 load16(const void *at) { return load<V16>(at); }

// Parts of a vector, each in a register; each_part calls `f` with the number of each.
typedef Vector<float, kRegisterBytes>::Type RegisterPart;
template <uint32_t PART, typename Value>
inline auto &part_of(Value &value) {
    constexpr uint32_t half = sizeof(Value) / kRegisterBytes / 2;
    if constexpr (half == 0) return value;
    else if constexpr (PART < half) return part_of<PART>(value.low);
    else return part_of<PART - half>(value.high);
}
template <uint32_t PART = 0, typename F>
inline void each_part(F f) {
    f.template operator()<PART>();
    if constexpr ((PART + 1) * kRegisterBytes < 64) each_part<PART + 1>(f);
}

// Lane i of the one half and lane i of the other, added.
template <typename Value>
inline auto sum_of_halves(const Value &value) {
    if constexpr (sizeof(Value) > kRegisterBytes) {
        return value.low + value.high;
    } else {
        V8 halves[2];
        memcpy(halves, &value, sizeof halves);
        return halves[0] + halves[1];
    }
}

// A number in all lanes. (Adding it to zeros would make a zero's sign positive.)
template <typename Value, typename Number>
inline Value in_all_lanes(Number number) {
    return number - Value{};
}
inline V16 splat(float value) { return in_all_lanes<V16>(value); }

}  // namespace
}  // namespace rwkvflow
